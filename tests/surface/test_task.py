from dataclasses import replace

import numpy as np
import pytest
import torch

from undula.data.prepare import prepare
from undula.data.prepare_config import PrepareConfig
from undula.errors import InputError
from undula.nn.implicit import ImplicitConfig
from undula.surface.losses import LossConfig
from undula.surface.model import SurfaceModelConfig
from undula.surface.task import BatchConfig, SurfaceTask

MODEL = SurfaceModelConfig(
    network=ImplicitConfig(depth=2, width=32, skip_at=1, harmonics="solid", degree=2), latent=3
)
ALL_TERMS = LossConfig(distance=1.0, manifold=1.0, normal=0.5, eikonal=0.1, latent=0.01)


def task_of(dataset, loss=None, model=MODEL, **batch):
    return SurfaceTask([dataset], model, loss or LossConfig(), BatchConfig(**batch))


def test_trajectories_held_out_are_never_read(dataset):
    task = task_of(dataset)
    assert [trajectory.name for trajectory in task.trajectories] == ["run1"]
    assert len(task.training) + len(task.validation) == 12


def test_frames_after_the_limit_are_never_read(dataset):
    task = task_of(dataset, until_ps=30.0, validation=0.25)
    read = [frame.frame for frame in task.training + task.validation]
    assert max(dataset.trajectories[0].times_ps[read]) <= 30.0
    assert task.module.horizon_ps <= 30.0


def test_validation_takes_the_last_frames_in_time(dataset):
    task = task_of(dataset, validation=0.25)
    assert min(f.frame for f in task.validation) > max(f.frame for f in task.training)
    assert len(task.validation) == 3


def test_a_batch_depends_on_its_generator_alone(dataset):
    task = task_of(dataset, surface=32, pool=64)
    one = task.batch(0, torch.Generator().manual_seed(3))
    two = task.batch(99, torch.Generator().manual_seed(3))
    other = task.batch(0, torch.Generator().manual_seed(4))
    assert torch.equal(one.pool, two.pool)
    assert torch.equal(one.surface, two.surface)
    assert not torch.equal(one.pool, other.pool)


def test_a_batch_holds_rows_of_the_data_set(dataset):
    task = task_of(dataset, surface=40, pool=64)
    batch = task.batch(0, torch.Generator().manual_seed(1))
    trajectory = dataset.trajectories[0]
    frame = int(np.argmin(abs(trajectory.times_ps - float(batch.lag_ps[0]))))
    stored = {row.tobytes() for row in np.asarray(trajectory.surface(frame))}
    assert all(row.tobytes() in stored for row in batch.surface[0].numpy())


def test_pool_rows_keep_the_proportion_in_which_they_were_prepared(dataset):
    task = task_of(dataset, pool=96)
    trajectory = dataset.trajectories[0]
    near = {row.tobytes() for row in np.asarray(trajectory.pool(0))[:256]}
    task.training = task.training[:1]
    batch = task.batch(0, torch.Generator().manual_seed(1))
    found = sum(row.tobytes() in near for row in batch.pool[0].numpy())
    assert found == 64


def test_a_compact_data_set_gives_the_same_batch_up_to_rounding(dataset, peptide, tmp_path):
    topology, first, second = peptide
    rules = dataset.manifest["request"]["rules"] | {"storage": "compact"}
    compact = prepare(
        topology, [first, second], tmp_path / "set", PrepareConfig(**rules), holdout=[second]
    )
    batches = [
        task_of(one, surface=40, pool=64).batch(0, torch.Generator().manual_seed(1))
        for one in (dataset, compact)
    ]
    assert torch.equal(batches[0].lag_ps, batches[1].lag_ps)
    for kind in ("surface", "pool"):
        before, after = (getattr(batch, kind) for batch in batches)
        torch.testing.assert_close(after, before, rtol=0, atol=0.02)
        torch.testing.assert_close(after[:, :, :3], before[:, :, :3], rtol=0, atol=5e-4)


def test_the_copied_first_frame_has_skill_zero(dataset):
    measured = task_of(dataset).evaluate()
    assert measured["skill"] == 0.0
    assert measured["distance"] == pytest.approx(measured["copied"])
    assert measured["copied"] > 0.05


@pytest.mark.parametrize("base", ["first-frame", "none"])
def test_every_term_reaches_every_parameter_it_should(dataset, base):
    task = task_of(dataset, ALL_TERMS, replace(MODEL, base=base), surface=32, pool=32)
    with torch.no_grad():
        task.module.network.last.weight.add_(0.1)
    total, terms = task.loss(task.batch(0, torch.Generator().manual_seed(1)), 0)
    total.backward()
    assert set(terms) == {"distance", "manifold", "normal", "eikonal", "latent"}
    for name, parameter in task.module.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def test_terms_of_weight_zero_are_not_computed(dataset):
    task = task_of(dataset, surface=32, pool=32)
    _, terms = task.loss(task.batch(0, torch.Generator().manual_seed(1)), 0)
    assert set(terms) == {"distance", "latent"}


def test_normalised_lengths_are_divided_by_the_scale(dataset):
    batch = task_of(dataset, surface=32, pool=32).batch(0, torch.Generator().manual_seed(1))
    lengths = {}
    for units in ("angstrom", "normalised"):
        task = task_of(dataset, replace(ALL_TERMS, units=units), surface=32, pool=32)
        lengths[units] = task.loss(batch, 0)[1]
    scale = float(task.module.scales[0])
    for term in ("distance", "manifold"):
        ratio = float(lengths["angstrom"][term] / lengths["normalised"][term])
        assert ratio == pytest.approx(scale, rel=1e-5)
    torch.testing.assert_close(lengths["angstrom"]["normal"], lengths["normalised"]["normal"])


def test_a_static_structure_can_be_learned_without_base(dataset):
    model = replace(MODEL, base="none")
    task = task_of(dataset, model=model, until_ps=0.0)
    assert len(task.training) == 1
    assert task.module.shortest_ps == task.module.horizon_ps == 1.0
    total, _ = task.loss(task.batch(0, torch.Generator().manual_seed(1)), 0)
    assert torch.isfinite(total)


def test_training_on_held_out_trajectories_alone_is_refused(dataset):
    held = replace(dataset, trajectories=dataset.trajectories[1:])
    with pytest.raises(InputError, match="marked as holdout"):
        task_of(held)
