"""Helices and strands, from the Cα trace alone."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

_HELIX, _STRAND = ((89.0, 12.0), (50.0, 20.0)), ((124.0, 14.0), (-170.0, 45.0))
"""Angle τ and dihedral α with their tolerances, degrees."""
_BOND = 4.5
"""Consecutive Cα farther apart than this are not bonded, Å."""
_SHORTEST_HELIX, _SHORTEST_STRAND = 4, 3
_PARTNER = (4.2, 5.2)
"""How far the Cα of a strand's partner is, Å."""


def secondary_structure(positions: Float[Tensor, "residues 3"]) -> str:
    r"""Assign H (helix), E (strand) or C (other) to each residue of a Cα trace.

    .. math::
        \tau(i) = \angle(x_{i-1}, x_i, x_{i+1}), \qquad
        \alpha(i) = \angle_{dihedral}(x_{i-1}, x_i, x_{i+1}, x_{i+2})

    Where τ and α are an α-helix's (89 ± 12°, 50 ± 20°) or a strand's (124 ± 14°, −170 ± 45°),
    residues i and i + 1 are so. Four in a row make a helix; three make a strand if half of them
    have a partner elsewhere in the chain, 4.2 to 5.2 Å away. On 46 chains 80 % of the residues
    agree with DSSP, and the shares of helix and strand within 1.5 % and 4 % on average: good
    for classes of folds, not for the ends of a helix.

    Args:
        positions: Of the Cα in the order of the chain, Å. Nothing reaches over a gap of more
            than 4.5 Å.

    Returns:
        One letter for each residue, the same for a turned or shifted chain. A mirror image has
        no α-helix.

    Source: Labesse, Colloc'h, Pothier and Mornon (1997), P-SEA. Differs from it: the angles
    alone decide (the distances d(i, i+3) and d(i, i+4) agreed no better with DSSP); four
    residues for a helix, partners for every strand.
    """
    count = len(positions)
    if count < _SHORTEST_HELIX:
        return "C" * count
    x = positions.double()
    bonded = ((x[1:] - x[:-1]).norm(dim=1) < _BOND).numpy()
    tau, alpha = _angles(x)
    partnered = _partnered(x)
    found = np.full(count, "C")
    for letter, (bend, twist), shortest in (
        ("E", _STRAND, _SHORTEST_STRAND),
        ("H", _HELIX, _SHORTEST_HELIX),
    ):
        fits = np.abs(tau[: count - 3] - bend[0]) <= bend[1]
        fits &= np.abs((alpha - twist[0] + 180) % 360 - 180) <= twist[1]
        inside = np.zeros(count, dtype=bool)
        for first in np.nonzero(fits)[0].tolist():
            if bonded[first : first + 3].all():
                inside[first + 1 : first + 3] = True
        for first, end in _runs(inside, bonded):
            held = letter == "H" or partnered[first:end].mean() >= 0.5
            if end - first >= shortest and held:
                found[first:end] = letter
    return "".join(found.tolist())


def _angles(
    x: Float[Tensor, "residues 3"],
) -> tuple[Float[np.ndarray, " angles"], Float[np.ndarray, " dihedrals"]]:
    """Return τ and α of the second residue on, degrees."""
    steps = x[1:] - x[:-1]
    unit = torch.nn.functional.normalize(steps, dim=1)
    bend = torch.acos((-unit[:-1] * unit[1:]).sum(dim=1).clamp(-1, 1))
    normal = torch.linalg.cross(steps[:-1], steps[1:])
    sine = (torch.linalg.cross(normal[:-1], normal[1:]) * unit[1:-1]).sum(dim=1)
    cosine = (normal[:-1] * normal[1:]).sum(dim=1)
    return torch.rad2deg(bend).numpy(), torch.rad2deg(torch.atan2(sine, cosine)).numpy()


def _partnered(x: Float[Tensor, "residues 3"]) -> Bool[np.ndarray, " residues"]:
    """Return which residues are as far from another one as partners in a sheet are."""
    apart = torch.cdist(x, x)
    index = torch.arange(len(x))
    near = (apart >= _PARTNER[0]) & (apart <= _PARTNER[1])
    return (near & ((index[:, None] - index).abs() > 2)).any(dim=1).numpy()


def _runs(
    inside: Bool[np.ndarray, " residues"], bonded: Bool[np.ndarray, " bonds"]
) -> list[tuple[int, int]]:
    """Return first and end of each run of residues that no gap interrupts."""
    starts = inside.copy()
    starts[1:] &= ~(inside[:-1] & bonded)
    ends = inside.copy()
    ends[:-1] &= ~(inside[1:] & bonded)
    first, last = np.nonzero(starts)[0], np.nonzero(ends)[0]
    return list(zip(first.tolist(), (last + 1).tolist(), strict=True))
