import os
from dataclasses import replace

import pytest
import torch
from tests.motion.small_systems import BOX, argon, chain, path, recorded, window
from tests.motion.small_systems import moved as carried

from undula.errors import InputError, UsageError
from undula.geometry.periodic import wrapped
from undula.io.recordings import RecordedFrames
from undula.learn.progress import SilentProgress
from undula.learn.recipe import FitConfig
from undula.learn.task import Task
from undula.motion.baselines.background import Background, fitted_scales
from undula.motion.baselines.lg_ode import (
    LGODE,
    GTrans,
    Latent,
    LGODEConfig,
    attention_weights,
    neighbours,
    observed,
    temporal_graph,
    time_encoding,
)
from undula.motion.baselines.lg_ode_forecast import (
    LGODELossConfig,
    LGODETask,
    LGODETraining,
    TrainedLGODE,
    lg_ode_loss,
    train_lg_ode,
)
from undula.motion.climatology_fit import Example
from undula.motion.drawing import Drawing, WindowConfig
from undula.motion.hierarchy import Hierarchy
from undula.motion.windows import AtomForecaster
from undula.nn.ode.solve import SolverConfig

SMALL = LGODEConfig(
    features=8, layers=2, oldest=4, cutoff=4.0, latent=3, augment=4, hidden=8,
    solver=SolverConfig(steps=3),
)  # fmt: skip
KNOTS = (1, 4, 16)
LAGS = 0.1 * torch.tensor([0.0, 1, 3.5, 16], dtype=torch.float64)
BATCH = WindowConfig(
    observed=6, windows=2, near=4, segments=2, times=2, fitted_windows=5, hidden=0.0
)
HIERARCHY = Hierarchy(horizon=16, strides=(4, 1))
FIT = FitConfig(steps=4, evaluate_every=2, checkpoint_every=2, clip_norm=1.0)
ALIKE = {"rtol": 0, "atol": 1e-10}


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)


def scales_of(atoms):
    examples = []
    for seed in range(3):
        seen = window(atoms, seed, 12 + 16)
        known = replace(seen, positions=seen.positions[:12], velocities=seen.velocities[:12])
        future = seen.positions[11 + torch.tensor(KNOTS)]
        examples.append(Example(window=known, future=future))
    return fitted_scales(examples, KNOTS)


def made(atoms, config=SMALL, reference=None, noise=0.3) -> TrainedLGODE:
    scales = scales_of(atoms)
    model = LGODE(config, len(scales.kinds), scales.horizon).double()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(noise * torch.randn(weight.shape, generator=generator))
    background = Background(scales=scales, reference=reference, provenance={"from": "a test"})
    return TrainedLGODE(model.eval().requires_grad_(False), background, 12)


def test_is_a_forecaster_that_starts_from_now():
    model = made(argon(8))
    assert isinstance(model, AtomForecaster)
    seen = window(argon(8))
    found = model.forecast(seen, LAGS)
    assert torch.equal(found.mean[0], seen.now)
    assert found.mean.shape == found.velocities.shape == (4, 8, 3)
    assert float((found.mean[3] - seen.now).abs().max()) > 0.01


def test_untrained_it_forecasts_the_last_position_at_rest():
    scales = scales_of(argon(8))
    model = LGODE(SMALL, 1, 16).double()
    row = TrainedLGODE(model, Background(scales=scales, reference=None, provenance={}), 12)
    found = row.forecast(window(argon(8)), LAGS)
    assert torch.equal(found.mean, window(argon(8)).now.expand(4, -1, -1))
    assert not found.velocities.any()
    unit = scales.units(torch.tensor([16.0], dtype=torch.float64), torch.zeros(8).long())
    torch.testing.assert_close(found.spread[3:], unit)


def test_does_not_change_when_shifted_relabelled_or_seen_in_other_images():
    model, seen = made(argon(8)), window(argon(8))
    found = model.forecast(seen, LAGS).mean
    shift = torch.tensor([3.0, -20, 7], dtype=torch.float64)
    one = torch.eye(3, dtype=torch.float64)
    shifted = model.forecast(carried(seen, one, shift), LAGS).mean
    torch.testing.assert_close(shifted, found + shift, **ALIKE)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    mixed = replace(seen, positions=seen.positions[:, order], velocities=seen.velocities[:, order])
    torch.testing.assert_close(model.forecast(mixed, LAGS).mean, found[:, order], **ALIKE)
    image = wrapped(seen.now, BOX) - seen.now
    inside = model.forecast(replace(seen, positions=seen.positions + image), LAGS).mean
    torch.testing.assert_close(inside, found + image, **ALIKE)


