"""From an observed window and a trained model to moving atoms: a result that can be kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from undula import atomic, estimates
from undula.data.bundled import motion_models
from undula.errors import InputError, Notice, UsageError
from undula.io.arrays import load_array
from undula.io.datasets import check_names, write_structure
from undula.io.recordings import read_system, write_system
from undula.learn.checkpoint import described_in
from undula.motion.baselines.trivial import Ballistic, LinearForecaster, ObservedMean
from undula.motion.catalog import TrainedForecaster
from undula.motion.estimates import MotionSize, fitted, what_fits
from undula.motion.posing import superposed
from undula.motion.trained import DRAWN_STATES, TrainedMotion
from undula.motion.windows import AtomForecast, AtomForecaster, Divergence, Window
from undula.types import MolecularSystem

FORMAT = 1
KIND = "atoms"
STATE = "state"
"""Folder, within that of the result, of what `MovingAtoms.load` reads."""
LINEAR_ROW = "linear response"
"""The row fitted in training that a model has to beat."""
SAMPLES = 16
"""Whole futures drawn by default."""
_PARTS = ("mean", "spread", "velocities")


@dataclass(frozen=True, kw_only=True, eq=False)
class MovingAtoms:
    """A forecast: where every atom is expected at some later times, and how sure that is.

    Attributes:
        system: The atoms.
        now: Positions in the last observed frame, unwrapped, Å.
        now_ps: Time of that frame on the clock of its trajectory, ps.
        box: Edge vectors of the periodic box, Å; none without a box.
        frame_ps: Time between the observed frames, ps.
        observed: How many frames were observed.
        expected: The forecast at the times asked for.
        samples: Whole futures, unwrapped, Å; none at all has the shape 0 × times × atoms × 3.
        seed: Of the samples.
        model: What the forecaster is called.
        said: What a reader should know of this model's forecasts: sentences.
        trivial: What anybody could say at these times, by name: the forecast must beat it.
        reference: Of a molecule that was superposed in training: what later frames are
            superposed on to be compared, in the pose of the last observed frame, Å.
        provenance: What the model was trained on and how.
        notices: What was dropped, assumed or guessed.
    """

    system: MolecularSystem
    now: Float[Tensor, "atoms 3"]
    now_ps: float
    box: Float[Tensor, "3 3"] | None
    frame_ps: float
    observed: int
    expected: AtomForecast
    samples: Float[Tensor, "samples times atoms 3"]
    seed: int
    model: str = "DoMiNO"
    said: tuple[str, ...] = ()
    trivial: Mapping[str, AtomForecast] = field(default_factory=dict)
    reference: Float[Tensor, "atoms 3"] | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    notices: tuple[Notice, ...] = ()

    def __post_init__(self) -> None:
        name = self.system.structure.name
        shape = (len(self.expected.lags_ps), len(self.system), 3)
        if self.expected.mean.shape != shape or self.samples.shape[1:] != shape:
            raise InputError(f"{name}: a forecast of {shape[0]} times and {shape[1]} atoms differs")
        told = [self.samples, self.now]
        for row in (self.expected, *self.trivial.values()):
            told += [one for one in (row.mean, row.spread, row.velocities) if one is not None]
        if not all(bool(torch.isfinite(one).all()) for one in told):
            raise InputError(f"{name}: the forecast is not finite")

    @property
    def lags_ps(self) -> tuple[float, ...]:
        """Times after now, ps, increasing."""
        return tuple(self.expected.lags_ps.tolist())

    @property
    def times_ps(self) -> tuple[float, ...]:
        """The same times on the clock of the observed trajectory, ps."""
        return tuple(self.now_ps + lag for lag in self.lags_ps)

    @property
    def notes(self) -> list[str]:
        """Honest sentences about the model for a page."""
        steps, on = self.provenance.get("steps"), self.provenance.get("recordings", [])
        known = [f"{self.model}, trained for {steps} steps on {', '.join(on)}."] if steps else []
        known += self.said
        spread = self.expected.spread
        if spread is not None:
            first, last = (float(spread[k].square().mean().sqrt()) for k in (0, -1))
            known.append(
                f"It expects to be wrong by {first:.2g} Å along each axis at {self.lags_ps[0]:g} "
                f"ps after the last observed frame and by {last:.2g} Å at {self.lags_ps[-1]:g} ps."
            )
        else:
            known.append("It does not say how sure it is of any atom, and draws no samples.")
        mean = (
            "The mean is what is expected of each atom, not a state in which the molecules ever "
            "are: where little can be known it is wrong in bonds and contacts."
        )
        states = " Samples are such states, as far as the model goes."
        return [*known, mean + (states if len(self.samples) else "")]

    def at(self, rows: Sequence[int]) -> MovingAtoms:
        """Return the forecast at some of its times, by their places."""
        chosen = torch.tensor(list(rows), dtype=torch.int64)

        def some(forecast: AtomForecast) -> AtomForecast:
            spread, velocities = forecast.spread, forecast.velocities
            return AtomForecast(
                lags_ps=forecast.lags_ps[chosen],
                mean=forecast.mean[chosen],
                spread=None if spread is None else spread[chosen],
                velocities=None if velocities is None else velocities[chosen],
            )

        return replace(
            self,
            expected=some(self.expected),
            samples=self.samples[:, chosen],
            trivial={name: some(forecast) for name, forecast in self.trivial.items()},
        )

    def save(self, folder: Path) -> None:
        """Write the forecast; ``forecast.json``, the last file, names it whole.

        Args:
            folder: New, or of an earlier forecast, which is replaced.
        """
        atomic.discard(folder / "forecast.json")
        state = folder / STATE
        arrays: dict[str, Tensor | None] = {"now": self.now, "samples": self.samples}
        arrays |= {"box": self.box, "reference": self.reference}
        for label, row in self._rows():
            arrays |= {f"{label}{part}": getattr(row, part) for part in _PARTS}
        files = write_structure(state, self.system.structure) | write_system(state, self.system)
        for label, value in arrays.items():
            if value is not None:
                numbers = value.detach().cpu().float().numpy()
                files[f"{label}.npy"] = atomic.write_array(state / f"{label}.npy", numbers)
        atomic.write_json(
            folder / "forecast.json",
            {
                "format": FORMAT,
                "kind": KIND,
                "now_ps": self.now_ps,
                "frame_ps": self.frame_ps,
                "observed": self.observed,
                "lags_ps": list(self.lags_ps),
                "seed": self.seed,
                "model": self.model,
                "said": list(self.said),
                "trivial": list(self.trivial),
                "provenance": dict(self.provenance),
                "notices": [notice.as_dict() for notice in self.notices],
                "files": files,
            },
        )

    def _rows(self) -> list[tuple[str, AtomForecast]]:
        """Return the forecast and the trivial ones with the beginnings of their file names."""
        rows = [(f"trivial{n}.", row) for n, row in enumerate(self.trivial.values())]
        return [("", self.expected), *rows]

    @classmethod
    def load(cls, folder: Path) -> MovingAtoms:
        """Read what `save` wrote.

        Raises:
            InputError: No forecast there, a damaged or a newer one.
        """
        described = atomic.read_json(folder / "forecast.json")
        if described.get("format") != FORMAT or described.get("kind") != KIND:
            raise InputError(f"{folder} holds no forecast of atoms of format {FORMAT}")
        with described_in(folder / "forecast.json"):
            state, files = folder / STATE, dict[str, str](described["files"])
            check_names(folder, files)
            for name, promised in files.items():
                if not (state / name).is_file() or atomic.sha256(state / name) != promised:
                    raise InputError(f"{state / name} is missing or has changed")

            def array(label: str) -> Tensor | None:
                if f"{label}.npy" not in files:
                    return None
                return torch.from_numpy(np.array(load_array(state / f"{label}.npy")))

            def needed(label: str) -> Tensor:
                found = array(label)
                if found is None:
                    raise InputError(f"{state} has no {label}.npy")
                return found

            lags = torch.tensor(described["lags_ps"], dtype=torch.float64)

            def forecast(start: str) -> AtomForecast:
                return AtomForecast(
                    lags_ps=lags,
                    mean=needed(f"{start}mean"),
                    spread=array(f"{start}spread"),
                    velocities=array(f"{start}velocities"),
                )

            return cls(
                system=read_system(state),
                now=needed("now"),
                now_ps=float(described["now_ps"]),
                box=array("box"),
                frame_ps=float(described["frame_ps"]),
                observed=int(described["observed"]),
                expected=forecast(""),
                samples=needed("samples"),
                seed=int(described["seed"]),
                # Forecasts that name no model were made when there was only one.
                model=str(described.get("model", cls.model)),
                said=tuple(str(one) for one in described.get("said", ())),
                trivial={
                    name: forecast(f"trivial{n}.") for n, name in enumerate(described["trivial"])
                },
                reference=array("reference"),
                provenance=described["provenance"],
                notices=tuple(Notice(**notice) for notice in described["notices"]),
            )


def holds_atoms(folder: Path) -> bool:
    """Tell whether a result folder holds a forecast of atoms, not of a surface.

    Raises:
        InputError: It holds no forecast.
    """
    return atomic.read_json(folder / "forecast.json").get("kind") == KIND


def forecast_atoms(
    window: Window,
    times_ps: Sequence[float],
    model: TrainedForecaster | None = None,
    *,
    samples: int | None = None,
    seed: int = 0,
    memory_limit: int | str | None = None,
) -> MovingAtoms:
    """Forecast where the atoms of a window will be.

    Args:
        window: What is observed; longer ones than the model takes are shortened to its last
            frames.
        times_ps: Times after the last observed frame, ps, increasing, within the horizon.
        model: Of any kind of `undula.motion.catalog`; by default the bundled DoMiNO that knows
            these atoms. What a kind cannot give, such as a spread, is none in the forecast.
        samples: How many whole futures to draw; by default `SAMPLES`, none from a kind that has
            no distribution.
        seed: Of the samples.
        memory_limit: Of the whole process, bytes or such as "4GiB"; by default what there is.

    Returns:
        The forecast with the trivial rows that stand beside it.

    Raises:
        InputError: The model does not know these atoms or this time between frames, or the
            window is too short.
        UsageError: Times that do not increase or lie beyond the horizon; fewer than no samples,
            or some from a kind that has none; a limit that is none.
        MachineError: It does not fit into memory; says what does.
    """
    lags = _checked_times(times_ps)
    trained = bundled_for(window.system) if model is None else model
    demands = trained.demands
    samples = checked_samples(samples, trained)
    check_fits(window, trained, lags)
    observed = window.last(demands.observed)
    name, size = window.system.structure.name, sized(observed, trained, lags.tolist(), samples)
    limit = estimates.memory_limit(estimates.asked_bytes(memory_limit))
    size = fitted(size, limit, name)
    notices = noticed(window, trained)

    def made(at_once: int) -> MovingAtoms:
        by = trained
        if isinstance(by, TrainedMotion):
            by = replace(by, times_at_once=at_once)
        return _forecast(observed, lags, by, samples, seed, notices)

    return estimates.with_less(
        lambda: made(size.at_once),
        lambda: made(max(size.at_once // 2, 1)),
        lambda: (
            f"{name}: the memory was not enough for a forecast of {len(window.system)} atoms; "
            f"{what_fits(size, int(0.9 * estimates.memory_limit(None)))}"
        ),
    )


def noticed(window: Window, trained: TrainedForecaster) -> tuple[Notice, ...]:
    """Return what is to be noticed of a window before a model forecasts from it."""
    wanted, length = trained.demands.observed, len(window)
    if length >= wanted:
        return window.notices
    message = (
        f"the window has {length} frames, in training there were {wanted}: what it says about slow "
        "motion is less certain than the model believes"
    )
    return (*window.notices, Notice(code="window-short", message=message, count=length))


def sized(
    window: Window, trained: TrainedForecaster, lags_ps: Sequence[float], samples: int
) -> MotionSize:
    """Return what memory and time of a forecast depend on."""
    demands, domino = trained.demands, isinstance(trained, TrainedMotion)
    rolled = lags_ps[-1] / demands.stride_ps if demands.stride_ps else 0.0
    return MotionSize(
        atoms=len(window.system),
        observed=len(window),
        times=len(lags_ps),
        samples=samples,
        features=demands.features,
        neighbours=demands.neighbours * demands.graphs,
        at_once=demands.at_once,
        divisible=domino,
        draws=demands.draws,
        states=1 + min(samples, DRAWN_STATES) if domino else demands.draws + samples,
        passes=(demands.passes + demands.passes_each * max(len(lags_ps), rolled)) / demands.graphs,
    )


def checked_samples(samples: int | None, trained: TrainedForecaster) -> int:
    """Return how many samples to draw, by default as many as a kind of model can.

    Raises:
        UsageError: Fewer than none, or some from a kind that has no distribution.
    """
    if samples is None:
        return SAMPLES if trained.demands.samples else 0
    if samples < 0:
        raise UsageError(f"samples should not be negative, not {samples}")
    if samples and not trained.demands.samples:
        raise UsageError(
            f"{trained.name} has no distribution to draw samples from; ask for 0 of them"
        )
    return samples


def _forecast(
    observed: Window,
    lags: Float[Tensor, " times"],
    trained: TrainedForecaster,
    samples: int,
    seed: int,
    notices: tuple[Notice, ...],
) -> MovingAtoms:
    generator = torch.Generator().manual_seed(seed)
    pose = Pose.of(observed, trained.demands.reference, lags)
    drawn = trained.samples(observed, lags, samples, generator) if samples else None
    expected = trained.forecast(observed, lags)
    gone = expected.divergence
    if gone is not None:
        notices = (*notices, _diverged(gone, observed))
    empty = observed.positions.new_zeros(0, len(lags), len(observed.system), 3)
    return MovingAtoms(
        system=observed.system,
        now=observed.now,
        now_ps=observed.now_ps,
        box=observed.box,
        frame_ps=observed.frame_ps,
        observed=len(observed),
        expected=AtomForecast(
            lags_ps=lags,
            mean=expected.mean,
            spread=expected.spread,
            velocities=expected.velocities,
        ),
        samples=empty if drawn is None else drawn,
        seed=seed,
        model=trained.name,
        said=trained.demands.said,
        trivial=_trivial(observed, trained, pose),
        reference=pose.reference,
        provenance=trained.provenance,
        notices=notices,
    )


def _diverged(gone: Divergence, window: Window) -> Notice:
    some = "" if gone.share == 1 else f" in {gone.share:.0%} of its samples"
    return Notice(
        code="rollout-diverged",
        message=f"the forecast left the range of what is possible{some}, first {gone.after_ps:g} "
        "ps after the last observed frame; from there on its last possible frame stands",
        place=window.system.structure.name,
    )


def _checked_times(times_ps: Sequence[float]) -> Float[Tensor, " times"]:
    lags = torch.tensor([float(time) for time in times_ps], dtype=torch.float64)
    if len(lags) == 0:
        raise UsageError("a forecast needs at least one time")
    if not torch.isfinite(lags).all() or lags[0] < 0:
        raise UsageError(
            f"times count from the last observed frame; {float(lags.min()):g} ps is before it"
        )
    if (lags.diff() <= 0).any():
        raise UsageError("the times of a forecast should increase")
    return lags


def check_system(system: MolecularSystem, trained: TrainedForecaster) -> None:
    """Raise where a model does not know some atoms, in one sentence that says what to do.

    Raises:
        InputError: Kinds that did not occur in training, or another molecule than the one it was
            trained on.
    """
    demands = trained.demands
    name, known, reference = system.structure.name, demands.kinds, demands.reference
    unknown = sorted(set(system.kinds.tolist()) - set(known))
    elsewhere = "make recordings with undula prepare atoms and train on them with undula train"
    if unknown:
        raise InputError(
            f"{name}: the model knows no atoms of the kind {_listed(unknown)}, only "
            f"{_listed(known)}; {elsewhere}"
        )
    if reference is not None and len(reference) != len(system):
        raise InputError(
            f"{name}: the model was trained on a molecule of {len(reference)} atoms, this "
            f"one has {len(system)}; {elsewhere}"
        )


def _listed(kinds: Sequence[str]) -> str:
    rest = f" and {len(kinds) - 3} more" if len(kinds) > 3 else ""
    return ", ".join(kinds[:3]) + rest


def check_fits(
    window: Window, trained: TrainedForecaster, lags_ps: Float[Tensor, " times"]
) -> None:
    """Raise where a model cannot forecast a window, in one sentence that says what to do.

    Args:
        window: What is observed.
        trained: The model.
        lags_ps: Times asked for, ps.

    Raises:
        InputError: See `check_system`; another time between frames, or too few frames.
        UsageError: A time beyond the horizon.
    """
    check_system(window.system, trained)
    name, demands = window.system.structure.name, trained.demands
    if abs(window.frame_ps - demands.frame_ps) > 1e-6 * demands.frame_ps:
        raise InputError(
            f"{name}: frames of the window are {window.frame_ps:g} ps apart, those the model was "
            f"trained on {demands.frame_ps:g} ps; cut the window with "
            f"frame_ps={demands.frame_ps:g}"
        )
    needed = demands.frames_needed(window.velocities is not None)
    if len(window) < needed:
        raise InputError(
            f"{name}: the window has {len(window)} frames, the model takes at least {needed}"
        )
    farthest = float(lags_ps[-1])
    if farthest > demands.horizon_ps * (1 + 1e-9):
        raise UsageError(
            f"the model reaches {demands.horizon_ps:g} ps after the last observed frame; "
            f"{farthest:g} ps were asked for"
        )


def bundled_for(system: MolecularSystem) -> TrainedMotion:
    """Load the bundled model that knows the atoms of a system.

    Raises:
        InputError: None does.
    """
    for folder in motion_models().values():
        trained = TrainedMotion.load(folder)
        knows = set(system.kinds.tolist()) <= set(trained.climatology.kinds)
        if knows and (trained.reference is None or len(trained.reference) == len(system)):
            return trained
    raise InputError(
        f"{system.structure.name}: no bundled model of moving atoms knows its atoms "
        f"({_listed(sorted(set(system.kinds.tolist())))}); there are "
        f"{', '.join(motion_models()) or 'none'}; make recordings with undula prepare atoms and "
        "train on them with undula train"
    )


def _trivial(window: Window, trained: TrainedForecaster, pose: Pose) -> dict[str, AtomForecast]:
    """Return what needs no more than the window and what was fitted in training.

    Only DoMiNO carries a linear forecast that was fitted at all times; beside other kinds that
    row is missing. Of a molecule that was superposed in training all rows but the last position
    are those of superposed frames, too.
    """
    lags, posed = pose.lags_ps, pose.window
    still = window.now.expand(len(lags), -1, -1).contiguous()
    rows = {"last position": AtomForecast(lags_ps=lags, mean=still)}
    if pose.reference is not None:
        constant = pose.reference.to(window.now).expand(len(lags), -1, -1).contiguous()
        rows["training mean"] = AtomForecast(lags_ps=lags, mean=constant)
    others: list[AtomForecaster] = [ObservedMean()]
    if window.velocities is not None or len(window) > 1:
        others.append(Ballistic())
    if isinstance(trained, TrainedMotion):
        others.append(LinearForecaster(name=LINEAR_ROW, climatology=trained.climatology))
    return rows | {row.name: pose.back(row.forecast(posed, lags)) for row in others}


@dataclass(frozen=True, kw_only=True, eq=False)
class Pose:
    """How a window was superposed as in training, and the way back.

    Attributes:
        window: In the pose of the training frames.
        lags_ps: Times of the forecast, ps.
        turn: R of ``positions @ R.mT + t``; none where nothing was superposed.
        shift: t, Å.
        reference: What later frames are superposed on to be compared, in the pose of the last
            observed frame, Å.
    """

    window: Window
    lags_ps: Float[Tensor, " times"]
    turn: Float[Tensor, "3 3"] | None = None
    shift: Float[Tensor, " 3"] | None = None
    reference: Float[Tensor, "atoms 3"] | None = None

    @classmethod
    def of(
        cls,
        window: Window,
        reference: Float[Tensor, "atoms 3"] | None,
        lags_ps: Float[Tensor, " times"],
    ) -> Pose:
        """Superpose a window on the reference of its model's training, if there is one."""
        if reference is None:
            return cls(window=window, lags_ps=lags_ps)
        posed, turn, shift = superposed(window, reference)
        back = (reference.to(turn) - shift) @ turn
        return cls(window=posed, lags_ps=lags_ps, turn=turn, shift=shift, reference=back)

    def back(self, forecast: AtomForecast) -> AtomForecast:
        """Turn a forecast back into the pose of the last observed frame."""
        if self.turn is None or self.shift is None:
            return replace(forecast, lags_ps=self.lags_ps)
        turn = self.turn.to(forecast.mean)
        velocities = forecast.velocities
        return replace(
            forecast,
            lags_ps=self.lags_ps,
            mean=(forecast.mean - self.shift.to(turn)) @ turn,
            velocities=None if velocities is None else velocities @ turn,
        )
