from __future__ import annotations

import pytest
import torch
from tests.motion.small_systems import argon, waters

from undula.errors import InputError
from undula.motion.studies.energies import energies_of

pytest.importorskip("openmm", reason="energies of samples need OpenMM")

DEPTH = 120 * 0.00831446261815324
SIGMA = 3.4


def test_a_pair_of_argon_has_the_energy_of_lennard_and_jones():
    box = 200.0 * torch.eye(3)
    energies = energies_of("argon", argon(8), box)
    apart = torch.arange(8)[:, None] * torch.tensor([20.0, 0.0, 0.0])
    near = apart.clone()
    near[1] = torch.tensor([3.6, 0.0, 0.0])
    found = energies(torch.stack([apart, near]))
    ratio = SIGMA / 3.6
    expected = 4 * DEPTH * (ratio**12 - ratio**6)
    assert float(found[1] - found[0]) == pytest.approx(expected, rel=1e-5)


def test_images_of_an_atom_have_the_same_energy():
    box = 30.0 * torch.eye(3)
    energies = energies_of("argon", argon(8), box)
    frame = 12.0 * torch.rand(8, 3, generator=torch.Generator().manual_seed(0))
    moved = frame.clone()
    moved[3] += torch.tensor([30.0, -60.0, 0.0])
    one, other = energies(torch.stack([frame, moved])).tolist()
    assert one == pytest.approx(other, rel=1e-4)


def test_refuses_other_atoms_than_those_of_the_force_field():
    with pytest.raises(InputError, match="has other atoms than argon"):
        energies_of("argon", waters(3), None)
