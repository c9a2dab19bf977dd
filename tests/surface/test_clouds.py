"""Facts about the router's clouds: symmetries, windows, residues, chains, and many at once."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from undula.data.bundled import villin
from undula.data.prepare import surface_of
from undula.errors import InputError, UsageError
from undula.geometry.distances import quasi_geodesic
from undula.geometry.neighbours import search_tree
from undula.geometry.smoothing import smoothed_normals
from undula.io.structures import load_structure
from undula.surface import clouds
from undula.surface.clouds import (
    AMINO_ACIDS,
    OTHER_RESIDUE,
    CloudConfig,
    RouterCloud,
    collated,
    part_of,
    router_cloud,
)
from undula.types import Structure

CONFIG = CloudConfig()
COUNTED = CloudConfig(spacing=None, points=256)


@pytest.fixture(scope="module")
def protein() -> Structure:
    return load_structure(villin()[0])


@pytest.fixture(scope="module")
def cloud(protein: Structure) -> RouterCloud:
    return router_cloud(protein, CONFIG)


@pytest.fixture(scope="module")
def peptide(protein: Structure) -> Structure:
    """Return the first six residues."""
    return protein.select(protein.residue_index < 6)


def atoms(
    positions: list[list[float]],
    names: list[str],
    residues: list[str],
    index: list[int],
    chains: list[str] | None = None,
) -> Structure:
    count = len(positions)
    return Structure(
        name="made up",
        positions=torch.tensor(positions, dtype=torch.float64),
        elements=np.array([name[0] for name in names]),
        atom_names=np.array(names),
        residue_names=np.array(residues),
        residue_numbers=np.array(index),
        insertion_codes=np.array([""] * count),
        chain_ids=np.array(chains or ["A"] * count),
        residue_index=np.array(index),
        file_index=np.arange(count),
        file_atoms=count,
    )


def moved(structure: Structure, turn: torch.Tensor, shift: list[float]) -> Structure:
    positions = structure.positions @ turn.T + torch.tensor(shift, dtype=torch.float64)
    return dataclasses.replace(structure, positions=positions)


def orthogonal(seed: int, determinant: int) -> torch.Tensor:
    chance = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=chance, dtype=torch.float64))[0]
    return turn * (turn.det().sign() * determinant)


def assert_same(first: RouterCloud, second: RouterCloud, turn: torch.Tensor | None = None) -> None:
    turn = torch.eye(3, dtype=torch.float64) if turn is None else turn
    for field in dataclasses.fields(RouterCloud):
        one, other = getattr(first, field.name), getattr(second, field.name)
        if field.name in ("points", "normals", "smoothed"):
            other = other @ turn.T
        if isinstance(one, torch.Tensor) and one.is_floating_point():
            torch.testing.assert_close(one, other, rtol=0, atol=1e-8)
        else:
            assert torch.equal(torch.as_tensor(one), torch.as_tensor(other)), field.name


@pytest.mark.parametrize("config", [CONFIG, COUNTED], ids=["spacing", "points"])
@pytest.mark.parametrize("determinant", [1, -1])
def test_turns_shifts_and_mirrors_with_the_molecule(protein, config, determinant):
    still = router_cloud(protein, config)
    for seed in range(3):
        turn = orthogonal(seed, determinant)
        assert_same(router_cloud(moved(protein, turn, [12, -70, 5]), config), still, turn)


def test_does_not_depend_on_the_order_of_the_atoms(protein, cloud):
    order = np.lexsort((-np.arange(len(protein)), protein.residue_index))
    assert_same(router_cloud(protein.select(order), CONFIG), cloud)


def test_a_symmetric_molecule_gets_points_near_the_turned_ones(protein):
    turn = orthogonal(5, 1)
    half_turn = torch.diag(torch.tensor([-1.0, -1.0, 1.0])).double()
    shifted = protein.positions - protein.positions.mean(dim=0) + torch.tensor([11.0, 7.0, 0.0])
    both = torch.cat([shifted, shifted @ half_turn])
    pair = dataclasses.replace(
        protein.select(np.tile(np.arange(len(protein)), 2)),
        positions=both,
        residue_index=np.concatenate([protein.residue_index, protein.residue_index + 36]),
    )
    still, turned = router_cloud(pair, CONFIG), router_cloud(moved(pair, turn, [0, 0, 0]), CONFIG)
    distance, _ = search_tree(np.asarray(still.points @ turn.T)).query(turned.points)
    assert distance.mean() < 0.5 * 2.0
    assert distance.max() < 1.2 * 2.0


def test_points_lie_on_the_surface_around_the_centroid_with_its_normals(protein, cloud):
    points = cloud.points + protein.positions.mean(dim=0)
    distance, gradient = surface_of(protein).signed_distance_and_gradient(points)
    torch.testing.assert_close(distance, torch.zeros_like(distance), rtol=0, atol=1e-8)
    agree = (gradient * cloud.normals).sum(dim=1)
    assert (agree > 1 - 1e-6).double().mean() > 0.99


def test_the_spacing_is_about_that_between_points(protein):
    counts = [len(router_cloud(protein, CloudConfig(spacing=spacing))) for spacing in (1.5, 3.0)]
    assert counts[0] / counts[1] == pytest.approx(4, rel=0.1)


def test_a_fixed_number_of_points_covers_the_surface(protein):
    for count in (64, 256):
        config = dataclasses.replace(COUNTED, points=count)
        chosen = router_cloud(protein, config).points
        assert len(chosen) == count
        everywhere = router_cloud(protein, CloudConfig(spacing=1.0)).points
        gap, _ = search_tree(np.asarray(chosen)).query(everywhere)
        nearest, _ = search_tree(np.asarray(chosen)).query(chosen, k=[2])
        # Farthest points: nobody is farther from them than they are from each other.
        assert gap.max() < nearest.min() + 1.0


def test_more_points_than_a_coarse_cloud_has_come_from_a_finer_one(peptide):
    config = dataclasses.replace(COUNTED, points=1500)
    assert len(router_cloud(peptide, config)) == 1500


def test_the_smoothed_normals_are_those_of_the_points(cloud):
    expected = smoothed_normals(cloud.points, cloud.normals, CONFIG.smoothing)
    torch.testing.assert_close(cloud.smoothed, expected)


def test_neighbours_are_all_within_the_window_where_there_is_no_limit(protein):
    config = dataclasses.replace(CONFIG, neighbours=10_000, window=7.0)
    cloud = router_cloud(protein, config)
    count = len(cloud)
    everyone = torch.cartesian_prod(torch.arange(count), torch.arange(count)).T
    between = quasi_geodesic(cloud.points, cloud.smoothed, everyone)
    wanted = (between < 7.0) & (everyone[0] != everyone[1])
    assert torch.equal(cloud.pairs, everyone[:, wanted])
    torch.testing.assert_close(cloud.distances, between[wanted])
    assert torch.equal(cloud.pairs.flip(0).T.unique(dim=0).T, cloud.pairs)


def test_the_limit_keeps_the_closest_along_the_surface(protein, cloud):
    everyone = router_cloud(protein, dataclasses.replace(CONFIG, neighbours=10_000))
    kept = torch.bincount(cloud.pairs[0], minlength=len(cloud))
    there = torch.bincount(everyone.pairs[0], minlength=len(cloud))
    assert torch.equal(kept, there.clamp(max=CONFIG.neighbours))
    farthest = torch.zeros(len(cloud), dtype=torch.float64).scatter_reduce(
        0, cloud.pairs[0], cloud.distances, "amax"
    )
    closer = everyone.distances < farthest[everyone.pairs[0]] - 1e-9
    assert (torch.bincount(everyone.pairs[0][closer], minlength=len(cloud)) < kept).all()
    assert cloud.distances.max() < CONFIG.window


def test_every_point_knows_its_nearest_alpha_carbons(protein, cloud):
    centred = protein.positions - protein.positions.mean(dim=0)
    names = protein.residue_names[protein.alpha_carbons.numpy()].tolist()
    types = torch.tensor([AMINO_ACIDS.index(name) for name in names])
    distance = torch.cdist(cloud.points, centred[protein.alpha_carbons])
    nearest, index = distance.topk(16, largest=False)
    torch.testing.assert_close(cloud.residue_distances, nearest)
    assert torch.equal(cloud.residue_types, types[index])
    assert not cloud.residue_chains.any()


def test_residues_that_are_missing_are_infinitely_far(peptide):
    cloud = router_cloud(peptide, CONFIG)
    assert torch.isfinite(cloud.residue_distances[:, :6]).all()
    assert torch.isinf(cloud.residue_distances[:, 6:]).all()
    assert (cloud.residue_types[:, 6:] == OTHER_RESIDUE).all()


def test_residues_are_named_as_files_name_them_and_counted_by_chain():
    names = ["HSE", "MSE", "SEP", "CA", "NALA"]
    structure = atoms(
        [[6.0 * i, 0.1 * i * i, 0.0] for i in range(5)],
        ["CA"] * 5,
        names,
        list(range(5)),
        ["B", "B", "A", "A", "C"],
    )
    cloud = router_cloud(structure, CONFIG)
    order = cloud.residue_distances[0, :5].argsort()
    last = int((cloud.residue_distances[:, 0] < 3).nonzero()[0])
    types = {AMINO_ACIDS.index("HIS"), AMINO_ACIDS.index("MET"), AMINO_ACIDS.index("ALA")}
    assert set(cloud.residue_types[last, :5].tolist()) == types | {OTHER_RESIDUE}
    near_first = int(cloud.points[:, 0].argmin())
    near_last = int(cloud.points[:, 0].argmax())
    assert torch.equal(order, torch.arange(5))
    assert cloud.residue_chains[near_first, :5].tolist() == [0, 0, 1, 1, 2]
    assert cloud.residue_chains[near_last, :5].tolist() == [2, 1, 1, 0, 0]


def test_a_residue_without_alpha_carbon_stands_at_its_first_atom():
    structure = atoms(
        [[0, 0, 0], [1.5, 0, 0], [9.0, 0, 0], [10.5, 0.5, 0]],
        ["N", "CA", "O1", "C2"],
        ["GLY", "GLY", "LIG", "LIG"],
        [0, 0, 1, 1],
    )
    cloud = router_cloud(structure, CONFIG)
    centred = structure.positions - structure.positions.mean(dim=0)
    expected = torch.cdist(cloud.points, centred[[1, 2]]).sort(dim=1).values
    torch.testing.assert_close(cloud.residue_distances[:, :2], expected)
    gly, other = AMINO_ACIDS.index("GLY"), OTHER_RESIDUE
    assert set(map(tuple, cloud.residue_types[:, :2].tolist())) == {(gly, other), (other, gly)}


@pytest.mark.parametrize("config", [CloudConfig(spacing=0.8), COUNTED], ids=["spacing", "points"])
def test_one_atom_is_a_sphere(config):
    structure = atoms([[3.0, 4.0, 5.0]], ["CA"], ["ALA"], [0])
    cloud = router_cloud(structure, config)
    radius = structure.vdw_radii[0]
    torch.testing.assert_close(cloud.points, radius * cloud.normals)
    torch.testing.assert_close(cloud.points.norm(dim=1), radius.expand(len(cloud)))
    assert (cloud.smoothed * cloud.normals).sum(dim=1).min() > 0.95
    torch.testing.assert_close(cloud.residue_distances[:, 0], radius.expand(len(cloud)))
    area = 4 * math.pi * float(radius) ** 2
    if config.spacing is not None:
        assert len(cloud) == pytest.approx(area / config.spacing**2, rel=0.3)


def test_several_proteins_in_one_cloud_are_each_as_alone(protein, peptide, cloud):
    small = router_cloud(peptide, CONFIG)
    together = collated([cloud, small, collated([small, cloud])])
    assert together.proteins == 4
    first = 0
    for number, alone in enumerate([cloud, small, small, cloud]):
        rows = together.owner == number
        among = rows[together.pairs[0]]
        torch.testing.assert_close(together.points[rows], alone.points)
        torch.testing.assert_close(together.residue_distances[rows], alone.residue_distances)
        assert torch.equal(together.residue_types[rows], alone.residue_types)
        assert torch.equal(together.pairs[:, among] - first, alone.pairs)
        assert torch.equal(together.distances[among], alone.distances)
        first += len(alone)
    assert_same(collated([cloud]), cloud)


def test_clouds_that_do_not_fit_together_are_refused(protein, cloud):
    other = router_cloud(protein, dataclasses.replace(CONFIG, residues=8))
    with pytest.raises(InputError, match=r"equally many residues, found \[8, 16\]"):
        collated([cloud, other])
    with pytest.raises(InputError, match="no clouds"):
        collated([])


def test_goes_to_a_precision_with_its_lengths_only(cloud):
    single = cloud.to(dtype=torch.float32, device="cpu")
    assert single.points.dtype == single.distances.dtype == torch.float32
    assert single.pairs.dtype == single.residue_types.dtype == torch.long
    torch.testing.assert_close(single.points.double(), cloud.points, rtol=0, atol=1e-5)
    assert cloud.to(device="cpu").points.dtype == torch.float64


def test_has_the_precision_of_the_positions(protein, cloud):
    single = dataclasses.replace(protein, positions=protein.positions.float())
    found = router_cloud(single, CONFIG)
    assert found.points.dtype == torch.float32
    torch.testing.assert_close(found.points.double(), cloud.points, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"points": torch.zeros(1, 3)}, "shape"),
        ({"proteins": 2}, "belong to 2 proteins"),
        ({"proteins": 0}, "at least one protein"),
        ({"owner": torch.tensor([0, 1, 0])}, "in ascending"),
        ({"normals": torch.zeros(3, 3)}, "normals of a cloud should have length one"),
        ({"points": torch.full((3, 3), math.nan)}, "points of a cloud should be finite"),
        ({"residue_types": torch.full((3, 2), 21)}, "from 0 to 20"),
        ({"residue_distances": torch.full((3, 2), math.nan)}, "not be negative"),
        ({"pairs": torch.tensor([[0, 1], [1, 3]])}, "do not exist"),
        ({"pairs": torch.tensor([[0, 1], [1, 1]])}, "with itself"),
        ({"pairs": torch.tensor([[1, 0], [0, 1]])}, "sorted"),
        ({"proteins": 2, "owner": torch.tensor([0, 1, 1])}, "different proteins"),
        ({"distances": torch.full((2,), -1.0)}, "not be negative"),
    ],
)
def test_a_cloud_checks_itself(change, words):
    values = {
        "points": torch.eye(3),
        "normals": torch.eye(3),
        "smoothed": torch.eye(3),
        "owner": torch.zeros(3, dtype=torch.long),
        "proteins": 1,
        "residue_types": torch.zeros(3, 2, dtype=torch.long),
        "residue_distances": torch.ones(3, 2),
        "residue_chains": torch.zeros(3, 2, dtype=torch.long),
        "pairs": torch.tensor([[0, 1], [1, 0]]),
        "distances": torch.ones(2),
    }
    RouterCloud(**values)
    # Shapes are checked by beartype too, which reports first where tests run.
    with pytest.raises((InputError, TypeError), match=None if words == "shape" else words):
        RouterCloud(**values | change)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"points": 100}, "set the other to null"),
        ({"spacing": None}, "set the other to null"),
        ({"spacing": 0.0}, "spacing"),
        ({"spacing": None, "points": 0}, "points"),
        ({"smoothing": -1.0}, "smoothing"),
        ({"window": math.nan}, "window"),
        ({"neighbours": 0}, "neighbours"),
        ({"residues": 0}, "residues"),
        ({"probe": -0.1}, "probe"),
    ],
)
def test_refuses_rules_that_cannot_be_meant(changes, words):
    with pytest.raises(UsageError, match=words):
        CloudConfig(**changes)


def test_a_surface_without_points_is_refused_with_its_name():
    structure = atoms([[0.0, 0, 0], [19.0, 0.2, 0.3]], ["CA", "N"], ["ALA", "ALA"], [0, 0])
    with pytest.raises(InputError, match="made up is too small"):
        router_cloud(structure, CloudConfig(spacing=40.0))


def test_the_cloud_of_a_large_protein_is_made_part_by_part(protein, cloud, monkeypatch):
    monkeypatch.setattr(clouds, "AT_ONCE", 60)
    parts = router_cloud(protein, CONFIG)
    for field in dataclasses.fields(cloud):
        one, other = getattr(cloud, field.name), getattr(parts, field.name)
        assert one == other if field.name == "proteins" else torch.equal(one, other)


def test_a_part_has_the_neighbours_of_its_points_and_theirs(cloud):
    rows = torch.tensor([5, 6, 200])
    part, place = part_of(cloud, rows, 2)
    assert torch.equal(part.points[place], cloud.points[rows])
    for row, at in zip(rows.tolist(), place.tolist(), strict=True):
        near = cloud.points[cloud.pairs[1][cloud.pairs[0] == row]]
        assert torch.equal(part.points[part.pairs[1][part.pairs[0] == at]], near)
