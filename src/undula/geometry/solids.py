"""Bodies from molecular surfaces and from values on a lattice, ready to be compared."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from undula.geometry.comparison import Solid
from undula.geometry.isosurface import level_mesh
from undula.geometry.lattice import Lattice
from undula.geometry.molecular_surface import MolecularSurface
from undula.types import Mesh

_BAND = 4.0


def exact_solid(surface: MolecularSurface, lattice: Lattice) -> Solid:
    """Return a molecular surface as a solid, its exact distance laid down on a lattice."""
    values = surface.lattice_distance(lattice.origin, lattice.spacing, lattice.shape, band=_BAND)
    return lattice_solid(values, lattice, lipschitz=1.0)


def lattice_solid(
    values: Float[Tensor, "nx ny nz"],
    lattice: Lattice,
    *,
    lipschitz: float | None = None,
    mesh: Mesh | None = None,
) -> Solid:
    """Return the zero level set of values on a lattice as a solid.

    Args:
        values: Negative inside.
        lattice: Theirs.
        lipschitz: How fast they change at most, per Å; by default measured.
        mesh: The level set, if it is known already.
    """
    if lipschitz is None:
        steps = [float(values.diff(dim=axis).abs().max()) for axis in range(3)]
        lipschitz = max(sum(step**2 for step in steps) ** 0.5 / lattice.spacing, 1e-6)
    return Solid(
        mesh=level_mesh(values, lattice, 0.0) if mesh is None else mesh,
        field=lambda points: lattice.interpolate(values, points).to(points.dtype),
        lipschitz=lipschitz,
    )
