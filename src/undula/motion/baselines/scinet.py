r"""SCINet-style: every atom's past, halved again and again, to its displacement later on.

A sequence is split into its even and its odd frames, which act on each other,

.. math::
    e' = e \circ e^{\phi(o)}, \quad o' = o \circ e^{\psi(e)}, \qquad
    e'' = e' + \eta(o'), \quad o'' = o' - \rho(e')

and each half is split in the same way, a few levels deep. The leaves are put back in the order of
their frames, the input is added, and one linear map over time makes the forecast at the knots;
between knots it is linear in time.

==============  =================================================
e, o            ``even``, ``odd``: [atoms, channels, frames]
φ, ψ, η, ρ      ``Splitting.phi``, ``psi``, ``eta``, ``rho``
==============  =================================================

Atoms are the batch and never hear each other; the axes of displacement (and velocity) are
channels. So it is *not* equivariant: a turned window gives another forecast, unless training
showed every direction. Shifts and relabelling it respects. It has no distribution.

Source: Liu et al., "SCINet: Time Series Modeling and Forecasting with Sample Convolution and
Interaction" (NeurIPS 2022), eqs. 1 and 2. It stands for DESCINet (Silva 2023), the row of the
slides, whose code is not public: what DESCINet adds to SCINet is missing here, hence the name.
Differs from SCINet: one stack; the sequence is displacements from the last observed frame, in
units of what is usual (there standardised columns; for unwrapped positions a column's mean means
nothing); the last map goes to knots evenly spaced in the logarithm of time, in units of the usual
displacement, and not to each of 8,000 frames (8 million weights); squares instead of absolute
errors, since the tables show squares.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from math import sqrt
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from undula.errors import InputError, UsageError
from undula.io.recordings import Recordings
from undula.learn.checkpoint import load_into
from undula.learn.fit import FitConfig
from undula.learn.progress import Progress
from undula.learn.task import ParameterGroup, moved
from undula.motion.baselines.background import (
    Background,
    Scales,
    drawing_of,
    fitted_scales,
    trained,
)
from undula.motion.baselines.trivial import WithoutDistribution
from undula.motion.climatology import knot_frames
from undula.motion.demands import Demands
from undula.motion.drawing import Drawing, Drawn, WindowConfig, skills
from undula.motion.hierarchy import Hierarchy
from undula.motion.observation import velocities_of
from undula.motion.windows import AtomForecast, Window
from undula.nn.gated import linear

KIND = "scinet"
_AXES = 3


@dataclass(frozen=True, kw_only=True)
class SCINetConfig:
    """Sizes and choices.

    Attributes:
        frames: Last frames of the window that are seen; a multiple of 2 to the number of levels.
        levels: How often the sequence is halved.
        kernel: Frames that a convolution looks at, an odd number.
        hidden: Width of the inner convolutions over that of the input.
        dropout: Share of the inner numbers that a step of training leaves out.
        velocities: Whether velocities are channels as well.
    """

    frames: int = 1024
    levels: int = 4
    kernel: int = 5
    hidden: int = 2
    dropout: float = 0.5
    velocities: bool = True

    def __post_init__(self) -> None:
        for name in ("frames", "levels", "kernel", "hidden"):
            if getattr(self, name) < 1:
                raise UsageError(f"scinet.{name} must be at least 1, not {getattr(self, name)}")
        if self.levels > 30:
            raise UsageError(f"scinet.levels must be at most 30, not {self.levels}")
        if self.frames % 2**self.levels:
            raise UsageError(
                f"scinet.frames ({self.frames}) should be a multiple of 2 to the power of levels "
                f"({2**self.levels})"
            )
        if self.kernel % 2 == 0:
            raise UsageError(f"scinet.kernel must be odd, not {self.kernel}")
        if not 0 <= self.dropout < 1:
            raise UsageError(f"scinet.dropout must be at least 0 and below 1, not {self.dropout}")

    @property
    def channels(self) -> int:
        """Numbers seen of an atom in a frame."""
        return 2 * _AXES if self.velocities else _AXES


@dataclass(frozen=True, kw_only=True)
class SCINetTraining:
    """A training of SCINet.

    Attributes:
        model: Sizes and choices of the model.
        batch: What a step sees.
        hierarchy: Of the DoMiNO on whose windows and times it is trained; the model has nothing
            of it but the horizon.
        recordings: Names of the recordings to train on, of which the last part validates; all of
            the folder if there are none.
    """

    model: SCINetConfig = field(default_factory=SCINetConfig)
    batch: WindowConfig = field(default_factory=WindowConfig)
    hierarchy: Hierarchy = field(default_factory=Hierarchy)
    recordings: list[str] = field(default_factory=list)

    @property
    def horizon(self) -> int:
        """How far it forecasts, frames."""
        return self.hierarchy.horizon


class Dropout(nn.Module):
    """Leave out numbers by chance in training, as `torch.nn.Dropout` does.

    That one draws in double precision on a CPU, which took half of a step of training.

    Args:
        share: How many are left out; the others grow so that sums stay what they are on average.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return what is left; all of it when it is not training."""
        if not self.training or self.share == 0:
            return values
        return values * (torch.rand_like(values) >= self.share) / (1 - self.share)


class Filter(nn.Module):
    """Two convolutions over time that keep the length; outputs from −1 to 1."""

    def __init__(self, config: SCINetConfig, generator: torch.Generator) -> None:
        super().__init__()
        channels, wide = config.channels, config.channels * config.hidden
        self.inner = _convolution(channels, wide, config.kernel, generator)
        self.outer = _convolution(wide, channels, 3, generator)
        self.dropout = Dropout(config.dropout)

    def forward(
        self, half: Float[Tensor, "atoms channels frames"]
    ) -> Float[Tensor, "atoms channels frames"]:
        """Filter a sequence, continued beyond its ends by its first and last frames."""
        around = self.inner.kernel_size[0] // 2 + 1
        seen = functional.pad(half, (around, around), mode="replicate")
        return torch.tanh(self.outer(self.dropout(functional.leaky_relu(self.inner(seen)))))


class Splitting(nn.Module):
    """Split a sequence, let its halves act on each other, and do so with each half in turn."""

    def __init__(self, config: SCINetConfig, level: int, generator: torch.Generator) -> None:
        super().__init__()
        self.phi, self.psi, self.eta, self.rho = (Filter(config, generator) for _ in range(4))
        below = 2 if level + 1 < config.levels else 0
        self.halves = nn.ModuleList(Splitting(config, level + 1, generator) for _ in range(below))

    def forward(
        self, sequence: Float[Tensor, "atoms channels frames"]
    ) -> Float[Tensor, "atoms channels frames"]:
        """Return the sequence changed, its frames in their order."""
        even, odd = sequence[..., ::2], sequence[..., 1::2]
        even, odd = even * torch.exp(self.phi(odd)), odd * torch.exp(self.psi(even))
        even, odd = even + self.eta(odd), odd - self.rho(even)
        if len(self.halves):
            even, odd = self.halves[0](even), self.halves[1](odd)
        return torch.stack([even, odd], dim=-1).flatten(-2)


class SCINet(nn.Module):
    """Sequences to displacements at knots.

    Args:
        config: Sizes and choices.
        knots: How many times are forecast.
        seed: Of the weights.
    """

    def __init__(self, config: SCINetConfig, knots: int, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.config = config
        self.tree = Splitting(config, 0, generator)
        self.projection = linear(config.frames, knots, generator, bias=False, gain=0.1)

    def forward(
        self, sequence: Float[Tensor, "atoms channels frames"]
    ) -> Float[Tensor, "knots atoms 3"]:
        """Compute displacements at the knots, in units of the usual ones."""
        made = self.projection(sequence + self.tree(sequence))
        return made[:, :_AXES].permute(2, 0, 1)


def _convolution(inputs: int, outputs: int, kernel: int, generator: torch.Generator) -> nn.Conv1d:
    layer = nn.Conv1d(inputs, outputs, kernel)
    with torch.no_grad():
        layer.weight.normal_(0, 1 / sqrt(inputs * kernel), generator=generator)
        if layer.bias is not None:
            layer.bias.zero_()
    return layer


def sequences(
    window: Window, config: SCINetConfig, scales: Scales, kinds: Int[Tensor, " atoms"]
) -> Float[Tensor, "atoms channels frames"]:
    """Take the last frames of a window: displacements from now, and velocities, of order one.

    Raises:
        InputError: The window is too short.
    """
    if len(window) < config.frames:
        raise InputError(
            f"{window.system.structure.name}: {len(window)} observed frames, the model looks at "
            f"{config.frames}"
        )
    reach, speed = (
        one.to(window.positions)[kinds][:, None] for one in (scales.reach, scales.speed)
    )
    seen = [(window.positions[-config.frames :] - window.now) / reach]
    if config.velocities:
        seen.append(velocities_of(window, range(config.frames - 1, -1, -1)) / speed)
    return torch.cat(seen, dim=-1).permute(1, 2, 0)


def displacements(
    knots: Float[Tensor, "knots atoms 3"],
    lags: Float[Tensor, " times"],
    scales: Scales,
    kinds: Int[Tensor, " atoms"],
) -> Float[Tensor, "times atoms 3"]:
    """Interpolate displacements (Å) at lags (frames) from those at the knots, in usual units."""
    table = knots * scales.displacement.to(knots)[kinds].T[..., None]
    table = torch.cat([torch.zeros_like(table[:1]), table])
    lower, part = scales.places(lags.to(knots))
    return torch.lerp(table[lower], table[lower + 1], part[:, None, None])


@dataclass(frozen=True, kw_only=True, eq=False)
class SCINetBatch:
    """Sequences of windows and what came after them.

    Attributes:
        sequences: Atoms of one window after those of another.
        lags: Frames.
        displacements: From now, Å.
        known: Whether a window's recording reaches that far.
    """

    sequences: Float[Tensor, "rows channels frames"]
    lags: Float[Tensor, " times"]
    displacements: Float[Tensor, "times rows 3"]
    known: Bool[Tensor, "times windows"]


class SCINetTask:
    """Train SCINet on windows of recordings.

    Args:
        drawing: Draws the windows.
        model: Sizes and choices.
        seed: Of the weights.
    """

    def __init__(self, drawing: Drawing, model: SCINetConfig, seed: int = 0) -> None:
        if model.frames > drawing.config.observed:
            raise UsageError(
                f"scinet.frames ({model.frames}) is more than batch.observed "
                f"({drawing.config.observed})"
            )
        self.drawing, self.config = drawing, model
        knots = knot_frames(drawing.hierarchy.horizon)
        self.scales = fitted_scales(drawing.fitting(knots), knots)
        self.kinds = self.scales.rows(drawing.source.system)
        self.model = SCINet(model, len(knots), seed)
        self._checks: list[SCINetBatch] | None = None

    @property
    def module(self) -> nn.Module:
        """Return the network."""
        return self.model

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return all parameters as one group."""
        return [ParameterGroup(name="network", parameters=list(self.model.parameters()))]

    def batch(self, step: int, generator: torch.Generator) -> SCINetBatch:
        """Draw windows, and times after them."""
        del step
        return self._gathered(self.drawing.drawn(generator))

    def loss(self, batch: SCINetBatch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the mean square error, each time in units of what is usual there."""
        del step
        wrong = self._wrong(batch)
        loss = (wrong * batch.known).sum() / batch.known.sum().clamp(min=1)
        return loss, {"error": loss.detach()}

    def evaluate(self) -> dict[str, float]:
        """Score validation windows: error in usual units, and skill over the last position."""
        if self._checks is None:
            self._checks = [self._gathered(one) for one in self.drawing.validated()]
        device = next(self.model.parameters()).device
        wrong, still = [], []
        for batch in self._checks:
            batch = moved(batch, device)
            wrong.append(self._wrong(batch).detach())
            still.append(self._scaled(batch, batch.displacements))
        lags = self._checks[0].lags.to(device)
        found, idle = (torch.cat(one, dim=1).mean(dim=1) for one in (wrong, still))
        return {"error": float(found.mean()), **skills(lags, found, idle)}

    def _gathered(self, drawn: Drawn) -> SCINetBatch:
        went = [
            drawn.truth.positions[:, number] - window.now
            for number, window in enumerate(drawn.windows)
        ]
        seen = [sequences(one, self.config, self.scales, self.kinds) for one in drawn.windows]
        return SCINetBatch(
            sequences=torch.cat(seen),
            lags=drawn.lags,
            displacements=torch.cat(went, dim=1),
            known=drawn.truth.known,
        )

    def _wrong(self, batch: SCINetBatch) -> Float[Tensor, "times windows"]:
        kinds = self.kinds.to(batch.lags.device).repeat(batch.known.shape[1])
        found = displacements(self.model(batch.sequences), batch.lags, self.scales, kinds)
        return self._scaled(batch, found - batch.displacements)

    def _scaled(
        self, batch: SCINetBatch, error: Float[Tensor, "times rows 3"]
    ) -> Float[Tensor, "times windows"]:
        """Return mean squares in usual units, window by window."""
        windows = batch.known.shape[1]
        unit = self.scales.units(batch.lags, self.kinds.to(batch.lags.device)).repeat(1, windows)
        squares = (error / unit[..., None]).square().mean(dim=-1)
        return squares.unflatten(1, (windows, -1)).mean(dim=-1)


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainedSCINet(WithoutDistribution):
    """SCINet ready to forecast windows of the system it was trained on.

    Attributes:
        model: The network.
        background: Units, reference, provenance.
        name: In tables.
    """

    model: SCINet
    background: Background
    name: str = "SCINet-style"

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
            needed=(config.frames, config.frames),
            horizon_ps=scales.horizon * scales.frame_ps,
            reference=self.background.reference,
            samples=False,
            # What the tree holds at once, measured.
            features=config.channels * config.hidden * config.frames // 20,
            neighbours=0.0,
            at_once=1,
        )

    def forecast(self, window: Window, lags_ps: Float[Tensor, " times"]) -> AtomForecast:
        """Forecast positions.

        Raises:
            InputError: The atoms are of other kinds or the frames farther apart than in
                training, or the window is too short.
            UsageError: A time lies beyond the horizon.
        """
        window, pose = self.background.posed(window, next(self.model.parameters()).dtype)
        scales = self.background.scales
        lags = scales.checked(window, lags_ps)
        kinds = scales.rows(window.system).to(window.positions.device)
        with torch.no_grad():
            found = self.model(sequences(window, self.model.config, scales, kinds))
            went = displacements(found, lags, scales, kinds)
        return AtomForecast(lags_ps=lags_ps.to(went), mean=pose.places_back(window.now + went))

    def save(self, folder: Path) -> None:
        """Write the weights with what it takes to build the model again."""
        self.background.save(folder, KIND, self.model, asdict(self.model.config))

    @classmethod
    def load(cls, folder: Path) -> TrainedSCINet:
        """Read what `save` wrote.

        Raises:
            InputError: No such model there, or a damaged one.
        """
        background, config, tensors, path = Background.load(folder, KIND)
        try:
            form = SCINetConfig(**config)
        except TypeError as error:
            raise InputError(f"{path} is damaged: {error}") from error
        model = SCINet(form, len(background.scales.knots))
        load_into(model, tensors, path)
        return cls(model=model.eval().requires_grad_(False), background=background)


def train_scinet(
    recordings: Recordings,
    out: Path,
    *,
    settings: SCINetTraining,
    fit_config: FitConfig,
    progress: Progress,
) -> TrainedSCINet:
    """Train SCINet and write it into its run folder; a run that was stopped goes on.

    Args:
        recordings: Of one system.
        out: The run folder.
        settings: Of the training.
        fit_config: The loop.
        progress: Told how it goes.

    Raises:
        InputError: A recording does not exist or is too short.
        UsageError: A recording is named twice.
    """
    drawing = drawing_of(recordings, settings)
    task = SCINetTask(drawing, settings.model, fit_config.seed)
    provenance = trained(
        task, drawing, out, kind=KIND, settings=settings, fit_config=fit_config, progress=progress
    )
    made = TrainedSCINet(
        model=task.model.cpu().eval().requires_grad_(False),
        background=Background(
            scales=task.scales, reference=recordings.reference, provenance=provenance
        ),
    )
    made.save(out)
    return made
