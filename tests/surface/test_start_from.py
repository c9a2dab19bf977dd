"""A training that starts from another run's weights."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch

from undula import atomic
from undula.data.prepare_config import PrepareConfig
from undula.data.pseudo_dynamics import ORIGIN, PseudoDynamicsConfig, prepare_static
from undula.errors import InputError, UsageError
from undula.learn.fit import FitConfig
from undula.learn.progress import SilentProgress
from undula.nn.radial import RadialConfig
from undula.surface.experts import ExpertConfig
from undula.surface.geoan import GeoANConfig
from undula.surface.losses import MixtureLossConfig
from undula.surface.mixture import MixtureModel, MixtureModelConfig
from undula.surface.mixture_task import MixtureBatchConfig
from undula.surface.qmpnn import QMPNNConfig
from undula.surface.time import TimeConfig
from undula.surface.trained import WEIGHTS
from undula.surface.trained_mixture import TrainedMixture
from undula.surface.training import start_weights, train_mixture

SMALL = MixtureModelConfig(
    qmpnn=QMPNNConfig(
        features=GeoANConfig(embedding=4, hidden=8, size=6),
        channels=(16, 8, 8),
        radial=RadialConfig(centres=8, hidden=16, knots=256),
        readout=16,
        code=8,
    ),
    experts=ExpertConfig(width=8),
)
BATCH = MixtureBatchConfig(proteins=1, frames=2, points=64, samples=2, validation=0)
FIT = FitConfig(steps=4, learning_rate=3e-3, checkpoint_every=2, evaluate_every=4)


def run(datasets, out, fit=FIT, model=SMALL, start_from=None):
    return train_mixture(
        datasets,
        out,
        model=model,
        loss=MixtureLossConfig(),
        batch=BATCH,
        fit_config=fit,
        progress=SilentProgress(),
        start_from=start_from,
    )


@pytest.fixture(scope="module")
def static(peptide, tmp_path_factory):
    """Return the data set of the peptide's pseudo-dynamics."""
    config = PrepareConfig(near=64, local=16, uniform=16, fixed=256)
    dynamics = PseudoDynamicsConfig(frames=4, longest_ps=20.0)
    made = prepare_static([peptide[0]], tmp_path_factory.mktemp("static"), config, dynamics)
    return made.datasets["peptide"]


@pytest.fixture(scope="module")
def pretrained(static, tmp_path_factory):
    """Return the folder of a run on it."""
    out = tmp_path_factory.mktemp("pretrained")
    run([static], out)
    return out


@pytest.fixture(scope="module")
def tuned(dataset, pretrained, tmp_path_factory):
    """Return the folder of a run on the real trajectory that starts from there."""
    out = tmp_path_factory.mktemp("tuned")
    run([dataset], out, start_from=pretrained)
    return out


def fresh(config=SMALL, seed=5):
    return MixtureModel(
        config,
        proteins=2,
        shortest_ps=3.0,
        horizon_ps=70.0,
        generator=torch.Generator().manual_seed(seed),
    )


def test_all_weights_and_the_features_normalisation_come_from_the_run(pretrained):
    model = fresh()
    found = start_weights(model, pretrained)
    expected = TrainedMixture.load(pretrained).model.state_dict()
    for name, values in model.state_dict().items():
        torch.testing.assert_close(values, expected[name], rtol=0, atol=0)
    assert float(model.spread.std()) > 0
    assert found == atomic.sha256(pretrained / WEIGHTS)


def test_the_times_are_those_of_the_new_training_data(pretrained, tuned):
    before, after = (TrainedMixture.load(one).model for one in (pretrained, tuned))
    assert before.horizon_ps == pytest.approx(20.0)
    assert after.horizon_ps == pytest.approx(55.0)
    slower = replace(SMALL, time=TimeConfig(longest=0.9))
    start_weights(fresh(slower), pretrained)


def test_no_step_leaves_the_weights_as_they_were(dataset, pretrained, tmp_path):
    still = replace(FIT, steps=1, learning_rate=1e-30, weight_decay=0.0, warmup_steps=0)
    run([dataset], tmp_path, fit=still, start_from=pretrained)
    before, after = (TrainedMixture.load(one).model for one in (pretrained, tmp_path))
    expected = dict(before.named_parameters())
    for name, values in after.named_parameters():
        torch.testing.assert_close(values, expected[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("other", "key"),
    [
        (replace(SMALL, latent=7), "latent = 4"),
        (replace(SMALL, experts=ExpertConfig(width=9)), r"experts\.width = 8"),
        (replace(SMALL, time=TimeConfig(scales=2)), r"time\.scales = 3"),
    ],
)
def test_another_model_is_refused_and_the_key_named(pretrained, other, key):
    with pytest.raises(UsageError, match=key):
        start_weights(fresh(other), pretrained)


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"model\.safetensors"):
        start_weights(fresh(), tmp_path)


def test_resuming_is_exact_and_needs_the_same_start(dataset, pretrained, tuned, tmp_path):
    again = tmp_path / "again"
    shutil.copytree(tuned, again)
    (again / WEIGHTS).unlink()
    shutil.rmtree(again / "checkpoints" / "00000004")
    run([dataset], again, start_from=pretrained)
    assert (again / WEIGHTS).read_bytes() == (tuned / WEIGHTS).read_bytes()
    with pytest.raises(UsageError, match="start_from"):
        run([dataset], again)


def test_the_card_knows_what_it_was_trained_on(pretrained, tuned):
    first, second = (TrainedMixture.load(one).provenance for one in (pretrained, tuned))
    assert first["data"][0]["origin"] == ORIGIN
    assert "origin" not in second["data"][0]
    assert second["start_from"] == atomic.sha256(pretrained / WEIGHTS)
    assert "start_from" not in first
