"""From a database to data sets and a split, as a user types it."""

from __future__ import annotations

import io
import json
import zipfile

import mdtraj
import pytest
from tests.loopback import serving

from undula.cli.main import main
from undula.data.bundled import villin
from undula.io.datasets import open_dataset

NAMES = ("1vii_A", "2vii_A")


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """Serve two proteins of six residues, each with three replicas, and one that is broken."""
    folder = tmp_path_factory.mktemp("database")
    topology, trajectory, _ = villin()
    frames = mdtraj.load(str(trajectory), top=str(topology))
    with serving() as server:
        for first, name in enumerate(NAMES):
            chosen = f"resid {first} to {first + 5} and element != H"
            few = frames.atom_slice(frames.topology.select(chosen))
            few[0].save_pdb(str(folder / f"{name}.pdb"))
            packed = io.BytesIO()
            with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as opened:
                opened.write(folder / f"{name}.pdb", f"{name}.pdb")
                for number in (1, 2, 3):
                    few[20 * number : 20 * number + 6].save_xtc(str(folder / "run.xtc"))
                    opened.write(folder / "run.xtc", f"{name}_R{number}.xtc")
            server.files[f"/{name}"] = packed.getvalue()
        server.files["/3bad_A"] = b"PK but no archive"
        yield server


def test_fetch_prepare_verify_and_split(database, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("UNDULA_ATLAS_URL", f"{database.url}/{{name}}")
    raw, sets, file = (str(tmp_path / name) for name in ("raw", "sets", "split.json"))
    database.cuts = [500]
    assert main(["data", "fetch", "atlas", *NAMES, "-o", raw]) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [f"{raw}/{name}" for name in NAMES]
    assert "CC-BY-NC-4.0" in captured.err

    words = ["prepare", "atlas", raw, "-o", sets, "--stride", "3", "--holdout-replica", "3"]
    assert main(words) == 0
    assert capsys.readouterr().out.splitlines()[0] == (
        f"{sets}/1vii_A: 2 frames of 1vii_A_R1, 2 frames of 1vii_A_R2, "
        "2 frames of 1vii_A_R3 (held out)"
    )
    for name in NAMES:
        assert len(open_dataset(tmp_path / "sets" / name).trajectories) == 3

    folders = [f"{sets}/{name}" for name in NAMES]
    assert main(["data", "verify", *folders, f"{raw}/1vii_A"]) == 0
    assert "1vii_A: 4 files as fetched" in capsys.readouterr().out

    words = ["data", "split", *folders, "--program", "undula", "--seed", "1", "-o", file]
    assert main([*words, "--counts", "1", "0", "1"]) == 0
    printed = capsys.readouterr().out
    assert "at 40% identity and 80% coverage: 2 clusters, 0 in two parts" in printed
    assert "at 40% identity and any coverage: 0 pairs, 0 in two parts" in printed
    assert "1 train, 0 validation, 1 test" in printed

    words = ["data", "fetch", "atlas", "--split", file, "--part", "test", "-o", raw]
    assert main(words) == 0
    assert capsys.readouterr().out.strip() == (
        f"{raw}/{json.loads((tmp_path / 'split.json').read_text())['parts']['test'][0]}"
    )


def test_what_is_damaged_or_unknown_is_skipped_and_the_rest_comes(database, tmp_path, capsys):
    words = ["data", "fetch", "atlas", "9non_A", "3bad_A", "1vii_A", "-o", str(tmp_path)]
    assert main([*words, "--url", f"{database.url}/{{name}}"]) == 6
    captured = capsys.readouterr()
    assert captured.out.strip() == str(tmp_path / "1vii_A")
    assert "9non_A was skipped: ATLAS has no 9non_A" in captured.err
    assert "3bad_A was skipped" in captured.err
    (tmp_path / "1vii_A" / "1vii_A_R2.xtc").write_bytes(b"junk")
    words = ["prepare", "atlas", str(tmp_path), "-o", str(tmp_path / "sets")]
    assert main(words) == 6
    assert "1vii_A was skipped" in capsys.readouterr().err
    assert main(["data", "verify", str(tmp_path / "1vii_A")]) == 3
    assert "1vii_A_R2.xtc has changed" in capsys.readouterr().err


def test_list_names_licence_and_address(capsys):
    assert main(["data", "list"]) == 0
    printed = capsys.readouterr().out
    for words in ("atlas", "CC-BY-NC-4.0", "UNDULA_ATLAS_URL", "10.1093/nar/gkad1084"):
        assert words in printed
    assert main(["data"]) == 0
    assert "usage: undula data ACTION" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["fech"], 2, "did you mean fetch?"),
        (["fetch", "atlas", "-o", "OUT"], 2, "give names, or --split with --part"),
        (["fetch", "atlas", "1VII_A", "-o", "OUT"], 2, "is no ATLAS name"),
        (["fetch", "atlas", "1vii_A", "-o", "OUT", "--url", "URL/none"], 2, "{name}"),
        (["fetch", "atlas", "9non_A", "-o", "OUT", "--url", "URL/{name}"], 3, "has no 9non_A"),
        (["fetch", "atlas", "1vii_A", "2vii_A", "-o", "OUT", "--sha256", "0" * 64], 2, "not of 2"),
        (["fetch", "mdcath", "1vii_A", "-o", "OUT"], 2, "mdcath"),
        (["split", "none.csv", "--counts", "1", "1", "1", "-o", "OUT"], 3, "none.csv"),
        (["split", "FASTA", "--counts", "1", "1", "1", "-o", "OUT"], 2, "add up to the 2"),
        (["split", "FASTA", "--counts", "2", "0", "0", "-o", "OUT", "--identity", "40"], 2,
         "identity should be from 0 to 1"),
        (["verify", "OUT"], 3, "does not exist"),
    ],
)  # fmt: skip
def test_mistakes_get_one_sentence_and_an_exit_code(
    database, tmp_path, capsys, words, code, message
):
    fasta = tmp_path / "two.fasta"
    fasta.write_text(">a\nACD\n>b\nGHK\n")
    places = {"OUT": str(tmp_path / "out"), "FASTA": str(fasta)}
    words = [places.get(word, word).replace("URL", database.url) for word in words]
    assert main(["data", *words]) == code
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())
