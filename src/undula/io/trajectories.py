"""Read a trajectory: which frames are kept, and what makes a file unfit.

The formats are read by `undula.io.xtc`, `undula.io.trr`, `undula.io.dcd` and `undula.io.models`;
frames are counted there from the headers. On top of that these rules hold; each thing that is
dropped or assumed is counted in a `Notice` of the trajectory.

1.  The content decides the format. A file that was cut serves with its whole frames.
2.  A frame must have as many atoms as the file of the structure, or as many as the structure.
3.  A frame with a coordinate that is not finite or beyond 100,000 Å, with a velocity beyond
    100,000 Å/ps, or with an impossible covalent bond (`undula.io.bonds.broken_frames`), refuses
    the file: damage is not repaired.
4.  Times must increase. A frame is dropped whose time is not later than that of all frames kept
    before it (restarted runs repeat frames), and one whose time alone is out of order between
    its neighbours. If all times are equal, or there are none, frames are numbered from 0
    (one frame, one ps), and a notice says so.
5.  A box thinner than 4 Å in some frame stands for no box in all.
6.  Velocities are kept if every frame has them.
7.  Frames that equal the one before are counted, and so are times between frames in which atoms
    move far more or far less than heat moves them: the file may be in another unit of time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from undula.elements import ELEMENTS
from undula.errors import InputError, Notice, UsageError
from undula.io.bonds import broken_frames, covalent_bonds
from undula.io.boxes import SMALLEST_WIDTH, widths
from undula.io.dcd import open_dcd
from undula.io.formats import STRUCTURE_FORMATS, recognise
from undula.io.frame_file import FrameFile, Frames
from undula.io.models import ModelFile, open_models
from undula.io.scratch import MEMORY, Scratch, parts
from undula.io.structures import load_structure
from undula.io.trr import open_trr
from undula.io.xtc import open_xtc
from undula.notices import merged, placed
from undula.types import Structure, Trajectory
from undula.units import PICOSECONDS

LARGEST_COORDINATE = 1e5
"""Å; an atom farther from the origin is damage or a system that exploded."""
LARGEST_VELOCITY = 1e5
"""Å/ps; a thousand times what heat gives to hydrogen is damage or a system that exploded."""
FEWEST_COMMON_BONDS = 0.98
"""Less than this share of the structure's bonds in a trajectory means another order of atoms."""

FASTEST, SLOWEST = 5.0, 0.03
"""How often faster than heat at 300 K atoms may move in the median; how far, in Å, they move at
least between frames that are more than `LONG` apart (bonds alone swing wider)."""
LONG = 0.5
"""ps"""
_BOLTZMANN = 0.831446
"""u Å²/ps² per kelvin."""
_EXAMINED = 50

_OPEN: dict[str, Callable[[Path], FrameFile]] = {
    "xtc": open_xtc,
    "trr": open_trr,
    "dcd": open_dcd,
    **dict.fromkeys(STRUCTURE_FORMATS, open_models),
}


