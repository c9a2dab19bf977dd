import pytest
import torch

from undula.errors import UsageError
from undula.motion.hierarchy import Hierarchy

LEVELS = {
    "one": Hierarchy(horizon=12, strides=(1,)),
    "two": Hierarchy(horizon=60, strides=(20, 5)),
    "the default": Hierarchy(),
    "four": Hierarchy(horizon=240, strides=(120, 24, 6, 1)),
}
EVERY = pytest.mark.parametrize("hierarchy", LEVELS.values(), ids=LEVELS.keys())


def test_the_default_has_one_twenty_and_four_hundred_segments():
    default = Hierarchy()
    assert default.levels == 3
    assert default.lengths == (8000, 400, 20)
    assert [8000 // length for length in default.lengths] == [1, 20, 400]


@pytest.mark.parametrize(
    "strides",
    [(300,), (400, 400), (400, 30), (20, 400), (8000,), (0,), (-1,), (400, 20, 3)],
    ids=str,
)
def test_refuses_strides_that_do_not_nest(strides):
    with pytest.raises(UsageError, match=r"levels\.strides"):
        Hierarchy(horizon=8000, strides=strides)


def test_refuses_no_strides_and_no_horizon():
    with pytest.raises(UsageError, match="at least one stride"):
        Hierarchy(strides=())
    with pytest.raises(UsageError, match=r"levels\.strides"):
        Hierarchy(horizon=0, strides=(1,))


@EVERY
def test_every_time_lies_in_its_segment(hierarchy):
    lags = torch.linspace(0, hierarchy.horizon, 997, dtype=torch.float64)
    for level, length in enumerate(hierarchy.lengths):
        segment, tau = hierarchy.places(lags, level)
        assert int(segment.min()) == 0
        assert int(segment.max()) == hierarchy.horizon // length - 1
        assert float(tau.min()) == 0
        assert float(tau.max()) == 1
        torch.testing.assert_close((segment + tau) * length, lags, rtol=0, atol=1e-9)


@EVERY
def test_segments_are_nested_in_those_of_the_level_above_and_start_at_its_knots(hierarchy):
    lags = torch.arange(0, hierarchy.horizon, dtype=torch.float64)
    for level in range(1, hierarchy.levels):
        coarse, _ = hierarchy.places(lags, level - 1)
        fine, _ = hierarchy.places(lags, level)
        start = fine * hierarchy.lengths[level]
        again, tau = hierarchy.places(start.double(), level - 1)
        assert torch.equal(again, coarse)
        knots = tau * hierarchy.lengths[level - 1] / hierarchy.strides[level - 1]
        torch.testing.assert_close(knots, knots.round(), rtol=0, atol=1e-9)


def test_a_time_at_which_two_segments_meet_belongs_to_the_later_one():
    hierarchy = Hierarchy()
    segment, tau = hierarchy.places(torch.tensor([20.0, 400.0, 8000.0]), 2)
    assert segment.tolist() == [1, 20, 399]
    assert tau.tolist() == [0, 0, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("frame_ps", [0.1, 0.002, 0.3, 1.0])
def test_a_whole_frame_is_found_in_its_segment_however_its_time_was_rounded(dtype, frame_ps):
    hierarchy = Hierarchy()
    frames = torch.arange(8001)
    lags = hierarchy.checked((frames * frame_ps).to(dtype) / frame_ps)
    for level, length in enumerate(hierarchy.lengths):
        segment, tau = hierarchy.places(lags, level)
        expected = (frames // length).clamp(max=8000 // length - 1)
        assert torch.equal(segment, expected)
        assert float(tau.min()) >= 0
        assert float(tau.max()) <= 1


def test_refuses_times_before_now_and_beyond_the_horizon():
    hierarchy = LEVELS["one"]
    assert torch.equal(hierarchy.checked(torch.tensor([0.0, 12.0])), torch.tensor([0.0, 12.0]))
    for lag in (-0.5, 12.1, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="from 0 to 12 frames"):
            hierarchy.checked(torch.tensor([1.0, lag]))


def test_seams_are_where_coarser_segments_start_and_the_frames_beside_them():
    assert LEVELS["one"].seams == ()
    assert Hierarchy(horizon=800, strides=(200, 20, 1)).seams == (199, 200, 220, 399, 400, 420)
    assert LEVELS["the default"].seams[:3] == (399, 400, 420)
    assert LEVELS["the default"].seams[-1] == 6420
