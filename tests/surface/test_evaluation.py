from dataclasses import replace

import numpy as np
import pytest
import torch

from undula.errors import InputError
from undula.geometry.frames import random_rotation
from undula.io.trajectories import load_trajectory
from undula.surface.evaluation import EvaluationConfig, evaluate, true_meshes
from undula.surface.forecast import forecast
from undula.types import Trajectory

CONFIG = EvaluationConfig(spacing=1.0, samples=2000, members=4)
TRIVIAL = {
    "copied first frame",
    "dilated first frame",
    "eroded first frame",
    "blurred first frame",
    "best ellipsoid",
    "majority of the elastic network",
    "averaged training frames",
}


@pytest.fixture(scope="module")
def truth(dataset, peptide):
    return load_trajectory(dataset.structure, peptide[1])


@pytest.fixture(scope="module")
def evaluation(dataset, trained, truth):
    return evaluate(forecast(dataset.structure, [0.0, 25.0, 50.0], trained), truth, CONFIG)


def test_every_trivial_row_stands_beside_the_model(evaluation):
    assert evaluation.kinds["model"] == "model"
    assert {name for name, kind in evaluation.kinds.items() if kind == "trivial"} == TRIVIAL
    assert {name for name, kind in evaluation.kinds.items() if kind == "oracle"} == {
        "majority of the other frames"
    }
    lengths = {len(values) for scores in evaluation.scores.values() for values in scores.values()}
    assert lengths == {3}


def test_the_copied_first_frame_is_perfect_at_time_zero(evaluation):
    copied = evaluation.scores["copied first frame"]
    assert copied["iou"][0] == 1.0
    assert copied["iou_dsr"][0] == 1.0
    assert copied["normal_consistency_paper"][0] > 0.999
    assert copied["iou"][1] < 0.95


def test_the_model_row_of_an_untrained_residual_is_the_copied_row(dataset, trained, truth):
    network = trained.model.network
    kept = [parameter.clone() for parameter in (network.last.weight, network.last.bias)]
    try:
        network.last.weight.zero_()
        network.last.bias.zero_()
        found = evaluate(forecast(dataset.structure, [25.0], trained), truth, CONFIG)
    finally:
        network.last.weight.copy_(kept[0])
        network.last.bias.copy_(kept[1])
    copied = found.scores["copied first frame"]
    for name, values in found.scores["model"].items():
        assert values == pytest.approx(copied[name], abs=2e-3), name


def test_the_pose_of_the_truth_does_not_matter(dataset, trained, truth, generator):
    rotation = random_rotation(generator, torch.float32)
    turned = replace(truth, positions=truth.positions @ rotation.T + 30.0)
    moving = forecast(dataset.structure, [25.0], trained)
    one, two = (evaluate(moving, moved, CONFIG).scores["model"] for moved in (truth, turned))
    for name in one:
        assert one[name] == pytest.approx(two[name], abs=5e-3), name


def test_times_without_a_true_frame_are_counted_not_scored(dataset, trained, truth):
    found = evaluate(forecast(dataset.structure, [25.0, 900.0], trained), truth, CONFIG)
    assert found.times_ps == (25.0,)
    assert [n.count for n in found.notices if n.code == "no-true-frame"] == [1]


def test_a_truth_without_any_frame_in_time_is_refused(dataset, trained, truth):
    with pytest.raises(InputError, match="no frame at any forecast time"):
        evaluate(forecast(dataset.structure, [900.0], trained), truth, CONFIG)


def test_a_truth_of_another_protein_is_refused(dataset, trained, truth):
    few = truth.structure.select(truth.structure.residue_index < 5)
    other = Trajectory(
        structure=few, positions=truth.positions[:, : len(few)], times_ps=truth.times_ps
    )
    with pytest.raises(InputError, match="another protein"):
        evaluate(forecast(dataset.structure, [25.0], trained), other, CONFIG)


def test_true_meshes_carry_the_displacement(dataset, trained, truth):
    moving = forecast(dataset.structure, [0.0, 50.0], trained)
    times, meshes, _ = true_meshes(moving, truth, 0.7)
    assert times == (0.0, 50.0)
    assert meshes[0].scalars["displacement"].max() < 0.1
    assert meshes[1].scalars["displacement"].max() > 0.3


def test_a_truth_with_other_atoms_of_the_same_protein_serves(dataset, trained, truth):
    backbone = np.isin(truth.structure.atom_names, ["N", "CA", "C", "O"])
    part = Trajectory(
        structure=truth.structure.select(backbone),
        positions=truth.positions[:, torch.from_numpy(backbone)],
        times_ps=truth.times_ps,
    )
    found = evaluate(forecast(dataset.structure, [25.0], trained), part, CONFIG)
    assert 0.2 < found.scores["copied first frame"]["iou"][0] < 0.9
