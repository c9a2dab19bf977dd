from dataclasses import replace

import numpy as np
import pytest
import torch

from undula.data.bundled import villin
from undula.geometry.frames import random_rotation
from undula.io.structures import load_structure
from undula.surface.atoms import CHANNELS, CONTACT_RADIUS, atom_channels

MIRROR = torch.diag(torch.tensor([1.0, 1.0, -1.0])).double()


@pytest.fixture(scope="module")
def structure():
    return load_structure(villin()[0])


def column(structure, name):
    return atom_channels(structure)[:, CHANNELS.index(name)]


@pytest.mark.parametrize(
    ("matrix", "shift"),
    [(random_rotation(torch.Generator().manual_seed(1)), 70.0), (MIRROR, 0.0)],
    ids=["turned and shifted", "mirrored"],
)
def test_does_not_change_when_the_molecule_is(structure, matrix, shift):
    moved = replace(structure, positions=structure.positions @ matrix.T + shift)
    torch.testing.assert_close(atom_channels(moved), atom_channels(structure), rtol=0, atol=1e-6)


def test_the_order_of_the_atoms_within_a_residue_does_not_matter(structure):
    generator = np.random.default_rng(2)
    order = np.lexsort((generator.random(len(structure)), structure.residue_index))
    found = atom_channels(structure.select(order))
    torch.testing.assert_close(found, atom_channels(structure)[torch.from_numpy(order)])


def test_depth_counts_bonds_from_the_backbone(structure):
    depth = dict(
        zip(structure.atom_names.tolist(), column(structure, "depth").tolist(), strict=True)
    )
    assert depth["CA"] == depth["N"] == depth["O"] == depth["C"] == 0
    steps = [depth[name] * 6 for name in ("CB", "CG", "CD", "CE", "NZ")]
    assert steps == pytest.approx([1, 2, 3, 4, 5])


def test_contacts_are_counted_from_each_atom(structure):
    apart = torch.cdist(structure.positions, structure.positions)
    expected = ((apart <= CONTACT_RADIUS).sum(dim=1) - 1) / 100
    torch.testing.assert_close(column(structure, "contacts"), expected.float())


def test_the_terminus_falls_from_both_ends(structure):
    near = column(structure, "terminus")
    residue = torch.from_numpy(structure.residue_index)
    assert float(near[residue == 0].min()) == float(near[residue == residue.max()].max()) == 1.0
    expected = float(torch.tensor(-1.0).exp())
    assert float(near[residue == 3][0]) == pytest.approx(expected)
    assert float(near[residue == 18].max()) < 0.01


def test_atoms_of_a_residue_share_their_mobility(structure):
    mobility = column(structure, "mobility")
    for residue in (0, 17, 35):
        mine = mobility[torch.from_numpy(structure.residue_index == residue)]
        assert float(mine.max()) == float(mine.min()) > 0


def test_one_residue_alone_is_not_mobile(structure):
    alone = structure.select(structure.residue_index == 4)
    found = atom_channels(alone)
    assert torch.isfinite(found).all()
    assert not column(alone, "mobility").any()
    assert (column(alone, "terminus") == 1).all()
