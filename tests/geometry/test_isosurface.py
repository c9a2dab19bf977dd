import itertools
import math

import pytest
import torch

from undula.errors import InputError
from undula.geometry.isosurface import extract, lattice_values
from undula.geometry.lattice import Lattice
from undula.nn.grid import GridConfig, GridField
from undula.nn.implicit import ImplicitConfig, ImplicitNetwork


def cube(half, nodes, dtype=torch.float32):
    return Lattice(
        origin=torch.full((3,), -half, dtype=dtype),
        spacing=2 * half / (nodes - 1),
        shape=(nodes, nodes, nodes),
    )


def sphere(points):
    return points.norm(dim=1) - 10


def torus(points):
    ring = points[:, :2].norm(dim=1) - 8
    return torch.stack([ring, points[:, 2]]).norm(dim=0) - 2.5


def two_spheres(points):
    shift = torch.tensor([5.5, 1.0, 0.3]).to(points)
    apart = torch.stack([(points - shift).norm(dim=1), (points + shift).norm(dim=1)])
    return apart.amin(dim=0) - 4


def thin_plate(points):
    outside = points.abs() - torch.tensor([9.0, 9.0, 0.15]).to(points)
    return outside.clamp(min=0).norm(dim=1) + outside.amax(dim=1).clamp(max=0)


def hollow(points):
    return (points.norm(dim=1) - 8).abs() - 1.5


def uneven(points):
    """A distance disturbed by waves: its slope varies between about 0.75 and 1.25."""
    return sphere(points) + 0.25 * torch.sin(points).mean(dim=1) * math.sqrt(3)


FIELDS = [sphere, torus, two_spheres, thin_plate, hollow, uneven]


def overlap(a, b):
    return float((a & b).sum() / (a | b).sum())


def is_watertight(mesh):
    """Every edge of a face is run through once in each direction."""
    edges = torch.cat([mesh.faces[:, [0, 1]], mesh.faces[:, [1, 2]], mesh.faces[:, [2, 0]]])
    forth = edges[:, 0] * len(mesh.vertices) + edges[:, 1]
    back = edges[:, 1] * len(mesh.vertices) + edges[:, 0]
    unique = forth.unique()
    return len(unique) == len(forth) and torch.equal(unique, back.unique())


