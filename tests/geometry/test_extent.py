import math

import pytest
import torch

from undula.data.bundled import villin
from undula.data.prepare import surface_of
from undula.geometry.extent import extent, nodes_around, own_extent
from undula.geometry.frames import random_rotation
from undula.geometry.lattice import Lattice
from undula.io.structures import load_structure


@pytest.fixture(scope="module")
def protein():
    return load_structure(villin()[0])


def test_the_area_of_a_protein_is_right_to_fifteen_percent(protein):
    found = extent(protein.positions, 4.0)
    assert found.area == pytest.approx(surface_of(protein).mesh(0.7).area, rel=0.15)
    assert found.atoms == len(protein)


def test_the_shell_is_that_of_the_exact_distance(protein):
    around = Lattice.covering(
        protein.positions.amin(dim=0) - 8, protein.positions.amax(dim=0) + 8, 1.0
    )
    near = surface_of(protein).signed_distance(around.points().double()).abs()
    for reach, shell in zip((2.0, 4.0), extent(protein.positions, 2.0, 4.0).shells, strict=True):
        assert shell == pytest.approx(float((near < reach).sum()), rel=0.15)


def test_an_atom_has_its_own_sphere():
    assert extent(torch.zeros(1, 3), 1.0).area == pytest.approx(4 * math.pi * 1.75**2, rel=0.3)


def test_atoms_far_apart_take_no_more_than_wider_voxels():
    far = torch.tensor([[0.0, 0.0, 0.0], [4000.0, 3000.0, 5000.0]])
    assert extent(far, 4.0).area >= 0


def test_nodes_are_those_of_a_lattice(protein):
    margin, low, high = 6.0, protein.positions.amin(dim=0), protein.positions.amax(dim=0)
    lattice = Lattice.covering(low - margin, high + margin, 1.0)
    assert nodes_around(protein.positions, margin, 1.0) == pytest.approx(lattice.nodes, rel=0.1)


def test_the_own_extent_does_not_change_when_the_molecule_is_turned(protein):
    turn = random_rotation(torch.Generator().manual_seed(3)).double()
    positions = protein.positions.double()
    one, two = (own_extent(some) for some in (positions, positions @ turn.T + 5))
    torch.testing.assert_close(one.abs(), two.abs())
