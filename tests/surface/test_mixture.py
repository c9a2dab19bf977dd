import json
from dataclasses import replace

import pytest
import torch
from tests.surface.backbones.shapes import ellipsoid
from tests.surface.mixtures import CONTRACTION, LOCAL, PAPER, fresh, stirred

from undula.errors import InputError, UsageError
from undula.nn.mixture import GateConfig
from undula.surface.clouds import CloudConfig, collated
from undula.surface.experts import ExpertConfig, PointRows
from undula.surface.first_frame import REACH
from undula.surface.mixture import ROUTERS, MixtureModel, MixtureModelConfig, model_config
from undula.surface.time import TimeConfig

KINDS = pytest.mark.parametrize("config", [LOCAL, CONTRACTION], ids=["local", "contraction"])
SCALES = torch.tensor([15.0, 12.0, 14.0])
CLOUDS = [
    ellipsoid(radii, points).to(dtype=torch.float32)
    for radii, points in (((7.0, 9.0, 13.0), 60), ((6.0, 6.0, 10.0), 40), ((9.0, 11.0, 8.0), 90))
]


def rows_of_frames(generator, frames=3, points=40):
    count = frames * points
    return PointRows(
        frame=torch.arange(frames).repeat_interleave(points),
        points=8 * torch.randn(count, 3, generator=generator),
        distance=2 * torch.randn(count, generator=generator),
        features=torch.rand(count, LOCAL.local.size, generator=generator),
    )


def encoded(model, order=(0, 1, 2), **more):
    chosen = list(order)
    return model.encode(
        collated([CLOUDS[i] for i in chosen]), SCALES[chosen], keys=torch.tensor(chosen), **more
    )


@KINDS
def test_a_fresh_model_is_the_exact_first_frame_at_any_time(config, generator):
    model, rows = fresh(config), rows_of_frames(generator)
    lags = torch.tensor([0.0, 40.0, 1e6])
    value, amplitude = model.field(encoded(model), torch.arange(3), lags, rows)
    assert torch.equal(value, rows.distance)
    assert amplitude.shape == (120, 3)


@KINDS
def test_any_model_is_the_exact_first_frame_at_first_and_beyond_its_reach(config, generator):
    model, rows = stirred(config), rows_of_frames(generator)
    found = encoded(model)
    value, amplitude = model.field(found, torch.arange(3), torch.zeros(3), rows)
    assert torch.equal(value, rows.distance)
    assert not amplitude.any()
    later, spread = model.field(found, torch.arange(3), torch.full((3,), 50.0), rows)
    beyond = rows.distance.abs() >= REACH
    assert beyond.any()
    assert torch.equal(later[beyond], rows.distance[beyond])
    assert not spread[beyond].any()
    assert (spread[~beyond, :2] > 0).all()
    assert (later - rows.distance)[~beyond].abs().mean() > 0.05


@KINDS
def test_a_batch_equals_one_protein_after_the_other(config, generator):
    model, rows = stirred(config), rows_of_frames(generator)
    lags = torch.tensor([5.0, 40.0, 200.0])
    protein = torch.tensor([2, 0, 1])
    together, _ = model.field(encoded(model), protein, lags, rows)
    for frame, number in enumerate(protein.tolist()):
        mine = rows.frame == frame
        part = PointRows(
            torch.zeros(40, dtype=torch.long),
            rows.points[mine],
            rows.distance[mine],
            rows.features[mine],
        )
        one = torch.zeros(1, dtype=torch.long)
        alone, _ = model.field(encoded(model, [number]), one, lags[frame : frame + 1], part)
        torch.testing.assert_close(together[mine], alone, rtol=0, atol=1e-5)


def test_in_training_the_order_of_the_batch_does_not_matter():
    model = stirred(LOCAL).train()
    there, back = encoded(model, (0, 1, 2), step=7), encoded(model, (2, 0, 1), step=7)
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(back.gating.weights, there.gating.weights[order])
    assert torch.equal(back.gating.chosen, there.gating.chosen[order])
    torch.testing.assert_close(back.latent, there.latent[order])
    other = encoded(model, (0, 1, 2), step=8)
    assert not torch.allclose(other.gating.weights, there.gating.weights)


