"""The things undula talks about: structures, trajectories, surface clouds and meshes.

All are frozen and check themselves once, when made. Lengths are in Å, times in ps.
Numbers are torch tensors, names are numpy string arrays.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from undula.elements import ELEMENTS
from undula.errors import InputError, Notice

_PER_ATOM = (
    "elements",
    "atom_names",
    "residue_names",
    "residue_numbers",
    "insertion_codes",
    "chain_ids",
    "residue_index",
    "file_index",
)


def _check_shape(what: str, value: Tensor, shape: tuple[int | None, ...]) -> None:
    fits = value.ndim == len(shape) and all(
        want is None or have == want for have, want in zip(value.shape, shape, strict=True)
    )
    if not fits:
        expected = " × ".join("any" if want is None else str(want) for want in shape)
        found = " × ".join(map(str, value.shape)) or "a single number"
        raise InputError(f"{what} should have the shape {expected}, found {found}")


def _check_finite(what: str, value: Tensor) -> None:
    bad = ~torch.isfinite(value)
    if bad.any():
        row = int(bad.reshape(len(value), -1).any(dim=1).nonzero()[0])
        raise InputError(
            f"{what} holds {int(bad.sum())} values that are not finite, first in row {row + 1}"
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Structure:
    """The atoms of one or more molecules at one moment.

    Attributes:
        name: What to call it; by default the stem of the file.
        positions: Atom centres, Å.
        elements: Upper-case symbols, keys of `undula.elements.ELEMENTS`.
        atom_names: Such as ``CA``, stripped of blanks.
        residue_names: Such as ``ALA``, one per atom.
        residue_numbers: As in the file, with gaps; one per atom.
        insertion_codes: One character or the empty string per atom.
        chain_ids: One per atom; may be empty strings.
        residue_index: Consecutive number of the residue from 0 (atoms of one residue adjoin).
        file_index: Where each atom stood in its file, from 0: the way to its trajectory.
        file_atoms: How many atoms (of the first model) the file held.
        box: Rows are the edge vectors of the periodic box, Å; none for an isolated molecule.
        notices: What was dropped, assumed or guessed on the way in.
    """

    name: str
    positions: Float[Tensor, "atoms 3"]
    elements: np.ndarray
    atom_names: np.ndarray
    residue_names: np.ndarray
    residue_numbers: np.ndarray
    insertion_codes: np.ndarray
    chain_ids: np.ndarray
    residue_index: np.ndarray
    file_index: np.ndarray
    file_atoms: int
    box: Float[Tensor, "3 3"] | None = None
    notices: tuple[Notice, ...] = ()

    def __post_init__(self) -> None:
        _check_shape(f"{self.name}: positions", self.positions, (None, 3))
        _check_finite(f"{self.name}: positions", self.positions)
        if len(self) == 0:
            raise InputError(f"{self.name}: there are no atoms")
        for label in _PER_ATOM:
            if len(getattr(self, label)) != len(self):
                found = len(getattr(self, label))
                raise InputError(f"{self.name}: {len(self)} atoms but {found} {label}")
        unknown = sorted(set(self.elements.tolist()) - ELEMENTS.keys())
        if unknown:
            raise InputError(f"{self.name}: unknown elements {', '.join(unknown)}")
        steps = np.diff(self.residue_index, prepend=0)
        if ((steps != 0) & (steps != 1)).any():
            raise InputError(f"{self.name}: residue_index must count up from 0 in steps of 1")

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def residues(self) -> int:
        """How many residues there are."""
        return int(self.residue_index[-1]) + 1

    @property
    def vdw_radii(self) -> Float[Tensor, " atoms"]:
        """Van der Waals radii in Å, in the precision of the positions."""
        radii = [ELEMENTS[symbol].vdw_radius for symbol in self.elements.tolist()]
        return torch.tensor(radii, dtype=self.positions.dtype, device=self.positions.device)

    @property
    def alpha_carbons(self) -> Int[Tensor, " residues"]:
        """Indices of the Cα atoms; empty where there are none."""
        found = np.nonzero((self.atom_names == "CA") & (self.elements == "C"))[0]
        return torch.from_numpy(found)

    def select(self, atoms: np.ndarray) -> Structure:
        """Return the structure of some atoms, in the given order (indices or a mask)."""
        index = np.nonzero(atoms)[0] if atoms.dtype == bool else atoms
        residue = self.residue_index[index]
        consecutive = np.cumsum(np.diff(residue, prepend=residue[:1]) != 0)
        return replace(
            self,
            positions=self.positions[torch.from_numpy(index)],
            **{label: getattr(self, label)[index] for label in _PER_ATOM}
            | {"residue_index": consecutive},
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Trajectory:
    """A structure's atoms at many moments.

    Attributes:
        structure: The atoms; its own positions need not be a frame.
        positions: One row per frame, Å.
        times_ps: Strictly increasing.
        box: Edge vectors per frame, Å, or none.
        velocities: Å/ps, or none.
        notices: What was dropped, assumed or guessed on the way in.
    """

    structure: Structure
    positions: Float[Tensor, "frames atoms 3"]
    times_ps: Float[Tensor, " frames"]
    box: Float[Tensor, "frames 3 3"] | None = None
    velocities: Float[Tensor, "frames atoms 3"] | None = None
    notices: tuple[Notice, ...] = ()

    def __post_init__(self) -> None:
        name = self.structure.name
        _check_shape(f"{name}: frames", self.positions, (None, len(self.structure), 3))
        _check_shape(f"{name}: times", self.times_ps, (len(self.positions),))
        if len(self) == 0:
            raise InputError(f"{name}: there are no frames")
        _check_finite(f"{name}: positions", self.positions)
        _check_finite(f"{name}: times", self.times_ps)
        if (self.times_ps.diff() <= 0).any():
            raise InputError(f"{name}: the times of the frames do not increase")
        if self.box is not None:
            _check_shape(f"{name}: boxes", self.box, (len(self), 3, 3))
        if self.velocities is not None:
            _check_shape(f"{name}: velocities", self.velocities, tuple(self.positions.shape))

    def __len__(self) -> int:
        return len(self.positions)

    def frame(self, index: int) -> Structure:
        """Return one frame as a structure."""
        box = None if self.box is None else self.box[index]
        positions = self.positions[index].to(self.structure.positions.dtype)
        return replace(self.structure, positions=positions, box=box)

    def frames(self, index: slice) -> Trajectory:
        """Return the frames of a slice."""
        return replace(
            self,
            positions=self.positions[index],
            times_ps=self.times_ps[index],
            box=None if self.box is None else self.box[index],
            velocities=None if self.velocities is None else self.velocities[index],
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class MolecularSystem:
    """What stays the same while atoms move: who they are and how they are bonded.

    Attributes:
        structure: The atoms; its own positions need not be a frame.
        bonds: Atom indices of each covalent bond, every bond once.
        molecules: Number of the molecule each atom belongs to, counted up from 0.
        kinds: Name of each atom's chemical kind: its element and what it is bonded to. Atoms of
            one kind cannot be told apart by looking along a few bonds.
        charges: Partial charges, e, or none.
        masses: u.
    """

    structure: Structure
    bonds: Int[Tensor, "2 bonds"]
    molecules: Int[Tensor, " atoms"]
    kinds: np.ndarray
    masses: Float[Tensor, " atoms"]
    charges: Float[Tensor, " atoms"] | None = None

    def __post_init__(self) -> None:
        name, atoms = self.structure.name, len(self)
        _check_shape(f"{name}: bonds", self.bonds, (2, None))
        _check_shape(f"{name}: molecules", self.molecules, (atoms,))
        _check_shape(f"{name}: masses", self.masses, (atoms,))
        if len(self.kinds) != atoms:
            raise InputError(f"{name}: {atoms} atoms but {len(self.kinds)} kinds")
        if self.charges is not None:
            _check_shape(f"{name}: charges", self.charges, (atoms,))
        if self.bonds.numel() and (int(self.bonds.min()) < 0 or int(self.bonds.max()) >= atoms):
            raise InputError(f"{name}: bonds name atoms that do not exist")
        found = torch.unique(self.molecules)
        if not torch.equal(found, torch.arange(len(found)).to(found)):
            raise InputError(f"{name}: molecules should be numbered from 0 without gaps")
        if not (self.masses > 0).all():
            raise InputError(f"{name}: masses should be positive")

    def __len__(self) -> int:
        return len(self.structure)

    @property
    def molecule_count(self) -> int:
        """How many molecules there are."""
        return int(self.molecules.max()) + 1


@dataclass(frozen=True, kw_only=True, eq=False)
class SurfaceCloud:
    """Points on a surface with outward normals of length one.

    Attributes:
        points: On the surface, Å.
        normals: Outward, of length one.
    """

    points: Float[Tensor, "n 3"]
    normals: Float[Tensor, "n 3"]

    def __post_init__(self) -> None:
        _check_shape("surface points", self.points, (None, 3))
        _check_shape("surface normals", self.normals, (len(self.points), 3))
        _check_finite("surface points", self.points)
        length = self.normals.norm(dim=1)
        if len(self) and (length - 1).abs().max() > 1e-3:
            raise InputError("surface normals should have length one")

    def __len__(self) -> int:
        return len(self.points)


@dataclass(frozen=True, kw_only=True, eq=False)
class Mesh:
    """A triangle mesh; seen from outside the corners of a face run anticlockwise.

    Attributes:
        vertices: Å.
        faces: Vertex indices, three a face.
        scalars: Named numbers per vertex, such as ``displacement``.
    """

    vertices: Float[Tensor, "vertices 3"]
    faces: Int[Tensor, "faces 3"]
    scalars: Mapping[str, Float[Tensor, " vertices"]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_shape("mesh vertices", self.vertices, (None, 3))
        _check_shape("mesh faces", self.faces, (None, 3))
        _check_finite("mesh vertices", self.vertices)
        if self.faces.numel() and (
            int(self.faces.min()) < 0 or int(self.faces.max()) >= len(self.vertices)
        ):
            raise InputError("mesh faces name vertices that do not exist")
        for name, values in self.scalars.items():
            _check_shape(f"mesh scalar {name}", values, (len(self.vertices),))

    @property
    def is_empty(self) -> bool:
        """Whether there is no face: the level set does not exist."""
        return self.faces.numel() == 0

    @property
    def face_normals(self) -> Float[Tensor, "faces 3"]:
        """Outward normals of length twice the area of the face, Å²."""
        a, b, c = self.vertices[self.faces].unbind(dim=1)
        return torch.linalg.cross(b - a, c - a)

    @property
    def area(self) -> float:
        """Total area, Å²."""
        return float(self.face_normals.norm(dim=1).sum() / 2)

    @property
    def volume(self) -> float:
        """Enclosed volume, Å³, by the divergence theorem; cavities count as outside."""
        centres = self.vertices[self.faces].mean(dim=1)
        return float((centres * self.face_normals).sum() / 6)

    @property
    def vertex_normals(self) -> Float[Tensor, "vertices 3"]:
        """Outward normals of length one, faces weighted by area; zero at unused vertices."""
        total = torch.zeros_like(self.vertices)
        per_corner = self.face_normals.repeat_interleave(3, dim=0)
        total.index_add_(0, self.faces.reshape(-1), per_corner)
        return torch.nn.functional.normalize(total, dim=1)
