"""``undula forecast``: a structure to its moving surface, or a window to its moving atoms."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from undula import units
from undula.cli.options import (
    MEMORY_LIMIT,
    STRICT,
    STRUCTURE_OPTIONS,
    flush_denormals,
    instead,
    parse,
    parser,
    seed,
    tell_estimate,
)
from undula.data.bundled import models, motion_models
from undula.errors import InputError, Notice, UsageError
from undula.estimates import asked_bytes, memory_limit, with_less
from undula.locks import claimed
from undula.notices import refuse, tell

FORMATS = ("html", "ply")
ATOM_FORMATS = ("html", "xtc", "pdb")
SAMPLES = 32
"""Drawn by default where the model can: enough for a 90 % interval, and cheap."""
LARGEST_SAMPLES = 1_000_000
ATOM_SAMPLES = 8
"""Whole futures drawn by default where the model can: each is a file."""
_OF_SURFACES: dict[str, Any] = {"spacing": 1.0, "level": 0.0}
_OF_ATOMS: dict[str, Any] = {"last": None, "wrap": False, "surface": False}


def run(words: Sequence[str]) -> int:
    """Forecast the moving surface of a structure, or the atoms after a window, and export it."""
    p = _parser()
    options = parse(p, words)
    asked_bytes(options.memory_limit)
    atoms = options.window is not None
    _check_kind(options, atoms=atoms)
    known = ATOM_FORMATS if atoms else FORMATS
    text = options.formats if options.formats is not None else ("html,xtc" if atoms else "html")
    formats = [name for name in text.split(",") if name]
    unknown = [name for name in formats if name not in known]
    if unknown:
        raise UsageError(f"there is no format {unknown[0]}; there are {', '.join(known)}")
    times_ps = units.times(options.time)
    if options.samples == 1:
        raise UsageError("one sample has no spread; draw at least 2, or 0 for the mean alone")
    if options.samples is not None and not 0 <= options.samples <= LARGEST_SAMPLES:
        raise UsageError(f"samples should be from 0 to {LARGEST_SAMPLES:,}, not {options.samples}")
    flush_denormals()
    with claimed(Path(options.out)):
        if atoms:
            return _forecast_atoms(options, formats, times_ps)
        return _forecast_surface(options, formats, times_ps)


def _parser() -> ArgumentParser:
    p = parser(
        "forecast",
        "Forecast the moving surface of a structure or, with --window, every atom after the last "
        "observed frame, with a trained model.",
    )
    p.add_argument("structure", help="PDB, mmCIF or GRO file; may be gzipped")
    p.add_argument(
        "--window", help="trajectory of these atoms whose end is observed: forecast atoms"
    )
    p.add_argument(
        "--last",
        type=int,
        help="observe so many frames of the window, not all that the model takes",
    )
    p.add_argument(
        "--model",
        help="run folder of undula train or evaluate, of any kind, or a bundled model: for "
        f"surfaces {', '.join(models())} (default: any), for atoms {', '.join(motion_models())} "
        "(default: the one that knows them)",
    )
    p.add_argument(
        "--time",
        required=True,
        help="START:STOP:STEP or t1,t2,… since the structure or the last observed frame, for "
        "instance 0:100ns:2ns (bare: ps)",
    )
    p.add_argument("-o", "--out", required=True, help="the result folder")
    p.add_argument(
        "--samples",
        type=int,
        help="to draw beside the typical surface or the mean: their spread is the forecast's own "
        f"uncertainty (default: {SAMPLES} of a surface model that can, 0 of one that cannot; "
        f"{ATOM_SAMPLES} futures of atoms, 0 where the model has no distribution)",
    )
    p.add_argument("--seed", type=seed, default=0, help="of the samples (default: 0)")
    p.add_argument("--spacing", type=float, default=1.0, help="of the meshes, Å (default: 1)")
    p.add_argument("--level", type=float, default=0.0, help="of the level set, Å (default: 0)")
    p.add_argument(
        "--surface",
        action="store_true",
        help="show the atoms of a molecule as a moving surface, too: surface.html",
    )
    p.add_argument(
        "--wrap",
        action="store_true",
        help="write molecules within the box; by default they go on through its walls",
    )
    p.add_argument(
        "--formats",
        help="for surfaces html, ply or both (default: html), for atoms some of html,xtc,pdb "
        "(default: html,xtc)",
    )
    p.add_argument("--memory-limit", **MEMORY_LIMIT)
    p.add_argument("--strict", **STRICT)
    for flag, options in STRUCTURE_OPTIONS.items():
        kept = {"default": None, "help": f"{options['help']}; with --window: keep"}
        all_atoms = flag in ("--hydrogens", "--heterogens")
        p.add_argument(flag, **(options | kept if all_atoms else options))
    return p


def _check_kind(options: Namespace, *, atoms: bool) -> None:
    """Raise where an option of the other kind of forecast was given."""
    for name, default in (_OF_SURFACES if atoms else _OF_ATOMS).items():
        if getattr(options, name) != default:
            without = "surfaces; leave out --window" if atoms else "atoms; add --window TRAJECTORY"
            raise UsageError(f"--{name} is for forecasts of {without}, or leave --{name} out")


def _forecast_surface(options: Namespace, formats: list[str], times_ps: list[float]) -> int:
    from undula.io.structures import load_structure
    from undula.surface.forecast import MovingSurface, beyond_training, forecast
    from undula.surface.trained_mixture import load_trained
    from undula.viz.export import export

    structure = load_structure(
        Path(options.structure),
        chain=options.chain,
        altloc=options.altloc,
        hydrogens=options.hydrogens or "drop",
        heterogens=options.heterogens or "drop",
        length_unit=options.length_unit,
    )
    refuse(structure.notices, strict=options.strict)
    trained = load_trained(_model(options.model or "any", models()))
    refuse(beyond_training(trained, times_ps), strict=options.strict)
    samples = options.samples
    if samples is None:
        samples = SAMPLES if trained.distributional else 0
    moving = forecast(
        structure,
        times_ps,
        trained,
        spacing=options.spacing,
        samples=samples,
        seed=options.seed,
        memory_limit=options.memory_limit,
    )
    tell_estimate(moving.expected)

    def exported(which: MovingSurface) -> list[Notice]:
        return export(
            which, Path(options.out), formats=formats, level=options.level, strict=options.strict
        )

    notices = with_less(
        lambda: exported(moving), lambda: exported(moving.smaller()), moving.what_fits
    )
    tell([*moving.notices, *notices])
    drawn = f", {samples} samples" if samples else ""
    print(f"{options.out}: {structure.name} at {len(times_ps)} times{drawn}")
    return 0


def _forecast_atoms(options: Namespace, formats: list[str], times_ps: list[float]) -> int:
    from undula.io.kinds import molecular_system
    from undula.io.structures import load_structure
    from undula.motion.catalog import load_forecaster
    from undula.motion.estimates import estimate, fitted
    from undula.motion.forecast import (
        bundled_for,
        check_system,
        checked_samples,
        forecast_atoms,
        noticed,
        sized,
    )
    from undula.motion.observed import load_window
    from undula.viz.atoms_as_surface import (
        SURFACE_PAGE,
        SurfaceConfig,
        check_outside,
        write_surface,
    )
    from undula.viz.atoms_export import export_atoms

    structure = load_structure(
        Path(options.structure),
        select="all",
        chain=options.chain,
        altloc=options.altloc,
        hydrogens=options.hydrogens or "keep",
        heterogens=options.heterogens or "keep",
        length_unit=options.length_unit,
    )
    refuse(structure.notices, strict=options.strict)
    system = molecular_system(structure)
    named = options.model
    trained = (
        bundled_for(system) if named is None else load_forecaster(_model(named, motion_models()))
    )
    check_system(system, trained)
    demands = trained.demands
    samples = options.samples
    if samples is None and demands.samples:
        samples = ATOM_SAMPLES
    samples = checked_samples(samples, trained)
    window = load_window(
        structure,
        Path(options.window),
        frame_ps=demands.frame_ps,
        last=demands.observed if options.last is None else options.last,
        memory_limit=asked_bytes(options.memory_limit),
    )
    refuse(noticed(window, trained), strict=options.strict)
    if options.surface:
        check_outside(window.system, boxed=window.box is not None)
    size = sized(window.last(demands.observed), trained, times_ps, samples)
    limit = memory_limit(asked_bytes(options.memory_limit))
    tell_estimate(estimate(fitted(size, limit, structure.name)))
    moving = forecast_atoms(
        window,
        times_ps,
        trained,
        samples=samples,
        seed=options.seed,
        memory_limit=options.memory_limit,
    )
    notices = export_atoms(
        moving, Path(options.out), formats=formats, wrap=options.wrap, strict=options.strict
    )
    if options.surface:
        write_surface(moving, Path(options.out) / SURFACE_PAGE, SurfaceConfig())
    tell([*moving.notices, *notices])
    drawn = f", {samples} samples" if samples else ""
    print(
        f"{options.out}: {len(structure)} atoms of {structure.name} at {len(times_ps)} times after "
        f"{window.now_ps:g} ps{drawn}"
    )
    if moving.expected.spread is None:
        print(f"{trained.name} forecasts the mean alone: no spread and no samples")
    return 0


def _model(name: str, bundled: dict[str, Path]) -> Path:
    """Return the folder of a model; a run folder named like a bundled model is ``./name``."""
    if name in bundled:
        return bundled[name]
    if not Path(name).is_dir():
        raise InputError(
            f"{name} is neither a run folder nor a bundled model{instead(name, bundled)}"
        )
    return Path(name)
