"""``undula evaluate``: a forecast against what really happened, beside the trivial forecasts."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from undula.cli.options import flush_denormals, parse, parser


def run(words: Sequence[str]) -> int:
    """Score a forecast; write table, plots and a page that shows truth beside forecast."""
    p = parser("evaluate", "Score a forecast against a trajectory, beside the trivial forecasts.")
    p.add_argument("result", help="result folder of undula forecast")
    p.add_argument("--truth", required=True, help="the trajectory that starts at the structure")
    p.add_argument(
        "--topology", help="structure file of the truth, if its atoms are not the forecast's"
    )
    p.add_argument("--samples", type=int, default=20_000, help="per mesh, for the distances")
    p.add_argument("--spacing", type=float, default=1.0, help="of the lattice for IoU, Å")
    p.add_argument("--seed", type=int, default=0, help="of the samples")
    p.add_argument("--json", action="store_true", help="print JSON instead of the table")
    options = parse(p, words)

    from undula.io.trajectories import load_trajectory
    from undula.surface.evaluation import EvaluationConfig, evaluate
    from undula.surface.forecast import MovingSurface
    from undula.viz.export import write_evaluation

    flush_denormals()
    moving = MovingSurface.load(Path(options.result))
    truth = load_trajectory(options.topology or moving.structure, Path(options.truth))
    config = EvaluationConfig(samples=options.samples, spacing=options.spacing, seed=options.seed)
    evaluation = evaluate(moving, truth, config)
    table = write_evaluation(moving, evaluation, Path(options.result))
    for notice in evaluation.notices:
        print(f"notice: {notice}", file=sys.stderr)
    print(json.dumps(table.as_dict(), indent=1) if options.json else table.terminal())
    return 0
