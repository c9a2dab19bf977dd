"""A forecast knows the first frame and nothing later."""

import mdtraj
import numpy as np
import pytest
import torch
from tests.surface.mixtures import LOCAL, PAPER, bound, fresh, stirred

from undula.data.prepare import PrepareConfig, prepare
from undula.surface.forecast import forecast
from undula.surface.losses import MixtureLossConfig
from undula.surface.mixture_task import MixtureBatchConfig, MixtureTask

RULES = PrepareConfig(near=64, local=16, uniform=16, fixed=256)


@pytest.fixture(scope="module")
def twins(peptide, tmp_path_factory):
    """Return data sets of a trajectory and of one whose frames after the first are rubbish."""
    topology, trajectory, _ = peptide
    folder = tmp_path_factory.mktemp("twins")
    frames = mdtraj.load(str(trajectory), top=str(topology))
    random = np.random.default_rng(0)
    # Random strains and a little noise: rubbish, but with bonds that the reader lets pass.
    strain = np.eye(3) + random.normal(0, 0.1, (11, 3, 3))
    later = frames.xyz[random.permutation(11) + 1] @ strain
    frames.xyz[1:] = later + random.normal(0, 0.005, later.shape)  # nm
    noisy = folder / trajectory.name
    frames.save_xtc(str(noisy))
    return [
        prepare(topology, [path], folder / name, RULES)
        for path, name in ((trajectory, "true"), (noisy, "noisy"))
    ]


def test_the_twins_differ_in_all_later_frames_but_not_in_the_first(twins):
    true, noisy = (one.trajectories[0] for one in twins)
    assert np.array_equal(true.times_ps, noisy.times_ps)
    assert np.array_equal(true.positions[0], noisy.positions[0])
    for frame in range(1, 12):
        apart = np.abs(np.asarray(true.positions[frame]) - np.asarray(noisy.positions[frame]))
        assert apart.mean() > 0.15


@pytest.mark.parametrize("config", [LOCAL, PAPER], ids=["local", "paper"])
def test_noise_in_every_later_frame_leaves_a_forecast_byte_by_byte(twins, config, monkeypatch):
    monkeypatch.setattr("undula.surface.latent.STEPS", 3)
    trained = bound(fresh(config) if config is PAPER else stirred(config))
    samples = 2 if trained.distributional else 0
    one, two = (forecast(data.structure, [5.0, 55.0], trained, samples=samples) for data in twins)
    points = one.lattice(1.5).points()
    for time in (0.0, 5.0, 55.0):
        for sample in (None, *range(samples)):
            found, expected = (each.sdf(points, time, sample) for each in (two, one))
            assert found.numpy().tobytes() == expected.numpy().tobytes()
    meshes = [each.mesh(55.0) for each in (one, two)]
    assert torch.equal(meshes[0].vertices, meshes[1].vertices)
    assert torch.equal(meshes[0].faces, meshes[1].faces)


def test_what_training_tells_the_model_of_a_protein_is_its_first_frame(twins):
    tasks = [
        MixtureTask([data], LOCAL, MixtureLossConfig(), MixtureBatchConfig(points=32))
        for data in twins
    ]
    clouds = [task.cloud(0) for task in tasks]
    assert torch.equal(clouds[0].points, clouds[1].points)
    local = [task.local(0) for task in tasks]
    assert torch.equal(local[0].points, local[1].points)
    assert torch.equal(local[0].features, local[1].features)
    for name in ("mean", "spread"):
        assert torch.equal(getattr(tasks[0].module, name), getattr(tasks[1].module, name))
    batches = [task.batch(0, torch.Generator().manual_seed(1)) for task in tasks]
    assert torch.equal(batches[0].tremble, batches[1].tremble)
    assert not torch.equal(batches[0].distance, batches[1].distance)
