r"""A roller: the next frame from the last ones, again and again, each time from its own forecast.

.. math::
    r_{k+1} = \bar r_{k+1} + \sigma \, D\big(E(r_k, r_{k-1}, \ldots)\big), \qquad
    t_k = k \, \Delta

with DoMiNO's encoder E at the mean of its posterior, and the linear forecast :math:`\bar r` of one
stride Δ with its spread σ. It differs from DoMiNO in nothing but how it comes to a later time:
what it says of frame k it takes for observed. Errors grow on the way, and it costs one pass
through the encoder per stride.

Turned, shifted, mirrored and relabelled windows give the turned, shifted, mirrored and relabelled
forecast, as of DoMiNO (of molecules superposed on a reference all but the mirrored).

A rollout that leaves the sane range is stopped and said to have diverged: see `RolledForecast`.

Source: the "traditional autoregressive model" of the DoMiNO slides, which do not describe it; all
choices are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from undula.errors import InputError, Notice, UsageError
from undula.io.recordings import Recordings
from undula.learn.checkpoint import load_into, load_weights, save_weights
from undula.learn.fit import FitConfig
from undula.learn.progress import Progress
from undula.learn.task import ParameterGroup, moved
from undula.motion.baselines.background import drawing_of, trained
from undula.motion.baselines.trivial import WithoutDistribution
from undula.motion.climatology import Climatology
from undula.motion.climatology_fit import Example, fit_climatology
from undula.motion.demands import Demands
from undula.motion.drawing import Drawing, Drawn, WindowConfig, skills
from undula.motion.encoder import EncoderConfig, Observation, WindowEncoder
from undula.motion.hierarchy import Hierarchy
from undula.motion.linear import linear_base
from undula.motion.losses import Truth
from undula.motion.model import Base
from undula.motion.observation import Usual, fitted_usual, observation
from undula.motion.posing import posed
from undula.motion.predictors import ClimatologyConfig
from undula.motion.surroundings import BondTable, bond_table
from undula.motion.trained import WEIGHTS
from undula.motion.windows import AtomForecast, Divergence, Window
from undula.nn.gated import linear

KIND = "roller"


@dataclass(frozen=True, kw_only=True)
class RollerConfig:
    """Sizes and choices of the roller.

    Attributes:
        encoder: DoMiNO's; its oldest frame counts strides, not frames.
        stride: Frames between what is forecast; times between are interpolated.
        sane: A rollout has diverged when an atom goes farther in one stride than so many times
            the way at its kind's usual speed, or becomes so many times faster than that.
        checked: How far windows are rolled in validation, frames.
        straight: Whether what lies between two strides is on the straight line where velocities
            are known, too: for strides that last longer than velocities do.
    """

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    stride: int = 5
    sane: float = 10.0
    checked: int = 100
    straight: bool = False

    def __post_init__(self) -> None:
        for name in ("stride", "checked"):
            if getattr(self, name) < 1:
                raise UsageError(f"roller.{name} must be at least 1, not {getattr(self, name)}")
        if not 1 <= self.sane < float("inf"):
            raise UsageError(f"roller.sane must be at least 1, not {self.sane}")


@dataclass(frozen=True, kw_only=True)
class RollerLossConfig:
    """What a training step of the roller is about.

    Attributes:
        unrolled: Strides that are rolled, and differentiated through; 1 shows it nothing but
            true windows.
        velocities: Weight of the velocities.
    """

    unrolled: int = 1
    velocities: float = 0.1

    def __post_init__(self) -> None:
        if self.unrolled < 1:
            raise UsageError(f"loss.unrolled must be at least 1, not {self.unrolled}")
        if not 0 <= self.velocities < float("inf"):
            raise UsageError(f"loss.velocities must be at least 0, not {self.velocities}")


@dataclass(frozen=True, kw_only=True)
class RollerTraining:
    """A training of the roller.

    Attributes:
        model: Sizes and choices of the model.
        loss: What a step is about.
        batch: What a step sees.
        hierarchy: Of the DoMiNO on whose windows and times it is trained; the model has nothing
            of it but the horizon.
        recordings: Names of the recordings to train on, of which the last part validates; all of
            the folder if there are none.
    """

    model: RollerConfig = field(default_factory=RollerConfig)
    loss: RollerLossConfig = field(default_factory=RollerLossConfig)
    batch: WindowConfig = field(default_factory=WindowConfig)
    hierarchy: Hierarchy = field(default_factory=Hierarchy)
    recordings: list[str] = field(default_factory=list)

    @property
    def horizon(self) -> int:
        """How far it forecasts, frames."""
        return self.hierarchy.horizon


@dataclass(frozen=True, kw_only=True, eq=False)
class RolledForecast(AtomForecast):
    """A forecast that was rolled, and whether that went well.

    Attributes:
        diverged_ps: Time after now of the first stride that was no longer sane, ps; from one
            stride before it on the positions are those of the last sane frame, at rest. None if
            all strides were sane.
        notices: Says so too.
    """

    diverged_ps: float | None = None
    notices: tuple[Notice, ...] = ()

    @property
    def divergence(self) -> Divergence | None:
        """When it diverged."""
        return None if self.diverged_ps is None else Divergence(after_ps=self.diverged_ps)


class Roller(nn.Module):
    """One stride.

    Args:
        config: Sizes and choices.
        kinds: How many chemical kinds are known.
        seed: Of the weights; at first it is the linear forecast.
    """

    def __init__(self, config: RollerConfig, kinds: int, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        encoder = config.encoder
        width = encoder.features
        self.config = config
        self.encoder = WindowEncoder(encoder, kinds, generator)
        self.latent_scalars = linear(encoder.latent, width, generator, gain=0.1)
        self.latent_vectors = linear(encoder.latent, width, generator, bias=False, gain=0.1)
        self.gates = linear(width, 2, generator)
        self.moved = linear(width, 2, generator, bias=False, gain=0.0)

    def forward(
        self, seen: Observation, base: Base, bonds: BondTable | None
    ) -> tuple[Float[Tensor, "windows atoms 3"], Float[Tensor, "windows atoms 3"]]:
        """Compute positions, Å, and velocities, Å/ps, one stride later.

        Args:
            seen: The windows.
            base: The linear forecast at one lag, that of the stride.
            bonds: Tells bonded pairs apart; none where the configuration does not ask for it.
        """
        posterior = self.encoder(seen, bonds)
        scalars = posterior.certain_scalars + self.latent_scalars(posterior.scalars)
        vectors = posterior.certain_vectors + self.latent_vectors(posterior.vectors)
        gates = self.gates(functional.silu(functional.layer_norm(scalars, scalars.shape[-1:])))
        moves = (gates[:, None] * self.moved(vectors)).unflatten(0, (-1, len(seen.kinds)))
        return (
            base.mean[0] + base.spread[0, ..., None] * moves[..., 0],
            base.velocities[0] + base.speed[:, None] * moves[..., 1],
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Course:
    """What was rolled, from now on.

    Attributes:
        positions: Å; the first are those of now.
        velocities: Å/ps, likewise; none for windows without velocities.
        diverged: Number of the first stride that was not sane, which is left out; none if all
            were sane.
    """

    positions: Float[Tensor, "knots atoms 3"]
    velocities: Float[Tensor, "knots atoms 3"] | None
    diverged: int | None

    def at(
        self, places: Float[Tensor, " times"], stride_ps: float, *, straight: bool = False
    ) -> tuple[Float[Tensor, "times atoms 3"], Float[Tensor, "times atoms 3"] | None]:
        """Interpolate between the knots: cubics where velocities are known, else straight lines.

        Args:
            places: Times after now, strides. What lies beyond the last knot stays there, at rest.
            stride_ps: ps in a stride.
            straight: Whether lines are straight where velocities are known, too.

        Returns:
            Positions, Å, and velocities, Å/ps, if known.
        """
        last = len(self.positions) - 1
        if last == 0:
            resting = self.positions.expand(len(places), -1, -1)
            still = None if self.velocities is None else self.velocities.expand_as(resting)
            return resting, _stopped(still, places, last)
        inside = places.clamp(max=last)
        left = inside.floor().long().clamp(max=last - 1)
        part = (inside - left)[:, None, None]
        low, high = self.positions[left], self.positions[left + 1]
        if self.velocities is None:
            return torch.lerp(low, high, part), None
        velocities = torch.lerp(self.velocities[left], self.velocities[left + 1], part)
        if straight:
            return torch.lerp(low, high, part), _stopped(velocities, places, last)
        rise, fall = (stride_ps * self.velocities[left + side] for side in (0, 1))
        square, cube = 3 * (high - low) - 2 * rise - fall, rise + fall - 2 * (high - low)
        positions = low + part * (rise + part * (square + part * cube))
        return positions, _stopped(velocities, places, last)


@dataclass(frozen=True, kw_only=True, eq=False)
class Rules:
    """What a rollout needs beside the network.

    Attributes:
        climatology: The linear forecast of one stride; its frames are a stride apart.
        usual: Units of what the encoder sees.
        kinds: Number of each atom's kind.
        bonds: Tells bonded pairs apart, or none.
    """

    climatology: Climatology
    usual: Usual
    kinds: Int[Tensor, " atoms"]
    bonds: BondTable | None

    def next(
        self, model: Roller, windows: Sequence[Window]
    ) -> tuple[Float[Tensor, "windows atoms 3"], Float[Tensor, "windows atoms 3"], Base]:
        """Compute positions and velocities one stride after some windows, and the linear ones."""
        device = windows[0].positions.device
        kinds = self.kinds.to(device)
        ages = model.config.encoder.ages(len(windows[0]))
        one = torch.ones(1, dtype=windows[0].positions.dtype, device=device)
        base = linear_base(windows, one, self.climatology, self.usual, kinds)
        seen = observation(windows, kinds, self.usual, ages)
        positions, velocities = model(seen, base, self.bonds)
        return positions, velocities, base

    def roll(self, model: Roller, window: Window, strides: int) -> Course:
        """Roll a window, whose frames are a stride apart, until the end or until it diverges."""
        speed = self.usual.speed.to(window.positions)[self.kinds.to(window.positions.device)]
        fastest = model.config.sane * 3**0.5 * speed
        positions, velocities = [window.now], [window.velocity_now]
        diverged = None
        for number in range(1, strides + 1):
            [place], [velocity], _ = self.next(model, [window])
            way = (place - window.now).norm(dim=-1)
            sane = (way <= fastest * window.frame_ps) & (velocity.norm(dim=-1) <= fastest)
            if not bool(sane.all()):
                diverged = number
                break
            window = _appended(window, place, velocity)
            positions.append(place)
            velocities.append(window.velocity_now)
        known = [one for one in velocities if one is not None]
        return Course(
            positions=torch.stack(positions),
            velocities=torch.stack(known) if known else None,
            diverged=diverged,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class RollerBatch:
    """Windows whose frames are a stride apart, and what came after them.

    Attributes:
        windows: The windows.
        truth: One stride later, two strides later, …
    """

    windows: tuple[Window, ...]
    truth: Truth


class RollerTask:
    r"""Train the roller on recordings of one system.

    The loss is, averaged over all that is known of the strides rolled,

    .. math::
        \tfrac12 \lVert (r - \hat r) / \sigma \rVert^2
        + \tfrac{\lambda}{2} \lVert (v - \hat v) / u \rVert^2

    Args:
        drawing: Windows of the recordings.
        model: Sizes and choices.
        loss: λ and the number of strides.
        seed: Of the weights.
    """

    def __init__(
        self, drawing: Drawing, model: RollerConfig, loss: RollerLossConfig, *, seed: int = 0
    ) -> None:
        self.drawing, self.loss_config = drawing, loss
        system = drawing.source.system
        climatology = fit_climatology(self._examples(model.stride), [1], ClimatologyConfig())
        kinds = climatology.kind_of_atoms(system)
        ages = model.encoder.ages(climatology.observed)
        windows = (example.window for example in self._examples(model.stride))
        self.rules = Rules(
            climatology=climatology,
            usual=fitted_usual(windows, kinds, len(climatology.kinds), ages[1:]),
            kinds=kinds,
            bonds=bond_table(system) if model.encoder.bonds else None,
        )
        self.model = Roller(model, len(climatology.kinds), seed)
        self._checks: list[Drawn] | None = None

    @property
    def module(self) -> nn.Module:
        """Return the network."""
        return self.model

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return all parameters as one group."""
        return [ParameterGroup(name="network", parameters=list(self.model.parameters()))]

    def batch(self, step: int, generator: torch.Generator) -> RollerBatch:
        """Draw windows, and the next strides."""
        del step
        drawn = self.drawing.drawn(generator, self._strides)
        windows = tuple(strided(one, self.model.config.stride) for one in drawn.windows)
        return RollerBatch(windows=windows, truth=drawn.truth)

    def loss(self, batch: RollerBatch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of a step."""
        del step
        windows, truth = list(batch.windows), batch.truth
        places, speeds = [], []
        for number in range(self.loss_config.unrolled):
            positions, velocities, base = self.rules.next(self.model, windows)
            wrong = (truth.positions[number] - positions) / base.spread[0, ..., None]
            places.append(wrong.square().mean(dim=(-1, -2)) / 2)
            wrong = (truth.velocities[number] - velocities) / base.speed[:, None]
            speeds.append(wrong.square().mean(dim=(-1, -2)) / 2)
            windows = [
                _appended(window, place, velocity)
                for window, place, velocity in zip(windows, positions, velocities, strict=True)
            ]
        known, moving = (one.to(truth.positions) for one in (truth.known, truth.velocities_known))
        position = (torch.stack(places) * known).sum() / known.sum().clamp(min=1)
        velocity = (torch.stack(speeds) * moving).sum() / moving.sum().clamp(min=1)
        total = position + self.loss_config.velocities * velocity
        return total, {"positions": position, "velocities": velocity}

    def evaluate(self) -> dict[str, float]:
        """Roll validation windows: skill over the last position, and the share that diverged."""
        device = next(self.model.parameters()).device
        if self._checks is None:
            self._checks = list(self.drawing.validated())
        config = self.model.config
        errors, still, diverged = [], [], []
        chosen = self._checks[0].lags <= config.checked
        lags = self._checks[0].lags[chosen].to(device)
        for drawn in self._checks:
            drawn = moved(drawn, device)
            [window] = drawn.windows
            window = strided(window, config.stride)
            truth = drawn.truth.positions[chosen, 0]
            places = lags / config.stride
            course = self.rules.roll(self.model, window, int(places.max().ceil()))
            found, _ = course.at(places, window.frame_ps, straight=config.straight)
            errors.append((truth - found).square().mean(dim=(1, 2)))
            still.append((truth - window.now).square().mean(dim=(1, 2)))
            diverged.append(float(course.diverged is not None))
        error, reference = (torch.stack(one).mean(dim=0) for one in (errors, still))
        measures = {
            "error": float((error / reference).detach().mean()),
            "diverged": sum(diverged) / len(diverged),
        }
        return measures | dict(skills(lags, error, reference))

    def _strides(self, reach: int, generator: torch.Generator) -> Float[Tensor, " times"]:
        del reach, generator
        numbers = torch.arange(1, self.loss_config.unrolled + 1, dtype=torch.float32)
        return numbers * self.model.config.stride

    def _examples(self, stride: int) -> list[Example]:
        return [
            Example(window=strided(one.window, stride), future=one.future)
            for one in self.drawing.fitting([stride])
        ]


@dataclass(frozen=True, eq=False)
class TrainedRoller(WithoutDistribution):
    """The roller ready to forecast windows of the systems it was trained on.

    Attributes:
        model: The network.
        climatology: The linear forecast of one stride.
        usual: Units.
        reference: What frames were superposed on in training, Å; none if they were not.
        horizon: How far it was asked to reach, frames.
        provenance: What it was trained on and how.
        name: In tables.
    """

    model: Roller
    climatology: Climatology
    usual: Usual
    reference: Float[Tensor, "atoms 3"] | None
    horizon: int
    provenance: dict[str, Any]
    name: str = "step by step"

    @property
    def demands(self) -> Demands:
        """What it takes and gives."""
        climatology, encoder = self.climatology, self.model.config.encoder
        stride = self.model.config.stride
        least = climatology.config.frames_needed

        def frames(strided_ones: int) -> int:
            return (strided_ones - 1) * stride + 1

        frame_ps = climatology.frame_ps / stride
        return Demands(
            kinds=climatology.kinds,
            frame_ps=frame_ps,
            observed=frames(climatology.observed),
            needed=(frames(least(False)), frames(least(climatology.known is not None))),
            horizon_ps=self.horizon * frame_ps,
            reference=self.reference,
            samples=False,
            features=encoder.features,
            neighbours=encoder.neighbours,
            at_once=1,
            passes_each=float(len(encoder.ages(climatology.observed))),
            stride_ps=climatology.frame_ps,
        )

    def forecast(self, window: Window, lags_ps: Float[Tensor, " times"]) -> RolledForecast:
        """Roll the window as far as the last time.

        Args:
            window: With frames a stride or less apart; longer ones are cut to the length of
                those in training. Velocities are forecast where they are known.
            lags_ps: Times after now, ps, within the horizon.

        Raises:
            InputError: The atoms are of other kinds or the frames farther apart than in
                training, or the window is too short.
            UsageError: There is no time, or one lies before now or beyond the horizon.
        """
        config = self.model.config
        seen, pose = posed(window, self.reference, next(self.model.parameters()).dtype)
        seen = strided(seen, config.stride).last(self.climatology.observed)
        self._check(window, lags_ps)
        places = lags_ps.to(seen.positions) / seen.frame_ps
        rules = Rules(
            climatology=self.climatology,
            usual=self.usual,
            kinds=self.climatology.kind_of_atoms(window.system),
            bonds=bond_table(window.system) if config.encoder.bonds else None,
        )
        with torch.no_grad():
            course = rules.roll(self.model, seen, int((places.max() - 1e-4).ceil().clamp(min=0)))
        positions, velocities = course.at(places, seen.frame_ps, straight=config.straight)
        gone = None if course.diverged is None else course.diverged * seen.frame_ps
        return RolledForecast(
            lags_ps=lags_ps,
            mean=pose.places_back(positions),
            velocities=None if velocities is None else pose.directions_back(velocities),
            diverged_ps=gone,
            notices=() if gone is None else (_told(window, gone),),
        )

    def _check(self, window: Window, lags_ps: Float[Tensor, " times"]) -> None:
        if len(lags_ps) == 0:
            raise UsageError("a forecast needs at least one time")
        lags = lags_ps.double() / window.frame_ps
        bad = ~((lags >= 0) & (lags <= self.horizon + 1e-3))
        if bad.any():
            raise UsageError(
                f"a forecast reaches from 0 to {self.horizon} frames after the window; "
                f"{float(lags[bad][0]):g} frames were asked for"
            )

    def save(self, folder: Path) -> None:
        """Write the weights with what it takes to build the model again."""
        tensors = {f"model.{name}": one for name, one in self.model.state_dict().items()}
        tensors |= {f"climatology.{name}": one for name, one in self.climatology.state().items()}
        tensors |= {f"usual.{name}": one for name, one in self.usual.state().items()}
        if self.reference is not None:
            tensors["reference"] = self.reference
        metadata = {
            "kind": KIND,
            "model": asdict(self.model.config),
            "climatology": self.climatology.settings(),
            "ages": list(self.usual.ages),
            "horizon": self.horizon,
            "provenance": self.provenance,
        }
        save_weights(folder / WEIGHTS, tensors, metadata)

    @classmethod
    def load(cls, folder: Path) -> TrainedRoller:
        """Read what `save` wrote.

        Raises:
            InputError: No such model there, or a damaged one.
        """
        path = folder / WEIGHTS
        tensors, metadata = load_weights(path)
        if metadata.get("kind") != KIND:
            raise InputError(f"{path} is not a model of the kind {KIND}")

        def under(prefix: str) -> dict[str, Tensor]:
            cut = len(prefix)
            return {n[cut:]: one for n, one in tensors.items() if n.startswith(prefix)}

        try:
            climatology = Climatology.from_state(metadata["climatology"], under("climatology."))
            stored = dict(metadata["model"])
            stored["encoder"] = EncoderConfig(**stored["encoder"])
            model = Roller(RollerConfig(**stored), len(climatology.kinds))
            load_into(model, under("model."), path)
            return cls(
                model=model.eval().requires_grad_(False),
                climatology=climatology,
                usual=Usual.from_state(metadata["ages"], under("usual.")),
                reference=tensors.get("reference"),
                horizon=int(metadata["horizon"]),
                provenance=metadata["provenance"],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path} is damaged: {error}") from error


def train_roller(
    recordings: Recordings,
    out: Path,
    *,
    settings: RollerTraining,
    fit_config: FitConfig,
    progress: Progress,
) -> TrainedRoller:
    """Train the roller and write it into its run folder; a run that was stopped goes on.

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
    task = RollerTask(drawing, settings.model, settings.loss, seed=fit_config.seed)
    provenance = trained(
        task, drawing, out, kind=KIND, settings=settings, fit_config=fit_config, progress=progress
    )
    made = TrainedRoller(
        model=task.model.cpu().eval().requires_grad_(False),
        climatology=task.rules.climatology,
        usual=task.rules.usual,
        reference=recordings.reference,
        horizon=settings.hierarchy.horizon,
        provenance=provenance,
    )
    made.save(out)
    return made


def strided(window: Window, stride: int) -> Window:
    """Keep every so many-th frame of a window, counted back from now."""
    first = (len(window) - 1) % stride
    velocities = window.velocities
    return replace(
        window,
        positions=window.positions[first::stride],
        velocities=None if velocities is None else velocities[first::stride],
        frame_ps=stride * window.frame_ps,
    )


def _appended(
    window: Window, positions: Float[Tensor, "atoms 3"], velocities: Float[Tensor, "atoms 3"]
) -> Window:
    """Take a forecast for observed, and forget the oldest frame."""
    known = window.velocities
    return replace(
        window,
        positions=torch.cat([window.positions[1:], positions[None]]),
        velocities=None if known is None else torch.cat([known[1:], velocities[None]]),
        now_ps=window.now_ps + window.frame_ps,
    )


def _stopped(
    velocities: Float[Tensor, "times atoms 3"] | None, places: Float[Tensor, " times"], last: int
) -> Float[Tensor, "times atoms 3"] | None:
    """Bring to rest what lies beyond the last knot."""
    if velocities is None:
        return None
    return torch.where((places > last + 1e-3)[:, None, None], 0, velocities)


def _told(window: Window, when_ps: float) -> Notice:
    return Notice(
        code="rollout-diverged",
        message=f"the rollout left the sane range {when_ps:g} ps after now; from one stride "
        "before that on it is the last sane frame",
        place=window.system.structure.name,
    )
