"""Search over a space of configurations, at random or by TPE, by several processes at once."""

from __future__ import annotations

import fcntl
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from undula import atomic
from undula.errors import InputError, MachineError, UsageError
from undula.learn.recipe import batch_seed

if TYPE_CHECKING:
    import optuna

JOURNAL = "journal.log"
_INSTALL = 'undula sweep needs optuna: pip install "undula[sweep]"'


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """One axis of a space: some values, or a range.

    Attributes:
        keys: What is set, by dotted keys; all of them to the same value.
        values: To choose from; anything that JSON holds.
        low: The lower end of a range.
        high: The upper end.
        log: Whether the range is searched by its logarithm.
        whole: Whether only whole numbers of it count.
    """

    keys: list[str]
    values: list[Any] | None = None
    low: float | None = None
    high: float | None = None
    log: bool = False
    whole: bool = False

    def __post_init__(self) -> None:
        what = ", ".join(self.keys)
        if not self.keys:
            raise UsageError("an axis of a space should name the keys that it sets")
        ranged = self.low is not None and self.high is not None
        if (self.values is None) == (not ranged) or (
            self.values is not None and (self.low is not None or self.high is not None)
        ):
            raise UsageError(f"the axis of {what} has either values or both low and high")
        if self.values is not None and (not self.values or self.log or self.whole):
            raise UsageError(f"the values of {what} should be some, without log or whole")
        if self.low is not None and self.high is not None:
            if not self.low < self.high:
                raise UsageError(f"low of {what} should be below high")
            if self.log and not self.low > 0:
                raise UsageError(f"low of {what} should be positive, for its logarithm")


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """How to search.

    Attributes:
        trials: How many in all, over all processes and calls.
        sampler: "random", or "tpe", which looks where it was good.
        seed: Of the search; what a trial tries depends on it, on the trial's number and, for
            TPE, on the results known by then.
        minimise: Whether less of the measure is better.
    """

    trials: int = 20
    sampler: Literal["random", "tpe"] = "random"
    seed: int = 0
    minimise: bool = False

    def __post_init__(self) -> None:
        if self.trials < 1:
            raise UsageError(f"trials should be at least 1, not {self.trials}")
        if self.sampler not in ("random", "tpe"):
            raise UsageError(f"sampler is random or tpe, not {self.sampler}")


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One configuration that was tried.

    Attributes:
        number: From 0.
        state: "complete", "fail" (no finite measure) or "running" (now, or in a process that
            was killed).
        value: The measure; none unless complete.
        choices: Axis → value.
    """

    number: int
    state: str
    value: float | None
    choices: dict[str, Any]


def sweep(
    space: Mapping[str, Dimension],
    measure: Callable[[Mapping[str, Any], Path], float | None],
    config: SweepConfig,
    folder: Path,
    *,
    say: Callable[[str], None],
) -> list[Trial]:
    """Try configurations until there are enough; several processes may share a folder.

    A trial of a process that was killed is taken up by the next one that looks for work, in its
    own folder, so that a training there goes on. Locks are those of the file system (``flock``),
    which machines that share one should support.

    Args:
        space: Axis → values.
        measure: Tries choices (dotted key → value) in a folder of their own and returns how good
            they are; None, or a number that is not finite, counts as a failure, as does an
            `InputError`.
        config: How to search.
        folder: Receives the journal, a folder for each trial and ``sweep.json``.
        say: Told of every trial in one line.

    Returns:
        All trials of the folder, by number.

    Raises:
        UsageError: Optuna is not installed, or the folder holds a search of another space.
        MachineError: The folder cannot be written.
    """
    study = _study(space, config, folder)
    while True:
        with _taken(study, space, config, folder) as taken:
            if taken is None:
                break
            number, choices = taken
            value = _measured(measure, space, choices, _place(folder, number) / "run", say)
            _tell(study, number, value)
            told = "no finite measure" if value is None else f"{value:.6g}"
            say(f"trial {number}: {told} with {json.dumps(choices)}")
    # Of processes that end together, the last to write knows the most.
    with _lock(folder / "lock", wait=True):
        trials = known_trials(study, space)
        atomic.write_json(
            folder / "sweep.json",
            {
                "space": _described(space),
                "sampler": config.sampler,
                "seed": config.seed,
                "minimise": config.minimise,
                "trials": [vars(trial) for trial in trials],
            },
        )
    return trials


def best_trial(trials: Sequence[Trial], minimise: bool) -> Trial:
    """Return the best complete trial; the first of equals.

    Raises:
        InputError: None is complete.
    """
    done = [trial for trial in trials if trial.value is not None]
    if not done:
        raise InputError("no trial has ended with a finite measure")
    return min(done, key=lambda one: (one.value or 0.0) if minimise else -(one.value or 0.0))


def known_trials(study: optuna.Study, space: Mapping[str, Dimension]) -> list[Trial]:
    """Return the trials of a study, by number."""
    return [
        Trial(
            number=one.number,
            state=one.state.name.lower(),
            value=None if one.value is None else float(one.value),
            choices=_values(space, one.params),
        )
        for one in study.get_trials(deepcopy=False)
    ]


def _study(space: Mapping[str, Dimension], config: SweepConfig, folder: Path) -> optuna.Study:
    try:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend
    except ImportError as error:
        raise UsageError(_INSTALL) from error
    if not space:
        raise UsageError("the space to search has no axis")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    asked = json.dumps({"space": _described(space), "minimise": config.minimise}, sort_keys=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        study = optuna.create_study(
            study_name="sweep",
            storage=JournalStorage(JournalFileBackend(str(folder / JOURNAL))),
            direction="minimize" if config.minimise else "maximize",
            load_if_exists=True,
        )
    except OSError as error:
        raise MachineError(f"cannot write {folder}: {error.strerror or error}") from error
    if study.user_attrs.setdefault("asked", asked) != asked:
        raise UsageError(f"{folder} holds a search of another space; use another folder")
    study.set_user_attr("asked", asked)
    return study


@contextmanager
def _taken(
    study: optuna.Study, space: Mapping[str, Dimension], config: SweepConfig, folder: Path
) -> Iterator[tuple[int, dict[str, Any]] | None]:
    """Take a trial that nobody works at: a left one, or a new one; none if there are enough."""
    from optuna.trial import TrialState

    with ExitStack() as held:
        # One process at a time chooses, so that none chooses the same and the count is kept.
        with _lock(folder / "lock", wait=True):
            for left in study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
                if not held.enter_context(_lock(_place(folder, left.number) / "lock")):
                    continue
                if left.params.keys() >= space.keys():
                    chosen = left.number, _values(space, left.params)
                    break
                study.tell(left.number, state=TrialState.FAIL)
            else:
                if len(study.trials) >= config.trials:
                    yield None
                    return
                trial = study.ask()
                held.enter_context(_lock(_place(folder, trial.number) / "lock"))
                study.sampler = _sampler(config, trial.number)
                for axis, dimension in space.items():
                    _suggest(trial, axis, dimension)
                chosen = trial.number, _values(space, trial.params)
        yield chosen


@contextmanager
def _lock(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Hold a lock, if nobody else does or once nobody else does; it falls with the process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


def _place(folder: Path, number: int) -> Path:
    return folder / f"trial-{number:04d}"


def _sampler(config: SweepConfig, number: int) -> optuna.samplers.BaseSampler:
    """Return a sampler whose chance belongs to one trial: a resumed search draws the same."""
    from optuna.samplers import RandomSampler, TPESampler

    seed = batch_seed(config.seed, number) % 2**32
    if config.sampler == "random":
        return RandomSampler(seed=seed)
    return TPESampler(seed=seed, constant_liar=True)


def _suggest(trial: optuna.Trial, axis: str, dimension: Dimension) -> None:
    """Choose a value on an axis; those that are listed travel as JSON."""
    if dimension.values is not None:
        trial.suggest_categorical(axis, [json.dumps(value) for value in dimension.values])
        return
    low, high = dimension.low, dimension.high
    assert low is not None
    assert high is not None
    if dimension.whole:
        trial.suggest_int(axis, math.ceil(low), math.floor(high), log=dimension.log)
    else:
        trial.suggest_float(axis, low, high, log=dimension.log)


def _values(space: Mapping[str, Dimension], params: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was chosen on each axis, as the space has it."""
    return {
        axis: params[axis] if space[axis].values is None else json.loads(params[axis])
        for axis in space
        if axis in params
    }


def _measured(
    measure: Callable[[Mapping[str, Any], Path], float | None],
    space: Mapping[str, Dimension],
    choices: Mapping[str, Any],
    folder: Path,
    say: Callable[[str], None],
) -> float | None:
    by_key = {key: value for axis, value in choices.items() for key in space[axis].keys}
    try:
        found = measure(by_key, folder)
    except InputError as error:
        say(str(error))
        return None
    return found if found is not None and math.isfinite(found) else None


def _tell(study: optuna.Study, number: int, value: float | None) -> None:
    from optuna.trial import TrialState

    if value is None:
        study.tell(number, state=TrialState.FAIL)
    else:
        study.tell(number, value)


def _described(space: Mapping[str, Dimension]) -> dict[str, Any]:
    return {axis: asdict(dimension) for axis, dimension in space.items()}