def test_changes_when_turned_as_its_docstring_admits():
    model, seen = made(chain(6)), window(chain(6))
    quarter = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]], dtype=torch.float64)
    found = model.forecast(seen, LAGS).mean @ quarter.T
    turned = model.forecast(carried(seen, quarter, torch.zeros(3).double()), LAGS).mean
    assert float((turned - found).abs().max()) > 1e-3


def test_an_aligned_molecule_turns_because_it_is_turned_to_its_reference_first():
    atoms = chain(6)
    model, seen = made(atoms, reference=window(atoms, 9).now), window(atoms)
    quarter = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]], dtype=torch.float64)
    found, turned = (
        model.forecast(one, LAGS) for one in (seen, carried(seen, quarter, torch.ones(3).double()))
    )
    torch.testing.assert_close(turned.mean, found.mean @ quarter.T + 1, rtol=0, atol=1e-6)
    torch.testing.assert_close(turned.velocities, found.velocities @ quarter.T, rtol=0, atol=1e-6)


def test_all_atoms_are_neighbours_in_small_molecules_and_near_ones_elsewhere():
    positions = 3.0 * torch.arange(4.0).view(1, 4, 1) * torch.tensor([1.0, 0, 0])
    config = replace(SMALL, cutoff=4.0, all_pairs=4)
    assert neighbours(positions, None, config).pairs.shape[1] == 12
    assert neighbours(positions, None, replace(config, all_pairs=3)).pairs.shape[1] == 6
    box = 12 * torch.eye(3)[None]
    graph = neighbours(positions, box, config)
    assert graph.pairs.shape[1] == 8
    assert float(graph.distances.max()) == pytest.approx(3.0)


def test_edges_of_the_encoder_join_frames_beside_each_other():
    seen = observed([window(argon(5))], scales_of(argon(5)), [0, 1, 2, 4])
    apart = {}
    for reach in (0, 1, 3):
        heard = temporal_graph(seen, replace(SMALL, reach=reach))
        frames = heard.graph.pairs // 5
        apart[reach] = int((frames[0] - frames[1]).abs().max())
        ages = seen.ages.double()
        assert torch.equal(heard.elapsed, ages[frames[0]] - ages[frames[1]])
        itself = heard.graph.kinds == 0
        assert not heard.graph.vectors[itself].any()
        assert torch.equal(*(heard.graph.pairs[:, itself] % 5))
    assert apart == {0: 0, 1: 1, 3: 3}


def test_attention_weights_of_what_an_atom_hears_sum_to_one_and_grow_with_the_score():
    graph = temporal_graph(observed([window(argon(5))], scales_of(argon(5)), [0, 1]), SMALL).graph
    scores = torch.randn(len(graph.senders), dtype=torch.float64) * 1000
    weights = attention_weights(scores, graph)
    sums = graph.sums(weights[:, None])[:, 0]
    torch.testing.assert_close(sums, torch.ones_like(sums))
    torch.testing.assert_close(attention_weights(scores + 5, graph), weights, rtol=1e-6, atol=1e-9)
    even = attention_weights(torch.zeros_like(scores), graph)
    heard = graph.from_receivers(graph.sums(torch.ones_like(scores)[:, None]))[:, 0]
    torch.testing.assert_close(even, 1 / heard)


def test_an_atom_that_hears_only_itself_gets_its_own_value():
    layer = GTrans(8, torch.Generator().manual_seed(0)).double()
    far = window(argon(2))
    far = replace(far, box=None, positions=far.positions * 0 + torch.tensor([[[0.0], [90]]]))
    seen = observed([far], scales_of(argon(2)), [0])
    heard = temporal_graph(seen, replace(SMALL, all_pairs=0))
    nodes = torch.randn(2, 8, dtype=torch.float64)
    way = torch.zeros(2, 4, dtype=torch.float64)
    own = layer.norm(nodes) + time_encoding(torch.zeros(1).double(), 8)
    expected = nodes + torch.nn.functional.gelu(layer.values(own)[:, :8])
    torch.testing.assert_close(layer(nodes, heard, way), expected)


