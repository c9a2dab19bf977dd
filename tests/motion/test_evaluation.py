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
    even_frames,
    later,
    mean_of,
    point_scores,
    ranges_of,
    scored,
    starts_of,
    target_frames,
    window_at,
)
from undula.motion.scores import PaperRanges
from undula.motion.windows import AtomForecast

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
