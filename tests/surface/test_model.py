from dataclasses import replace

import numpy as np
import pytest
import torch

from undula.errors import InputError, UsageError
from undula.nn.grid import GridConfig
from undula.nn.implicit import ImplicitConfig
from undula.surface.model import SurfaceModel, SurfaceModelConfig, System, sequence
from undula.surface.time import TimeConfig

NETWORK = ImplicitConfig(depth=3, width=48, skip_at=1, harmonics="solid", degree=2)


def model_of(dataset, generator, **choices):
    config = SurfaceModelConfig(network=NETWORK, latent=4, **choices)
    system = System.of(dataset.structure)
    return SurfaceModel(
        config,
        [system],
        [("one", 0), ("two", 0)],
        shortest_ps=5.0,
        horizon_ps=55.0,
        generator=generator,
    ).double()


@pytest.fixture
def points(generator):
    return 8 * torch.randn(40, 3, generator=generator, dtype=torch.float64)


def condition_at(model, time, row=0):
    lag = torch.tensor([time], dtype=torch.float64)
    return model.conditions(lag, model.latents[row][None])[0]


def test_the_untrained_model_is_the_copied_first_frame(dataset, generator, points):
    model = model_of(dataset, generator)
    base = torch.randn(40, dtype=torch.float64, generator=generator)
    value = model.field(points, condition_at(model, 30.0), 0, base)
    assert torch.equal(value, base)


def test_without_base_the_untrained_model_is_a_sphere(dataset, generator):
    model = model_of(dataset, generator, base="none")
    centre = model.centres[0]
    far = centre + model.scales[0] * torch.tensor([[0.0, 0.0, 0.0], [2.0, 0.0, 0.0]])
    value = model.field(far.double(), condition_at(model, 30.0), 0)
    assert value[0] < 0 < value[1]


@pytest.mark.parametrize("kind", ["linear", "relaxation"])
def test_the_gradient_is_that_of_the_value_in_angstrom(dataset, generator, points, kind):
    model = model_of(dataset, generator, base="none", time=TimeConfig(kind=kind, scales=2))
    condition = condition_at(model, 12.0)
    points.requires_grad_()
    value, gradient = model.field_and_gradient(points, condition, 0)
    (expected,) = torch.autograd.grad(value.sum(), points)
    torch.testing.assert_close(gradient, expected)
    torch.testing.assert_close(value, model.field(points, condition, 0))


def test_the_base_adds_value_and_gradient(dataset, generator, points):
    model = model_of(dataset, generator)
    with torch.no_grad():
        model.network.last.weight.normal_(generator=generator)
    condition = condition_at(model, 12.0)
    value, gradient = model.field_and_gradient(points, condition, 0)
    base = torch.ones(40, dtype=torch.float64), points
    shifted, turned = model.field_and_gradient(points, condition, 0, base)
    torch.testing.assert_close(shifted - value, base[0])
    torch.testing.assert_close(turned - gradient, base[1])


def test_it_fills_the_unit_cube_from_the_first_frame_alone(dataset):
    system = System.of(dataset.structure)
    radius = (dataset.structure.positions - system.centre).norm(dim=1).max()
    assert system.scale == pytest.approx(1.1 * float(radius))


def test_a_description_and_weights_make_the_same_model(dataset, generator, points):
    model = model_of(dataset, generator, base="none")
    again = SurfaceModel.build(model.describe(), model.state_dict()).double()
    condition = condition_at(model, 40.0)
    assert torch.equal(again.field(points, condition, 0), model.field(points, condition, 0))


def test_weights_of_another_size_are_refused(dataset, generator):
    model = model_of(dataset, generator)
    description = model.describe()
    description["config"]["network"]["width"] = 64
    with pytest.raises(InputError, match="do not fit their description"):
        SurfaceModel.build(description, model.state_dict())


def test_another_protein_is_refused_by_name(dataset, generator):
    model = model_of(dataset, generator)
    other = dataset.structure.select(dataset.structure.residue_index < 4)
    with pytest.raises(InputError, match="another sequence than what this model"):
        model.system_of(replace(other, name="stranger"))


def test_a_grid_takes_the_place_of_the_network(dataset, generator, points):
    config = SurfaceModelConfig(grid=GridConfig(resolutions=(6, 12), mixtures=2), latent=4)
    model = SurfaceModel(
        config,
        [System.of(dataset.structure)],
        [("one", 0), ("two", 0)],
        shortest_ps=5.0,
        horizon_ps=55.0,
        generator=generator,
    ).double()
    base = torch.randn(40, dtype=torch.float64, generator=generator)
    assert torch.equal(model.field(points, condition_at(model, 30.0), 0, base), base)
    again = SurfaceModel.build(model.describe(), model.state_dict())
    assert again.config == config


@pytest.mark.parametrize("both", [True, False])
def test_a_model_has_either_a_network_or_a_grid(both):
    choices = {"network": NETWORK, "grid": GridConfig()} if both else {}
    with pytest.raises(UsageError, match=r"either model\.network or model\.grid"):
        SurfaceModelConfig(**choices)


def test_names_of_other_force_fields_are_the_same_sequence(dataset):
    names = dataset.structure.residue_names.astype("<U4")
    names = np.where(names == "LEU", "NLEU", names)
    assert sequence(replace(dataset.structure, residue_names=names)) == sequence(dataset.structure)
