"""A prepared data set of a peptide, a small model and a short training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from undula.data.prepare import PrepareConfig, prepare
from undula.io.datasets import Dataset
from undula.learn.fit import FitConfig
from undula.learn.progress import SilentProgress
from undula.nn.implicit import ImplicitConfig
from undula.surface.losses import LossConfig
from undula.surface.model import SurfaceModelConfig
from undula.surface.task import BatchConfig
from undula.surface.time import TimeConfig
from undula.surface.trained import TrainedSurface
from undula.surface.training import train

SMALL = SurfaceModelConfig(
    network=ImplicitConfig(depth=2, width=32, skip_at=1, harmonics="solid", degree=2),
    time=TimeConfig(scales=2),
    latent=3,
)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)


@pytest.fixture(scope="session")
def dataset(peptide: tuple[Path, Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Return the peptide's data set; the second trajectory is held out."""
    topology, first, second = peptide
    config = PrepareConfig(near=256, local=64, uniform=64, frames_per_shard=5)
    out = tmp_path_factory.mktemp("data") / "peptide"
    return prepare(topology, [first, second], out, config, holdout=[second])


@pytest.fixture(scope="session")
def trained(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> TrainedSurface:
    """Return a model trained for a few steps on the peptide."""
    return train(
        [dataset],
        tmp_path_factory.mktemp("run"),
        model=SMALL,
        loss=LossConfig(),
        batch=BatchConfig(frames=2, surface=64, pool=128),
        fit_config=FitConfig(steps=60, learning_rate=3e-3),
        progress=SilentProgress(),
    )
