from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.io.alanines import pdb_line, peptide_lines, residue_lines

from undula.io.bonds import angle_ends, broken_frames, covalent_bonds
from undula.io.structures import load_structure

IN_ALANINE = [[0, 1], [1, 2], [1, 4], [2, 3]]


@pytest.fixture
def moving(write):
    """Return a peptide that rattles a little in 20 frames, and its bonds."""
    structure = load_structure(write(peptide_lines(4)))
    noise = torch.randn(20, len(structure), 3, generator=torch.Generator().manual_seed(0))
    return structure.positions.float() + 0.02 * noise, covalent_bonds(structure)


def test_finds_the_bonds_of_a_peptide(write):
    bonds = covalent_bonds(load_structure(write(peptide_lines(2))))
    second = [[i + 5, j + 5] for i, j in IN_ALANINE]
    assert bonds.T.tolist() == sorted([*IN_ALANINE, [2, 5], *second])


def test_finds_none_between_metals_ions_and_far_residues(write):
    lines = [
        pdb_line("ZN", (0.0, 0.0, 0.0), residue="ZN", element="ZN"),
        pdb_line("CL", (1.9, 0.0, 0.0), residue="CL", element="CL", number=2),
        *residue_lines(3, start=9),
        pdb_line("O", (9.0, 9.0, 9.0), residue="HOH", number=4),
        pdb_line("N1", NEAR_THIRD, residue="LIG", number=6),
    ]
    bonds = covalent_bonds(load_structure(write(lines), select="all"))
    assert bonds.T.tolist() == [[i + 2, j + 2] for i, j in IN_ALANINE]


NEAR_THIRD = (8 * 3.33 - 1.3, 8 * 1.54, 0.0)


def test_hydrogens_of_water_are_not_bonded_to_each_other(write):
    lines = [
        pdb_line("O", (0.0, 0.0, 0.0), residue="HOH"),
        pdb_line("H1", (0.957, 0.0, 0.0), residue="HOH"),
        pdb_line("H2", (-0.24, 0.927, 0.0), residue="HOH"),
    ]
    bonds = covalent_bonds(load_structure(write(lines), select="all", hydrogens="keep"))
    assert bonds.T.tolist() == [[0, 1], [0, 2]]
    assert angle_ends(bonds, 3).T.tolist() == [[1, 2]]


def test_finds_bonds_through_the_walls_of_a_skewed_box(write):
    cell = "CRYST1   20.000   20.000   20.000  60.00  70.00  80.00 P 1           1"
    whole = load_structure(write([cell, *peptide_lines(3)]))
    box = whole.box
    shifts = torch.randint(-2, 3, (len(whole), 3), generator=torch.Generator().manual_seed(1))
    split = replace(whole, positions=whole.positions + shifts.double() @ box)
    assert torch.equal(covalent_bonds(split), covalent_bonds(whole))


def test_a_single_atom_has_no_bonds(write):
    structure = load_structure(write([pdb_line("N", (0, 0, 0))]))
    bonds = covalent_bonds(structure)
    assert bonds.shape == (2, 0)
    assert not broken_frames(torch.zeros(3, 1, 3), bonds).frames.any()


def test_no_frame_is_broken_by_thermal_motion_or_by_turning(moving):
    positions, bonds = moving
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(2)))[0]
    for same in (positions, positions @ turn + 50.0):
        found = broken_frames(same, bonds)
        assert not found.frames.any()
        assert found.everywhere.shape == (2, 0)


# The last oxygen turns freely: without its hydrogen partner nothing tells where it should be.
@pytest.mark.parametrize("atom", [*range(18), 19])
def test_one_atom_wrong_by_more_than_an_angstrom_breaks_its_frame(moving, atom):
    positions, bonds = moving
    generator = torch.Generator().manual_seed(atom)
    direction = torch.nn.functional.normalize(torch.randn(3, generator=generator), dim=0)
    positions[7, atom] += 1.3 * direction
    found = broken_frames(positions, bonds)
    assert found.frames.nonzero().tolist() == [[7]]
    assert found.frame == 7


def test_a_coordinate_that_is_not_finite_breaks_its_frame(moving):
    positions, bonds = moving
    positions[3, 5, 1] = torch.nan
    assert broken_frames(positions, bonds).frames.nonzero().tolist() == [[3]]


def test_molecules_broken_by_the_box_are_sound_if_the_box_is_known(moving):
    positions, bonds = moving
    box = torch.diag(torch.tensor([15.0, 16.0, 17.0])).expand(20, 3, 3)
    wrapped = positions.remainder(box.diagonal(dim1=1, dim2=2)[:, None])
    assert not broken_frames(wrapped, bonds, box).frames.any()
    assert (
        broken_frames(wrapped, bonds).frames.any()
        or broken_frames(wrapped, bonds).everywhere.numel()
    )


def test_contacts_that_are_nowhere_bonds_are_listed_and_not_counted(moving):
    positions, bonds = moving
    contact = torch.tensor([[0], [19]])
    found = broken_frames(positions, torch.cat([bonds, contact], dim=1))
    assert not found.frames.any()
    assert found.everywhere.tolist() == contact.tolist()


def test_nothing_is_broken_where_there_are_no_bonds():
    still = torch.rand(8, 4, 3)
    assert not broken_frames(still, torch.zeros(2, 0, dtype=torch.int64)).frames.any()


def test_notices_a_carbon_that_is_turned_inside_out(moving):
    """A mirror image about the plane of two bonds keeps every distance over one bond and two."""
    positions, bonds = moving
    n, alpha, carbon, beta = (positions[7, 5 + k] for k in (0, 1, 2, 4))
    normal = torch.linalg.cross(n - alpha, carbon - alpha)
    normal = normal / normal.norm()
    positions[7, 9] = beta - 2 * ((beta - alpha) @ normal) * normal
    carbons = np.array([name.startswith("C") for name in NAMES * 4])
    found = broken_frames(positions, bonds, None, carbons)
    assert found.frames.nonzero().tolist() == [[7]]
    assert found.kind == "hand"
    assert found.atoms[0] == 6
    assert not broken_frames(positions, bonds).frames.any()


NAMES = ["N", "CA", "C", "O", "CB"]


def test_notices_atoms_that_were_moved_together(moving):
    """Each distance is possible by itself, all of those at one bond are not."""
    positions, bonds = moving
    moved = positions.clone()
    along = positions[7, 10] - positions[7, 7]
    moved[7, 10:] += 0.34 * along / along.norm()
    found = broken_frames(moved, bonds)
    assert found.frames.nonzero().tolist() == [[7]]
    assert found.kind == "together"
    assert found.atoms == (7, 10)


def test_is_more_patient_with_few_frames(moving):
    """The spread is known badly then, and one frame of five would decide what is usual."""
    positions, bonds = moving
    along = positions[4, 9] - positions[4, 6]
    positions[4, 9] += 0.4 * along / along.norm()
    assert broken_frames(positions, bonds).frames.nonzero().tolist() == [[4]]
    assert not broken_frames(positions[:5], bonds).frames.any()
