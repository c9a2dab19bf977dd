from __future__ import annotations

import math

import pytest
import torch
from tests.motion.small_systems import argon, water_positions, waters

from undula.errors import InputError, UsageError
from undula.motion.scores import (
    HorizonBin,
    Motion,
    PaperRanges,
    coverage,
    crps_normal,
    crps_samples,
    energy_score,
    expected_wrapped,
    horizon_bins,
    normal_pit,
    paper_error,
    paper_ranges,
    physical_error,
    pit_histogram,
    sample_pit,
    skill,
    target_windows,
    wrapped,
)

BOX = 12.0 * torch.eye(3, dtype=torch.float64)


def normal(seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def uniform(seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator, dtype=torch.float64)


def test_a_perfect_forecast_has_no_error_in_either_convention():
    truth = Motion(positions=30 * normal(0, 4, 6, 3), velocities=normal(1, 4, 6, 3))
    ranges = PaperRanges(position=(0.0, 12.0), velocity=(-4.0, 4.0))
    assert not physical_error(truth.positions, truth.positions).any()
    assert not paper_error(truth, truth, argon(6), BOX, ranges).any()


def test_a_constant_gets_a_third_for_positions_anywhere_in_the_box():
    atoms = argon(3000)
    truth = Motion(positions=12 * uniform(2, 5, 3000, 3) + 24.0)
    centre = Motion(positions=torch.full((5, 3000, 3), 6.0, dtype=torch.float64))
    ranges = PaperRanges(position=(0.0, 12.0))
    found = paper_error(centre, truth, atoms, BOX, ranges)
    torch.testing.assert_close(
        found, torch.full((5,), 1 / 3, dtype=torch.float64), atol=0.01, rtol=0
    )


def test_six_features_are_averaged_each_with_its_range():
    truth = Motion(
        positions=torch.zeros(1, 1, 3, dtype=torch.float64),
        velocities=torch.zeros(1, 1, 3, dtype=torch.float64),
    )
    forecast = Motion(positions=truth.positions + 3.0, velocities=truth.velocities + 1.0)
    ranges = PaperRanges(position=(0.0, 12.0), velocity=(-2.0, 2.0))
    found = paper_error(forecast, truth, argon(1), BOX, ranges)
    assert float(found) == pytest.approx((0.5**2 + 0.5**2) / 2)
    with pytest.raises(UsageError, match="counts velocities"):
        paper_error(Motion(positions=truth.positions), truth, argon(1), BOX, ranges)


def test_wrapping_tears_apart_what_a_wall_separates():
    truth = Motion(positions=torch.full((1, 1, 3), 11.9, dtype=torch.float64))
    forecast = Motion(positions=torch.full((1, 1, 3), 12.1, dtype=torch.float64))
    ranges = PaperRanges(position=(0.0, 12.0))
    torn = paper_error(forecast, truth, argon(1), BOX, ranges)
    near = paper_error(forecast, truth, argon(1), BOX, ranges, images="nearest")
    assert float(torn) == pytest.approx((11.8 / 6) ** 2)
    assert float(near) == pytest.approx((0.2 / 6) ** 2)
    assert float(physical_error(forecast.positions, truth.positions)) == pytest.approx(0.04)
    far = forecast.positions + 24.0
    assert float(physical_error(far, truth.positions, BOX)) == pytest.approx(0.04)


def test_wraps_molecules_as_a_whole():
    system = waters(4)
    positions = 40 * normal(3, 1, 1, 3) + water_positions(4, torch.Generator().manual_seed(0))
    found = wrapped(positions, system, BOX)
    centres = found.reshape(1, 4, 3, 3).mean(dim=2)
    assert ((centres >= 0) & (centres < 12)).all()
    shape = positions.reshape(1, 4, 3, 3)
    kept = found.reshape(1, 4, 3, 3)
    torch.testing.assert_close(kept - kept[:, :, :1], shape - shape[:, :, :1], atol=1e-12, rtol=0)


def test_no_point_forecast_beats_the_expected_wrapped_position():
    atoms = argon(2)
    mean = torch.tensor([[[11.5, 0.3, 6.0], [7.0, -20.1, 3.0]]], dtype=torch.float64)
    for width in (0.5, 3.0, 3.7, 9.0):
        spread = torch.full((1, 2), width, dtype=torch.float64)
        truth = mean + width * normal(4, 200_000, 2, 3)
        average = wrapped(truth, atoms, BOX).mean(dim=0, keepdim=True)
        found = expected_wrapped(mean, spread, atoms, BOX)
        torch.testing.assert_close(found, average, atol=0.04, rtol=0)


def test_the_expected_wrapped_position_is_smooth_where_its_two_series_meet():
    mean = torch.linspace(0, 12, 50, dtype=torch.float64)[None, :, None].expand(1, 50, 3)
    below, above = (
        expected_wrapped(
            mean, torch.full((1, 50), width * 12.0, dtype=torch.float64), argon(50), BOX
        )
        for width in (0.3, 0.3 + 1e-9)
    )
    torch.testing.assert_close(below, above, atol=1e-5, rtol=0)


def test_a_sharp_forecast_is_expected_where_it_is_wrapped_and_a_vague_one_in_the_centre():
    mean = torch.tensor([[[13.0, -1.0, 6.5]]], dtype=torch.float64)
    sharp = expected_wrapped(mean, torch.zeros(1, 1, dtype=torch.float64), argon(1), BOX)
    torch.testing.assert_close(sharp, wrapped(mean, argon(1), BOX))
    vague = expected_wrapped(mean, torch.full((1, 1), 40.0, dtype=torch.float64), argon(1), BOX)
    torch.testing.assert_close(vague, torch.full_like(mean, 6.0))
    skewed = BOX.clone()
    skewed[1, 0] = 3.0
    with pytest.raises(InputError, match="rectangular"):
        expected_wrapped(mean, torch.zeros(1, 1, dtype=torch.float64), argon(1), skewed)


def test_ranges_span_all_training_recordings():
    system = argon(1)
    one = (torch.tensor([[[1.0, 13.0, 3.0]]]), torch.tensor([[[-5.0, 0.0, 1.0]]]), BOX)
    two = (torch.tensor([[[8.0, 2.0, 3.0]]]), torch.tensor([[[0.0, 7.0, 1.0]]]), BOX)
    found = paper_ranges([one, two], system)
    assert found == PaperRanges(position=(1.0, 8.0), velocity=(-5.0, 7.0))
    assert paper_ranges([(one[0], None, None)], system) == PaperRanges(position=(1.0, 13.0))
    with pytest.raises(UsageError, match="all or in none"):
        paper_ranges([one, (two[0], None, BOX)], system)
    with pytest.raises(UsageError, match="empty"):
        PaperRanges(position=(1.0, 1.0))


def test_target_windows_are_the_published_ones():
    assert [str(one) for one in target_windows(8000)] == [
        "81–100", "181–200", "981–1000", "1981–2000", "2981–3000", "4981–5000", "7981–8000",
    ]  # fmt: skip
    assert [one.last for one in target_windows(800)] == [100, 200, 800]
    assert [one.last for one in target_windows(20)] == [20]
    with pytest.raises(UsageError, match="20 frames"):
        target_windows(19)


def test_horizon_bins_cover_every_frame_once():
    for horizon in (1, 2, 7, 50, 800, 8000):
        bins = horizon_bins(horizon)
        frames = torch.arange(1, horizon + 1)
        counts = sum(one.mask(frames).long() for one in bins)
        assert (counts == 1).all()
    assert [str(one) for one in horizon_bins(30)] == ["1", "2", "3–5", "6–10", "11–20", "21–30"]
    with pytest.raises(UsageError, match="no part of a future"):
        HorizonBin(first=0, last=3)


def test_skill_is_measured_against_the_best_trivial_row():
    worse, best = torch.full((2, 40), 4.0), torch.full((2, 40), 2.0)
    found = skill(0.5 * best, {"a": worse, "b": best}, torch.Generator().manual_seed(0))
    assert found.best == "b"
    assert (found.value, found.low, found.high) == (0.5, 0.5, 0.5)
    assert (found.trajectories, found.blocks) == (2, 10)
    few = skill(best[:, :3], {"b": best[:, :3]}, torch.Generator().manual_seed(0))
    assert few.blocks == 3
    assert few.value == 0
    with pytest.raises(UsageError, match="trivial row"):
        skill(best, {}, torch.Generator())


def test_the_interval_of_a_skill_covers_the_truth_about_as_often_as_it_says():
    """Errors with a memory of about ten units; the true skill is 0.3."""
    covered = 0
    for trial in range(120):
        kicks = normal(trial, 2, 3, 800)
        smooth = torch.nn.functional.avg_pool1d(kicks, 10, stride=1)
        errors = torch.exp(smooth)
        found = skill(
            0.7 * errors[0], {"trivial": errors[1]}, torch.Generator().manual_seed(trial),
            blocks=20, draws=300,
        )  # fmt: skip
        covered += found.low <= 0.3 <= found.high
    assert 0.85 <= covered / 120 <= 1.0


def test_the_closed_score_of_a_normal_distribution_is_that_of_its_samples():
    mean, spread, truth = normal(5, 6), normal(6, 6).abs() + 0.2, 2 * normal(7, 6)
    drawn = mean + spread * normal(8, 20_000, 6)
    torch.testing.assert_close(
        crps_samples(drawn, truth), crps_normal(mean, spread, truth), atol=0.02, rtol=0
    )


def test_the_score_of_a_certain_forecast_is_its_distance():
    mean, truth = normal(9, 5), normal(10, 5)
    for dtype in (torch.float64, torch.float32):
        found = crps_normal(mean.to(dtype), torch.zeros(5, dtype=dtype), truth.to(dtype))
        torch.testing.assert_close(found, (mean - truth).abs().to(dtype))


def test_the_right_spread_scores_best():
    truth = 1.5 * normal(11, 20_000)
    zero = torch.zeros_like(truth)
    scores = {w: float(crps_normal(zero, zero + w, truth).mean()) for w in (1.0, 1.5, 2.2)}
    assert min(scores, key=lambda width: scores[width]) == 1.5
    assert scores[1.5] == pytest.approx(1.5 / math.sqrt(math.pi), rel=0.02)


def test_few_samples_are_judged_as_fairly_as_many():
    truth = normal(12, 60_000)
    few, many = (float(crps_samples(normal(100 + k, k, 60_000), truth).mean()) for k in (2, 12))
    assert few == pytest.approx(many, rel=0.03)
    with pytest.raises(UsageError, match="at least two"):
        crps_samples(truth[None], truth)


def test_the_energy_score_of_numbers_is_the_ranked_probability_score():
    drawn, truth = normal(13, 7, 9), normal(14, 9)
    torch.testing.assert_close(
        energy_score(drawn[..., None], truth[:, None]), crps_samples(drawn, truth)
    )


def test_the_energy_score_of_two_samples_in_closed_form():
    drawn = torch.tensor([[[0.0, 0, 0]], [[0.0, 3, 4]]], dtype=torch.float64)
    truth = torch.tensor([[0.0, 3, 0]], dtype=torch.float64)
    assert float(energy_score(drawn, truth)) == pytest.approx((3 + 4) / 2 - 5 / 2)


def test_a_calibrated_normal_forecast_covers_what_it_says():
    truth = 2.0 * normal(15, 50_000)
    zero, right = torch.zeros_like(truth), torch.full_like(truth, 2.0)
    counts = normal_pit(zero, right, truth)
    assert coverage(counts, 0.5) == pytest.approx(0.5, abs=0.01)
    assert coverage(counts, 0.9) == pytest.approx(0.9, abs=0.01)
    torch.testing.assert_close(
        pit_histogram(counts), torch.ones(10, dtype=torch.float64), atol=0.06, rtol=0
    )
    narrow = normal_pit(zero, 0.5 * right, truth)
    assert coverage(narrow, 0.9) < 0.7
    assert float(pit_histogram(narrow)[0]) > 1.5


@pytest.mark.parametrize("count", [2, 5, 16])
def test_calibrated_samples_however_few_cover_what_they_say(count):
    counts = sample_pit(normal(16, count, 50_000), normal(17, 50_000))
    assert len(counts) == count + 1
    assert coverage(counts, 0.5) == pytest.approx(0.5, abs=0.01)
    assert coverage(counts, 0.9) == pytest.approx(0.9, abs=0.01)
    assert float(pit_histogram(counts, 5).mean()) == pytest.approx(1.0)
