"""What comes with the package: one real protein with its simulation, and trained models.

``NAME/model`` holds a model of moving surfaces, ``NAME/motion`` one of moving atoms.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

VILLIN_HALF_PS = 247.5
"""The bundled model was trained on frames up to here; the later ones are for scoring."""


def folder(name: str = "villin") -> Path:
    """Return the folder of a bundled system."""
    return Path(str(resources.files("undula.data.bundled"))) / name


def models() -> dict[str, Path]:
    """Return the folder of each bundled model of moving surfaces by its name."""
    return _models("model")


def motion_models() -> dict[str, Path]:
    """Return the folder of each bundled model of moving atoms by its name."""
    return _models("motion")


def _models(kind: str) -> dict[str, Path]:
    root = Path(str(resources.files("undula.data.bundled")))
    found = (path.parent for path in root.glob(f"*/{kind}") if path.is_dir())
    return {path.name: path / kind for path in sorted(found)}


def villin() -> tuple[Path, Path, Path]:
    """Return villin's structure file, its trajectory file and the folder of its trained model."""
    return (
        folder() / "1vii_A.pdb",
        folder() / "1vii_A_R1.xtc",
        folder() / "model",
    )
