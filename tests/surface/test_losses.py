import pytest
import torch

from undula.errors import UsageError
from undula.surface.losses import (
    LossConfig,
    distance_loss,
    eikonal_loss,
    latent_loss,
    manifold_loss,
    normal_loss,
)


def test_an_exact_distance_field_has_no_loss(generator):
    points = torch.randn(50, 3, generator=generator, dtype=torch.float64)
    on = torch.nn.functional.normalize(points, dim=1)
    zero = torch.zeros((), dtype=torch.float64)
    torch.testing.assert_close(manifold_loss(on.norm(dim=1) - 1), zero)
    torch.testing.assert_close(normal_loss(on, on), zero)
    torch.testing.assert_close(eikonal_loss(on), zero)
    torch.testing.assert_close(distance_loss(points.norm(dim=1), points.norm(dim=1)), zero)


def test_the_terms_are_those_of_the_paper():
    gradient = torch.tensor([[3.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    assert float(eikonal_loss(gradient)) == pytest.approx((4 + 1) / 2)
    normals = torch.tensor([[0.0, 4.0, 0.0], [0.0, 0.0, 1.0]])
    assert float(normal_loss(gradient, normals)) == pytest.approx((5 + 1) / 2)
    assert float(manifold_loss(torch.tensor([-2.0, 1.0]))) == pytest.approx(1.5)
    latents = torch.tensor([[3.0, 4.0], [0.0, 1.0]])
    assert float(latent_loss(latents)) == pytest.approx(3.0)


def test_the_best_constant_under_the_distance_loss_is_the_median():
    frames = torch.tensor([-1.0, 0.2, 0.3, 0.5, 9.0])
    guesses = torch.linspace(-2, 10, 1201)
    losses = [float(distance_loss(guess.expand(5), frames)) for guess in guesses]
    best = float(guesses[int(torch.tensor(losses).argmin())])
    assert best == pytest.approx(0.3, abs=0.011)


def test_refuses_weights_that_cannot_be_meant():
    with pytest.raises(UsageError, match="negative"):
        LossConfig(eikonal=-1.0)
    with pytest.raises(UsageError, match=r"loss\.distance or loss\.manifold"):
        LossConfig(distance=0.0)
