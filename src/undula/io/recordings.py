"""Recordings on disk: what atoms did, frame by frame, ready to be cut into windows.

A folder of recordings holds one system and one or several trajectories of it::

    request.json                 what was asked: inputs with SHA-256, rules; written first
    structure.json  structure.npy            the atoms
    system.json  system.bonds.npy  system.molecules.npy  system.masses.npy  [system.charges.npy]
    reference.npy                what frames were superposed on, if they were
    NAME.positions.npy           frames × atoms × 3, float32, unwrapped, Å
    NAME.velocities.npy          the first frames or all, float32, Å/ps; absent if unknown
    NAME.box.npy                 edge vectors, Å: 3 × 3, or frames × 3 × 3; absent without a box
    NAME.potential.npy           one energy a frame, kJ/mol; absent if unknown
    NAME.recording.json          what the recording holds, with SHA-256; written after its arrays
    manifest.json                everything above with its SHA-256; its presence means complete

Arrays are memory-mapped. A recording whose description is there and true is finished: a command
that is repeated after a kill keeps it.
"""

from __future__ import annotations

import hashlib
import io
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

import undula
from undula import atomic
from undula.errors import InputError, Notice, one_line
from undula.io.arrays import load_array
from undula.io.datasets import (
    RECORDING_SUFFIX,
    check_names,
    check_request,
    content_sha256,
    read_structure,
    verify_files,
    write_structure,
)
from undula.io.scratch import HELD_BYTES, parts
from undula.notices import REPORT, from_json, merged, write_report
from undula.types import MolecularSystem

KIND = "recordings"
FORMAT = 1
UNITS = {
    "length": "Å",
    "time": "ps",
    "velocity": "Å/ps",
    "energy": "kJ/mol",
    "mass": "u",
    "charge": "e",
}
STENCIL = 2
"""Frames before and after that a fourth-order difference looks at."""


@dataclass(frozen=True, kw_only=True)
class Differences:
    """Whether differences of positions are velocities, as `undula.data.velocities` found.

    Attributes:
        error: Root mean square of what is wrong, as a share of the velocities'.
        by: ``velocities`` (compared with those known) or ``halving`` (with those of every second
            frame, which are worse: an upper bound).
        valid: Whether they may stand for velocities.
    """

    error: float
    by: str
    valid: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class RecordedFrames:
    """One trajectory as it is to be written.

    Attributes:
        positions: Unwrapped, Å.
        frame_ps: Time between frames, ps.
        velocities: Of the first frames or of all, Å/ps; none where they are not known.
        box: Edge vectors, one a row, Å; one box, or one a frame.
        potential: Potential energy, kJ/mol.
        start_ps: Time of the first frame, ps.
        differences: Whether differences of positions are velocities; none if not examined.
        notices: What was dropped, assumed or guessed.
        release: Called after some frames were looked at, so that those on disk can be let go.
    """

    positions: Float[Tensor, "frames atoms 3"]
    frame_ps: float
    velocities: Float[Tensor, "known atoms 3"] | None = None
    box: Float[Tensor, "3 3"] | Float[Tensor, "frames 3 3"] | None = None
    potential: Float[Tensor, " frames"] | None = None
    start_ps: float = 0.0
    differences: Differences | None = None
    notices: tuple[Notice, ...] = ()
    release: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        frames, atoms = self.positions.shape[:2]
        if frames == 0 or atoms == 0:
            raise InputError("a recording needs at least one frame and one atom")
        if not 0 < self.frame_ps < float("inf"):
            raise InputError(f"the time between frames should be positive, not {self.frame_ps} ps")
        known = self.velocities
        if known is not None and (known.shape[1:] != (atoms, 3) or not 0 < len(known) <= frames):
            raise InputError(
                f"velocities should be of the first frames of {frames} × {atoms} × 3, "
                f"found {' × '.join(map(str, known.shape))}"
            )
        if self.box is not None and self.box.shape not in ((3, 3), (frames, 3, 3)):
            raise InputError("there should be one box, or one for each frame")
        if self.potential is not None and len(self.potential) != frames:
            raise InputError(f"{frames} frames but {len(self.potential)} potential energies")
        numbers = {
            "positions": self.positions,
            "velocities": known,
            "boxes": None if self.box is None else self.box.reshape(-1, 3, 3),
            "potential energies": self.potential,
        }
        for what, value in numbers.items():
            if value is None:
                continue
            for some in parts(value):
                if not torch.isfinite(value[some]).all():
                    frame = some.start + int((~torch.isfinite(value[some])).nonzero()[0, 0])
                    raise InputError(f"{what} are not finite, first in frame {frame + 1}")
                self.release()

    def __len__(self) -> int:
        return len(self.positions)


