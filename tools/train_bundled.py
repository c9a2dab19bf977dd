"""Train the bundled weights again: the first half of the bundled simulation of villin.

Repeatable: `make weights` prepares the bundled trajectory, trains with tools/villin.yaml, replaces
the weights in src/undula/data/bundled/villin/model, scores them on the second half, which training
never read, and writes the model card.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from undula.cli.main import main
from undula.data.bundled import VILLIN_HALF_PS, villin
from undula.surface.trained import TRIVIAL, WEIGHTS, TrainedSurface

ROOT = Path(__file__).parents[1]

CARD = """# Model card: villin

{parameters:,} parameters, trained for {steps} steps on {frames} frames (up to {until:g} ps) of the
bundled simulation of villin headpiece (1VII) by `make weights`; nothing later was read, and nothing
was chosen on later frames.

**Use**: to try undula. It knows this one protein, in this force field at 300 K, and is
deterministic: it forecasts the typical shape, not a sample, and no uncertainty.

**Scores** on every second frame of the second half, which it never saw, from the first frame alone.
*Averaged training frames* has seen the same frames as the model; the other trivial rows see the
first frame only.

{scores}
One protein, one run: too few to judge the method by. Weights: Apache-2.0. Simulation: CC0-1.0.
"""


def run() -> int:
    """Prepare, train, copy the weights into the package, score them, write the card."""
    topology, trajectory, model = villin()
    runs = ROOT / "runs"
    data, out = runs / "villin", runs / "villin-model"
    train = ["train", str(ROOT / "tools" / "villin.yaml"), f"--data=[{data}]", f"--out={out}"]
    for words in (["prepare", str(topology), str(trajectory), "-o", str(data)], train):
        code = main(words)
        if code:
            return code
    model.mkdir(exist_ok=True)
    for name in (WEIGHTS, TRIVIAL):
        shutil.copyfile(out / name, model / name)
    code = main(["demo", "-o", str(runs / "villin-demo")])
    trained = TrainedSurface.load(model)
    card = CARD.format(
        parameters=sum(p.numel() for p in trained.model.parameters()),
        steps=trained.provenance["steps"],
        frames=trained.provenance["training_frames"],
        until=VILLIN_HALF_PS,
        scores=(runs / "villin-demo" / "scores.md").read_text(encoding="utf-8"),
    )
    (model / "card.md").write_text(card, encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(run())
