"""Training, validation and test sets between which no two sequences are similar."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from undula import atomic
from undula.data.similarity import Similarity, SimilarityConfig
from undula.errors import InputError, UsageError

FORMAT = 1
PARTS = ("train", "validation", "test")
RULES = ("families", "singletons")


@dataclass(frozen=True, kw_only=True)
class Split:
    """Who is in which part.

    Attributes:
        train: Names, sorted.
        validation: Names, sorted.
        test: Names, sorted.
    """

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for part in PARTS:
            for name in getattr(self, part):
                if name in seen:
                    raise InputError(f"{name} is in two parts of the split, or twice in one")
                seen.add(name)


def families(found: Similarity) -> tuple[tuple[str, ...], ...]:
    """Return the finest groups such that similar sequences are never in two of them.

    They join the clusters by the pairs that are similar at any coverage: a domain that two long
    proteins share puts them in one family though they are in two clusters.

    Returns:
        Each group sorted, and the groups.
    """
    group: dict[str, set[str]] = {}
    for cluster in found.clusters:
        together = set(cluster)
        group |= dict.fromkeys(cluster, together)
    for first, second, _ in found.links:
        large, small = sorted((group[first], group[second]), key=len, reverse=True)
        if large is not small:
            large |= small
            group |= dict.fromkeys(small, large)
    return tuple(sorted({tuple(sorted(names)) for names in group.values()}))


def split(
    groups: Sequence[Sequence[str]],
    counts: tuple[int, int, int],
    seed: int,
    rule: str = "families",
) -> Split:
    """Divide groups of similar sequences into training, validation and test at random.

    ``families`` deals out whole groups, so that test proteins may resemble each other but none
    resembles one of another part. ``singletons`` is the paper's rule: validation and test, half
    each, come from those that resemble no other at all. Chance is the order of the SHA-256 of
    seed and name: the same on every machine, with every version.

    Args:
        groups: Of `families`.
        counts: How many sequences for training, validation and test; all of them.
        seed: Any whole number.
        rule: "families" or "singletons".

    Returns:
        The three parts.

    Raises:
        UsageError: The counts are not all sequences, or cannot be met.

    Source: MoE-DSR, Experiments, Dataset: 1290/50/50 and "no more than 40 % sequence identity
        with other proteins in ATLAS"; ours is less than the identity asked for, at any coverage.
        Theirs seems to have asked for coverage too: of ten proteins that the paper names from its
        test set, all are alone in their cluster, but 7p41_D has 98.7 % identity to 4epi_A over
        158 residues and 5jbg_A 40 % to 3ga3_A over 123. Which 100 they chose is not said.
    """
    if rule not in RULES:
        raise UsageError(f"there is no rule {rule}; choose {' or '.join(RULES)}")
    check_counts(counts, sum(map(len, groups)))
    shuffled = sorted(groups, key=lambda names: _lot(seed, min(names)))
    if rule == "singletons":
        alone = [names for names in shuffled if len(names) == 1]
        if len(alone) < counts[1] + counts[2]:
            raise UsageError(
                f"only {len(alone)} sequences are similar to no other, but validation and test "
                f"should have {counts[1]} and {counts[2]}"
            )
        shuffled = alone + [names for names in shuffled if len(names) > 1]
    parts: dict[str, list[str]] = {part: [] for part in PARTS}
    wanted = dict(zip(PARTS, counts, strict=True))
    for names in shuffled:
        fitting = (p for p in ("test", "validation") if len(parts[p]) + len(names) <= wanted[p])
        parts[next(fitting, "train")] += names
    if len(parts["train"]) != wanted["train"]:
        reached = " ".join(str(len(parts[part])) for part in PARTS)
        raise UsageError(
            f"counts {' '.join(map(str, counts))} cannot be met by whole families with seed "
            f"{seed}; {reached} can"
        )
    return Split(**{part: tuple(sorted(names)) for part, names in parts.items()})


def check_counts(counts: tuple[int, int, int], total: int) -> None:
    """Raise a `UsageError` unless the counts are not negative and add up to all sequences."""
    if min(counts) < 0 or sum(counts) != total:
        raise UsageError(
            f"counts {' '.join(map(str, counts))} should add up to the {total} sequences, not "
            f"to {sum(counts)}"
        )


def write_split(
    path: Path,
    sequences: Mapping[str, str],
    found: Similarity,
    config: SimilarityConfig,
    chosen: Split,
    *,
    seed: int,
    rule: str,
) -> dict[str, Any]:
    """Write a split with all it takes to make it again; return what was written.

    The numbers of both rules are in the file: clusters by identity and coverage, and pairs by
    identity at any coverage; and for both, how many cross from one part to another.
    """
    part_of = {name: part for part in PARTS for name in getattr(chosen, part)}
    crossing = [link for link in found.links if part_of[link[0]] != part_of[link[1]]]
    cut = [cluster for cluster in found.clusters if len({part_of[name] for name in cluster}) > 1]
    linked = {name for link in found.links for name in link[:2]}
    groups = families(found)
    described = {
        "format": FORMAT,
        "rule": rule,
        "seed": seed,
        "program": {"name": found.program, "version": found.version},
        "parameters": {
            key: value for key, value in asdict(config).items() if key not in ("program", "threads")
        },
        "sequences": {"count": len(sequences), "sha256": sequences_sha256(sequences)},
        "numbers": {
            "coverage": {**_sizes(found.clusters), "in_two_parts": len(cut)},
            "any_coverage": {
                "pairs": len(found.links),
                "sequences_in_pairs": len(linked),
                "sequences_in_none": len(sequences) - len(linked),
                "pairs_in_two_parts": len(crossing),
            },
            "families": _sizes(groups),
        },
        "counts": {part: len(getattr(chosen, part)) for part in PARTS},
        "parts": {part: list(getattr(chosen, part)) for part in PARTS},
    }
    atomic.write_json(path, described)
    return described


def load_split(path: Path) -> Split:
    """Read the parts of a split file.

    Raises:
        InputError: It is missing, damaged, of a newer format, or has a name in two parts.
    """
    described = atomic.read_json(path)
    if described.get("format") != FORMAT or "parts" not in described:
        raise InputError(f"{path} is no split file of format {FORMAT}")
    parts = described["parts"]
    whole = isinstance(parts, dict) and all(
        isinstance(parts.get(part), list) and all(isinstance(name, str) for name in parts[part])
        for part in PARTS
    )
    if not whole:
        raise InputError(f"{path} should have lists of names for {', '.join(PARTS)}")
    try:
        return Split(**{part: tuple(parts[part]) for part in PARTS})
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def sequences_sha256(sequences: Mapping[str, str]) -> str:
    """Return the SHA-256 of lines ``name``, tab, ``sequence``, sorted by name."""
    lines = "".join(f"{name}\t{sequences[name]}\n" for name in sorted(sequences))
    return hashlib.sha256(lines.encode()).hexdigest()


def _lot(seed: int, name: str) -> str:
    return hashlib.sha256(f"{seed}\t{name}".encode()).hexdigest()


def _sizes(groups: Sequence[Sequence[str]]) -> dict[str, int]:
    return {
        "count": len(groups),
        "of_one": sum(len(group) == 1 for group in groups),
        "largest": max(map(len, groups)),
    }