@dataclass(frozen=True, kw_only=True, eq=False)
class Recording:
    """One trajectory of a folder of recordings; arrays are read where they are cut.

    Attributes:
        name: Unique within the folder.
        positions: Frames × atoms × 3, float32, unwrapped, Å, memory-mapped.
        velocities: The same for the first frames or all, Å/ps; none where they are not known.
        boxes: Edge vectors, one a row, Å: one box, or one a frame; none without a box.
        potential: Potential energy of each frame, kJ/mol, where it is known.
        frame_ps: Time between frames, ps.
        start_ps: Time of the first frame, ps.
        differences: Whether differences of positions are velocities; none if not examined.
    """

    name: str
    positions: np.ndarray
    velocities: np.ndarray | None
    boxes: np.ndarray | None
    potential: np.ndarray | None
    frame_ps: float
    start_ps: float
    differences: Differences | None

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def velocity_frames(self) -> int:
        """How many frames, from the first on, have velocities."""
        return 0 if self.velocities is None else len(self.velocities)

    def slice(
        self, start: int, stop: int
    ) -> tuple[
        Float[Tensor, "frames atoms 3"],
        Float[Tensor, "frames atoms 3"] | None,
        Float[Tensor, "3 3"] | None,
    ]:
        """Read the frames of a range.

        Args:
            start: First frame.
            stop: Frame to stop before.

        Returns:
            Positions, Å; velocities, Å/ps, if all these frames have them; the box of the last of
            these frames, Å. All in float32, copied.

        Raises:
            IndexError: There are no such frames.
        """
        if not 0 <= start < stop <= len(self):
            raise IndexError(f"{self.name} has {len(self)} frames, asked for {start} to {stop}")
        velocities = None
        if self.velocities is not None and stop <= len(self.velocities):
            velocities = torch.from_numpy(np.array(self.velocities[start:stop]))
        positions = torch.from_numpy(np.array(self.positions[start:stop]))
        return positions, velocities, self.box(stop - 1)

    def box(self, frame: int) -> Float[Tensor, "3 3"] | None:
        """Return the edge vectors of a frame, one a row, Å, in float32; none without a box."""
        self._check(frame)
        if self.boxes is None:
            return None
        box = self.boxes if self.boxes.ndim == 2 else self.boxes[frame]
        return torch.from_numpy(np.array(box, dtype=np.float32))

    def velocity(self, frame: int) -> Float[Tensor, "atoms 3"] | None:
        """Read the velocities of a frame, Å/ps; none where they are not known."""
        self._check(frame)
        if self.velocities is None or frame >= len(self.velocities):
            return None
        return torch.from_numpy(np.array(self.velocities[frame]))

    def differenced_velocity(self, frame: int) -> Float[Tensor, "atoms 3"] | None:
        """Compute the velocities of a frame from the positions around it, to judge a forecast by.

        It looks two frames ahead: never what a forecast is given.

        Args:
            frame: Which.

        Returns:
            Å/ps; none within two frames of the ends, and where `differences` do not hold.
        """
        self._check(frame)
        if self.differences is None or not self.differences.valid:
            return None
        if not STENCIL <= frame < len(self) - STENCIL:
            return None
        around = np.array(self.positions[frame - STENCIL : frame + STENCIL + 1], dtype=np.float64)
        return central_differences(torch.from_numpy(around), self.frame_ps)[0].float()

    def _check(self, frame: int) -> None:
        if not 0 <= frame < len(self):
            raise IndexError(f"{self.name} has {len(self)} frames, asked for {frame}")


