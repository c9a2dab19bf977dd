"""The baseline for spread: surfaces of an elastic network that trembles about the first frame."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from undula.data.prepare import surface_of
from undula.errors import InputError
from undula.geometry.frames import superposition
from undula.geometry.isosurface import level_mesh
from undula.geometry.lattice import Lattice
from undula.geometry.molecular_surface import MolecularSurface
from undula.geometry.residue_motion import FEWEST_NODES, carried
from undula.geometry.thermal_motion import thermal_displacements
from undula.surface.baselines import averaged, distances
from undula.types import Structure

NETWORK = "elastic network"
"""Name of the ensemble's row."""
MAJORITY = "majority of the elastic network"
"""Name of the row of its majority shape."""
MEMBERS = 32
"""How many members an ensemble has by default: as many as a forecast has samples."""


@dataclass(frozen=True, eq=False)
class SurfaceEnsemble:
    """Exact surfaces of structures that stand for a distribution, the same at all times.

    Attributes:
        members: Structures in the first frame's pose.
        probe: Radius of the solvent probe, Å.
    """

    members: tuple[Structure, ...]
    probe: float

    def __len__(self) -> int:
        return len(self.members)

    @cached_property
    def _surfaces(self) -> tuple[MolecularSurface, ...]:
        return tuple(surface_of(member, self.probe) for member in self.members)

    def signed_distance(self, points: Float[Tensor, "n 3"]) -> Float[Tensor, "members n"]:
        """Return every member's signed distance at points, Å."""
        return torch.stack([surface.signed_distance(points) for surface in self._surfaces])

    def lattice_distances(self, lattice: Lattice) -> Iterator[Float[Tensor, "nx ny nz"]]:
        """Return every member's signed distance on a lattice, one after another, Å."""
        return (distances(surface, lattice) for surface in self._surfaces)

    def majority(self, lattice: Lattice) -> Float[Tensor, "nx ny nz"]:
        """Return the shape that most members have in common, negative inside."""
        return averaged([values < 0 for values in self.lattice_distances(lattice)])

    def sizes(self, lattice: Lattice) -> tuple[list[float], list[float]]:
        """Return every member's volume (Å³) and area (Å²), from meshes on a lattice."""
        meshes = [level_mesh(values, lattice, 0.0) for values in self.lattice_distances(lattice)]
        return [mesh.volume for mesh in meshes], [mesh.area for mesh in meshes]


def elastic_ensemble(
    structure: Structure, probe: float = 1.4, *, members: int = MEMBERS, seed: int = 0
) -> SurfaceEnsemble:
    r"""Draw members of an anisotropic network of the first frame's Cα, with all their atoms.

    .. math:: c' = c + \sum_k \sqrt{kT / \gamma \lambda_k} \, \xi_k v_k

    The ensemble knows nothing but the first frame, is trained on nothing, and is the same at all
    times: what the frame would look like after long, if its contacts were springs. Every residue
    follows its Cα as one piece and turns with those around it (`carried`); then the Cα are
    superposed on the first frame, as true frames are. T is 300 K and γ 1 kcal/mol/Å² (`THERMAL`):
    nothing is fitted. Side chains do not turn by themselves: their part of the spread is missing.

    Args:
        structure: The first frame.
        probe: Radius of the solvent probe, Å.
        members: How many.
        seed: Of ξ.

    Raises:
        InputError: There are fewer than `FEWEST_NODES` Cα.

    Source: Atilgan et al. (2001).
    """
    on = structure.alpha_carbons
    if len(on) < FEWEST_NODES:
        raise InputError(
            f"{structure.name}: {len(on)} Cα are too few for an elastic network, which needs "
            f"{FEWEST_NODES}"
        )
    start = structure.positions.double()
    generator = torch.Generator().manual_seed(seed)
    moved = start[on] + thermal_displacements(start[on], members, generator)
    atoms = carried(structure, start.expand(members, -1, -1), moved, anchored=True)
    rotation, translation = superposition(atoms[:, on], start[on])
    posed = atoms @ rotation.mT + translation[:, None]
    return SurfaceEnsemble(
        members=tuple(replace(structure, positions=positions) for positions in posed), probe=probe
    )
