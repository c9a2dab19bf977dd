import json
import math
from collections.abc import Sequence

import pytest

from undula.errors import UsageError
from undula.learn.checkpoint import checkpoint_place, load_weights
from undula.learn.plateau import PlateauConfig, judged

RULE = PlateauConfig(measure="skill", gain=0.01, cycles=4)


def records(*ends: float | None, steps: int = 10) -> list[dict]:
    """Return the validation of a training whose cycles ended so, and were better within."""
    found: list[dict] = [{"step": 0, "skill": 0.0}]
    for number, end in enumerate(ends):
        found.append({"step": number * steps + 5, "skill": 0.9})
        found.append({"step": (number + 1) * steps, "skill": end})
    return found


@pytest.mark.parametrize(
    ("ends", "best", "ended", "reached"),
    [
        ([], 0, False, False),
        ([0.5], 1, False, False),
        ([-0.5], 1, False, False),
        ([0.5, 0.505], 2, True, True),
        ([0.5, 0.4], 1, True, True),
        ([0.5, 0.52], 2, False, False),
        ([0.5, 0.52, 0.525], 3, True, True),
        ([0.1, 0.2, 0.3, 0.4], 4, True, False),
        ([None, 0.2], 2, False, False),
        ([None, None], 1, True, True),
        ([0.2, None], 1, True, True),
    ],
)
def test_ends_with_the_first_cycle_that_gains_too_little(ends, best, ended, reached):
    found = judged(records(*ends), 10, RULE)
    assert (found.best, found.ended, found.reached) == (best, ended, reached)
    assert list(found.ends) == ends


def test_what_came_after_the_end_does_not_count():
    found = judged(records(0.5, 0.5, 0.9), 10, RULE)
    assert found.ends == (0.5, 0.5)
    assert found.best == 1


def test_less_can_be_better():
    rule = PlateauConfig(measure="skill", minimise=True, gain=0.01, cycles=4)
    assert not judged(records(0.5, 0.4), 10, rule).ended
    assert judged(records(0.5, 0.6), 10, rule).reached


@pytest.mark.parametrize(
    ("changes", "words"), [({"gain": 0.0}, "plateau.gain"), ({"cycles": 1}, "plateau.cycles")]
)
def test_refuses_what_cannot_be_meant(changes, words):
    with pytest.raises(UsageError, match=words):
        PlateauConfig(**{"measure": "skill", **changes})


def scripted(task, values: Sequence[float]) -> None:
    """Let a task measure these values, one by one."""
    measures = iter(values)
    task.evaluate = lambda: {"skill": next(measures)}


def test_a_training_goes_on_cycle_by_cycle_and_keeps_the_best_end(line, train, tmp_path, recorder):
    task = line()
    # At steps 0, 5, 10, …: the ends of the cycles are every fourth from the fifth on.
    scripted(task, [0.0, 0.1, 0.2, 0.3, 0.5, 0.9, 0.9, 0.9, 0.7, 0.9, 0.9, 0.9, 0.6])
    result = train(task, tmp_path, plateau=RULE)
    assert result.step == 40
    assert result.plateau is not None
    assert result.plateau.ends == (0.5, 0.7, 0.6)
    assert result.plateau.reached
    assert result.metrics == {"skill": 0.7}
    told = json.loads((tmp_path / "plateau.json").read_text())
    assert told["ends"] == [0.5, 0.7, 0.6]
    assert told["rule"]["gain"] == 0.01
    final, metadata = load_weights(tmp_path / "weights.safetensors")
    kept, _ = load_weights(checkpoint_place(tmp_path, 40) / "weights.safetensors")
    assert all(bool((final[name] == kept[name]).all()) for name in kept)
    assert metadata["configuration"]["fit"]["plateau"]["cycles"] == 4
    assert recorder.of("started") == [0, 20, 40]


def test_every_cycle_has_the_whole_schedule(line, train, tmp_path):
    task = line()
    scripted(task, [0.1 * number for number in range(20)])
    rule = PlateauConfig(measure="skill", gain=0.01, cycles=2)
    rates = [
        one["learning_rate"]
        for one in train(task, tmp_path, plateau=rule, record_every=1).history["training"]
    ]
    assert len(rates) == 40
    assert rates[:20] == rates[20:]
    assert rates[0] > 100 * rates[19]


def outcome(folder) -> dict[str, bytes]:
    """Return every file that a finished run must have in common with its repetition."""
    last = max((folder / "checkpoints").iterdir())
    names = ("weights.safetensors", "history.json", "plateau.json")
    found = {name: (folder / name).read_bytes() for name in names}
    return found | {f"{last.name}/{path.name}": path.read_bytes() for path in last.iterdir()}


GOES_ON = PlateauConfig(measure="error", minimise=True, gain=1e-3, cycles=3)
AVERAGED = {"ema_decay": 0.9, "clip_norm": 1.0}


@pytest.fixture
def whole(line, train, tmp_path):
    train(line(), tmp_path / "whole", plateau=GOES_ON, **AVERAGED)
    return tmp_path / "whole"


class Killed(BaseException):
    """Stands for kill -9."""


@pytest.mark.parametrize("step", [3, 20, 27, 40])
def test_a_killed_run_in_cycles_ends_with_the_same_bytes(line, train, tmp_path, whole, step):
    def kill(now: int) -> None:
        if now == step:
            raise Killed

    with pytest.raises(Killed):
        train(line(at_step=kill), tmp_path / "killed", plateau=GOES_ON, **AVERAGED)
    train(line(), tmp_path / "killed", plateau=GOES_ON, **AVERAGED)
    assert outcome(tmp_path / "killed") == outcome(whole)


def test_a_finished_training_is_the_first_cycle_and_is_gone_on_with(line, train, tmp_path, whole):
    once = train(line(), tmp_path / "once", **AVERAGED)
    assert once.plateau is None
    assert not (tmp_path / "once" / "plateau.json").exists()
    first = load_weights(tmp_path / "once" / "weights.safetensors")
    assert "plateau" not in first[1]["configuration"]["fit"]
    train(line(), tmp_path / "once", plateau=GOES_ON, **AVERAGED)
    assert outcome(tmp_path / "once") == outcome(whole)


def test_a_rule_that_asks_for_more_goes_on_and_one_that_asks_for_less_is_refused(
    line, train, tmp_path
):
    task = line()
    scripted(task, [0.1 * number for number in range(20)])
    two = PlateauConfig(measure="skill", gain=0.01, cycles=2)
    assert train(task, tmp_path, plateau=two).step == 40
    scripted(task, [1.0 + 0.1 * number for number in range(20)])
    three = PlateauConfig(measure="skill", gain=0.01, cycles=3)
    assert train(line_like(line, 5), tmp_path, plateau=three).step == 60
    for less in (two, None):
        with pytest.raises(UsageError, match="has gone on to step 60"):
            train(line(), tmp_path, plateau=less)


def line_like(line, values: int):
    task = line()
    scripted(task, [1.0 + 0.1 * number for number in range(values)])
    return task


def test_names_the_nearest_measure(line, train, tmp_path):
    rule = PlateauConfig(measure="eror")
    with pytest.raises(UsageError, match=r"no 'eror'; the nearest is 'error'"):
        train(line(), tmp_path, plateau=rule)


def test_a_measure_that_is_never_finite_keeps_the_first_end(line, train, tmp_path):
    task = line()
    scripted(task, [math.nan] * 20)
    result = train(task, tmp_path, plateau=RULE)
    assert result.step == 20
    assert result.plateau is not None
    assert result.plateau.ends == (None, None)
