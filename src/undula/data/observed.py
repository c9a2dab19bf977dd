"""The observed part of a user's trajectory: its last frames, whole, unwrapped, evenly spaced."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from undula import estimates
from undula.data.estimates import PER_READ
from undula.data.recorded import EVEN_FRAMES, even_spacing
from undula.errors import InputError, Notice, UsageError
from undula.estimates import Estimate
from undula.geometry.frames import make_whole, unwrap
from undula.io.kinds import molecular_system
from undula.io.trajectories import frame_times, load_trajectory, open_trajectory
from undula.types import MolecularSystem, Structure, Trajectory


@dataclass(frozen=True, kw_only=True, eq=False)
class Observed:
    """Frames of one trajectory; the last one is now.

    Attributes:
        system: The atoms.
        positions: Whole molecules, unwrapped, Å; molecules lie now where the file has them.
        velocities: Å/ps, or none.
        box: Of the last frame, Å, or none.
        frame_ps: Time between frames, ps.
        now_ps: Time of the last frame, ps.
        notices: What was dropped, assumed or guessed.
    """

    system: MolecularSystem
    positions: Float[Tensor, "frames atoms 3"]
    velocities: Float[Tensor, "frames atoms 3"] | None
    box: Float[Tensor, "3 3"] | None
    frame_ps: float
    now_ps: float
    notices: tuple[Notice, ...]

    def __len__(self) -> int:
        return len(self.positions)


def observed(trajectory: Trajectory, *, place: str = "") -> Observed:
    """Make molecules whole and follow them through the walls of the box.

    Args:
        trajectory: At least two frames, evenly spaced.
        place: Name of the file, for messages; by default the structure's.

    Raises:
        InputError: There is one frame only, a step differs from the others, or a box is odd.
    """
    where = place or trajectory.structure.name
    frame_ps = even_spacing(Path(where), trajectory)
    system = molecular_system(trajectory.structure)
    positions, box = trajectory.positions, None
    if trajectory.box is not None:
        boxes = trajectory.box.to(positions.dtype)
        box = boxes[-1]
        positions = unwrap(positions, boxes, system.bonds)
        # Unwrapping keeps the place of the first frame; users know that of the last.
        back = make_whole(trajectory.positions[-1:], boxes[-1:], system.bonds) - positions[-1:]
        positions = positions + back
    return Observed(
        system=system,
        positions=positions,
        velocities=trajectory.velocities,
        box=box,
        frame_ps=frame_ps,
        now_ps=_single(trajectory),
        notices=(*trajectory.structure.notices, *trajectory.notices),
    )


def _single(trajectory: Trajectory) -> float:
    """Return the last time without the digits that a file's single precision made up."""
    return float(f"{float(trajectory.times_ps[-1]):.7g}")


def last_frames(
    structure: Structure, path: Path, span_ps: float | None, memory_limit: int | None = None
) -> Trajectory:
    """Load the last part of a trajectory and no more than that.

    Args:
        structure: Its atoms.
        path: XTC, TRR, DCD or a file of models.
        span_ps: From the first frame taken to the last one; all frames by default.
        memory_limit: Of the process, bytes; by default what there is.

    Raises:
        InputError: The file cannot serve.
        MachineError: The frames do not fit into memory; says how many do.
    """
    file = open_trajectory(path)
    times, kept, _ = frame_times(file, time_unit="ps", frame_ps=None, within=slice(None))
    if span_ps is None:
        check_frames(structure, path, len(kept), memory_limit)
        return load_trajectory(structure, path)
    # Times are kept in single precision: half a step decides.
    step = (times[-1] - times[0]) / max(len(times) - 1, 1)
    first = int((times >= times[-1] - span_ps - step / 2).argmax())
    check_frames(structure, path, len(kept) - first, memory_limit)
    return load_trajectory(structure, path, start=int(kept[first]))


