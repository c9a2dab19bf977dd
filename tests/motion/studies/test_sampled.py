from __future__ import annotations

import pytest
import torch
from tests.motion.studies.walkers import HORIZON, OBSERVED, WINDOW, walkers

from undula.motion.baselines.trivial import Ballistic
from undula.motion.evaluation import MotionScoring, window_at
from undula.motion.studies.sampled import (
    Course,
    Drawn,
    Truth,
    drawn,
    heavy_atoms,
    sample_scores,
    still_course,
    true_courses,
)

SCORING = MotionScoring(lags=[1, 5, 20], samples=4, sample_starts=2, sample_frames=4, fine=6)
COURSE = Course.of(SCORING, HORIZON)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return walkers(tmp_path_factory.mktemp("walkers") / "argon")


@pytest.fixture(scope="module")
def truth(source):
    return Truth(source, source.named("run2"), OBSERVED, COURSE, (0.5, 4.0))


class Knowing:
    """Draws the future of a recording, each sample shifted a little from it."""

    name = "knowing"

    def __init__(self, recording, apart: float) -> None:
        self.recording, self.apart = recording, apart

    def forecast(self, window, lags_ps):
        raise NotImplementedError

    def samples(self, window, lags_ps, count, generator):
        now = next(
            frame
            for frame in range(len(self.recording))
            if torch.equal(self.recording.slice(frame, frame + 1)[0][0], window.now)
        )
        rows = [now + lag for lag in (lags_ps / window.frame_ps).round().long().tolist()]
        futures = torch.from_numpy(self.recording.positions[rows]).expand(count, -1, -1, -1)
        return futures + self.apart * torch.randn(futures.shape, generator=generator)


def test_a_course_holds_all_its_frames_once_in_order():
    assert list(COURSE.lags) == sorted(set(COURSE.lags))
    assert COURSE.lags[-1] == HORIZON
    for part in (COURSE.even, COURSE.fine, COURSE.knots):
        assert [COURSE.lags[place] for place in COURSE.places(part)] == list(part)


def test_the_truth_as_a_sample_has_its_own_velocities_and_the_same_atoms_as_near(source, truth):
    own = true_courses([source.named("run2")], OBSERVED, COURSE, 1)
    found = truth.measured(own)
    assert torch.equal(own.nows[0], source.named("run2").slice(OBSERVED - 1, OBSERVED)[0][0])
    assert found["vacf"][0] == 1
    assert found["rdf_error"] < 0.5
    assert "bond_error" not in found
    assert "ramachandran" not in found


def test_atoms_that_do_not_move_have_no_diffusion_and_no_velocities(source, truth):
    now = source.named("run2").slice(OBSERVED - 1, OBSERVED)[0][0]
    found = truth.measured(still_course(now, COURSE, now))
    assert found["diffusion"] == 0
    assert set(found["msd"]) == {0.0}
    assert "vacf" not in found


def test_the_drift_of_all_atoms_is_no_diffusion(source, truth):
    own = true_courses([source.named("run2")], OBSERVED, COURSE, 1)
    away = torch.tensor(COURSE.lags)[None, :, None, None] * torch.tensor([1.0, 0.5, 0.0])
    moved = Drawn(nows=own.nows, course=COURSE, futures=own.futures + away)
    torch.testing.assert_close(
        torch.tensor(truth.measured(moved)["msd"]),
        torch.tensor(truth.measured(own)["msd"]),
        rtol=1e-3,
        atol=1e-3,
    )


def test_other_recordings_serve_in_turn_from_their_own_starts(source):
    found = true_courses(source.recordings[:2], OBSERVED, COURSE, 3)
    assert found.futures.shape[:2] == (3, len(COURSE.lags))
    for number, (name, start) in enumerate([("run0", 39), ("run1", 39), ("run0", 19)]):
        recording = source.named(name)
        assert torch.equal(found.nows[number], recording.slice(start, start + 1)[0][0])
        later = recording.slice(start + 1, start + 2)[0][0]
        assert torch.equal(found.futures[number, 0], later)


def test_samples_around_the_truth_score_their_distance(source):
    recording = source.named("run2")
    found = sample_scores(
        Knowing(recording, 0.0), source, recording, SCORING,
        window=WINDOW, horizon=HORIZON, generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert found is not None
    assert all(max(row) < 1e-6 for row in found["crps"])
    wide = sample_scores(
        Knowing(recording, 1.0), source, recording, SCORING,
        window=WINDOW, horizon=HORIZON, generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert wide is not None
    values = torch.tensor(wide["crps"])
    assert float(values.mean()) == pytest.approx((2**0.5 - 1) / 3.14159**0.5, rel=0.2)
    assert all(sum(counts) == 2 * 8 * 3 for counts in wide["ranks"])


def test_who_has_no_distribution_has_no_samples(source):
    recording = source.named("run2")
    window_lags = {"window": WINDOW, "horizon": HORIZON}
    chance = torch.Generator().manual_seed(0)
    assert sample_scores(
        Ballistic(), source, recording, SCORING, **window_lags, generator=chance
    ) is None  # fmt: skip


def test_draws_whole_courses_from_one_now(source):
    recording = source.named("run2")
    window = window_at(source, recording, OBSERVED - 1, OBSERVED)
    chance = torch.Generator().manual_seed(0)
    found = drawn(Knowing(recording, 0.1), window, COURSE, 4, chance)
    assert found is not None
    assert found.futures.shape == (4, len(COURSE.lags), 8, 3)
    assert found.frames(COURSE.even).shape == (4 * len(COURSE.even), 8, 3)


def test_the_heaviest_atoms_of_water_are_its_oxygens(tmp_path):
    found = walkers(tmp_path / "water", atoms=9, recordings=1, water=True)
    assert heavy_atoms(found.system).tolist() == [0, 3, 6]
    assert "bond_error" in Truth(
        found, found.recordings[0], OBSERVED, COURSE, (0.5, 4.0)
    ).measured(true_courses(found.recordings, OBSERVED, COURSE, 1))  # fmt: skip
