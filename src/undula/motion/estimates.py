"""Memory and time of a forecast of atoms, from its sizes alone.

The constants were fitted to peaks of fresh processes (``benchmarks/memory.py`` measures and
prints them).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from undula.errors import MachineError
from undula.estimates import (
    Estimate,
    check_fits,
    first_that_fits,
    memory_limit,
    peak_bytes,
    room_bytes,
    shown_memory,
)
from undula.motion.drawing import WindowConfig
from undula.motion.model import MotionModelConfig

PER_OBSERVED = 60
"""Bytes for each atom of each observed frame."""
PER_FEATURE_PAIR = 30
"""Bytes for each feature of each pair."""
PER_FEATURE_TIME = 310
"""Bytes for each feature of each atom at each time that is decoded at once."""
PER_PLACE = 36
"""Bytes for each place of an atom in all samples and means together."""
ROWS = 5
"""Means that stand beside the samples."""


@dataclass(frozen=True, kw_only=True)
class MotionSize:
    """What the cost of a forecast of atoms depends on.

    Attributes:
        atoms: How many.
        observed: Frames of the window.
        times: How many are asked for.
        samples: Futures that are drawn.
        features: Width of the network.
        neighbours: Of an atom, in all graphs that are held at once.
        at_once: Times that are decoded together.
        divisible: Whether fewer may be.
        draws: Futures that the mean takes.
        states: From which the network goes on, those of the samples among them.
        passes: Through the network for each of them, once it is on its way.
    """

    atoms: int
    observed: int
    times: int
    samples: int
    features: int
    neighbours: float
    at_once: int
    divisible: bool = True
    draws: int = 1
    states: int
    passes: float

    def halves(self) -> list[int]:
        """Return how many times may be decoded together, halved until it is one if they may."""
        found = [self.at_once]
        while self.divisible and found[-1] > 1:
            found.append(found[-1] // 2)
        return found


def forecast_bytes(size: MotionSize) -> float:
    """Return how much a forecast adds to what the process holds, at its peak, bytes."""
    at_once = min(size.at_once, size.times)
    each = float(PER_OBSERVED * size.observed)
    each += size.features * (PER_FEATURE_PAIR * size.neighbours + PER_FEATURE_TIME * at_once)
    futures = max(size.samples, size.draws - 1) + ROWS
    return size.atoms * (each + PER_PLACE * futures * size.times)


def forecast_seconds(size: MotionSize) -> float:
    """Return about how long a forecast takes on one core, s."""
    pairs = size.atoms * max(size.neighbours, 1) * size.features
    return 2 + 5e-9 * size.states * pairs * size.passes


def estimate(size: MotionSize) -> Estimate:
    """Estimate a forecast from now on."""
    return Estimate(memory_bytes=peak_bytes(forecast_bytes(size)), seconds=forecast_seconds(size))


def fitted(size: MotionSize, limit: int, name: str) -> MotionSize:
    """Cut a forecast into parts so that it fits, or say at once that it does not.

    Args:
        size: What is asked for.
        limit: Memory of the process, bytes.
        name: Of the structure, for the message.

    Returns:
        The same forecast, fewer times being decoded together if need be.

    Raises:
        MachineError: It does not fit; says what does.
    """
    for at_once in size.halves():
        cut = replace(size, at_once=at_once)
        if estimate(cut).memory_bytes <= limit:
            return cut
    what = (
        f"{name}: a forecast of {size.atoms} atoms at {size.times} times with "
        f"{size.samples} samples"
    )
    check_fits(estimate(cut), limit, what, what_fits(cut, limit))
    raise MachineError(f"{what} does not fit")


def what_fits(size: MotionSize, limit: int) -> str:
    """Say how many samples, times or observed frames fit, or how many atoms."""
    room = room_bytes(limit)
    least = replace(size, at_once=1)

    def needed(**changes: Any) -> float:
        return forecast_bytes(replace(least, **changes))

    samples = first_that_fits(range(size.samples - 1, -1, -1), lambda n: needed(samples=n), room)
    if samples is not None:
        return f"{samples} samples fit"
    times = first_that_fits(
        range(size.times - 1, 0, -1), lambda n: needed(samples=0, times=n), room
    )
    if times is not None:
        return f"{times} times without samples fit"
    frames = first_that_fits(
        range(size.observed - 1, 2, -1), lambda n: needed(samples=0, times=1, observed=n), room
    )
    if frames is not None:
        return f"a window of {frames} frames fits, at one time without samples"
    smallest = replace(least, samples=0, times=1, observed=3)
    atoms = int(max(room, 0) / (forecast_bytes(smallest) / size.atoms))
    if atoms < 1:
        return f"nothing fits, undula alone takes {shown_memory(peak_bytes(0.0))}"
    return f"about {float(f'{atoms:.2g}'):,.0f} atoms fit"


TRAINING_BYTES = 40_000_000
"""Of optimiser and loop."""
PER_FITTED_PLACE = 20
"""Bytes for each place of an atom in the windows on which the linear forecast is fitted."""
PER_TRAINED_PAIR = 12
"""Bytes for each feature of each pair in each graph of a step, for the way back."""


def training_estimate(
    atoms: int, recordings: int, model: MotionModelConfig, batch: WindowConfig, steps: int
) -> Estimate:
    """Estimate the training of DoMiNO, from now on; right to a factor of about two.

    Args:
        atoms: Of the system.
        recordings: How many are trained on.
        model: Sizes.
        batch: What a step sees.
        steps: How many.
    """
    encoder, levels = model.encoder, model.levels
    graphs = len(encoder.ages(batch.observed))
    graphs += 4 * levels.solver.steps * len(levels.strides) * max(batch.segments, 1)
    pairs = batch.windows * atoms * encoder.neighbours * encoder.features * graphs
    fitted_places = recordings * batch.fitted_windows * batch.observed * atoms
    added = TRAINING_BYTES + PER_FITTED_PLACE * fitted_places + PER_TRAINED_PAIR * pairs
    return Estimate(
        memory_bytes=peak_bytes(added),
        seconds=10 + 1e-6 * fitted_places + 2e-8 * pairs * steps,
    )


def check_training(
    atoms: int,
    recordings: int,
    model: MotionModelConfig,
    batch: WindowConfig,
    steps: int,
    asked: int | None,
) -> Estimate:
    """Estimate a training, or refuse it before it begins.

    Args:
        atoms: Of the system.
        recordings: How many are trained on.
        model: Sizes.
        batch: What a step sees.
        steps: How many.
        asked: The memory limit, bytes; by default what there is.

    Raises:
        MachineError: It does not fit; says how many windows in a step do, or segments.
    """
    limit = memory_limit(asked)
    found = training_estimate(atoms, recordings, model, batch, steps)

    def needed(cut: WindowConfig) -> float:
        return float(training_estimate(atoms, recordings, model, cut, steps).memory_bytes)

    if found.memory_bytes > limit:
        smaller = [replace(batch, windows=n) for n in range(batch.windows - 1, 0, -1)]
        smaller += [
            replace(batch, windows=1, segments=n) for n in range(batch.segments - 1, -1, -1)
        ]
        fit = first_that_fits(smaller, needed, float(limit))
        instead = "train on a smaller system"
        if fit is not None:
            instead = f"batch.windows={fit.windows} with batch.segments={fit.segments} fits"
        check_fits(found, limit, f"a training on {atoms} atoms", instead)
    return found