def check_frames(
    structure: Structure, path: Path, frames: int, memory_limit: int | None = None
) -> None:
    """Raise where some frames of a trajectory would not fit into memory, before they are read.

    Args:
        structure: Its atoms.
        path: Of the trajectory, for the message.
        frames: How many are to be read and made whole.
        memory_limit: Of the process, bytes; by default what there is.

    Raises:
        MachineError: They do not fit; says how many do.
    """
    limit, each = estimates.memory_limit(memory_limit), PER_READ * len(structure)
    needed = Estimate(
        memory_bytes=estimates.peak_bytes(frames * each), seconds=2e-8 * frames * each
    )
    fit = max(int(estimates.room_bytes(limit) // each), 0)
    estimates.check_fits(
        needed, limit, f"{path}: reading {frames} frames", f"{fit} frames fit: take fewer"
    )


def spaced(frames: Observed, frame_ps: float) -> Observed:
    """Keep every n-th frame, counted back from the last, so that they are as far apart as wanted.

    Args:
        frames: Closer together by a whole factor, or as far apart already.
        frame_ps: Wanted time between frames, ps.

    Returns:
        Frames that are ``frame_ps`` apart, with a notice if some were left out.

    Raises:
        InputError: Frames are farther apart, or ``frame_ps`` is no multiple of their time.
    """
    name = frames.system.structure.name
    ratio = frame_ps / frames.frame_ps
    stride = round(ratio)
    if stride < 1 or abs(ratio - stride) > EVEN_FRAMES * ratio:
        why = "farther apart" if ratio < 1 else "not a whole factor closer"
        raise InputError(
            f"{name}: frames of the window are {frames.frame_ps:g} ps apart, {why} than the "
            f"{frame_ps:g} ps of the model; write the trajectory every {frame_ps:g} ps, or train "
            f"on frames like these"
        )
    if stride == 1:
        return replace(frames, frame_ps=frame_ps)
    first = (len(frames) - 1) % stride
    kept = (len(frames) - 1) // stride + 1
    notice = Notice(
        code="frames-left-out",
        message=f"{len(frames) - kept} of {len(frames)} frames were left out: the model takes "
        f"one in {stride}, {frame_ps:g} ps apart",
        count=len(frames) - kept,
    )
    velocities = frames.velocities
    return replace(
        frames,
        positions=frames.positions[first::stride],
        velocities=None if velocities is None else velocities[first::stride],
        frame_ps=frame_ps,
        notices=(*frames.notices, notice),
    )


def span(*, last: int | None, last_ps: float | None, frame_ps: float) -> float | None:
    """Return the time from the first frame of a window to its last, ps; none for all there is.

    Args:
        last: How many frames, ``frame_ps`` apart.
        last_ps: The time itself, ps.
        frame_ps: Time between frames, ps.

    Raises:
        UsageError: Both are given, or one is not positive.
    """
    if last is not None and last_ps is not None:
        raise UsageError("a window is given by frames (last) or by time (last_ps), not by both")
    if last is not None and last < 1:
        raise UsageError(f"a window keeps at least 1 frame, not {last}")
    if last_ps is not None and not 0 < last_ps < float("inf"):
        raise UsageError(f"last_ps should be a positive time, not {last_ps}")
    return last_ps if last is None else (last - 1) * frame_ps


def tail(frames: Observed, span_ps: float | None) -> Observed:
    """Keep the last frames of a time; all if it is none."""
    if span_ps is None:
        return frames
    kept = min(round(span_ps / frames.frame_ps) + 1, len(frames))
    velocities = frames.velocities
    return replace(
        frames,
        positions=frames.positions[-kept:],
        velocities=None if velocities is None else velocities[-kept:],
    )


def nearest_images(
    positions: Float[Tensor, "frames atoms 3"],
    boxes: Float[Tensor, "frames 3 3"],
    system: MolecularSystem,
    origin: Float[Tensor, "atoms 3"],
) -> Float[Tensor, "frames atoms 3"]:
    """Unwrap frames that follow on a known one.

    Args:
        positions: In any image, Å; the first follows closely on ``origin``.
        boxes: Edge vectors, Å.
        system: The atoms.
        origin: Where they were before, unwrapped, Å.

    Returns:
        Positions without jumps, from ``origin`` on.
    """
    joined = torch.cat([origin[None].to(positions), positions])
    return unwrap(joined, torch.cat([boxes[:1], boxes]).to(positions), system.bonds)[1:]
