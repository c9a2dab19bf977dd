from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.surface.mixtures import CONTRACTION, LOCAL, PAPER

from undula.errors import InputError, UsageError
from undula.learn.fit import FitConfig, fit
from undula.learn.progress import SilentProgress
from undula.surface import latent
from undula.surface.losses import MixtureLossConfig
from undula.surface.mixture_task import MixtureBatchConfig, MixtureTask, validation_systems

PAPER_LOSS = MixtureLossConfig(distance=0.0, energy=0.0, manifold=1.0, normal=1.0, eikonal=0.1)
SIZES = {"proteins": 3, "points": 32, "surface": 40, "pool": 32, "validation": 1}


def task_of(datasets, model=LOCAL, loss=None, **batch):
    loss = loss or (PAPER_LOSS if model is PAPER else MixtureLossConfig())
    return MixtureTask(datasets, model, loss, MixtureBatchConfig(**{**SIZES, **batch}))


def drawn(task, step=0, seed=3):
    return task.batch(step, torch.Generator().manual_seed(seed))


def test_trajectories_held_out_are_never_read(dataset):
    task = task_of([dataset])
    assert [trajectory.name for trajectory in task.trajectories] == ["run1"]
    held = replace(dataset, trajectories=dataset.trajectories[1:])
    with pytest.raises(InputError, match="marked as holdout"):
        task_of([held])


def test_frames_after_the_limit_are_never_read(dataset):
    task = task_of([dataset], until_ps=30.0)
    assert max(dataset.trajectories[0].times_ps[task.frames[0]]) <= 30.0
    assert task.module.horizon_ps <= 30.0


def test_the_first_frame_itself_is_no_lesson_for_a_model_that_starts_from_it(family):
    assert all(0 not in frames for frames in task_of(family).frames)
    assert all(0 in frames for frames in task_of(family, PAPER).frames)


def test_validation_takes_whole_proteins(family):
    task = task_of(family)
    assert len(task.validation) == 1
    assert sorted(task.training + task.validation) == [0, 1, 2, 3]
    assert task_of(family[:3]).validation == []
    seen = {int(key) for seed in range(20) for key in drawn(task, seed=seed).keys}
    assert seen == set(task.training)


def test_a_validation_protein_is_judged_by_a_code_of_its_first_frame_not_by_the_one_it_was_drawn(
    family, monkeypatch
):
    monkeypatch.setattr(latent, "STEPS", 2)
    task = task_of(family, PAPER)
    task.module.eval()
    before = task.evaluate()
    with torch.no_grad():
        own = task.module.latents[task.owners[task.validation[0]]]
        # The mean, from which a fit starts, stays.
        own.add_(0.5)
        task.module.latents[task.owners[task.training[0]]].sub_(0.5)
    after = task.evaluate()
    assert after["iou"] == pytest.approx(before["iou"], abs=1e-3)
    assert after["distance"] == pytest.approx(before["distance"], rel=1e-3)
    assert all(parameter.grad is None for parameter in task.module.parameters())
    assert task._unseen_latent(task.training[0]) is None


def test_validation_proteins_are_spread_over_the_list():
    names = [f"p{i}" for i in range(20)]
    assert validation_systems(range(20), names, 4) == {2, 7, 12, 17}
    assert validation_systems(range(4), names, 2) == set()
    assert validation_systems(range(4), names, 0) == set()


def test_normalisation_uses_training_proteins_only(family):
    task = task_of(family)
    (kept,) = task.validation
    other = (kept + 1) % 4
    changed = list(family)
    changed[kept] = family[other]  # another protein in the place of the one for validation
    again = task_of(changed)
    assert again.validation == task.validation
    assert torch.equal(again.module.mean, task.module.mean)
    assert torch.equal(again.module.spread, task.module.spread)
    swapped = list(family)
    swapped[other] = family[kept]
    assert not torch.equal(task_of(swapped).module.mean, task.module.mean)


@pytest.mark.parametrize("model", [LOCAL, CONTRACTION], ids=["local", "contraction"])
def test_features_of_training_points_have_mean_zero_and_width_one(family, model):
    task = task_of(family, model)
    module = task.module.eval()
    one = torch.zeros(1, dtype=torch.long)
    with torch.no_grad():
        found = torch.cat(
            [
                module.features(
                    module.encode(task.cloud(t), task._scales([t])),
                    one,
                    task._rows(task.local(t), 0),
                )
                for t in task.training
            ]
        )
    standard = (found - module.mean) / module.spread
    assert standard.mean(dim=0).abs().max() < 1e-4
    assert standard.std(dim=0).max() <= 1.0


def test_a_batch_depends_on_its_generator_alone(family):
    task = task_of(family)
    one, two, other = drawn(task), drawn(task, step=99), drawn(task, seed=4)
    for name in ("keys", "lag_ps", "distance", "tremble"):
        assert torch.equal(getattr(one, name), getattr(two, name)), name
    assert torch.equal(one.rows.points, two.rows.points)
    assert not torch.equal(one.distance, other.distance)


