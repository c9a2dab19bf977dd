"""What a study of moving atoms trains, on which recordings it scores, and what was published."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from undula.errors import InputError, UsageError
from undula.io.recordings import Recordings, open_recordings
from undula.motion.catalog import FITTED_KINDS, KINDS
from undula.motion.evaluation import MotionScoring, Sparing


@dataclass(frozen=True, kw_only=True)
class MotionSystem:
    """One system: its folder of recordings, and who is trained on and who is the test.

    Attributes:
        name: Of the folder of recordings; see `opened`.
        train: Names of recordings to train on, or how many of the first.
        test: Names of recordings to score on, read once, at the end; or how many of the last.
        observed: Frames before and at the standard start, which may be seen there.
        window: Frames that a forecast from anywhere else may see, and that trivial rows are
            fitted with.
        horizon: How far ahead forecasts are scored, frames.
        preset: What its trainings start from.
        set: Keys of the training configuration, nested, that differ from the preset.
        forces: A system of ``undula simulate`` whose energies samples get; none for no energies.
        linear_ps: From which lag to which the squared displacement grows evenly.
        starts: In place of `MotionScoring.starts`, where it is not 0: small systems need many.
        sample_starts: In place of `MotionScoring.sample_starts`, where it is not 0.
        seeds: So many of the protocol's seeds for each row, at most; 0 for all.
    """

    name: str
    train: int | list[str]
    test: int | list[str]
    observed: int = 2000
    window: int = 1025
    horizon: int = 8000
    preset: str = "motion"
    set: dict[str, Any] = field(default_factory=dict)
    forces: str | None = None
    linear_ps: tuple[float, float] = (5.0, 50.0)
    starts: int = 0
    sample_starts: int = 0
    seeds: int = 0

    def __post_init__(self) -> None:
        if not 2 <= self.window <= self.observed:
            raise UsageError(f"{self.name}: window is from 2 to observed, not {self.window}")
        if self.horizon < 20:
            raise UsageError(f"{self.name}: horizon is at least 20 frames, not {self.horizon}")
        if min(self.starts, self.sample_starts, self.seeds) < 0:
            raise UsageError(f"{self.name}: starts, sample_starts and seeds are at least 0")

    def scoring(self, usual: MotionScoring) -> MotionScoring:
        """Return how this system is scored where others are scored as usual."""
        return replace(
            usual,
            starts=self.starts or usual.starts,
            sample_starts=self.sample_starts or usual.sample_starts,
        )


@dataclass(frozen=True, kw_only=True)
class MotionRow:
    """One training configuration, or settings of what is fitted in each window.

    Attributes:
        name: Of its run folders: letters, digits, dots, dashes.
        label: In the tables; by default the name.
        model: Its kind, of `undula.motion.catalog`: domino, lg-ode, roller, ito, scinet or
            wavelet-arima.
        preset: In place of the systems' presets; for other kinds than domino these are
            KIND/PRESET.
        set: Keys of the training configuration, nested, that differ from the preset.
        levels: DoMiNO retrained with so many of the coarsest levels; 0 for all.
        as_large_as: A row of DoMiNO whose number of weights this one gets, by the width of its
            network.
        decoded: Score it in other ways as well, without training: DoMiNO decoded at these
            levels, ITO rolled out in lags of so many frames.
        systems: Names of the systems it is trained on; all if there are none.
        seeds: So many of the protocol's seeds; 0 for all.
        sparing: What of the scoring is left out where it takes long; the tables say so.
        sparing_on: System → what is left out there, in place of ``sparing``.
    """

    name: str
    label: str = ""
    model: str = "domino"
    preset: str | None = None
    set: dict[str, Any] = field(default_factory=dict)
    levels: int = 0
    as_large_as: str | None = None
    decoded: list[int] = field(default_factory=list)
    systems: list[str] = field(default_factory=list)
    seeds: int = 0
    sparing: Sparing = field(default_factory=Sparing)
    sparing_on: dict[str, Sparing] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.name or not all(c.isalnum() or c in ".-_" for c in self.name):
            raise UsageError(f"{self.name!r} is no name for a row: letters, digits, dots, dashes")
        if not self.label:
            object.__setattr__(self, "label", self.name)
        if self.levels < 0 or self.seeds < 0 or any(level < 0 for level in self.decoded):
            raise UsageError(f"row {self.name}: levels, decoded and seeds are counted from 0")
        known = [*KINDS, *FITTED_KINDS]
        if self.model not in known:
            raise UsageError(f"row {self.name}: model is one of {', '.join(known)}")
        if self.model != "domino" and (self.levels or self.as_large_as is not None):
            raise UsageError(f"row {self.name}: levels and as_large_as are for domino")
        kind = KINDS.get(self.model)
        if self.decoded and (kind is None or kind.other_way is None):
            raise UsageError(f"row {self.name}: {self.model} cannot be decoded in other ways")

    def spared(self, system: str) -> Sparing:
        """Return what of the scoring is left out on a system."""
        return self.sparing_on.get(system, self.sparing)


@dataclass(frozen=True, kw_only=True)
class PublishedMotion:
    """What a publication says, by the name of a row, ours, trivial or one that only they have.

    Attributes:
        full: Row → system → error over the whole horizon.
        windows: System → row → last frame of a target window → error.
        differs: Why that is not to be compared number by number.
    """

    full: dict[str, dict[str, float]] = field(default_factory=dict)
    windows: dict[str, dict[str, dict[int, float]]] = field(default_factory=dict)
    differs: str = ""


@dataclass(frozen=True, kw_only=True)
class MotionProtocol:
    """A study of moving atoms.

    Attributes:
        name: Of the study.
        kind: "motion".
        systems: What moves.
        rows: What is trained.
        ablation: Names of the rows in the table of the ablation; the first is what the others
            are compared with.
        seeds: One run for each system, row and seed.
        scoring: How.
        published: Beside.
    """

    name: str
    kind: Literal["motion"]
    systems: list[MotionSystem]
    rows: list[MotionRow]
    ablation: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    scoring: MotionScoring = field(default_factory=MotionScoring)
    published: PublishedMotion = field(default_factory=PublishedMotion)

    def __post_init__(self) -> None:
        names = [row.name for row in self.rows]
        listed: dict[str, list[Any]] = {
            "system": [system.name for system in self.systems],
            "row": names,
            "seed": self.seeds,
        }
        for what, found in listed.items():
            twice = [one for one in found if found.count(one) > 1]
            if twice or (not found and what != "row"):
                problem = f"the {what} {twice[0]} twice" if twice else f"no {what}"
                raise UsageError(f"protocol {self.name} has {problem}")
        unknown = [name for name in self.ablation if name not in names]
        if unknown:
            raise UsageError(f"the ablation names a row {unknown[0]} that there is not")
        systems = listed["system"]
        for row in self.rows:
            if row.as_large_as is not None and row.as_large_as not in names:
                raise UsageError(f"row {row.name} names a row {row.as_large_as} that there is not")
            other = next((one for one in self.rows if one.name == row.as_large_as), None)
            if other is not None and other.model != "domino":
                raise UsageError(f"row {row.name} is as large as {other.name}, no row of domino")
            named = [*row.systems, *row.sparing_on]
            missing = [name for name in named if name not in systems]
            if missing:
                raise UsageError(f"row {row.name} names a system {missing[0]} that there is not")


@dataclass(frozen=True, kw_only=True, eq=False)
class Opened:
    """A system of a protocol with its recordings.

    Attributes:
        asked: The system.
        source: Its folder.
        train: Names of the recordings to train on.
        test: Names of those to score on.
    """

    asked: MotionSystem
    source: Recordings
    train: tuple[str, ...]
    test: tuple[str, ...]

    @property
    def name(self) -> str:
        """What the system is called."""
        return self.asked.name


def opened(protocol: MotionProtocol, folders: Mapping[str, Path]) -> list[Opened]:
    """Open the recordings of those systems of a protocol that have a folder.

    Args:
        protocol: Which recordings serve for what.
        folders: System name → folder of recordings.

    Raises:
        UsageError: No system has a folder, or a folder is of no system.
        InputError: Recordings are missing, too short, or both trained on and scored.
    """
    known = [system.name for system in protocol.systems]
    strange = [name for name in folders if name not in known]
    if strange or not folders:
        named = f"{folders[strange[0]]} is of none" if strange else "no folder is given"
        raise UsageError(f"{protocol.name} has the systems {', '.join(known)}; {named} of them")
    return [_opened(one, folders[one.name]) for one in protocol.systems if one.name in folders]


def _opened(system: MotionSystem, folder: Path) -> Opened:
    source = open_recordings(folder)
    names = [recording.name for recording in source.recordings]
    train = names[: system.train] if isinstance(system.train, int) else system.train
    test = names[len(names) - system.test :] if isinstance(system.test, int) else system.test
    wanted = {"train": (train, system.train), "test": (test, system.test)}
    for role, (found, asked) in wanted.items():
        if not found or (isinstance(asked, int) and len(found) != asked):
            raise InputError(f"{folder} has {len(names)} recordings, too few for {role}={asked}")
    both = sorted(set(train) & set(test))
    if both:
        raise InputError(f"{folder}: {both[0]} is both trained on and scored")
    needed = system.observed + system.horizon
    for name in (*train, *test):
        frames = len(source.named(name))
        if frames < needed:
            raise InputError(
                f"{folder}: {name} has {frames} frames; {system.name} is observed for "
                f"{system.observed} and forecast for {system.horizon}"
            )
    return Opened(asked=system, source=source, train=tuple(train), test=tuple(test))
