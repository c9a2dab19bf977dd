"""From trajectories to windows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from undula.data.observed import Observed, last_frames, observed, spaced, span, tail
from undula.io.trajectories import check_moves
from undula.motion.windows import Window
from undula.notices import placed
from undula.types import Structure, Trajectory


def window(
    trajectory: Trajectory,
    *,
    last: int | None = None,
    last_ps: float | None = None,
    frame_ps: float | None = None,
) -> Window:
    """Cut the last part of a trajectory as what a forecast may know.

    Args:
        trajectory: Evenly spaced frames; molecules may be cut by the walls of their box.
        last: How many frames; all by default.
        last_ps: The time they span instead, ps.
        frame_ps: Time between the frames of the window, ps: every n-th frame is kept. By default
            that of the trajectory.

    Returns:
        Whole molecules, unwrapped; the last frame is that of the trajectory.

    Raises:
        InputError: Frames are not evenly spaced, or do not fit ``frame_ps``.
        UsageError: ``last`` and ``last_ps`` are both given, or not positive.
    """
    frames = observed(trajectory)
    if frame_ps is not None:
        frames = spaced(frames, frame_ps)
    return _window(tail(frames, span(last=last, last_ps=last_ps, frame_ps=frames.frame_ps)))


def load_window(
    structure: Structure,
    path: Path,
    *,
    frame_ps: float,
    last: int,
    memory_limit: int | None = None,
) -> Window:
    """Read the last frames of a trajectory file as a window.

    Args:
        structure: Its atoms.
        path: XTC, TRR, DCD or a file of models; only its end is unpacked.
        frame_ps: Time between the frames of the window, ps.
        last: How many frames, at most.
        memory_limit: Of the process, bytes; by default what there is.

    Raises:
        InputError: The file cannot serve, is not evenly spaced, or its frames do not fit
            ``frame_ps``.
        UsageError: ``last`` is not positive.
        MachineError: So many frames do not fit into memory; says how many do.
    """
    kept = span(last=last, last_ps=None, frame_ps=frame_ps)
    # The time between frames takes two of them.
    wanted = span(last=max(last, 2), last_ps=None, frame_ps=frame_ps)
    read = last_frames(structure, path, wanted, memory_limit)
    check_moves(path, read.positions)
    frames = spaced(observed(read, place=str(path)), frame_ps)
    return replace(_window(tail(frames, kept)), notices=placed(frames.notices, path))


def _window(frames: Observed) -> Window:
    return Window(
        system=frames.system,
        positions=frames.positions,
        velocities=frames.velocities,
        box=frames.box,
        frame_ps=frames.frame_ps,
        now_ps=frames.now_ps,
        notices=frames.notices,
    )
