"""Data sets on disk: memory-mapped arrays in shards, a manifest with checksums written last.

A data set folder holds one system and its trajectories::

    request.json                 what was asked: inputs with SHA-256, rules; written first
    structure.json  structure.npy            the atoms that were kept
    NAME/positions.npy  NAME/times_ps.npy    superposed frames of trajectory NAME
    NAME/fixed.npy                           places around the first frame, the same for all frames
    NAME/surface-0000.npy  NAME/pool-0000.npy  NAME/fixed-0000.npy  NAME/shard-0000.json
                                             a few frames each
    manifest.json                everything above with its SHA-256; its presence means complete

Rows of ``surface`` and ``pool`` are shuffled when written, so that a random subset of a frame
is one contiguous slice of a memory-mapped array. In a compact data set they are packed
(`undula.io.packing`) and unpacked slice by slice.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from undula import atomic
from undula.errors import InputError, Notice, one_line
from undula.io.arrays import load_array
from undula.io.packing import Kind, PackedRows
from undula.io.trajectories import LARGEST_COORDINATE
from undula.notices import REPORT, from_json
from undula.types import Structure

FORMAT = 2
RECORDING_SUFFIX = ".recording.json"
"""Ends the names of the files that describe recordings of atoms."""
_LABELS = ("elements", "atom_names", "residue_names", "insertion_codes", "chain_ids")
_NUMBERS = ("residue_numbers", "residue_index", "file_index")

SURFACE_COLUMNS = ("point", "normal", "scale", "base", "base_gradient")
"""Columns of a surface row: point 3, outward normal 3, local scale σ 1, distance to the first
frame's surface 1 and its gradient 3."""
POOL_COLUMNS = ("point", "distance", "gradient", "base", "base_gradient")
"""Columns of a pool row: point 3, exact signed distance to the frame's surface 1, its gradient 3,
the same two for the first frame."""
FIXED_COLUMNS = ("point", "base", "base_gradient")
"""Columns of a row of fixed points: place 3, distance to the first frame's surface 1 and its
gradient 3. The distances of every frame at these places are kept beside them."""
Rows = np.ndarray | PackedRows
"""Rows of a frame: a slice of either kind is an array of 11 columns."""


def write_structure(folder: Path, structure: Structure) -> dict[str, str]:
    """Write a structure as ``structure.json`` and ``structure.npy``; return file → SHA-256."""
    described: dict[str, Any] = {label: getattr(structure, label).tolist() for label in _LABELS}
    described |= {label: getattr(structure, label).tolist() for label in _NUMBERS}
    described |= {"name": structure.name, "file_atoms": structure.file_atoms}
    described["box"] = None if structure.box is None else structure.box.tolist()
    return {
        "structure.json": atomic.write_json(folder / "structure.json", described),
        "structure.npy": atomic.write_array(
            folder / "structure.npy", structure.positions.double().numpy()
        ),
    }


def read_structure(folder: Path) -> Structure:
    """Read what `write_structure` wrote.

    Raises:
        InputError: A file is missing, damaged or inconsistent.
    """
    described = atomic.read_json(folder / "structure.json")
    positions = load_array(folder / "structure.npy")
    # A comparison with a number that is not finite is false.
    if positions.dtype != np.float64 or not (np.abs(positions) <= LARGEST_COORDINATE).all():
        raise InputError(f"{folder / 'structure.npy'} is damaged: these cannot be positions")
    try:
        box = described["box"]
        labels: dict[str, Any] = {
            label: np.array(described[label], dtype=str) for label in _LABELS
        } | {label: np.array(described[label], dtype=np.int64) for label in _NUMBERS}
        return Structure(
            name=described["name"],
            positions=torch.from_numpy(np.array(positions)),
            file_atoms=described["file_atoms"],
            box=None if box is None else torch.tensor(box, dtype=torch.float64),
            **labels,
        )
    except (KeyError, TypeError, ValueError, OverflowError, RuntimeError, InputError) as error:
        raise InputError(f"{folder / 'structure.json'} is damaged: {one_line(error)}") from error


@dataclass(frozen=True)
class Shard:
    """Some frames of a trajectory: their surfaces and their labelled points around them."""

    folder: Path
    number: int
    description: Mapping[str, Any]

    @cached_property
    def surface(self) -> np.ndarray:
        """Rows of all frames, one frame after the other (`SURFACE_COLUMNS`, or packed)."""
        return load_array(self.folder / f"surface-{self.number:04d}.npy")

    @cached_property
    def surface_ends(self) -> list[int]:
        """Where the rows of each frame begin, and where the last ones end."""
        return [0, *np.cumsum(self.description["surface_rows"]).tolist()]

    @cached_property
    def pool(self) -> np.ndarray:
        """Frames × rows × columns (`POOL_COLUMNS`, or packed)."""
        return load_array(self.folder / f"pool-{self.number:04d}.npy")

    @cached_property
    def fixed(self) -> np.ndarray:
        """Frames × fixed points: signed distance to each frame's surface, Å."""
        return load_array(self.folder / f"fixed-{self.number:04d}.npy")

    def rows(self, kind: Kind, frame: int, stored: np.ndarray) -> Rows:
        """Return a frame's rows as they were stored, ready to be sliced."""
        if "ranges" not in self.description:
            return stored
        least, step = self.description["ranges"][kind][frame]
        return PackedRows(numbers=stored, least=np.array(least), step=np.array(step), kind=kind)


