"""Random subsets of prepared points: ours against h5py, zarr and a bare memory-mapped array.

    python benchmarks/store.py [--frames 100] [--repetitions 7] [--peers FOLDER]

The pool of the bundled villin simulation (8,192 shuffled rows of 11 numbers a frame) is stored
by each side; a sample is a run of rows from a random place in a random frame, as in a training
step. Everything is in the page cache. h5py's read of a contiguous data set that is kept open is
one copy, as ours is; no store can be much faster than the memory-mapped array. Peers are found
by import, or in FOLDER; one that is absent is named and left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from measuring import in_turns, keep, one_thread, ratio, shown

from undula.data.bundled import villin
from undula.data.prepare import prepare
from undula.data.prepare_config import PrepareConfig
from undula.io.datasets import PreparedTrajectory
from undula.io.structures import load_structure
from undula.io.trajectories import load_trajectory

SAMPLES = 1000
GOALS = {
    "h5py, its own chunks": 5.0,
    "h5py, contiguous, kept open": 5.0,
    "zarr, one chunk a frame, not compressed": 15.0,
}
BARE, OWN, COMPACT = "numpy.load, memory-mapped", "own", "own, compact"
Sample = tuple[int, int]


def prepared(folder: Path, storage: str, stride: int) -> PreparedTrajectory:
    """Return the bundled simulation as a data set."""
    topology, frames, _ = villin()
    config = PrepareConfig(stride=stride, storage=storage)
    return prepare(topology, [frames], folder / storage, config).trajectories[0]


def size(trajectory: PreparedTrajectory) -> int:
    """Return the bytes of all rows on disk."""
    files = [*trajectory.folder.glob("surface-*.npy"), *trajectory.folder.glob("pool-*.npy")]
    return sum(path.stat().st_size for path in files)


def of_own(trajectory: PreparedTrajectory, rows: int) -> Callable[[Sample], np.ndarray]:
    def read(sample: Sample) -> np.ndarray:
        frame, start = sample
        return np.array(trajectory.pool(frame)[start : start + rows])

    return read


def of_bare(trajectory: PreparedTrajectory, rows: int) -> Callable[[Sample], np.ndarray]:
    files = sorted(trajectory.folder.glob("pool-*.npy"))
    arrays = [np.load(path, mmap_mode="r") for path in files]
    each = trajectory.frames_per_shard

    def read(sample: Sample) -> np.ndarray:
        frame, start = sample
        return np.array(arrays[frame // each][frame % each, start : start + rows])

    return read


def of_scattered(trajectory: PreparedTrajectory, rows: int) -> Callable[[Sample], np.ndarray]:
    """Draw rows one by one, as one would have to if they were not shuffled when written."""
    files = sorted(trajectory.folder.glob("pool-*.npy"))
    arrays = [np.load(path, mmap_mode="r") for path in files]
    each, draw = trajectory.frames_per_shard, np.random.default_rng(0)

    def read(sample: Sample) -> np.ndarray:
        array = arrays[sample[0] // each][sample[0] % each]
        return np.array(array[draw.integers(len(array), size=rows)])

    return read


def of_h5py(
    path: Path, pool: np.ndarray, rows: int, **options: Any
) -> Callable[[Sample], np.ndarray]:
    import h5py

    with h5py.File(path, "w") as file:
        file.create_dataset("pool", data=pool, **options)
    opened = h5py.File(path, "r")["pool"]
    return lambda sample: opened[sample[0], sample[1] : sample[1] + rows]


def of_zarr(
    path: Path, pool: np.ndarray, rows: int, **options: Any
) -> Callable[[Sample], np.ndarray]:
    import zarr

    zarr.create_array(store=str(path), data=pool, **options)
    opened = zarr.open_array(str(path), mode="r")
    return lambda sample: opened[sample[0], sample[1] : sample[1] + rows]


def measured(
    folder: Path,
    full: PreparedTrajectory,
    compact: PreparedTrajectory,
    rows: int,
    repetitions: int,
) -> dict[str, Any]:
    """Time all contestants on samples of so many rows."""
    pool = np.stack([np.array(full.pool(frame)) for frame in range(len(full))])
    readers = {
        OWN: of_own(full, rows),
        BARE: of_bare(full, rows),
        COMPACT: of_own(compact, rows),
        "numpy.load, rows one by one": of_scattered(full, rows),
    }
    if importlib.util.find_spec("h5py"):
        readers["h5py, its own chunks"] = of_h5py(folder / f"{rows}.h5", pool, rows, chunks=True)
        readers["h5py, its own chunks, gzip"] = of_h5py(
            folder / f"{rows}-gzip.h5", pool, rows, chunks=True, compression="gzip"
        )
        readers["h5py, contiguous, kept open"] = of_h5py(folder / f"{rows}-plain.h5", pool, rows)
    if importlib.util.find_spec("zarr"):
        whole = {"chunks": (1, *pool.shape[1:]), "compressors": None}
        readers["zarr, as it comes"] = of_zarr(folder / f"{rows}-as-it-comes", pool, rows)
        readers["zarr, one chunk a frame, not compressed"] = of_zarr(
            folder / f"{rows}-plain", pool, rows, **whole
        )
    draw = np.random.default_rng(1)
    samples = list(
        zip(
            draw.integers(len(full), size=SAMPLES).tolist(),
            draw.integers(pool.shape[1] - rows, size=SAMPLES).tolist(),
            strict=True,
        )
    )
    for name, read in readers.items():
        if name not in (COMPACT, "numpy.load, rows one by one"):
            for sample in samples[:20]:
                if not np.array_equal(read(sample), readers[BARE](sample)):
                    raise RuntimeError(f"{name} reads other rows")

    def all_of(read: Callable[[Sample], np.ndarray]) -> Callable[[], None]:
        def work() -> None:
            for sample in samples:
                read(sample)

        return work

    watches = in_turns({name: all_of(read) for name, read in readers.items()}, repetitions)
    own = watches[OWN].cpu
    return {
        "rows_per_sample": rows,
        "samples": SAMPLES,
        "frames": len(full),
        "rows_per_frame": pool.shape[1],
        "bytes": {"full": size(full), "compact": size(compact)},
        "times": {name: watch.summary() for name, watch in watches.items()},
        "ratios": {name: ratio(watch.cpu, own) for name, watch in watches.items()},
    }


def printed(row: dict[str, Any]) -> None:
    """Print one size of samples."""
    print(f"\n{row['rows_per_sample']} of {row['rows_per_frame']} rows from {row['frames']} frames")
    for name, times in row["times"].items():
        each = 1e6 * times["cpu_median_s"] / row["samples"]
        print(f"  {name:42s} {each:8.1f} µs, {shown(row['ratios'][name])} times ours")
    least = 1 / row["ratios"][BARE]["median"]
    print(f"  goal: within 1.2 times {BARE}: {least:.2f}, {'reached' if least <= 1.2 else 'NOT'}")
    for name, goal in GOALS.items():
        if name in row["ratios"]:
            reached = row["ratios"][name]["median"] >= goal
            print(f"  goal: ≥ {goal:g} times faster than {name}: {'reached' if reached else 'NOT'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--peers", type=Path, help="a folder that peers were installed into")
    options = parser.parse_args()
    one_thread()
    if options.peers:
        sys.path.append(str(options.peers))
    for name in ("h5py", "zarr"):
        if not importlib.util.find_spec(name):
            print(f"{name} is absent (pip install {name}): left out")
    rows = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        topology, frames, _ = villin()
        total = len(load_trajectory(load_structure(topology), frames))
        stride = max(1, total // options.frames)
        full, compact = (prepared(folder, storage, stride) for storage in ("full", "compact"))
        sizes = [size(trajectory) for trajectory in (full, compact)]
        print(f"{len(full)} frames: {sizes[0] / 1e6:.1f} MB, compact {sizes[1] / 1e6:.1f} MB")
        for count in (512, 1024, 4096):
            rows.append(measured(folder, full, compact, count, options.repetitions))
            printed(rows[-1])
    keep("store", rows)


if __name__ == "__main__":
    main()
