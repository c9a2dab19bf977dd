from dataclasses import replace

import pytest
import torch

from undula.errors import InputError
from undula.geometry.frames import random_rotation, superposition
from undula.geometry.lattice import Lattice
from undula.io.structures import load_structure
from undula.surface.elastic_ensemble import elastic_ensemble


@pytest.fixture(scope="module")
def structure(peptide):
    return load_structure(peptide[0])


@pytest.fixture(scope="module")
def ensemble(structure):
    return elastic_ensemble(structure, members=4, seed=1)


def positions(ensemble):
    return torch.stack([member.positions for member in ensemble.members])


def test_members_move_by_tenths_of_an_angstrom_and_lie_on_the_first_frame(structure, ensemble):
    on, start = structure.alpha_carbons, structure.positions.double()
    moved = positions(ensemble) - start
    assert 0.1 < float(moved.square().sum(dim=2).mean().sqrt()) < 3
    rotation, translation = superposition(positions(ensemble)[:, on], start[on])
    torch.testing.assert_close(
        rotation, torch.eye(3, dtype=torch.float64).expand(4, 3, 3), atol=1e-9, rtol=0
    )
    assert translation.abs().max() < 1e-9


def test_the_same_seed_draws_the_same_members_and_another_seed_others(structure, ensemble):
    again = elastic_ensemble(structure, members=4, seed=1)
    assert torch.equal(positions(again), positions(ensemble))
    other = elastic_ensemble(structure, members=4, seed=2)
    assert not torch.equal(positions(other), positions(ensemble))


def test_members_turn_with_the_structure(structure, ensemble):
    rotation = random_rotation(torch.Generator().manual_seed(3))
    turned = replace(structure, positions=structure.positions.double() @ rotation.T + 5.0)
    found = positions(elastic_ensemble(turned, members=4, seed=1))
    torch.testing.assert_close(found, positions(ensemble) @ rotation.T + 5.0, atol=1e-5, rtol=0)


def test_surfaces_volumes_and_the_majority_are_those_of_the_members(structure, ensemble):
    atoms = structure.positions.double()
    lattice = Lattice.covering(atoms.amin(dim=0) - 8, atoms.amax(dim=0) + 8, 1.0)
    fields = torch.stack([*ensemble.lattice_distances(lattice)])
    at = ensemble.signed_distance(lattice.points()).reshape(fields.shape)
    torch.testing.assert_close(fields, at.clamp(-2, 2))
    assert torch.equal(ensemble.majority(lattice) < 0, (fields < 0).double().mean(dim=0) > 0.5)
    volumes, areas = ensemble.sizes(lattice)
    counted = (fields < 0).flatten(1).sum(dim=1).double()
    torch.testing.assert_close(torch.tensor(volumes).double(), counted, rtol=0.1, atol=0)
    assert len(areas) == len(ensemble) == 4


def test_too_few_carbons_are_refused(structure):
    few = structure.select(structure.residue_index < 3)
    with pytest.raises(InputError, match="3 Cα are too few for an elastic network, which needs 4"):
        elastic_ensemble(few)
