"""Trajectories to recordings: made whole, unwrapped, superposed if asked, velocities where known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from undula.data.fluids import is_archive, load_fluid, read_archive
from undula.data.prepare import begin, input_hash, unique_names
from undula.errors import InputError, Notice, UsageError
from undula.geometry.frames import centre, superposition, unwrap
from undula.io.kinds import molecular_system
from undula.io.recordings import (
    FORMAT,
    KIND,
    STENCIL,
    Differences,
    RecordedFrames,
    Recordings,
    central_differences,
    finish_recordings,
    is_recorded,
    open_recordings,
    write_recording,
)
from undula.io.structures import load_structure
from undula.io.trajectories import load_trajectory
from undula.types import MolecularSystem, Structure, Trajectory
from undula.units import ANGSTROM_PER_NM

LARGEST_ERROR = 0.1
"""Differences stand for velocities if they are off by at most this share of those known.
Fourth order at 0.1 ps: argon 0.07, water 0.97 (it librates faster than the sampling)."""
LARGEST_CHANGE = 0.25
"""The same where no velocities are known, for the change when every second frame is left out:
argon 0.19 at 0.1 ps and 0.42 at 0.2 ps (where the error is 0.22), water 0.77. Motion that is
faster than the sampling and of one frequency only can look slow: nothing in positions tells."""
EVEN_FRAMES = 1e-3
"""Share of the time between frames by which it may vary."""
_ITERATIONS, _STEADY = 100, 1e-6


@dataclass(frozen=True, kw_only=True)
class RecordConfig:
    """How trajectories become recordings.

    Attributes:
        stride: Keep every n-th frame, counted from the first.
        frame_ps: Time between successive frames of the files, ps; it replaces the files' times.
        select: "all" atoms of the topology or those of "protein".
        chain: Chains to keep, comma-separated; all by default.
        hydrogens: "keep" or "drop".
        heterogens: "keep" or "drop" ligands, ions and waters.
        altloc: "highest", "first" or a letter.
        length_unit: Of the topology: "auto" (the format's own), "angstrom" or "nm".
        com: "keep" the motion of the common centre of mass, or "remove" it: the centre stays
            where it is in the first frame.
        align: "none", or superpose every frame on the "mean" structure of `reference`, weighted
            by mass, never as a mirror image. For a single molecule.
        reference: Names of the recordings whose mean it is: those that train. By default the
            first.
        licence: Of the trajectories; kept with them.
    """

    stride: int = 1
    frame_ps: float | None = None
    select: str = "all"
    chain: str | None = None
    hydrogens: str = "keep"
    heterogens: str = "keep"
    altloc: str = "highest"
    length_unit: str = "auto"
    com: str = "keep"
    align: str = "none"
    reference: tuple[str, ...] = ()
    licence: str = ""

    def __post_init__(self) -> None:
        if self.stride < 1:
            raise UsageError(f"stride should be at least 1, not {self.stride}")
        if self.com not in ("keep", "remove"):
            raise UsageError(f"com should be keep or remove, not {self.com}")
        if self.align not in ("none", "mean"):
            raise UsageError(f"align should be none or mean, not {self.align}")
        if self.reference and self.align == "none":
            raise UsageError("reference names what frames are aligned to; add align=mean")


def record(
    sources: Sequence[Path],
    out: Path,
    config: RecordConfig,
    *,
    topology: Path | None = None,
    velocities: Sequence[Path] = (),
    say: Callable[[str], None] = lambda _: None,
) -> Recordings:
    """Make a folder of recordings; continue where an earlier call was killed.

    Args:
        sources: Trajectories of ``topology`` (XTC, TRR, DCD, models), or, without one, fluids in
            fixed point (`undula.data.fluids`); one recording each.
        out: The folder to make.
        config: The rules.
        topology: The structure that names the atoms.
        velocities: An archive of velocities for each trajectory, in the same order.
        say: Called with one line for each step done.

    Returns:
        The complete folder.

    Raises:
        InputError: An input cannot serve, frames are not evenly spaced or not as far apart in
            all, atoms differ, or an input has changed since the folder was begun.
        UsageError: The folder was begun with other rules; options that do not go together.
    """
    names = unique_names(sources)
    _check_options(names, config, topology, velocities)
    request = _request(names, sources, config, topology, velocities)
    begin(out, request)
    if (out / "manifest.json").exists():
        say(f"{out} is complete")
        return open_recordings(out)
    reading = _Reading(
        sources=tuple(sources),
        velocities=tuple(velocities),
        config=config,
        system=_system(sources[0], topology, config),
    )
    reading.check_alignment()
    reference = None
    if config.align == "mean":
        chosen = config.reference or names[:1]
        moving = [reading.frames(names.index(name)).positions for name in chosen]
        reference = mean_structure(moving, reading.system.masses)
        say(f"the mean structure of {', '.join(chosen)} is known")
    for index, name in enumerate(names):
        if is_recorded(out, name):
            say(f"{name}: kept")
            continue
        frames = reading.frames(index)
        if reference is not None:
            frames = aligned(frames, reference, reading.system.masses)
        write_recording(out, name, examined(frames))
        say(f"{name}: {len(frames)} frames")
    return _finished(out, names, reading.system, config, request, reference)


def examined(frames: RecordedFrames) -> RecordedFrames:
    """Return a recording that says whether differences of its positions are velocities."""
    found = differences(frames.positions, frames.frame_ps, frames.velocities)
    known = 0 if frames.velocities is None else len(frames.velocities)
    if found is None or known == len(frames):
        return replace(frames, differences=found)
    what = f"velocities are known for {known} of {len(frames)} frames; differences of positions "
    if found.by == "velocities":
        what += f"are off by {found.error:.0%} of them"
    else:
        what += f"change by {found.error:.0%} when every second frame is left out"
    what += " and may judge forecasts of the others" if found.valid else " and are no velocities"
    code = "velocities-differenced" if found.valid else "differences-refused"
    notice = Notice(code=code, message=what, count=len(frames) - known)
    return replace(frames, differences=found, notices=(*frames.notices, notice))


def differences(
    positions: Float[Tensor, "frames atoms 3"],
    frame_ps: float,
    velocities: Float[Tensor, "known atoms 3"] | None = None,
) -> Differences | None:
    """Find out whether differences of positions to fourth order are velocities.

    Args:
        positions: Unwrapped, Å.
        frame_ps: Time between frames, ps.
        velocities: Of the first frames, Å/ps, where they are known.

    Returns:
        The root mean square of differences minus velocities as a share of the velocities'; where
        none are known, that of differences over every second frame minus those over all. None
        for fewer than five and nine frames.
    """
    frames = len(positions)
    if velocities is not None and min(frames, len(velocities) + STENCIL) > 2 * STENCIL:
        found = central_differences(positions[: len(velocities) + STENCIL].double(), frame_ps)
        true = velocities[STENCIL:][: len(found)].double()
        error = _share(found - true, true)
        return Differences(error=error, by="velocities", valid=error <= LARGEST_ERROR)
    if frames > 4 * STENCIL:
        fine = central_differences(positions.double(), frame_ps)[STENCIL::2]
        coarse = central_differences(positions[::2].double(), 2 * frame_ps)
        change = _share(fine[: len(coarse)] - coarse, fine)
        return Differences(error=change, by="halving", valid=change <= LARGEST_CHANGE)
    return None


def _share(part: Tensor, whole: Tensor) -> float:
    size = float(whole.square().mean().sqrt())
    return float(part.square().mean().sqrt()) / size if size > 0 else 0.0


def mean_structure(
    moving: Sequence[Float[Tensor, "_ atoms 3"]], masses: Float[Tensor, " atoms"]
) -> Float[Tensor, "atoms 3"]:
    """Compute the mean of frames that are superposed on it.

    Args:
        moving: Frames of one or several recordings, Å.
        masses: Weights of the superposition.

    Returns:
        In float64, in the pose of the first frame with the centre of mass at the origin; found by
        superposing and averaging until it moves by less than 1e-6 Å.

    Raises:
        InputError: It does not settle: the shape changes too much to have a mean pose.
    """
    first = moving[0][0].double()
    mean = first - centre(first, masses)
    count = sum(len(frames) for frames in moving)
    for _ in range(_ITERATIONS):
        before, mean = mean, torch.zeros_like(mean)
        for frames in moving:
            rotation, translation = superposition(frames.double(), before, masses)
            turned = frames.double() @ rotation.mT + translation.unsqueeze(-2)
            mean = mean + turned.sum(dim=0) / count
        if float((mean - before).norm(dim=1).max()) < _STEADY:
            return mean
    raise InputError(f"no mean structure was found in {_ITERATIONS} rounds of superposition")


def aligned(
    frames: RecordedFrames, reference: Float[Tensor, "atoms 3"], masses: Float[Tensor, " atoms"]
) -> RecordedFrames:
    r"""Superpose every frame on a reference and turn the velocities into those of what results.

    .. math::
        x' = R(x - \bar x) + \bar y, \qquad v' = R(v - \bar v) + \Omega \times (x' - \bar y), \qquad
        \sum_a m_a \left[ (x'_a \cdot y_a) I - x'_a y_a^T \right] \Omega
            = \sum_a m_a\, R(v_a - \bar v) \times y_a

    (in the second equation from the common centre). Turning alone would not do: R changes from
    frame to frame, and v' is the exact rate of change of x', because x' stays superposed:
    :math:`\sum m\, x' \times y = 0` at all times. Where x' is near y, Ω is minus the angular
    velocity.

    Args:
        frames: One molecule, whole; a box is left out, for it would turn with the frames.
        reference: y, Å.
        masses: m, u.

    Returns:
        The frames in the pose of ``reference``, float64.

    Source: Eckart, Phys. Rev. 47, 552 (1935), for the condition; Kabsch for R.
    """
    positions = frames.positions.double()
    rotation, translation = superposition(positions, reference, masses)
    moved = positions @ rotation.mT + translation.unsqueeze(-2)
    velocities = frames.velocities
    if velocities is not None:
        middle = centre(reference, masses)
        x, y = moved[: len(velocities)] - middle, reference - middle
        v = velocities.double()
        turned = (v - centre(v, masses).unsqueeze(-2)) @ rotation[: len(v)].mT
        weighted = y * masses.unsqueeze(-1)
        outer = torch.einsum("fai,aj->fij", x, weighted)
        trace = outer.diagonal(dim1=-2, dim2=-1).sum(dim=-1)
        inertia = trace[:, None, None] * torch.eye(3, dtype=v.dtype, device=v.device) - outer
        torque = torch.linalg.cross(turned, weighted.expand_as(turned)).sum(dim=1)
        turning = (torch.linalg.pinv(inertia) @ torque.unsqueeze(-1)).squeeze(-1)
        velocities = turned + torch.linalg.cross(turning.unsqueeze(1).expand_as(x), x)
    notices = frames.notices
    if frames.box is not None:
        message = "the box was left out: it would turn with the molecule"
        notices = (*notices, Notice(code="box-dropped", message=message))
    return replace(frames, positions=moved, velocities=velocities, box=None, notices=notices)


def centred(frames: RecordedFrames, masses: Float[Tensor, " atoms"]) -> RecordedFrames:
    """Take the motion of the common centre of mass away: it stays where the first frame has it."""
    middle = centre(frames.positions.double(), masses)
    positions = frames.positions.double() - (middle - middle[0]).unsqueeze(-2)
    velocities = frames.velocities
    if velocities is not None:
        velocities = velocities.double() - centre(velocities.double(), masses).unsqueeze(-2)
    return replace(frames, positions=positions, velocities=velocities)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Reading:
    """What it takes to read each of the trajectories again."""

    sources: tuple[Path, ...]
    velocities: tuple[Path, ...]
    config: RecordConfig
    system: MolecularSystem

    def frames(self, index: int) -> RecordedFrames:
        """Read a trajectory: whole, unwrapped, its centre of mass at rest if asked."""
        path = self.sources[index]
        if is_archive(path):
            frames = self._fluid(path)
        else:
            extra = self.velocities[index] if self.velocities else None
            frames = self._trajectory(path, extra)
        return centred(frames, self.system.masses) if self.config.com == "remove" else frames

    def check_alignment(self) -> None:
        """Raise where the atoms have no common pose."""
        boxed, count = self.system.structure.box is not None, self.system.molecule_count
        if self.config.align == "mean" and boxed and count > 1:
            raise UsageError(
                f"align=mean is for a single molecule, there are {count} in a box; leave it out"
            )

    def _fluid(self, path: Path) -> RecordedFrames:
        system, frames = load_fluid(path)
        if not np.array_equal(system.structure.elements, self.system.structure.elements):
            raise InputError(f"{path} holds other atoms than {self.sources[0]}")
        stride = self.config.stride
        return replace(
            frames,
            positions=frames.positions[::stride],
            velocities=None if frames.velocities is None else frames.velocities[::stride],
            potential=None if frames.potential is None else frames.potential[::stride],
            frame_ps=(self.config.frame_ps or frames.frame_ps) * stride,
        )

    def _trajectory(self, path: Path, extra: Path | None) -> RecordedFrames:
        config, system = self.config, self.system
        read = load_trajectory(
            system.structure, path, stride=config.stride, frame_ps=config.frame_ps
        )
        frame_ps = even_spacing(path, read)
        positions, box = read.positions, read.box
        if box is not None:
            positions = unwrap(positions, box.to(positions.dtype), system.bonds)
            if config.align == "mean" and system.molecule_count > 1:
                raise UsageError(f"align=mean is for a single molecule, {path} holds several")
        velocities, potential = read.velocities, None
        if extra is not None:
            velocities, potential = load_velocities(extra, system.structure)
            velocities = velocities[:: config.stride]
            potential = None if potential is None else potential[:: config.stride]
            energies = len(positions) if potential is None else len(potential)
            dropped = any(notice.code == "times-dropped" for notice in read.notices)
            if dropped or len(velocities) > len(positions) or energies != len(positions):
                raise InputError(
                    f"{extra} does not belong to the {len(positions)} frames used of {path}: "
                    f"it holds velocities of {len(velocities)} and {energies} energies"
                )
        return RecordedFrames(
            positions=positions,
            frame_ps=frame_ps,
            velocities=velocities,
            box=box if box is None or not (box == box[0]).all() else box[0],
            potential=potential,
            start_ps=float(read.times_ps[0]),
            notices=read.notices,
        )


def even_spacing(path: Path, trajectory: Trajectory) -> float:
    """Return the time between frames, ps.

    Files keep times in single precision: late ones are exact to less than a frame only.

    Args:
        path: For the message.
        trajectory: Two frames or more.

    Returns:
        The mean, to six digits.

    Raises:
        InputError: There is one frame only, or a step that differs from the others.
    """
    times = trajectory.times_ps.double()
    if len(times) < 2:
        raise InputError(f"{path}: a recording needs at least two frames")
    steps = times.diff()
    frame_ps = float(f"{float((times[-1] - times[0]) / len(steps)):.6g}")
    usual = float(steps.median())
    rounding = 2.0**-22 * float(times.abs().max())
    odd = ((steps - usual).abs() > EVEN_FRAMES * usual + rounding).nonzero()
    if len(odd):
        frame = int(odd[0])
        raise InputError(
            f"{path}: frames are not evenly spaced: most are {usual:g} ps apart, but frames "
            f"{frame + 1} and {frame + 2} are {float(steps[frame]):g} ps"
        )
    return frame_ps


def load_velocities(
    path: Path, structure: Structure
) -> tuple[Float[Tensor, "known atoms 3"], Float[Tensor, " frames"] | None]:
    """Load velocities, and potential energies if there are any, that were kept in an archive.

    Args:
        path: An ``.npz`` archive of ``velocity`` and ``velocity_unit_nm_per_ps``, and maybe
            ``potential_kj_mol``, for the atoms of the file of ``structure``.
        structure: Which of those atoms are wanted.

    Returns:
        Å/ps for the first frames or all; kJ/mol for each frame, or none.

    Raises:
        InputError: It is no such archive, or one of other atoms.
    """
    arrays = read_archive(path)
    for key in ("velocity", "velocity_unit_nm_per_ps"):
        if key not in arrays:
            raise InputError(f"{path}: there is no {key}")
    counts, unit = arrays["velocity"], arrays["velocity_unit_nm_per_ps"]
    if counts.ndim != 3 or counts.shape[1:] != (structure.file_atoms, 3) or unit.shape != ():
        raise InputError(
            f"{path}: velocity should be frames × {structure.file_atoms} × 3 and its unit one "
            f"number, found {' × '.join(map(str, counts.shape))}"
        )
    velocities = torch.from_numpy(
        (counts[:, structure.file_index] * (float(unit) * ANGSTROM_PER_NM)).astype(np.float32)
    )
    potential = arrays.get("potential_kj_mol")
    return velocities, None if potential is None else torch.from_numpy(potential.astype(float))


def _system(source: Path, topology: Path | None, config: RecordConfig) -> MolecularSystem:
    if topology is None:
        if not is_archive(source):
            raise UsageError(f"{source} needs a structure that names its atoms: put it first")
        return load_fluid(source)[0]
    structure = load_structure(
        topology,
        chain=config.chain,
        altloc=config.altloc,
        hydrogens=config.hydrogens,
        heterogens=config.heterogens,
        length_unit=config.length_unit,
        select=config.select,
    )
    return molecular_system(structure)


def _check_options(
    names: Sequence[str],
    config: RecordConfig,
    topology: Path | None,
    velocities: Sequence[Path],
) -> None:
    if not names:
        raise UsageError("there is no trajectory to record")
    if velocities and topology is None:
        raise UsageError("fluids in fixed point bring their own velocities; leave --velocities out")
    if velocities and len(velocities) != len(names):
        raise UsageError(f"{len(velocities)} files of velocities for {len(names)} trajectories")
    for name in config.reference:
        if name not in names:
            raise UsageError(f"reference names {name}, but the recordings are {', '.join(names)}")


def _request(
    names: Sequence[str],
    sources: Sequence[Path],
    config: RecordConfig,
    topology: Path | None,
    velocities: Sequence[Path],
) -> dict[str, Any]:
    inputs = [
        {"name": name, "file": path.name, "sha256": input_hash(path), "holds": holds}
        for holds, paths in (("positions", sources), ("velocities", velocities))
        for name, path in zip(names, paths, strict=False)
    ]
    file = None if topology is None else topology.name
    return {
        "kind": KIND,
        "format": FORMAT,
        "topology": {"name": file, "sha256": None if topology is None else input_hash(topology)},
        "trajectories": inputs,
        "rules": asdict(config) | {"reference": list(config.reference)},
    }


def _finished(
    out: Path,
    names: Sequence[str],
    system: MolecularSystem,
    config: RecordConfig,
    request: dict[str, Any],
    reference: Float[Tensor, "atoms 3"] | None,
) -> Recordings:
    first = np.load(out / f"{names[0]}.positions.npy", mmap_mode="r")[0]
    box = None if config.align == "mean" else system.structure.box
    structure = replace(
        system.structure, positions=torch.from_numpy(np.array(first, dtype=float)), box=box
    )
    aligned_to = {"weights": "mass", "mean of": list(config.reference or names[:1])}
    return finish_recordings(
        out,
        replace(system, structure=structure),
        names,
        request,
        provenance={
            "origin": "files",
            "licence": config.licence or "not given",
            "centre of mass": "removed" if config.com == "remove" else "kept",
            "alignment": aligned_to if config.align == "mean" else "none",
        },
        reference=reference,
        notices=system.structure.notices,
    )
