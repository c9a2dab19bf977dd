import math

import pytest
import torch

from undula.data.bundled import villin
from undula.geometry.frames import random_rotation
from undula.geometry.secondary_structure import secondary_structure
from undula.io.structures import load_structure


def helix(count, handed=1.0):
    """Return Cα of an ideal α-helix: 1.5 Å and 100° a residue, radius 2.3 Å."""
    turn = torch.arange(count, dtype=torch.float64) * math.radians(100) * handed
    rise = 1.5 * torch.arange(count, dtype=torch.float64)
    return torch.stack([2.3 * turn.cos(), 2.3 * turn.sin(), rise], dim=1)


def strand(count, offset=0.0, backwards=False):
    """Return Cα of a flat zigzag: 3.3 Å a residue, 0.9 Å to either side."""
    place = torch.arange(count, dtype=torch.float64)
    side = 0.9 * (1 - 2 * (place % 2))
    x = torch.stack([3.3 * place, side, torch.full_like(place, offset)], dim=1)
    return x.flip(0) if backwards else x


def hairpin():
    """Return two strands side by side, 4.8 Å apart, and the turn between them."""
    turn = torch.tensor([[21.5, 0.0, 0.5], [23.5, 1.0, 2.6], [21.5, 0.0, 4.6]])
    return torch.cat([strand(7), turn.double(), strand(7, 4.8, backwards=True)])


def test_an_ideal_helix_is_helical_but_for_its_ends():
    assert secondary_structure(helix(12)) == "C" + "H" * 10 + "C"


def test_a_mirror_image_has_no_helix():
    assert "H" not in secondary_structure(helix(12, handed=-1.0))


def test_two_strands_side_by_side_are_strands_and_one_alone_is_none():
    assert secondary_structure(hairpin()).count("E") >= 8
    assert "H" not in secondary_structure(hairpin())
    assert secondary_structure(strand(9)) == "C" * 9


def test_does_not_change_when_the_chain_is_turned_and_shifted():
    generator = torch.Generator().manual_seed(0)
    rotation = random_rotation(generator).double()
    for chain in (helix(12), hairpin()):
        assert secondary_structure(chain @ rotation.T + 7) == secondary_structure(chain)


def test_no_element_reaches_over_a_gap():
    first, second = helix(6), helix(6) + torch.tensor([0.0, 0.0, 40.0])
    found = secondary_structure(torch.cat([first, second]))
    assert found == "CHHHHCCHHHHC"


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_short_chain_has_none(count):
    assert secondary_structure(helix(count)) == "C" * count


def test_villin_has_three_helices_and_no_strand():
    structure = load_structure(villin()[0])
    found = secondary_structure(structure.positions[structure.alpha_carbons])
    assert [len(run) >= 4 for run in found.replace("C", " ").split()] == [True] * 3
    assert "E" not in found


def test_a_real_sheet_is_found(shared):
    structure = load_structure(shared / "proteins" / "2cvi_A.pdb")
    found = secondary_structure(structure.positions[structure.alpha_carbons])
    assert found.count("E") > 20
    assert found.count("H") > 10
