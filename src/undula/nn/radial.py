"""Weights that depend on one distance: a Gaussian basis, a smooth window and a small network.

All pairs of a surface cloud share one function of the distance. It is therefore evaluated on a
few knots and interpolated, which costs the same for a thousand pairs and for a million.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite, pi
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from undula.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class RadialConfig:
    """The form of the radial weights.

    Attributes:
        window: Filter window σ_d, Å: nothing is heard from this distance on. 9 to 12 Å.
        centres: Gaussians, at equal spacings from 0 to the window.
        sharpness: γ of the Gaussians, 1/Å²; None for 1 / (2 spacing²), where each one reaches
            its neighbours. The paper's 10 Å⁻² leaves gaps unless the spacing is below 0.3 Å.
        hidden: Width of the network.
        form: "table" evaluates the network on knots and interpolates linearly, "network"
            evaluates it for every pair: slower, and the memory grows with the pairs.
        knots: Knots of the table, at equal spacings from 0 to the window.
    """

    window: float = 9.0
    centres: int = 32
    sharpness: float | None = None
    hidden: int = 64
    form: Literal["table", "network"] = "table"
    knots: int = 4096

    def __post_init__(self) -> None:
        for name in ("window", "sharpness"):
            value = getattr(self, name)
            if value is not None and not (isfinite(value) and value > 0):
                raise UsageError(f"radial.{name} must be positive, not {value}")
        for name, least in (("centres", 2), ("hidden", 1), ("knots", 2)):
            if getattr(self, name) < least:
                raise UsageError(
                    f"radial.{name} must be at least {least}, not {getattr(self, name)}"
                )


class RadialWeights(NamedTuple):
    r"""Weights of pairs as places between rows of a table.

    .. math:: w_e = (1 - f_e) \, T_{k_e} + f_e \, T_{k_e + 1}

    Attributes:
        rows: T. For a network without a table these are the weights of the pairs themselves,
            and one more row.
        lower: k, below the last row.
        part: f, from 0 to 1.
    """

    rows: Float[Tensor, "rows weights"]
    lower: Int[Tensor, " pairs"]
    part: Float[Tensor, " pairs"]

    def of_pairs(self) -> Float[Tensor, "pairs weights"]:
        """Return the weights pair by pair."""
        low, high = self.rows[self.lower], self.rows[self.lower + 1]
        return torch.lerp(low, high, self.part[:, None])


def check_places(weights: RadialWeights, pairs: int) -> None:
    """Refuse places where a compiled loop would read another's memory.

    Raises:
        ValueError: There are not as many as pairs, or one lies outside the table.
    """
    lower, part, last = weights.lower, weights.part, len(weights.rows) - 2
    if len(lower) != pairs or len(part) != pairs:
        raise ValueError(f"{pairs} pairs need as many places, not {len(lower)}")
    if pairs and (int(lower.min()) < 0 or int(lower.max()) > last):
        raise ValueError(f"the places of pairs should be from 0 to {last}")


def gaussian_basis(
    distances: Float[Tensor, " pairs"], centres: int, window: float, sharpness: float | None = None
) -> Float[Tensor, "pairs centres"]:
    r"""Compute Gaussians of the distance at equal spacings.

    .. math:: r_k(d) = e^{-\gamma (d - \mu_k)^2}, \qquad \mu_k = \frac{k}{K - 1} \, \sigma_d

    Args:
        distances: d, Å.
        centres: K, at least 2.
        window: σ_d, where the last Gaussian stands, Å.
        sharpness: γ, 1/Å²; None for 1 / (2 spacing²).

    Returns:
        Numbers from 0 to 1, one column per centre.

    Source: MoE-DSR, the radial basis of the messages (after SchNet). Differs from it: the
    centres end at the window and not at 30 Å, as no pair is farther apart.
    """
    spacing = window / (centres - 1)
    gamma = 1 / (2 * spacing**2) if sharpness is None else sharpness
    at = torch.linspace(0, window, centres, dtype=distances.dtype, device=distances.device)
    return torch.exp(-gamma * (distances[:, None] - at).square())


def cosine_cutoff(distances: Float[Tensor, "*pairs"], window: float) -> Float[Tensor, "*pairs"]:
    r"""Compute a smooth window.

    .. math:: c(d) = \tfrac12 \left( \cos (\pi d / \sigma_d) + 1 \right)

    Args:
        distances: d ≥ 0, Å.
        window: σ_d, Å.

    Returns:
        1 at distance 0, falling to 0 at the window with slope 0; exactly 0 beyond.

    Source: Behler and Parrinello, Phys. Rev. Lett. 98 (2007) 146401, for MoE-DSR's window.
    """
    return (torch.cos(distances.clamp(max=window) * (pi / window)) + 1) / 2


class RadialNetwork(nn.Module):
    r"""Map a distance to the weights of a message.

    .. math:: w(d) = c(d) \, \left( W_2 \, \mathrm{SiLU}(\mathrm{LN}(W_1 r(d) + b_1)) + b_2 \right)

    ====  =========================
    r(d)  `gaussian_basis`
    c(d)  `cosine_cutoff`
    W_1   ``first``
    LN    ``norm``
    W_2   ``second``
    ====  =========================

    Source: MoE-DSR, the weights of the depth-wise tensor product, with the layers of Equiformer.
    Differs from it: the window c, without which a pair that enters it would make a jump.
    """

    def __init__(self, config: RadialConfig, weights: int, generator: torch.Generator) -> None:
        """Make a network with so many outputs, drawn from ``generator`` with variance 1."""
        super().__init__()
        self.config = config
        self.first = nn.utils.skip_init(nn.Linear, config.centres, config.hidden)
        self.norm = nn.LayerNorm(config.hidden)
        self.second = nn.utils.skip_init(nn.Linear, config.hidden, weights)
        for layer, size in ((self.first, config.centres), (self.second, config.hidden)):
            nn.init.normal_(layer.weight, std=size**-0.5, generator=generator)
            nn.init.zeros_(layer.bias)
        with torch.no_grad():
            self.second.weight *= _AFTER_SILU

    def forward(self, distances: Float[Tensor, " pairs"]) -> Float[Tensor, "pairs weights"]:
        """Compute the weights at some distances (Å) by the network itself."""
        form = self.config
        basis = gaussian_basis(distances, form.centres, form.window, form.sharpness)
        weights = self.second(functional.silu(self.norm(self.first(basis))))
        return weights * cosine_cutoff(distances, form.window)[:, None]

    def weights(self, distances: Float[Tensor, " pairs"]) -> RadialWeights:
        r"""Compute the weights of pairs in the form of the configuration.

        The table is made from the network in every call, so that a loss on the weights moves the
        network. Linear interpolation errs by at most :math:`h^2 \max |w''| / 8` with h the
        spacing of the knots: of messages with fresh weights 3e-6 (mean square, 32 centres; 4e-5
        with 1,024 knots, more for narrower Gaussians).

        Args:
            distances: One per pair, Å; from the window on the weights are 0.

        Returns:
            Places in the table, or the network's own outputs as rows.
        """
        if self.config.form == "network":
            lower = torch.arange(len(distances), device=distances.device)
            rows = functional.pad(self(distances), (0, 0, 0, 1))
            return RadialWeights(rows, lower, torch.zeros_like(distances))
        window, knots = self.config.window, self.config.knots
        at = torch.linspace(0, window, knots, dtype=distances.dtype, device=distances.device)
        place = distances.clamp(0, window) * ((knots - 1) / window)
        lower = place.detach().long().clamp(0, knots - 2)
        return RadialWeights(self(at), lower, place - lower)


_AFTER_SILU = 1.68
"""What brings SiLU of a standard normal number back to a mean square of 1."""
