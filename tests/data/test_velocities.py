import numpy as np
import pytest
import torch
from tests.data.fixed_point import swinging

from undula.data.velocities import differences


def test_slow_motion_may_be_differenced_and_fast_motion_not():
    for period, valid in ((2.0, True), (0.37, False)):
        positions, velocities = (
            torch.from_numpy(10 * x) for x in swinging(100, 50, 0, period_ps=period)
        )
        for known in (velocities, None):
            found = differences(positions, 0.1, known)
            assert found.by == ("halving" if known is None else "velocities")
            assert found.valid is valid


def test_the_error_of_differences_is_that_of_the_closed_form():
    theta = 2.0
    positions = torch.sin(theta * torch.arange(400, dtype=torch.float64))[:, None, None]
    velocities = theta * torch.cos(theta * torch.arange(400, dtype=torch.float64))[:, None, None]
    kept = (8 * np.sin(theta) - np.sin(2 * theta)) / (6 * theta)
    found = differences(positions.expand(-1, 1, 3), 1.0, velocities.expand(-1, 1, 3))
    assert found.error == pytest.approx(1 - kept, abs=1e-3)


def test_too_few_frames_say_nothing_about_differences_and_still_atoms_have_none_wrong():
    positions = torch.randn(9, 2, 3)
    assert differences(positions[:8], 0.1) is None
    assert differences(positions[:4], 0.1, positions[:4]) is None
    assert differences(positions, 0.1).by == "halving"
    assert differences(positions[:5], 0.1, positions[:3]).by == "velocities"
    assert differences(torch.ones(9, 2, 3), 0.1).error == 0