def load_trajectory(
    topology: str | Path | Structure,
    path: str | Path,
    *,
    start: int = 0,
    stop: int | None = None,
    stride: int = 1,
    time_unit: str = "ps",
    frame_ps: float | None = None,
) -> Trajectory:
    """Load frames of an XTC, TRR or DCD file, or of a PDB, mmCIF or GRO file of several models.

    Args:
        topology: The structure whose atoms are wanted; from a path all its atoms are.
        path: The trajectory; the rules are those of this module.
        start: First frame, from 0.
        stop: Frame to stop before; by default the end.
        stride: Take every n-th frame from the first on.
        time_unit: What the times in the file are in: fs, ps, ns, us or ms. Files say ps.
        frame_ps: Time between successive frames of the file in ps; it replaces the file's times.

    Returns:
        Positions in Å in single precision, times in ps, box and velocities where they are known.

    Raises:
        InputError: The file cannot serve; one sentence with the file and the frame.
        UsageError: An option has a value that does not exist.
        MachineError: The file may not be read, or there is no room for temporary files.
    """
    path = Path(path)
    structure = topology if isinstance(topology, Structure) else load_whole_structure(topology)
    found = read_frames(
        structure,
        path,
        start=start,
        stop=stop,
        stride=stride,
        time_unit=time_unit,
        frame_ps=frame_ps,
    )
    return Trajectory(
        structure=structure,
        positions=found.positions,
        times_ps=found.times_ps,
        box=found.box,
        velocities=found.velocities,
        notices=found.notices,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class ReadFrames:
    """Frames of a trajectory that were read and checked.

    Attributes:
        positions: Å, single precision.
        times_ps: Strictly increasing.
        box: Edge vectors in rows, Å, or none.
        velocities: Å/ps, or none.
        notices: What was dropped or assumed.
    """

    positions: Float[Tensor, "frames atoms 3"]
    times_ps: Float[Tensor, " frames"]
    box: Float[Tensor, "frames 3 3"] | None
    velocities: Float[Tensor, "frames atoms 3"] | None
    notices: tuple[Notice, ...]


def read_frames(
    structure: Structure,
    path: Path,
    *,
    start: int = 0,
    stop: int | None = None,
    stride: int = 1,
    time_unit: str = "ps",
    frame_ps: float | None = None,
    scratch: Scratch = MEMORY,
) -> ReadFrames:
    """Read and check frames as `load_trajectory` does, many of them to the disk.

    Args:
        structure: The atoms that are wanted.
        path: The trajectory.
        start: As in `load_trajectory`, like all that is not told here.
        stop: See there.
        stride: See there.
        time_unit: See there.
        frame_ps: See there.
        scratch: Where many frames are put; by default all are held in memory.

    Raises:
        InputError: The file cannot serve; one sentence with the file and the frame.
        UsageError: An option has a value that does not exist.
        MachineError: The file may not be read, or there is no room for temporary files.
    """
    _check_options(start, stop, stride, time_unit, frame_ps)
    file = open_trajectory(path)
    atoms, notices = _wanted_atoms(structure, file)
    times, kept, time_notices = frame_times(
        file, time_unit=time_unit, frame_ps=frame_ps, within=slice(start, stop, stride)
    )
    notices = [*file.notices, *notices, *time_notices]
    if len(kept) == 0:
        raise InputError(f"{path}: no frame is left of {file.frames} from {start} to {stop}")
    frames = _read(file, kept, atoms, scratch)
    box, box_notices = _box(frames)
    notices += [*frames.notices, *box_notices]
    positions = torch.from_numpy(frames.positions)
    notices += _check_bonds(path, structure, positions, box, kept, scratch.release)
    notices += _repeated(path, positions, kept, scratch.release)
    if frame_ps is None and not any(notice.code == "times-numbered" for notice in notices):
        notices += _doubtful_times(structure, positions, times)
    return ReadFrames(
        positions=positions,
        times_ps=torch.from_numpy(times),
        box=box,
        velocities=None if frames.velocities is None else torch.from_numpy(frames.velocities),
        notices=placed(notices, path),
    )


def _read(file: FrameFile, kept: np.ndarray, atoms: np.ndarray, scratch: Scratch) -> Frames:
    """Read and check frames, many of them part by part."""
    if scratch.near is None or 12 * len(kept) * len(atoms) <= scratch.held_bytes:
        frames = file.read(kept, atoms)
        check_coordinates(file.path, frames, kept)
        return frames
    positions = scratch.empty(len(kept), len(atoms), 3)
    velocities: Tensor | None = None
    boxes: list[np.ndarray] = []
    notices: list[Notice] = []
    for some in parts(positions, scratch.read_bytes):
        frames = file.read(kept[some], atoms)
        check_coordinates(file.path, frames, kept[some])
        positions[some] = torch.from_numpy(frames.positions)
        boxes.append(frames.box)
        notices += frames.notices
        if frames.velocities is None or (velocities is None and some.start):
            velocities = None
        else:
            if velocities is None:
                velocities = scratch.empty(*positions.shape)
            velocities[some] = torch.from_numpy(frames.velocities)
        scratch.release()
    return Frames(
        positions=positions.numpy(),
        box=np.concatenate(boxes),
        velocities=None if velocities is None else velocities.numpy(),
        notices=tuple(merged(notices)),
    )


def load_whole_structure(path: str | Path) -> Structure:
    """Load all atoms of a structure file, as a trajectory of the same atoms needs them."""
    return load_structure(path, select="all", hydrogens="keep", heterogens="keep")


def open_trajectory(path: Path) -> FrameFile:
    """Recognise a trajectory by its content and read the headers of its frames.

    Raises:
        InputError: The file is of no known format, damaged, or has no frames.
    """
    return _OPEN[recognise(path)](path)


def _check_options(
    start: int, stop: int | None, stride: int, time_unit: str, frame_ps: float | None
) -> None:
    if stride < 1 or start < 0 or (stop is not None and stop < 0):
        raise UsageError(
            f"start and stop should be frames from 0 and stride at least 1, found {start}, "
            f"{stop} and {stride}"
        )
    if time_unit not in PICOSECONDS:
        raise UsageError(f"time_unit should be {', '.join(PICOSECONDS)}, found {time_unit!r}")
    if frame_ps is not None and not 0 < frame_ps < np.inf:
        raise UsageError(f"frame_ps should be a positive time in ps, found {frame_ps}")


def _wanted_atoms(structure: Structure, file: FrameFile) -> tuple[np.ndarray, list[Notice]]:
    if file.atoms == structure.file_atoms:
        atoms = np.asarray(structure.file_index)
        _check_names(structure, file, atoms)
        return atoms, []
    if file.atoms == len(structure):
        atoms = np.arange(file.atoms)
        _check_names(structure, file, atoms)
        message = (
            f"the trajectory has just the {len(structure)} atoms kept of {structure.file_atoms} "
            f"and was taken to be in their order"
        )
        return atoms, [Notice(code="atoms-as-kept", message=message, count=len(structure))]
    raise InputError(
        f"{file.path}: the trajectory has {file.atoms} atoms, the structure {structure.name} "
        f"has {structure.file_atoms} ({len(structure)} of them kept)"
    )


def _check_names(structure: Structure, file: FrameFile, atoms: np.ndarray) -> None:
    if not isinstance(file, ModelFile):
        return
    names = np.char.strip(file.table.name_columns[file.table.rows(0)[atoms]])
    differs = np.nonzero(names != structure.atom_names)[0]
    if len(differs):
        row = int(atoms[differs[0]])
        raise InputError(
            f"{file.path}: atom {row + 1} is {names[differs[0]]}, but "
            f"{structure.atom_names[differs[0]]} in the structure {structure.name}"
        )


def frame_times(
    file: FrameFile, *, time_unit: str, frame_ps: float | None, within: slice
) -> tuple[np.ndarray, np.ndarray, list[Notice]]:
    """Decide which frames to use and at which times they are.

    Args:
        file: The trajectory.
        time_unit: Of the times in the file.
        frame_ps: Replaces the times in the file if given, ps.
        within: The frames asked for.

    Returns:
        Times in ps, strictly increasing; the frames that have them, from 0; notices.
    """
    frames = np.arange(file.frames)
    if frame_ps is not None:
        frames = frames[within]
        return frames * frame_ps, frames, []
    if file.times_ps is None:
        message = "the file gives no times; frames are numbered from 0 as if 1 ps apart"
        notice = Notice(code="times-numbered", message=message, count=file.frames)
        return frames[within].astype(float), frames[within], [notice]
    times = file.times_ps * PICOSECONDS[time_unit]
    if file.frames > 1 and (times == times[0]).all():
        message = (
            f"all {file.frames} frames have the time {times[0]:g} ps; they are numbered from 0 "
            "as if 1 ps apart"
        )
        notice = Notice(code="times-numbered", message=message, count=file.frames)
        return frames[within].astype(float), frames[within], [notice]
    later = _increasing(times)
    notices = []
    if not later.all():
        first = int(np.nonzero(~later)[0][0])
        notices.append(
            Notice(
                code="times-dropped",
                message=f"{int((~later).sum())} frames are not later than those before them and "
                "were dropped",
                count=int((~later).sum()),
                place=f"{file.path}: frame {first + 1}",
            )
        )
    kept = frames[within]
    kept = kept[later[kept]]
    return times[kept], kept, notices


def _increasing(times: np.ndarray) -> np.ndarray:
    """Mark the frames whose times make a strictly increasing sequence, by rule 4."""
    good = np.isfinite(times)
    index = np.nonzero(good)[0]
    around = times[index]
    before = np.concatenate([[-np.inf], around[:-1]])
    after = np.concatenate([around[1:], [np.inf]])
    # One time out of order between two neighbours that are in order with each other.
    before_last = np.concatenate([[-np.inf, -np.inf], around[:-2]])[: len(around)]
    alone = (around >= after) & (after > before) & (before > before_last)
    good[index[alone]] = False
    index = np.nonzero(good)[0]
    latest = np.maximum.accumulate(np.concatenate([[-np.inf], times[index]]))[:-1]
    good[index[times[index] <= latest]] = False
    return good


def check_coordinates(path: Path, frames: Frames, numbers: np.ndarray) -> None:
    """Raise where a coordinate or a velocity is not finite or absurdly large.

    Args:
        path: For the message.
        frames: What was read.
        numbers: Frame numbers in the file, from 0.

    Raises:
        InputError: The frame and the atom (from 1).
    """
    # A comparison with a number that is not finite is false.
    bad = ~(np.abs(frames.positions) <= LARGEST_COORDINATE)
    if bad.any():
        frame, atom, _ = (int(values[0]) for values in np.nonzero(bad))
        value = frames.positions[frame, atom][bad[frame, atom]][0]
        far = f"is {value:,.0f} Å from the origin" if np.isfinite(value) else "is not finite"
        raise InputError(
            f"{path}: frame {numbers[frame] + 1}: a coordinate of atom {atom + 1} {far}"
        )
    if frames.velocities is not None:
        bad = ~(np.abs(frames.velocities) <= LARGEST_VELOCITY)
        if bad.any():
            frame, atom, _ = (int(values[0]) for values in np.nonzero(bad))
            raise InputError(
                f"{path}: frame {numbers[frame] + 1}: the velocity of atom {atom + 1} is not "
                f"finite or beyond {LARGEST_VELOCITY:,.0f} Å/ps"
            )


def check_moves(
    path: Path,
    positions: Float[Tensor, "frames atoms 3"],
    release: Callable[[], None] = lambda: None,
) -> None:
    """Raise where there is nothing to learn or to forecast from: one frame, or the same again.

    Args:
        path: For the message.
        positions: All frames that are used, Å.
        release: Called after some frames were looked at.

    Raises:
        InputError: There is one frame, or all are alike.
    """
    if len(positions) < 2:
        raise InputError(f"{path}: there is one frame; motion needs at least two")
    moved = False
    for some in parts(positions):
        moved = moved or bool((positions[some] != positions[:1]).any())
        release()
    if not moved:
        raise InputError(f"{path}: all {len(positions)} frames are the same, nothing moves")


def _repeated(
    path: Path,
    positions: Float[Tensor, "frames atoms 3"],
    numbers: np.ndarray,
    release: Callable[[], None],
) -> list[Notice]:
    same: list[int] = []
    for some in parts(positions):
        for index in range(max(some.start, 1), some.stop):
            if torch.equal(positions[index - 1], positions[index]):
                same.append(index)
        release()
    if not same:
        return []
    message = f"{len(same)} frames are the same as those before them"
    place = f"{path}: frame {numbers[same[0]] + 1}"
    return [Notice(code="frames-repeated", message=message, count=len(same), place=place)]


def _doubtful_times(
    structure: Structure, positions: Float[Tensor, "frames atoms 3"], times: np.ndarray
) -> list[Notice]:
    """Compare how far atoms move between frames with how far heat moves them, by rule 7."""
    if len(positions) < 2:
        return []
    rows = torch.linspace(0, len(positions) - 2, min(len(positions) - 1, _EXAMINED)).long()
    moved = float((positions[rows + 1] - positions[rows]).norm(dim=-1).median())
    step = float(np.median(np.diff(times)))
    mass = float(np.median([ELEMENTS[symbol].mass for symbol in structure.elements.tolist()]))
    by_heat = step * (3 * _BOLTZMANN * 300 / mass) ** 0.5
    if moved > FASTEST * by_heat:
        why = "faster than heat moves them: another unit of time, or a system that explodes?"
    elif step > LONG and 0 < moved < SLOWEST:
        why = "hardly anything: are the times in fs, or is this a minimisation?"
    else:
        return []
    message = f"atoms move {moved:.2g} Å between frames that are {step:g} ps apart, {why}"
    return [Notice(code="times-doubtful", message=message, count=len(positions))]


def _box(frames: Frames) -> tuple[torch.Tensor | None, list[Notice]]:
    if not frames.box.any():
        return None, []
    finite = np.isfinite(frames.box).all(axis=(1, 2))
    thin = ~finite
    thin[finite] = widths(frames.box[finite]) < SMALLEST_WIDTH
    if thin.any():
        message = (
            f"{int(thin.sum())} of {len(thin)} frames have no box, or one thinner than "
            f"{SMALLEST_WIDTH:g} Å; no box was used"
        )
        return None, [Notice(code="box-dropped", message=message, count=int(thin.sum()))]
    return torch.from_numpy(frames.box), []


def _check_bonds(
    path: Path,
    structure: Structure,
    positions: torch.Tensor,
    box: torch.Tensor | None,
    numbers: np.ndarray,
    release: Callable[[], None],
) -> list[Notice]:
    bonds, carbon = covalent_bonds(structure), np.asarray(structure.elements == "C")
    found = broken_frames(positions, bonds, box, carbon, release)

    def named(atom: int) -> str:
        residue = f"{structure.residue_names[atom]} {structure.residue_numbers[atom]}"
        return f"{structure.atom_names[atom]} of {residue}"

    lost = found.everywhere.shape[1]
    if lost > (1 - FEWEST_COMMON_BONDS) * bonds.shape[1] and lost > 1:
        first = " and ".join(named(atom) for atom in found.everywhere[:, 0].tolist())
        raise InputError(
            f"{path}: {lost} of {bonds.shape[1]} bonds of {structure.name} are broken in most "
            f"frames (first {first}); is the order of the atoms the same?"
        )
    if found.frames.any():
        bad = torch.nonzero(found.frames)[:, 0].tolist()
        first, second = (named(atom) for atom in found.atoms[:2])
        what = f"{first} and {second} are {found.value:.2f} Å apart"
        if found.kind == "plane":
            what = f"the bonds of {first} are bent out of their plane"
        elif found.kind == "hand":
            what = f"the bonds of {first} are turned inside out"
        elif found.kind == "together":
            what = f"the atoms around {first} and {second} do not fit together"
        raise InputError(
            f"{path}: frame {numbers[bad[0]] + 1} is damaged ({len(bad)} of {len(numbers)} are): "
            f"in frame {numbers[found.frame] + 1} {what}"
        )
    if lost:
        message = f"{lost} contacts of the structure are no bonds in the trajectory"
        return [Notice(code="contacts-not-bonds", message=message, count=lost)]
    return []
