import json
from dataclasses import replace

import pytest
import torch
from tests.motion.small_systems import (
    BOX,
    FRAME_PS,
    OBSERVED,
    argon,
    chain,
    path,
    trained,
    waters,
    window,
)

from undula.errors import InputError, MachineError, UsageError
from undula.estimates import peak_bytes
from undula.motion import forecast as forecast_module
from undula.motion.estimates import fitted, forecast_bytes
from undula.motion.forecast import MovingAtoms, forecast_atoms, holds_atoms, sized
from undula.motion.forecast_scores import evaluate_atoms
from undula.motion.observed import window as cut
from undula.types import Trajectory

TIMES = [FRAME_PS * k for k in range(9)]


@pytest.fixture(scope="module")
def model():
    return trained(argon(12))


@pytest.fixture(scope="module")
def moving(model):
    return forecast_atoms(replace(window(argon(12)), now_ps=5.0), TIMES, model, samples=3, seed=1)


def single(model):
    return replace(model, model=model.model.float())


def followed(atoms, frames, shift=0.0, seed=0, box=BOX):
    """Return what happened from `shift` frames after the beginning of the window on."""
    positions, _ = path(atoms, frames, torch.Generator().manual_seed(seed))
    times = 5.0 + FRAME_PS * (torch.arange(frames, dtype=torch.float64) - OBSERVED + 1)
    boxes = None if box is None else box.expand(frames, 3, 3)
    whole = Trajectory(structure=atoms.structure, positions=positions, times_ps=times, box=boxes)
    return whole.frames(slice(int(shift), None))


def test_says_what_the_model_says(moving, model):
    lags = torch.tensor(TIMES, dtype=torch.float64)
    expected = model.forecast(window(argon(12)), lags)
    assert torch.equal(moving.expected.mean, expected.mean)
    assert moving.lags_ps == tuple(lags.tolist())
    assert moving.times_ps[-1] == pytest.approx(5.8)
    assert moving.samples.shape == (3, 9, 12, 3)
    assert list(moving.trivial) == [
        "last position",
        "observed mean",
        "ballistic",
        "linear response",
    ]
    assert torch.equal(moving.trivial["last position"].mean[3], moving.now)


def test_the_same_seed_draws_the_same_samples(moving, model):
    seen = window(argon(12))
    again = forecast_atoms(seen, TIMES, model, samples=3, seed=1)
    assert torch.equal(again.samples, moving.samples)
    other = forecast_atoms(seen, TIMES, model, samples=3, seed=2)
    assert not torch.equal(other.samples, moving.samples)
    assert torch.equal(other.expected.mean, moving.expected.mean)


def test_no_samples_may_be_asked_for(model):
    none = forecast_atoms(window(argon(12)), TIMES, model, samples=0)
    assert none.samples.shape == (0, 9, 12, 3)


def test_what_was_saved_is_read_again(tmp_path, moving):
    moving.save(tmp_path)
    again = MovingAtoms.load(tmp_path)
    assert holds_atoms(tmp_path)
    assert again.lags_ps == moving.lags_ps
    assert again.now_ps == 5.0
    assert again.observed == OBSERVED
    torch.testing.assert_close(again.samples, moving.samples.float())
    torch.testing.assert_close(again.expected.spread, moving.expected.spread.float())
    assert list(again.trivial) == list(moving.trivial)
    assert again.trivial["last position"].spread is None
    assert again.system.kinds.tolist() == moving.system.kinds.tolist()
    assert again.provenance == moving.provenance
    assert again.seed == 1


