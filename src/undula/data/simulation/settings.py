"""How a simulation is run, and the presets: what is published, what we recommend, what is quick."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from undula.errors import InputError, UsageError

SYSTEMS = ("argon", "tip3p", "tip4p", "ala2")
"""What can be simulated by its name; anything else is a structure file of a protein."""
PRESETS = ("clean", "paper", "tiny")
PLATFORMS = ("auto", "CPU", "CUDA", "OpenCL", "Reference")
INSTALL = 'undula simulate needs OpenMM and PDBFixer: pip install "undula[simulate]"'


@dataclass(frozen=True, kw_only=True)
class SimulateConfig:
    """How a system is simulated and what of it is kept.

    Attributes:
        system: One of `SYSTEMS`, or "protein".
        preset: The name of the preset this came from; it is recorded.
        particles: Atoms of argon or molecules of water; 0 where the system itself says.
        temperature_k: Of the thermostat, K.
        thermostat: "nose-hoover" (a chain of 10) or "langevin" (the middle scheme).
        friction_per_ps: Frequency of the Nosé–Hoover chain, or friction of Langevin, 1/ps.
        step_fs: Time step, fs.
        every_ps: Between frames, ps; a whole number of steps, at least two.
        frames: Of each trajectory, the first at time 0 included.
        trajectories: How many, each of its own start and velocities.
        equilibration_ps: Simulated and thrown away before the first frame, ps.
        solvent: Of a protein: "implicit" or "explicit" (whose water is not kept).
        as_published: Begin, drift and cut off as the public scripts of DoMiNO do, faults included.
        checkpoint_frames: After how many frames a killed run can go on.
        seed: Of all starts and velocities.
        platform: One of `PLATFORMS`; "auto" is OpenMM's fastest.
        threads: Of the CPU platform. One is repeatable to the byte, several are not.
    """

    system: str
    preset: str = "clean"
    particles: int = 0
    temperature_k: float = 300.0
    thermostat: str = "nose-hoover"
    friction_per_ps: float = 1.0
    step_fs: float = 2.0
    every_ps: float = 0.1
    frames: int = 10_000
    trajectories: int = 8
    equilibration_ps: float = 50.0
    solvent: str = "implicit"
    as_published: bool = False
    checkpoint_frames: int = 500
    seed: int = 0
    platform: str = "auto"
    threads: int = 1

    def __post_init__(self) -> None:
        choices = {
            "system": (*SYSTEMS, "protein"),
            "preset": PRESETS,
            "thermostat": ("nose-hoover", "langevin"),
            "solvent": ("implicit", "explicit"),
            "platform": PLATFORMS,
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise UsageError(
                    f"{name} should be {', '.join(allowed)}, not {getattr(self, name)}"
                )
        for name in ("frames", "trajectories", "checkpoint_frames", "threads"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} should be at least 1, not {getattr(self, name)}")
        for name in ("temperature_k", "friction_per_ps", "step_fs", "every_ps"):
            if not 0 < getattr(self, name) < float("inf"):
                raise UsageError(f"{name} should be positive, not {getattr(self, name)}")
        for name in ("particles", "equilibration_ps", "seed"):
            if getattr(self, name) < 0:
                raise UsageError(f"{name} should not be negative, but is {getattr(self, name)}")
        steps = self.every_ps / (self.step_fs / 1000)
        if abs(steps - round(steps)) > 1e-6 or round(steps) < 2:
            raise UsageError(
                f"every_ps should be two or more whole steps of {self.step_fs:g} fs, "
                f"not {self.every_ps:g}"
            )
        if self.particles < 2 and self.system in ("argon", "tip3p", "tip4p"):
            raise UsageError(f"particles should be at least 2, not {self.particles}")

    @property
    def steps_per_frame(self) -> int:
        """Steps from one frame to the next."""
        return round(self.every_ps / (self.step_fs / 1000))


_ARGON = SimulateConfig(
    system="argon",
    particles=250,
    temperature_k=100.0,
    friction_per_ps=25.0,
    step_fs=10.0,
    equilibration_ps=20.0,
)
_WATER = SimulateConfig(system="tip3p", particles=258)
_ALANINE = SimulateConfig(
    system="ala2",
    thermostat="langevin",
    step_fs=4.0,
    every_ps=0.5,
    trajectories=3,
    equilibration_ps=100.0,
)
_PROTEIN = SimulateConfig(
    system="protein",
    thermostat="langevin",
    friction_per_ps=5.0,
    step_fs=4.0,
    every_ps=1.0,
    frames=1000,
    trajectories=2,
    equilibration_ps=20.0,
)
_CLEAN = {
    "argon": _ARGON,
    "tip3p": _WATER,
    "tip4p": replace(_WATER, system="tip4p"),
    "ala2": _ALANINE,
    "protein": _PROTEIN,
}
_PUBLISHED_PARTICLES = {"argon": 258, "tip3p": 258, "tip4p": 251}
_TINY: dict[str, dict[str, Any]] = {
    "argon": {"particles": 64, "frames": 500, "equilibration_ps": 5.0},
    "tip3p": {"particles": 27, "frames": 500, "equilibration_ps": 2.0},
    "tip4p": {"particles": 27, "frames": 500, "equilibration_ps": 2.0},
    "ala2": {"frames": 500, "equilibration_ps": 5.0},
    "protein": {"frames": 50, "equilibration_ps": 1.0},
}


def preset(system: str, name: str = "clean", *, solvent: str = "implicit") -> SimulateConfig:
    """Return the settings of a preset.

    ``clean`` is equilibrated, with the centre of mass at rest. ``paper`` repeats what the public
    scripts of DoMiNO do: 258 argon, 258 TIP3P or 251 TIP4P-Ew, no equilibration, a start turned
    at random against its box, steps of 2 fs, a drifting centre of mass. ``tiny`` takes seconds.

    Args:
        system: One of `SYSTEMS`, or the path of a protein's structure.
        name: One of `PRESETS`.
        solvent: Of a protein.

    Raises:
        UsageError: No such preset, no such file, or a solvent where there is none to choose.
    """
    if name not in PRESETS:
        raise UsageError(f"there is no preset {name}; there are {', '.join(PRESETS)}")
    kind = system if system in SYSTEMS else "protein"
    if kind == "protein" and not Path(system).is_file():
        raise InputError(f"{system} is no structure file, and none of {', '.join(SYSTEMS)}")
    if kind != "protein" and solvent != "implicit":
        raise UsageError(f"--solvent is for proteins; {system} has no other")
    config = replace(_CLEAN[kind], preset=name)
    if kind == "protein" and solvent == "explicit":
        config = replace(config, solvent="explicit", friction_per_ps=1.0)
    if name == "tiny":
        return replace(config, trajectories=2, checkpoint_frames=100, **_TINY[kind])
    if name == "clean":
        return config
    if kind == "ala2":
        raise UsageError("the paper's alanine dipeptide is a download: undula data fetch ala2")
    if kind == "protein":
        raise UsageError("the preset paper is of argon, tip3p and tip4p, not of proteins")
    return replace(
        config,
        particles=_PUBLISHED_PARTICLES[kind],
        step_fs=2.0,
        equilibration_ps=0.0,
        as_published=True,
    )


def recording_stem(path: Path) -> str:
    """Return the name of a file as the beginning of other files' names."""
    stem = path.name.split(".")[0]
    return "".join(c if c.isalnum() or c in "_-" else "_" for c in stem) or "protein"
