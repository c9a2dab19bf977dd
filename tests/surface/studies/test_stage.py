from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.surface.mixtures import LOCAL, bound, fresh, stirred

from undula.errors import InputError
from undula.geometry.frames import random_rotation
from undula.surface.evaluation import EvaluationConfig, evaluate
from undula.surface.forecast import forecast
from undula.surface.forecasters import OTHERS
from undula.surface.studies.protocol import Scoring
from undula.surface.studies.relatives import relatives
from undula.surface.studies.runs import active_parameters, parameters, router_parameters
from undula.surface.studies.stage import FLOOR, REPLICA, stage
from undula.types import Trajectory

SCORING = Scoring(frames=2, samples=500, members=4)


@pytest.fixture(scope="module")
def staged(proteins):
    return stage(proteins["one_A"], 0, SCORING)


def test_scores_are_those_of_undula_evaluate(staged, proteins):
    read = proteins["one_A"].trajectories[0]
    truth = Trajectory(
        structure=staged.first,
        positions=torch.from_numpy(np.array(read.positions, dtype=np.float64)),
        times_ps=torch.from_numpy(read.times_ps),
    )
    trained = bound(stirred(LOCAL))
    moving = forecast(staged.first, staged.times_ps, trained, spacing=1.0)
    expected = evaluate(moving, truth, EvaluationConfig(spacing=1.0, samples=500, members=4)).scores
    # The lattice of `evaluate` covers the same frames, so everything is equal but for rounding.
    found = {"model": staged.model_scores(trained)} | staged.trivial_scores(trained)
    assert found.keys() == expected.keys() - {OTHERS}
    for name, scores in found.items():
        for measure, values in scores.items():
            assert values == pytest.approx(expected[name][measure], abs=2e-3), (name, measure)


def test_a_fresh_model_is_the_copied_first_frame(staged):
    trained = bound(fresh(LOCAL))
    model = staged.model_scores(trained)
    copied = staged.trivial_scores(trained)["copied first frame"]
    assert model["iou"] == pytest.approx(copied["iou"], abs=0.01)


def test_the_truth_scores_perfectly_and_oracles_better_than_nothing(staged):
    perfect = staged.scores(lambda place: staged.true[place])
    assert perfect["iou"] == [1.0, 1.0]
    oracles = staged.oracle_scores()
    assert set(oracles) == {FLOOR, OTHERS}
    for scores in oracles.values():
        assert all(0.2 < value < 1.0 for value in scores["iou"])


def test_the_frames_are_even_and_later_than_the_first(staged, proteins):
    times = proteins["one_A"].trajectories[0].times_ps
    assert len(staged.frames) == 2
    assert staged.times_ps[-1] == times[-1]
    assert min(staged.times_ps) > 0


def test_where_there_is_one_replica_the_other_half_is_the_floor(proteins):
    alone = stage(proteins["five_A"], 0, SCORING)
    assert alone.floor_is_other_half
    assert not stage(proteins["one_A"], 0, SCORING).floor_is_other_half
    floor = alone.oracle_scores()[FLOOR]["iou"]
    # t + T/2 and t − T/2 are never the frame itself.
    assert all(value < 0.999 for value in floor)


def test_distributions_have_the_rows_that_a_forecast_can_have(staged, proteins):
    trained = bound(stirred(LOCAL))
    model, still = staged.model_spread(trained), staged.trivial_spread(trained)
    assert set(model) == {"samples", "typical surface"}
    assert "coverage_90" in model["samples"]
    assert "coverage_90" not in model["typical surface"]
    assert {"elastic network", "Gaussian network", "eroded first frame"} < set(still)
    oracle = staged.oracle_spread()
    assert set(oracle) == {REPLICA}
    assert all(
        len(values) == 1 for one in (model | still | oracle).values() for values in one.values()
    )
    assert set(model["samples"]) == set(still["elastic network"]) == set(oracle[REPLICA])
    assert stage(proteins["five_A"], 0, SCORING).oracle_spread() == {}


def test_a_test_protein_needs_three_frames(proteins):
    short = replace(
        proteins["one_A"].trajectories[0], shards=proteins["one_A"].trajectories[0].shards[:1]
    )
    object.__setattr__(short, "times_ps", short.times_ps[:2])
    dataset = replace(proteins["one_A"], trajectories=(short,))
    with pytest.raises(InputError, match="at least three frames"):
        stage(dataset, 0, SCORING)


def test_turning_the_data_set_does_not_change_the_floor(staged, proteins):
    rotation = random_rotation(torch.Generator().manual_seed(0)).numpy()
    read = proteins["one_A"].trajectories[0]
    turned = replace(read)
    object.__setattr__(turned, "positions", np.array(read.positions) @ rotation.T + 3.0)
    others = proteins["one_A"].trajectories[1:]
    dataset = replace(proteins["one_A"], trajectories=(turned, *others))
    found = stage(dataset, 0, SCORING).oracle_scores()[FLOOR]["iou"]
    assert found == pytest.approx(staged.oracle_scores()[FLOOR]["iou"], abs=0.06)


def test_the_same_sequence_on_both_sides_is_refused_and_strangers_are_no_relatives(proteins):
    one, two = proteins["one_A"], proteins["two_A"]
    assert relatives([one], [two]) == ()
    twin = replace(one, structure=replace(one.structure, name="twin_A"))
    with pytest.raises(InputError, match="one_A is trained on under the name twin_A"):
        relatives([one], [two, twin])


def test_active_weights_leave_out_experts_that_were_not_chosen():
    model = fresh(LOCAL)
    one = sum(parameter.numel() for parameter in model.experts[0].parameters())
    assert parameters(model) - active_parameters(model) == 2 * one
    assert router_parameters(model) < active_parameters(model)