def test_a_forecast_that_was_changed_or_cut_is_refused(tmp_path, moving):
    moving.save(tmp_path)
    file = tmp_path / "state" / "mean.npy"
    file.write_bytes(file.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(InputError, match=r"mean.npy is missing or has changed"):
        MovingAtoms.load(tmp_path)
    file.unlink()
    with pytest.raises(InputError, match=r"mean.npy is missing or has changed"):
        MovingAtoms.load(tmp_path)
    described = json.loads((tmp_path / "forecast.json").read_text())
    (tmp_path / "forecast.json").write_text(json.dumps(described | {"format": 99}))
    with pytest.raises(InputError, match="no forecast of atoms of format"):
        MovingAtoms.load(tmp_path)


def test_a_shorter_window_serves_and_is_reported(model):
    seen = window(argon(12)).last(6)
    found = forecast_atoms(seen, TIMES, model, samples=0)
    assert [(one.code, one.count) for one in found.notices] == [("window-short", 6)]


@pytest.mark.parametrize(
    ("seen", "times", "error", "sentence"),
    [
        (window(waters(2)), TIMES, InputError, "knows no atoms of the kind H, O, only AR"),
        (replace(window(argon(12)), frame_ps=0.2), TIMES, InputError, "0.2 ps apart"),
        (window(argon(12)).last(2), TIMES, InputError, "has 2 frames, the model takes at least 3"),
        (window(argon(12)), [0.1, 1.7], UsageError, "reaches 1.6 ps"),
        (window(argon(12)), [-0.1, 0.1], UsageError, "is before it"),
        (window(argon(12)), [0.2, 0.1], UsageError, "should increase"),
        (window(argon(12)), [0.1, 0.1], UsageError, "should increase"),
        (window(argon(12)), [], UsageError, "at least one time"),
        (window(argon(12)), [float("nan")], UsageError, "before it"),
    ],
)
def test_what_cannot_be_forecast_gets_one_sentence(model, seen, times, error, sentence):
    with pytest.raises(error, match=sentence) as caught:
        forecast_atoms(seen, times, model, samples=0)
    assert "\n" not in str(caught.value)


def test_what_does_not_fit_is_refused_at_once_with_what_does(model):
    seen = window(argon(12))
    size = sized(seen, model, TIMES, 2000)
    room = peak_bytes(forecast_bytes(replace(size, samples=500, at_once=1)))
    with pytest.raises(MachineError, match=r"allowed; [0-9]+ samples fit$") as caught:
        forecast_atoms(seen, TIMES, model, samples=2000, memory_limit=room)
    fit = int(str(caught.value).split()[-3])
    assert 100 < fit < 600
    with pytest.raises(MachineError, match="undula alone takes"):
        forecast_atoms(seen, TIMES, model, samples=2, memory_limit="1MiB")


def test_a_limit_cuts_the_times_and_hardly_changes_the_forecast(model, moving):
    cut = forecast_atoms(
        replace(window(argon(12)), now_ps=5.0),
        TIMES,
        replace(model, times_at_once=2),
        samples=3,
        seed=1,
    )
    torch.testing.assert_close(cut.expected.mean, moving.expected.mean)
    torch.testing.assert_close(cut.samples, moving.samples)
    size = sized(window(argon(12)), model, [0.1] * 64, 0)
    whole, least = (forecast_bytes(replace(size, at_once=n)) for n in (64, 8))
    limit = peak_bytes((whole + least) / 2)
    assert fitted(size, limit, "argon").at_once < 64


def test_memory_that_runs_out_halves_the_parts_once(model, monkeypatch):
    at_once = []

    def forecast(self, window, lags):
        at_once.append(self.times_at_once)
        raise MemoryError

    monkeypatch.setattr(type(model), "forecast", forecast)
    with pytest.raises(MachineError, match="the memory was not enough") as caught:
        forecast_atoms(window(argon(12)), TIMES, model, samples=0)
    assert at_once == [64, 32]
    assert "\n" not in str(caught.value)


def test_another_molecule_than_the_one_trained_on_is_refused():
    model = trained(chain(6), reference=window(chain(6), 9).now)
    with pytest.raises(InputError, match="molecule of 6 atoms, this one has 5"):
        forecast_atoms(window(chain(5)), TIMES, model, samples=0)


def test_without_a_model_the_bundled_one_that_knows_the_atoms_is_taken(tmp_path, monkeypatch):
    folders = {"argon": tmp_path / "argon", "chain": tmp_path / "chain"}
    single(trained(argon(12))).save(folders["argon"])
    single(trained(chain(6), reference=window(chain(6), 9).now)).save(folders["chain"])
    monkeypatch.setattr(forecast_module, "motion_models", lambda: folders)
    seen = window(chain(6))
    seen = replace(seen, positions=seen.positions.float(), velocities=seen.velocities.float())
    assert len(forecast_atoms(seen, TIMES, samples=0).expected.mean) == 9
    with pytest.raises(InputError, match="no bundled model of moving atoms knows its atoms"):
        forecast_atoms(window(waters(2)), TIMES, samples=0)


def test_a_turned_window_of_an_aligned_molecule_gives_turned_rows():
    atoms = chain(6)
    model = trained(atoms, reference=window(atoms, 9).now)
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0]
    turn = turn * torch.sign(torch.linalg.det(turn))
    seen = window(atoms)
    turned = replace(
        seen, positions=seen.positions @ turn.T + 7, velocities=seen.velocities @ turn.T
    )
    first = forecast_atoms(seen, TIMES, model, samples=0)
    second = forecast_atoms(turned, TIMES, model, samples=0)
    assert "training mean" in first.trivial
    for name, row in first.trivial.items():
        found = (second.trivial[name].mean - 7) @ turn
        torch.testing.assert_close(found, row.mean, rtol=0, atol=1e-8)
    torch.testing.assert_close(
        (second.expected.mean - 7) @ turn, first.expected.mean, rtol=0, atol=1e-8
    )


