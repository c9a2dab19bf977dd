"""A forecast knows the first frame and nothing later."""

from dataclasses import replace

import mdtraj
import numpy as np
import pytest
import torch
from tests.breathing import Breathing
from tests.surface.mixtures import CONTRACTION, LOCAL, PAPER, bound, fresh, stirred

from undula.data.prepare import prepare
from undula.data.prepare_config import PrepareConfig
from undula.geometry.lattice import Lattice
from undula.surface.elastic_ensemble import elastic_ensemble
from undula.surface.forecast import forecast
from undula.surface.forecasters import forecasters
from undula.surface.losses import MixtureLossConfig
from undula.surface.mixture import ROUTERS
from undula.surface.mixture_task import MixtureBatchConfig, MixtureTask
from undula.surface.sample_scores import trivial_rows
from undula.surface.studies.protocol import Scoring
from undula.surface.studies.stage import stage
from undula.surface.trained import trivial_case

RULES = PrepareConfig(near=64, local=16, uniform=16, fixed=256)


@pytest.fixture(scope="module")
def twins(peptide, tmp_path_factory):
    """Return data sets of a trajectory and of one whose frames after the first are rubbish."""
    topology, trajectory, _ = peptide
    folder = tmp_path_factory.mktemp("twins")
    frames = mdtraj.load(str(trajectory), top=str(topology))
    random = np.random.default_rng(0)
    # Random strains and a little noise: rubbish, but with bonds that the reader lets pass.
    strain = np.eye(3) + random.normal(0, 0.07, (11, 3, 3))
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
        assert apart.mean() > 0.1


MODELS = {
    "paper": PAPER,
    "contraction": CONTRACTION,
    **{name: replace(LOCAL, router=name, width=0.0625) for name in ROUTERS},
}


@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
def test_noise_in_every_later_frame_leaves_a_forecast_byte_by_byte(twins, config, monkeypatch):
    monkeypatch.setattr("undula.surface.latent.STEPS", 3)
    trained = bound(fresh(config) if config.experts.kind == "paper" else stirred(config))
    samples = 2 if trained.distributional else 0
    one, two = (forecast(data.structure, [5.0, 55.0], trained, samples=samples) for data in twins)
    points = one.lattice(2.5).points()
    for time in (0.0, 5.0, 55.0):
        for sample in (None, *range(samples)):
            found, expected = (each.sdf(points, time, sample) for each in (two, one))
            assert found.numpy().tobytes() == expected.numpy().tobytes()
    meshes = [each.mesh(55.0, spacing=2.0) for each in (one, two)]
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


def test_noise_in_every_later_frame_leaves_every_trivial_row_byte_by_byte(twins):
    found = []
    for data in twins:
        moving = forecast(data.structure, [5.0, 55.0], Breathing())
        network = elastic_ensemble(data.structure, members=3)
        lattice = moving.lattice(1.5)
        rows = [row for row in forecasters(moving, lattice, network) if row.kind == "trivial"]
        meshes = {row.name: row.solid(5.0).mesh.vertices.numpy().tobytes() for row in rows}
        values = network.signed_distance(lattice.points()).numpy().tobytes()
        found.append({**meshes, "elastic network": values})
    assert len(found[0]) == 7
    assert all(found[0].values())
    for name, one in found[0].items():
        assert one == found[1][name], name


def test_a_study_lets_its_rows_see_the_first_frame_alone(twins):
    """What stands in the tables without a truth beside it is the same for both."""
    scoring = Scoring(frames=2, samples=100, spacing=1.5, members=3)
    stages = [stage(data, 0, scoring) for data in twins]
    # The lattice reaches as far as true frames do, which moves no node and no row.
    low = torch.stack([one.lattice.origin for one in stages]).amax(dim=0)
    shared = Lattice(origin=low, spacing=1.5, shape=(20, 20, 20))
    rows = []
    for one in stages:
        moving = one._moving(Breathing())
        ground = replace(one._ground, lattice=shared)
        told = trivial_rows(moving, ground, forecasters(moving, shared, one._network), one._network)
        rows.append({row.name: row for row in told})
        assert torch.equal(ground.places, stages[0]._ground.places)
    for name, one in rows[0].items():
        other = rows[1][name]
        assert one.volumes == other.volumes, name
        for part in ("occupancy", "mobility"):
            first, second = getattr(one, part), getattr(other, part)
            assert (first is None and second is None) or torch.equal(first, second), name
    assert any(rows[0][name].crps != rows[1][name].crps for name in rows[0])


def test_the_numbers_of_trivial_rows_are_fitted_on_the_frames_they_are_given(twins):
    cases = [trivial_case(data, data.trajectories[0], [0], 1.4) for data in twins]
    assert torch.equal(cases[0].first, cases[1].first)
    assert cases[0].later == cases[1].later == []
    later = [trivial_case(data, data.trajectories[0], [0, 3], 1.4).later[0] for data in twins]
    assert not torch.equal(*later)
