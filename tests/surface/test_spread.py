import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.breathing import Breathing

from undula.errors import UsageError
from undula.io.structures import load_structure
from undula.io.trajectories import load_trajectory
from undula.surface.baselines import Blur
from undula.surface.evaluation import EvaluationConfig, evaluate
from undula.surface.forecast import forecast
from undula.surface.mixture import MixtureModel, MixtureModelConfig
from undula.surface.sample_scores import POINTS, SHELL
from undula.surface.spread import (
    SAMPLES,
    Moments,
    Reliability,
    SampleScores,
    SizeGap,
    SpreadRow,
    best_deviation,
    covered,
    crps,
    normal_crps,
    rank_correlation,
    ranks,
    reachable,
    with_spread,
)
from undula.surface.trained_mixture import TrainedMixture

PLACES = 40_000


@pytest.fixture
def draw():
    generator = torch.Generator().manual_seed(3)
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.fixture(scope="module")
def structure(peptide):
    return load_structure(peptide[0])


@pytest.fixture(scope="module")
def truth(peptide, structure):
    return load_trajectory(structure, peptide[1])


@pytest.fixture(scope="module")
def evaluation(structure, truth):
    moving = forecast(
        structure, [0.0, 5.0, 25.0, 45.0], Breathing((-0.2, -0.1, 0.1, 0.2)), samples=4
    )
    return evaluate(moving, truth, EvaluationConfig(spacing=1.0, samples=500, members=4))


@pytest.mark.parametrize("count", [2, 3, 20])
def test_the_score_of_a_standard_normal_is_one_over_root_pi_however_few_samples(draw, count):
    found = crps(draw(count, PLACES), draw(PLACES)).mean()
    assert float(found) == pytest.approx(1 / math.sqrt(math.pi), abs=0.02)


def test_the_score_counts_every_pair_once(draw):
    samples, truth = draw(7, 50), draw(50)
    apart = (samples[:, None] - samples[None]).abs().sum(dim=(0, 1)) / (2 * 7 * 6)
    torch.testing.assert_close(crps(samples, truth), (samples - truth).abs().mean(dim=0) - apart)


def test_without_a_spread_the_score_is_the_error(draw):
    truth = draw(50)
    same = draw(50).repeat(5, 1)
    torch.testing.assert_close(crps(same, truth), (same[0] - truth).abs())


def test_the_true_distribution_scores_best(draw):
    samples, truth = draw(8, PLACES), draw(PLACES)
    best = crps(samples, truth).mean()
    for other in (0.7 * samples, 1.4 * samples, samples + 0.3, samples.abs()):
        assert crps(other, truth).mean() > best + 0.01


def test_the_score_of_a_normal_distribution_is_that_of_many_samples(draw):
    error, deviation = torch.tensor([0.0, 0.7, -2.0], dtype=torch.float64), 1.3
    samples = deviation * draw(PLACES, 1).repeat(1, 3)
    torch.testing.assert_close(
        normal_crps(error, deviation), crps(samples, error), atol=0.01, rtol=0
    )
    torch.testing.assert_close(normal_crps(error, 1e-9), error.abs())


def test_the_best_spread_in_hindsight_is_that_of_the_errors(draw):
    assert best_deviation(0.8 * draw(PLACES)) == pytest.approx(0.8, rel=0.07)


def test_one_sample_has_no_score(draw):
    with pytest.raises(UsageError, match="at least two samples"):
        crps(draw(1, 5), draw(5))


def test_the_truth_has_any_rank_equally_often_among_samples_like_itself(draw):
    found = ranks(draw(9, PLACES), draw(PLACES))
    assert found.sum() == PLACES
    assert (found / (PLACES / 10) - 1).abs().max() < 0.06
    narrow = ranks(0.3 * draw(9, PLACES), draw(PLACES))
    assert min(narrow[0], narrow[-1]) > 3 * PLACES / 10


@pytest.mark.parametrize("level", [0.5, 0.9])
def test_an_interval_holds_what_it_promises(draw, level):
    found = covered(draw(19, PLACES), draw(PLACES), level)
    assert float(found) == pytest.approx(level, abs=0.01)


def test_few_samples_reach_only_so_far(draw):
    assert reachable(0.9, 9) == pytest.approx(0.8)
    assert reachable(0.5, 9) == 0.5
    assert float(covered(draw(9, PLACES), draw(PLACES), 0.9)) == pytest.approx(0.8, abs=0.01)


def test_the_order_of_mobility_is_all_that_a_rank_correlation_sees():
    a = torch.tensor([0.1, 3.0, 0.2, 1.0])
    assert rank_correlation(a, a.exp()) == pytest.approx(1)
    assert rank_correlation(a, -a) == pytest.approx(-1)
    assert math.isnan(rank_correlation(a, torch.ones(4)))


def test_probabilities_that_come_true_are_reliable(draw):
    told = torch.linspace(0, 1, 1001, dtype=torch.float64)
    assert Reliability.of(told, told).error == pytest.approx(0, abs=1e-12)
    low = Reliability.of(told, (told - 0.1).clamp(min=0))
    assert low.error == pytest.approx(0.095, abs=0.001)
    assert sum(low.places) == 1001
    hard = Reliability.of(torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0.0, 0.5, 1.0]))
    assert (hard.forecast, hard.happened, hard.places) == ([0, 1], [0.25, 1], [2, 1])