@dataclass(frozen=True, kw_only=True, eq=False)
class Recordings:
    """A system and what was recorded of it.

    Attributes:
        folder: Where it lies.
        manifest: What the folder promises.
        system: The atoms.
        recordings: In the order of the command that made them.
        frame_ps: Time between frames, the same in all, ps.
        reference: What the frames were superposed on, Å; none if they were not.
    """

    folder: Path
    manifest: Mapping[str, Any]
    system: MolecularSystem
    recordings: tuple[Recording, ...]
    frame_ps: float
    reference: Float[Tensor, "atoms 3"] | None

    @property
    def provenance(self) -> Mapping[str, Any]:
        """Where the frames come from: origin, licence, and what else the maker recorded."""
        return self.manifest["provenance"]

    @property
    def sha256(self) -> str:
        """SHA-256 of what the frames are and hold; see `undula.io.datasets.content_sha256`."""
        described = [
            {**entry, "differences": one.differences is not None and one.differences.valid}
            for entry, one in zip(self.manifest["recordings"], self.recordings, strict=True)
        ]
        return content_sha256(self.manifest["files"], described)

    @property
    def notices(self) -> list[Notice]:
        """What was dropped, assumed or guessed when they were made."""
        return from_json(self.manifest["notices"])

    def named(self, name: str) -> Recording:
        """Return a recording by its name.

        Raises:
            InputError: There is none.
        """
        for recording in self.recordings:
            if recording.name == name:
                return recording
        known = ", ".join(recording.name for recording in self.recordings)
        raise InputError(f"{self.folder} has no recording {name}; it has {known}")

    def verify(self) -> None:
        """Compare the SHA-256 of every file with the manifest.

        Raises:
            InputError: A file has changed, is missing, or was added.
        """
        verify_files(self.folder, self.manifest["files"])


def central_differences(
    positions: Float[Tensor, "frames atoms 3"], frame_ps: float
) -> Float[Tensor, "frames-4 atoms 3"]:
    r"""Compute velocities from positions before and after, to fourth order.

    .. math:: v_f = \frac{8 (x_{f+1} - x_{f-1}) - (x_{f+2} - x_{f-2})}{12\, \Delta t}

    An oscillation of angular frequency ω keeps :math:`(8 \sin θ - \sin 2θ) / 6θ` of its speed,
    θ = ω Δt: 0.97 for θ = 1, 0.67 for θ = 2, nothing for θ = π.

    Args:
        positions: x, unwrapped, Å.
        frame_ps: Δt, ps.

    Returns:
        Å/ps, for all frames but two at each end.
    """
    near = positions[3:-1] - positions[1:-3]
    far = positions[4:] - positions[:-4]
    return (8 * near - far) / (12 * frame_ps)


def _write_frames(
    path: Path, value: Tensor, dtype: torch.dtype, release: Callable[[], None]
) -> str:
    """Write an array as ``.npy``, a large one a few frames at a time; return its SHA-256."""
    if value.numel() * dtype.itemsize <= HELD_BYTES:
        return atomic.write_array(path, value.detach().cpu().to(dtype).numpy())
    content = hashlib.sha256()
    with atomic.replacing(path) as temporary, temporary.open("wb") as file:
        start = io.BytesIO()
        described = np.lib.format.header_data_from_array_1_0(torch.empty(0, dtype=dtype).numpy())
        np.lib.format.write_array_header_1_0(start, described | {"shape": tuple(value.shape)})
        few = (value[some].detach().cpu().to(dtype).numpy().tobytes() for some in parts(value))
        for block in chain([start.getvalue()], few):
            content.update(block)
            file.write(block)
            release()
    return content.hexdigest()


def write_recording(folder: Path, name: str, frames: RecordedFrames) -> None:
    """Write one trajectory: its arrays, then what they are with their SHA-256.

    Args:
        folder: The folder of recordings.
        name: Of the recording; the beginning of its file names.
        frames: The trajectory.

    Raises:
        MachineError: The place is full, read-only or not allowed.
    """
    arrays: dict[str, tuple[Tensor | None, torch.dtype]] = {
        "positions": (frames.positions, torch.float32),
        "velocities": (frames.velocities, torch.float32),
        "box": (frames.box, torch.float64),
        "potential": (frames.potential, torch.float64),
    }
    written = {
        f"{name}.{what}.npy": _write_frames(
            folder / f"{name}.{what}.npy", value, dtype, frames.release
        )
        for what, (value, dtype) in arrays.items()
        if value is not None
    }
    box, differences = frames.box, frames.differences
    description = {
        "name": name,
        "frames": len(frames),
        "velocity_frames": 0 if frames.velocities is None else len(frames.velocities),
        "box": "none" if box is None else ("constant" if box.ndim == 2 else "per frame"),
        "potential": frames.potential is not None,
        "frame_ps": frames.frame_ps,
        "start_ps": frames.start_ps,
        "differences": None if differences is None else asdict(differences),
        "notices": [notice.as_dict() for notice in frames.notices],
        "sha256": written,
    }
    atomic.write_json(folder / _description(name), description)


