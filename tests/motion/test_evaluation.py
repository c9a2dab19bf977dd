from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.motion.studies.walkers import HORIZON, KNOWN, OBSERVED, WINDOW, walkers

from undula.errors import UsageError
from undula.motion.baselines.trivial import Ballistic, Constant
from undula.motion.evaluation import (
    MEASURES,
    MotionScoring,
    Sparing,
    even_frames,
    later,
    mean_of,
    point_scores,
    ranges_of,
    scored,
    spread_over,
    starts_of,
    target_frames,
    window_at,
)
from undula.motion.scores import PaperRanges
from undula.motion.windows import AtomForecast, Divergence

SCORING = MotionScoring(frames=8, starts=3, lags=[1, 2, 5, 10])


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return walkers(tmp_path_factory.mktemp("walkers") / "argon")


class Oracle:
    """Knows the recording."""

    name = "oracle"

    def __init__(self, recording, spread: float | None = None) -> None:
        self.recording, self.spread = recording, spread

    def forecast(self, window, lags_ps):
        first = window.positions[-1]
        near = [
            frame
            for frame in range(len(self.recording))
            if torch.equal(self.recording.slice(frame, frame + 1)[0][0], first)
        ]
        lags = (lags_ps / window.frame_ps).round().long().tolist()
        found = later(self.recording, near[0], lags)
        spread = None if self.spread is None else torch.full(found.motion.positions.shape[:2], 1.0)
        return AtomForecast(
            lags_ps=lags_ps,
            mean=found.motion.positions,
            spread=spread,
            velocities=found.motion.velocities,
        )

    def samples(self, window, lags_ps, count, generator):
        return None


def test_even_frames_end_at_the_horizon_and_are_all_frames_for_none():
    assert even_frames(40, 4) == [10, 20, 30, 40]
    assert even_frames(5, 0) == [1, 2, 3, 4, 5]
    assert even_frames(3, 9) == [1, 2, 3]


def test_the_standard_start_scores_target_windows_and_an_even_part():
    lags = MotionScoring(frames=4).standard_lags(200)
    assert set(range(81, 101)) | set(range(181, 201)) | {50, 100, 150, 200} == set(lags)
    assert [lags[place] for place in target_frames(lags, 100)] == list(range(81, 101))


def test_the_horizon_is_one_of_the_lags():
    assert SCORING.lags_within(7) == [1, 2, 5, 7]
    assert SCORING.lags_within(40) == [1, 2, 5, 10, 40]


def test_starts_have_their_window_and_known_velocities(source):
    starts = starts_of(source.recordings[0], WINDOW, 100)
    assert starts[0] == WINDOW - 1
    assert starts[-1] == KNOWN - 1
    assert starts_of(source.recordings[0], WINDOW, 2) == [WINDOW - 1, KNOWN - 1]


def test_later_velocities_are_recorded_ones_and_then_differences(source):
    recording = source.recordings[0]
    found = later(recording, KNOWN - 2, [1, 2, len(recording) - KNOWN + 1])
    assert found.moving.tolist() == [True, True, False]
    torch.testing.assert_close(found.motion.velocities[0], recording.velocity(KNOWN - 1))
    torch.testing.assert_close(found.motion.velocities[1], recording.differenced_velocity(KNOWN))
    assert (found.motion.velocities[2] == 0).all()


def test_velocities_count_in_the_published_error_where_differences_hold(source):
    ranges = ranges_of(source, ["run0", "run1"], OBSERVED)
    assert ranges.velocity is not None
    assert 0 <= ranges.position[0] < ranges.position[1] <= 10


def test_who_knows_the_future_has_no_error_but_that_of_a_spread(source):
    recording = source.named("run2")
    ranges = ranges_of(source, ["run0", "run1"], OBSERVED)
    found = scored(
        Oracle(recording), source, recording, ranges, SCORING,
        observed=OBSERVED, window=WINDOW, horizon=HORIZON,
    )  # fmt: skip
    for measure in ("physical", "paper", "paper_expected", "paper_nearest"):
        assert max(v for v in found.standard[measure] if v is not None) < 1e-10
    assert set(found.standard["crps"]) == {None}
    assert found.pit is None
    wide = scored(
        Oracle(recording, 1.0), source, recording, ranges, SCORING,
        observed=OBSERVED, window=WINDOW, horizon=HORIZON,
    )  # fmt: skip
    assert wide.standard["crps"][0] == pytest.approx((2**0.5 - 1) / 3.14159265**0.5, rel=1e-4)
    assert wide.pit is not None
    assert all(sum(counts) == 3 * 8 * 3 for counts in wide.pit[:3])


def test_lags_beyond_the_recording_have_no_number(source):
    recording = replace(source.named("run2"), velocities=None)
    ranges = PaperRanges(position=(0.0, 10.0))
    scoring = MotionScoring(frames=4, starts=2, lags=[1, 30])
    found = scored(
        Ballistic(), source, recording, ranges, scoring,
        observed=OBSERVED, window=WINDOW, horizon=30,
    )  # fmt: skip
    assert [row[0] is None for row in found.starts["physical"]] == [False, False]
    assert [row[1] is None for row in found.starts["physical"]] == [False, True]


