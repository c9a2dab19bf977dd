"""What a study trains, on which proteins it scores, and which tables it prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from undula.data.splits import load_split
from undula.errors import InputError, UsageError
from undula.io.datasets import Dataset
from undula.surface.evaluation import EvaluationConfig

ROWS = "rows"
"""Name of the table that says what each row is."""
TABLES = ("models", "distributions", "routers", "experts", "specialisation")


@dataclass(frozen=True, kw_only=True)
class StudyRow:
    """One training configuration.

    Attributes:
        name: Of its run folders: letters, digits, dots, dashes.
        label: In the tables; by default the name.
        preset: What it starts from; one that serves any protein.
        set: Keys of the training configuration, nested, that differ from the preset.
        seeds: So many of the protocol's seeds; 0 for all.
    """

    name: str
    label: str = ""
    preset: str = "default"
    set: dict[str, Any] = field(default_factory=dict)
    seeds: int = 0

    def __post_init__(self) -> None:
        if not self.name or not all(c.isalnum() or c in ".-_" for c in self.name):
            raise UsageError(f"{self.name!r} is no name for a row: letters, digits, dots, dashes")
        if not self.label:
            object.__setattr__(self, "label", self.name)
        if self.seeds < 0:
            raise UsageError(f"row {self.name}: seeds are counted from 0")

    def of(self, seeds: Sequence[int]) -> Sequence[int]:
        """Return those of a protocol's seeds that this row is trained with."""
        return seeds[: self.seeds or len(seeds)]


