r"""ITO: displacements over a lag, drawn by a denoising diffusion that sees the present.

.. math::
    x = \frac{r(t) - r_0}{u(t)}, \qquad y_k = \alpha_k x + \sigma_k \varepsilon, \qquad
    \hat v(y_k, k; r_0, t) \approx \alpha_k \varepsilon - \sigma_k x

u is how far atoms of a kind usually go in a lag, so that x has spread 1 at any lag, and v is what
a network makes of the noised displacements, as vectors on the graph of the present frame, told
the step k and the logarithm of the lag. Where it is silent the forecast is normal with that
spread. Turned and mirrored presents give turned and mirrored distributions, shifted ones shifted
ones, and relabelled atoms are relabelled; a present superposed on a reference has its hand.

Drawn in one step, at the full lag from now (all lags of a sample start from the same noise, so
that a course is continuous), or in a rollout of small lags, each from where the one before ended.
A rollout that leaves the range of what is possible is stopped there and said to have diverged.

Source: Schreiner, Winther, Olsson, "Implicit Transfer Operator Learning: Multiple Time-Resolution
Surrogates for Molecular Dynamics" (NeurIPS 2023), and its public code for the schedule. Differs
from it: pairs have a cutoff and go through the walls of a periodic box; atoms are known by their
kind and not by an index; displacements are in units of their lag (there all lengths are in one
unit), unwrapped, and noised displacements are vector inputs on the graph of the present (there a
second graph is made of noised positions, which means nothing in a box at long lags); the network
mirrors as well (there it has a cross product); v is learned instead of ε, which are the same but
for weights by step; samples come from the probability flow in 25 evaluations (there DPM-Solver in
50). As there, it does not see velocities unless asked to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from math import log, pi
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from undula.errors import InputError, UsageError
from undula.learn.checkpoint import load_into
from undula.motion.baselines.background import Background, Scales
from undula.motion.baselines.diffusion import Schedule, probability_flow, sigmoid_schedule
from undula.motion.demands import Demands
from undula.motion.observation import velocities_of
from undula.motion.surroundings import BONDS_APART, BondTable, bond_table, graph_of
from undula.motion.windows import AtomForecast, Divergence, Window
from undula.nn.gated import linear
from undula.nn.painn import Filters, PaiNN, PaiNNConfig
from undula.nn.radial import RadialConfig

KIND = "ito"
BLOCKS_AT_ONCE = 8
"""Displacements of a whole system that are drawn together on a CPU."""
_WAVES = 8
"""Frequencies that a step or a lag is told by."""


@dataclass(frozen=True, kw_only=True)
class ItoConfig:
    """Sizes and choices of the network and its training.

    Attributes:
        features: Channels of scalars and of vectors.
        layers: Exchanges with the neighbours.
        cutoff: Atoms closer than this in the present frame hear each other, Å.
        neighbours: Typical number of neighbours.
        velocities: Whether velocities now are seen, which the publication's network is not told;
            it then makes single steps only, since it draws none to go on from.
        steps: Of the diffusion.
        first: Where the numbers start whose sigmoids are the β.
        last: Where they end.
        lags: Lags after each window in a step of training, evenly in the logarithm.
    """

    features: int = 64
    layers: int = 2
    cutoff: float = 7.5
    neighbours: float = 24.0
    velocities: bool = False
    steps: int = 1000
    first: float = -8.0
    last: float = -4.0
    lags: int = 4

    def __post_init__(self) -> None:
        for name in ("features", "layers", "steps", "lags"):
            if getattr(self, name) < 1:
                raise UsageError(f"ito.{name} must be at least 1, not {getattr(self, name)}")
        for name in ("cutoff", "neighbours"):
            if not 0 < getattr(self, name) < float("inf"):
                raise UsageError(f"ito.{name} must be positive, not {getattr(self, name)}")

    @property
    def schedule(self) -> Schedule:
        """The shares of signal and noise."""
        return sigmoid_schedule(self.steps, self.first, self.last)


@dataclass(frozen=True, kw_only=True)
class ItoSampling:
    """How futures are drawn.

    Attributes:
        evaluations: Calls of the network for a step; see `probability_flow`.
        draws: Samples whose mean is the forecast.
        sane: A sample has diverged when an atom is farther from now than this many times the
            usual displacement along an axis.
    """

    evaluations: int = 25
    draws: int = 16
    sane: float = 12.0

    def __post_init__(self) -> None:
        for name, least in (("evaluations", 3), ("draws", 2)):
            if getattr(self, name) < least:
                raise UsageError(
                    f"sampling.{name} must be at least {least}, not {getattr(self, name)}"
                )
        if not 0 < self.sane < float("inf"):
            raise UsageError(f"sampling.sane must be positive, not {self.sane}")


@dataclass(frozen=True, kw_only=True, eq=False)
class Present:
    """Frames from which displacements are drawn, and how far; one a block.

    Attributes:
        positions: Å, unwrapped.
        velocities: In units of the usual speed; zeros where they are not seen.
        boxes: Edge vectors, Å; none without a box.
        lags: Frames.
        kinds: Number of each atom's kind.
    """

    positions: Float[Tensor, "blocks atoms 3"]
    velocities: Float[Tensor, "blocks atoms 3"]
    boxes: Float[Tensor, "blocks 3 3"] | None
    lags: Float[Tensor, " blocks"]
    kinds: Int[Tensor, " atoms"]

    def part(self, some: slice) -> Present:
        """Return some of the blocks."""
        return Present(
            positions=self.positions[some],
            velocities=self.velocities[some],
            boxes=None if self.boxes is None else self.boxes[some],
            lags=self.lags[some],
            kinds=self.kinds,
        )


class Denoiser(nn.Module):
    r"""Tell v = α ε − σ x from noised displacements.

    Args:
        config: Sizes and choices.
        kinds: How many chemical kinds are known.
        horizon: The longest lag, frames.
        seed: Of the weights.
    """

    def __init__(self, config: ItoConfig, kinds: int, horizon: int, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.config, self.horizon, width = config, horizon, config.features
        self.kinds = nn.Embedding(kinds, width)
        self.told = linear(4 * _WAVES, width, generator)
        self.taught = linear(width, width, generator)
        self.entered = linear(1 + config.velocities, width, generator, bias=False)
        self.net = PaiNN(
            PaiNNConfig(
                features=width,
                layers=config.layers,
                radial=RadialConfig(window=config.cutoff, centres=20, knots=512),
                pair_kinds=BONDS_APART + 1,
                neighbours=config.neighbours,
            ),
            generator,
        )
        self.gates = linear(width, width, generator)
        self.left = linear(width, 1, generator, bias=False, gain=0.0)
        with torch.no_grad():
            self.kinds.weight.normal_(0, 1, generator=generator)

    def surroundings(self, present: Present, bonds: BondTable) -> Filters:
        """Compute what stays the same while displacements from some frames are denoised."""
        graph = graph_of(present.positions, present.boxes, self.config.cutoff, bonds)
        return self.net.filters(graph)

    def forward(
        self,
        noised: Float[Tensor, "blocks atoms 3"],
        steps: Float[Tensor, " blocks"],
        present: Present,
        surroundings: Filters,
    ) -> Float[Tensor, "blocks atoms 3"]:
        """Compute v.

        Args:
            noised: y, in units of the usual displacement.
            steps: k, from 0 to the steps of the diffusion.
            present: Frames, lags and kinds.
            surroundings: From `surroundings`, of the same frames.
        """
        share = torch.log1p(present.lags) / log(self.horizon + 1)
        waves = torch.cat([_waves(steps / self.config.steps), _waves(share)], dim=-1)
        told = self.taught(functional.silu(self.told(waves)))
        scalars = told[:, None] + self.kinds(present.kinds)
        given = [noised, present.velocities] if self.config.velocities else [noised]
        vectors = self.entered(torch.stack(given, dim=-1))
        scalars, vectors = self.net(scalars.flatten(0, 1), vectors.flatten(0, 1), surroundings)
        opened = torch.sigmoid(self.gates(functional.layer_norm(scalars, scalars.shape[-1:])))
        return self.left(opened[:, None] * vectors)[..., 0].unflatten(0, (len(noised), -1))


def _waves(number: Float[Tensor, " blocks"]) -> Float[Tensor, "blocks waves"]:
    """Tell a number from 0 to 1 by sines and cosines of doubling frequency."""
    pace = pi * 2.0 ** torch.arange(_WAVES, dtype=number.dtype, device=number.device) / 2
    turned = number[:, None] * pace
    return torch.cat([turned.sin(), turned.cos()], dim=-1)


def present(
    window: Window, lags: Float[Tensor, " times"], scales: Scales, kinds: Int[Tensor, " atoms"]
) -> Present:
    """Take the last frame of a window once for each lag (frames)."""
    blocks = len(lags)
    speed = scales.speed.to(window.positions)[kinds][:, None]
    velocity = velocities_of(window, [0])[0] / speed
    box = window.box
    return Present(
        positions=window.now.expand(blocks, -1, -1),
        velocities=velocity.expand(blocks, -1, -1),
        boxes=None if box is None else box.to(window.positions).expand(blocks, 3, 3),
        lags=lags.to(window.positions),
        kinds=kinds,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class ItoForecast(AtomForecast):
    """A forecast from samples.

    Attributes:
        diverged: Share of the samples that had left the range of what is possible; they count
            with where they were before.
    """

    diverged: Float[Tensor, " times"]

    @property
    def divergence(self) -> Divergence | None:
        """When the first sample diverged."""
        gone = self.diverged.nonzero()[:, 0]
        if len(gone) == 0:
            return None
        return Divergence(
            after_ps=float(self.lags_ps[gone].min()), share=float(self.diverged.max())
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Courses:
    """Samples, and which of them are none.

    Attributes:
        positions: Unwrapped, Å.
        diverged: Whether a sample had left the range of what is possible; its positions are then
            the last ones within it.
    """

    positions: Float[Tensor, "samples times atoms 3"]
    diverged: Bool[Tensor, "samples times"]


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainedIto:
    """ITO ready to forecast windows of the system it was trained on.

    Attributes:
        model: The network.
        background: Units, reference, provenance.
        rollout: Longest lag of a step, frames; 0 goes to every time in one step.
        sampling: How futures are drawn.
        seed: Of the samples whose mean is the forecast.
    """

    model: Denoiser
    background: Background
    rollout: int = 0
    sampling: ItoSampling = field(default_factory=ItoSampling)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rollout < 0:
            raise UsageError(f"ITO rolls out in lags of at least 0 frames, not {self.rollout}")
        if self.rollout and self.model.config.velocities:
            raise UsageError("ITO that sees velocities has none to go on from: it cannot roll out")

    @property
    def name(self) -> str:
        """What it is called in tables."""
        way = f"rollout of {self.rollout} frames" if self.rollout else "one step"
        return f"ITO, {way}, {self.sampling.draws} samples"

    @property
    def remark(self) -> str:
        """How it comes to a mean."""
        way = f"steps of {self.rollout} frames" if self.rollout else "one step to each time"
        return (
            f"the mean of {self.sampling.draws} samples, {way}, "
            f"{self.sampling.evaluations} evaluations a step"
        )

    @property
    def provenance(self) -> dict[str, Any]:
        """What it was trained on and how."""
        return self.background.provenance

    @property
    def demands(self) -> Demands:
        """What it takes and gives."""
        scales, config = self.background.scales, self.model.config
        return Demands(
            kinds=scales.kinds,
            frame_ps=scales.frame_ps,
            observed=self.background.observed,
            needed=(2, 1) if config.velocities else (1, 1),
            horizon_ps=scales.horizon * scales.frame_ps,
            reference=self.background.reference,
            samples=True,
            said=(f"Its mean and spread are those of samples: {self.remark}.",),
            features=config.features,
            neighbours=config.neighbours,
            graphs=BLOCKS_AT_ONCE,
            at_once=1,
            draws=self.sampling.draws,
            passes_each=float(self.sampling.evaluations),
            stride_ps=self.rollout * scales.frame_ps,
        )

    @cached_property
    def schedule(self) -> Schedule:
        """Shares of signal and noise."""
        return self.model.config.schedule

    def rolling(self, frames: int) -> TrainedIto:
        """Return the forecaster that goes in steps of so many frames; 0 for a single step."""
        return replace(self, rollout=frames)

    def forecast(self, window: Window, lags_ps: Float[Tensor, " times"]) -> ItoForecast:
        """Forecast the mean of samples drawn with the forecaster's own seed, and their spread.

        Raises:
            InputError: The atoms are of other kinds or the frames farther apart than in training.
            UsageError: A time lies beyond the horizon.
        """
        generator = torch.Generator().manual_seed(self.seed)
        drawn = self.courses(window, lags_ps, self.sampling.draws, generator)
        return ItoForecast(
            lags_ps=lags_ps.to(drawn.positions),
            mean=drawn.positions.mean(dim=0),
            spread=drawn.positions.var(dim=0).mean(dim=-1).sqrt(),
            diverged=drawn.diverged.to(drawn.positions).mean(dim=0),
        )

    def samples(
        self,
        window: Window,
        lags_ps: Float[Tensor, " times"],
        count: int,
        generator: torch.Generator,
    ) -> Float[Tensor, "samples times atoms 3"]:
        """Draw futures; `courses` also tells which of them diverged."""
        return self.courses(window, lags_ps, count, generator).positions

    def courses(
        self,
        window: Window,
        lags_ps: Float[Tensor, " times"],
        count: int,
        generator: torch.Generator,
    ) -> Courses:
        """Draw futures and tell which of them diverged.

        Args:
            window: What is observed; only the last frame matters (and the one before, for
                velocities that are not recorded).
            lags_ps: Times after now, ps, within the horizon.
            count: How many futures.
            generator: Of the chance.
        """
        window, pose = self.background.posed(window, next(self.model.parameters()).dtype)
        lags = self.background.scales.checked(window, lags_ps)
        with torch.no_grad():
            draw = self._rolled if self.rollout else self._single
            found = draw(_Start.of(window, self.background.scales), lags, count, generator)
        return Courses(positions=pose.places_back(found.positions), diverged=found.diverged)

    def _single(
        self, start: _Start, lags: Float[Tensor, " times"], count: int, generator: torch.Generator
    ) -> Courses:
        """Draw every time in one step from now, the times of a sample from the same noise."""
        noise = _normal((count, *start.now.shape), start.now, generator)
        went = self._steps(
            start.present(start.now.expand(count * len(lags), -1, -1), lags.repeat(count)),
            start.bonds,
            noise.repeat_interleave(len(lags), dim=0),
        ).unflatten(0, (count, -1))
        here = start.now.expand_as(went)
        kept, gone = self._within(start, here, here + went, lags)
        return Courses(positions=kept, diverged=gone)

    def _rolled(
        self, start: _Start, lags: Float[Tensor, " times"], count: int, generator: torch.Generator
    ) -> Courses:
        """Draw courses step by step; times between two steps branch off from the earlier one."""
        step = self.rollout
        whole = ((lags + 1e-3) / step).floor().long()
        rest = (lags - whole * step).clamp(min=0)
        here = start.now.expand(count, -1, -1)
        lost = torch.zeros(count, dtype=torch.bool, device=here.device)
        found = here.new_empty(count, len(lags), *start.now.shape)
        gone = lost.new_empty(count, len(lags))
        for done in range(int(whole.max()) + 1):
            for time in (whole == done).nonzero()[:, 0].tolist():
                there, away = here, lost
                if float(rest[time]) > 0:
                    there, away = self._onward(
                        start, here, lost, float(rest[time]), float(lags[time]), generator
                    )
                found[:, time], gone[:, time] = there, away
            if done < int(whole.max()):
                here, lost = self._onward(
                    start, here, lost, float(step), float((done + 1) * step), generator
                )
        return Courses(positions=found, diverged=gone)

    def _onward(
        self,
        start: _Start,
        here: Float[Tensor, "samples atoms 3"],
        lost: Bool[Tensor, " samples"],
        lag: float,
        reached: float,
        generator: torch.Generator,
    ) -> tuple[Float[Tensor, "samples atoms 3"], Bool[Tensor, " samples"]]:
        """Go one lag on; samples that are lost, before or now, stay where they were."""
        noise = _normal(here.shape, here, generator)
        lags = here.new_full((len(here),), lag)
        went = self._steps(start.present(here, lags), start.bonds, noise)
        kept, gone = self._within(
            start, here[:, None], (here + went)[:, None], here.new_tensor([reached])
        )
        lost = lost | gone[:, 0]
        return torch.where(lost[:, None, None], here, kept[:, 0]), lost

    def _within(
        self,
        start: _Start,
        before: Float[Tensor, "samples times atoms 3"],
        after: Float[Tensor, "samples times atoms 3"],
        lags: Float[Tensor, " times"],
    ) -> tuple[Float[Tensor, "samples times atoms 3"], Bool[Tensor, "samples times"]]:
        """Keep samples that went to somewhere possible, and take the others back."""
        farthest = self.sampling.sane * self.background.scales.units(lags, start.kinds)
        away = (after - start.now).abs().amax(dim=-1)
        gone = ~(away <= farthest.clamp(min=1e-6)).all(dim=-1)
        return torch.where(gone[..., None, None], before, after), gone

    def _steps(
        self, present: Present, bonds: BondTable, noise: Float[Tensor, "blocks atoms 3"]
    ) -> Float[Tensor, "blocks atoms 3"]:
        """Draw displacements, Å, a few blocks at once on a CPU."""
        blocks = len(noise)
        chunk = BLOCKS_AT_ONCE if noise.device.type == "cpu" else blocks
        parts = [slice(first, first + chunk) for first in range(0, blocks, chunk)]
        return torch.cat([self._step(present.part(some), bonds, noise[some]) for some in parts])

    def _step(
        self, present: Present, bonds: BondTable, start: Float[Tensor, "blocks atoms 3"]
    ) -> Float[Tensor, "blocks atoms 3"]:
        around = self.model.surroundings(present, bonds)

        def turning(state: Tensor, step: float) -> Tensor:
            steps = present.lags.new_full((len(state),), step)
            return self.model(state, steps, present, around)

        drawn = probability_flow(turning, start, self.schedule, self.sampling.evaluations)
        unit = self.background.scales.units(present.lags, present.kinds)
        return drawn * unit[:, :, None]

    def save(self, folder: Path) -> None:
        """Write the weights with what it takes to build the model again."""
        config = {"ito": asdict(self.model.config), "sampling": asdict(self.sampling)}
        self.background.save(folder, KIND, self.model, config)

    @classmethod
    def load(cls, folder: Path) -> TrainedIto:
        """Read what `save` wrote.

        Raises:
            InputError: No such model there, or a damaged one.
        """
        background, config, tensors, path = Background.load(folder, KIND)
        try:
            form, sampling = ItoConfig(**config["ito"]), ItoSampling(**config["sampling"])
        except (KeyError, TypeError) as error:
            raise InputError(f"{path} is damaged: {error}") from error
        scales = background.scales
        model = Denoiser(form, len(scales.kinds), scales.horizon)
        load_into(model, tensors, path)
        return cls(
            model=model.eval().requires_grad_(False), background=background, sampling=sampling
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Start:
    """Where samples start from."""

    now: Float[Tensor, "atoms 3"]
    velocity: Float[Tensor, "atoms 3"]
    box: Float[Tensor, "3 3"] | None
    kinds: Int[Tensor, " atoms"]
    bonds: BondTable

    @classmethod
    def of(cls, window: Window, scales: Scales) -> _Start:
        kinds = scales.rows(window.system).to(window.positions.device)
        seen = present(window, window.positions.new_ones(1), scales, kinds)
        return cls(
            now=window.now,
            velocity=seen.velocities[0],
            box=None if seen.boxes is None else seen.boxes[0],
            kinds=kinds,
            bonds=bond_table(window.system),
        )

    def present(
        self, positions: Float[Tensor, "blocks atoms 3"], lags: Float[Tensor, " blocks"]
    ) -> Present:
        blocks = len(lags)
        return Present(
            positions=positions,
            velocities=self.velocity.expand(blocks, -1, -1),
            boxes=None if self.box is None else self.box.expand(blocks, 3, 3),
            lags=lags,
            kinds=self.kinds,
        )


def _normal(
    shape: Sequence[int], like: Tensor, generator: torch.Generator
) -> Float[Tensor, "*shape"]:
    """Draw normal numbers on the generator's device."""
    drawn = torch.randn(
        tuple(shape), generator=generator, dtype=like.dtype, device=generator.device
    )
    return drawn.to(like.device)
