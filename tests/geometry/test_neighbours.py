"""Facts about neighbours: against all distances, with ties, far away, and with nothing there."""

from __future__ import annotations

import pytest
import torch

from undula.errors import InputError, UsageError
from undula.geometry.neighbours import closest_pairs, nearest, pairs_to, pairs_within


def cloud(count: int, seed: int = 0) -> torch.Tensor:
    chance = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, generator=chance, dtype=torch.float64)


def lattice(side: int) -> torch.Tensor:
    return torch.cartesian_prod(*[torch.arange(side)] * 3).double()


def test_the_nearest_are_those_of_all_distances_sorted():
    points, among = cloud(40), cloud(30, seed=1)
    expected = torch.cdist(points, among).sort(dim=1).indices
    for count in (1, 7, 30):
        assert torch.equal(nearest(points, among, count), expected[:, :count])


def test_equally_near_ones_come_in_ascending_order_wherever_the_tree_found_them():
    points = lattice(4)
    distance = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    expected = distance.sort(dim=1, stable=True).indices
    for count in (1, 2, 5, 11):
        assert torch.equal(nearest(points, points, count), expected[:, :count])


def test_a_point_among_the_others_is_its_own_nearest():
    points = cloud(20)
    assert nearest(points, points, 1)[:, 0].tolist() == list(range(20))


def test_with_fewer_points_than_wanted_all_are_found():
    points, among = cloud(5), cloud(3, seed=1)
    found = nearest(points, among, 16)
    assert found.shape == (5, 3)
    assert (found.sort(dim=1).values == torch.arange(3)).all()


def test_nobody_has_neighbours_where_there_are_none():
    assert nearest(cloud(4), cloud(0), 3).shape == (4, 0)
    assert nearest(cloud(0), cloud(4), 3).shape == (0, 3)
    assert nearest(cloud(4), cloud(4), 0).shape == (4, 0)


def test_pairs_are_all_that_are_within_the_radius():
    points = cloud(60)
    close = torch.cdist(points, points) <= 0.8
    close.fill_diagonal_(False)
    assert torch.equal(pairs_within(points, 0.8), close.nonzero().T)


def test_pairs_run_both_ways_sorted_by_receiver_and_never_to_themselves():
    receiver, sender = pairs_within(cloud(60), 1.0)
    assert (receiver != sender).all()
    code = receiver * 60 + sender
    assert (code.diff() > 0).all()
    assert torch.equal((sender * 60 + receiver).sort().values, code)


def test_points_at_the_radius_and_in_one_place_are_pairs():
    points = torch.tensor([[0.0, 0, 0], [2.0, 0, 0], [0.0, 0, 0]])
    assert pairs_within(points, 2.0).T.tolist() == [[0, 1], [0, 2], [1, 0], [1, 2], [2, 0], [2, 1]]
    assert pairs_within(points, 0.0).T.tolist() == [[0, 2], [2, 0]]


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_points_make_no_pairs(count):
    pairs = pairs_within(cloud(count), 5.0)
    assert pairs.shape == (2, 0)
    assert pairs.dtype == torch.long


def test_pairs_do_not_change_when_all_points_are_shifted():
    points = cloud(50)
    assert torch.equal(pairs_within(points, 1.0), pairs_within(points + 64, 1.0))


def test_each_receiver_keeps_its_closest_senders():
    points = cloud(50)
    pairs = pairs_within(points, 10.0)
    distances = (points[pairs[0]] - points[pairs[1]]).norm(dim=1)
    kept = pairs[:, closest_pairs(pairs, distances, 6)]
    expected = nearest(points, points, 7)[:, 1:].sort(dim=1).values
    assert torch.equal(kept[0], torch.arange(50).repeat_interleave(6))
    assert torch.equal(kept[1].view(50, 6), expected)


def test_all_pairs_are_kept_where_there_are_few_and_none_where_none_is_wanted():
    pairs = pairs_within(cloud(20), 1.0)
    distances = torch.ones(pairs.shape[1])
    assert torch.equal(closest_pairs(pairs, distances, 19), torch.arange(pairs.shape[1]))
    assert closest_pairs(pairs, distances, 0).shape == (0,)
    assert closest_pairs(pairs[:, :0], distances[:0], 5).shape == (0,)


def test_of_equally_distant_senders_the_first_are_kept():
    pairs = torch.tensor([[1, 0, 1, 1, 0], [4, 3, 2, 3, 1]])
    assert closest_pairs(pairs, torch.ones(5), 2).tolist() == [1, 2, 3, 4]


def test_refuses_what_cannot_be_meant():
    points = cloud(3)
    with pytest.raises(UsageError, match="number of neighbours"):
        nearest(points, points, -1)
    with pytest.raises(UsageError, match="number of neighbours"):
        closest_pairs(torch.zeros(2, 0, dtype=torch.long), torch.zeros(0), -1)
    for radius in (-1.0, float("nan")):
        with pytest.raises(UsageError, match="radius"):
            pairs_within(points, radius)
    points[1, 2] = float("nan")
    for search in (lambda: pairs_within(points, 1.0), lambda: nearest(points, points, 1)):
        with pytest.raises(InputError, match="point 2 "):
            search()


def test_many_coordinates_of_exactly_zero_do_no_harm_where_denormals_count_as_zero():
    points = cloud(1200)
    points[:, 0] = (9 * points[:, 0]).clamp(min=0)
    points[::5, 0] = 0
    expected = pairs_within(points, 0.3)
    torch.set_flush_denormal(True)
    try:
        assert torch.equal(pairs_within(points, 0.3), expected)
        assert torch.equal(nearest(points, points, 1)[:, 0], torch.arange(len(points)))
    finally:
        torch.set_flush_denormal(False)


def test_pairs_to_some_points_are_those_of_all_with_these_as_receivers():
    points = torch.cat([cloud(60), cloud(3)])  # three of them lie in the same places
    every = pairs_within(points, 0.8)
    chosen = torch.tensor([0, 2, 17, 40, 62])
    found = pairs_to(points, chosen, 0.8)
    assert torch.equal(found, every[:, torch.isin(every[0], chosen)])
    assert pairs_to(points, chosen[:0], 0.8).shape == (2, 0)
    with pytest.raises(UsageError, match="radius"):
        pairs_to(points, chosen, -1.0)
