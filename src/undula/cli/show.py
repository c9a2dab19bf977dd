"""``undula show``: the page of a forecast."""

from __future__ import annotations

import webbrowser
from collections.abc import Sequence
from pathlib import Path

from undula.cli.options import flush_denormals, parse, parser
from undula.errors import Notice


def run(words: Sequence[str]) -> int:
    """Write the page of a forecast, with the truth beside it if there is one, and name it."""
    p = parser("show", "Write the page of a forecast: one HTML file that needs no network.")
    p.add_argument("result", help="result folder of undula forecast")
    p.add_argument("--truth", help="a trajectory to show beside the forecast")
    p.add_argument(
        "--topology", help="structure file of the truth, if its atoms are not the forecast's"
    )
    p.add_argument("--spacing", type=float, help="of the meshes, Å (default: the forecast's)")
    p.add_argument("-o", "--out", help="the page (default: RESULT/index.html)")
    p.add_argument("--open", action="store_true", help="open it in the browser")
    options = parse(p, words)

    from undula.io.trajectories import load_trajectory
    from undula.surface.evaluation import true_meshes
    from undula.surface.forecast import MovingSurface
    from undula.viz.export import page
    from undula.viz.page import write_page

    flush_denormals()
    moving = MovingSurface.load(Path(options.result))
    spacing = options.spacing or moving.spacing
    times_ps, truth = moving.times_ps, None
    notices: tuple[Notice, ...] = ()
    if options.truth:
        trajectory = load_trajectory(options.topology or moving.structure, Path(options.truth))
        times_ps, truth, notices = true_meshes(moving, trajectory, spacing)
    meshes = [moving.mesh(time, spacing=spacing) for time in times_ps]
    path = Path(options.out) if options.out else Path(options.result) / "index.html"
    write_page(path, page(moving, times_ps, meshes, truth, list(notices), spacing=spacing))
    print(path)
    if options.open:
        webbrowser.open(path.resolve().as_uri())
    return 0
