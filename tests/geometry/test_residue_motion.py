import pytest
import torch

from undula.data.bundled import villin
from undula.geometry.frames import random_rotation
from undula.geometry.residue_motion import carried, residue_centres
from undula.io.structures import load_structure


@pytest.fixture(scope="module")
def structure():
    return load_structure(villin()[0])


@pytest.fixture(scope="module")
def start(structure):
    return structure.positions.double()


@pytest.mark.parametrize("anchored", [False, True])
def test_where_all_nodes_turn_and_shift_alike_so_do_all_atoms(structure, start, anchored):
    rotation = random_rotation(torch.Generator().manual_seed(0))
    moved = start[structure.alpha_carbons] @ rotation.T + 7.0
    found = carried(structure, start[None], moved[None], anchored=anchored)
    torch.testing.assert_close(found[0], start @ rotation.T + 7.0)


def test_an_anchored_carbon_goes_where_its_node_goes_and_a_free_one_only_part_of_the_way(
    structure, start
):
    on = structure.alpha_carbons
    noise = torch.randn(
        5, len(on), 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    moved = start[on] + 0.4 * noise
    atoms = start.expand(5, -1, -1)
    torch.testing.assert_close(carried(structure, atoms, moved, anchored=True)[:, on], moved)
    free = carried(structure, atoms, moved)[:, on] - start[on]
    assert 0.2 < float(free.norm() / (moved - start[on]).norm()) < 0.9


@pytest.mark.parametrize("anchored", [False, True])
def test_every_residue_stays_one_piece(structure, start, anchored):
    on = structure.alpha_carbons
    noise = torch.randn(
        1, len(on), 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    found = carried(structure, start[None], start[on] + noise, anchored=anchored)[0]
    for residue in range(structure.residues):
        mine = torch.from_numpy(structure.residue_index == residue)
        torch.testing.assert_close(
            torch.cdist(found[mine], found[mine]), torch.cdist(start[mine], start[mine])
        )


def test_the_centre_of_a_residue_is_its_alpha_carbon_or_else_its_first_atom(structure):
    names = structure.atom_names[residue_centres(structure)]
    assert set(names) == {"CA"}
    without = structure.select(~((structure.residue_index == 3) & (structure.atom_names == "CA")))
    assert [*without.atom_names[residue_centres(without)]].count("CA") == structure.residues - 1
