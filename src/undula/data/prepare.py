"""Trajectories to a data set: superpose, unwrap, sample, and label points by exact distances."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

import undula
from undula import atomic
from undula.data.estimates import check_prepare, prepare_fits
from undula.data.prepare_config import PrepareConfig
from undula.errors import InputError, Notice, UsageError
from undula.estimates import with_less
from undula.geometry import sampling
from undula.geometry.frames import superpose, unwrap
from undula.geometry.molecular_surface import MolecularSurface, molecular_surface
from undula.io.bonds import covalent_bonds
from undula.io.datasets import (
    FIXED_COLUMNS,
    FORMAT,
    POOL_COLUMNS,
    SURFACE_COLUMNS,
    Dataset,
    open_dataset,
    shard_files,
    write_structure,
)
from undula.io.inspection import require_surface
from undula.io.packing import Kind, packed
from undula.io.structures import load_structure
from undula.io.trajectories import check_moves, load_trajectory
from undula.locks import claimed, claims
from undula.notices import REPORT, from_json, merged, refuse, write_report
from undula.types import Structure, Trajectory

NEAR_SCALE = 1.0
"""Width in Å of the narrow Gaussian from which pool points near the surface are drawn."""


FIXED_REACH = 4.0
"""How far fixed points lie from the first frame's surface at most, Å."""

RECORD_SECONDS = 5.0
"""How long to wait for another process that prepares data sets into the same folder: each holds
it for moments, to note what it made."""


