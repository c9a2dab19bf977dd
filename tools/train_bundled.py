"""Train the bundled weights again, score them on what they never saw, and write their cards.

    python tools/train_bundled.py [villin] [any] [--leave-one-out]

``villin``: a model of one protein, trained on the first half of its bundled simulation
(tools/villin.yaml). ``any``: a MoE-DSR model for any protein, trained on all of ensembles/ but the
`TEST` proteins (tools/mixture.yaml). ``--leave-one-out`` also trains ``any`` once without each
training protein and scores it on that one, which takes about two minutes a protein.
"""

from __future__ import annotations

import shutil
import statistics
import sys
from pathlib import Path

import torch

from undula.cli.main import main
from undula.data.bundled import VILLIN_HALF_PS, folder, villin
from undula.io.structures import load_structure
from undula.io.trajectories import load_trajectory
from undula.surface.evaluation import EvaluationConfig, evaluate
from undula.surface.forecast import forecast
from undula.surface.forecasters import OTHERS
from undula.surface.trained import TRIVIAL, WEIGHTS, TrainedSurface
from undula.surface.trained_mixture import TrainedMixture
from undula.viz.export import surface_table

ROOT = Path(__file__).parents[1]
RUNS, ENSEMBLES = ROOT / "runs", ROOT / "ensembles"
TEST = ("1vii_A", "1yzm_A", "5dma_A", "5z2s_A")
"""Proteins that neither training nor the choice of the model's form has read."""
FRAMES = 10
"""Frames of each replica that are scored, evenly spaced."""

VILLIN_CARD = """# Model card: villin

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

ANY_CARD = """# Model card: any

MoE-DSR for any protein: {parameters:,} parameters, trained for {steps} steps on {frames} frames of
{proteins} small proteins of `ensembles/` by `make weights`, at lags up to {horizon:g} ps.

**Use**: how a protein of 20 to 100 residues trembles in its first few hundred picoseconds, from its
first frame alone. Everything slower, larger or bound to a partner is beyond what it has seen.
Samples are drawn by its own account of uncertainty.

**Scores** on whole proteins that it never saw, {frames_scored} frames of each replica, IoU (mean
over frames), forecast from the first frame alone:

{test}
{leave_one_out}
The gain over the blurred first frame is small and there are few proteins: too few to judge.
{choice}

