"""Train ITO: frames, what came after them, and noise to tell apart."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import log
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from undula.io.recordings import Recordings
from undula.learn.fit import FitConfig
from undula.learn.progress import Progress
from undula.learn.task import ParameterGroup, moved
from undula.motion.baselines.background import Background, drawing_of, fitted_scales, trained
from undula.motion.baselines.ito import (
    KIND,
    Denoiser,
    ItoConfig,
    ItoSampling,
    Present,
    TrainedIto,
    present,
)
from undula.motion.climatology import knot_frames
from undula.motion.drawing import BANDS, Drawing, Drawn, WindowConfig
from undula.motion.hierarchy import Hierarchy
from undula.motion.surroundings import bond_table


@dataclass(frozen=True, kw_only=True)
class ItoTraining:
    """A training of ITO.

    Attributes:
        model: Sizes and choices of the model.
        sampling: How futures are drawn from what was trained.
        batch: What a step sees.
        hierarchy: Of the DoMiNO on whose windows and times it is trained; the model has nothing
            of it but the horizon.
        recordings: Names of the recordings to train on, of which the last part validates; all of
            the folder if there are none.
    """

    model: ItoConfig = field(default_factory=ItoConfig)
    sampling: ItoSampling = field(default_factory=ItoSampling)
    batch: WindowConfig = field(default_factory=WindowConfig)
    hierarchy: Hierarchy = field(default_factory=Hierarchy)
    recordings: list[str] = field(default_factory=list)

    @property
    def horizon(self) -> int:
        """How far it forecasts, frames."""
        return self.hierarchy.horizon


@dataclass(frozen=True, kw_only=True, eq=False)
class ItoBatch:
    """Frames, what came after them, and noise.

    Attributes:
        present: Frames and lags.
        displacements: x.
        known: Whether the recording reaches that far.
        noise: ε.
        steps: k.
        alpha: α_k.
        sigma: σ_k.
    """

    present: Present
    displacements: Float[Tensor, "blocks atoms 3"]
    known: Bool[Tensor, " blocks"]
    noise: Float[Tensor, "blocks atoms 3"]
    steps: Float[Tensor, " blocks"]
    alpha: Float[Tensor, " blocks"]
    sigma: Float[Tensor, " blocks"]


class ItoTask:
    """Train the network of ITO on windows of recordings.

    Args:
        drawing: Draws the windows.
        model: Sizes and choices.
        seed: Of the weights.
    """

    def __init__(self, drawing: Drawing, model: ItoConfig, seed: int = 0) -> None:
        self.drawing, self.config = drawing, model
        self.schedule = model.schedule
        knots = knot_frames(drawing.hierarchy.horizon)
        self.scales = fitted_scales(drawing.fitting(knots), knots)
        system = drawing.source.system
        self.kinds = self.scales.rows(system)
        self.bonds = bond_table(system)
        self.model = Denoiser(model, len(self.scales.kinds), self.scales.horizon, seed)
        self._checks: list[ItoBatch] | None = None

    @property
    def module(self) -> nn.Module:
        """Return the network."""
        return self.model

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return all parameters as one group."""
        return [ParameterGroup(name="network", parameters=list(self.model.parameters()))]

    def batch(self, step: int, generator: torch.Generator) -> ItoBatch:
        """Draw windows, lags evenly in the logarithm, noise and how much of it."""
        del step
        return self._noised(self.drawing.drawn(generator, self._lags), generator)

    def loss(self, batch: ItoBatch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the mean square of what is wrong with v."""
        del step
        wrong = self._wrong(batch)
        loss = (wrong * batch.known).sum() / batch.known.sum().clamp(min=1)
        return loss, {"denoising": loss.detach()}

    def evaluate(self) -> dict[str, float]:
        """Score validation windows with noise that is the same each time; 1 is knowing nothing."""
        if self._checks is None:
            generator = torch.Generator().manual_seed(0)
            self._checks = [self._noised(one, generator) for one in self.drawing.validated()]
        device = next(self.model.parameters()).device
        lags, wrong, silent = [], [], []
        for batch in self._checks:
            batch = moved(batch, device)
            lags.append(batch.present.lags)
            wrong.append(self._wrong(batch))
            silent.append(self._aim(batch).square().mean(dim=(-1, -2)))
        when, found, idle = torch.cat(lags), torch.cat(wrong), torch.cat(silent)
        measures = {"denoising": float(found.detach().mean())}
        for name, low, high in BANDS:
            chosen = (when >= low) & (when <= high)
            if chosen.any():
                part = found.detach()[chosen].sum() / idle[chosen].sum()
                measures[f"denoising_{name}"] = float(part)
        return measures

    def _lags(self, reach: int, generator: torch.Generator) -> Float[Tensor, " times"]:
        drawn = torch.rand(self.config.lags, generator=generator) * log(reach + 0.5)
        return drawn.exp().round().clamp(1, reach).sort().values

    def _noised(self, drawn: Drawn, generator: torch.Generator) -> ItoBatch:
        """Gather one block for each lag and window, and draw noise."""
        windows, times = drawn.windows, len(drawn.lags)
        seen = [present(one, drawn.lags, self.scales, self.kinds) for one in windows]
        boxes = [one.boxes for one in seen if one.boxes is not None]
        unit = self.scales.units(drawn.lags, self.kinds)[:, :, None]
        went = [
            (drawn.truth.positions[:, number] - window.now) / unit
            for number, window in enumerate(windows)
        ]
        blocks = len(windows) * times
        number = 1 + torch.randint(self.config.steps, (blocks,), generator=generator)
        shares = torch.tensor(
            [(self.schedule.alpha(k), self.schedule.sigma(k)) for k in number.tolist()]
        )
        displacements = torch.cat(went)
        return ItoBatch(
            present=Present(
                positions=torch.cat([one.positions for one in seen]),
                velocities=torch.cat([one.velocities for one in seen]),
                boxes=torch.cat(boxes) if boxes else None,
                lags=torch.cat([one.lags for one in seen]),
                kinds=self.kinds,
            ),
            displacements=displacements,
            known=drawn.truth.known.T.reshape(-1),
            noise=torch.randn(displacements.shape, generator=generator),
            steps=number.float(),
            alpha=shares[:, 0],
            sigma=shares[:, 1],
        )

    def _aim(self, batch: ItoBatch) -> Float[Tensor, "blocks atoms 3"]:
        alpha, sigma = batch.alpha[:, None, None], batch.sigma[:, None, None]
        return alpha * batch.noise - sigma * batch.displacements

    def _wrong(self, batch: ItoBatch) -> Float[Tensor, " blocks"]:
        alpha, sigma = batch.alpha[:, None, None], batch.sigma[:, None, None]
        noised = alpha * batch.displacements + sigma * batch.noise
        around = self.model.surroundings(batch.present, self.bonds)
        found = self.model(noised, batch.steps, batch.present, around)
        return (found - self._aim(batch)).square().mean(dim=(-1, -2))


def train_ito(
    recordings: Recordings,
    out: Path,
    *,
    settings: ItoTraining,
    fit_config: FitConfig,
    progress: Progress,
) -> TrainedIto:
    """Train ITO and write it into its run folder; a run that was stopped goes on.

    The publication's training: Adam at 1e-3, clipped at 1, weights averaged with 0.99.

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
    task = ItoTask(drawing, settings.model, fit_config.seed)
    provenance = trained(
        task, drawing, out, kind=KIND, settings=settings, fit_config=fit_config, progress=progress
    )
    made = TrainedIto(
        model=task.model.cpu().eval().requires_grad_(False),
        background=Background(
            scales=task.scales, reference=recordings.reference, provenance=provenance
        ),
        sampling=settings.sampling,
    )
    made.save(out)
    return made
