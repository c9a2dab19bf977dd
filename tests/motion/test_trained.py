from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.motion.small_systems import (
    BOX,
    ENCODER,
    FRAME_PS,
    LEVELS,
    OBSERVED,
    argon,
    chain,
    path,
    recorded,
    trained,
    waters,
    window,
)

from undula.errors import InputError, UsageError
from undula.io.recordings import RecordedFrames
from undula.motion.noise import window_lengths
from undula.motion.trained import TIMES_AT_ONCE, TrainedMotion, together
from undula.motion.windows import AtomForecaster, Window

LAGS = FRAME_PS * torch.tensor([0.0, 1, 4.5, 8, 16])
ALIKE = {"rtol": 0, "atol": 1e-10}


def single(model: TrainedMotion) -> TrainedMotion:
    """Return the model as training leaves it: in float32."""
    return replace(model, model=model.model.float())


def seen(atoms, seed=0, frames=OBSERVED) -> Window:
    made = window(atoms, seed, frames)
    return replace(
        made,
        positions=made.positions.float(),
        velocities=made.velocities.float(),
        box=None if made.box is None else made.box.float(),
    )


def content(forecast) -> list[bytes]:
    parts = (forecast.mean, forecast.spread, forecast.velocities)
    return [one.numpy().tobytes() for one in parts]


@pytest.fixture(scope="module")
def model():
    return single(trained(argon(12)))


def test_is_a_forecaster_like_any_other(model):
    assert isinstance(model, AtomForecaster)
    assert model.horizon_ps == pytest.approx(1.6)
    found = model.forecast(seen(argon(12)), LAGS)
    assert found.mean.shape == (5, 12, 3)
    assert found.spread.shape == (5, 12)
    assert torch.equal(found.lags_ps, LAGS)
    assert torch.equal(found.mean[0], seen(argon(12)).now)


@pytest.mark.parametrize("atoms", [argon(12), chain(6)], ids=["argon", "aligned chain"])
def test_what_was_stored_forecasts_the_same_to_the_last_bit(tmp_path, atoms):
    bound = len(atoms.bonds[0]) > 0
    reference = window(atoms, 9).now if bound else None
    model = single(trained(atoms, reference=reference))
    model.save(tmp_path)
    again = TrainedMotion.load(tmp_path)
    assert again.provenance == model.provenance
    assert again.model.config == model.model.config
    assert content(again.forecast(seen(atoms), LAGS)) == content(model.forecast(seen(atoms), LAGS))
    drawn = [
        one.samples(seen(atoms), LAGS[1:], 2, torch.Generator().manual_seed(1))
        for one in (model, again)
    ]
    assert torch.equal(*drawn)


def test_refuses_what_is_no_such_model(tmp_path, model):
    with pytest.raises(InputError):
        TrainedMotion.load(tmp_path)
    model.save(tmp_path)
    file = tmp_path / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(InputError):
        TrainedMotion.load(tmp_path)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (seen(waters(2)), "not fitted on atoms of the kind H, O"),
        (replace(seen(argon(12)), frame_ps=0.2), "0.2 ps apart"),
        (seen(argon(12)).last(2), "at least 3 frames, not 2"),
    ],
    ids=["kinds", "spacing", "too short"],
)
def test_refuses_windows_it_was_not_trained_for_in_one_sentence(model, other, message):
    with pytest.raises(InputError, match=message) as caught:
        model.forecast(other, LAGS)
    assert "\n" not in str(caught.value)


def test_refuses_another_molecule_than_the_one_it_was_aligned_to():
    model = trained(chain(6), reference=window(chain(6), 9).now)
    with pytest.raises(InputError, match="molecule of 6 atoms, this one has 5"):
        model.forecast(window(chain(5)), LAGS.double())


def test_refuses_times_beyond_the_horizon_before_now_and_none(model):
    for lag in (1.7, -0.1):
        with pytest.raises(UsageError):
            model.forecast(seen(argon(12)), torch.tensor([0.1, lag]))
    with pytest.raises(UsageError, match="at least one time"):
        model.forecast(seen(argon(12)), torch.zeros(0))


def test_frames_before_those_it_was_trained_on_do_not_matter(model):
    long = seen(argon(12), frames=40)
    needed = model.forecast(long.last(OBSERVED), LAGS)
    assert content(model.forecast(long, LAGS)) == content(needed)
    assert content(model.forecast(long.last(OBSERVED - 1), LAGS)) != content(needed)


def test_many_times_are_as_one_by_one():
    model = trained(argon(5))
    lags = torch.linspace(0, 1.6, TIMES_AT_ONCE + 9, dtype=torch.float64)
    found = model.forecast(window(argon(5)), lags)
    for place in (0, 30, TIMES_AT_ONCE - 1, TIMES_AT_ONCE, TIMES_AT_ONCE + 8):
        alone = model.forecast(window(argon(5)), lags[place : place + 1])
        torch.testing.assert_close(alone.mean[0], found.mean[place], **ALIKE)
        torch.testing.assert_close(alone.velocities[0], found.velocities[place], **ALIKE)


