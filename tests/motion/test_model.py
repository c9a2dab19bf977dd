from dataclasses import replace

import pytest
import torch
from tests.motion.small_systems import ENCODER, FRAME_PS, LEVELS, argon, trained, window

from undula.errors import UsageError
from undula.motion.decoder import DecoderConfig
from undula.motion.encoder import EncoderConfig
from undula.motion.hierarchy import Hierarchy
from undula.motion.levels import LevelsConfig
from undula.motion.linear import linear_base
from undula.motion.model import DoMiNO, MotionModelConfig, planned
from undula.motion.observation import observation
from undula.motion.surroundings import bond_table
from undula.nn.ode.solve import SolverConfig

ATOMS = argon(12)
ALIKE = {"rtol": 0, "atol": 1e-10}
GRID = torch.tensor([0.0, 0.5, 3, 4, 6.25, 8, 9, 15, 16], dtype=torch.float64)
FORMS = {
    "three levels": LEVELS,
    "one level": replace(LEVELS, strides=(1,)),
    "two levels": replace(LEVELS, strides=(4, 1)),
    "four levels": replace(LEVELS, strides=(8, 4, 2, 1)),
}


@pytest.fixture(scope="module")
def model():
    return trained(ATOMS)


def outcome(trained, lags, seeds=(0,), *, drawn=False, chunk=None, net=None):
    seen = [window(ATOMS, seed) for seed in seeds]
    net = trained.model if net is None else net
    net.config = replace(net.config, levels=replace(net.config.levels, segment_chunk=chunk))
    plan = planned(net.hierarchy, lags)
    kinds = trained.climatology.kind_of_atoms(ATOMS)
    return net(
        observation(seen, kinds, trained.usual, net.config.encoder.ages(len(seen[0]))),
        plan,
        linear_base(seen, plan.all_lags, trained.climatology, trained.usual, kinds),
        bond_table(ATOMS),
        drawn=drawn,
        generator=torch.Generator().manual_seed(5) if drawn else None,
    )


def assert_alike(found, expected, times=slice(None), windows=slice(None)):
    for name in ("mean", "spread", "velocities"):
        pair = getattr(found, name), getattr(expected, name)[times][:, windows]
        torch.testing.assert_close(*pair, **ALIKE)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_a_time_asked_for_alone_has_the_forecast_it_has_in_any_grid(form):
    model = trained(ATOMS, levels=form)
    grid = outcome(model, GRID).predictions
    assert len(grid) == len(form.strides)
    for place in range(len(GRID)):
        alone = outcome(model, GRID[place : place + 1]).predictions
        for one, many in zip(alone, grid, strict=True):
            assert_alike(one, many, slice(place, place + 1))


def test_the_order_of_times_does_not_matter_and_times_may_repeat(model):
    order = torch.tensor([4, 0, 8, 8, 2, 1, 7, 3, 6, 5])
    expected = outcome(model, GRID).predictions[-1]
    assert_alike(outcome(model, GRID[order]).predictions[-1], expected, order)


def test_windows_together_are_as_one_by_one(model):
    together = outcome(model, GRID, (0, 1, 2)).predictions[-1]
    for number in range(3):
        alone = outcome(model, GRID, (number,)).predictions[-1]
        assert_alike(alone, together, windows=slice(number, number + 1))


@pytest.mark.parametrize("chunk", [1, 3])
def test_it_does_not_matter_how_many_segments_are_solved_at_once(model, chunk):
    expected = outcome(model, GRID, (0, 1), drawn=True).predictions[-1]
    assert_alike(outcome(model, GRID, (0, 1), drawn=True, chunk=chunk).predictions[-1], expected)


def test_one_time_costs_one_segment_of_each_level(model):
    plan = planned(model.model.hierarchy, torch.tensor([13.0]))
    assert [one.tolist() for one in plan.segments] == [[0], [1], [3]]
    assert [one.tolist() for one in plan.starts] == [[0], [8], [12]]
    assert outcome(model, torch.tensor([13.0]).double(), chunk=1).evaluations == (8, 8, 8)


def test_all_segments_are_one_solve_per_level_or_one_per_chunk(model):
    lags = torch.arange(1, 17, dtype=torch.float64)
    assert outcome(model, lags).evaluations == (8, 8, 8)
    assert outcome(model, lags, chunk=1).evaluations == (8, 16, 32)
    assert outcome(model, lags, chunk=3).evaluations == (8, 8, 16)


def test_the_whole_horizon_of_8000_frames_is_three_solves_of_80_evaluations():
    levels = LevelsConfig(solver=SolverConfig(steps=20), segment_chunk=None)
    encoder = EncoderConfig(features=2, layers=1, latent=1, heads=1, oldest=1, cutoff=3.0)
    model = trained(argon(2), encoder, levels, silent=True)
    seen, kinds = window(argon(2)), torch.zeros(2, dtype=torch.long)
    plan = planned(model.model.hierarchy, torch.arange(1, 8001, dtype=torch.float64))
    found = model.model(
        observation([seen], kinds, model.usual, encoder.ages(len(seen))),
        plan,
        linear_base([seen], plan.all_lags, model.climatology, model.usual, kinds),
        bond_table(argon(2)),
        drawn=False,
    )
    assert found.evaluations == (80, 80, 80)
    assert found.predictions[-1].mean.shape == (8000, 1, 2, 3)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
