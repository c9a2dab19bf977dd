from dataclasses import replace

import pytest
import torch
from tests.surface.mixtures import PAPER, fresh

from undula.data.bundled import villin
from undula.io.structures import load_structure
from undula.surface import latent
from undula.surface.clouds import router_cloud
from undula.surface.experts import PointRows
from undula.surface.first_frame import FirstFrame
from undula.surface.latent import fitted_latent
from undula.surface.losses import manifold_loss, normal_loss

SMALL = replace(
    PAPER,
    experts=replace(
        PAPER.experts, network=replace(PAPER.experts.network, width=48, depth=2, skip_at=1)
    ),
)


@pytest.fixture(scope="module")
def first():
    whole = load_structure(villin()[0])
    piece = whole.select(whole.residue_index < 8)
    return FirstFrame(piece, SMALL.local, turned=False)


@pytest.fixture(scope="module")
def model():
    return fresh(SMALL).requires_grad_(False)


def loss_at(model, first, code):
    surface = first.surface.cloud(0.7)
    cloud = router_cloud(first.structure, model.config.cloud).to(dtype=torch.float32)
    count = len(surface)
    rows = PointRows(
        frame=torch.zeros(count, dtype=torch.long),
        points=surface.points.float(),
        distance=torch.zeros(count),
        features=torch.zeros(count, 0),
    )
    encoding = model.encode(cloud, torch.tensor([first.scale]), latent=code)
    one = torch.zeros(1, dtype=torch.long)
    value, gradient = model.field_and_gradient(encoding, one, torch.zeros(1), rows)
    fit = manifold_loss(value / first.scale) + normal_loss(gradient, surface.normals.float())
    return float(fit)


def test_the_fitted_code_lowers_its_loss_and_nothing_else_moves(model, first, monkeypatch):
    monkeypatch.setattr(latent, "STEPS", 60)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    start = model.latents.mean(dim=0, keepdim=True)
    code = fitted_latent(model, first)
    assert code.shape == (1, SMALL.latent)
    assert not code.requires_grad
    assert loss_at(model, first, code) < 0.97 * loss_at(model, first, start)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_the_same_first_frame_gives_the_same_code(model, first, monkeypatch):
    monkeypatch.setattr(latent, "STEPS", 5)
    one, two = fitted_latent(model, first), fitted_latent(model, first)
    assert torch.equal(one, two)


def test_other_latent_codes_of_the_training_have_a_say_only_in_their_mean(
    model, first, monkeypatch
):
    monkeypatch.setattr(latent, "STEPS", 3)
    other = fresh(SMALL).requires_grad_(False)
    other.latents.copy_(model.latents.flip(0))
    torch.testing.assert_close(fitted_latent(other, first), fitted_latent(model, first))