def test_waves_of_time_have_length_one_in_each_pair_and_tell_before_from_after():
    waves = time_encoding(torch.tensor([-3.0, 0, 3]), 8)
    torch.testing.assert_close(waves[:, :4].square() + waves[:, 4:].square(), torch.ones(3, 4))
    assert torch.equal(waves[0, :4], -waves[2, :4])
    assert torch.equal(waves[0, 4:], waves[2, 4:])


def test_the_divergence_vanishes_for_the_prior_and_has_its_closed_form():
    zero, one = torch.zeros(1, 2, 3), torch.ones(1, 2, 3)
    assert float(Latent(mean=zero, width=one).divergence()) == 0
    assert float(Latent(mean=2 * one, width=one).divergence()) == pytest.approx(6)
    expected = 3 * (0.25 - 1 + 2 * 0.6931472) / 2
    assert float(Latent(mean=zero, width=one / 2).divergence()) == pytest.approx(expected)


@pytest.mark.parametrize("clock", ["logarithmic", "linear"])
def test_a_forecast_at_one_time_does_not_depend_on_the_others(clock):
    model, seen = made(argon(5), replace(SMALL, clock=clock)), window(argon(5))
    lags = torch.linspace(0, 1.6, 150, dtype=torch.float64)
    found = model.forecast(seen, lags).mean
    for place in (0, 63, 64, 149):
        alone = model.forecast(seen, lags[place : place + 1]).mean[0]
        torch.testing.assert_close(alone, found[place], **ALIKE)


def test_clock_and_unit_change_the_forecast():
    forecasts = [
        made(argon(5), replace(SMALL, **change)).forecast(window(argon(5)), LAGS)
        for change in ({}, {"clock": "linear"}, {"unit": "constant"})
    ]
    assert not torch.equal(forecasts[0].mean, forecasts[1].mean)
    assert float(forecasts[2].spread[0].min()) > 0
    torch.testing.assert_close(forecasts[0].spread[3], forecasts[2].spread[0])


