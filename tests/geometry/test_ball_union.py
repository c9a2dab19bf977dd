"""Facts about the distance to a union of balls: sampling, limits, degenerate arrangements."""

from __future__ import annotations

import math

import numpy as np
import pytest

from undula.errors import InputError
from undula.geometry import ball_union as module
from undula.geometry.ball_union import (
    ball_union,
    distances,
    lattice_crossings,
    lattice_distances,
)
from undula.geometry.neighbours import search_tree

SQUARE = np.array([[1.0, 1, 0], [1, -1, 0], [-1, -1, 0], [-1, 1, 0]])
HEXAGON = np.array([[math.cos(k * math.pi / 3), math.sin(k * math.pi / 3), 0] for k in range(6)])
CUBE = np.array([[x, y, z] for x in (-1.0, 1) for y in (-1.0, 1) for z in (-1.0, 1)])


def directions(count: int) -> np.ndarray:
    index = np.arange(count) + 0.5
    polar, azimuth = np.arccos(1 - 2 * index / count), math.pi * (1 + 5**0.5) * index
    return np.stack(
        [np.cos(azimuth) * np.sin(polar), np.sin(azimuth) * np.sin(polar), np.cos(polar)], axis=1
    )


def sampled_boundary(centres: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """Sample the boundary by brute force: dense spheres and circles, less what is covered."""
    samples = [c + r * directions(8000) for c, r in zip(centres, radii, strict=True)]
    turn = np.linspace(0, 2 * math.pi, 1000, endpoint=False)[:, None]
    for i in range(len(radii)):
        for j in range(i):
            apart = np.linalg.norm(centres[j] - centres[i])
            if apart == 0:
                continue
            axis = (centres[j] - centres[i]) / apart
            along = (apart**2 + radii[i] ** 2 - radii[j] ** 2) / (2 * apart)
            squared = radii[i] ** 2 - along**2
            if squared > 0:
                e, f = np.linalg.svd(axis[None])[2][1:]
                circle = math.sqrt(squared) * (np.cos(turn) * e + np.sin(turn) * f)
                samples.append(centres[i] + along * axis + circle)
    boundary = np.concatenate(samples)
    for centre, radius in zip(centres, radii, strict=True):
        boundary = boundary[np.linalg.norm(boundary - centre, axis=1) >= radius - 1e-9]
    return boundary


def random_balls(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    chance = np.random.default_rng(seed)
    count = int(chance.integers(1, 12))
    centres = chance.normal(size=(count, 3)) * chance.uniform(0.3, 3)
    radii = chance.uniform(1, 2, count) + 1.4 * (seed % 2)
    points = centres[chance.integers(0, count, 300)] + chance.normal(size=(300, 3)) * 2
    return centres, radii, points


@pytest.mark.parametrize("seed", range(20))
def test_equals_the_distance_to_a_dense_sample_of_the_boundary(seed):
    centres, radii, points = random_balls(seed)
    found, _ = distances(ball_union(centres, radii), 0.0, points)
    sampled, _ = search_tree(sampled_boundary(centres, radii)).query(points)
    outside = (np.linalg.norm(points[:, None] - centres, axis=2) > radii).all(axis=1)
    assert ((found > 0) == outside).all()
    assert (np.abs(found) <= sampled + 1e-8).all()
    assert (np.abs(found) >= sampled - 0.08).all()
    far = sampled > 0.5  # there the samples' gaps are across the line of sight, but at vertices
    assert (np.abs(found) >= sampled - 0.025)[far].all()
    assert (sampled - np.abs(found))[far].mean() < 0.002


@pytest.mark.parametrize("seed", range(6))
def test_gradient_has_length_one_and_equals_finite_differences(seed):
    centres, radii, points = random_balls(seed)
    union = ball_union(centres, radii)
    _, gradients = distances(union, 0.0, points)
    np.testing.assert_allclose(np.linalg.norm(gradients, axis=1), 1, atol=1e-12)
    step = 1e-6 * np.eye(3)
    differences = [
        (distances(union, 0.0, points + s)[0] - distances(union, 0.0, points - s)[0]) / 2e-6
        for s in step
    ]
    wrong = np.linalg.norm(np.stack(differences, axis=1) - gradients, axis=1) > 1e-4
    assert wrong.mean() < 0.01  # the few within a hair's breadth of the medial axis


@pytest.mark.parametrize("seed", range(6))
def test_is_one_lipschitz(seed):
    centres, radii, points = random_balls(seed)
    values, _ = distances(ball_union(centres, radii), 0.0, points)
    apart = np.linalg.norm(points[:, None] - points, axis=2)
    assert (np.abs(values[:, None] - values) <= apart + 1e-8).all()


def test_measures_to_the_crease_of_two_balls():
    union = ball_union(np.array([[0.0, 0, 0], [2, 0, 0]]), np.array([2.0, 2.0]))
    crease = math.sqrt(3)
    points = np.array([[1.0, 0, 0], [1, 0.5, 0], [1, 0, -1], [1, crease, 0], [1.2, 1, 0]])
    expected = [-crease, 0.5 - crease, 1 - crease, 0, -math.hypot(0.2, crease - 1)]
    values, gradients = distances(union, 0.0, points)
    np.testing.assert_allclose(values, expected, atol=1e-12)
    np.testing.assert_allclose(gradients[1:3], [[0, 1, 0], [0, 0, -1]], atol=1e-12)


@pytest.mark.parametrize("centres", [SQUARE, HEXAGON, CUBE])
def test_keeps_the_vertex_where_many_spheres_meet(centres):
    radius = 1.2 * float(np.linalg.norm(centres[0]))
    radii = np.full(len(centres), radius)
    union = ball_union(centres, radii)
    axis = np.array([[0.0, 0, 0], [0, 0, 0.1], [0, 0, -0.3]])
    sampled, _ = search_tree(sampled_boundary(centres, radii)).query(axis)
    values, _ = distances(union, 0.0, axis)
    np.testing.assert_allclose(-values, sampled, atol=0.01)
    if len(centres) < 8:
        top = math.sqrt(radius**2 - float(np.linalg.norm(centres[0])) ** 2)
        np.testing.assert_allclose(-values, top - np.abs(axis[:, 2]), atol=1e-7)


def test_keeps_a_circle_that_three_spheres_share():
    # Collinear centres; all three spheres pass through the circle of radius 2 in the plane x=0.
    centres = np.array([[-1.0, 0, 0], [0.5, 0, 0], [2.0, 0, 0]])
    radii = np.sqrt(4 + centres[:, 0] ** 2)
    values, _ = distances(ball_union(centres, radii), 0.0, np.array([[0.0, 1.5, 0], [0, 0, 1.9]]))
    np.testing.assert_allclose(values, [-0.5, -0.1], atol=1e-7)


@pytest.mark.parametrize("centres", [SQUARE, HEXAGON, CUBE])
def test_is_the_limit_of_slightly_disturbed_arrangements(centres):
    chance = np.random.default_rng(0)
    radii = np.full(len(centres), 1.7)
    points = chance.normal(size=(500, 3)) * 1.5
    exact, _ = distances(ball_union(centres, radii), 0.0, points)
    disturbed = centres + 1e-6 * chance.normal(size=centres.shape)
    near, _ = distances(ball_union(disturbed, radii), 0.0, points)
    np.testing.assert_allclose(near, exact, atol=1e-4)


def test_ignores_balls_that_coincide_or_lie_inside_others():
    centres, radii, points = random_balls(3)
    alone, _ = distances(ball_union(centres, radii), 0.0, points)
    more = np.concatenate([centres, centres, centres + 0.05])
    sizes = np.concatenate([radii, radii, radii - 0.2])
    crowded, gradients = distances(ball_union(more, sizes), 0.0, points)
    np.testing.assert_allclose(crowded, alone, atol=1e-9)
    assert np.isfinite(gradients).all()


def test_balls_that_just_touch_are_two_spheres():
    union = ball_union(np.array([[0.0, 0, 0], [3, 0, 0]]), np.array([1.0, 2.0]))
    points = np.array([[1.0, 0, 0], [0.5, 0, 0], [1.5, 0, 0], [1, 1, 0]])
    values, _ = distances(union, 0.0, points)
    np.testing.assert_allclose(values, [0, -0.5, -0.5, math.sqrt(5) - 2], atol=1e-9)


def test_gives_numbers_at_centres_creases_and_vertices():
    for centres in (np.zeros((1, 3)), SQUARE, HEXAGON, CUBE, SQUARE[:2], SQUARE[[0, 0]]):
        union = ball_union(centres, np.full(len(centres), 1.7))
        starts = union.arcs[:, :3] + union.arcs[:, 9:10] * union.arcs[:, 6:9]
        points = np.concatenate([centres, np.zeros((1, 3)), union.arcs[:, :3], starts])
        values, gradients = distances(union, 0.0, points)
        assert np.isfinite(values).all()
        np.testing.assert_allclose(np.linalg.norm(gradients, axis=1), 1, atol=1e-9)


def test_lattice_equals_the_distances_at_its_nodes():
    centres, radii, _ = random_balls(7)
    union, origin, shape = ball_union(centres, radii), centres.min(axis=0) - 4.0, (21, 18, 35)
    nodes = origin + 0.45 * np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    expected = distances(union, 1.4, nodes.reshape(-1, 3))[0].reshape(shape)
    whole = lattice_distances(union, 1.4, origin, 0.45, shape, math.inf)
    np.testing.assert_allclose(whole, expected, atol=1e-12)
    band = lattice_distances(union, 1.4, origin, 0.45, shape, 0.7)
    np.testing.assert_allclose(band, expected.clip(-0.7, 0.7), atol=1e-12)


def test_crossings_lie_on_the_level_and_on_lattice_edges():
    centres, radii, _ = random_balls(7)
    union, origin, shape = ball_union(centres, radii), centres.min(axis=0) - 5.0, (30, 30, 40)
    values = lattice_distances(union, 1.4, origin, 0.5, shape, 0.5)
    points, gradients = lattice_crossings(union, 1.4, origin, 0.5, values)
    again, normals = distances(union, 1.4, points)
    assert len(points) > 100
    np.testing.assert_allclose(again, 0, atol=1e-8)
    place = (points - origin) / 0.5
    on_lattice = np.abs(place - place.round()) < 1e-9
    assert (on_lattice.sum(axis=1) >= 2).all()
    same = (normals * gradients).sum(axis=1) > 1 - 1e-6
    assert same.mean() > 0.99  # at cusps two normals are equally right


def test_knows_all_neighbours_nearest_first():
    chance = np.random.default_rng(0)
    centres = np.concatenate([5 * chance.normal(size=(200, 3)), [[3e3, 0, 0], [3e3, 2, 0]]])
    radii = chance.uniform(1, 2, len(centres))
    union = ball_union(centres, radii)
    apart = np.linalg.norm(union.centres[:, None] - union.centres, axis=2)
    for ball in range(len(union.radii)):
        row = union.neighbours[union.neighbours_from[ball] : union.neighbours_from[ball + 1]]
        touch = apart[ball] < union.radii + union.radii[ball]
        assert set(row) == set(np.flatnonzero(touch)) - {ball}
        assert (np.diff(apart[ball, row]) >= 0).all()


def test_a_ball_that_two_others_cover_together_has_no_patch():
    # Each of the two covers a little more than half of the middle one.
    union = ball_union(np.array([[-1.0, 0, 0], [0, 0, 0], [1, 0, 0]]), np.array([2.0, 1.6, 2]))
    assert sorted(union.radii[union.exposed]) == [2, 2]
    values, _ = distances(union, 0.0, np.array([[0.0, 0, 0], [0, 1.7, 0]]))
    crease = math.sqrt(3)
    np.testing.assert_allclose(values, [-crease, 1.7 - crease], atol=1e-12)


def test_refuses_atoms_too_crowded_to_be_in_angstrom(monkeypatch):
    monkeypatch.setattr(module, "MOST_OVERLAPS", 1000)
    centres = np.random.default_rng(0).normal(size=(50, 3)) * 0.5
    with pytest.raises(InputError, match="more than 1000 pairs"):
        ball_union(centres, np.full(50, 2.0))
