"""Trajectories to recordings: whole, unwrapped, superposed if asked, velocities where known."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from undula.data.estimates import check_record, record_fits
from undula.data.fluids import load_fluid
from undula.data.poses import aligned, centred, mean_structure
from undula.data.prepare import begin, input_hash, is_begun, unique_names
from undula.data.velocities import check_velocities, examined, load_velocities
from undula.errors import InputError, UsageError
from undula.estimates import with_less
from undula.geometry.frames import Unwrapping
from undula.io.kinds import molecular_system
from undula.io.recordings import (
    FORMAT,
    KIND,
    RecordedFrames,
    Recordings,
    finish_recordings,
    is_recorded,
    open_recordings,
    write_recording,
)
from undula.io.scratch import Scratch
from undula.io.structures import load_structure
from undula.io.trajectories import ReadFrames, check_moves, read_frames
from undula.locks import claims
from undula.notices import from_json, placed, refuse
from undula.types import MolecularSystem, Trajectory

EVEN_FRAMES = 1e-3
"""Share of the time between frames by which it may vary."""
_OF_A_TOPOLOGY = ("select", "chain", "hydrogens", "heterogens", "altloc", "length_unit")


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
        if self.frame_ps is not None and not 0 < self.frame_ps < math.inf:
            raise UsageError(f"frame_ps should be a positive time in ps, not {self.frame_ps}")
        if not 1 <= self.stride < 2**31:
            raise UsageError(f"stride should be at least 1, not {self.stride}")
        if self.com not in ("keep", "remove"):
            raise UsageError(f"com should be keep or remove, not {self.com}")
        if self.align not in ("none", "mean"):
            raise UsageError(f"align should be none or mean, not {self.align}")
        if self.reference and self.align == "none":
            raise UsageError("reference names what frames are aligned to; add align=mean")


@claims("out")
def record(
    sources: Sequence[Path],
    out: Path,
    config: RecordConfig,
    *,
    topology: Path | None = None,
    velocities: Sequence[Path] = (),
    strict: bool = False,
    memory_limit: int | None = None,
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
        strict: Refuse what would get a notice, before anything is written.
        memory_limit: Of the process, bytes; by default what there is.
        say: Called with one line for each step done.

    Returns:
        The complete folder.

    Raises:
        InputError: An input cannot serve, frames are not evenly spaced or not as far apart in
            all, atoms differ, an input has changed since the folder was begun, or would get a
            notice where none is allowed.
        UsageError: The folder was begun with other rules; options that do not go together.
        MachineError: The frames do not fit into memory; says which stride does.
    """
    names = unique_names(sources)
    _check_options(names, config, topology, velocities)
    request = _request(names, sources, config, topology, velocities)
    if is_begun(out, request) and (out / "manifest.json").exists():
        complete = open_recordings(out)
        refuse(from_json(complete.manifest["notices"]), strict=strict)
        say(f"{out} is complete")
        return complete
    system = _system(sources[0], topology, config)
    refuse(system.structure.notices, strict=strict)
    reading = _Reading(
        sources=tuple(sources),
        velocities=tuple(velocities),
        config=config,
        system=system,
        fluid=topology is None,
        scratch=Scratch(out),
    )
    reading.check_alignment()
    if topology is not None:
        check_record(system.structure, sources, config.stride, memory_limit, say)

    def fits() -> str:
        if topology is None:
            return f"{sources[0]}: the memory was not enough to record {len(sources)} fluids"
        return record_fits(system.structure, sources, config.stride)

    # What was recorded stays; the rest goes through the disk, in parts half as large.
    smaller = replace(
        reading, scratch=Scratch(out, held_bytes=0, read_bytes=reading.scratch.read_bytes // 2)
    )
    return with_less(
        lambda: _recorded(out, names, reading, request, strict=strict, say=say),
        lambda: _recorded(out, names, smaller, request, strict=strict, say=say),
        fits,
    )


def _recorded(
    out: Path,
    names: Sequence[str],
    reading: _Reading,
    request: dict[str, Any],
    *,
    strict: bool,
    say: Callable[[str], None],
) -> Recordings:
    """Look at all trajectories, then record those that are not recorded yet."""
    config, system = reading.config, reading.system
    reference = None
    if config.align == "mean":
        chosen = config.reference or names[:1]
        means = [reading.frames(names.index(name)).positions for name in chosen]
        reference = mean_structure(means, system.masses, reading.scratch.release)
        del means
        say(f"the mean structure of {', '.join(chosen)} is known")

    def moving(index: int) -> RecordedFrames:
        frames = reading.frames(index)
        if reference is not None:
            frames = aligned(frames, reference, system.masses, reading.scratch)
        frames = examined(frames)
        return replace(frames, notices=placed(frames.notices, reading.sources[index]))

    # All inputs are looked at before anything is written.
    told = [notice for index in range(len(names)) for notice in moving(index).notices]
    refuse([*system.structure.notices, *told], strict=strict)
    begin(out, request)
    for index, name in enumerate(names):
        if is_recorded(out, name):
            say(f"{name}: kept")
            continue
        frames = moving(index)
        write_recording(out, name, frames)
        say(f"{name}: {len(frames)} frames")
    return _finished(out, names, system, config, request, reference)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Reading:
    """What it takes to read each of the trajectories again."""

    sources: tuple[Path, ...]
    velocities: tuple[Path, ...]
    config: RecordConfig
    system: MolecularSystem
    fluid: bool
    scratch: Scratch

    def frames(self, index: int) -> RecordedFrames:
        """Read a trajectory: whole, unwrapped, its centre of mass at rest if asked."""
        path = self.sources[index]
        if self.fluid:
            frames = self._fluid(path)
        else:
            extra = self.velocities[index] if self.velocities else None
            frames = self._trajectory(path, extra)
        if self.config.com == "keep":
            return frames
        return centred(frames, self.system.masses, self.scratch)

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
        check_moves(path, frames.positions)
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
        read = read_frames(
            system.structure,
            path,
            stride=config.stride,
            frame_ps=config.frame_ps,
            scratch=self.scratch,
        )
        check_moves(path, read.positions, self.scratch.release)
        frame_ps = even_spacing(path, read)
        positions, box = read.positions, read.box
        if box is not None:
            boxes, unwrapping = box.to(positions.dtype), Unwrapping(len(system), system.bonds)
            positions = self.scratch.changed(
                positions,
                lambda few, some: unwrapping.followed(few, boxes[some]),
                positions.dtype,
            )
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
            check_velocities(extra, system.structure, velocities)
        return RecordedFrames(
            positions=positions,
            frame_ps=frame_ps,
            velocities=velocities,
            box=box if box is None or not (box == box[0]).all() else box[0],
            potential=potential,
            start_ps=float(read.times_ps[0]),
            notices=read.notices,
            release=self.scratch.release,
        )


def even_spacing(path: Path, trajectory: Trajectory | ReadFrames) -> float:
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


def _system(source: Path, topology: Path | None, config: RecordConfig) -> MolecularSystem:
    if topology is None:
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
    for key in _OF_A_TOPOLOGY:
        if topology is None and getattr(config, key) != getattr(RecordConfig(), key):
            raise UsageError(
                f"{key} chooses atoms of a topology, and fluids have none; leave it out"
            )
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
    at_rest = config.com == "remove" or config.align == "mean"
    return finish_recordings(
        out,
        replace(system, structure=structure),
        names,
        request,
        provenance={
            "origin": "files",
            "licence": config.licence or "not given",
            "centre of mass": "at rest" if at_rest else "as recorded",
            "alignment": aligned_to if config.align == "mean" else "none",
        },
        reference=reference,
        notices=system.structure.notices,
    )
