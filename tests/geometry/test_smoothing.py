"""Facts about smoothed normals: spheres, planes, limits, and the grid against all pairs."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from undula.errors import InputError, UsageError
from undula.geometry import smoothing
from undula.geometry.molecular_surface import molecular_surface
from undula.geometry.smoothing import (
    CANCELLED,
    EXACT_UP_TO,
    exactly_smoothed_normals,
    smoothed_normals,
)

BOTH = pytest.mark.parametrize("smoothed", [smoothed_normals, exactly_smoothed_normals])


def sphere(count: int) -> torch.Tensor:
    """Return evenly spread directions."""
    index = torch.arange(count, dtype=torch.float64) + 0.5
    polar, azimuth = (1 - 2 * index / count).acos(), math.pi * (1 + 5**0.5) * index
    flat = torch.stack([azimuth.cos(), azimuth.sin()], dim=1) * polar.sin()[:, None]
    return torch.cat([flat, polar.cos()[:, None]], dim=1)


def molecule(atoms: int = 150, spacing: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the surface of a lump of atoms with grooves and tunnels."""
    chance = torch.Generator().manual_seed(3)
    centres = 20 * torch.rand(atoms, 3, generator=chance, dtype=torch.float64)
    cloud = molecular_surface(centres, torch.full((atoms,), 1.7, dtype=torch.float64)).cloud(
        spacing
    )
    return cloud.points, cloud.normals


def angles(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    return torch.rad2deg(2 * torch.asin((first - second).norm(dim=1).clamp(max=2) / 2))


def rotation(seed: int = 0) -> torch.Tensor:
    chance = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(3, 3, generator=chance, dtype=torch.float64))[0]


def test_the_exact_form_is_the_formula():
    points, normals = molecule(atoms=20)
    between = (points[:, None] - points).square().sum(dim=2)
    sums = torch.exp(-between / (2 * 4.0**2)) @ normals
    expected = sums / sums.norm(dim=1, keepdim=True)
    torch.testing.assert_close(exactly_smoothed_normals(points, normals, 4.0), expected)


@pytest.mark.parametrize("deviation", [3.0, 9.0])
def test_the_grid_is_off_by_less_than_half_a_degree_on_average(deviation):
    points, normals = molecule()
    assert len(points) > EXACT_UP_TO
    exact = exactly_smoothed_normals(points, normals, deviation)
    error = angles(smoothed_normals(points, normals, deviation), exact)
    assert 0 < error.mean() < 0.3
    assert error.quantile(0.99) < 1.5


@BOTH
@pytest.mark.parametrize("deviation", [1.0, 3.0, 50.0])
def test_the_normals_of_a_sphere_stay_as_they_are(smoothed, deviation):
    directions = sphere(4000)
    assert angles(smoothed(10 * directions, directions, deviation), directions).max() < 0.8


@BOTH
def test_the_normals_of_a_plane_stay_as_they_are(smoothed):
    points = torch.cartesian_prod(torch.arange(40.0), torch.arange(40.0), torch.zeros(1))
    normals = torch.tensor([0.0, 0, 1]).expand(1600, 3)
    torch.testing.assert_close(smoothed(points, normals, 4.0), normals)


def test_a_narrow_gaussian_leaves_every_normal_to_itself():
    points, normals = molecule()
    torch.testing.assert_close(smoothed_normals(points, normals, 0.01), normals)


def test_a_wide_gaussian_gives_all_points_one_normal():
    points, normals = molecule(atoms=20)
    expected = functional.normalize(normals.sum(dim=0), dim=0).expand(len(points), 3)
    smoothed = exactly_smoothed_normals(points, normals, 1e6)
    torch.testing.assert_close(smoothed, expected, rtol=0, atol=1e-4)


@BOTH
def test_where_normals_cancel_each_keeps_its_own(smoothed):
    directions = sphere(1200)
    points = 30 * directions.repeat(2, 1)
    normals = torch.cat([directions, -directions])
    torch.testing.assert_close(smoothed(points, normals, 3.0), normals, rtol=0, atol=1e-12)


