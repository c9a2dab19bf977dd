import math

import pytest
import torch

from undula.errors import InputError, UsageError
from undula.geometry.comparison import intersection_over_union
from undula.geometry.lattice import Lattice
from undula.geometry.molecular_surface import molecular_surface
from undula.surface.baselines import (
    SHIFTS,
    Blur,
    Shifts,
    StaticSurface,
    TrivialCase,
    averaged,
    best_ellipsoid,
    blurred,
    distances,
    fitted_blur,
    fitted_shifts,
    majority_of_others,
    occupancy,
)


@pytest.fixture
def lattice():
    return Lattice.covering(torch.full((3,), -12.0).double(), torch.full((3,), 12.0).double(), 0.5)


def ball(lattice, radius, shift=0.0):
    points = lattice.points() - torch.tensor([shift, 0.0, 0.0])
    return (points.norm(dim=1) < radius).reshape(lattice.shape)


def case(lattice, first, *later):
    """Return a training trajectory of balls by their radii."""
    return TrivialCase(
        first=(lattice.points().norm(dim=1) - first).reshape(lattice.shape),
        later=[ball(lattice, radius) for radius in later],
        lattice=lattice,
    )


def volume(inside, lattice):
    return float(inside.sum()) * lattice.spacing**3


def test_occupancy_of_one_atom_is_its_ball(lattice):
    atom = molecular_surface(torch.zeros(1, 3).double(), torch.tensor([3.0]).double(), probe=1.4)
    inside = occupancy(atom, lattice)
    assert volume(inside, lattice) == pytest.approx(4 / 3 * math.pi * 27, rel=0.03)


def test_blurring_by_nearly_nothing_copies_the_solid(lattice):
    solid = ball(lattice, 6.0)
    inside = blurred(solid, lattice, Blur(width=0.05, cut=0.5)) < 0
    assert torch.equal(inside, solid)


def test_a_lower_cut_makes_the_blurred_solid_larger(lattice):
    solid = ball(lattice, 6.0)
    sizes = [
        volume(blurred(solid, lattice, Blur(width=1.5, cut=cut)) < 0, lattice)
        for cut in (0.3, 0.4, 0.5)
    ]
    assert sizes[0] > sizes[1] > sizes[2]


def test_blurring_removes_what_sticks_out(lattice):
    solid = ball(lattice, 6.0)
    with_spike = solid.clone()
    middle = lattice.shape[0] // 2
    with_spike[middle:, middle, middle] = True
    inside = blurred(with_spike, lattice, Blur(width=1.0, cut=0.4)) < 0
    assert not bool(inside[-3, middle, middle])
    assert bool(with_spike[-3, middle, middle])


def test_the_fitted_blur_prefers_the_cut_that_gives_the_later_size(lattice):
    grown = fitted_blur([case(lattice, 6.0, 6.8)])
    shrunk = fitted_blur([case(lattice, 6.0, 5.4)])
    assert grown.cut < shrunk.cut


def test_the_blur_cannot_be_fitted_without_later_frames(lattice):
    with pytest.raises(InputError, match="at least one later training frame"):
        fitted_blur([case(lattice, 6.0)])


def test_a_dilated_atom_is_a_larger_ball_and_an_eroded_one_a_smaller(lattice):
    atom = molecular_surface(torch.zeros(1, 3).double(), torch.tensor([3.0]).double(), probe=1.4)
    away = distances(atom, lattice)
    for shift in (-0.73, 0.33, 0.97):
        assert torch.equal(away < shift, ball(lattice, 3.0 + shift))
    grown = intersection_over_union(away < 0, away < 0.97)
    assert grown == pytest.approx((3 / 3.97) ** 3, rel=0.03)


def test_the_fitted_shifts_are_those_by_which_shapes_grow_and_shrink(lattice):
    fine = Lattice.covering(torch.full((3,), -8.0).double(), torch.full((3,), 8.0).double(), 0.25)
    assert fitted_shifts([case(fine, 6.0, 6.5)]) == Shifts(dilated=0.5, eroded=SHIFTS[0])
    assert fitted_shifts([case(fine, 6.0, 5.3)]) == Shifts(dilated=SHIFTS[0], eroded=0.7)
    both = fitted_shifts([case(fine, 6.0, 6.3), case(fine, 5.0, 5.3)])
    assert both.dilated == 0.3
    with pytest.raises(InputError, match="at least one later training frame"):
        fitted_shifts([case(fine, 6.0)])


def test_a_shift_that_is_none_is_refused():
    for values in ({"dilated": 0.0}, {"eroded": -0.3}):
        with pytest.raises(UsageError, match="both shifts should be positive"):
            Shifts(**values)


def test_the_oracle_of_a_frame_is_the_majority_of_the_others(lattice):
    frames = {0: ball(lattice, 5.0), 4: ball(lattice, 8.0), 7: ball(lattice, 8.0)}
    assert torch.equal(majority_of_others(frames, 0) < 0, frames[4])
    # Of two that differ there is no majority: a tie is outside.
    assert torch.equal(majority_of_others(frames, 4) < 0, frames[0])


def test_the_best_ellipsoid_of_an_ellipsoid_is_itself(lattice):
    axes = torch.tensor([9.0, 6.0, 4.0]).double()
    solid = ((lattice.points() / axes).norm(dim=1) < 1).reshape(lattice.shape)
    inside = best_ellipsoid(solid, lattice) < 0
    assert intersection_over_union(inside, solid) > 0.97


def test_the_best_ellipsoid_needs_a_solid(lattice):
    with pytest.raises(InputError, match="fewer than four"):
        best_ellipsoid(torch.zeros(lattice.shape, dtype=torch.bool), lattice)


def test_the_average_is_the_majority(lattice):
    frames = [ball(lattice, 5.0), ball(lattice, 5.0), ball(lattice, 8.0)]
    assert torch.equal(averaged(frames) < 0, frames[0])


def test_a_static_surface_answers_between_nodes(lattice):
    values = (lattice.points() @ torch.tensor([1.0, -2.0, 0.5]).double()).reshape(lattice.shape)
    points = torch.tensor([[0.13, 1.7, -2.2]]).double()
    static = StaticSurface(lattice, values)
    torch.testing.assert_close(
        static.field(points), points @ torch.tensor([1.0, -2.0, 0.5]).double()
    )
