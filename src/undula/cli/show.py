"""``undula show``: the page of a forecast."""

from __future__ import annotations

import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import Namespace

from undula.cli.options import flush_denormals, parse, parser
from undula.errors import Notice, UsageError, printable
from undula.locks import claimed


def run(words: Sequence[str]) -> int:
    """Write the page of a forecast, with the truth beside it if there is one, and name it."""
    p = parser("show", "Write the page of a forecast: one HTML file that needs no network.")
    p.add_argument("result", help="result folder of undula forecast")
    p.add_argument("--truth", help="a trajectory to show beside the forecast")
    p.add_argument(
        "--topology", help="structure file of the truth, if its atoms are not the forecast's"
    )
    p.add_argument(
        "--surface",
        action="store_true",
        help="show forecast atoms as a moving surface, and score it if there is a truth",
    )
    p.add_argument(
        "--spacing",
        type=float,
        help="of the meshes, Å (default: the forecast's; 0.5 for atoms as a surface)",
    )
    p.add_argument(
        "-o", "--out", help="the page (default: RESULT/index.html, RESULT/surface.html of atoms)"
    )
    p.add_argument("--open", action="store_true", help="open it in the browser")
    options = parse(p, words)

    from undula.motion.forecast import holds_atoms
    from undula.viz.atoms_as_surface import SURFACE_PAGE

    flush_denormals()
    result = Path(options.result)
    atoms = holds_atoms(result)
    page = SURFACE_PAGE if atoms and options.surface else "index.html"
    path = Path(options.out) if options.out else result / page
    with claimed(path.parent, within=False):
        if atoms:
            _atoms(options, path)
        else:
            _surface(options, path)
    print(path)
    if options.open:
        webbrowser.open(path.resolve().as_uri())
    return 0


def _surface(options: Namespace, path: Path) -> None:
    """Write the page of a moving surface."""
    from undula.io.trajectories import load_trajectory
    from undula.surface.evaluation import true_meshes
    from undula.surface.forecast import MovingSurface
    from undula.viz.export import page
    from undula.viz.page import write_page

    if options.surface:
        raise UsageError("--surface is for forecasts of atoms; this one is a surface already")
    moving = MovingSurface.load(Path(options.result))
    spacing = options.spacing or moving.spacing
    times_ps, truth = moving.times_ps, None
    notices: tuple[Notice, ...] = ()
    if options.truth:
        trajectory = load_trajectory(options.topology or moving.structure, Path(options.truth))
        times_ps, truth, notices = true_meshes(moving, trajectory, spacing)
    meshes = [moving.mesh(time, spacing=spacing) for time in times_ps]
    write_page(path, page(moving, times_ps, meshes, truth, list(notices), spacing=spacing))


def _atoms(options: Namespace, path: Path) -> None:
    """Write the page of moving atoms, or of the surface around them."""
    from undula.io.trajectories import load_trajectory
    from undula.motion.forecast import MovingAtoms
    from undula.motion.forecast_scores import true_positions
    from undula.viz.atoms_as_surface import SurfaceConfig, write_surface
    from undula.viz.atoms_export import atoms_page
    from undula.viz.atoms_page import write_atoms_page

    if options.spacing is not None and not options.surface:
        raise UsageError("--spacing is for surfaces; add --surface, or leave it out")
    moving, truth = MovingAtoms.load(Path(options.result)), None
    notices: tuple[Notice, ...] = ()
    if options.truth:
        trajectory = load_trajectory(
            options.topology or moving.system.structure, Path(options.truth)
        )
        rows, truth, notices = true_positions(moving, trajectory)
        moving = moving.at(rows)
    if options.surface:
        spacing = {} if options.spacing is None else {"spacing": options.spacing}
        config = SurfaceConfig(**spacing)
        table = write_surface(moving, path, config, truth=truth)
        if table is not None:
            print(table.terminal())
    else:
        page, left_out = atoms_page(moving, truth)
        notices = (*notices, *left_out)
        write_atoms_page(path, page)
    for notice in notices:
        print(f"notice: {printable(str(notice))}", file=sys.stderr)
