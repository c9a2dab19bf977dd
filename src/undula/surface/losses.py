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

import torch
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
        for name in ("distance", "manifold", "normal", "eikonal", "latent"):
            if getattr(self, name) < 0:
                raise UsageError(f"loss.{name} should not be negative")
        if not (self.distance or self.manifold):
            raise UsageError("either loss.distance or loss.manifold should be positive")


@dataclass(frozen=True, kw_only=True)
class MixtureLossConfig:
    """Weights of the terms of MoE-DSR; a term of weight 0 is not computed.

    Attributes:
        distance: Of the regression of exact distances at fixed points.
        quantile: Which quantile of the distance that regression aims at. The surface of the
            quantile q holds every place that is inside in more than q of all frames; the
            best IoU is reached below one half (at I / (1 + I) for an expected IoU of I).
        energy: Of the energy score of samples.
        manifold: Of |f| at surface points, in units of the protein's size (paper experts).
        normal: Of the gradient's distance from the normal at surface points (τ; paper experts).
        eikonal: Of the squared deviation of the gradient's length from 1 (λ_SDF; paper experts).
        latent: Of the norm of the latent code (λ_z).
        balance: Of the uneven use of experts (λ_2).
    """

    distance: float = 1.0
    quantile: float = 0.43
    energy: float = 1.0
    manifold: float = 0.0
    normal: float = 0.0
    eikonal: float = 0.0
    latent: float = 1e-4
    balance: float = 0.01

    def __post_init__(self) -> None:
        for name in ("distance", "energy", "manifold", "normal", "eikonal", "latent", "balance"):
            if getattr(self, name) < 0:
                raise UsageError(f"loss.{name} should not be negative")
        if not 0 < self.quantile < 1:
            raise UsageError(f"loss.quantile should be between 0 and 1, not {self.quantile}")

    def check(self, *, paper: bool, samples: bool) -> None:
        """Refuse terms that the experts cannot have.

        Raises:
            UsageError: Naming the term.
        """
        if paper and (self.distance or self.energy or not self.manifold):
            raise UsageError(
                "experts of kind paper are trained with loss.manifold: set loss.distance and "
                "loss.energy to 0"
            )
        if not paper and (self.manifold or self.normal or self.eikonal or not self.distance):
            raise UsageError(
                "loss.manifold, loss.normal and loss.eikonal belong to experts of kind paper; "
                "set them to 0 and loss.distance above"
            )
        if not paper and samples != bool(self.energy):
            raise UsageError("loss.energy above 0 and model.samples belong together")


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


def quantile_loss(
    value: Float[Tensor, " n"], distance: Float[Tensor, " n"], quantile: float
) -> Float[Tensor, ""]:
    r"""Compute the pinball loss against the exact signed distance.

    .. math:: 2 \, E \max(q (d - f), (q - 1)(d - f))

    Its minimiser is the q-quantile of the distance at each place and time; with q = 1/2 it is
    `distance_loss`. Source: Koenker and Bassett (1978). Not in the papers.

    Args:
        value: f, Å.
        distance: d, Å.
        quantile: q.
    """
    error = distance - value
    return 2 * torch.maximum(quantile * error, (quantile - 1) * error).mean()


def energy_score(
    samples: Float[Tensor, "frames samples points"], truth: Float[Tensor, "frames points"]
) -> Float[Tensor, ""]:
    r"""Compute the energy score of sampled fields, per root of the number of points.

    .. math::
        \frac{1}{\sqrt n} \Big( \frac1S \sum_s \lVert F_s - y \rVert
        - \frac{1}{2 S (S - 1)} \sum_{s \ne s'} \lVert F_s - F_{s'} \rVert \Big)

    A proper score: on average it is smallest if the samples are drawn from the distribution of
    the truth, correlations between places included. Source: Gneiting and Raftery (2007), eq. 22,
    with the unbiased form of the second term. Not in the papers.

    Args:
        samples: F, at least two per frame, Å.
        truth: y, Å.

    Returns:
        The mean over frames, Å.
    """
    count, points = samples.shape[1:]
    error = (samples - truth[:, None]).norm(dim=2).mean(dim=1)
    i, j = torch.triu_indices(count, count, offset=1, device=samples.device)
    # The root of 0, where two samples agree, has no gradient.
    apart = ((samples[:, i] - samples[:, j]).square().sum(dim=2) + 1e-12).sqrt().mean(dim=1)
    return ((error - apart / 2) / points**0.5).mean()
