from itertools import pairwise

import pytest
import torch
from tests.surface.backbones.shapes import ellipsoid, shuffled

from undula.surface.backbones.grouping import (
    ANGSTROM_PER_UNIT,
    ball_members,
    levels,
    nearest_members,
    owners,
    protein_maximum,
    protein_mean,
    protein_sum,
)
from undula.surface.clouds import collated

SHAPES = [ellipsoid((14, 10, 8), 40), ellipsoid((9, 9, 9), 7), ellipsoid((3, 3, 3), 1)]
SIZES = [[20, 7, 1], [6, 3, 1]]


def test_each_level_is_a_choice_of_the_one_before():
    made = levels(collated(SHAPES), SIZES)
    assert [level.sizes for level in made] == [(40, 7, 1), (20, 7, 1), (6, 3, 1)]
    for before, level in pairwise(made):
        assert torch.equal(level.points, before.points[level.within])
        assert torch.equal(level.owner, before.owner[level.within])
        assert len(level.within.unique()) == sum(level.sizes)


def test_the_choice_covers_the_surface_and_starts_at_the_far_end():
    shape = SHAPES[0]
    _, some = levels(shape, [[20]])
    points = shape.points / ANGSTROM_PER_UNIT
    gap = torch.cdist(points, some.points).amin(dim=1).max()
    apart = torch.cdist(some.points, some.points).fill_diagonal_(torch.inf).min()
    assert gap <= apart
    assert (some.points[0] - points.mean(dim=0)).norm() == pytest.approx(
        (points - points.mean(dim=0)).norm(dim=1).max()
    )


def test_the_order_of_the_points_does_not_change_the_choice():
    one, other = (levels(shape, [[20], [5]]) for shape in (SHAPES[0], shuffled(SHAPES[0])))
    for level, again in zip(one[1:], other[1:], strict=True):
        assert torch.equal(level.points, again.points)


def test_no_level_is_wanted_and_none_is_made():
    (whole,) = levels(collated(SHAPES), [])
    assert whole.sizes == (40, 7, 1)


def test_neighbours_are_the_nearest_of_the_same_protein_with_the_centre_first():
    whole, some = levels(collated(SHAPES), SIZES[:1])
    found = nearest_members(some, whole, 5)
    assert torch.equal(found[:, 0], some.within)
    assert torch.equal(whole.owner[found], some.owner[:, None].expand(-1, 5))
    for centre, members in zip(some.points[:27], found, strict=False):
        mine = torch.where(
            whole.owner == whole.owner[members[0]],
            (whole.points - centre).norm(dim=1),
            torch.inf,
        )
        assert torch.equal(members, mine.argsort()[:5])


def test_too_few_neighbours_are_repeated_from_the_nearest():
    whole, _ = levels(collated(SHAPES), SIZES[:1])
    found = nearest_members(whole, whole, 10)
    assert torch.equal(found[40:47, 7:], found[40:47, :3])
    assert (found[47] == 47).all()


def test_a_ball_holds_no_point_beyond_its_radius():
    whole, some = levels(collated(SHAPES), SIZES[:1])
    found = ball_members(some, whole, 6.0, 12)
    apart = ANGSTROM_PER_UNIT * (whole.points[found] - some.points[:, None]).norm(dim=2)
    assert apart.max() <= 6
    inside = ANGSTROM_PER_UNIT * torch.cdist(some.points, whole.points) <= 6
    inside &= some.owner[:, None] == whole.owner
    assert inside.sum(dim=1).max() <= 12
    for members, expected in zip(found, inside, strict=True):
        assert torch.equal(members.unique(), expected.nonzero()[:, 0])


def test_sums_means_and_maxima_are_those_of_each_protein():
    draw = torch.Generator().manual_seed(0)
    values = torch.randn(6, 3, generator=draw)
    owner = owners((3, 1, 2), values)
    assert owner.tolist() == [0, 0, 0, 1, 2, 2]
    parts = values.split((3, 1, 2))
    torch.testing.assert_close(
        protein_sum(values, owner, 3), torch.stack([part.sum(dim=0) for part in parts])
    )
    torch.testing.assert_close(
        protein_mean(values, owner, 3), torch.stack([part.mean(dim=0) for part in parts])
    )
    torch.testing.assert_close(
        protein_maximum(values, owner, 3), torch.stack([part.amax(dim=0) for part in parts])
    )
