"""Samples dressed with errors of training windows."""

import pytest
import torch

from undula.errors import InputError
from undula.motion.dressing import TOGETHER, Dressing, dressing_starts

KNOTS = (1, 10, 100)
MEMBERS = 5


@pytest.fixture
def dressing():
    """At knot k member m errs by 10 k + m everywhere."""
    values = 10.0 * torch.arange(3)[:, None] + torch.arange(MEMBERS)
    return Dressing(knots=KNOTS, errors=values[:, :, None, None].expand(3, MEMBERS, 2, 3).clone())


def drawn(dressing, lags, clock, count=400, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return dressing.drawn(torch.tensor(lags), torch.tensor(clock), count, generator)[:, :, 0, 0]


def test_errors_at_each_time_are_those_of_the_nearest_knot(dressing):
    found = drawn(dressing, [1.0, 2.0, 20.0, 90.0], [0.0, 1.0, 2.0, 3.0])
    assert torch.equal((found // 10).unique(dim=0), torch.tensor([[0.0, 0.0, 1.0, 2.0]]))


def test_every_member_is_equally_likely_at_each_time(dressing):
    member = drawn(dressing, [1.0, 100.0], [0.0, 0.3], count=4000) % 10
    for column in member.T:
        shares = torch.bincount(column.long(), minlength=MEMBERS) / len(column)
        torch.testing.assert_close(shares, torch.full((MEMBERS,), 0.2), atol=0.03, rtol=0)


def test_a_course_keeps_its_member_while_the_clock_stands_still(dressing):
    member = drawn(dressing, [1.0, 10.0, 100.0], [0.0, 0.0, 0.0]) % 10
    assert torch.equal(member[:, 0], member[:, 2])


def test_members_are_forgotten_as_fast_as_the_clock_goes(dressing):
    member = drawn(dressing, [1.0, 10.0], [0.0, 0.7], count=6000) % 10
    kept = float(torch.exp(torch.tensor(-0.7)))
    same = float((member[:, 0] == member[:, 1]).double().mean())
    assert same == pytest.approx(kept + (1 - kept) / MEMBERS, abs=0.02)


def test_times_may_be_in_any_order(dressing):
    forward = drawn(dressing, [1.0, 10.0, 100.0], [0.0, 0.5, 1.0])
    backward = drawn(dressing, [100.0, 10.0, 1.0], [1.0, 0.5, 0.0])
    assert torch.equal(forward, backward.flip(1))


def test_the_same_seed_draws_the_same_errors(dressing):
    assert torch.equal(drawn(dressing, [3.0], [0.2], seed=4), drawn(dressing, [3.0], [0.2], seed=4))


def test_windows_end_early_enough_for_their_knot_and_stay_together_for_near_ones():
    starts = dressing_starts(50, 3000, (1, 20, TOGETHER, 2000), 7)
    assert starts[0] == starts[1] == starts[2]
    assert [some[0] for some in starts] == [50] * 4
    assert [some[-1] for some in starts] == [3000 - 1 - TOGETHER] * 3 + [3000 - 1 - 2000]
    assert all(len(some) == 7 for some in starts)


def test_a_recording_shorter_than_a_knot_is_refused():
    with pytest.raises(InputError, match="too few"):
        dressing_starts(50, 100, (1, 80), 7)


def test_refuses_errors_without_their_knots():
    with pytest.raises(InputError, match="at each of its knots"):
        Dressing(knots=(1, 2), errors=torch.zeros(1, 2, 3, 3))
