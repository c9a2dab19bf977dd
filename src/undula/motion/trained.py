"""A trained DoMiNO as one file: a forecaster of atoms like any other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from undula.errors import InputError, UsageError
from undula.learn.checkpoint import described_in, load_into, load_weights, save_weights
from undula.motion.climatology import Climatology
from undula.motion.decoder import DecoderConfig
from undula.motion.demands import Demands
from undula.motion.dressing import Dressing
from undula.motion.encoder import EncoderConfig
from undula.motion.levels import LevelsConfig
from undula.motion.linear import linear_base
from undula.motion.model import Base, DoMiNO, MotionModelConfig, Prediction, planned
from undula.motion.noise import climatological_noise, restored_bonds, window_lengths
from undula.motion.observation import Usual, observation
from undula.motion.posing import Pose, posed
from undula.motion.recalibration import Recalibration
from undula.motion.surroundings import bond_table
from undula.motion.windows import AtomForecast, Forecasts, Window
from undula.nn.ode.solve import SolverConfig

KIND = "motion"
WEIGHTS = "weights.safetensors"
DRAWN_STATES = 4
"""So many states are drawn from the posterior; further samples share them. What a state changes is
1 to 3 % of the spread in trained models (argon, water), the rest of which is in the errors."""
FIRST_PASSES, PASSES_EACH = 600.0, 40.0
"""What the coarser levels, and the finest at each time, take as if they were passes through it."""
TIMES_AT_ONCE = 64
"""`TrainedMotion.times_at_once` where memory is no matter."""


@dataclass(frozen=True, eq=False)
class TrainedMotion:
    """DoMiNO ready to forecast windows of the systems it was trained on.

    Attributes:
        model: The network.
        climatology: The linear forecast it builds on.
        usual: Its units.
        reference: What frames were superposed on in training, Å; none if they were not.
        provenance: What it was trained on and how, for the model card.
        dressing: Errors that samples of an aligned molecule are dressed with; none for normal
            errors.
        recalibration: How much of the deviation to believe, by lag; none for all of it.
        name: In tables.
        level: Decode at this level and no finer; the finest by default.
        times_at_once: Times that are forecast together on a CPU; longer lists are done in parts.
    """

    model: DoMiNO
    climatology: Climatology
    usual: Usual
    reference: Float[Tensor, "atoms 3"] | None
    provenance: dict[str, Any]
    dressing: Dressing | None = None
    recalibration: Recalibration | None = None
    name: str = "DoMiNO"
    level: int = -1
    times_at_once: int = TIMES_AT_ONCE

    def __post_init__(self) -> None:
        if not isinstance(self.provenance, dict):
            raise InputError("the provenance should be keys and values")
        ages = self.model.config.encoder.ages(self.climatology.observed)[1:]
        if not set(ages) <= set(self.usual.ages):
            raise InputError(f"the usual sizes are known at ages {self.usual.ages}, not {ages}")

    @property
    def horizon_ps(self) -> float:
        """How far it reaches, ps."""
        return self.model.hierarchy.horizon * self.climatology.frame_ps

    @property
    def demands(self) -> Demands:
        """What it takes and gives."""
        climatology, encoder = self.climatology, self.model.config.encoder
        least = climatology.config.frames_needed
        return Demands(
            kinds=climatology.kinds,
            frame_ps=climatology.frame_ps,
            observed=climatology.observed,
            needed=(least(False), least(climatology.known is not None)),
            horizon_ps=self.horizon_ps,
            reference=self.reference,
            samples=True,
            features=encoder.features,
            neighbours=encoder.neighbours,
            at_once=self.times_at_once,
            passes=FIRST_PASSES,
            passes_each=PASSES_EACH,
        )

    def at_level(self, level: int) -> TrainedMotion:
        """Return the forecaster that decodes the coarsest levels up to one, without retraining."""
        if not 0 <= level < self.model.hierarchy.levels:
            raise UsageError(f"there are {self.model.hierarchy.levels} levels; {level} is none")
        return replace(self, level=level, name=f"{self.name}, decoded at level {level}")

    def forecast(self, window: Window, lags_ps: Float[Tensor, " times"]) -> AtomForecast:
        """Forecast the mean, its spread and the velocities.

        Args:
            window: Of longer ones than in training it takes the last frames; shorter ones serve
                as well as they can, from 3 frames on. Turned, shifted and mirrored windows give
                the turned, shifted and mirrored forecast. Where training superposed all frames
                on a reference, turned and shifted ones do, but not mirrored ones, because a
                reference has a hand; the forecast is in the pose of now, and what it says of
                positions and velocities leaves tumbling out.
            lags_ps: Times after now, ps, within the horizon.

        Raises:
            InputError: The atoms are of other kinds or the frames farther apart than in
                training, or the window is too short.
            UsageError: A time lies beyond the horizon.
        """
        return self.forecasts(window, lags_ps, [self.level])[0]

    def forecasts(
        self, window: Window, lags_ps: Float[Tensor, " times"], levels: Sequence[int]
    ) -> list[AtomForecast]:
        """Forecast as decoded at some levels, for the time of the finest; see `forecast`.

        Args:
            window: What is observed.
            lags_ps: Times after now, ps, within the horizon.
            levels: From 0, or from the last, −1.
        """
        seen, pose = self._posed(window)
        found = self._decoded(seen, lags_ps, levels)
        return [
            AtomForecast(
                lags_ps=lags_ps,
                mean=pose.places_back(torch.cat([p.mean[:, 0] for p in parts])),
                spread=torch.cat([p.spread[:, 0] for p in parts]),
                velocities=pose.directions_back(torch.cat([p.velocities[:, 0] for p in parts])),
            )
            for parts in zip(*found, strict=True)
        ]

    def contributions(
        self, window: Window, lags_ps: Float[Tensor, " times"]
    ) -> Float[Tensor, "levels times atoms 3"]:
        """Return what each level adds to the linear forecast, Å."""
        seen, pose = self._posed(window)
        parts = self._predictions(seen, lags_ps)
        return pose.directions_back(torch.cat([p.parts[:, :, 0] for p in parts], dim=1))

    def samples(
        self,
        window: Window,
        lags_ps: Float[Tensor, " times"],
        count: int,
        generator: torch.Generator,
    ) -> Float[Tensor, "samples times atoms 3"]:
        """Draw whole futures: a state from the posterior, and a course of errors around it.

        At most `DRAWN_STATES` states are drawn, and shared.

        Errors are normal with the learned spread, correlated in time and along bonds as those of
        the linear forecast were in training; of an aligned molecule they are such errors
        themselves, scaled to the learned spread. Then bond lengths and angles of the window are
        restored.

        Args:
            window: What is observed.
            lags_ps: Times after now, ps; only times asked for together belong to one course.
            count: How many futures.
            generator: Of the chance.
        """
        seen, pose = self._posed(window)
        means, spread = [], None
        states = min(count, DRAWN_STATES)
        for _ in range(states):
            parts = self._predictions(seen, lags_ps, generator)
            means.append(torch.cat([p.mean[:, 0] for p in parts]))
            drawn = torch.cat([p.spread[:, 0] for p in parts])
            spread = drawn if spread is None else spread + drawn
        assert spread is not None
        futures = torch.stack([means[number % states] for number in range(count)]) + self._errors(
            seen, lags_ps, spread / states, count, generator
        )
        pairs, lengths = window_lengths(seen)
        if pairs.numel():
            futures = restored_bonds(futures, pairs, lengths, seen.system.masses)
        return pose.places_back(futures)

    def _errors(
        self,
        window: Window,
        lags_ps: Float[Tensor, " times"],
        spread: Float[Tensor, "times atoms"],
        count: int,
        generator: torch.Generator,
    ) -> Float[Tensor, "samples times atoms 3"]:
        """Draw courses of errors with a given spread: those of training, or normal ones."""
        _, known = self.climatology.law(window)
        _, correlation, clock = self.climatology.distribution(window.system, lags_ps, known)
        if self.dressing is None:
            return climatological_noise(
                window.system,
                lags_ps,
                spread,
                correlation.to(spread),
                clock.to(spread),
                count,
                generator,
            )
        lags = lags_ps.to(spread) / window.frame_ps
        errors = self.dressing.drawn(lags, clock.to(spread).mean(dim=1), count, generator)
        ratio = spread.square().mean(dim=1).sqrt() / self.dressing.size(lags).clamp(min=1e-6)
        return errors.to(spread) * ratio[:, None, None]

    def _predictions(
        self,
        window: Window,
        lags_ps: Float[Tensor, " times"],
        generator: torch.Generator | None = None,
    ) -> list[Prediction]:
        """Run the network for one window and decode it at the forecaster's own level."""
        return [one for [one] in self._decoded(window, lags_ps, [self.level], generator)]

    def _decoded(
        self,
        window: Window,
        lags_ps: Float[Tensor, " times"],
        levels: Sequence[int],
        generator: torch.Generator | None = None,
    ) -> list[list[Prediction]]:
        """Run the network for one window; a generator draws its state.

        The window is encoded and the coarser levels are solved once; on a CPU the finest level
        is solved and decoded for a few times at once, so that memory stays small.

        Returns:
            Of each part of the times the predictions at the levels asked for.
        """
        model, device = self.model, window.positions.device
        kinds = self.climatology.kind_of_atoms(window.system).to(device)
        ages = model.config.encoder.ages(len(window))
        bonds = bond_table(window.system) if model.config.encoder.bonds else None
        lags = lags_ps.to(window.positions) / window.frame_ps
        parts = _parts(lags, self.times_at_once)

        def base(at: Float[Tensor, " lags"]) -> Base:
            return linear_base([window], at, self.climatology, self.usual, kinds)

        with torch.no_grad():
            seen = observation([window], kinds, self.usual, ages)
            course = model.begun(seen, bonds, drawn=generator is not None, generator=generator)
            for starts in planned(model.hierarchy, lags).starts[:-1]:
                course = model.advanced(course, starts, base(starts))
            found = []
            for some in parts:
                plan = planned(model.hierarchy, some)
                known = base(plan.all_lags)
                every = model.finished(course, plan, known).predictions
                there = known.part(len(known.mean) - len(some), len(some))
                found.append([self._believed(every[one], there, some, one) for one in levels])
        return found

    def _believed(
        self, prediction: Prediction, base: Base, lags: Float[Tensor, " times"], level: int
    ) -> Prediction:
        if self.recalibration is None:
            return prediction
        return self.recalibration.applied(prediction, base, lags, level, self.reference)

    def _posed(self, window: Window) -> tuple[Window, Pose]:
        """Take as much of the window as in training, posed for the network; and the way back."""
        observed = window.last(self.climatology.observed)
        return posed(observed, self.reference, next(self.model.parameters()).dtype)

    def save(self, folder: Path) -> None:
        """Write the weights with what it takes to build the model again."""
        tensors = {f"model.{name}": one for name, one in self.model.state_dict().items()}
        tensors |= {f"climatology.{name}": one for name, one in self.climatology.state().items()}
        tensors |= {f"usual.{name}": one for name, one in self.usual.state().items()}
        if self.reference is not None:
            tensors["reference"] = self.reference
        if self.dressing is not None:
            tensors["dressing"] = self.dressing.errors
        recalibrated: tuple[int, ...] = ()
        if self.recalibration is not None:
            recalibrated = self.recalibration.knots
            for name in ("amplitude", "spread", "pull"):
                tensors[f"recalibration.{name}"] = getattr(self.recalibration, name)
        save_weights(
            folder / WEIGHTS,
            tensors,
            {
                "kind": KIND,
                "model": asdict(self.model.config),
                "climatology": self.climatology.settings(),
                "ages": list(self.usual.ages),
                "recalibrated": list(recalibrated),
                "provenance": self.provenance,
            },
        )

    @classmethod
    def load(cls, folder: Path) -> TrainedMotion:
        """Read what `save` wrote.

        Raises:
            InputError: No such model there, or a damaged one.
        """
        path = folder / WEIGHTS
        tensors, metadata = load_weights(path)
        if metadata.get("kind") != KIND:
            raise InputError(f"{path} is not a DoMiNO, the model that forecasts atoms")
        with described_in(path):
            climatology = Climatology.from_state(
                metadata["climatology"], _under("climatology.", tensors)
            )
            model = DoMiNO(_model_config(metadata["model"]), len(climatology.kinds))
            load_into(model, _under("model.", tensors), path)
            return cls(
                model=model.eval().requires_grad_(False),
                climatology=climatology,
                usual=Usual.from_state(metadata["ages"], _under("usual.", tensors)),
                reference=tensors.get("reference"),
                provenance=metadata["provenance"],
                dressing=Dressing(knots=climatology.knots, errors=tensors["dressing"])
                if "dressing" in tensors
                else None,
                recalibration=Recalibration(
                    knots=tuple(metadata.get("recalibrated", climatology.knots)),
                    **_under("recalibration.", tensors),
                )
                if "recalibration.amplitude" in tensors
                else None,
            )


def together(ways: Sequence[TrainedMotion]) -> Forecasts:
    """Return what forecasts with one model decoded at several levels, solving them once."""
    first, levels = ways[0], [way.level for way in ways]
    return lambda window, lags_ps: first.forecasts(window, lags_ps, levels)


def _parts(lags: Float[Tensor, " times"], at_once: int) -> Sequence[Float[Tensor, " some"]]:
    """Split times so that a part takes little memory."""
    if len(lags) == 0:
        raise UsageError("a forecast needs at least one time")
    return lags.split(at_once if lags.device.type == "cpu" else len(lags))


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name[len(prefix) :]: one for name, one in tensors.items() if name.startswith(prefix)}


def _model_config(stored: dict[str, Any]) -> MotionModelConfig:
    levels = dict(stored["levels"])
    levels["strides"] = tuple(levels["strides"])
    levels["solver"] = SolverConfig(**levels["solver"])
    return MotionModelConfig(
        encoder=EncoderConfig(**stored["encoder"]),
        levels=LevelsConfig(**levels),
        decoder=DecoderConfig(**stored["decoder"]),
    )
