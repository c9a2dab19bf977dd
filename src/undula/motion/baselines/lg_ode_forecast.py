"""LG-ODE trained on recordings, and as a forecaster of atoms like any other."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

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
from undula.motion.baselines.lg_ode import LGODE, Latent, LGODEConfig, Observed, observed
from undula.motion.climatology import knot_frames
from undula.motion.demands import Demands
from undula.motion.drawing import Drawing, Drawn, WindowConfig, skills
from undula.motion.hierarchy import Hierarchy
from undula.motion.losses import Truth
from undula.motion.windows import AtomForecast, Window
from undula.nn.ode.solve import SolverConfig

KIND = "lg-ode"
_TIMES_AT_ONCE = 64
"""Times that are decoded together, so that memory stays small."""
_NEIGHBOURS = 48.0
"""More than an atom of a liquid has within the cutoff; a guess for estimates of memory."""


@dataclass(frozen=True, kw_only=True)
class LGODELossConfig:
    """Weights of the loss.

    Attributes:
        velocities: Weight of the velocities; 1, as published, counts them as positions.
        divergence: β of the divergence from the prior, once warmed up.
        warmup_steps: Steps over which β rises from 0.
    """

    velocities: float = 1.0
    divergence: float = 1.0
    warmup_steps: int = 200

    def __post_init__(self) -> None:
        for name in ("velocities", "divergence", "warmup_steps"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UsageError(f"loss.{name} must be at least 0, not {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class LGODETraining:
    """A training of LG-ODE.

    Attributes:
        model: Sizes and choices of the model.
        loss: Weights of the losses.
        batch: What a step sees.
        hierarchy: Of the DoMiNO on whose windows and times it is trained; the model has nothing
            of it but the horizon.
        recordings: Names of the recordings to train on, of which the last part validates; all of
            the folder if there are none.
    """

    model: LGODEConfig = field(default_factory=LGODEConfig)
    loss: LGODELossConfig = field(default_factory=LGODELossConfig)
    batch: WindowConfig = field(default_factory=WindowConfig)
    hierarchy: Hierarchy = field(default_factory=Hierarchy)
    recordings: list[str] = field(default_factory=list)

    @property
    def horizon(self) -> int:
        """How far it forecasts, frames."""
        return self.hierarchy.horizon


@dataclass(frozen=True, kw_only=True, eq=False)
class LGODEBatch:
    """Windows and what came after them.

    Attributes:
        seen: The windows.
        lags: Times after now, frames.
        truth: At these times.
        unit: u of each atom then, Å.
        speed: Usual speed of each atom, Å/ps.
    """

    seen: Observed
    lags: Float[Tensor, " times"]
    truth: Truth
    unit: Float[Tensor, "times atoms"]
    speed: Float[Tensor, " atoms"]


def lg_ode_loss(
    moves: Float[Tensor, "times windows atoms 3"],
    velocities: Float[Tensor, "times windows atoms 3"],
    posterior: Latent,
    batch: LGODEBatch,
    observed_spread: float,
    config: LGODELossConfig,
    step: int,
) -> tuple[Tensor, dict[str, Tensor]]:
    r"""Compute the negative evidence lower bound per coordinate, without its constants.

    .. math::
        \tfrac{1}{2 s^2} \Big( \lVert x - \hat x \rVert^2
        + \lambda \lVert \dot x - \hat{\dot x} \rVert^2 \Big)
        + \beta \frac{\mathrm{KL}(q \,\Vert\, \mathcal{N}(0, 1))}{3 T}

    Args:
        moves: Way from now, in units of u.
        velocities: In units of the usual speed.
        posterior: q.
        batch: The truth and the units.
        observed_spread: s.
        config: λ and β.
        step: Of the training; β rises with it.

    Source: LG-ODE, eq. 9. Differs from it: means instead of sums over coordinates, β as a rise
    over the steps of the training.
    """
    now, truth = batch.seen.positions[:, 0], batch.truth
    wrong = (truth.positions - now) / batch.unit[:, None, :, None] - moves
    places = _mean(wrong.square().mean(dim=(-1, -2)), truth.known) / (2 * observed_spread**2)
    wrong = truth.velocities / batch.speed[:, None] - velocities
    speeds = _mean(wrong.square().mean(dim=(-1, -2)), truth.velocities_known)
    speeds = speeds / (2 * observed_spread**2)
    divergence = posterior.divergence() / (3 * len(batch.lags))
    rise = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    total = places + config.velocities * speeds + rise * config.divergence * divergence
    return total, {"positions": places, "velocities": speeds, "divergence": divergence}


class LGODETask:
    """Train LG-ODE on recordings of one system.

    Args:
        drawing: Windows of the recordings.
        model: Sizes and choices.
        loss: Weights.
        seed: Of the weights.
    """

    def __init__(
        self, drawing: Drawing, model: LGODEConfig, loss: LGODELossConfig, *, seed: int = 0
    ) -> None:
        self.drawing, self.loss_config = drawing, loss
        horizon = drawing.hierarchy.horizon
        knots = knot_frames(horizon)
        self.scales: Scales = fitted_scales(drawing.fitting(knots), knots)
        self.model = LGODE(model, len(self.scales.kinds), horizon, seed)
        self._checks: list[LGODEBatch] | None = None

    @property
    def module(self) -> nn.Module:
        """Return the network."""
        return self.model

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return all parameters as one group."""
        return [ParameterGroup(name="network", parameters=list(self.model.parameters()))]

    def batch(self, step: int, generator: torch.Generator) -> LGODEBatch:
        """Draw windows, and times after them."""
        del step
        return self._gathered(self.drawing.drawn(generator))

    def loss(self, batch: LGODEBatch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of a step."""
        posterior = self.model.encoder(batch.seen)
        solution = self.model.solved(batch.seen, posterior.drawn(None))
        moves, velocities = self.model.decoded(solution, batch.lags)
        spread = self.model.config.observed_spread
        return lg_ode_loss(moves, velocities, posterior, batch, spread, self.loss_config, step)

    def evaluate(self) -> dict[str, float]:
        """Score validation windows: the error in units of u, and skill over the last position."""
        device = next(self.model.parameters()).device
        if self._checks is None:
            self._checks = [self._gathered(one) for one in self.drawing.validated()]
        errors, still, relative = [], [], []
        for batch in self._checks:
            batch = moved(batch, device)
            solution = self.model.solved(batch.seen, self.model.encoder(batch.seen).mean)
            moves, _ = self.model.decoded(solution, batch.lags)
            unit = batch.unit[:, None, :, None]
            way = batch.truth.positions - batch.seen.positions[:, 0]
            errors.append((way - unit * moves).square().mean(dim=(1, 2, 3)))
            relative.append((way / unit - moves).square().mean())
            still.append(way.square().mean(dim=(1, 2, 3)))
        lags = self._checks[0].lags.to(device)
        measures = {"error": float(torch.stack(relative).detach().mean())}
        ratio = torch.stack(errors).mean(dim=0), torch.stack(still).mean(dim=0)
        return measures | dict(skills(lags, *ratio))

    def _gathered(self, drawn: Drawn) -> LGODEBatch:
        config = self.model.config
        seen = observed(drawn.windows, self.scales, config.ages(self.drawing.config.observed))
        return LGODEBatch(
            seen=seen,
            lags=drawn.lags,
            truth=drawn.truth,
            unit=self.model.units(drawn.lags, self.scales, seen.kinds),
            speed=self.scales.speed[seen.kinds],
        )


@dataclass(frozen=True, eq=False)
class TrainedLGODE:
    """LG-ODE ready to forecast windows of the systems it was trained on.

    Attributes:
        model: The network.
        background: Usual sizes, the pose of the training and where it comes from.
        observed: Frames in the windows of the training.
        name: In tables.
    """

    model: LGODE
    background: Background
    observed: int
    name: str = "LG-ODE"

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
            observed=self.observed,
            needed=(2, 1),
            horizon_ps=scales.horizon * scales.frame_ps,
            reference=self.background.reference,
            samples=True,
            said=(
                f"Its spread is not learned: {config.observed_spread:g} times the way that atoms "
                "of a kind usually go in that time.",
                "Its samples know neither bonds nor what they were a moment before.",
            ),
            features=config.features,
            neighbours=_NEIGHBOURS,
            graphs=len(config.ages(self.observed)),
            at_once=1,
            passes=2.0 * 4 * config.solver.steps,
        )

    def forecast(self, window: Window, lags_ps: Float[Tensor, " times"]) -> AtomForecast:
        """Forecast from the mean of the posterior; the spread is the fixed one, never fitted.

        Args:
            window: Of longer ones than in training it takes the last frames. Shifted and
                relabelled windows give the shifted and relabelled forecast, turned ones do not
                (but for molecules superposed on a reference, which are turned to it first).
            lags_ps: Times after now, ps, within the horizon.

        Raises:
            InputError: The atoms are of other kinds, or the frames farther apart than in
                training.
            UsageError: A time lies beyond the horizon.
        """
        seen, pose = self.background.posed(window.last(self.observed), self._dtype)
        [means], velocities, spread = self._decoded(seen, lags_ps, None, 1)
        turned = velocities if pose.turn is None else velocities @ pose.turn
        return AtomForecast(
            lags_ps=lags_ps, mean=pose.places_back(means), spread=spread, velocities=turned
        )

    def samples(
        self,
        window: Window,
        lags_ps: Float[Tensor, " times"],
        count: int,
        generator: torch.Generator,
    ) -> Float[Tensor, "samples times atoms 3"]:
        """Draw futures: states from the posterior, and the fixed noise of what is observed.

        As published, this noise knows neither bonds nor time: every number has its own.
        """
        seen, pose = self.background.posed(window.last(self.observed), self._dtype)
        means, _, spread = self._decoded(seen, lags_ps, generator, count)
        noise = torch.randn(
            means.shape, generator=generator, dtype=means.dtype, device=generator.device
        )
        return pose.places_back(means + spread[..., None] * noise.to(means.device))

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    def _decoded(
        self,
        window: Window,
        lags_ps: Float[Tensor, " times"],
        generator: torch.Generator | None,
        count: int,
    ) -> tuple[
        Float[Tensor, "samples times atoms 3"],
        Float[Tensor, "times atoms 3"],
        Float[Tensor, "times atoms"],
    ]:
        """Solve from some states, drawn by a generator or the mean, and decode them.

        Returns:
            Positions, Å; velocities of the last of them, Å/ps; the spread, Å.
        """
        model, scales = self.model, self.background.scales
        lags = scales.checked(window, lags_ps)
        ages = model.config.ages(len(window))
        with torch.no_grad():
            seen = observed([window], scales, ages)
            unit = model.units(lags, scales, seen.kinds)
            posterior = model.encoder(seen)
            means, velocities = [], lags.new_zeros(0)
            for _ in range(count):
                start = posterior.mean if generator is None else posterior.drawn(generator)
                solution = model.solved(seen, start)
                parts = [model.decoded(solution, some) for some in lags.split(_TIMES_AT_ONCE)]
                moves = torch.cat([one[:, 0] for one, _ in parts])
                means.append(window.now + unit[..., None] * moves)
                velocities = torch.cat([one[:, 0] for _, one in parts])
        speed = scales.speed.to(lags)[seen.kinds][:, None]
        return torch.stack(means), speed * velocities, model.config.observed_spread * unit

    def save(self, folder: Path) -> None:
        """Write the weights with what it takes to build the model again."""
        config = {"lg_ode": asdict(self.model.config), "observed": self.observed}
        self.background.save(folder, KIND, self.model, config)

    @classmethod
    def load(cls, folder: Path) -> TrainedLGODE:
        """Read what `save` wrote.

        Raises:
            InputError: No such model there, or a damaged one.
        """
        background, config, tensors, path = Background.load(folder, KIND)
        try:
            stored = dict(config["lg_ode"])
            stored["solver"] = SolverConfig(**stored["solver"])
            scales = background.scales
            model = LGODE(LGODEConfig(**stored), len(scales.kinds), scales.horizon)
            load_into(model, tensors, path)
            observed_frames = int(config["observed"])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path} is damaged: {error}") from error
        return cls(
            model=model.eval().requires_grad_(False),
            background=background,
            observed=observed_frames,
        )


def train_lg_ode(
    recordings: Recordings,
    out: Path,
    *,
    settings: LGODETraining,
    fit_config: FitConfig,
    progress: Progress,
) -> TrainedLGODE:
    """Train LG-ODE and write it into its run folder; a run that was stopped goes on.

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
    task = LGODETask(drawing, settings.model, settings.loss, seed=fit_config.seed)
    provenance = trained(
        task, drawing, out, kind=KIND, settings=settings, fit_config=fit_config, progress=progress
    )
    made = TrainedLGODE(
        model=task.model.cpu().eval().requires_grad_(False),
        background=Background(
            scales=task.scales, reference=recordings.reference, provenance=provenance
        ),
        observed=settings.batch.observed,
    )
    made.save(out)
    return made


def _mean(rows: Float[Tensor, "times windows"], known: Tensor) -> Float[Tensor, ""]:
    """Average what is known; 0 where nothing is."""
    weight = known.to(rows)
    return (rows * weight).sum() / weight.sum().clamp(min=1)