def test_what_is_left_above_the_threshold_has_a_direction():
    up = torch.tensor([[0.0, 0, 1], [0.0, 0, -1]], dtype=torch.float64)
    for tilt, expected in ((0.1 * CANCELLED, up), (10 * CANCELLED, None)):
        aside = torch.tensor([[0.0, tilt, 0]], dtype=torch.float64)
        normals = functional.normalize(up + aside, dim=1)
        smoothed = exactly_smoothed_normals(torch.zeros(2, 3).double(), normals, 3.0)
        wanted = normals if expected is not None else torch.tensor([[0.0, 1, 0]] * 2).double()
        torch.testing.assert_close(smoothed, wanted)


def test_turns_with_the_molecule_exactly_and_on_the_grid_nearly():
    points, normals = molecule()
    turn = rotation()
    exact = exactly_smoothed_normals(points @ turn.T, normals @ turn.T, 3.0)
    torch.testing.assert_close(exact, exactly_smoothed_normals(points, normals, 3.0) @ turn.T)
    fast = smoothed_normals(points @ turn.T, normals @ turn.T, 3.0)
    assert angles(fast, smoothed_normals(points, normals, 3.0) @ turn.T).mean() < 0.5


@BOTH
def test_does_not_change_when_the_molecule_is_shifted(smoothed):
    points, normals = molecule()
    shifted = smoothed(points + 100 * torch.randn(3).double(), normals, 3.0)
    torch.testing.assert_close(shifted, smoothed(points, normals, 3.0), rtol=0, atol=1e-9)


@BOTH
def test_keeps_the_order_of_the_points(smoothed):
    points, normals = molecule()
    order = torch.randperm(len(points), generator=torch.Generator().manual_seed(1))
    shuffled = smoothed(points[order], normals[order], 3.0)
    torch.testing.assert_close(shuffled, smoothed(points, normals, 3.0)[order])


def test_few_points_are_summed_exactly():
    points, normals = molecule()
    few, theirs = points[:EXACT_UP_TO], normals[:EXACT_UP_TO]
    exact = exactly_smoothed_normals(few, theirs, 3.0)
    assert torch.equal(smoothed_normals(few, theirs, 3.0), exact)


def test_points_too_far_apart_for_a_grid_are_summed_exactly():
    points, normals = molecule()
    far = points.clone()
    far[-1] += 1e7
    exact = exactly_smoothed_normals(far, normals, 3.0)
    assert torch.equal(smoothed_normals(far, normals, 3.0), exact)


def test_pairs_in_slices_are_pairs_at_once(monkeypatch):
    points, normals = molecule()
    at_once = exactly_smoothed_normals(points, normals, 3.0)
    monkeypatch.setattr(smoothing, "_PAIRS_AT_ONCE", 10_000)
    torch.testing.assert_close(exactly_smoothed_normals(points, normals, 3.0), at_once)


@BOTH
def test_one_point_keeps_its_normal_and_none_has_none(smoothed):
    normal = torch.tensor([[0.6, 0.0, 0.8]])
    assert torch.equal(smoothed(torch.full((1, 3), 1e5), normal, 3.0), normal)
    assert smoothed(torch.zeros(0, 3), torch.zeros(0, 3), 3.0).shape == (0, 3)


@BOTH
def test_single_precision_agrees_with_double(smoothed):
    points, normals = molecule()
    single = smoothed(points.float(), normals.float(), 3.0)
    assert single.dtype == torch.float32
    assert angles(single.double(), smoothed(points, normals, 3.0)).quantile(0.99) < 0.01


@BOTH
def test_refuses_what_cannot_be_meant(smoothed):
    points, normals = torch.zeros(2, 3), torch.eye(3)[:2]
    for deviation in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(UsageError, match="deviation"):
            smoothed(points, normals, deviation)
    with pytest.raises(InputError, match="finite"):
        smoothed(points + math.nan, normals, 3.0)


def test_a_cloud_too_wide_for_a_grid_is_taken_in_halves_that_see_each_other(monkeypatch):
    points, normals = molecule()
    long = torch.cat([points + 20 * k * torch.tensor([1.0, 0, 0]) for k in range(6)])
    normals = normals.repeat(6, 1)
    whole = smoothed_normals(long, normals, 2.0)
    monkeypatch.setattr(smoothing, "_LARGEST_GRID", 90_000)
    exact = exactly_smoothed_normals(long, normals, 2.0)
    halves = smoothed_normals(long, normals, 2.0)
    angle = [torch.rad2deg(((a * exact).sum(dim=1)).clamp(-1, 1).acos()) for a in (whole, halves)]
    assert not torch.equal(whole, halves)
    assert angle[1].mean() < 1.5 * angle[0].mean() + 0.01
