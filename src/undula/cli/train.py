"""``undula train``: data sets to a run folder with weights."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from undula.cli.configured import read_yaml
from undula.cli.options import MEMORY_LIMIT, STRICT, made, parse, parser, tell_estimate
from undula.estimates import asked_bytes
from undula.notices import refuse

if TYPE_CHECKING:
    from undula.config import TrainConfig
    from undula.motion.catalog import Kind


def run(words: Sequence[str]) -> int:
    """Train a model from a YAML file and flags; a run that was stopped goes on."""
    config, strict, limit = read_training(words)

    if config.of_atoms is not None:
        return _train_atoms(config, *config.of_atoms, strict=strict, limit=limit)
    from undula.io.datasets import open_dataset
    from undula.learn.progress import progress_on
    from undula.surface.estimates import (
        SurfaceSize,
        check_protein_training,
        check_training,
    )
    from undula.surface.training import train, train_mixture

    datasets = [open_dataset(Path(folder), verify=True) for folder in config.data]
    refuse([notice for dataset in datasets for notice in dataset.notices], strict=strict)
    common: dict[str, Any] = {"fit_config": config.fit, "progress": progress_on(sys.stderr)}
    out = Path(config.out)
    if config.mixture is not None:
        asked = config.mixture
        firsts = [
            one.structure for one in datasets for each in one.trajectories if not each.holdout
        ]
        sizes = [SurfaceSize.of(structure, asked.model.local) for structure in firsts]
        tell_estimate(check_training(sizes, asked.batch, config.fit.steps, limit))
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
        network, batch = kept.model.network, kept.batch
        tell_estimate(
            check_protein_training(
                sum(len(dataset.structure) for dataset in datasets),
                batch.frames * (batch.surface + batch.pool),
                0 if network is None else network.depth * network.width,
                config.fit.steps,
                limit,
            )
        )
        provenance = train(
            datasets, out, model=kept.model, loss=kept.loss, batch=kept.batch, **common
        ).provenance
    print(f"{config.out}: trained on {provenance['training_frames']} frames")
    return 0


def read_training(words: Sequence[str]) -> tuple[TrainConfig, bool, int | None]:
    """Resolve a preset, a YAML file and flags, in that order.

    Args:
        words: As after ``undula train``.

    Returns:
        The configuration, whether ``--strict`` is asked for, and the memory limit, bytes.

    Raises:
        UsageError: A key or value that cannot be meant.
        InputError: The file is not readable.
    """
    from undula.config import TrainConfig, preset_file

    p = parser("train", "Train a model; resumes by itself. Flags win over the YAML file.")
    p.add_argument("--config", action="config", help="YAML file; may also be the first word")
    p.add_argument("--strict", **STRICT)
    p.add_argument("--memory-limit", **MEMORY_LIMIT)
    p.add_class_arguments(TrainConfig, as_group=False)
    words = list(words)
    if words and not words[0].startswith("-"):
        words = ["--config", words[0], *words[1:]]
    preset = preset_file(_preset(words))
    options = parse(p, ["--config", str(preset), *words])
    options.pop("config")
    strict, limit = options.pop("strict"), asked_bytes(options.pop("memory_limit"))
    return made(TrainConfig, p, options), strict, limit


def _train_atoms(
    config: TrainConfig, kind: Kind, settings: Any, *, strict: bool, limit: int | None
) -> int:
    """Train a model of moving atoms."""
    from undula.io.recordings import open_recordings
    from undula.learn.progress import progress_on
    from undula.motion.estimates import check_training

    recordings = open_recordings(Path(config.data[0]))
    recordings.verify()
    refuse(recordings.notices, strict=strict)
    if config.motion is not None:
        names = settings.recordings or recordings.recordings
        tell_estimate(
            check_training(
                len(recordings.system),
                len(names),
                settings.model,
                settings.batch,
                config.fit.steps,
                limit,
            )
        )
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
