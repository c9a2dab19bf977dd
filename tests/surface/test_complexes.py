"""Several chains are one molecule with one surface, and each knows of the other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from tests.surface.mixtures import LOCAL, bound, stirred

from undula.data.bundled import villin
from undula.data.prepare import aligned, surface_of
from undula.data.pseudo_dynamics import PseudoDynamicsConfig, pseudo_trajectory
from undula.geometry.elastic_network import gaussian_network_fluctuations
from undula.geometry.neighbours import search_tree
from undula.io.structures import load_structure
from undula.surface.clouds import CloudConfig, router_cloud
from undula.surface.forecast import forecast
from undula.surface.geoan import GeoAN, GeoANConfig
from undula.types import Structure


def joined(*chains):
    """Return several structures as one, their residues numbered through."""
    residues = np.cumsum([0, *(chain.residues for chain in chains[:-1])])
    atoms = np.cumsum([0, *(len(chain) for chain in chains[:-1])])
    labels = ("elements", "atom_names", "residue_names", "residue_numbers", "insertion_codes")
    return Structure(
        name="complex",
        positions=torch.cat([chain.positions for chain in chains]),
        **{name: np.concatenate([getattr(c, name) for c in chains]) for name in labels},
        chain_ids=np.concatenate([chain.chain_ids for chain in chains]),
        residue_index=np.concatenate(
            [c.residue_index + n for c, n in zip(chains, residues, strict=True)]
        ),
        file_index=np.concatenate([c.file_index + n for c, n in zip(chains, atoms, strict=True)]),
        file_atoms=sum(len(chain) for chain in chains),
    )


@pytest.fixture(scope="module")
def chains():
    """Return villin cut in two: two chains that fit each other."""
    whole = load_structure(villin()[0])
    whole = replace(whole, positions=whole.positions.double())
    parts = whole.select(whole.residue_index < 22), whole.select(whole.residue_index >= 22)
    return tuple(
        replace(part, chain_ids=np.array([name] * len(part)))
        for name, part in zip("AB", parts, strict=True)
    )


@pytest.fixture(scope="module")
def face(chains):
    """Return which residues of the first chain have an atom within 5 Å of the second."""
    first, second = chains
    near = search_tree(second.positions.numpy()).query(first.positions.numpy())[0] < 5
    return np.unique(first.residue_index[near])


@pytest.fixture(scope="module")
def trained():
    return bound(stirred(LOCAL))


def share(sizes, face):
    """Return the mean of what is at the interface as a part of the mean of the rest."""
    others = np.setdiff1d(np.arange(len(sizes)), face)
    return float(sizes[face].mean() / sizes[others].mean())


def pieces(mesh):
    corners = mesh.faces.numpy()
    ends = np.concatenate([corners[:, :2], corners[:, 1:]]).T
    edges = coo_array((np.ones(ends.shape[1]), ends), shape=(len(mesh.vertices),) * 2)
    return len(np.unique(connected_components(edges, directed=False)[1][corners[:, 0]]))


def test_two_chains_that_touch_have_one_surface(chains, trained):
    first, second, both = (
        forecast(one, [100.0], trained).first_surface.mesh(0.7)
        for one in (*chains, joined(*chains))
    )
    assert pieces(first) == pieces(second) == pieces(both) == 1
    assert both.area < first.area + second.area - 200
    assert both.volume > first.volume + second.volume


def test_two_chains_far_apart_have_two_surfaces(chains):
    far = replace(chains[1], positions=chains[1].positions + 40.0)
    assert pieces(surface_of(joined(chains[0], far)).mesh(0.7)) == 2


def test_the_order_of_the_chains_does_not_matter(chains, trained):
    points = joined(*chains).positions[::3] + 1.5
    fields = [
        forecast(joined(*order), [100.0], trained).sdf(points, 100.0)
        for order in (chains, chains[::-1])
    ]
    first = surface_of(joined(*chains)).signed_distance(points)
    assert (fields[0] - first).abs().max() > 0.1
    torch.testing.assert_close(fields[1], fields[0], atol=2e-4, rtol=0)


def test_a_point_knows_whether_a_residue_is_of_its_own_chain(chains):
    cloud = router_cloud(joined(*chains), CloudConfig(spacing=2.0))
    assert set(cloud.residue_chains.unique().tolist()) == {0, 1}
    network = GeoAN(GeoANConfig(), torch.Generator().manual_seed(0)).double()
    alone = replace(cloud, residue_chains=torch.zeros_like(cloud.residue_chains))
    swapped = replace(cloud, residue_chains=1 - cloud.residue_chains)
    with torch.no_grad():
        told, untold, other = (network(one) for one in (cloud, alone, swapped))
    torch.testing.assert_close(other, told, rtol=0, atol=1e-12)
    assert (told - untold).abs().max() > 1e-3


def test_the_interface_is_held_by_the_partner(chains, face):
    first, both = chains[0], joined(*chains)
    on = first.alpha_carbons
    alone = gaussian_network_fluctuations(first.positions[on])
    held = gaussian_network_fluctuations(both.positions[both.alpha_carbons])[: len(on)]
    assert share(held, face) < 0.8 * share(alone, face)


def test_points_at_the_interface_are_told_of_the_partner(chains, trained):
    first, both = chains[0], joined(*chains)
    points = surface_of(both).cloud(1.0).points
    to_first = search_tree(first.positions.numpy()).query(points.numpy())[0]
    to_second = search_tree(chains[1].positions.numpy()).query(points.numpy())[0]
    some = points[torch.from_numpy((to_first < 4) & (to_second < 5))]
    told = [
        trained.posed(one, surface_of(one), 0).known(some).near.features for one in (first, both)
    ]
    difference = (told[0] - told[1]).abs().mean(dim=0)
    assert (difference[:6] > 0.01).all()
    assert (difference[6:] > 0.01).any()


def test_chains_of_pseudo_dynamics_hold_each_other(chains, face):
    config = PseudoDynamicsConfig(frames=30, swing=0.0, modes=1000)
    first, both = chains[0], joined(*chains)
    sizes = []
    for structure in (first, both):
        square = torch.zeros(first.residues)
        for seed in range(10):
            made = pseudo_trajectory(structure, config, torch.Generator().manual_seed(seed))
            away = aligned(made).positions - made.positions[0]
            on = structure.alpha_carbons[: first.residues]
            square = square + away[:, on].square().sum(dim=2).mean(dim=0)
        sizes.append(square)
    assert share(sizes[1], face) < 0.9 * share(sizes[0], face)
