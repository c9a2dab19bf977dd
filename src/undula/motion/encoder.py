r"""The encoder: an observed window to a distribution over the state now.

Each of a few observed frames is a graph. A network on it (PaiNN, or EGNN) gives every atom
scalars and vectors; attention over the frames, asked by the last one, gathers them; and from what
was gathered come the mean and width of a normal posterior and what is known for certain.

Frames are taken back from now at doubling distances, 0, 1, 2, 4, … frames, so that the present,
on which the near future depends, is always seen, and the past to any depth at the cost of its
logarithm.

Source: the DoMiNO slides; temporal attention after Huang et al., LG-ODE (NeurIPS 2020), eq. 6.
Differs from them: the last frame is always included (the public code stops 20 ps short of it),
atoms are known by their kind and not by an index, and vectors stay vectors, so that a turned
window gives a turned posterior.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from undula.errors import UsageError
from undula.motion.surroundings import BondTable, graph_of
from undula.nn.egnn import EGNN, EGNNConfig
from undula.nn.gated import Gated, lengths, linear
from undula.nn.painn import PaiNN, PaiNNConfig
from undula.nn.radial import RadialConfig

VECTOR_INPUTS = 4
"""Velocity, what the past deviates from its linear reconstruction, observed mean, drift."""
SCALAR_INPUTS = VECTOR_INPUTS + 2
"""Their lengths, age, whether velocities were recorded; and the charge where that is wanted."""


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """What the network sees of the window and how wide it is.

    Attributes:
        backbone: "painn" or "egnn", in the encoder and in the levels.
        features: Channels of scalars and of vectors.
        layers: Exchanges with the neighbours per frame.
        cutoff: Atoms closer than this hear each other, Å.
        neighbours: Typical number of neighbours, which sums are divided by the root of.
        oldest: How many frames back the oldest frame lies; 0 sees the last one alone.
        latent: Scalars, and vectors, of the sampled state.
        heads: Of the attention over frames.
        bonds: Whether pairs one, two and three bonds apart are told from the others.
        charges: Whether the atoms' partial charges are seen.
    """

    backbone: Literal["painn", "egnn"] = "painn"
    features: int = 64
    layers: int = 2
    cutoff: float = 7.5
    neighbours: float = 24.0
    oldest: int = 1024
    latent: int = 16
    heads: int = 4
    bonds: bool = True
    charges: bool = False

    def __post_init__(self) -> None:
        for name in ("features", "layers", "latent", "heads"):
            if getattr(self, name) < 1:
                raise UsageError(f"encoder.{name} must be at least 1, not {getattr(self, name)}")
        if self.backbone not in ("painn", "egnn"):
            raise UsageError(f'encoder.backbone must be "painn" or "egnn", not {self.backbone!r}')
        if self.features % self.heads:
            raise UsageError(
                f"encoder.features ({self.features}) should be a multiple of heads ({self.heads})"
            )
        if not 0 < self.cutoff < float("inf"):
            raise UsageError(f"encoder.cutoff must be positive, not {self.cutoff} Å")
        if not self.neighbours > 0:
            raise UsageError(f"encoder.neighbours must be positive, not {self.neighbours}")
        if self.oldest < 0:
            raise UsageError(f"encoder.oldest must be at least 0, not {self.oldest}")

    def ages(self, observed: int) -> tuple[int, ...]:
        """Return how many frames back each frame lies that is looked at, now first.

        Args:
            observed: Frames in the window; older ones cannot be looked at.
        """
        farthest = min(self.oldest, observed - 1)
        ages, age = [0], 1
        while age <= farthest:
            ages.append(age)
            age *= 2
        return tuple(ages)


def backbone(config: EncoderConfig, layers: int, generator: torch.Generator) -> PaiNN | EGNN:
    """Make the network that exchanges scalars and vectors between neighbours."""
    radial = RadialConfig(window=config.cutoff, centres=20, knots=512)
    kinds = 4 if config.bonds else 1
    if config.backbone == "egnn":
        return EGNN(
            EGNNConfig(
                features=config.features,
                layers=layers,
                radial=radial,
                pair_kinds=kinds,
                neighbours=config.neighbours,
            ),
            generator,
        )
    return PaiNN(
        PaiNNConfig(
            features=config.features,
            layers=layers,
            radial=radial,
            pair_kinds=kinds,
            neighbours=config.neighbours,
        ),
        generator,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Observation:
    """Some windows of one system as the encoder takes them; the last frame comes first.

    Attributes:
        kinds: Number of each atom's kind in the model's list.
        ages: How many frames back each frame lies, now (0) first.
        positions: Å, unwrapped.
        vectors: What each atom is told of each frame, dimensionless; see `VECTOR_INPUTS`.
        recorded: 1 where velocities were recorded, 0 where they are differences of positions.
        charges: e; zeros where they are not known.
        boxes: Edge vectors now, Å; none without a box.
    """

    kinds: Int[Tensor, " atoms"]
    ages: Int[Tensor, " frames"]
    positions: Float[Tensor, "windows frames atoms 3"]
    vectors: Float[Tensor, "windows frames atoms 3 inputs"]
    recorded: Float[Tensor, " windows"]
    charges: Float[Tensor, " atoms"]
    boxes: Float[Tensor, "windows 3 3"] | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Posterior:
    r"""A normal distribution over the state now, beside what is certain.

    .. math:: q(z) = \mathcal{N}(\mu, \sigma), \quad
        q(\mathbf{z}) = \mathcal{N}(\boldsymbol\mu, \sigma_v \mathbf{1}_3)

    A vector has one width for its three components, so that the distribution turns with it.

    Attributes:
        scalars: μ.
        scalar_widths: σ.
        vectors: The vectors' μ.
        vector_widths: σ_v, one per vector.
        certain_scalars: Handed on without noise.
        certain_vectors: Handed on without noise.
    """

    scalars: Float[Tensor, "rows latent"]
    scalar_widths: Float[Tensor, "rows latent"]
    vectors: Float[Tensor, "rows 3 latent"]
    vector_widths: Float[Tensor, "rows latent"]
    certain_scalars: Float[Tensor, "rows features"]
    certain_vectors: Float[Tensor, "rows 3 features"]

    def drawn(
        self, generator: torch.Generator | None
    ) -> tuple[Float[Tensor, "rows latent"], Float[Tensor, "rows 3 latent"]]:
        """Draw z once, from torch's own generator if none is given."""
        noise = torch.randn(
            (*self.scalars.shape[:1], 4, self.scalars.shape[1]),
            generator=generator,
            dtype=self.scalars.dtype,
            device=self.scalars.device if generator is None else generator.device,
        ).to(self.scalars.device)
        return (
            self.scalars + self.scalar_widths * noise[:, 0],
            self.vectors + self.vector_widths[:, None] * noise[:, 1:],
        )

    def divergence(self) -> Float[Tensor, ""]:
        r"""Compute the Kullback–Leibler divergence from the prior N(0, 1), nats per atom.

        .. math:: \tfrac12 \sum (\mu^2 + \sigma^2 - 1 - \ln \sigma^2)

        A vector counts its three components.
        """
        scalar = self.scalars.square() + self.scalar_widths.square() - 1
        scalar = scalar - 2 * self.scalar_widths.log()
        vector = self.vectors.square().sum(dim=1) + 3 * (self.vector_widths.square() - 1)
        vector = vector - 6 * self.vector_widths.log()
        return (scalar.sum(dim=1) + vector.sum(dim=1)).mean() / 2


