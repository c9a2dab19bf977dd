import math

import pytest
import torch

from undula.errors import InputError
from undula.geometry.comparison import (
    Solid,
    chamfer,
    compare_surfaces,
    f_score,
    hausdorff_95,
    intersection_over_union,
    normal_consistency,
    normal_consistency_both,
    sample_mesh,
    skill,
    wasserstein,
)
from undula.geometry.frames import random_rotation
from undula.geometry.isosurface import extract
from undula.geometry.lattice import Lattice
from undula.types import Mesh

SQUARE = Mesh(
    vertices=torch.tensor([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 3, 0]]).double(),
    faces=torch.tensor([[0, 1, 2], [0, 2, 4]]),
)
EMPTY = Mesh(vertices=torch.zeros(0, 3), faces=torch.zeros((0, 3), dtype=torch.long))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def unit_vectors(count, seed=0):
    noise = torch.randn(count, 3, generator=generator(seed)).double()
    return torch.nn.functional.normalize(noise, dim=1)


def box(size, shift=0):
    inside = torch.zeros(40, 40, 40, dtype=torch.bool)
    inside[10 + shift : 10 + shift + size, 10:20, 10:20] = True
    return inside


def ellipsoid(axes, shift=(0.0, 0.0, 0.0), turn=None, spacing=0.5):
    """A solid whose field is a signed distance to first order."""
    axes, shift = torch.tensor(axes).double(), torch.tensor(shift).double()
    turn = torch.eye(3).double() if turn is None else turn

    def field(points):
        local = (points - shift) @ turn
        scaled = (local / axes).norm(dim=1)
        slope = (local / axes**2).norm(dim=1).clamp(min=1e-9)
        return scaled * (scaled - 1) / slope

    reach = axes.max() + 1
    lattice = Lattice.covering(shift - reach, shift + reach, spacing)
    mesh = extract(field, lattice, lipschitz=math.inf).mesh
    return Solid(mesh=mesh, field=field, lipschitz=math.inf)


def ball(radius, shift=(0.0, 0.0, 0.0), spacing=0.5):
    centre = torch.tensor(shift).double()

    def field(points):
        return (points - centre).norm(dim=1) - radius

    lattice = Lattice.covering(centre - radius - 1, centre + radius + 1, spacing)
    return Solid(mesh=extract(field, lattice).mesh, field=field, lipschitz=1.0)


def scores(predicted, truth, *, scale=15.0, seed=0, samples=20_000, centre=(0.0, 0.0, 0.0)):
    return compare_surfaces(
        predicted,
        truth,
        centre=torch.tensor(centre).double(),
        scale=scale,
        generator=generator(seed),
        samples=samples,
    )


def test_iou_of_two_shifted_boxes():
    assert intersection_over_union(box(10), box(10, shift=5)) == pytest.approx(5 / 15)
    assert intersection_over_union(box(10), box(5)) == pytest.approx(5 / 10)
    assert intersection_over_union(box(10), box(10, shift=10)) == 0


def test_iou_is_symmetric_and_one_for_equal_solids():
    a, b = box(10), box(12, shift=3)
    assert intersection_over_union(a, b) == intersection_over_union(b, a)
    assert intersection_over_union(a, a) == 1


def test_iou_of_nothing_is_one_with_nothing_and_zero_with_something():
    nothing = torch.zeros(40, 40, 40, dtype=torch.bool)
    assert intersection_over_union(nothing, nothing) == 1
    assert intersection_over_union(nothing, box(3)) == 0


def test_mesh_samples_are_uniform_by_area_and_lie_on_their_face():
    cloud = sample_mesh(SQUARE, 20_000, generator())
    x, y, z = cloud.points.T
    assert (z == 0).all()
    upper = y > x
    # The first face has the area 1/2, the second 3/2.
    assert float(upper.double().mean()) == pytest.approx(0.75, abs=0.01)
    centroids = torch.tensor([[2 / 3, 1 / 3, 0], [1 / 3, 4 / 3, 0]]).double()
    for centroid, chosen in zip(centroids, (~upper, upper), strict=True):
        torch.testing.assert_close(cloud.points[chosen].mean(dim=0), centroid, atol=0.02, rtol=0)
    torch.testing.assert_close(cloud.normals, torch.tensor([0.0, 0, 1]).double().expand(20_000, 3))


