"""``undula demo``: the whole path on a bundled real protein, without network."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from undula.cli.options import flush_denormals, parse, parser

FRAMES, SAMPLES = 17, 16


def run(words: Sequence[str]) -> int:
    """Forecast villin from its first frame by a model that never saw it, score it, show it."""
    p = parser(
        "demo",
        "Forecast a bundled simulation of villin from its first frame alone, by a model that was "
        "trained on other proteins; score it beside the trivial forecasts, and write a page.",
    )
    p.add_argument("-o", "--out", default="undula-demo", help="default: undula-demo")
    options = parse(p, words)
    start = time.monotonic()

    from undula.data.bundled import models, villin
    from undula.data.prepare import aligned
    from undula.io.structures import load_structure
    from undula.io.trajectories import load_trajectory
    from undula.surface.evaluation import EvaluationConfig, evaluate
    from undula.surface.forecast import forecast
    from undula.surface.trained_mixture import load_trained
    from undula.viz.export import export, write_evaluation

    flush_denormals()
    topology, trajectory, _ = villin()
    out = Path(options.out)
    print("reading villin (1VII, 36 residues) and its simulation of 500 ps", file=sys.stderr)
    truth = aligned(load_trajectory(load_structure(topology), trajectory))
    step = (len(truth) - 1) // FRAMES
    later = truth.times_ps[step::step].tolist()
    print(
        f"forecasting {len(later)} frames from the first one alone, with weights that were trained "
        "on other proteins",
        file=sys.stderr,
    )
    trained = load_trained(models()["any"])
    moving = forecast(truth.frame(0), later, trained, samples=SAMPLES)
    export(moving, out, formats=())
    print("scoring beside the trivial forecasts", file=sys.stderr)
    evaluation = evaluate(moving, truth, EvaluationConfig(spacing=1.0, samples=10_000))
    table = write_evaluation(moving, evaluation, out)
    print(table.terminal())
    print(
        f"\nopen {out / 'index.html'} (also strip.png, score.png, calibration.png, scores.md); "
        f"{time.monotonic() - start:.0f} s"
    )
    return 0