def test_without_samples_there_is_no_amplitude(generator):
    model = stirred(replace(LOCAL, samples=False))
    lags = torch.full((3,), 50.0)
    value, amplitude = model.field(encoded(model), torch.arange(3), lags, rows_of_frames(generator))
    assert amplitude is None
    assert value.shape == (120,)


def test_paper_experts_answer_in_the_scale_of_the_protein(generator):
    model = stirred(PAPER)
    rows = rows_of_frames(generator)
    value, gradient = model.field_and_gradient(
        encoded(model), torch.arange(3), torch.full((3,), 50.0), rows
    )
    same, amplitude = model.field(encoded(model), torch.arange(3), torch.full((3,), 50.0), rows)
    torch.testing.assert_close(same, value)
    assert amplitude is None
    step = 1e-2 * torch.nn.functional.normalize(torch.randn(120, 3, generator=generator), dim=1)
    ends = [
        model.field(
            encoded(model),
            torch.arange(3),
            torch.full((3,), 50.0),
            replace(rows, points=rows.points + sign * step),
        )[0]
        for sign in (1, -1)
    ]
    slope = (ends[0] - ends[1]) / 2
    torch.testing.assert_close(slope, (gradient * step).sum(dim=1), rtol=0.05, atol=5e-4)


def test_fitted_latent_codes_belong_to_training_proteins():
    model = fresh(PAPER)
    expected = model.latents[torch.tensor([1])]
    assert torch.equal(encoded(model, [1]).latent, expected)
    with pytest.raises(ValueError, match="latent code of each protein"):
        model.encode(CLOUDS[0], SCALES[:1])
    given = torch.ones(1, PAPER.latent)
    assert torch.equal(model.encode(CLOUDS[0], SCALES[:1], latent=given).latent, given)


@pytest.mark.parametrize("router", ROUTERS)
def test_every_router_serves_local_experts(router, generator):
    model = stirred(replace(LOCAL, router=router, width=0.1))
    value, _ = model.field(
        encoded(model), torch.arange(3), torch.full((3,), 50.0), rows_of_frames(generator)
    )
    assert torch.isfinite(value).all()


@pytest.mark.parametrize("config", [LOCAL, CONTRACTION, PAPER], ids=["local", "contr", "paper"])
def test_a_described_model_is_built_again_as_it_was(config):
    model = stirred(config)
    described = json.loads(json.dumps(model.describe()))
    again = MixtureModel.build(described, model.state_dict())
    assert again.config == config
    assert model_config(described["config"]) == config
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d.pop("config"),
        lambda d: d.update(config=None),
        lambda d: d["config"].update(latent=7),
        lambda d: d["config"].update(wings=2),
        lambda d: d["config"].update(router="crystal ball"),
        lambda d: d["config"]["experts"].update(kind="paper"),
        lambda d: d.update(horizon_ps="long"),
    ],
)
def test_weights_of_another_description_are_refused(damage):
    model = fresh(LOCAL)
    described = json.loads(json.dumps(model.describe()))
    damage(described)
    with pytest.raises(InputError, match="do not fit their description"):
        MixtureModel.build(described, model.state_dict())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latent": -1}, "latent"),
        ({"latent_from": "fitted"}, "take the encoder"),
        ({"experts": PAPER.experts}, "set samples to false"),
        ({"experts": ExpertConfig(kind="contraction"), "router": "dmasif"}, "needs irreps"),
        ({"cloud": CloudConfig(window=7.0)}, "should be the same"),
    ],
)
def test_refuses_models_that_cannot_be_meant(changes, message):
    with pytest.raises(UsageError, match=message):
        MixtureModelConfig(**changes)


def test_the_numbers_of_the_condition_are_those_of_its_parts(generator):
    config = replace(LOCAL, time=TimeConfig(scales=2), latent=3, code=True)
    model = fresh(config)
    rows = model.conditions(encoded(model), torch.tensor([0, 2]), torch.tensor([1.0, 9.0]))
    assert rows.shape == (2, config.condition) == (2, 2 + 3 + 8)


def test_one_expert_alone_counts_fully(generator):
    model = stirred(replace(LOCAL, gate=GateConfig(experts=1, chosen=1)))
    assert encoded(model).gating.weights.tolist() == [[1.0]] * 3