@pytest.mark.parametrize("field", FIELDS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("nodes", [50, 97])
def test_gives_the_mesh_and_the_inside_of_the_dense_lattice(field, nodes):
    lattice = cube(11.7, nodes)
    fast, dense = extract(field, lattice), extract(field, lattice, lipschitz=math.inf)
    assert torch.equal(fast.inside, dense.inside)
    assert torch.equal(fast.mesh.faces, dense.mesh.faces)
    assert torch.equal(fast.mesh.vertices, dense.mesh.vertices)
    assert is_watertight(fast.mesh)
    assert not fast.touches_border
    exact = field(lattice.points()).reshape(lattice.shape)
    torch.testing.assert_close(dense.values, exact)


@pytest.mark.parametrize(
    "network",
    [
        GridField(GridConfig(resolutions=(8, 16)), torch.Generator().manual_seed(0)),
        ImplicitNetwork(
            ImplicitConfig(depth=3, width=64, skip_at=1, beta=30.0),
            torch.Generator().manual_seed(0),
        ),
    ],
    ids=["splines on grids", "network"],
)
def test_agrees_with_the_dense_lattice_on_learned_fields_of_both_kinds(network):
    draw, nothing, half = torch.Generator().manual_seed(1), torch.zeros(0), 12.0
    optimiser = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(100):
        points = 2 * torch.rand(1024, 3, generator=draw) - 1
        loss = (network(points, nothing) - two_spheres(half * points) / half).abs().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    def field(points):
        return half * network(points / half, nothing)

    lattice = cube(half, 65)
    quick, dense = (extract(field, lattice, lipschitz=bound) for bound in (1.3, math.inf))
    assert overlap(quick.inside, dense.inside) >= 0.9999
    assert 0.01 < dense.inside.float().mean() < 0.2
    assert quick.evaluations < dense.evaluations / 3


@pytest.mark.parametrize("seed", range(5))
def test_finds_every_node_inside_a_wall_thinner_than_the_spacing(seed):
    chance = torch.Generator().manual_seed(seed)
    across = torch.nn.functional.normalize(torch.randn(3, generator=chance), dim=0)

    def wall(points):
        return (points @ across - 0.3).abs() - 0.05

    lattice = cube(8.0, 90)
    found = lattice_values(wall, lattice, lipschitz=1.0)
    exact = wall(lattice.points()).reshape(lattice.shape)
    assert torch.equal(found.inside, exact < 0)
    assert found.inside.any()
    assert found.evaluations < lattice.nodes / 3


def test_asks_for_fewer_than_a_sixth_of_the_dense_points():
    asked = []

    def counted(points):
        asked.append(len(points))
        return sphere(points)

    found = extract(counted, cube(11.0, 128), chunk=5000)
    assert sum(asked) == found.evaluations < 128**3 / 6
    assert max(asked) <= 5000


def test_another_level_of_a_sphere_is_a_sphere_of_another_radius():
    lattice = cube(14.0, 60, torch.float64)
    for level in (-6.0, 1.5, 3.0):
        mesh = extract(sphere, lattice, level=level).mesh
        radius = mesh.vertices.norm(dim=1)
        torch.testing.assert_close(radius, torch.full_like(radius, 10 + level), atol=0.02, rtol=0)


def test_faces_look_towards_growing_values():
    mesh = extract(sphere, cube(12.0, 50)).mesh
    outward = (mesh.face_normals * mesh.vertices[mesh.faces].mean(dim=1)).sum(dim=1)
    assert (outward >= 0).all()
    assert mesh.volume > 0
    assert extract(lambda p: -sphere(p), cube(12.0, 50)).mesh.volume < 24**3


def test_volume_and_area_converge_at_second_order():
    meshes = [extract(sphere, cube(12.0, n, torch.float64)).mesh for n in (25, 49, 97)]
    volumes = [abs(mesh.volume / (4 / 3 * math.pi * 1000) - 1) for mesh in meshes]
    areas = [abs(mesh.area / (4 * math.pi * 100) - 1) for mesh in meshes]
    for errors in (volumes, areas):
        for coarse, fine in itertools.pairwise(errors):
            assert 1.8 < math.log2(coarse / fine) < 2.2


def test_a_torus_has_one_handle_and_two_spheres_two_pieces():
    for field, euler in ((torus, 0), (two_spheres, 4)):
        mesh = extract(field, cube(12.0, 60)).mesh
        assert len(mesh.vertices) - len(mesh.faces) // 2 == euler


@pytest.mark.parametrize("shape", [(2, 2, 2), (3, 40, 17), (64, 33, 2)])
def test_serves_lattices_of_any_shape(shape):
    lattice = Lattice(origin=torch.full((3,), -1.0), spacing=0.3, shape=shape)

    def ball(points):
        return points.norm(dim=1) - 0.8

    fast, dense = extract(ball, lattice), extract(ball, lattice, lipschitz=math.inf)
    assert fast.values.shape == shape
    assert torch.equal(fast.inside, dense.inside)
    assert torch.equal(fast.mesh.vertices, dense.mesh.vertices)


def test_a_level_that_is_not_there_is_empty():
    found = extract(sphere, cube(12.0, 40), level=-11.0)
    assert found.is_empty
    assert not found.touches_border
    assert found.mesh.vertices.shape == (0, 3)
    assert found.mesh.volume == found.mesh.area == 0.0


def test_a_surface_beyond_the_border_is_closed_on_it():
    found = extract(sphere, cube(5.0, 30, torch.float64))
    assert found.touches_border
    assert is_watertight(found.mesh)
    assert found.mesh.volume == pytest.approx(1000)
    assert found.mesh.area == pytest.approx(600, rel=1e-4)
    half = Lattice(
        origin=torch.tensor([0.0, -12.0, -12.0]).double(), spacing=0.25, shape=(49, 97, 97)
    )
    cut = extract(sphere, half)
    assert cut.touches_border
    assert is_watertight(cut.mesh)
    assert cut.mesh.volume == pytest.approx(2 / 3 * math.pi * 1000, rel=2e-3)


def test_nodes_exactly_on_the_level_lie_outside_and_leave_no_hole():
    lattice = cube(5.0, 11, torch.float64)

    def box(points):
        return points.abs().amax(dim=1) - 3

    found = extract(box, lattice)
    assert int(found.inside.sum()) == 5**3
    assert is_watertight(found.mesh)
    # No edge of the lattice meets the edges and corners of the cube: they are bevelled.
    bevelled = 4**3 + 6 * 4**2 + 12 * 4 / 2 + 8 / 6
    assert found.mesh.volume == pytest.approx(bevelled, rel=1e-5)


def test_follows_a_piece_that_is_steeper_than_promised():
    def steep(points):
        return 8 * sphere(points)

    lattice = cube(12.0, 64)
    fast, dense = extract(steep, lattice), extract(steep, lattice, lipschitz=math.inf)
    assert torch.equal(fast.mesh.vertices, dense.mesh.vertices)
    assert torch.equal(fast.inside, dense.inside)


def test_nodes_that_were_not_evaluated_are_close_to_the_field():
    lattice = cube(12.0, 97)
    found = lattice_values(sphere, lattice)
    error = (found.values.reshape(-1) - sphere(lattice.points())).abs()
    assert float(error.mean()) < 0.1
    assert found.evaluations < lattice.nodes / 3


def test_moves_with_the_lattice_and_the_field():
    shift = torch.tensor([31.0, -8.0, 77.0], dtype=torch.float64)
    here = cube(12.0, 40, torch.float64)
    there = Lattice(origin=here.origin + shift, spacing=here.spacing, shape=here.shape)
    a = extract(torus, here).mesh
    b = extract(lambda points: torus(points - shift), there).mesh
    torch.testing.assert_close(a.vertices + shift, b.vertices, atol=1e-6, rtol=0)


def test_a_field_that_is_not_finite_is_refused():
    with pytest.raises(InputError, match="not finite"):
        extract(lambda points: points[:, 0] / 0, cube(12.0, 20))


def test_calls_the_field_without_gradients_and_in_the_precision_of_the_lattice():
    def field(points):
        assert not torch.is_grad_enabled()
        assert points.dtype == torch.float64
        return sphere(points)

    assert extract(field, cube(12.0, 20, torch.float64)).mesh.vertices.dtype == torch.float64
