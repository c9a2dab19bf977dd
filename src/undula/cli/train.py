"""``undula train``: data sets to a run folder with weights."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from undula.cli.configured import read_yaml
from undula.cli.options import STRICT, made, parse, parser
from undula.notices import refuse

if TYPE_CHECKING:
    from undula.config import TrainConfig
    from undula.motion.catalog import Kind


def run(words: Sequence[str]) -> int:
    """Train a model from a YAML file and flags; a run that was stopped goes on."""
    config, strict = read_training(words)

    if config.of_atoms is not None:
        return _train_atoms(config, *config.of_atoms, strict=strict)
    from undula.io.datasets import open_dataset
    from undula.learn.progress import progress_on
    from undula.surface.training import train, train_mixture

    datasets = [open_dataset(Path(folder), verify=True) for folder in config.data]
    refuse([notice for dataset in datasets for notice in dataset.notices], strict=strict)
    common: dict[str, Any] = {"fit_config": config.fit, "progress": progress_on(sys.stderr)}
    out = Path(config.out)
    if config.mixture is not None:
        asked = config.mixture
        provenance = train_mixture(
            datasets,
            out,
            model=asked.model,
            loss=asked.loss,
            batch=asked.batch,
            start_from=None if asked.start_from is None else Path(asked.start_from),
            **common,
        ).provenance
    else:
        assert config.protein is not None
        kept = config.protein
        provenance = train(
            datasets, out, model=kept.model, loss=kept.loss, batch=kept.batch, **common
        ).provenance
    print(f"{config.out}: trained on {provenance['training_frames']} frames")
    return 0


def read_training(words: Sequence[str]) -> tuple[TrainConfig, bool]:
    """Resolve a preset, a YAML file and flags, in that order.

    Args:
        words: As after ``undula train``.

    Returns:
        The configuration, and whether ``--strict`` is asked for.

    Raises:
        UsageError: A key or value that cannot be meant.
        InputError: The file is not readable.
    """
    from undula.config import TrainConfig, preset_file

    p = parser("train", "Train a model; resumes by itself. Flags win over the YAML file.")
    p.add_argument("--config", action="config", help="YAML file; may also be the first word")
    p.add_argument("--strict", **STRICT)
    p.add_class_arguments(TrainConfig, as_group=False)
    words = list(words)
    if words and not words[0].startswith("-"):
        words = ["--config", words[0], *words[1:]]
    preset = preset_file(_preset(words))
    options = parse(p, ["--config", str(preset), *words])
    options.pop("config")
    strict = options.pop("strict")
    return made(TrainConfig, p, options), strict


def _train_atoms(config: TrainConfig, kind: Kind, settings: Any, *, strict: bool) -> int:
    """Train a model of moving atoms."""
    from undula.io.recordings import open_recordings
    from undula.learn.progress import progress_on

    recordings = open_recordings(Path(config.data[0]))
    recordings.verify()
    refuse(recordings.notices, strict=strict)
    provenance = kind.trained(
        recordings,
        Path(config.out),
        settings=settings,
        fit_config=config.fit,
        progress=progress_on(sys.stderr),
    ).provenance
    print(f"{config.out}: trained on {', '.join(provenance['recordings'])}")
    return 0


def _preset(words: list[str]) -> str:
    """Return the preset that flags or, failing that, the YAML file name."""
    for index, word in enumerate(words):
        if word.startswith("--preset="):
            return word.split("=", 1)[1]
        if word == "--preset" and index + 1 < len(words):
            return words[index + 1]
    for index, word in enumerate(words):
        if word == "--config" and index + 1 < len(words):
            return str(read_yaml(Path(words[index + 1])).get("preset", "default"))
    return "default"