def is_recorded(folder: Path, name: str) -> bool:
    """Tell whether a recording is there, whole and as it was written."""
    if not (folder / _description(name)).exists():
        return False
    return all(
        (folder / file).is_file() and atomic.sha256(folder / file) == promised
        for file, promised in atomic.read_json(folder / _description(name))["sha256"].items()
    )


def finish_recordings(
    folder: Path,
    system: MolecularSystem,
    names: Sequence[str],
    request: Mapping[str, Any],
    *,
    provenance: Mapping[str, Any],
    reference: Float[Tensor, "atoms 3"] | None = None,
    notices: Sequence[Notice] = (),
) -> Recordings:
    """Write the system and, last, the manifest of a folder whose recordings are all written.

    Args:
        folder: It was begun with ``request``: ``request.json`` is there.
        system: The atoms.
        names: Of the recordings, in their order.
        request: What was asked for.
        provenance: Where the frames come from: ``origin``, ``licence``, and what else matters.
        reference: What frames were superposed on, Å.
        notices: Of the system; those of the recordings are added.

    Returns:
        The complete folder.

    Raises:
        InputError: The recordings differ in their time between frames.
    """
    entries = [atomic.read_json(folder / _description(name)) for name in names]
    if len({entry["frame_ps"] for entry in entries}) != 1:
        odd = next(entry for entry in entries if entry["frame_ps"] != entries[0]["frame_ps"])
        raise InputError(
            f"the frames of {odd['name']} are {odd['frame_ps']:g} ps apart, "
            f"those of {entries[0]['name']} {entries[0]['frame_ps']:g} ps"
        )
    files = {"request.json": atomic.sha256(folder / "request.json")}
    files |= write_structure(folder, system.structure) | write_system(folder, system)
    if reference is not None:
        array = reference.double().numpy()
        files["reference.npy"] = atomic.write_array(folder / "reference.npy", array)
    for entry in entries:
        files |= entry.pop("sha256")
        files[_description(entry["name"])] = atomic.sha256(folder / _description(entry["name"]))
    told = list(notices)
    for entry in entries:
        told += from_json(entry.pop("notices"))
    lengths = {entry["name"]: entry["frames"] for entry in entries}
    files[REPORT] = write_report(folder, told, recordings=lengths)
    atomic.write_json(
        folder / "manifest.json",
        {
            "kind": KIND,
            "format": FORMAT,
            "units": UNITS,
            "frame_ps": entries[0]["frame_ps"],
            "request": request,
            "provenance": provenance,
            "versions": {
                "undula": undula.__version__,
                "python": platform.python_version(),
                **{package: metadata.version(package) for package in ("numpy", "torch")},
            },
            "recordings": entries,
            "notices": [notice.as_dict() for notice in merged(told)],
            "files": files,
        },
    )
    return open_recordings(folder)


