"""Thermal motion of an elastic network: the springs of a chain in a bath of some temperature."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from undula.geometry.elastic_network import ANM_CUTOFF, anisotropic_network_modes

THERMAL = 0.596
"""kT / γ at 300 K of a spring of γ = 1 kcal/mol/Å², Å²: the customary round value for springs
within `ANM_CUTOFF`, and not fitted to anything here."""


def thermal_displacements(
    positions: Float[Tensor, "nodes 3"],
    count: int,
    generator: torch.Generator,
    *,
    thermal: float = THERMAL,
    cutoff: float = ANM_CUTOFF,
) -> Float[Tensor, "count nodes 3"]:
    r"""Draw displacements of an anisotropic network at equilibrium, from all its inner modes.

    .. math:: \delta = \sum_k \sqrt{\frac{kT}{\gamma \lambda_k}} \, \xi_k v_k, \quad
        \xi_k \sim N(0, 1), \qquad
        \langle \delta \delta^T \rangle = \frac{kT}{\gamma} H^{+}

    Every mode holds kT/2 on average, and none shifts or turns the whole. Two nodes stretch the
    spring between them by √(kT/γ), root mean square. With the default, Cα of small proteins move
    by 0.4 to 0.8 Å; loose ends, which few springs hold, by more.

    Args:
        positions: Of the Cα, Å.
        count: How many draws.
        generator: Of ξ, in the order of the modes, so that draws turn and shift with the chain.
        thermal: kT / γ, Å².
        cutoff: Contact distance r_c, Å.

    Returns:
        Displacements, Å; all 0 where the network has no inner mode.

    Source: Atilgan et al. (2001) for the network; equipartition for the rest.
    """
    stiffness, modes = anisotropic_network_modes(positions, 3 * len(positions), cutoff)
    drawn = torch.randn(count, len(stiffness), generator=generator, dtype=torch.float64)
    return torch.einsum("ck,knd->cnd", drawn * (thermal / stiffness).sqrt(), modes)
