import pytest
import torch

from undula.errors import UsageError
from undula.surface.losses import (
    LossConfig,
    MixtureLossConfig,
    distance_loss,
    eikonal_loss,
    energy_score,
    latent_loss,
    manifold_loss,
    normal_loss,
    quantile_loss,
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


@pytest.mark.parametrize("quantile", [0.2, 0.43, 0.9])
def test_the_best_constant_under_the_quantile_loss_is_the_quantile(quantile, generator):
    frames = torch.randn(401, generator=generator)
    guesses = torch.linspace(-3, 3, 2401)
    losses = [float(quantile_loss(guess.expand(401), frames, quantile)) for guess in guesses]
    best = float(guesses[int(torch.tensor(losses).argmin())])
    assert best == pytest.approx(float(frames.quantile(quantile)), abs=0.02)


def test_the_loss_of_the_middle_quantile_is_that_of_the_distance(generator):
    value, distance = torch.randn(2, 60, generator=generator)
    torch.testing.assert_close(quantile_loss(value, distance, 0.5), distance_loss(value, distance))


def test_a_quantile_below_one_half_forgives_a_surface_drawn_too_wide():
    zero = torch.zeros(1)
    # A value below the truth says: inside. q weighs it, 1 - q the other way.
    assert float(quantile_loss(zero - 1, zero, 0.4)) == pytest.approx(0.8)
    assert float(quantile_loss(zero + 1, zero, 0.4)) == pytest.approx(1.2)


def test_the_energy_score_of_one_point_and_two_samples_has_a_closed_form():
    samples = torch.tensor([[[1.0], [4.0]]])
    truth = torch.tensor([[3.0]])
    assert float(energy_score(samples, truth)) == pytest.approx((2 + 1) / 2 - 3 / 2)


def test_the_energy_score_of_equal_samples_is_their_error(generator):
    value, truth = torch.randn(2, 3, 25, generator=generator)
    found = energy_score(value[:, None].expand(3, 4, 25), truth)
    expected = (value - truth).norm(dim=1).mean() / 5
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_the_energy_score_can_be_differentiated_where_samples_agree():
    samples = torch.zeros(1, 2, 3, requires_grad=True)
    energy_score(samples, torch.ones(1, 3)).backward()
    assert torch.isfinite(samples.grad).all()


def correlated(generator, mix, frames, samples, centre=0.0, width=1.0):
    """Return samples of three correlated normal numbers."""
    noise = torch.randn(frames, samples, 3, generator=generator, dtype=torch.float64)
    return centre + width * noise @ mix.T


def test_the_energy_score_is_best_for_the_true_distribution(generator):
    mix = torch.tensor([[1.0, 0.0, 0.0], [0.8, 0.6, 0.0], [-0.5, 0.5, 0.7]]).double()
    truth = correlated(generator, mix, 4000, 1)[:, 0]
    rivals = {
        "true": (mix, 0.0, 1.0),
        "shifted": (mix, 0.5, 1.0),
        "narrowed": (mix, 0.0, 0.6),
        "widened": (mix, 0.0, 1.5),
        "uncorrelated": (torch.diag(mix.norm(dim=1)), 0.0, 1.0),
        "mirrored": (torch.diag(torch.tensor([1.0, -1.0, 1.0])).double() @ mix, 0.0, 1.0),
    }
    scores = {
        name: float(energy_score(correlated(generator, form, 4000, 8, centre, width), truth))
        for name, (form, centre, width) in rivals.items()
    }
    best = scores.pop("true")
    assert min(scores.values()) > best + 0.005, (best, scores)


@pytest.mark.parametrize(
    ("changes", "paper", "samples", "message"),
    [
        ({}, True, False, r"loss\.manifold"),
        ({"manifold": 1.0}, False, True, "belong to experts of kind paper"),
        ({"distance": 0.0}, False, True, r"loss\.distance"),
        ({}, False, False, r"loss\.energy above 0 and model\.samples"),
        ({"energy": 0.0}, False, True, r"loss\.energy above 0 and model\.samples"),
    ],
)
def test_refuses_terms_that_the_experts_cannot_have(changes, paper, samples, message):
    with pytest.raises(UsageError, match=message):
        MixtureLossConfig(**changes).check(paper=paper, samples=samples)


def test_accepts_terms_that_suit_the_experts():
    MixtureLossConfig().check(paper=False, samples=True)
    MixtureLossConfig(energy=0.0).check(paper=False, samples=False)
    MixtureLossConfig(distance=0.0, energy=0.0, manifold=1.0).check(paper=True, samples=False)


@pytest.mark.parametrize("changes", [{"quantile": 0.0}, {"quantile": 1.0}, {"balance": -1.0}])
def test_refuses_weights_of_a_mixture_that_cannot_be_meant(changes):
    with pytest.raises(UsageError, match=next(iter(changes))):
        MixtureLossConfig(**changes)