Weights: Apache-2.0. Ensembles: CC0-1.0.
"""

CHOICE = (
    "The form of the model was chosen by leaving out one protein at a time (tools/mixture.yaml);\n"
    "villin was also looked at while the very first drafts of its features were tried."
)


def train_villin() -> None:
    """Prepare, train, copy the weights into the package, score them, write the card."""
    topology, trajectory, model = villin()
    data, out = RUNS / "villin", RUNS / "villin-model"
    run(["prepare", str(topology), str(trajectory), "-o", str(data)])
    run(["train", str(ROOT / "tools" / "villin.yaml"), f"--data=[{data}]", f"--out={out}"])
    model.mkdir(exist_ok=True)
    for name in (WEIGHTS, TRIVIAL):
        shutil.copyfile(out / name, model / name)
    trained = TrainedSurface.load(model)
    truth = load_trajectory(load_structure(topology), trajectory)
    times = (truth.times_ps - truth.times_ps[0]).tolist()
    later = [time for time in times if time > VILLIN_HALF_PS][::2]
    moving = forecast(truth.frame(0), later, trained)
    found = evaluate(moving, truth, EvaluationConfig(spacing=1.0))
    card = VILLIN_CARD.format(
        parameters=sum(p.numel() for p in trained.model.parameters()),
        steps=trained.provenance["steps"],
        frames=trained.provenance["training_frames"],
        until=VILLIN_HALF_PS,
        scores=surface_table(moving, found).markdown(),
    )
    (model / "card.md").write_text(card, encoding="utf-8")


def train_any(*, leave_one_out: bool) -> None:
    """Train on all proteins but the test proteins; score those; write weights and card."""
    names = sorted(path.stem for path in ENSEMBLES.glob("*.pdb"))
    for name in names:
        replicas = [str(path) for path in sorted(ENSEMBLES.glob(f"{name}_R*.xtc"))]
        run(["prepare", str(ENSEMBLES / f"{name}.pdb"), *replicas, "-o", str(RUNS / "data" / name)])
    training = [name for name in names if name not in TEST]
    trained = trained_on(training, RUNS / "any")
    model = folder("any") / "model"
    model.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(RUNS / "any" / WEIGHTS, model / WEIGHTS)
    left_out = ""
    if leave_one_out:
        rows = []
        for name in training:
            others = [other for other in training if other != name]
            rows += scores(trained_on(others, RUNS / f"any-without-{name}"), name)
        left_out = (
            "The same form trained once without each training protein and scored on that one. The\n"
            "form was chosen on six of these proteins, so this is validation, not test:\n\n"
            + table(rows)
        )
    card = ANY_CARD.format(
        parameters=sum(p.numel() for p in trained.model.parameters()),
        steps=trained.provenance["steps"],
        frames=trained.provenance["training_frames"],
        proteins=trained.provenance["proteins"],
        horizon=trained.horizon_ps,
        frames_scored=FRAMES,
        test=table([row for name in TEST if name in names for row in scores(trained, name)]),
        leave_one_out=left_out,
        choice=CHOICE,
    )
    (model / "card.md").write_text(card, encoding="utf-8")


def trained_on(names: list[str], out: Path) -> TrainedMixture:
    """Train a mixture on some proteins."""
    data = ",".join(str(RUNS / "data" / name) for name in names)
    run(["train", str(ROOT / "tools" / "mixture.yaml"), f"--data=[{data}]", f"--out={out}"])
    return TrainedMixture.load(out)


def scores(trained: TrainedMixture, name: str) -> list[tuple[str, dict[str, dict[str, float]]]]:
    """Score a model on each replica of a protein, from the first frame of the replica."""
    found = []
    structure = load_structure(ENSEMBLES / f"{name}.pdb")
    for path in sorted(ENSEMBLES.glob(f"{name}_R*.xtc")):
        truth = load_trajectory(structure, path)
        times = truth.times_ps - truth.times_ps[0]
        chosen = torch.linspace(1, len(times) - 1, FRAMES).round().long()
        moving = forecast(truth.frame(0), times[chosen].tolist(), trained)
        evaluation = evaluate(moving, truth, EvaluationConfig(spacing=1.0))
        found.append((path.stem, means(evaluation.scores)))
        print(path.stem, {row: values["iou"] for row, values in found[-1][1].items()}, flush=True)
    return found


def means(found: object) -> dict[str, dict[str, float]]:
    """Return the mean over frames of two measures of each row."""
    assert isinstance(found, dict)
    return {
        row: {key: statistics.fmean(values[key]) for key in ("iou", "chamfer_angstrom")}
        for row, values in found.items()
    }


def table(rows: list[tuple[str, dict[str, dict[str, float]]]]) -> str:
    """Return IoU and Chamfer distance (Å) of model and trivial rows as Markdown, with means."""
    names = list(rows[0][1])
    heads = [f"{name} (oracle)" if name == OTHERS else name for name in names]
    lines = [
        "| protein | " + " | ".join(f"{head}, IoU / Å" for head in heads) + " |",
        "| --- |" + " --- |" * len(names),
    ]
    for name, found in rows:
        cells = [f"{found[row]['iou']:.3f} / {found[row]['chamfer_angstrom']:.2f}" for row in names]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    if len(rows) > 1:
        cells = [
            " / ".join(
                f"{statistics.fmean(found[row][key] for _, found in rows):.{digits}f}"
                for key, digits in (("iou", 3), ("chamfer_angstrom", 2))
            )
            for row in names
        ]
        lines.append(f"| mean of {len(rows)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def run(words: list[str]) -> None:
    """Run one command of undula and stop if it fails."""
    code = main(words)
    if code:
        raise SystemExit(code)


if __name__ == "__main__":
    wanted = [word for word in sys.argv[1:] if not word.startswith("-")] or ["villin", "any"]
    if "villin" in wanted:
        train_villin()
    if "any" in wanted:
        train_any(leave_one_out="--leave-one-out" in sys.argv)
