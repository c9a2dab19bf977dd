"""Train the bundled weights again: the first half of the bundled simulation of villin.

Repeatable: `make weights` prepares the bundled trajectory, trains with tools/villin.yaml and
replaces src/undula/data/bundled/villin/model. Frames after 247.5 ps are never read.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from undula.cli.main import main
from undula.data.bundled import folder, villin

ROOT = Path(__file__).parents[1]
FILES = ("model.safetensors", "trivial.safetensors")


def run() -> int:
    """Prepare, train, and copy the weights into the package."""
    topology, trajectory, model = villin()
    data, out = ROOT / "runs" / "villin", ROOT / "runs" / "villin-model"
    code = main(["prepare", str(topology), str(trajectory), "-o", str(data)])
    code = code or main(
        ["train", str(ROOT / "tools" / "villin.yaml"), f"--data=[{data}]", f"--out={out}"]
    )
    if code == 0:
        model.mkdir(exist_ok=True)
        for name in FILES:
            shutil.copyfile(out / name, model / name)
        print(f"copied the weights to {folder() / 'model'}")
    return code


if __name__ == "__main__":
    sys.exit(run())
