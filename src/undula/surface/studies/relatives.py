"""How similar test proteins are to those of the training: a leak has to be seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from undula.data.alignment import expectation, letter_numbers, local_alignment
from undula.errors import InputError
from undula.io.datasets import Dataset
from undula.io.sequences import sequence_of

SIMILAR = 0.4
"""From this identity on a test protein counts as similar to a training protein (the paper's)."""
_EVALUE = 1e-3


@dataclass(frozen=True, kw_only=True)
class Relative:
    """The training protein most similar to a test protein.

    Attributes:
        test: The test protein.
        training: The training protein.
        identity: Equal letters among the columns of their best local alignment, gaps included.
        columns: How many those are.
    """

    test: str
    training: str
    identity: float
    columns: int

    def __str__(self) -> str:
        return (
            f"{self.test} has {self.identity:.0%} identity to {self.training}, which is trained "
            f"on, over {self.columns} residues"
        )


def relatives(test: Sequence[Dataset], training: Sequence[Dataset]) -> tuple[Relative, ...]:
    """Return, for each test protein that has one, its most similar training protein.

    Alignments that chance would give more often than once in a thousand times do not count.

    Args:
        test: Proteins on which a model is scored.
        training: Proteins that it may read.

    Raises:
        InputError: The same sequence is on both sides.
    """
    known = [(one.structure.name, sequence_of(one.structure)) for one in training]
    searched = sum(len(sequence) for _, sequence in known)
    found = []
    for dataset in test:
        name, sequence = dataset.structure.name, sequence_of(dataset.structure)
        best: Relative | None = None
        for other, letters in known:
            if sequence == letters:
                raise InputError(f"the test protein {name} is trained on under the name {other}")
            hit = local_alignment(letter_numbers(sequence), letter_numbers(letters))
            counts = hit.score and expectation(hit.score, len(sequence), searched) <= _EVALUE
            if counts and (best is None or hit.identity > best.identity):
                best = Relative(
                    test=name, training=other, identity=hit.identity, columns=hit.columns
                )
        if best is not None:
            found.append(best)
    return tuple(found)