def test_the_brier_score_is_the_mean_square_error_over_frames(draw):
    frames = draw(20, 30) < 0.3
    told = torch.rand(30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    row = SpreadRow(name=SAMPLES, kind="model", occupancy=told)
    scores = SampleScores(
        times_ps=(1.0,),
        samples=2,
        rows=(row,),
        ranks=[0, 0, 0],
        occupancy=frames.double().mean(dim=0),
        mobility=torch.zeros(3, dtype=torch.float64),
        volumes=[1.0],
        areas=[1.0],
    )
    direct = (told - frames.double()).square().mean()
    assert scores.brier(row) == pytest.approx(float(direct))
    perfect = replace(row, occupancy=scores.occupancy)
    assert scores.brier(perfect) == pytest.approx(scores.brier_floor)


def test_a_sample_that_stays_where_it_is_has_no_mobility(draw):
    still, moving = Moments(), Moments()
    constant = draw(4, 10)
    fields = [draw(4, 10) for _ in range(6)]
    for values in fields:
        still.add(constant)
        moving.add(values)
    torch.testing.assert_close(still.mean, constant.mean(dim=0))
    assert still.deviation.max() < 1e-6
    every = torch.stack(fields)
    torch.testing.assert_close(moving.mean, every.mean(dim=(0, 1)))
    expected = every.var(dim=0, unbiased=False).mean(dim=0).sqrt()
    torch.testing.assert_close(moving.deviation, expected)


def test_the_spread_on_a_mesh_is_that_of_the_samples(structure):
    offsets = (-0.6, -0.2, 0.2, 0.6)
    moving = forecast(structure, [4.0], Breathing(offsets), samples=4)
    mesh = with_spread(moving.mesh(4.0, spacing=1.5), moving, 4.0)
    assert set(mesh.scalars) == {"displacement", "spread"}
    expected = 2 * float(np.std(offsets, ddof=1))
    torch.testing.assert_close(
        mesh.scalars["spread"], torch.full_like(mesh.vertices[:, 0], expected)
    )
    assert with_spread(mesh, moving, 0.0).scalars["spread"].max() == 0


def test_a_spread_needs_two_samples(structure):
    moving = forecast(structure, [4.0], Breathing(), samples=1)
    mesh = moving.mesh(4.0, spacing=2.0)
    with pytest.raises(UsageError, match="at least two samples"):
        with_spread(mesh, moving, 4.0)


def test_all_samples_at_once_are_those_one_by_one(structure):
    model = MixtureModel(
        MixtureModelConfig(),
        proteins=1,
        shortest_ps=5.0,
        horizon_ps=50.0,
        generator=torch.Generator().manual_seed(1),
    )
    provenance = {"probe": 1.4, "steps": 0, "proteins": 0, "training_frames": 0}
    trained = TrainedMixture(
        model=model.eval(), blur=Blur(), memory_ps=10.0, lasting=0.2, provenance=provenance
    )
    moving = forecast(structure, [5.0], trained, samples=3, seed=4)
    points = structure.positions[:40].double() + 1.5
    together = moving.sample_sdf(points, 5.0)
    alone = torch.stack([moving.sdf(points, 5.0, sample) for sample in range(3)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    assert together.std(dim=0).max() > 0.05
    more = forecast(structure, [5.0], trained, samples=7, seed=4).sample_sdf(points, 5.0)
    torch.testing.assert_close(more[:3], together, atol=1e-5, rtol=1e-5)
    none = forecast(structure, [5.0], trained).sample_sdf(points, 5.0)
    assert none.shape == (0, 40)


def test_the_first_frame_itself_is_not_scored(evaluation):
    scores = evaluation.samples
    assert scores.times_ps == (5.0, 25.0, 45.0)
    assert all(row.crps is None or len(row.crps) == 3 for row in scores.rows)
    assert sum(scores.ranks) == 3 * len(scores.occupancy) <= 3 * POINTS


def test_a_typical_surface_that_stays_scores_like_the_copied_frame(evaluation):
    rows = {row.name: row for row in evaluation.samples.rows}
    copied, typical = rows["copied first frame"], rows["typical surface"]
    np.testing.assert_allclose(typical.crps, copied.crps)
    torch.testing.assert_close(typical.occupancy, copied.occupancy)
    assert evaluation.samples.mobility_error(typical) == pytest.approx(
        float(evaluation.samples.mobility.mean()), rel=1e-6
    )
    assert evaluation.samples.mobility_order(typical) is None
    assert np.mean(rows[SAMPLES].crps) < np.mean(copied.crps)


def test_one_spread_everywhere_beats_none(evaluation):
    rows = {row.name.split(" ± ")[0]: row for row in evaluation.samples.rows}
    assert rows["typical"].kind == rows["copied"].kind == "oracle"
    assert np.mean(rows["copied"].crps) < np.mean(rows["copied first frame"].crps)
    np.testing.assert_allclose(rows["copied"].crps, rows["typical"].crps)
    torch.testing.assert_close(rows["copied"].occupancy, rows["typical"].occupancy)


def test_the_blurred_row_is_a_distance_and_a_probability(evaluation):
    rows = {row.name: row for row in evaluation.samples.rows}
    blurred, copied = rows["blurred first frame"], rows["copied first frame"]
    assert 0 < np.mean(blurred.crps) < 2 * np.mean(copied.crps) < 2 * SHELL
    assert blurred.occupancy.min() >= 0
    assert blurred.occupancy.max() <= 1
    assert 0.02 < float((blurred.occupancy * (1 - blurred.occupancy)).mean()) < 0.25


def test_a_forecast_without_samples_is_scored_without_them(structure, truth):
    config = EvaluationConfig(spacing=1.5, samples=200, members=3)
    found = evaluate(forecast(structure, [5.0], Breathing(), samples=0), truth, config).samples
    assert found.samples == 0
    assert found.ranks == []
    assert found.rows[0].name == "typical surface"
    assert SAMPLES not in {row.name for row in found.rows}


def test_at_time_zero_there_is_nothing_to_score(structure, truth):
    config = EvaluationConfig(spacing=1.5, samples=200, members=3)
    moving = forecast(structure, [0.0], Breathing(), samples=4)
    assert evaluate(moving, truth, config).samples is None


def test_half_as_a_probability_has_the_brier_score_of_a_quarter():
    inside = torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0], dtype=torch.float64)
    scores = SampleScores(
        times_ps=(1.0,),
        samples=0,
        rows=(),
        ranks=[],
        occupancy=inside,
        mobility=inside,
        volumes=[1.0],
        areas=[1.0],
    )
    for told, expected in ((inside, 0.0), (torch.full_like(inside, 0.5), 0.25), (1 - inside, 1.0)):
        row = SpreadRow(name="x", kind="model", occupancy=told)
        assert scores.measures(row)["occupancy_brier"] == expected


def test_the_rmsf_of_a_ball_is_the_deviation_of_its_radius(draw):
    radii = 5.0 + 0.4 * draw(50)
    on = 5.0 * torch.nn.functional.normalize(draw(20, 3), dim=1)
    courses, members = Moments(), Moments()
    for radius in radii:
        courses.add((on.norm(dim=1) - radius)[None])
    members.add(on.norm(dim=1)[None] - radii[:, None])
    expected = radii.std(correction=0).expand(20)
    torch.testing.assert_close(courses.deviation, expected)
    torch.testing.assert_close(courses.pooled, expected)
    torch.testing.assert_close(members.pooled, expected)
    assert members.deviation.max() < 1e-6  # one moment of many courses has no course


def test_a_shifted_distribution_of_sizes_is_a_shift_away():
    true = [4000.0, 4050.0, 4100.0]
    gap = SizeGap.of([size + 40.5 for size in true], true)
    assert gap.distance == pytest.approx(40.5)
    assert gap.relative == pytest.approx(0.01)
    assert gap.mean == pytest.approx(4090.5)
    assert gap.deviation == pytest.approx(np.std(true))
    single = SizeGap.of([4050.0], true)
    assert single.distance == pytest.approx(100 / 3)


def test_every_row_with_a_surface_has_volume_and_area(evaluation):
    scores = evaluation.samples
    rows = {row.name: row for row in scores.rows}
    for name, count in ((SAMPLES, 12), ("typical surface", 3), ("copied first frame", 1)):
        assert len(rows[name].volumes) == len(rows[name].areas) == count
    volumes = [rows[f"{what} first frame"].volumes[0] for what in ("eroded", "copied", "dilated")]
    assert volumes == sorted(volumes)
    assert len(set(volumes)) == 3
    assert min(rows[SAMPLES].volumes) < volumes[1] < max(rows[SAMPLES].volumes)
    assert rows["Gaussian network"].volumes is None
    assert scores.volume_gap(rows["Gaussian network"]) is None


def test_the_elastic_network_is_scored_as_samples_are(evaluation):
    rows = {row.name: row for row in evaluation.samples.rows}
    network, samples = rows["elastic network"], rows[SAMPLES]
    assert network.kind == "trivial"
    assert network.members == 4
    found = evaluation.samples.measures(network)
    assert found.keys() == evaluation.samples.measures(samples).keys()
    assert 0 < found["coverage_50"] < found["coverage_90"] < 1
    assert 0.1 < found["rmsf_angstrom"] < 3
    assert np.mean(network.crps) < np.mean(rows["copied first frame"].crps)


def test_the_dilated_row_is_the_copied_one_moved_out(evaluation):
    rows = {row.name: row for row in evaluation.samples.rows}
    copied, dilated, eroded = (
        rows[f"{what} first frame"] for what in ("copied", "dilated", "eroded")
    )
    assert bool((dilated.occupancy >= copied.occupancy).all())
    assert bool((eroded.occupancy <= copied.occupancy).all())
    assert np.mean(dilated.crps) == pytest.approx(np.mean(copied.crps), abs=0.2)