@claims("out")
def prepare(
    topology: Path,
    trajectories: Sequence[Path],
    out: Path,
    config: PrepareConfig,
    *,
    holdout: Sequence[Path] = (),
    strict: bool = False,
    memory_limit: int | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Dataset:
    """Make a data set of one system's trajectories; continue where an earlier call was killed.

    Every trajectory is made whole, superposed by Cα on its own first frame, and that frame on
    the first frame of the first trajectory, so that all share one pose. Times count from each
    first frame, the structure from which a forecast starts.

    Args:
        topology: The structure file that names the atoms.
        trajectories: XTC, TRR, DCD or multi-model files, one replica each.
        out: The folder to make.
        config: The rules.
        holdout: Those of ``trajectories`` that training must never read.
        strict: Refuse what would get a notice, before anything is written.
        memory_limit: Of the process, bytes; by default what there is.
        say: Called with one line for each step done.

    Returns:
        The complete data set; ``report.json`` counts what was dropped, assumed or guessed.

    Raises:
        InputError: An input cannot serve, has changed since the folder was begun, or would get
            a notice where none is allowed.
        UsageError: The folder was begun with other rules.
        MachineError: The frames do not fit into memory; says which stride does.
    """
    unknown = [str(path) for path in holdout if path not in trajectories]
    if unknown:
        raise UsageError(f"--holdout names {unknown[0]}, which is not among the trajectories")
    names = unique_names(trajectories)
    request = {
        "format": FORMAT,
        "topology": {"name": topology.name, "sha256": input_hash(topology)},
        "trajectories": [
            {
                "name": name,
                "file": path.name,
                "sha256": input_hash(path),
                "holdout": path in holdout,
            }
            for name, path in zip(names, trajectories, strict=True)
        ],
        "rules": asdict(config),
    }
    if is_begun(out, request) and (out / "manifest.json").exists():
        return kept(open_dataset(out), strict=strict, say=say)
    structure = chosen_structure(topology, config)
    refuse(structure.notices, strict=strict)
    check_prepare(structure, trajectories, config, memory_limit, say)
    return with_less(
        lambda: _prepared(out, request, structure, trajectories, config, strict, say),
        lambda: _prepared(out, request, structure, trajectories, config, strict, say, parts=2),
        lambda: prepare_fits(structure, trajectories, config),
    )


def _prepared(
    out: Path,
    request: dict[str, Any],
    structure: Structure,
    trajectories: Sequence[Path],
    config: PrepareConfig,
    strict: bool,
    say: Callable[[str], None],
    parts: int = 1,
) -> Dataset:
    """Look at all trajectories, then write what is not written yet (`write_dataset`)."""

    def read() -> Iterator[Trajectory]:
        for path in trajectories:
            frames = load_trajectory(structure, path, stride=config.stride)
            check_moves(path, frames.positions)
            yield frames

    def moving() -> Iterator[Trajectory]:
        reference: Float[Tensor, "atoms 3"] | None = None
        for frames in read():
            posed = aligned(frames, frames.positions[0] if reference is None else reference)
            reference = posed.positions[0] if reference is None else reference
            yield posed

    # All inputs are looked at before anything is written: labelling takes far longer.
    told = [notice for frames in read() for notice in frames.notices]
    refuse([*structure.notices, *told], strict=strict)
    begin(out, request)

    return write_dataset(out, request, structure.notices, moving(), config, say=say, parts=parts)


def write_dataset(
    out: Path,
    request: Mapping[str, Any],
    notices: Sequence[Notice],
    trajectories: Iterable[Trajectory],
    config: PrepareConfig,
    *,
    say: Callable[[str], None] = lambda _: None,
    parts: int = 1,
) -> Dataset:
    """Sample and label the frames of trajectories, and write the manifest last.

    Args:
        out: A folder that was begun with ``request`` (`begin`).
        request: What was asked for; ``trajectories`` names each and says whether it is held out.
            An ``origin``, where frames are no simulation's, is repeated in the manifest.
        notices: Of the structure; those of the trajectories are added.
        trajectories: As many, in that order, all in one pose (`aligned`).
        config: The rules.
        say: Called with one line for each step done.
        parts: In how many parts the points of a frame are labelled; the labels are the same.

    Returns:
        The complete data set.
    """
    files: dict[str, str] = {"request.json": atomic.sha256(out / "request.json")}
    entries, told = [], list(notices)
    for index, (asked, moving) in enumerate(
        zip(request["trajectories"], trajectories, strict=True)
    ):
        name = asked["name"]
        told += moving.notices
        if index == 0:
            files |= write_structure(out, moving.frame(0))
        files |= _write_trajectory(out / name, name, moving, config, index, say, parts)
        entries.append(
            {
                "name": name,
                "frames": len(moving),
                "holdout": asked["holdout"],
                "frames_per_shard": config.frames_per_shard,
                "pool_rows": [config.near, config.local, config.uniform],
            }
        )
    files[REPORT] = write_report(
        out, told, trajectories={entry["name"]: entry["frames"] for entry in entries}
    )
    atomic.write_json(
        out / "manifest.json",
        {
            "format": FORMAT,
            **({"origin": request["origin"]} if "origin" in request else {}),
            "units": {"length": "Å", "time": "ps"},
            "columns": {
                "surface": list(SURFACE_COLUMNS),
                "pool": list(POOL_COLUMNS),
                "fixed": list(FIXED_COLUMNS),
            },
            "request": request,
            "versions": _versions(),
            "trajectories": entries,
            "notices": [notice.as_dict() for notice in merged(told)],
            "files": files,
        },
    )
    return open_dataset(out)


def chosen_structure(path: Path, config: PrepareConfig) -> Structure:
    """Read the atoms that a data set keeps.

    Raises:
        InputError: They cannot make a surface.
    """
    structure = load_structure(
        path,
        chain=config.chain,
        altloc=config.altloc,
        hydrogens=config.hydrogens,
        heterogens=config.heterogens,
        length_unit=config.length_unit,
    )
    require_surface(structure)
    return structure


def aligned(
    trajectory: Trajectory, reference: Float[Tensor, "atoms 3"] | None = None
) -> Trajectory:
    """Return a trajectory made whole, its frames superposed on its first and that on another.

    Args:
        trajectory: Frames as they were read.
        reference: Where the first frame goes; by default it stays. Å.

    Returns:
        The same frames in one pose, times from 0. Superposed by Cα, or by all atoms where
        there are fewer than three Cα.
    """
    positions = trajectory.positions
    if trajectory.box is not None:
        bonds = covalent_bonds(trajectory.structure)
        positions = unwrap(positions, trajectory.box.to(positions.dtype), bonds)
    on = trajectory.structure.alpha_carbons
    if len(on) < 3:
        on = torch.arange(len(trajectory.structure))
    first = positions[:1]
    if reference is not None:
        first = superpose(first, reference.to(first.dtype), on)
    return replace(
        trajectory,
        positions=superpose(positions, first[0], on),
        times_ps=trajectory.times_ps - trajectory.times_ps[0],
        box=None,
        velocities=None,
    )


def labelled_points(
    surface: MolecularSurface,
    base: MolecularSurface,
    box: tuple[Float[Tensor, " 3"], Float[Tensor, " 3"]],
    config: PrepareConfig,
    generator: torch.Generator,
    parts: int = 1,
) -> tuple[Float[Tensor, "n 11"], Float[Tensor, "m 11"]]:
    """Draw a frame's surface points and the labelled points around them, in random order.

    Args:
        surface: The frame's exact surface.
        base: The first frame's exact surface.
        box: Low and high corner within which uniform points are drawn, Å.
        config: Spacing and counts.
        generator: Of all draws.
        parts: In how many parts points are labelled.

    Returns:
        Surface rows (`SURFACE_COLUMNS`) and pool rows (`POOL_COLUMNS`: near, local, uniform).

    Source: DSR's sampling distribution D (MoE-DSR, eq. of the SDF loss). Differs from it: drawn
    once per frame when written, with exact distances, not anew in each step.
    """
    cloud = surface.cloud(config.spacing)
    points = cloud.points[torch.randperm(len(cloud), generator=generator)]
    normals = _labels(surface, points, parts)[1]
    scale = sampling.local_scale(points)
    base_value, base_gradient = _labels(base, points, parts)
    columns = [points, normals, scale[:, None], base_value[:, None], base_gradient]
    rows = torch.cat([column.float() for column in columns], dim=1)

    around = []
    for count, width in ((config.near, None), (config.local, scale)):
        chosen = torch.randint(len(points), (count,), generator=generator)
        deviation = points.new_full((count,), NEAR_SCALE) if width is None else width[chosen]
        around.append(sampling.near_surface(points[chosen], deviation, generator))
    around.append(sampling.uniform_in_box(*box, config.uniform, generator))
    pool = torch.cat([points_around.to(points.dtype) for points_around in around])
    value, gradient = _labels(surface, pool, parts)
    base_value, base_gradient = _labels(base, pool, parts)
    columns = [pool, value[:, None], gradient, base_value[:, None], base_gradient]
    return rows, torch.cat([column.float() for column in columns], dim=1)


def _labels(
    surface: MolecularSurface, points: Float[Tensor, "n 3"], parts: int
) -> tuple[Float[Tensor, " n"], Float[Tensor, "n 3"]]:
    """Return the signed distance to a surface and its gradient, found in some parts."""
    found = [surface.signed_distance_and_gradient(some) for some in points.chunk(parts)]
    return torch.cat([value for value, _ in found]), torch.cat([slope for _, slope in found])


def fixed_points(
    first: Structure,
    base: MolecularSurface,
    count: int,
    generator: torch.Generator,
    reach: float = FIXED_REACH,
) -> Float[Tensor, "count 7"]:
    """Draw places uniformly in the shell around the first frame's surface.

    Where they lie does not depend on any later frame: at points drawn around a later surface
    the distances seen are too small on average, and a model trained there forecasts too little.

    Args:
        first: The first frame.
        base: Its surface.
        count: How many places.
        generator: Of the draws.
        reach: Half the thickness of the shell, Å.

    Returns:
        Rows of `undula.io.datasets.FIXED_COLUMNS`, float32.
    """
    low = first.positions.double().amin(dim=0) - reach - 2
    high = first.positions.double().amax(dim=0) + reach + 2
    found, missing = [], count
    while missing > 0:
        points = sampling.uniform_in_box(low, high, 4 * count, generator)
        kept = points[base.signed_distance(points).abs() < reach][:missing]
        found.append(kept)
        missing -= len(kept)
    points = torch.cat(found)
    distance, gradient = base.signed_distance_and_gradient(points)
    return torch.cat([points, distance[:, None], gradient], dim=1).float()


def _write_trajectory(
    folder: Path,
    name: str,
    moving: Trajectory,
    config: PrepareConfig,
    index: int,
    say: Callable[[str], None],
    parts: int,
) -> dict[str, str]:
    files = {
        f"{name}/positions.npy": atomic.write_array(
            folder / "positions.npy", moving.positions.float().numpy()
        ),
        f"{name}/times_ps.npy": atomic.write_array(
            folder / "times_ps.npy", moving.times_ps.double().numpy()
        ),
    }
    first = moving.frame(0)
    base = surface_of(first, config.probe)
    box = (
        first.positions.amin(dim=0) - config.margin,
        first.positions.amax(dim=0) + config.margin,
    )
    draws = np.random.SeedSequence([config.seed, index, 2**31]).generate_state(1)[0]
    fixed = fixed_points(first, base, config.fixed, torch.Generator().manual_seed(int(draws)))
    files[f"{name}/fixed.npy"] = atomic.write_array(folder / "fixed.npy", fixed.numpy())
    for number, start in enumerate(range(0, len(moving), config.frames_per_shard)):
        frames = range(start, min(start + config.frames_per_shard, len(moving)))
        surface_file, pool_file, fixed_file, json_file = shard_files(number)
        if not _shard_is_whole(folder, number):
            surfaces, pools, distances = [], [], []
            for frame in frames:
                generator = torch.Generator().manual_seed(
                    int(np.random.SeedSequence([config.seed, index, frame]).generate_state(1)[0])
                )
                exact = surface_of(moving.frame(frame), config.probe)
                rows, pool = labelled_points(exact, base, box, config, generator, parts)
                surfaces.append(rows.numpy())
                pools.append(pool.numpy())
                places = fixed[:, :3].double().chunk(parts)
                distances.append(
                    torch.cat([exact.signed_distance(p).float() for p in places]).numpy()
                )
            ranges = {}
            if config.storage == "compact":
                surfaces, ranges["surface"] = _compact(surfaces, "surface")
                pools, ranges["pool"] = _compact(pools, "pool")
            description = {
                "surface_rows": [len(rows) for rows in surfaces],
                **({"ranges": ranges} if ranges else {}),
                "sha256": {
                    surface_file: atomic.write_array(
                        folder / surface_file, np.concatenate(surfaces)
                    ),
                    pool_file: atomic.write_array(folder / pool_file, np.stack(pools)),
                    fixed_file: atomic.write_array(folder / fixed_file, np.stack(distances)),
                },
            }
            atomic.write_json(folder / json_file, description)
            say(f"{name}: frame {frames[-1] + 1} of {len(moving)}")
        for file, promised in atomic.read_json(folder / json_file)["sha256"].items():
            files[f"{name}/{file}"] = promised
        files[f"{name}/{json_file}"] = atomic.sha256(folder / json_file)
    return files


def _compact(
    frames: list[np.ndarray], kind: Kind
) -> tuple[list[np.ndarray], list[tuple[list[float], list[float]]]]:
    """Return the packed rows of each frame, and what it takes to unpack them."""
    rows = [packed(frame, kind) for frame in frames]
    return [one.numbers for one in rows], [(one.least.tolist(), one.step.tolist()) for one in rows]


def surface_of(structure: Structure, probe: float = 1.4) -> MolecularSurface:
    """Return the exact solvent-excluded surface of a structure, by its van der Waals radii."""
    return molecular_surface(
        structure.positions.double(), structure.vdw_radii.double(), probe=probe
    )


def _shard_is_whole(folder: Path, number: int) -> bool:
    path = folder / shard_files(number)[-1]
    if not path.exists():
        return False
    return all(
        (folder / name).is_file() and atomic.sha256(folder / name) == promised
        for name, promised in atomic.read_json(path)["sha256"].items()
    )


def kept(
    dataset: Dataset, *, strict: bool = False, say: Callable[[str], None] = lambda _: None
) -> Dataset:
    """Return a data set that was complete before it was asked for.

    Raises:
        InputError: It has notices, and none is allowed.
    """
    refuse(from_json(dataset.manifest["notices"]), strict=strict)
    say(f"{dataset.folder} is complete")
    return dataset


def begin(out: Path, request: dict[str, Any]) -> None:
    """Write what is asked for into a new data set folder, or see that it was begun with the same.

    Raises:
        UsageError: The folder holds something else, or was begun with other rules.
        InputError: An input has changed since.
    """
    if not is_begun(out, request):
        atomic.write_json(out / "request.json", request)


def is_begun(out: Path, request: dict[str, Any]) -> bool:
    """Tell whether a data set folder was begun with what is asked for; a new one was not.

    Raises:
        UsageError: The folder holds something else, or was begun with other rules.
        InputError: An input has changed since.
    """
    path = out / "request.json"
    if not path.exists():
        if out.exists() and (not out.is_dir() or any(map(_is_finished, out.iterdir()))):
            raise UsageError(f"{out} exists and is not a data set folder; choose another with -o")
        return False
    before = atomic.read_json(path)
    if before == request:
        return True
    if before.get("rules") != request["rules"]:
        rules = before.get("rules", {})
        key = next(k for k, v in request["rules"].items() if rules.get(k) != v)
        raise UsageError(
            f"{out} was begun with {key}={rules.get(key)}, not {request['rules'][key]}; "
            "choose another folder or the same rules"
        )
    old = {entry["file"]: entry["sha256"] for entry in before.get("trajectories", [])}
    for entry in request["trajectories"]:
        if old.get(entry["file"], entry["sha256"]) != entry["sha256"]:
            raise InputError(f"{entry['file']} has changed since {out} was begun")
    if before.get("topology", {}).get("sha256") != request["topology"]["sha256"]:
        raise InputError(f"{request['topology']['name']} has changed since {out} was begun")
    raise UsageError(f"{out} was begun with other trajectories or another --holdout")


def _is_finished(path: Path) -> bool:
    """Tell whether a file is more than a lock, or than what a kill left of an unfinished one."""
    return not path.name.startswith(atomic.OWN_PREFIX)


def input_hash(path: Path) -> str:
    """Return the SHA-256 of an input.

    Raises:
        InputError: It cannot be read.
    """
    try:
        return atomic.sha256(path)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


def unique_names(paths: Sequence[Path]) -> list[str]:
    """Return a name fit for a file for each path: its stem, numbered where that repeats."""
    names: list[str] = []
    for path in paths:
        stem = "".join(c if c.isalnum() or c in "._-" else "_" for c in path.stem) or "trajectory"
        name, number = stem, 2
        while name in names:
            name, number = f"{stem}-{number}", number + 1
        names.append(name)
    return names


def _versions() -> dict[str, str]:
    packages = ("torch", "numpy", "numba", "scipy", "gemmi", "mdtraj")
    found = {package: metadata.version(package) for package in packages}
    return {"undula": undula.__version__, "python": platform.python_version(), **found}


def check_free(path: Path) -> None:
    """Raise where `write_record` could not write after hours of work.

    Raises:
        MachineError: Another process writes in that folder, or it cannot be written.
    """
    with claimed(path.parent, within=False, patience=RECORD_SECONDS):
        pass


def write_record(
    path: Path,
    origin: Mapping[str, Any],
    made: Mapping[str, str],
    skipped: Mapping[str, str],
) -> None:
    """Write which data sets a folder of many holds: those made now and those made before.

    Processes that make other data sets in the same folder may do so at the same time.

    Args:
        path: The record.
        origin: What it says of them all.
        made: Name of each data set that this call made → its SHA-256.
        skipped: What it skipped, and why.

    Raises:
        MachineError: Another process holds the folder for long, or it cannot be written.
    """
    with claimed(path.parent, within=False, patience=RECORD_SECONDS):
        before = atomic.read_json(path).get("datasets", {}) if path.exists() else {}
        record = {**origin, "datasets": {**before, **made}, "skipped": dict(skipped)}
        atomic.write_json(path, record)