def test_the_same_seed_samples_the_same_points():
    first, second = (sample_mesh(SQUARE, 100, generator(4)) for _ in range(2))
    assert torch.equal(first.points, second.points)
    assert not torch.equal(first.points, sample_mesh(SQUARE, 100, generator(5)).points)


def test_a_mesh_without_area_cannot_be_sampled():
    flat = Mesh(vertices=torch.zeros(3, 3), faces=torch.tensor([[0, 1, 2]]))
    for mesh in (EMPTY, flat):
        with pytest.raises(InputError, match="without area"):
            sample_mesh(mesh, 10, generator())


def test_chamfer_of_two_points_in_all_definitions():
    a, b = torch.zeros(1, 3), torch.tensor([[0.0, 3.0, 4.0]])
    assert chamfer(a, b, squared=False, reduce="half-sum") == 5
    assert chamfer(a, b, squared=False, reduce="sum") == 10
    assert chamfer(a, b, squared=True, reduce="sum") == 50
    assert chamfer(a, b, squared=True, reduce="half-sum") == 25


def test_chamfer_of_concentric_spheres_is_the_difference_of_their_radii():
    directions = unit_vectors(2000)
    inner, outer = 3 * directions, 5 * directions
    assert chamfer(inner, outer, squared=False, reduce="half-sum") == pytest.approx(2)
    assert chamfer(inner, outer, squared=True, reduce="sum") == pytest.approx(8)
    assert hausdorff_95(inner, outer) == pytest.approx(2)


def test_chamfer_and_hausdorff_are_symmetric_zero_for_equals_and_turn_with_the_clouds():
    a, b = unit_vectors(200, 1) * 4, unit_vectors(150, 2) * 5
    turn = random_rotation(generator(3))
    for measure in (
        lambda a, b: chamfer(a, b, squared=False, reduce="half-sum"),
        lambda a, b: chamfer(a, b, squared=True, reduce="sum"),
        hausdorff_95,
        f_score,
    ):
        assert measure(a, b) == pytest.approx(measure(b, a))
        assert measure(a @ turn.T + 7, b @ turn.T + 7) == pytest.approx(measure(a, b))
    assert chamfer(a, a, squared=True, reduce="sum") == hausdorff_95(a, a) == 0
    assert f_score(a, a) == 1


def test_hausdorff_95_does_not_see_one_point_in_a_hundred():
    cloud = unit_vectors(100)
    outlier = torch.cat([cloud, torch.tensor([[50.0, 0, 0]]).double()])
    assert hausdorff_95(cloud, outlier) == 0
    many = torch.cat([cloud, torch.tensor([[50.0, 0, 0]]).double().expand(10, 3)])
    assert hausdorff_95(cloud, many) > 40


def test_f_score_is_the_harmonic_mean_of_both_shares_within_reach():
    true = torch.tensor([[0.0, 0, 0], [10, 0, 0]])
    predicted = torch.tensor([[0.5, 0, 0], [0, 0.9, 0], [0, 0, 5.0]])
    precision, recall = 2 / 3, 1 / 2
    expected = 2 * precision * recall / (precision + recall)
    assert f_score(predicted, true) == pytest.approx(expected)
    assert f_score(predicted, true, threshold=0.1) == 0
    assert f_score(predicted, true, threshold=20.0) == 1


def test_normals_of_concentric_spheres_and_shifted_planes_agree():
    directions = unit_vectors(500)
    for signed in (False, True):
        same = normal_consistency(
            3 * directions, directions, 5 * directions, directions, signed=signed
        )
        assert same == pytest.approx(1)
    plane = torch.rand(100, 3, generator=generator()) * torch.tensor([1.0, 1.0, 0.0])
    up = torch.tensor([0.0, 0.0, 1.0]).expand(100, 3)
    below = plane - 2 * up
    assert normal_consistency(plane, up, below, up, signed=True) == 1
    assert normal_consistency(plane, up, below, -up, signed=True) == -1
    assert normal_consistency(plane, up, below, -up, signed=False) == 1


