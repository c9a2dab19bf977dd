r"""The losses of a signed distance field.

======================  =========================================================
symbol                  variable
======================  =========================================================
f(x, t)                 ``value``
:math:`\nabla_x f`      ``gradient``
n                       ``normals``
τ, λ_SDF, λ_z           ``LossConfig.normal``, ``.eikonal``, ``.latent``
======================  =========================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from undula.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights of the terms; a term of weight 0 is not computed.

    Attributes:
        distance: Of the exact-distance regression.
        manifold: Of |f| at surface points.
        normal: Of the gradient's distance from the normal at surface points (τ).
        eikonal: Of the squared deviation of the gradient's length from 1 around (λ_SDF).
        latent: Of the norm of the latent code (λ_z).
        units: Lengths in "angstrom", or "normalised" by the protein's scale as in the paper.
    """

    distance: float = 1.0
    manifold: float = 0.0
    normal: float = 0.0
    eikonal: float = 0.0
    latent: float = 1e-4
    units: Literal["angstrom", "normalised"] = "angstrom"

    def __post_init__(self) -> None:
        weights = (self.distance, self.manifold, self.normal, self.eikonal, self.latent)
        if min(weights) < 0:
            raise UsageError("the weights of the losses should not be negative")
        if not (self.distance or self.manifold):
            raise UsageError("either loss.distance or loss.manifold should be positive")


def manifold_loss(value: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    r"""Compute :math:`E_{x \sim X_t} |f(x, t)|`. Source: MoE-DSR, SDF loss, first term."""
    return value.abs().mean()


def normal_loss(gradient: Float[Tensor, "n 3"], normals: Float[Tensor, "n 3"]) -> Float[Tensor, ""]:
    r"""Compute :math:`E \lVert \nabla_x f - n \rVert_2`. Source: MoE-DSR, SDF loss, second term."""
    return (gradient - normals).norm(dim=-1).mean()


def eikonal_loss(gradient: Float[Tensor, "n 3"]) -> Float[Tensor, ""]:
    r"""Compute :math:`E_{x \sim D} (\lVert \nabla_x f \rVert - 1)^2`.

    Source: MoE-DSR, SDF loss, third term, with the square of IGR and DSR that the print lacks.
    """
    return (gradient.norm(dim=-1) - 1).square().mean()


def latent_loss(latent: Float[Tensor, "frames size"]) -> Float[Tensor, ""]:
    r"""Compute :math:`E \lVert z \rVert_2`. Source: MoE-DSR, SDF loss, last term; DSR."""
    return latent.norm(dim=-1).mean()


def distance_loss(value: Float[Tensor, " n"], distance: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    r"""Compute :math:`E |f(x, t) - d(x, M_t)|` against the exact signed distance.

    Its minimiser is the median over the frames that share a time: no gradient by the points
    is needed and the sign is never ambiguous. Not in the papers.
    """
    return (value - distance).abs().mean()