@pytest.mark.parametrize("fusion", ["attention", "concat"])
def test_an_untrained_model_is_the_linear_forecast_to_the_last_bit(form, fusion):
    model = trained(ATOMS, levels=form, silent=True)
    config = replace(model.model.config, decoder=DecoderConfig(fusion=fusion))
    net = DoMiNO(config, 1, 0).double()
    plan = planned(net.hierarchy, GRID)
    kinds = model.climatology.kind_of_atoms(ATOMS)
    base = linear_base([window(ATOMS)], plan.all_lags, model.climatology, model.usual, kinds)
    base = base.part(len(plan.all_lags) - len(GRID), len(GRID))
    for prediction in outcome(model, GRID, drawn=True, net=net).predictions:
        assert torch.equal(prediction.mean, base.mean)
        assert torch.equal(prediction.spread, base.spread)
        assert torch.equal(prediction.velocities, base.velocities)
        assert not prediction.parts.any()
    linear = model.climatology.expected(window(ATOMS), FRAME_PS * GRID)
    torch.testing.assert_close(base.mean[:, 0], linear.mean, **ALIKE)
    torch.testing.assert_close(base.spread[:, 0], linear.spread, **ALIKE)
    torch.testing.assert_close(base.velocities[:, 0], linear.velocities, **ALIKE)


def test_nothing_has_moved_at_lag_zero(model):
    for prediction in outcome(model, GRID[:1], (0, 1)).predictions:
        for number in range(2):
            assert torch.equal(prediction.mean[0, number], window(ATOMS, number).now)
        assert not prediction.spread.any()


def test_refuses_times_beyond_the_horizon():
    with pytest.raises(UsageError, match="from 0 to 16 frames"):
        planned(Hierarchy(horizon=16, strides=(4, 1)), torch.tensor([3.0, 17.0]))


def test_parts_of_the_levels_add_up_to_what_the_linear_forecast_lacks(model):
    found = outcome(model, GRID).predictions
    linear = model.climatology.expected(window(ATOMS), FRAME_PS * GRID).mean
    for levels, prediction in enumerate(found, 1):
        assert len(prediction.parts) == levels
        added = prediction.parts.sum(dim=0)[:, 0]
        torch.testing.assert_close(linear + added, prediction.mean[:, 0], **ALIKE)


def test_a_coarser_decoding_does_not_depend_on_finer_levels(model):
    coarse = trained(ATOMS, levels=replace(LEVELS, strides=(8,)))
    state = model.model.state_dict()
    coarse.model.load_state_dict({name: state[name] for name in coarse.model.state_dict()})
    expected = outcome(model, GRID).predictions[0]
    assert_alike(outcome(coarse, GRID).predictions[0], expected)


def test_states_drawn_with_one_seed_are_the_same_and_matter(model):
    one, two = (outcome(model, GRID, drawn=True).predictions[-1].mean for _ in range(2))
    assert torch.equal(one, two)
    assert not torch.equal(one, outcome(model, GRID).predictions[-1].mean)


def test_the_same_seed_makes_the_same_weights_and_all_of_them_are_used():
    config = MotionModelConfig(encoder=ENCODER, levels=LEVELS)
    one, two = (DoMiNO(config, 1, 4) for _ in range(2))
    for name, weight in one.state_dict().items():
        assert torch.equal(weight, two.state_dict()[name])
    model = trained(ATOMS)
    net = model.model.requires_grad_(True)
    found = outcome(model, GRID, drawn=True)
    total = sum(p.mean.sum() + p.velocities.sum() + p.spread.sum() for p in found.predictions)
    (total + found.posterior.divergence()).backward()
    idle = [name for name, weight in net.named_parameters() if weight.grad is None]
    assert idle == []


def test_the_slope_of_a_forecast_is_the_same_to_the_last_bit_each_time():
    rows = []
    for _ in range(2):
        model = trained(ATOMS)
        net = model.model.float().requires_grad_(True)
        seen = [replace(window(ATOMS), **single(window(ATOMS)))]
        plan = planned(net.hierarchy, GRID.float())
        kinds = model.climatology.kind_of_atoms(ATOMS)
        found = net(
            observation(seen, kinds, model.usual, net.config.encoder.ages(12)),
            plan,
            linear_base(seen, plan.all_lags, model.climatology, model.usual, kinds),
            bond_table(ATOMS),
            drawn=False,
        )
        found.predictions[-1].mean.square().sum().backward()
        rows.append(torch.cat([w.grad.flatten() for w in net.parameters() if w.grad is not None]))
    assert torch.equal(*rows)


def single(seen):
    parts = {name: getattr(seen, name) for name in ("positions", "velocities", "box")}
    return {name: value.float() for name, value in parts.items()}
