"""Memory and time of preparing data sets and recordings, before anything is read whole.

The constants were fitted to peaks of fresh processes (``benchmarks/memory.py`` measures and
prints them).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from undula.data.prepare_config import PrepareConfig
from undula.estimates import (
    Estimate,
    check_fits,
    first_that_fits,
    memory_limit,
    peak_bytes,
    room_bytes,
)
from undula.geometry.extent import extent
from undula.io.scratch import HELD_BYTES
from undula.io.trajectories import open_trajectory
from undula.types import Structure

PER_READ = 165
"""Bytes for each atom of each frame that is read, made whole, checked and posed."""
STREAMED_BYTES = 300_000_000
"""What takes recording a trajectory that does not fit into memory as a whole."""
PER_STREAMED_FRAME = 48_000
"""Bytes for each of its frames while bonds are compared over all of them, at most."""
PER_SURFACE_ATOM = 3_000
"""Bytes for each atom of the surfaces that are worked on."""
PER_SURFACE_POINT = 400
"""Bytes for each point of a surface while it is found."""
PER_ROW = 110
"""Bytes for each point of a shard of 44 bytes a point."""
ROWS_PER_AREA = 1.04
"""Points of a surface in units of its area over the square of their spacing."""


def frames_bytes(atoms: int, frames: int) -> float:
    """Return what reading a whole trajectory takes, bytes."""
    return float(PER_READ) * atoms * frames


def record_bytes(atoms: int, frames: int) -> float:
    """Return what recording a trajectory takes, of which many frames lie on the disk, bytes."""
    if 12 * atoms * frames <= HELD_BYTES:
        return frames_bytes(atoms, frames)
    return STREAMED_BYTES + float(min(12 * atoms, PER_STREAMED_FRAME) * frames)


def surface_points(structure: Structure, config: PrepareConfig) -> float:
    """Return about how many points the surface of a frame gets."""
    return ROWS_PER_AREA * extent(structure.positions, 1.0).area / config.spacing**2


def prepare_bytes(atoms: int, points: float, frames: int, config: PrepareConfig) -> float:
    """Return what preparing the surfaces of a trajectory adds to what the process holds, bytes."""
    labelled = config.near + config.local + config.uniform
    shard = PER_ROW * (points + labelled) * min(frames, config.frames_per_shard)
    surface = PER_SURFACE_ATOM * atoms + PER_SURFACE_POINT * points
    return frames_bytes(atoms, frames) + shard + surface


def prepare_seconds(atoms: int, points: float, frames: int, config: PrepareConfig) -> float:
    """Return about how long preparing the surfaces of some frames takes on one core, s."""
    labelled = config.near + config.local + config.uniform + config.fixed
    return 5 + frames * (2e-4 * atoms + 4e-5 * points + 3e-5 * labelled)


def used_frames(path: Path, stride: int) -> int:
    """Return how many frames of a trajectory are read, by its headers."""
    return -(-open_trajectory(path).frames // stride)


def prepare_estimate(
    structure: Structure, frames: Sequence[int], config: PrepareConfig
) -> Estimate:
    """Estimate preparing the surfaces of trajectories of so many frames, from now on."""
    atoms, points = len(structure), surface_points(structure, config)
    return Estimate(
        memory_bytes=peak_bytes(prepare_bytes(atoms, points, max(frames), config)),
        seconds=prepare_seconds(atoms, points, sum(frames), config),
    )


def record_estimate(structure: Structure, frames: Sequence[int]) -> Estimate:
    """Estimate recording the atoms of trajectories of so many frames, from now on."""
    return Estimate(
        memory_bytes=peak_bytes(record_bytes(len(structure), max(frames))),
        seconds=5 + 1e-6 * len(structure) * sum(frames),
    )


def check_prepare(
    structure: Structure,
    trajectories: Sequence[Path],
    config: PrepareConfig,
    asked: int | None,
    say: Callable[[str], None],
) -> None:
    """Say what preparing takes; refuse it before it begins where it would not fit.

    Args:
        structure: The atoms that are kept.
        trajectories: One after the other is read whole.
        config: The rules.
        asked: The memory limit, bytes; by default what there is.
        say: Called with the estimate.

    Raises:
        MachineError: It does not fit; says which stride does.
        InputError: A trajectory cannot serve.
    """
    frames = [used_frames(path, config.stride) for path in trajectories]
    found, limit = prepare_estimate(structure, frames, config), memory_limit(asked)
    longest = trajectories[frames.index(max(frames))]
    atoms, points = len(structure), surface_points(structure, config)
    room = room_bytes(limit)
    instead = _stride(
        max(frames), config.stride, lambda count: prepare_bytes(atoms, points, count, config), room
    )
    check_fits(found, limit, f"{longest}: preparing {max(frames)} frames", instead)
    say(f"estimate: {found}")


def check_record(
    structure: Structure,
    trajectories: Sequence[Path],
    stride: int,
    asked: int | None,
    say: Callable[[str], None],
) -> None:
    """Say what recording atoms takes; refuse it before it begins where it would not fit.

    Args:
        structure: The atoms that are kept.
        trajectories: One after the other is read.
        stride: Of the frames.
        asked: The memory limit, bytes; by default what there is.
        say: Called with the estimate.

    Raises:
        MachineError: It does not fit; says which stride does.
        InputError: A trajectory cannot serve.
    """
    frames = [used_frames(path, stride) for path in trajectories]
    found, limit = record_estimate(structure, frames), memory_limit(asked)
    longest = trajectories[frames.index(max(frames))]
    what = f"{longest}: recording {max(frames)} frames of {len(structure)} atoms"
    room = room_bytes(limit)
    atoms = len(structure)
    instead = _stride(max(frames), stride, lambda count: record_bytes(atoms, count), room)
    check_fits(found, limit, what, instead)
    say(f"estimate: {found}")


def prepare_fits(structure: Structure, trajectories: Sequence[Path], config: PrepareConfig) -> str:
    """Say which stride does not run out of memory where preparing trajectories did."""
    frames = [used_frames(path, config.stride) for path in trajectories]
    atoms, points = len(structure), surface_points(structure, config)
    return _not_enough(
        trajectories,
        frames,
        config.stride,
        lambda count: prepare_bytes(atoms, points, count, config),
    )


def record_fits(structure: Structure, trajectories: Sequence[Path], stride: int) -> str:
    """Say which stride does not run out of memory where recording trajectories did."""
    frames = [used_frames(path, stride) for path in trajectories]
    return _not_enough(
        trajectories, frames, stride, lambda count: record_bytes(len(structure), count)
    )


def _not_enough(
    trajectories: Sequence[Path], frames: list[int], stride: int, needed: Callable[[int], float]
) -> str:
    room = room_bytes(int(0.9 * memory_limit(None)))
    longest = trajectories[frames.index(max(frames))]
    instead = _stride(max(frames), stride, needed, room)
    return f"{longest}: the memory was not enough for {max(frames)} frames; {instead}"


def _stride(frames: int, stride: int, needed: Callable[[int], float], room: float) -> str:
    """Say which stride fits, for so many frames at the stride that was asked for."""
    times = first_that_fits(range(2, frames + 1), lambda n: needed(-(-frames // n)), room)
    if times is None:
        return "not one frame fits: keep fewer atoms with --chain"
    return f"a stride of {stride * times} fits"