def test_the_published_error_of_a_constant_is_that_of_atoms_anywhere_in_the_box(source):
    recording = source.named("run2")
    ranges = ranges_of(source, ["run0", "run1"], OBSERVED)
    window = window_at(source, recording, OBSERVED - 1, OBSERVED)
    lags = list(range(1, 30))
    told = Constant().forecast(window, torch.tensor(lags) * 0.1)
    truth = later(recording, OBSERVED - 1, lags)
    scores = point_scores(told, truth, source.system, window.box, ranges)
    assert set(scores) == set(MEASURES)
    positions_only = 1 / 3
    assert mean_of(scores["paper"]) < positions_only
    assert scores["paper_nearest"] == pytest.approx(scores["paper"])


def test_a_mean_of_nothing_is_none():
    assert mean_of([None, None]) is None
    assert mean_of([1.0, None, 3.0]) == 2.0


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"lags": [2, 1]}, "lags"), ({"lags": []}, "lags"), ({"samples": 1}, "samples"),
     ({"starts": 0}, "starts"), ({"fine": 2}, "fine")],
)  # fmt: skip
def test_refuses_scoring_that_cannot_be_meant(changes, named):
    with pytest.raises(UsageError, match=named):
        MotionScoring(**changes)


def test_some_of_many_are_spread_evenly_from_the_first_to_the_last():
    assert spread_over(5, 0) == [0, 1, 2, 3, 4]
    assert spread_over(5, 9) == [0, 1, 2, 3, 4]
    assert spread_over(9, 3) == [0, 4, 8]
    assert spread_over(9, 1) == [0]


def test_sparing_takes_away_and_never_adds():
    scoring = MotionScoring(samples=8, sample_starts=3)
    assert Sparing().of(scoring) == scoring
    assert Sparing(samples=4, sample_starts=9).of(scoring).samples == 4
    assert Sparing(samples=4, sample_starts=9).of(scoring).sample_starts == 3
    for wrong in ({"starts": -1}, {"samples": 1}):
        with pytest.raises(UsageError, match=r"sparing\."):
            Sparing(**wrong)


class Silent(Oracle):
    """Knows the recording, but says no velocities, and gets the last atom wrong."""

    def forecast(self, window, lags_ps):
        known = super().forecast(window, lags_ps)
        mean = known.mean.clone()
        mean[:, -1] += 1.0
        return replace(known, mean=mean, velocities=None)


class Lost(AtomForecast):
    """A forecast that was rolled and lost."""

    @property
    def divergence(self):
        return Divergence(after_ps=0.4, share=0.5)


class Rolling(Oracle):
    """Knows the recording, and says that it has lost it."""

    def forecast(self, window, lags_ps):
        known = super().forecast(window, lags_ps)
        return Lost(lags_ps=lags_ps, mean=known.mean, velocities=known.velocities)


def score(source, forecaster, **changes):
    recording = source.named("run2")
    ranges = ranges_of(source, ["run0", "run1"], OBSERVED)
    return scored(
        forecaster(recording), source, recording, ranges, SCORING,
        observed=OBSERVED, window=WINDOW, horizon=HORIZON, **changes,
    )  # fmt: skip


def test_who_forecasts_some_of_the_atoms_is_scored_on_these(source):
    every = score(source, Silent)
    chosen = score(source, Silent, atoms=torch.arange(7))
    alone = score(source, Silent, atoms=torch.tensor([7]))
    assert max(v for v in chosen.standard["physical"] if v is not None) < 1e-10
    assert alone.standard["physical"][0] == pytest.approx(1.0, rel=1e-5)
    assert every.standard["physical"][0] == pytest.approx(1 / 8, rel=1e-5)
    shares = zip(chosen.standard["paper"], alone.standard["paper"], strict=True)
    for whole, (some, one) in zip(every.standard["paper"], shares, strict=True):
        assert whole == pytest.approx((7 * some + one) / 8, rel=1e-4)


def test_velocities_that_are_not_said_count_as_rest_and_that_is_told(source):
    class Resting(Silent):
        def forecast(self, window, lags_ps):
            known = super().forecast(window, lags_ps)
            return replace(known, velocities=torch.zeros_like(known.mean))

    silent, resting = score(source, Silent), score(source, Resting)
    assert silent.standard["paper"] == resting.standard["paper"]
    assert silent.plain()["at_rest"] is True
    assert "at_rest" not in resting.plain()
    assert silent.standard["paper"][0] > 0


def test_rollouts_that_diverged_are_counted(source):
    found = score(source, Rolling)
    assert found.windows == 4
    assert found.plain()["diverged"] == {"windows": 4, "of": 4, "after_ps": 0.4, "share": 0.5}
    assert "diverged" not in score(source, Oracle).plain()


def test_what_is_spared_has_no_number_and_the_rest_the_same_ones(source):
    whole = score(source, Silent)
    spared = score(source, Silent, sparing=Sparing(starts=1, frames=3))
    known = [value for value in spared.standard["physical"] if value is not None]
    assert len(known) == 3
    assert spared.standard["physical"][0] == whole.standard["physical"][0]
    assert spared.standard["physical"][-1] == whole.standard["physical"][-1]
    assert spared.starts["paper"][0] == whole.starts["paper"][0]
    assert set(spared.starts["paper"][1]) == {None}
    assert spared.windows == 2
