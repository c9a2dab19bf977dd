"""Trainings of moving surfaces that end by themselves."""

from __future__ import annotations

import json

import pytest
from tests.surface.conftest import SMALL
from tests.surface.mixtures import LOCAL

from undula.errors import UsageError
from undula.learn.fit import FitConfig
from undula.learn.plateau import PlateauConfig
from undula.learn.progress import SilentProgress
from undula.surface.losses import LossConfig, MixtureLossConfig
from undula.surface.mixture_task import MixtureBatchConfig
from undula.surface.task import BatchConfig
from undula.surface.trained import TrainedSurface
from undula.surface.training import train, train_mixture

FIT = FitConfig(steps=2, plateau=PlateauConfig(measure="skill", cycles=2))


def trained_on(dataset, out, validation):
    """Train a model of one protein, DSR's way, until its plateau."""
    return train(
        [dataset],
        out,
        model=SMALL,
        loss=LossConfig(),
        batch=BatchConfig(frames=1, surface=16, pool=32, validation=validation),
        fit_config=FIT,
        progress=SilentProgress(),
    )


def test_a_model_of_its_own_proteins_is_judged_on_the_last_frames_and_tells_how_it_ended(
    dataset, tmp_path
):
    trained_on(dataset, tmp_path, 0.25)
    told = TrainedSurface.load(tmp_path).provenance
    assert told["plateau"] == json.loads((tmp_path / "plateau.json").read_text())
    assert len(told["plateau"]["ends"]) == 2
    assert told["steps"] == 2 * told["plateau"]["best"]


def test_a_plateau_without_validation_is_refused_before_any_step(dataset, family, tmp_path):
    with pytest.raises(UsageError, match="judged on the last frames of each trajectory"):
        trained_on(dataset, tmp_path / "one", 0.0)
    with pytest.raises(UsageError, match="judged on whole proteins"):
        train_mixture(
            family[:3],
            tmp_path / "two",
            model=LOCAL,
            loss=MixtureLossConfig(),
            batch=MixtureBatchConfig(proteins=1, points=32, validation=2),
            fit_config=FIT,
            progress=SilentProgress(),
        )
    assert not list(tmp_path.glob("*/*"))
