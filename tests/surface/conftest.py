"""A prepared data set of a peptide, a small model and a short training."""

from __future__ import annotations

from pathlib import Path

import mdtraj
import pytest
import torch
from tests.surface.mixtures import LOCAL

from undula.data.bundled import villin
from undula.data.prepare import prepare
from undula.data.prepare_config import PrepareConfig
from undula.io.datasets import Dataset
from undula.learn.fit import FitConfig
from undula.learn.progress import SilentProgress
from undula.nn.implicit import ImplicitConfig
from undula.surface.losses import LossConfig, MixtureLossConfig
from undula.surface.mixture_task import MixtureBatchConfig
from undula.surface.model import SurfaceModelConfig
from undula.surface.task import BatchConfig
from undula.surface.time import TimeConfig
from undula.surface.trained import TrainedSurface
from undula.surface.trained_mixture import TrainedMixture
from undula.surface.training import train, train_mixture

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


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> list[Dataset]:
    """Return the data sets of four pieces of villin, five frames each."""
    folder = tmp_path_factory.mktemp("family")
    topology, trajectory, _ = villin()
    frames = mdtraj.load(str(trajectory), top=str(topology))
    config = PrepareConfig(near=64, local=16, uniform=16, fixed=256)
    sets = []
    for first in (0, 9, 18, 27):
        chosen = frames.topology.select(f"resid {first} to {first + 5} and element != H")
        few = frames.atom_slice(chosen)
        pdb, xtc = folder / f"piece{first}.pdb", folder / f"piece{first}.xtc"
        few[0].save_pdb(str(pdb))
        few[:5].save_xtc(str(xtc))
        sets.append(prepare(pdb, [xtc], folder / f"set{first}", config))
    return sets


@pytest.fixture(scope="session")
def mixed(family: list[Dataset], tmp_path_factory: pytest.TempPathFactory) -> TrainedMixture:
    """Return a MoE-DSR model trained for a few steps on three pieces, validated on the fourth."""
    return train_mixture(
        family,
        tmp_path_factory.mktemp("mixed"),
        model=LOCAL,
        loss=MixtureLossConfig(),
        batch=MixtureBatchConfig(proteins=3, points=64, validation=1),
        fit_config=FitConfig(steps=40, learning_rate=1e-2),
        progress=SilentProgress(),
    )