@dataclass(frozen=True, kw_only=True)
class Published:
    """What a publication says of a row, over all its test proteins.

    Attributes:
        iou: Intersection over union.
        chamfer: Its Chamfer distance.
        normals: Its normal consistency.
    """

    iou: float | None = None
    chamfer: float | None = None
    normals: float | None = None

    def measures(self) -> dict[str, float]:
        """Return the numbers by the name of the measure they stand beside."""
        found = {
            "iou": self.iou,
            "chamfer_paper": self.chamfer,
            "normal_consistency_paper": self.normals,
        }
        return {name: value for name, value in found.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class StudyTable:
    """A table or figure.

    Attributes:
        name: Of its files.
        title: Above it.
        kind: "models" is models × proteins beside the trivial rows and oracles; "distributions"
            the same of what they say of spread, occupancy, volume and area; "routers" counts
            parameters beside the scores; "experts" is a score over the number of experts;
            "specialisation" says which proteins an expert serves.
        rows: Names of rows, in order.
        published: By the name of a row (trained, trivial or oracle), what a publication says.
        differs: Why that is not to be compared number by number.
    """

    name: str
    title: str
    kind: Literal["models", "distributions", "routers", "experts", "specialisation"]
    rows: list[str]
    published: dict[str, Published] = field(default_factory=dict)
    differs: str = ""

    def __post_init__(self) -> None:
        if self.kind not in TABLES:
            raise UsageError(f"table {self.name}: kind is one of {', '.join(TABLES)}")
        if not self.rows:
            raise UsageError(f"table {self.name} names no rows")
        if self.name == ROWS:
            raise UsageError(f"a table cannot be named {ROWS}: every study has one of all rows")


@dataclass(frozen=True, kw_only=True)
class StudyProteins:
    """Who is trained on, who is kept for validation, who is the test.

    Attributes:
        test: Names; never read in training and never used to choose anything.
        validation: Names, or how many of the rest, evenly over the list.
        train: Names; by default all others.
        split: A file of ``undula data split`` in place of all three.
    """

    test: list[str] = field(default_factory=list)
    validation: int | list[str] = 2
    train: list[str] | None = None
    split: str | None = None

    def __post_init__(self) -> None:
        if self.split is not None and (self.test or self.train is not None):
            raise UsageError("proteins has either a split file or names; leave the other out")


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """How a model is scored on a test protein.

    Attributes:
        frames: How many later frames of a trajectory, evenly spaced.
        replicas: How many trajectories of each protein, each forecast from its own first frame.
        spacing: Of lattices and meshes, Å.
        samples: Points drawn on each mesh for the distances.
        seed: Of those points, of the elastic network and of a model's samples.
        members: How many samples a distributional model draws, and members an elastic network.
    """

    frames: int = 10
    replicas: int = 1
    spacing: float = 1.0
    samples: int = 10_000
    seed: int = 0
    members: int = 32

    def __post_init__(self) -> None:
        if self.frames < 1 or self.replicas < 1:
            raise UsageError("scoring needs at least one frame and one replica")
        assert self.evaluation is not None  # an impossible spacing or number is refused here

    @property
    def evaluation(self) -> EvaluationConfig:
        """How surfaces are compared."""
        return EvaluationConfig(
            spacing=self.spacing, samples=self.samples, seed=self.seed, members=self.members
        )


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """A study.

    Attributes:
        name: Of the study.
        rows: What is trained.
        proteins: On which proteins it is trained and scored.
        seeds: One run for each row and seed; a row may do with fewer.
        scoring: How.
        tables: What is printed.
    """

    name: str
    rows: list[StudyRow]
    tables: list[StudyTable]
    proteins: StudyProteins = field(default_factory=StudyProteins)
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    scoring: Scoring = field(default_factory=Scoring)

    def __post_init__(self) -> None:
        names = [row.name for row in self.rows]
        listed: dict[str, list[Any]] = {
            "row": names,
            "table": [table.name for table in self.tables],
            "seed": self.seeds,
        }
        for what, found in listed.items():
            twice = [one for one in found if found.count(one) > 1]
            if twice or not found:
                problem = f"the {what} {twice[0]} twice" if twice else f"no {what}"
                raise UsageError(f"protocol {self.name} has {problem}")
        for table in self.tables:
            unknown = [name for name in table.rows if name not in names]
            if unknown:
                raise UsageError(f"table {table.name} names a row {unknown[0]} that there is not")

    @property
    def distributions(self) -> frozenset[str]:
        """Names of the rows that some table wants to know as distributions."""
        tables = [table for table in self.tables if table.kind == "distributions"]
        return frozenset(name for table in tables for name in table.rows)


@dataclass(frozen=True, eq=False)
class Roles:
    """The data sets of a study.

    Attributes:
        training: Those that training reads, validation among them, sorted by name.
        validation: Names of the latter, or how many.
        test: Those on which rows are scored, sorted by name.
    """

    training: tuple[Dataset, ...]
    validation: int | tuple[str, ...]
    test: tuple[Dataset, ...]


def roles(proteins: StudyProteins, datasets: Sequence[Dataset]) -> Roles:
    """Give every data set its role.

    Args:
        proteins: Who is what.
        datasets: In any order.

    Returns:
        The roles; a data set that is named in none is not read.

    Raises:
        InputError: A name comes twice, is not there, or is in two roles.
        UsageError: No protein is named as a test.
    """
    known = _by_name(datasets)
    test, kept, train = _names(proteins, known)
    if not test:
        raise UsageError("the protocol names no test protein: give --test NAME… or --split FILE")
    trained = _trained(known, test, kept, train)
    return Roles(
        training=trained,
        validation=kept if isinstance(kept, int) else tuple(sorted(kept)),
        test=tuple(known[name] for name in sorted(set(test))),
    )


def readable(
    proteins: StudyProteins, datasets: Sequence[Dataset]
) -> tuple[tuple[Dataset, ...], int | tuple[str, ...]]:
    """Return the data sets that training may read, and which or how many of them validate.

    As `roles`, for a search: there may be no test protein, and those that there are need not be
    among the data sets.
    """
    known = _by_name(datasets)
    test, kept, train = _names(proteins, known)
    trained = _trained(known, [name for name in test if name in known], kept, train)
    return trained, kept if isinstance(kept, int) else tuple(sorted(kept))


def _by_name(datasets: Sequence[Dataset]) -> dict[str, Dataset]:
    known: dict[str, Dataset] = {}
    for dataset in datasets:
        name = dataset.structure.name
        if name in known:
            raise InputError(f"{dataset.folder} and {known[name].folder} are both named {name}")
        known[name] = dataset
    return known


def _trained(
    known: Mapping[str, Dataset], test: list[str], kept: int | list[str], train: list[str]
) -> tuple[Dataset, ...]:
    """Return the data sets of training and validation, sorted by name; refuse overlaps."""
    asked = {"test": test, "validation": [] if isinstance(kept, int) else kept, "train": train}
    for role, names in asked.items():
        missing = [name for name in names if name not in known]
        if missing:
            raise InputError(f"there is no data set of the {role} protein {missing[0]}")
    for first, second in (("test", "validation"), ("test", "train")):
        both = sorted(set(asked[first]) & set(asked[second]))
        if both:
            raise InputError(f"{both[0]} is both a {first} and a {second} protein")
    trained = sorted({*train, *asked["validation"]})
    if not trained:
        raise InputError("no protein is left to train on")
    return tuple(known[name] for name in trained)


def _names(
    proteins: StudyProteins, known: Mapping[str, Dataset]
) -> tuple[list[str], int | list[str], list[str]]:
    """Return names of the test, names or number of validation, names of training proteins."""
    if proteins.split is not None:
        found = load_split(Path(proteins.split))
        parts = {
            part: [name for name in getattr(found, part) if name in known]
            for part in ("test", "validation", "train")
        }
        return parts["test"], parts["validation"], parts["train"]
    kept = proteins.validation
    if proteins.train is not None:
        return proteins.test, kept, proteins.train
    taken = {*proteins.test, *([] if isinstance(kept, int) else kept)}
    return proteins.test, kept, [name for name in known if name not in taken]
