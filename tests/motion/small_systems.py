"""Systems that fit on a line: free atoms, waters, a bent chain."""

from __future__ import annotations

import numpy as np
import torch

from undula.types import MolecularSystem, Structure

MASSES = {"AR": 39.948, "O": 15.999, "H": 1.008, "C": 12.011}


def system(elements: list[str], bonds: list[tuple[int, int]], molecules: list[int]):
    atoms = len(elements)
    blank = np.array([""] * atoms)
    structure = Structure(
        name="small",
        positions=torch.zeros(atoms, 3),
        elements=np.array(elements),
        atom_names=np.array(elements),
        residue_names=np.array(["MOL"] * atoms),
        residue_numbers=np.ones(atoms, dtype=np.int64),
        insertion_codes=blank,
        chain_ids=blank,
        residue_index=np.zeros(atoms, dtype=np.int64),
        file_index=np.arange(atoms),
        file_atoms=atoms,
    )
    return MolecularSystem(
        structure=structure,
        bonds=torch.tensor(bonds, dtype=torch.int64).reshape(-1, 2).T.contiguous(),
        molecules=torch.tensor(molecules),
        kinds=np.array(elements),
        masses=torch.tensor([MASSES[symbol] for symbol in elements]),
    )


def argon(atoms: int) -> MolecularSystem:
    return system(["AR"] * atoms, [], list(range(atoms)))


def waters(count: int) -> MolecularSystem:
    bonds = [(3 * k, 3 * k + h) for k in range(count) for h in (1, 2)]
    return system(["O", "H", "H"] * count, bonds, [k for k in range(count) for _ in range(3)])


def chain(atoms: int) -> MolecularSystem:
    return system(["C"] * atoms, [(k, k + 1) for k in range(atoms - 1)], [0] * atoms)


def water_positions(count: int, generator: torch.Generator) -> torch.Tensor:
    """Place rigid waters at random, each turned its own way."""
    one = torch.tensor([[0.0, 0, 0], [0.9572, 0, 0], [-0.23999, 0.92663, 0]], dtype=torch.float64)
    turns = torch.linalg.qr(torch.randn(count, 3, 3, generator=generator, dtype=torch.float64))[0]
    places = 20 * torch.rand(count, 1, 3, generator=generator, dtype=torch.float64)
    return (one @ turns + places).reshape(-1, 3)
