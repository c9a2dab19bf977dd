"""Say what undula itself made or reads as settings: data, runs, results, weights, configurations.

All of it is read as the command that needs it reads it, and every checksum is compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from undula import atomic
from undula.cli.configured import read_motion_protocol, read_protocol, read_yaml
from undula.cli.sweep import read_space
from undula.cli.train import read_training
from undula.errors import InputError, Notice
from undula.io.datasets import Dataset, open_dataset
from undula.io.recordings import KIND as RECORDINGS
from undula.io.recordings import open_recordings
from undula.notices import from_json

SETTINGS = (".yaml", ".yml")
_FAMILIES = ("surface", "motion")


@dataclass(frozen=True, kw_only=True)
class Stored:
    """What lies at a place, whole.

    Attributes:
        path: The folder or file.
        kind: Such as ``data set`` or ``weights``.
        families: Which families of models it serves.
        facts: What to know of it, by name; plain values.
        notices: What was dropped, assumed or guessed when it was made, or is odd now.
    """

    path: Path
    kind: str
    families: tuple[str, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)
    notices: tuple[Notice, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "path": str(self.path),
            "kind": self.kind,
            "families": list(self.families),
            "why_not": {
                family: f"this is a {self.kind} for {' and '.join(self.families) or 'neither'}"
                for family in _FAMILIES
                if family not in self.families
            },
            "facts": dict(self.facts),
            "notices": [notice.as_dict() for notice in self.notices],
        }

    def __str__(self) -> str:
        lines = [f"{self.path}: {self.kind} for {' and '.join(self.families) or 'neither'}, whole"]
        lines += [f"  {name}: {value}" for name, value in self.facts.items()]
        lines += [f"  notice: {notice}" for notice in self.notices]
        return "\n".join(lines)


def is_stored(path: Path) -> bool:
    """Tell whether a path is a folder, or a file that is neither a structure nor a trajectory."""
    if path.is_dir() or path.suffix in SETTINGS:
        return True
    if not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(9)
    return head[:4] == b"PK\x03\x04" or (head[8:9] == b"{" and path.suffix == ".safetensors")


def inspect_stored(path: Path, purpose: str | None = None) -> list[Stored]:
    """Read what undula made, or its settings, completely; nothing is kept and nothing is written.

    Args:
        path: A folder of data, of a run or of a result, a folder of such folders, a file of
            weights, of settings, or an archive of arrays.
        purpose: ``surface`` or ``motion``: raise where it serves the other.

    Returns:
        What is there; several of a folder of folders.

    Raises:
        InputError: It is none of these, is damaged or unfinished, or does not serve.
        UsageError: Settings that cannot be meant.
    """
    found = _folder(path) if path.is_dir() else [_file(path)]
    for one in found:
        if purpose is not None and purpose not in one.families:
            serves = " and ".join(one.families) or "neither"
            raise InputError(f"{one.path}: this {one.kind} is for {serves}, not for {purpose}")
    return found


def _folder(path: Path) -> list[Stored]:
    if (path / "manifest.json").exists():
        manifest = atomic.read_json(path / "manifest.json")
        if path.parent.name == "checkpoints" and "step" in manifest:
            return [_checkpoint(path)]
        return [_recordings(path) if manifest.get("kind") == RECORDINGS else _dataset(path)]
    if (path / "forecast.json").exists():
        return [_result(path)]
    if (path / "model.safetensors").exists() or (path / "weights.safetensors").exists():
        return [_run(path)]
    if (path / "checkpoints").is_dir():
        return [_unfinished_run(path)]
    if (path / "request.json").exists():
        raise InputError(f"{path}: this preparation is not complete; run the same command again")
    inside = sorted(one for one in path.iterdir() if (one / "manifest.json").exists())
    if inside:
        return [stored for one in inside for stored in _folder(one)]
    raise InputError(
        f"{path}: this folder holds nothing that undula made: no data set, no recordings, no run "
        "and no result"
    )


def _dataset(path: Path) -> Stored:
    dataset: Dataset = open_dataset(path, verify=True)
    frames = {
        one.name: f"{len(one)} frames to {one.times_ps[-1]:g} ps{', held out' * one.holdout}"
        for one in dataset.trajectories
    }
    return Stored(
        path=path,
        kind="data set",
        families=("surface",),
        facts={
            "protein": dataset.structure.name,
            "atoms": len(dataset.structure),
            "files": len(dataset.manifest["files"]),
            **frames,
        },
        notices=tuple(dataset.notices),
    )


def _recordings(path: Path) -> Stored:
    recordings = open_recordings(path)
    recordings.verify()
    frames = {
        one.name: f"{len(one)} frames, velocities of {one.velocity_frames}"
        for one in recordings.recordings
    }
    return Stored(
        path=path,
        kind="set of recordings",
        families=("motion",),
        facts={
            "system": recordings.system.structure.name,
            "atoms": len(recordings.system),
            "frame_ps": recordings.frame_ps,
            "files": len(recordings.manifest["files"]),
            **frames,
        },
        notices=tuple(recordings.notices),
    )


def _result(path: Path) -> Stored:
    from undula.motion.forecast import MovingAtoms, holds_atoms
    from undula.surface.forecast import MovingSurface

    if holds_atoms(path):
        atoms = MovingAtoms.load(path)
        facts = {"system": atoms.system.structure.name, "atoms": len(atoms.system)}
        facts |= {"times": len(atoms.lags_ps), "samples": len(atoms.samples)}
        return Stored(
            path=path, kind="forecast", families=("motion",), facts=facts, notices=atoms.notices
        )
    surface = MovingSurface.load(path)
    facts = {"protein": surface.structure.name, "atoms": len(surface.structure)}
    facts |= {"times": len(surface.times_ps), "samples": surface.samples}
    return Stored(
        path=path, kind="forecast", families=("surface",), facts=facts, notices=surface.notices
    )


def _run(path: Path) -> Stored:
    from undula.forecasts import load_trained
    from undula.motion.catalog import TrainedForecaster

    trained = load_trained(path)
    if isinstance(trained, TrainedForecaster):
        family, horizon_ps = "motion", trained.demands.horizon_ps
    else:
        family, horizon_ps = "surface", trained.horizon_ps
    kept = ("steps", "system", "recordings", "proteins", "training_frames", "undula")
    facts = {name: trained.provenance[name] for name in kept if name in trained.provenance}
    told: list[Notice] = []
    if (path / "report.json").exists():
        told = from_json(atomic.read_json(path / "report.json").get("notices", []))
    return Stored(
        path=path,
        kind="trained model",
        families=(family,),
        facts={**facts, "horizon_ps": horizon_ps},
        notices=tuple(told),
    )


def _unfinished_run(path: Path) -> Stored:
    from undula.learn.checkpoint import newest_checkpoint

    found, notices = newest_checkpoint(path)
    if found is None:
        raise InputError(f"{path}: this training has no complete checkpoint yet")
    return Stored(
        path=path,
        kind="training that has not ended",
        families=_family_of(found.state),
        facts={"step": found.step, "goes on": "run the same command again"},
        notices=tuple(notices),
    )


def _checkpoint(path: Path) -> Stored:
    from undula.learn.checkpoint import load_checkpoint

    found = load_checkpoint(path)
    tensors = sum(len(part) for part in found.tensors.values())
    return Stored(
        path=path,
        kind="checkpoint",
        families=_family_of(found.state),
        facts={"step": found.step, "tensors": tensors},
    )


def _family_of(state: Mapping[str, Any]) -> tuple[str, ...]:
    task = state.get("configuration", {}).get("task", {})
    return ("motion",) if "recordings" in task else ("surface",)


def _file(path: Path) -> Stored:
    if path.suffix in SETTINGS:
        return _settings(path)
    if path.suffix == ".safetensors":
        return _weights(path)
    return _archive(path)


def _weights(path: Path) -> Stored:
    from undula.learn.checkpoint import load_weights

    tensors, metadata = load_weights(path)
    kind = str(metadata.get("kind", "of a training"))
    families = ("motion",) if kind == "motion" else ("surface",)
    numbers = sum(one.numel() for one in tensors.values())
    return Stored(
        path=path,
        kind="file of weights",
        families=families,
        facts={"of": kind, "tensors": len(tensors), "numbers": numbers},
    )


def _settings(path: Path) -> Stored:
    values = read_yaml(path)
    if "space" in values:
        space = read_space(path)
        facts: dict[str, Any] = {"preset": space.preset, "axes": len(space.space)}
        return Stored(path=path, kind="search space", families=("surface",), facts=facts)
    if "rows" in values:
        motion = values.get("kind") == "motion"
        read = read_motion_protocol(str(path)) if motion else read_protocol(str(path))
        return Stored(
            path=path,
            kind="study protocol",
            families=("motion",) if motion else ("surface",),
            facts={"name": read.name, "rows": len(read.rows)},
        )
    given = [] if "data" in values else ["--data", '["-"]']
    given += [] if "out" in values else ["--out", "-"]
    config, *_ = read_training([str(path), *given])
    return Stored(
        path=path,
        kind="training configuration",
        families=("surface",) if config.motion is None else ("motion",),
        facts={"preset": config.preset, "steps": config.fit.steps, "data": config.data},
    )


def _archive(path: Path) -> Stored:
    from undula.data.fluids import load_fluid

    system, frames = load_fluid(path)
    known = 0 if frames.velocities is None else len(frames.velocities)
    return Stored(
        path=path,
        kind="fluid in fixed point",
        families=("motion",),
        facts={
            "system": system.structure.name,
            "atoms": len(system),
            "frames": len(frames),
            "frame_ps": frames.frame_ps,
            "velocities": known,
        },
        notices=frames.notices,
    )
