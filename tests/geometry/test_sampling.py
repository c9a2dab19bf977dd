import math

import pytest
import torch

from undula.errors import InputError
from undula.geometry.sampling import (
    around_surface,
    farthest_points,
    local_scale,
    near_surface,
    uniform_in_box,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def cloud(count, seed=0):
    return torch.randn(count, 3, generator=generator(seed))


def test_the_scale_is_the_distance_to_the_50th_neighbour():
    points = cloud(300).double()
    expected = torch.cdist(points, points).sort(dim=1).values[:, 50]
    torch.testing.assert_close(local_scale(points), expected)


def test_the_scale_on_a_line_counts_neighbours():
    line = torch.arange(10.0)[:, None] * torch.tensor([2.0, 0.0, 0.0])
    torch.testing.assert_close(local_scale(line, neighbour=3)[0], torch.tensor(6.0))
    torch.testing.assert_close(local_scale(line, neighbour=2)[5], torch.tensor(2.0))


def test_with_few_points_the_scale_is_the_distance_to_the_farthest():
    points = cloud(7).double()
    torch.testing.assert_close(local_scale(points), torch.cdist(points, points).amax(dim=1))
    assert local_scale(points[:1]).tolist() == [0]
    assert local_scale(points[:0]).shape == (0,)


def test_points_near_the_surface_have_the_spread_of_their_own_scale():
    points = torch.zeros(40_000, 3)
    scale = torch.where(torch.arange(40_000) % 2 == 0, 0.5, 3.0)
    near = near_surface(points, scale, generator())
    for value in (0.5, 3.0):
        drawn = near[scale == value]
        torch.testing.assert_close(drawn.std(dim=0), torch.full((3,), value), rtol=0.03, atol=0)
        assert drawn.mean(dim=0).abs().max() < 0.03 * value


def test_uniform_points_fill_the_box_evenly():
    low, high = torch.tensor([-1.0, 2.0, 0.0]), torch.tensor([1.0, 5.0, 10.0])
    points = uniform_in_box(low, high, 20_000, generator())
    assert ((points >= low) & (points <= high)).all()
    share = (points - low) / (high - low)
    torch.testing.assert_close(share.mean(dim=0), torch.full((3,), 0.5), atol=0.01, rtol=0)
    expected = torch.full((3,), math.sqrt(1 / 12))
    torch.testing.assert_close(share.std(dim=0), expected, atol=0.01, rtol=0)
    assert uniform_in_box(low, high, 0, generator()).shape == (0, 3)


@pytest.mark.parametrize(("reading", "uniform"), [("paper", 100), ("dsr", 12)])
def test_both_readings_of_the_distribution_have_their_published_shares(reading, uniform):
    points, scale = cloud(100), torch.zeros(100)
    low, high = torch.full((3,), -9.0), torch.full((3,), 9.0)
    drawn = around_surface(points, scale, low, high, generator(), reading=reading)
    torch.testing.assert_close(drawn[:100], points)
    assert len(drawn) == 100 + uniform
    assert ((drawn[100:] >= low) & (drawn[100:] <= high)).all()


def test_the_same_seed_draws_the_same_points():
    points, scale = cloud(50), torch.ones(50)
    low, high = torch.zeros(3), torch.ones(3)
    first, second, other = (
        around_surface(points, scale, low, high, generator(seed), reading="dsr")
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_farthest_points_on_a_line_halve_the_gaps():
    line = torch.arange(17.0)[:, None] * torch.tensor([1.0, 0.0, 0.0])
    chosen = farthest_points(line, 5)
    assert chosen.tolist()[:3] == [0, 16, 8]
    assert sorted(chosen.tolist()) == [0, 4, 8, 12, 16]


def test_every_farthest_point_is_the_farthest_from_those_before_it():
    points = cloud(200).double()
    chosen = farthest_points(points, 30, start=7)
    assert chosen[0] == 7
    for rank in range(1, 30):
        gap = torch.cdist(points, points[chosen[:rank]]).amin(dim=1)
        torch.testing.assert_close(gap[chosen[rank]], gap.max())


def test_farthest_points_are_distinct_also_among_equal_points():
    points = torch.zeros(6, 3)
    assert sorted(farthest_points(points, 6).tolist()) == [0, 1, 2, 3, 4, 5]
    assert farthest_points(points, 0).shape == (0,)


def test_fewer_farthest_points_are_the_first_of_more():
    points = cloud(100)
    assert torch.equal(farthest_points(points, 40)[:10], farthest_points(points, 10))


def test_farthest_points_do_not_change_when_the_molecule_is_shifted():
    points = cloud(100).double()
    assert torch.equal(farthest_points(points, 20), farthest_points(points + 64, 20))


def test_more_farthest_points_than_there_are_is_refused():
    with pytest.raises(InputError, match="choose 5 points of 4"):
        farthest_points(cloud(4), 5)
