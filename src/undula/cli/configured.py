"""Training configurations and study protocols from presets, YAML files and overrides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser

from undula.cli.options import made, parse_values, parser
from undula.errors import InputError, UsageError

if TYPE_CHECKING:
    from undula.motion.studies.protocol import MotionProtocol, MotionRow, Opened
    from undula.motion.studies.runs import MotionFitting, MotionTraining
    from undula.surface.studies.protocol import Protocol, StudyRow
    from undula.surface.studies.runs import Training


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file of keys and values.

    Raises:
        UsageError: There is no such file.
        InputError: It is no readable YAML, or holds something else.
    """
    import yaml

    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(f"there is no configuration file {path}") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path} is not readable YAML: {' '.join(str(error).split())}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} should hold keys and values")
    return value


def bundled_or_file(kind: str, name: str) -> Path:
    """Return the file of a built-in name, or the path that is given in its place.

    Args:
        kind: The folder under ``presets``: "protocols" or "spaces".
        name: A built-in name, or a path.

    Raises:
        UsageError: It is neither.
    """
    folder = Path(str(resources.files("undula"))) / "presets" / kind
    path = folder / f"{name}.yaml"
    if path.is_file():
        return path
    if Path(name).is_file():
        return Path(name)
    known = ", ".join(sorted(one.stem for one in folder.glob("*.yaml")))
    raise UsageError(f"there is no file {name}, and the built-in {kind} are {known}")


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested keys and values with those of ``over`` in place of those of ``base``."""
    found = dict(base)
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(found.get(key), Mapping):
            found[key] = merged(found[key], value)
        else:
            found[key] = value
    return found


def read_protocol(name: str) -> Protocol:
    """Read a study protocol: a built-in name, or the path of a YAML file.

    Raises:
        UsageError: There is none, or a key or value in it cannot be meant.
        InputError: The file is not readable.
    """
    from undula.surface.studies.protocol import Protocol

    path = bundled_or_file("protocols", name)
    p = parser("evaluate --protocol", "A study.")
    p.add_class_arguments(Protocol, as_group=False)
    return made(Protocol, p, parse_values(p, read_yaml(path), str(path)), str(path))


def read_motion_protocol(name: str) -> MotionProtocol:
    """Read a study protocol of moving atoms; raises what `read_protocol` does."""
    from undula.motion.studies.protocol import MotionProtocol

    path = bundled_or_file("protocols", name)
    p = parser("evaluate --protocol", "A study of moving atoms.")
    p.add_class_arguments(MotionProtocol, as_group=False)
    return made(MotionProtocol, p, parse_values(p, read_yaml(path), str(path)), str(path))


def protocol_kind(name: str) -> str:
    """Return what a protocol is about: "surface" or "motion".

    Raises:
        UsageError: There is no such protocol.
        InputError: The file is not readable.
    """
    return str(read_yaml(bundled_or_file("protocols", name)).get("kind", "surface"))


def training(
    preset: str,
    changes: Mapping[str, Any],
    *,
    place: str,
    seed: int,
    steps: int | None,
    validation: int | tuple[str, ...],
) -> Training:
    """Resolve a preset and what differs from it to a training of a model for any protein.

    Args:
        preset: Its name.
        changes: Nested keys of `undula.config.TrainConfig` with their values.
        place: Where the changes stand, for messages.
        seed: Of the training.
        steps: In place of those of the configuration, if given.
        validation: In place of ``mixture.batch.validation``.

    Raises:
        UsageError: There is no such preset or key, or the preset serves its training proteins
            alone.
    """
    from undula.config import TrainConfig, preset_file
    from undula.surface.studies.runs import Training

    p: ArgumentParser = parser(place, "A training.")
    p.add_class_arguments(TrainConfig, as_group=False)
    values = merged(read_yaml(preset_file(preset)), changes) | {"data": ["-"], "out": "-"}
    config = made(TrainConfig, p, parse_values(p, values, place), place)
    asked = config.mixture
    if asked is None:
        raise UsageError(f"{place}: the preset {preset} serves its training proteins alone")
    fit = replace(config.fit, seed=seed, **({} if steps is None else _shortened(config.fit, steps)))
    return Training(
        model=asked.model,
        loss=asked.loss,
        batch=replace(asked.batch, validation=validation),
        fit=fit,
        start_from=None if asked.start_from is None else Path(asked.start_from),
    )


def row_training(
    row: StudyRow,
    seed: int,
    steps: int | None,
    validation: int | tuple[str, ...],
    *,
    until_plateau: bool = False,
) -> Training:
    """Resolve a row of a protocol (`training`), perhaps until it no longer gets better."""
    found = training(
        row.preset,
        row.set,
        place=f"row {row.name}",
        seed=seed,
        steps=steps,
        validation=validation,
    )
    return found.until_plateau() if until_plateau else found


def motion_contender(
    row: MotionRow, system: Opened, seed: int, steps: int | None, *, until_plateau: bool = False
) -> MotionTraining | MotionFitting:
    """Resolve a row of a protocol of moving atoms on a system, trained or not.

    Args:
        row: What it changes in the preset of the system, or of its kind and the system.
        system: Its preset, and what it changes itself.
        seed: Of a training.
        steps: In place of those of the configuration, if given.
        until_plateau: Whether trainings go on until they no longer get better.

    Raises:
        UsageError: See `motion_training`.
    """
    from undula.motion.catalog import FITTED_KINDS
    from undula.motion.studies.runs import MotionFitting

    kind = FITTED_KINDS.get(row.model)
    if kind is None:
        training = motion_training(row, system, seed, steps)
        return training.until_plateau() if until_plateau else training
    place = f"row {row.name} on {system.name}"
    p: ArgumentParser = parser(place, "A forecaster that is fitted in each window.")
    p.add_class_arguments(kind.settings, as_group=False)
    values = merged(read_yaml(_row_preset(row, system)), row.set)
    settings: Any = made(kind.settings, p, parse_values(p, values, place), place)
    return MotionFitting(kind=kind, settings=settings)


def _row_preset(row: MotionRow, system: Opened) -> Path:
    """Return the file that a row starts from on a system.

    Raises:
        UsageError: There is none.
    """
    usual = system.asked.preset
    name = row.preset or (usual if row.model == "domino" else f"{row.model}/{usual}")
    path = Path(str(resources.files("undula"))) / "presets" / f"{name}.yaml"
    if not path.is_file():
        raise UsageError(f"row {row.name} on {system.name}: there is no preset {name}")
    return path


def motion_training(row: MotionRow, system: Opened, seed: int, steps: int | None) -> MotionTraining:
    """Resolve a row of a protocol of moving atoms that is trained.

    Args:
        row: What it changes in the system's preset.
        system: Its preset, and what it changes itself.
        seed: Of the training.
        steps: In place of those of the configuration, if given.

    Raises:
        UsageError: There is no such preset or key; the preset is of another kind of model; it
            sees more frames than the system has, or does not reach its horizon.
    """
    from undula.config import TrainConfig
    from undula.motion.studies.runs import MotionTraining

    place, asked = f"row {row.name} on {system.name}", system.asked
    p: ArgumentParser = parser(place, "A training.")
    p.add_class_arguments(TrainConfig, as_group=False)
    base = read_yaml(_row_preset(row, system))
    changed = asked.set if row.model == "domino" else {}
    values = merged(merged(base, changed), row.set) | {"data": ["-"], "out": "-"}
    config = made(TrainConfig, p, parse_values(p, values, place), place)
    if config.of_atoms is None or config.of_atoms[0].name != row.model:
        raise UsageError(f"{place}: the preset {config.preset} is none of {row.model}")
    kind, settings = config.of_atoms
    if settings.batch.observed > asked.window:
        raise UsageError(
            f"{place}: batch.observed is {settings.batch.observed}, the system's window "
            f"{asked.window}"
        )
    if settings.horizon < asked.horizon:
        raise UsageError(
            f"{place}: the horizon is {settings.horizon}, the system's {asked.horizon}"
        )
    shorter = {} if steps is None else _shortened(config.fit, steps)
    return MotionTraining(
        kind=kind, settings=settings, fit=replace(config.fit, seed=seed, **shorter)
    )


def _shortened(fit: Any, steps: int) -> dict[str, Any]:
    """Return the steps, with a warm-up that fits in them."""
    return {"steps": steps, "warmup_steps": min(fit.warmup_steps, steps // 4)}