def test_unrelated_normals_give_zero_signed_and_one_half_absolute():
    points = unit_vectors(20_000, 1)
    a, b = unit_vectors(20_000, 2), unit_vectors(20_000, 3)
    assert abs(normal_consistency(points, a, points, b, signed=True)) < 0.02
    assert normal_consistency(points, a, points, b, signed=False) == pytest.approx(0.5, abs=0.02)


def test_one_way_looks_from_the_truth_and_both_ways_average():
    true, up = torch.zeros(1, 3), torch.tensor([[0.0, 0, 1]])
    predicted = torch.tensor([[0.0, 0, 0.1], [5, 0, 0]])
    normals = torch.tensor([[0.0, 0, 1], [1, 0, 0]])
    assert normal_consistency(true, up, predicted, normals, signed=True) == 1
    assert normal_consistency(predicted, normals, true, up, signed=True) == 0.5
    assert normal_consistency_both(true, up, predicted, normals, signed=True) == 0.75
    assert normal_consistency_both(predicted, normals, true, up, signed=True) == 0.75


def test_an_empty_cloud_cannot_be_compared():
    nothing, some = torch.zeros(0, 3), torch.zeros(4, 3)
    for a, b in ((nothing, some), (some, nothing)):
        with pytest.raises(InputError, match="empty cloud"):
            chamfer(a, b, squared=True, reduce="sum")


def test_a_surface_compared_with_itself_is_perfect():
    solid = ball(8.0)
    found = scores(solid, solid, scale=10.0)
    perfect = ("iou", "iou_dsr", "f_score_1A", "normal_consistency_dsr", "normal_consistency_paper")
    for name in perfect:
        assert found[name] == pytest.approx(1), name
    assert found["normal_consistency_both"] > 0.99
    for name in ("volume_error", "area_error", "empty"):
        assert found[name] == 0, name
    # Two draws of points from one surface are about half a point distance apart.
    assert found["chamfer_angstrom"] < 0.5 * math.sqrt(4 * math.pi * 64 / 20_000) * 1.1


def test_concentric_balls_have_the_scores_of_the_closed_form():
    found = scores(ball(9.0, spacing=0.3), ball(10.0, spacing=0.3), scale=12.5)
    assert found["iou"] == pytest.approx(0.9**3, abs=0.005)
    assert found["iou_dsr"] == pytest.approx(0.9**3, abs=0.005)
    assert found["chamfer_angstrom"] == pytest.approx(1, rel=0.01)
    assert found["chamfer_paper"] == pytest.approx(1 / 12.5, rel=0.01)
    assert found["chamfer_dsr"] == pytest.approx(2 / 12.5**2, rel=0.02)
    assert found["hausdorff_95_angstrom"] == pytest.approx(1, rel=0.03)
    assert found["volume_error"] == pytest.approx(1 - 0.9**3, abs=0.002)
    assert found["area_error"] == pytest.approx(1 - 0.9**2, abs=0.002)
    assert found["normal_consistency_paper"] > 0.999


def test_the_published_overlap_loses_what_lies_outside_the_cube():
    truth = ball(8.0)
    far = ball(8.0, shift=(30.0, 0.0, 0.0))
    both = Solid(
        mesh=Mesh(
            vertices=torch.cat([truth.mesh.vertices, far.mesh.vertices]),
            faces=torch.cat([truth.mesh.faces, far.mesh.faces + len(truth.mesh.vertices)]),
        ),
        field=lambda points: truth.field(points).minimum(far.field(points)),
    )
    found = scores(both, truth, scale=10.0)
    assert found["iou_dsr"] == 1
    assert found["iou"] == pytest.approx(0.5, abs=0.001)


def test_scores_in_angstrom_do_not_depend_on_the_scale():
    predicted, truth = ellipsoid((6.0, 7.0, 9.0)), ellipsoid((6.0, 8.0, 8.0))
    small, large = (scores(predicted, truth, scale=scale) for scale in (12.0, 24.0))
    for name in ("iou", "chamfer_angstrom", "hausdorff_95_angstrom", "f_score_1A", "volume_error"):
        assert small[name] == large[name]
    assert small["chamfer_dsr"] == pytest.approx(4 * large["chamfer_dsr"])
    assert small["chamfer_paper"] == pytest.approx(2 * large["chamfer_paper"])