def shard_files(number: int) -> tuple[str, str, str, str]:
    """Return the names of a shard's three arrays and of its description."""
    surface, pool, fixed = (f"{kind}-{number:04d}.npy" for kind in ("surface", "pool", "fixed"))
    return surface, pool, fixed, f"shard-{number:04d}.json"


@dataclass(frozen=True)
class PreparedTrajectory:
    """One trajectory of a data set.

    Attributes:
        folder: Where its arrays lie.
        name: Unique within the data set.
        holdout: Whether training must not read it.
        frames_per_shard: Length of all shards but the last.
        pool_rows: How many pool rows are near the surface, from the local distribution, uniform.
    """

    folder: Path
    name: str
    holdout: bool
    frames_per_shard: int
    pool_rows: tuple[int, int, int]
    shards: tuple[Shard, ...]

    @cached_property
    def times_ps(self) -> np.ndarray:
        """Time of each frame, ps, from the first frame."""
        return np.array(load_array(self.folder / "times_ps.npy"))

    @cached_property
    def positions(self) -> np.ndarray:
        """Superposed atoms, frames × atoms × 3, Å, memory-mapped."""
        return load_array(self.folder / "positions.npy")

    @cached_property
    def fixed(self) -> np.ndarray:
        """Places around the first frame's surface (`FIXED_COLUMNS`), drawn without any later."""
        return np.array(load_array(self.folder / "fixed.npy"))

    def fixed_distances(self, frame: int) -> np.ndarray:
        """Return the signed distance of a frame's surface at the fixed points, Å."""
        shard, local = self._locate(frame)
        return shard.fixed[local]

    def __len__(self) -> int:
        return len(self.times_ps)

    def surface(self, frame: int) -> Rows:
        """Return the surface rows of a frame (`SURFACE_COLUMNS`), read when sliced."""
        shard, local = self._locate(frame)
        first, end = shard.surface_ends[local : local + 2]
        return shard.rows("surface", local, shard.surface[first:end])

    def pool(self, frame: int) -> Rows:
        """Return the labelled points of a frame (`POOL_COLUMNS`), read when sliced."""
        shard, local = self._locate(frame)
        return shard.rows("pool", local, shard.pool[local])

    def _locate(self, frame: int) -> tuple[Shard, int]:
        if not 0 <= frame < len(self):
            raise IndexError(f"{self.name} has {len(self)} frames, asked for {frame}")
        return self.shards[frame // self.frames_per_shard], frame % self.frames_per_shard


@dataclass(frozen=True)
class Dataset:
    """One prepared system: its structure and its trajectories.

    Attributes:
        folder: The data set folder.
        manifest: What the folder promises.
        structure: The atoms, at the first frame of the first trajectory.
        trajectories: In the order of the command that made them.
    """

    folder: Path
    manifest: Mapping[str, Any]
    structure: Structure
    trajectories: tuple[PreparedTrajectory, ...]

    @property
    def sha256(self) -> str:
        """SHA-256 of what the frames are and hold; see `content_sha256`."""
        return content_sha256(self.manifest["files"], self.manifest["trajectories"])

    @property
    def notices(self) -> list[Notice]:
        """What was dropped, assumed or guessed when it was made."""
        return from_json(self.manifest["notices"])


def open_dataset(folder: Path, *, verify: bool = False) -> Dataset:
    """Open a prepared data set; arrays are memory-mapped when first used.

    Args:
        folder: What ``undula prepare`` made.
        verify: Compare the SHA-256 of every file first.

    Raises:
        InputError: No complete data set, a newer format, or a file that is not as promised; with
            ``verify`` also an array or a shard that was added.
    """
    if not (folder / "manifest.json").exists():
        why = "is not complete: run undula prepare again" if folder.exists() else "does not exist"
        raise InputError(f"the data set {folder} {why}")
    manifest = atomic.read_json(folder / "manifest.json")
    if manifest.get("format") != FORMAT:
        raise InputError(f"{folder} has the data format {manifest.get('format')}, not {FORMAT}")
    try:
        check_names(folder, manifest["files"])
        missing = next((f for f in manifest["files"] if not (folder / f).is_file()), None)
        if missing is not None:
            raise InputError(f"{folder / missing} is missing")
        if verify:
            verify_files(folder, manifest["files"])
        check_request(folder, manifest)
        trajectories = tuple(_trajectory(folder, entry) for entry in manifest["trajectories"])
        asked = [(one["name"], one["holdout"]) for one in manifest["request"]["trajectories"]]
        if asked != [(one.name, one.holdout) for one in trajectories]:
            raise InputError(f"{folder / 'manifest.json'} is damaged: others were asked for")
        from_json(manifest["notices"])  # damaged ones are found here, not where they are told
        return Dataset(folder, manifest, read_structure(folder), trajectories)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{folder / 'manifest.json'} is damaged: {error!r}") from error


def content_sha256(files: Mapping[str, str], described: Sequence[Mapping[str, Any]]) -> str:
    """Tell what a data set holds from what another does: by content, not by how it was made.

    The same frames have the same digest whichever version of undula or of a library wrote them,
    whatever was noticed and however it was worded: runs and scores that were made with one can
    be gone on with from the other.

    Args:
        files: All files of the folder → SHA-256.
        described: Of its trajectories, without what may be worded otherwise.
    """
    held = {
        name: digest
        for name, digest in files.items()
        if name not in (REPORT, "request.json") and not name.endswith(RECORDING_SUFFIX)
    }
    content = {"files": held, "trajectories": list(described)}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def check_request(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Raise where a manifest, which nothing signs, repeats another request than was written.

    Raises:
        InputError: They differ.
    """
    if manifest["request"] != atomic.read_json(folder / "request.json"):
        raise InputError(f"{folder / 'manifest.json'} is damaged: it differs from request.json")


def check_names(folder: Path, names: Iterable[str]) -> None:
    """Raise where a list of the files of a folder names one that lies elsewhere.

    Raises:
        InputError: The first such name.
    """
    for name in names:
        parts = name.split("/")
        if not name or name.startswith("/") or ".." in parts or "\\" in name or "\0" in name:
            raise InputError(f"{folder}: what lies there names a file elsewhere ({name[:60]!r})")


def verify_files(folder: Path, promised: Mapping[str, str]) -> None:
    """Compare every file of a folder with its manifest.

    Args:
        folder: Of a data set or of recordings.
        promised: File → SHA-256.

    Raises:
        InputError: A file is missing or has changed, or an array or a description of one lies
            there that the manifest does not name.
    """
    check_names(folder, promised)
    for name, digest in promised.items():
        path = folder / name
        if not path.is_file():
            raise InputError(f"{path} is missing")
        if atomic.sha256(path) != digest:
            raise InputError(f"{path} has changed since it was made")
    for pattern in ("*.npy", "shard-*.json", f"*{RECORDING_SUFFIX}"):
        for path in sorted(folder.rglob(pattern)):
            known = path.relative_to(folder).as_posix() in promised
            if not known and not path.name.startswith(atomic.OWN_PREFIX):
                raise InputError(f"{path} is no part of what {folder / 'manifest.json'} names")


def _trajectory(folder: Path, entry: Mapping[str, Any]) -> PreparedTrajectory:
    place = folder / entry["name"]
    numbers = range(-(-entry["frames"] // entry["frames_per_shard"]))
    shards = tuple(
        Shard(place, number, atomic.read_json(place / shard_files(number)[-1]))
        for number in numbers
    )
    made = PreparedTrajectory(
        folder=place,
        name=entry["name"],
        holdout=entry["holdout"],
        frames_per_shard=entry["frames_per_shard"],
        pool_rows=tuple(entry["pool_rows"]),
        shards=shards,
    )
    _check_lengths(made, entry["frames"])
    return made


def _check_lengths(made: PreparedTrajectory, frames: int) -> None:
    """Raise where a trajectory or its shards hold other numbers of frames or rows than promised."""
    every, fixed = made.frames_per_shard, len(load_array(made.folder / "fixed.npy"))
    shares = [min(every, frames - first) for first in range(0, frames, every)]
    if len(made.times_ps) != frames or len(made.positions) != frames:
        raise InputError(f"{made.folder} should hold {frames} frames")
    for shard, share in zip(made.shards, shares, strict=True):
        held = (len(shard.description["surface_rows"]), len(shard.pool), len(shard.fixed))
        rows = shard.pool.shape[1], len(shard.surface), shard.fixed.shape[1]
        if held != (share,) * 3 or rows != (sum(made.pool_rows), shard.surface_ends[-1], fixed):
            raise InputError(
                f"{shard.folder / shard_files(shard.number)[-1]} or an array of it does not hold "
                f"{share} frames as promised"
            )
