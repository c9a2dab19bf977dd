import numpy as np
import pytest
import torch

from undula.errors import UsageError
from undula.io.kinds import chemical_kinds, molecular_system
from undula.io.structures import load_structure

WATER = np.array(["O", "H", "H"]), torch.tensor([[0, 0], [1, 2]])
ETHANOL = (
    np.array(["C", "C", "O", "H", "H", "H", "H", "H", "H"]),
    torch.tensor([[0, 1, 0, 0, 0, 1, 1, 2], [1, 2, 3, 4, 5, 6, 7, 8]]),
)


def test_an_atom_without_bonds_is_its_element():
    assert chemical_kinds(
        np.array(["AR", "AR"]), torch.zeros(2, 0, dtype=torch.int64)
    ).tolist() == [
        "AR",
        "AR",
    ]


def test_water_is_an_oxygen_and_two_hydrogens_of_one_kind():
    assert chemical_kinds(*WATER, depth=0).tolist() == ["O", "H", "H"]
    assert chemical_kinds(*WATER, depth=1).tolist() == ["O(HH)", "H(O)", "H(O)"]
    assert chemical_kinds(*WATER).tolist() == ["O(HH)", "H(O(H))", "H(O(H))"]


def test_a_walk_farther_out_tells_more_atoms_apart():
    assert len(set(chemical_kinds(*ETHANOL, depth=0))) == 3
    found = chemical_kinds(*ETHANOL, depth=1).tolist()
    assert found[3] == found[6] == "H(C)"
    found = chemical_kinds(*ETHANOL, depth=2).tolist()
    assert found[3] == found[4] == found[5] == "H(C(CHH))"
    assert found[6] == found[7] == "H(C(CHO))"
    assert found[8] == "H(O(C))"


def test_symbols_of_two_letters_cannot_be_mixed_up():
    elements = np.array(["C", "CL", "H", "H", "H"])
    bonds = torch.tensor([[0, 0, 0, 0], [1, 2, 3, 4]])
    assert chemical_kinds(elements, bonds, depth=1).tolist()[:3] == ["C(HHH[CL])", "CL(C)", "H(C)"]


def test_a_ring_has_one_kind():
    ring = torch.stack([torch.arange(6), (torch.arange(6) + 1) % 6])
    assert len(set(chemical_kinds(np.full(6, "C"), ring, depth=4))) == 1


def test_does_not_change_when_atoms_are_relabelled():
    elements, bonds = ETHANOL
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    place = torch.argsort(order)
    turned = place[bonds].flip(0)[:, torch.randperm(8, generator=torch.Generator().manual_seed(2))]
    kinds = chemical_kinds(elements, bonds)
    assert chemical_kinds(elements[order.numpy()], turned).tolist() == kinds[order.numpy()].tolist()


def test_a_walk_of_negative_length_is_refused():
    with pytest.raises(UsageError, match="not -1"):
        chemical_kinds(*WATER, depth=-1)


def test_a_system_has_molecules_in_order_masses_and_each_bond_once(shared):
    structure = load_structure(
        shared / "ala2" / "ala2.pdb", select="all", hydrogens="keep", heterogens="keep"
    )
    system = molecular_system(structure)
    assert system.bonds.shape == (2, 21)
    assert system.molecule_count == 1
    assert float(system.masses.sum()) == pytest.approx(144.17, abs=0.01)
    twice = torch.cat([system.bonds, system.bonds.flip(0)], dim=1)
    again = molecular_system(structure, twice)
    assert torch.equal(again.bonds, system.bonds)
    parted = molecular_system(structure, torch.tensor([[4, 21], [2, 3]]))
    expected = [0, 1, 2, 3, 2, 4]
    assert parted.molecules[:6].tolist() == expected
    assert parted.molecules[21] == 3


def test_the_hydrogens_of_a_methyl_group_share_a_kind_and_those_of_others_differ(shared):
    structure = load_structure(
        shared / "ala2" / "ala2.pdb", select="all", hydrogens="keep", heterogens="keep"
    )
    kinds = molecular_system(structure).kinds
    labels = zip(structure.residue_names, structure.atom_names, kinds, strict=True)
    kind_of = {f"{residue} {atom}": str(kind) for residue, atom, kind in labels}
    groups = [
        {kind_of[f"{residue}{number}"] for number in (1, 2, 3)}
        for residue in ("ACE H", "ALA HB", "NME H")
    ]
    assert [len(group) for group in groups] == [1, 1, 1]
    assert len(set.union(*groups)) == 3
    assert len(set(kinds)) == 16