class WindowEncoder(nn.Module):
    """Window to posterior.

    Args:
        config: Sizes and choices.
        kinds: How many chemical kinds are known.
        generator: Draws the weights.
    """

    def __init__(self, config: EncoderConfig, kinds: int, generator: torch.Generator) -> None:
        super().__init__()
        self.config = config
        width = config.features
        self.kinds = nn.Embedding(kinds, width)
        self.heard = linear(SCALAR_INPUTS + config.charges, width, generator)
        self.directed = linear(VECTOR_INPUTS, width, generator, bias=False)
        self.net = backbone(config, config.layers, generator)
        self.asked = linear(width, width, generator)
        self.offered = linear(width, width, generator)
        self.gathered_scalars = linear(width, width, generator)
        self.gathered_vectors = linear(width, width, generator, bias=False)
        self.posterior = Gated(
            width, width, 3 * config.latent, config.latent, width, generator, gain=0.1
        )
        with torch.no_grad():
            self.kinds.weight.normal_(0, 1, generator=generator)

    def forward(self, seen: Observation, bonds: BondTable | None) -> Posterior:
        """Compute the posterior of every atom of every window, window by window."""
        windows, frames, atoms = seen.positions.shape[:3]
        scalars, vectors = self._inputs(seen)
        boxes = seen.boxes
        if boxes is not None:
            boxes = boxes.repeat_interleave(frames, dim=0)
        graph = graph_of(seen.positions.flatten(0, 1), boxes, self.config.cutoff, bonds)
        scalars, vectors = self.net(
            scalars.flatten(0, 2), vectors.flatten(0, 2), self.net.filters(graph)
        )
        shape = (windows, frames, atoms)
        certain_s, certain_v = self._gathered(
            scalars.unflatten(0, shape), vectors.unflatten(0, shape)
        )
        latent = self.config.latent
        made, mean_v = self.posterior(certain_s, certain_v)
        mean_s, wide_s, wide_v = made.split(latent, dim=1)
        return Posterior(
            scalars=mean_s,
            scalar_widths=torch.exp(wide_s - 1),
            vectors=mean_v,
            vector_widths=torch.exp(wide_v - 1),
            certain_scalars=certain_s,
            certain_vectors=certain_v,
        )

    def _inputs(
        self, seen: Observation
    ) -> tuple[
        Float[Tensor, "windows frames atoms features"],
        Float[Tensor, "windows frames atoms 3 features"],
    ]:
        """Embed what each atom is told in each frame."""
        windows, frames, atoms = seen.positions.shape[:3]
        of_atoms = (windows, frames, atoms, 1)
        age = torch.log1p(seen.ages.to(seen.positions)).view(1, frames, 1, 1)
        recorded = seen.recorded.view(windows, 1, 1, 1)
        told = [lengths(seen.vectors), age.expand(of_atoms), recorded.expand(of_atoms)]
        if self.config.charges:
            told.append(seen.charges.view(1, 1, atoms, 1).expand(of_atoms))
        # Squeezed, so that a rare large input does not drown the others.
        scalars = self.heard(torch.asinh(torch.cat(told, dim=-1))) + self.kinds(seen.kinds)
        return scalars, self.directed(seen.vectors)

    def _gathered(
        self,
        scalars: Float[Tensor, "windows frames atoms features"],
        vectors: Float[Tensor, "windows frames atoms 3 features"],
    ) -> tuple[Float[Tensor, "rows features"], Float[Tensor, "rows 3 features"]]:
        r"""Gather the frames by attention that the last one asks for.

        .. math:: w_k = \operatorname{softmax}_k \langle Q s_0, K s_k \rangle / \sqrt{F / H}

        in each of H groups of channels, for scalars and vectors alike. Each group has its own
        weights, so that the layer after them can take differences of frames.
        """
        heads = self.config.heads
        asked = self.asked(scalars[:, :1]).unflatten(-1, (heads, -1))
        offered = self.offered(scalars).unflatten(-1, (heads, -1))
        score = (asked * offered).sum(dim=-1) / sqrt(offered.shape[-1])
        weight = score.softmax(dim=1)
        each = weight.repeat_interleave(offered.shape[-1], dim=-1)
        own_s, own_v = scalars[:, 0], vectors[:, 0]
        mixed_s = own_s + self.gathered_scalars((each * scalars).sum(dim=1))
        mixed_v = own_v + self.gathered_vectors((each.unsqueeze(-2) * vectors).sum(dim=1))
        return mixed_s.flatten(0, 1), mixed_v.flatten(0, 1)