def test_a_batch_holds_distances_of_the_data_set(family):
    task = task_of(family)
    batch = drawn(task)
    trajectory = task.trajectories[int(batch.keys[batch.protein[0]])]
    frame = int(np.argmin(abs(trajectory.times_ps - float(batch.lag_ps[0]))))
    stored = np.asarray(trajectory.fixed_distances(frame)).tolist()
    start = np.asarray(trajectory.fixed)[:, 3].tolist()
    mine = batch.rows.frame == 0
    pairs = set(zip(start, stored, strict=True))
    found = zip(batch.rows.distance[mine].tolist(), batch.distance[mine].tolist(), strict=True)
    assert all(pair in pairs for pair in found)


def test_the_copied_first_frame_has_skill_zero(family):
    task = task_of(family)
    task.module.eval()
    measured = task.evaluate()
    assert measured["skill"] == pytest.approx(0.0, abs=1e-6)
    assert measured["iou"] == measured["copied_iou"]
    assert measured["copied"] > 0.05
    assert measured["energy"] < measured["energy_still"]


@pytest.mark.parametrize("model", [LOCAL, CONTRACTION], ids=["local", "contraction"])
def test_the_loss_reaches_router_gate_encoder_and_experts(family, model):
    task = task_of(family, model, validation=0, proteins=8)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for expert in task.module.experts:
            expert.last.weight.normal_(generator=generator)
            expert.scale.weight.normal_(generator=generator)
    total, terms = task.loss(drawn(task), 0)
    total.backward()
    assert set(terms) == {"distance", "energy", "balance", "latent"}
    for part in ("router.", "gate.choice", "encoder.", "experts.", "inputs.", "onset"):
        moved = [
            float(parameter.grad.abs().sum())
            for name, parameter in task.module.named_parameters()
            if name.startswith(part) and parameter.grad is not None
        ]
        assert moved, part
        assert max(moved) > 0, part


def test_paper_terms_are_those_of_the_sdf_loss(family):
    task = task_of(family, PAPER, validation=0)
    batch = drawn(task)
    assert batch.on_surface == 40
    torch.testing.assert_close(batch.normals.norm(dim=1), torch.ones(len(batch.normals)))
    total, terms = task.loss(batch, 0)
    assert set(terms) == {"manifold", "normal", "eikonal", "balance", "latent"}
    total.backward()
    assert torch.isfinite(total)
    assert task.module.latents.grad.abs().max() > 0
    names = [group.name for group in task.parameter_groups()]
    assert names == ["network", "latent codes"]


def test_terms_of_weight_zero_are_not_computed(family):
    loss = MixtureLossConfig(energy=0.0, latent=0.0, balance=0.0)
    task = task_of(family, replace(LOCAL, samples=False), loss)
    batch = drawn(task)
    assert batch.tremble.numel() == 0
    assert set(task.loss(batch, 0)[1]) == {"distance"}


def test_losses_that_do_not_suit_the_experts_are_refused(family):
    with pytest.raises(UsageError, match="kind paper"):
        task_of(family, LOCAL, PAPER_LOSS)


def test_a_mixture_overfits_one_tiny_system(family, tmp_path):
    model = replace(LOCAL, experts=replace(LOCAL.experts, width=64, dropout=0.0), samples=False)
    loss = MixtureLossConfig(energy=0.0, quantile=0.5)
    task = task_of(family[:1], model, loss, proteins=1, frames=1, points=256, until_ps=6.0)
    assert len(task.frames[0]) == 1
    config = FitConfig(steps=150, learning_rate=3e-2, evaluate_every=1000, warmup_steps=10)
    fit(task, config, tmp_path, progress=SilentProgress())
    task.module.eval()
    measured = task.evaluate()
    assert measured["distance"] < 0.7 * measured["copied"]
    assert measured["iou"] > measured["copied_iou"]


class StopHere(BaseException):
    """Stands for kill -9."""


@pytest.mark.parametrize("model", [LOCAL, PAPER], ids=["local", "paper"])
def test_a_killed_training_ends_with_the_same_bytes(family, model, tmp_path, monkeypatch):
    config = FitConfig(steps=12, learning_rate=1e-2, evaluate_every=100, checkpoint_every=4)
    fit(task_of(family, model), config, tmp_path / "whole", progress=SilentProgress())
    task, batch = task_of(family, model), MixtureTask.batch

    def stopping(step, generator):
        if step == 7:
            raise StopHere
        return batch(task, step, generator)

    monkeypatch.setattr(task, "batch", stopping)
    with pytest.raises(StopHere):
        fit(task, config, tmp_path / "killed", progress=SilentProgress())
    torch.manual_seed(99)
    fit(task_of(family, model), config, tmp_path / "killed", progress=SilentProgress())
    for name in ("weights.safetensors", "history.json"):
        whole, killed = ((tmp_path / run / name).read_bytes() for run in ("whole", "killed"))
        assert whole == killed, name


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"proteins": 0}, "proteins"),
        ({"samples": 1}, "samples"),
        ({"validation": -1}, "validation"),
    ],
)
def test_refuses_batches_that_cannot_be_meant(words, message):
    with pytest.raises(UsageError, match=message):
        MixtureBatchConfig(**words)
