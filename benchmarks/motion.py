"""What a forecast of atoms costs: a training step, one time, the whole horizon; MD beside.

    python benchmarks/motion.py [--data FOLDER]

250 argon atoms, the recommended preset (weights drawn, which costs the same), one thread:

- a training step: calls of the right-hand sides, the largest memory of its process, CPU time; the
  public code of DoMiNO calls its function 1,976 times forward and as many times in the adjoint;
- one time 500 frames ahead, and all 8,000 frames of the horizon: calls, CPU time;
- OpenMM, ten times its 8,000 steps of 10 fs for the same 800 ps, where it is installed.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
from importlib import util
from pathlib import Path
from typing import Any

import torch
import yaml
from measuring import DATA, cpu_seconds, keep, one_thread
from ode import Case, molecular_dynamics

from undula.config import MotionConfig, preset_file
from undula.data.recorded import RecordConfig, record
from undula.motion.drawing import WindowConfig
from undula.motion.encoder import EncoderConfig
from undula.motion.evaluation import window_at
from undula.motion.levels import LevelsConfig
from undula.motion.model import MotionModelConfig, planned
from undula.motion.task import MotionTask
from undula.motion.trained import TrainedMotion
from undula.nn.ode.solve import SolverConfig

MOST_CALLS, MOST_GIB, THEIRS = 240, 1.5, 1976


def preset() -> MotionConfig:
    """Return the preset for argon."""
    asked = yaml.safe_load(preset_file("argon").read_text(encoding="utf-8"))["motion"]
    levels = asked["model"]["levels"]
    return MotionConfig(
        model=MotionModelConfig(
            encoder=EncoderConfig(**asked["model"]["encoder"]),
            levels=LevelsConfig(
                **levels
                | {"solver": SolverConfig(**levels["solver"]), "strides": tuple(levels["strides"])}
            ),
        ),
        batch=WindowConfig(**asked["batch"]),
    )


def training_step(task: MotionTask, steps: int = 4) -> dict[str, float]:
    """Measure steps after a first one."""
    calls = []

    def counted(module: Any, arguments: Any, outcome: Any) -> None:
        del module, arguments
        calls.append(sum(outcome.evaluations))

    handle = task.model.register_forward_hook(counted)
    begun = 0.0
    for step in range(steps + 1):
        if step == 1:
            begun = cpu_seconds()
        batch = task.batch(step, torch.Generator().manual_seed(step))
        task.loss(batch, step)[0].backward()
    handle.remove()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {
        "calls": max(calls),
        "cpu_s": (cpu_seconds() - begun) / steps,
        "peak_gib": peak,
    }


def forecasts(task: MotionTask) -> dict[str, dict[str, float]]:
    """Measure forecasts of one window."""
    part = task.drawing.parts[0]
    window = window_at(task.source, part.recording, part.training[0], task.batch_config.observed)
    trained = TrainedMotion(
        model=task.model.eval().requires_grad_(False),
        climatology=task.climatology,
        usual=task.usual,
        reference=None,
        provenance={},
    )
    found = {}
    for name, frames in (("one time", [500]), ("whole horizon", list(range(1, 8001)))):
        lags = torch.tensor(frames, dtype=torch.float32) * window.frame_ps
        begun = cpu_seconds()
        trained.forecast(window, lags)
        plan = planned(task.model.hierarchy, torch.tensor(frames, dtype=torch.float32))
        found[name] = {
            "segments": sum(len(some) for some in plan.segments),
            "batched_calls": 4 * task.model.config.levels.solver.steps * len(plan.segments),
            "cpu_s": cpu_seconds() - begun,
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA)
    options = parser.parse_args()
    one_thread()
    torch.set_flush_denormal(True)
    asked = preset()
    with tempfile.TemporaryDirectory() as folder:
        files = [options.data / "argon" / f"argon_{number}.npz" for number in range(2)]
        source = record(files, Path(folder) / "argon", RecordConfig())
        names = [one.name for one in source.recordings]
        task = MotionTask(source, names, asked.model, asked.loss, asked.batch)
        row: dict[str, Any] = {"atoms": len(source.system), "training_step": training_step(task)}
        row |= forecasts(task)
    if util.find_spec("openmm") is not None:
        tenth = molecular_dynamics(Case(options.data, 64))
        row["openmm_horizon_s"] = None if tenth is None else 10 * tenth
    step = row["training_step"]
    print(f"training step: {step['calls']} calls (goal ≤ {MOST_CALLS}; public code {THEIRS} twice)")
    print(f"  {step['cpu_s']:.2f} CPU s, process at most {step['peak_gib']:.2f} GiB (≤ {MOST_GIB})")
    for name in ("one time", "whole horizon"):
        one = row[name]
        print(
            f"{name}: {one['segments']} segments, {one['batched_calls']} batched calls, "
            f"{one['cpu_s']:.2f} CPU s"
        )
    seconds = row.get("openmm_horizon_s")
    print("OpenMM is not installed" if seconds is None else f"OpenMM: {seconds:.1f} CPU s")
    keep("motion", [row])


if __name__ == "__main__":
    main()