def test_noise_in_every_later_frame_leaves_a_forecast_byte_by_byte(model, tmp_path):
    positions, velocities = path(argon(12), 40, torch.Generator().manual_seed(0))
    noise = torch.randn(28, 12, 3, generator=torch.Generator().manual_seed(1))
    rows = []
    for name, size in (("true", 0), ("noisy", 50)):
        frames = RecordedFrames(
            positions=torch.cat([positions[:12], positions[12:] + size * noise]),
            velocities=torch.cat([velocities[:12], velocities[12:] - size * noise]),
            frame_ps=FRAME_PS,
            box=BOX,
        )
        folder = tmp_path / name
        folder.mkdir()
        [recording] = recorded(folder, argon(12), [frames]).recordings
        known = dict(zip(("positions", "velocities", "box"), recording.slice(0, 12), strict=True))
        one = Window(system=argon(12), frame_ps=FRAME_PS, **known)
        drawn = model.samples(one, LAGS[1:], 2, torch.Generator().manual_seed(2))
        rows.append([*content(model.forecast(one, LAGS)), drawn.numpy().tobytes()])
        rows.append(np.array(recording.positions[12:]).tobytes())
    assert rows[0] == rows[2]
    assert rows[1] != rows[3]


def test_hidden_velocities_change_the_forecast_but_do_not_stop_it(model):
    hidden = model.forecast(replace(seen(argon(12)), velocities=None), LAGS)
    assert torch.isfinite(hidden.mean).all()
    assert content(hidden) != content(model.forecast(seen(argon(12)), LAGS))


def test_decodes_at_a_coarser_level_without_another_training(model):
    rows = [model.at_level(level).forecast(seen(argon(12)), LAGS) for level in range(3)]
    assert content(rows[2]) == content(model.forecast(seen(argon(12)), LAGS))
    assert len({content(row)[0] for row in rows}) == 3
    assert model.at_level(0).name == "DoMiNO, decoded at level 0"
    for level in (-1, 3):
        with pytest.raises(UsageError, match="3 levels"):
            model.at_level(level)


def test_levels_decoded_together_say_the_same_to_the_last_bit_as_one_by_one():
    model = single(trained(argon(12)))
    ways = [model, model.at_level(0), model.at_level(1)]
    for found, way in zip(together(ways)(seen(argon(12)), LAGS), ways, strict=True):
        alone = way.forecast(seen(argon(12)), LAGS)
        assert torch.equal(found.mean, alone.mean)
        assert torch.equal(found.spread, alone.spread)
        assert torch.equal(found.velocities, alone.velocities)


@pytest.mark.parametrize("aligned", [False, True], ids=["as it is", "aligned"])
def test_contributions_are_what_the_forecast_adds_to_the_linear_one(aligned):
    atoms = chain(6)
    reference = window(atoms, 9).now if aligned else None
    model, silent = (trained(atoms, reference=reference, silent=silent) for silent in (False, True))
    lags = LAGS.double()
    added = model.contributions(window(atoms), lags)
    assert added.shape == (3, 5, 6, 3)
    linear = silent.forecast(window(atoms), lags).mean
    found = model.forecast(window(atoms), lags).mean
    torch.testing.assert_close(linear + added.sum(dim=0), found, **ALIKE)
    coarse = model.at_level(0).contributions(window(atoms), lags)
    assert coarse.shape == (1, 5, 6, 3)


def test_samples_of_one_seed_are_the_same_and_of_another_are_not(model):
    one, two, three = (
        model.samples(seen(argon(12)), LAGS[1:], 3, torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    )
    assert one.shape == (3, 4, 12, 3)
    assert torch.equal(one, two)
    assert not torch.equal(one, three)


def test_samples_spread_as_much_as_the_forecast_says():
    model = trained(argon(12), silent=True)
    lags = LAGS[[1, 3, 4]].double()
    expected = model.forecast(window(argon(12)), lags)
    drawn = model.samples(window(argon(12)), lags, 24, torch.Generator().manual_seed(1))
    away = (drawn - expected.mean) / expected.spread[..., None]
    scale = away.square().mean(dim=(0, 2, 3)).sqrt()
    torch.testing.assert_close(scale, torch.ones(3).double(), rtol=0, atol=0.1)
    assert float(away.mean().abs()) < 0.1


def test_samples_keep_bond_lengths_and_angles():
    model = trained(waters(3), silent=True)
    one = window(waters(3))
    pairs, lengths = window_lengths(one)
    drawn = model.samples(one, LAGS[1:].double(), 4, torch.Generator().manual_seed(1))
    found = (drawn[..., pairs[0], :] - drawn[..., pairs[1], :]).norm(dim=-1)
    assert float((found - lengths).abs().max()) < 0.02


def test_samples_of_an_aligned_molecule_are_in_the_pose_of_the_window():
    atoms = chain(6)
    model = trained(atoms, reference=window(atoms, 9).now, silent=True)
    lags = LAGS.double()[1:2]
    expected = model.forecast(window(atoms), lags).mean
    drawn = model.samples(window(atoms), lags, 4, torch.Generator().manual_seed(1))
    assert float((drawn - expected).abs().mean()) < 0.1


def test_one_sample_at_many_times_belongs_to_one_state():
    model = trained(argon(3), replace(ENCODER, latent=2), LEVELS)
    lags = torch.linspace(0.1, 1.6, TIMES_AT_ONCE + 5, dtype=torch.float64)
    found = model._predictions(window(argon(3)), lags, torch.Generator().manual_seed(4))
    assert len(found) == 2
    again = model._predictions(window(argon(3)), lags[-5:], torch.Generator().manual_seed(4))
    torch.testing.assert_close(found[1].mean, again[0].mean, **ALIKE)