def open_recordings(folder: Path) -> Recordings:
    """Open a folder of recordings; the shape of every array is checked, its content is not.

    `Recordings.verify` compares the content with the manifest.

    Args:
        folder: What ``undula prepare atoms`` or ``undula simulate`` made.

    Raises:
        InputError: No complete folder of recordings, another format, or a file that is missing,
            damaged or of another shape than promised.
    """
    if not (folder / "manifest.json").exists():
        why = "are not complete: repeat the command" if folder.exists() else "do not exist"
        raise InputError(f"the recordings {folder} {why}")
    manifest = atomic.read_json(folder / "manifest.json")
    if manifest.get("kind") != KIND:
        raise InputError(f"{folder} holds no recordings of atoms, but another kind of data set")
    if manifest.get("format") != FORMAT:
        raise InputError(
            f"{folder} has the recordings format {manifest.get('format')}, not {FORMAT}"
        )
    try:
        check_names(folder, manifest["files"])
        missing = next((f for f in manifest["files"] if not (folder / f).is_file()), None)
        if missing is not None:
            raise InputError(f"{folder / missing} is missing")
        check_request(folder, manifest)
        system = read_system(folder)
        recordings = tuple(
            _recording(folder, entry, len(system)) for entry in manifest["recordings"]
        )
        named = sorted(_description(one.name) for one in recordings)
        if named != sorted(f for f in manifest["files"] if f.endswith(RECORDING_SUFFIX)):
            raise InputError(f"{folder / 'manifest.json'} is damaged: it lists other recordings")
        if {one.frame_ps for one in recordings} != {manifest["frame_ps"]}:
            raise InputError(f"{folder / 'manifest.json'} is damaged: its frame_ps is another")
        reference = None
        if "reference.npy" in manifest["files"]:
            stored = _array(folder / "reference.npy", (len(system), 3), np.float64)
            reference = torch.from_numpy(np.array(stored))
        from_json(manifest["notices"])  # damaged ones are found here, not where they are told
        return Recordings(
            folder=folder,
            manifest=manifest,
            system=system,
            recordings=recordings,
            frame_ps=manifest["frame_ps"],
            reference=reference,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{folder / 'manifest.json'} is damaged: {one_line(error)}") from error


def _description(name: str) -> str:
    return name + RECORDING_SUFFIX


def write_system(folder: Path, system: MolecularSystem) -> dict[str, str]:
    """Write a system beside its structure (`write_structure`); return file → SHA-256."""
    arrays = {"bonds": system.bonds, "molecules": system.molecules, "masses": system.masses}
    if system.charges is not None:
        arrays["charges"] = system.charges
    files = {
        f"system.{label}.npy": atomic.write_array(folder / f"system.{label}.npy", value.numpy())
        for label, value in arrays.items()
    }
    kinds = {"kinds": system.kinds.tolist(), "bonds": system.bonds.shape[1]}
    kinds["charges"] = system.charges is not None
    return files | {"system.json": atomic.write_json(folder / "system.json", kinds)}


def read_system(folder: Path) -> MolecularSystem:
    """Read what `write_system` and `write_structure` wrote.

    Raises:
        InputError: A file is missing, damaged or inconsistent.
    """
    described = atomic.read_json(folder / "system.json")
    structure = read_structure(folder)
    atoms = len(structure)

    def numbers(label: str, shape: tuple[int, ...], kind: type) -> Tensor:
        return torch.from_numpy(np.array(_array(folder / f"system.{label}.npy", shape, kind)))

    try:
        return MolecularSystem(
            structure=structure,
            bonds=numbers("bonds", (2, described["bonds"]), np.int64),
            molecules=numbers("molecules", (atoms,), np.int64),
            kinds=np.array(described["kinds"], dtype=str),
            masses=numbers("masses", (atoms,), np.float64),
            charges=numbers("charges", (atoms,), np.float64) if described["charges"] else None,
        )
    except (KeyError, TypeError, ValueError, InputError) as error:
        text = one_line(error)
        damaged = f"{folder / 'system.json'} is damaged: {text}"
        raise InputError(text if text.startswith(str(folder)) else damaged) from error


def _recording(folder: Path, entry: Mapping[str, Any], atoms: int) -> Recording:
    name, frames, known = entry["name"], entry["frames"], entry["velocity_frames"]
    boxes = {"constant": (3, 3), "per frame": (frames, 3, 3)}
    described = atomic.read_json(folder / _description(name))
    for key, value in entry.items():
        if described.get(key) != value:
            raise InputError(
                f"{folder / 'manifest.json'} is damaged: {key} of {name} differs from "
                f"{_description(name)}"
            )

    def array(what: str, shape: tuple[int, ...], kind: type) -> np.ndarray:
        return _array(folder / f"{name}.{what}.npy", shape, kind)

    return Recording(
        name=name,
        positions=array("positions", (frames, atoms, 3), np.float32),
        velocities=array("velocities", (known, atoms, 3), np.float32) if known else None,
        boxes=array("box", boxes[entry["box"]], np.float64) if entry["box"] != "none" else None,
        potential=array("potential", (frames,), np.float64) if entry["potential"] else None,
        frame_ps=entry["frame_ps"],
        start_ps=entry["start_ps"],
        differences=Differences(**entry["differences"]) if entry["differences"] else None,
    )


def _array(path: Path, shape: tuple[int, ...], kind: type) -> np.ndarray:
    """Map an array into memory and see that it has the promised shape."""
    stored = load_array(path)
    if stored.shape != shape or stored.dtype != kind:
        raise InputError(
            f"{path} should hold {' × '.join(map(str, shape))} numbers of {kind.__name__}, "
            f"found {' × '.join(map(str, stored.shape))} of {stored.dtype}"
        )
    return stored