def test_a_forecast_of_the_truth_itself_has_no_error(moving):
    truth = followed(argon(12), 30)
    positions, _ = path(argon(12), 30, torch.Generator().manual_seed(0))
    ahead = positions[OBSERVED - 1 : OBSERVED + 8]
    perfect = replace(moving, expected=replace(moving.expected, mean=ahead, spread=None))
    found = evaluate_atoms(perfect, truth)
    assert max(found.scores["DoMiNO"]["error"]) < 1e-9
    assert found.lags_ps == moving.lags_ps[1:]
    still = found.scores["last position"]["error"]
    expected = (ahead - ahead[0]).square().mean(dim=(1, 2)).sqrt()[1:]
    assert still == pytest.approx(expected.tolist())
    assert found.kinds["DoMiNO"] == "model"
    assert found.kinds["ballistic"] == "trivial"


def test_the_truth_is_followed_through_the_walls_from_where_the_window_ended(moving):
    truth = followed(argon(12), 30)
    wrapped = truth.positions - (truth.positions @ torch.linalg.inv(BOX)).floor() @ BOX
    first = evaluate_atoms(moving, truth)
    second = evaluate_atoms(moving, replace(truth, positions=wrapped))
    torch.testing.assert_close(first.truth, second.truth, rtol=0, atol=1e-8)


def test_the_truth_of_an_aligned_molecule_may_tumble():
    atoms = chain(6)
    model = trained(atoms, reference=window(atoms, 9).now)
    moving = forecast_atoms(replace(window(atoms), now_ps=5.0), TIMES, model, samples=0)
    truth = followed(atoms, 30, box=None)
    turns = torch.linalg.qr(torch.randn(30, 3, 3, dtype=torch.float64))[0]
    turns = turns * torch.sign(torch.linalg.det(turns))[:, None, None]
    first = evaluate_atoms(moving, truth)
    second = evaluate_atoms(moving, replace(truth, positions=truth.positions @ turns + 3))
    torch.testing.assert_close(first.truth, second.truth, rtol=0, atol=1e-8)


def test_a_truth_that_begins_later_is_scored_and_said(moving):
    found = evaluate_atoms(moving, followed(argon(12), 30, shift=OBSERVED))
    assert [one.code for one in found.notices] == ["truth-begins-later"]
    assert len(found.lags_ps) == 8


def test_times_without_a_true_frame_are_counted(moving):
    found = evaluate_atoms(moving, followed(argon(12), OBSERVED + 5))
    assert [(one.code, one.count) for one in found.notices] == [("no-true-frame", 3)]
    assert len(found.scores["DoMiNO"]["crps"]) == 5


@pytest.mark.parametrize(
    ("truth", "sentence"),
    [
        (followed(argon(11), 30), "the truth has 11 atoms"),
        (followed(argon(12), OBSERVED - 2), "both should be on one clock"),
        (followed(argon(12), OBSERVED), "no frame at any time of the forecast"),
        (followed(argon(12), 30, seed=3), "not what was observed"),
    ],
)
def test_a_truth_of_something_else_is_refused(moving, truth, sentence):
    with pytest.raises(InputError, match=sentence):
        evaluate_atoms(moving, truth)


def test_a_window_is_cut_from_the_end_of_a_trajectory():
    truth = followed(argon(12), 30)
    found = cut(truth, last_ps=0.5)
    assert len(found) == 6
    assert found.frame_ps == pytest.approx(0.1)
    assert found.now_ps == pytest.approx(float(truth.times_ps[-1]))
    assert len(cut(truth)) == 30
    assert len(cut(truth, last=4, frame_ps=0.3)) == 4
    with pytest.raises(UsageError, match="not by both"):
        cut(truth, last=3, last_ps=1.0)