def test_samples_of_one_seed_are_the_same_and_spread_by_the_fixed_noise():
    model = made(argon(8), replace(SMALL, observed_spread=0.5), noise=0.0)
    seen = window(argon(8))
    one, two, three = (
        model.samples(seen, LAGS[1:], 100, torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    )
    assert torch.equal(one, two)
    assert not torch.equal(one, three)
    found = model.forecast(seen, LAGS[1:])
    away = ((one - found.mean) / found.spread[..., None]).square().mean(dim=(0, 2, 3)).sqrt()
    torch.testing.assert_close(away, torch.ones(3).double(), rtol=0, atol=0.05)


def test_frames_older_than_those_of_the_training_do_not_matter():
    model, long = made(argon(5)), window(argon(5), frames=30)
    found = model.forecast(long, LAGS).mean
    assert torch.equal(found, model.forecast(long.last(12), LAGS).mean)


def test_what_was_stored_forecasts_the_same_to_the_last_bit(tmp_path):
    model, seen = made(argon(8)), window(argon(8))
    single = replace(model, model=model.model.float())
    single.save(tmp_path)
    again = TrainedLGODE.load(tmp_path)
    assert again.model.config == model.model.config
    for one, two in zip(
        vars(single.forecast(seen, LAGS)).values(), vars(again.forecast(seen, LAGS)).values(),
        strict=True,
    ):  # fmt: skip
        assert torch.equal(one, two)
    with pytest.raises(InputError):
        TrainedLGODE.load(tmp_path / "nowhere")


def test_refuses_other_kinds_spacings_and_times():
    model, seen = made(argon(8)), window(argon(8))
    with pytest.raises(InputError, match="kind"):
        model.forecast(window(chain(4)), LAGS)
    with pytest.raises(InputError, match="ps apart"):
        model.forecast(replace(seen, frame_ps=0.2), LAGS)
    for lags in (LAGS - 1, LAGS + 1, LAGS[:0]):
        with pytest.raises(UsageError):
            model.forecast(seen, lags)


@pytest.mark.parametrize(
    "wrong", [{"features": 7}, {"layers": 0}, {"cutoff": 0.0}, {"observed_spread": -1.0}]
)
def test_refuses_a_configuration_that_cannot_be_meant(wrong):
    with pytest.raises(UsageError, match=f"lg_ode.{next(iter(wrong))}"):
        LGODEConfig(**wrong)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    runs = [path(argon(6), 80, torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    frames = [RecordedFrames(positions=x, velocities=v, frame_ps=0.1) for x, v in runs]
    return recorded(tmp_path_factory.mktemp("argon"), argon(6), frames)


def task(recordings, model=SMALL, **loss):
    names = [one.name for one in recordings.recordings]
    drawing = Drawing(recordings, names, BATCH, HIERARCHY)
    return LGODETask(drawing, model, LGODELossConfig(**loss))


def test_the_loss_is_the_bound_in_closed_form(recordings):
    one = task(recordings)
    batch = one.batch(0, torch.Generator().manual_seed(1))
    way = (batch.truth.positions - batch.seen.positions[:, 0]) / batch.unit[:, None, :, None]
    speeds = batch.truth.velocities / batch.speed[:, None]
    prior = Latent(mean=torch.zeros(2, 6, 3), width=torch.ones(2, 6, 3))
    config = LGODELossConfig(velocities=0.0, warmup_steps=0)
    total, parts = lg_ode_loss(way, speeds, prior, batch, 0.1, config, 0)
    assert float(total) == pytest.approx(0, abs=1e-6)
    off = replace(prior, mean=torch.ones(2, 6, 3))
    total, parts = lg_ode_loss(way + 0.3, speeds, off, batch, 0.1, config, 0)
    assert float(parts["positions"]) == pytest.approx(4.5, rel=1e-3)
    assert float(total) == pytest.approx(4.5 + 1.5 / (3 * len(batch.lags)), rel=1e-3)
    slow = LGODELossConfig(velocities=0.0, warmup_steps=10)
    early, _ = lg_ode_loss(way, speeds, off, batch, 0.1, slow, 0)
    late, _ = lg_ode_loss(way, speeds, off, batch, 0.1, slow, 99)
    assert float(early) == pytest.approx(float(late) / 10, rel=1e-3)


def test_is_a_task_whose_gradients_reach_every_weight_with_the_same_bytes(recordings):
    one = task(recordings)
    assert isinstance(one, Task)
    torch.nn.init.normal_(one.model.decoder.weight, generator=torch.Generator().manual_seed(0))
    batch = one.batch(0, torch.Generator().manual_seed(1))
    found = []
    for _ in range(2):
        one.model.zero_grad()
        torch.manual_seed(0)
        one.loss(batch, 5)[0].backward()
        found.append({name: w.grad.clone() for name, w in one.model.named_parameters()})
    assert all(bool(grad.any()) for grad in found[0].values())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_learns_one_batch_by_heart(recordings):
    torch.manual_seed(0)
    wide = replace(SMALL, features=16, hidden=16, latent=8, augment=8)
    one = task(recordings, wide, divergence=0.0, velocities=0.0)
    batch = one.batch(0, torch.Generator().manual_seed(3))
    optimizer = torch.optim.Adam(one.model.parameters(), lr=0.01)
    losses = []
    for step in range(120):
        optimizer.zero_grad()
        total, _ = one.loss(batch, step)
        total.backward()
        optimizer.step()
        losses.append(float(total.detach()))
    assert losses[-1] < 0.2 * losses[0]


def test_training_leaves_a_forecaster_and_the_same_bytes_again(recordings, tmp_path):
    found = []
    for name in ("one", "two"):
        trained = train_lg_ode(
            recordings, tmp_path / name, fit_config=FIT, progress=SilentProgress(),
            settings=LGODETraining(model=SMALL, batch=BATCH, hierarchy=HIERARCHY),
        )  # fmt: skip
        found.append((tmp_path / name / "weights.safetensors").read_bytes())
    assert found[0] == found[1]
    assert trained.observed == 6
    assert trained.background.provenance["steps"] == 4
    seen = replace(window(argon(6), frames=6), box=None)
    loaded = TrainedLGODE.load(tmp_path / "two")
    assert torch.equal(loaded.forecast(seen, LAGS).mean, trained.forecast(seen, LAGS).mean)
