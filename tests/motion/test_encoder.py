import math
from dataclasses import replace

import pytest
import torch
from tests.motion.small_systems import ENCODER, argon, trained, waters, window
from tests.nn.turning import reflection, rotation

from undula.errors import UsageError
from undula.motion.encoder import EncoderConfig, Posterior
from undula.motion.observation import observation
from undula.motion.surroundings import bond_table


def drawn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def posterior(rows=5, latent=2) -> Posterior:
    return Posterior(
        scalars=drawn(rows, latent),
        scalar_widths=drawn(rows, latent, seed=1).exp(),
        vectors=drawn(rows, 3, latent, seed=2),
        vector_widths=(0.5 * drawn(rows, latent, seed=3)).exp(),
        certain_scalars=drawn(rows, 4, seed=4),
        certain_vectors=drawn(rows, 3, 4, seed=5),
    )


def encoded(seen, model):
    kinds = model.climatology.kind_of_atoms(seen[0].system)
    ages = model.model.config.encoder.ages(len(seen[0]))
    bonds = bond_table(seen[0].system)
    return model.model.encoder(observation(seen, kinds, model.usual, ages), bonds)


def test_looks_back_by_doubling_distances_and_always_at_now():
    config = EncoderConfig(oldest=100)
    assert config.ages(2000) == (0, 1, 2, 4, 8, 16, 32, 64)
    assert config.ages(33) == (0, 1, 2, 4, 8, 16, 32)
    assert config.ages(32) == (0, 1, 2, 4, 8, 16)
    assert config.ages(1) == (0,)
    assert replace(config, oldest=0).ages(2000) == (0,)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"features": 0}, "features"),
        ({"features": 10}, "features"),
        ({"layers": 0}, "layers"),
        ({"latent": 0}, "latent"),
        ({"cutoff": 0.0}, "cutoff"),
        ({"cutoff": math.inf}, "cutoff"),
        ({"oldest": -1}, "oldest"),
    ],
    ids=str,
)
def test_refuses_sizes_that_mean_nothing(changes, key):
    with pytest.raises(UsageError, match=rf"encoder\.{key}"):
        EncoderConfig(**changes)


def test_the_divergence_is_that_of_the_closed_form_for_one_number():
    one = Posterior(
        scalars=torch.tensor([[0.5]]),
        scalar_widths=torch.tensor([[2.0]]),
        vectors=torch.zeros(1, 3, 1),
        vector_widths=torch.ones(1, 1),
        certain_scalars=torch.zeros(1, 1),
        certain_vectors=torch.zeros(1, 3, 1),
    )
    assert float(one.divergence()) == pytest.approx((0.25 + 4 - 1 - math.log(4)) / 2)


def test_the_divergence_vanishes_for_the_prior_and_for_nothing_else():
    prior = replace(
        posterior(),
        scalars=torch.zeros(5, 2).double(),
        scalar_widths=torch.ones(5, 2).double(),
        vectors=torch.zeros(5, 3, 2).double(),
        vector_widths=torch.ones(5, 2).double(),
    )
    assert float(prior.divergence()) == 0
    assert float(posterior().divergence()) > 0


def log_normal(value, mean, width):
    return -((value - mean) / width).square() / 2 - width.log() - math.log(2 * math.pi) / 2


def test_the_divergence_is_the_mean_of_what_drawn_states_say():
    many = 20_000
    q = posterior(1)
    wide = Posterior(**{name: getattr(q, name).repeat_interleave(many, dim=0) for name in vars(q)})
    s, v = wide.drawn(torch.Generator().manual_seed(1))
    one = torch.ones((), dtype=torch.float64)
    ratio = (log_normal(s, wide.scalars, wide.scalar_widths) - log_normal(s, 0, one)).sum(dim=1)
    widths = wide.vector_widths[:, None]
    more = log_normal(v, wide.vectors, widths) - log_normal(v, 0, one)
    found = ratio + more.sum(dim=(1, 2))
    error = float(found.std()) / math.sqrt(many)
    assert float(found.mean()) == pytest.approx(float(q.divergence()), abs=4 * error)


def test_drawn_states_have_the_mean_and_the_widths_along_every_axis():
    many = 20_000
    q = posterior(1)
    wide = Posterior(**{name: getattr(q, name).repeat_interleave(many, dim=0) for name in vars(q)})
    s, v = wide.drawn(torch.Generator().manual_seed(2))
    assert ((s.mean(dim=0) - q.scalars[0]) / q.scalar_widths[0]).abs().max() < 0.04
    assert (s.std(dim=0) / q.scalar_widths[0] - 1).abs().max() < 0.03
    assert ((v.mean(dim=0) - q.vectors[0]) / q.vector_widths[0]).abs().max() < 0.04
    assert (v.std(dim=0) / q.vector_widths[0] - 1).abs().max() < 0.03
    axes = torch.corrcoef(torch.cat([s, v.flatten(1)], dim=1).T)
    assert (axes - torch.eye(8)).abs().max() < 0.04


def test_the_same_seed_draws_the_same_state():
    one, two = (posterior().drawn(torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[1], two[1])
    torch.manual_seed(7)
    free = posterior().drawn(None)
    torch.manual_seed(7)
    assert torch.equal(free[1], posterior().drawn(None)[1])


@pytest.mark.parametrize("backbone", ["painn", "egnn"])
@pytest.mark.parametrize("matrix", [rotation(2), reflection(3)], ids=["turned", "mirrored"])
def test_the_distribution_turns_with_the_window(backbone, matrix):
    model = trained(waters(3), replace(ENCODER, backbone=backbone))
    seen = window(waters(3))
    turned = replace(
        seen, positions=seen.positions @ matrix.T, velocities=seen.velocities @ matrix.T
    )
    q, r = encoded([seen], model), encoded([turned], model)
    alike = {"rtol": 0, "atol": 1e-9}
    for name in ("scalars", "scalar_widths", "vector_widths", "certain_scalars"):
        torch.testing.assert_close(getattr(r, name), getattr(q, name), **alike)
    for name in ("vectors", "certain_vectors"):
        torch.testing.assert_close(getattr(r, name), matrix @ getattr(q, name), **alike)


def test_windows_side_by_side_are_as_each_alone():
    model = trained(argon(12))
    seen = [window(argon(12), seed) for seed in (0, 1, 2)]
    together = encoded(seen, model)
    alone = [encoded([one], model) for one in seen]
    for name in vars(together):
        rows = torch.cat([getattr(one, name) for one in alone])
        torch.testing.assert_close(getattr(together, name), rows, rtol=0, atol=1e-12)


def test_every_frame_that_is_looked_at_is_heard_and_no_other():
    model = trained(argon(12))
    seen = window(argon(12))
    before = encoded([seen], model).certain_vectors
    middle = seen.positions.mean(dim=0)
    for age in range(1, len(seen) - 1):
        other = seen.positions.clone()
        # Two frames change, so that the observed mean, the first and the last frame do not.
        partner = 5 if age != 5 else 6
        other[-1 - age] += 0.3
        other[-1 - partner] -= 0.3
        assert torch.allclose(other.mean(dim=0), middle)
        again = encoded([replace(seen, positions=other)], model).certain_vectors
        heard = age in (1, 2, 4, 8)
        assert torch.allclose(again, before, rtol=0, atol=1e-12) is not heard


def test_a_lonely_atom_and_a_single_frame_are_served():
    model = trained(argon(1))
    q = encoded([window(argon(1)).last(1)], model)
    assert torch.isfinite(q.vectors).all()
    assert q.scalars.shape == (1, 3)