def test_scores_do_not_change_when_both_solids_are_turned_and_shifted():
    turn, shift = random_rotation(generator(7)), (4.0, -60.0, 11.0)
    straight = scores(ellipsoid((6.0, 7.0, 9.0)), ellipsoid((6.0, 8.0, 8.0)))
    turned = scores(
        ellipsoid((6.0, 7.0, 9.0), shift, turn),
        ellipsoid((6.0, 8.0, 8.0), shift, turn),
        centre=shift,
    )
    for name, value in straight.items():
        assert turned[name] == pytest.approx(value, abs=0.01, rel=0.02), name


def test_the_same_seed_gives_the_same_scores():
    predicted, truth = ball(7.0), ball(8.0, shift=(1.0, 0.0, 0.0))
    assert scores(predicted, truth, seed=3) == scores(predicted, truth, seed=3)


def test_prediction_and_truth_may_differ_in_precision():
    truth = ball(8.0)
    single = Solid(
        mesh=Mesh(vertices=truth.mesh.vertices.float(), faces=truth.mesh.faces),
        field=truth.field,
    )
    assert scores(single, truth)["iou"] > 0.9999


def test_an_empty_prediction_fails_by_the_stated_rule():
    truth = ball(8.0)
    found = scores(Solid(mesh=EMPTY, field=lambda points: points[:, 0] * 0 + 1), truth, scale=10.0)
    extent = truth.mesh.vertices.amax(dim=0) - truth.mesh.vertices.amin(dim=0)
    diagonal = float(extent.norm())
    assert found["empty"] == found["volume_error"] == found["area_error"] == 1
    assert found["chamfer_angstrom"] == found["hausdorff_95_angstrom"] == pytest.approx(diagonal)
    assert found["chamfer_paper"] == pytest.approx(diagonal / 10)
    assert found["chamfer_dsr"] == pytest.approx(2 * (diagonal / 10) ** 2)
    zero = {name for name, value in found.items() if value == 0}
    assert zero == {
        "iou",
        "iou_dsr",
        "f_score_1A",
        "normal_consistency_dsr",
        "normal_consistency_paper",
        "normal_consistency_both",
    }
    assert found.keys() == scores(truth, truth).keys()
    assert all(math.isfinite(value) for value in found.values())


def test_an_empty_truth_is_refused():
    with pytest.raises(InputError, match="no true surface"):
        scores(ball(8.0), Solid(mesh=EMPTY, field=lambda points: points[:, 0]))


def test_skill_is_one_at_best_zero_at_the_reference_and_negative_beyond():
    assert skill(0.0, 4.0) == 1
    assert skill(4.0, 4.0) == 0
    assert skill(6.0, 4.0) == -0.5
    assert skill(0.85, 0.7, perfect=1.0) == pytest.approx(0.5)
    assert skill(0.6, 0.7, perfect=1.0) < 0
    with pytest.raises(InputError, match="no skill"):
        skill(0.3, 1.0, perfect=1.0)


def test_shifted_samples_are_their_shift_apart_and_equal_ones_not_at_all():
    values = torch.randn(40, generator=generator(), dtype=torch.float64).tolist()
    assert wasserstein(values, values) == 0
    assert wasserstein(values, [value + 2.5 for value in values]) == pytest.approx(2.5)
    assert wasserstein(values, values[::-1] * 3) == pytest.approx(0, abs=1e-12)


def test_beside_a_single_number_every_number_has_to_come_there():
    assert wasserstein([1.0, 2.0, 6.0], [2.0]) == pytest.approx(5 / 3)
    assert wasserstein([2.0], [1.0, 2.0, 6.0]) == pytest.approx(5 / 3)


def test_no_numbers_are_no_distribution():
    with pytest.raises(InputError, match="of no numbers"):
        wasserstein([], [1.0])
