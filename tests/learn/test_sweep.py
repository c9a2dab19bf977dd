import json
import math
import multiprocessing

import pytest

from undula.errors import InputError, UsageError
from undula.learn.sweep import Dimension, SweepConfig, best_trial, sweep

pytest.importorskip("optuna", reason="optuna, which undula[sweep] brings, is not here")

SPACE = {
    "width": Dimension(keys=["model.width", "model.twin"], values=[[8, 4], [16], None]),
    "rate": Dimension(keys=["fit.rate"], low=0.001, high=1.0, log=True),
    "depth": Dimension(keys=["model.depth"], low=1.0, high=4.0, whole=True),
}


def silent(line):
    """Say nothing."""


def parabola(choices, folder):
    """Return how near the rate is to 0.1, best 0."""
    return -((math.log10(choices["fit.rate"]) + 1) ** 2)


def run(folder, measure=parabola, space=SPACE, **config):
    return sweep(space, measure, SweepConfig(**config), folder, say=silent)


def test_every_trial_sets_all_keys_within_the_space_in_a_folder_of_its_own(tmp_path):
    seen = []

    def measure(choices, folder):
        seen.append((dict(choices), folder))
        return 1.0

    trials = run(tmp_path, measure, trials=6)
    assert [trial.number for trial in trials] == list(range(6))
    assert len({folder for _, folder in seen}) == 6
    for choices, _ in seen:
        assert choices["model.width"] == choices["model.twin"]
        assert choices["model.width"] in ([8, 4], [16], None)
        assert 0.001 <= choices["fit.rate"] <= 1.0
        assert choices["model.depth"] in (1, 2, 3, 4)


def test_a_search_that_was_stopped_ends_with_the_same_trials(tmp_path):
    whole = run(tmp_path / "a", trials=6, seed=3)
    run(tmp_path / "b", trials=2, seed=3)
    assert run(tmp_path / "b", trials=6, seed=3) == whole
    assert run(tmp_path / "c", trials=6, seed=4) != whole
    assert len({json.dumps(trial.choices) for trial in whole}) == 6


def test_a_trial_whose_process_died_is_taken_up_in_its_own_folder(tmp_path):
    def dies(choices, folder):
        folder.mkdir(parents=True)
        (folder / "half").write_text(json.dumps(dict(choices)))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, dies, trials=2)
    found = []

    def measure(choices, folder):
        if (folder / "half").exists():
            found.append(json.loads((folder / "half").read_text()) == dict(choices))
        return 0.5

    trials = run(tmp_path, measure, trials=2)
    assert found == [True]
    assert [trial.state for trial in trials] == ["complete", "complete"]


def test_tpe_looks_where_it_was_good(tmp_path):
    trials = run(tmp_path, trials=40, sampler="tpe", seed=0)
    late = [trial.value for trial in trials[25:]]
    early = [trial.value for trial in trials[:10]]
    assert sum(late) / len(late) > sum(early) / len(early)
    assert abs(math.log10(best_trial(trials, minimise=False).choices["rate"]) + 1) < 0.2


def test_a_failure_counts_as_a_trial_and_is_never_the_best(tmp_path):
    def measure(choices, folder):
        if choices["model.depth"] > 2:
            raise InputError("too deep")
        return float("nan") if choices["model.depth"] == 2 else 1.0

    trials = run(tmp_path, measure, trials=12)
    assert {trial.state for trial in trials} == {"fail", "complete"}
    assert best_trial(trials, minimise=False).choices["depth"] == 1
    with pytest.raises(InputError, match="no trial"):
        best_trial([trial for trial in trials if trial.value is None], minimise=False)


def test_less_may_be_better(tmp_path):
    trials = run(tmp_path, lambda choices, _: choices["fit.rate"], trials=5, minimise=True)
    best = best_trial(trials, minimise=True)
    assert best.value == min(trial.value for trial in trials)


def test_another_space_in_the_same_folder_is_refused(tmp_path):
    run(tmp_path, trials=1)
    with pytest.raises(UsageError, match="another space"):
        run(tmp_path, trials=2, space={"rate": SPACE["rate"]})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"keys": []}, "name the keys"),
        ({"keys": ["a"]}, "either values or both"),
        ({"keys": ["a"], "values": [1], "low": 0.0}, "either values or both"),
        ({"keys": ["a"], "low": 1.0}, "either values or both"),
        ({"keys": ["a"], "low": 1.0, "high": 1.0}, "below high"),
        ({"keys": ["a"], "low": 0.0, "high": 1.0, "log": True}, "positive"),
        ({"keys": ["a"], "values": []}, "should be some"),
        ({"keys": ["a"], "values": [1], "log": True}, "without log"),
    ],
)
def test_an_axis_that_cannot_be_meant_is_refused(values, message):
    with pytest.raises(UsageError, match=message):
        Dimension(**values)


def _work(folder):
    sweep(SPACE, parabola, SweepConfig(trials=8), folder, say=silent)


def test_two_processes_share_the_trials(tmp_path):
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_work, args=(tmp_path,)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=120)
    assert [worker.exitcode for worker in workers] == [0, 0]
    # Whoever ended last has written all.
    noted = json.loads((tmp_path / "sweep.json").read_text())["trials"]
    assert [trial["state"] for trial in noted] == ["complete"] * 8
    trials = run(tmp_path, trials=8)
    assert len(trials) == 8
    assert {trial.state for trial in trials} == {"complete"}
    assert trials == run(tmp_path / "alone", trials=8)
