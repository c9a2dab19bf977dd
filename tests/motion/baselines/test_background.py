import pytest
import torch
from tests.motion.small_systems import argon, window

from undula.errors import InputError, UsageError
from undula.motion.baselines.background import Scales, fitted_scales
from undula.motion.climatology_fit import Example
from undula.motion.posing import Pose

KNOTS = (1, 2, 8)


@pytest.fixture(scope="module")
def fitted() -> Scales:
    seen = window(argon(4))
    way = torch.ones(4, 3, dtype=torch.float64)
    future = torch.stack([seen.now + knot * way for knot in KNOTS])
    return fitted_scales([Example(window=seen, future=future)], KNOTS)


def test_measures_the_root_mean_square_way_to_every_knot(fitted):
    torch.testing.assert_close(fitted.displacement, torch.tensor([[1.0, 2, 8]]))
    seen = window(argon(4))
    assert float(fitted.speed) == pytest.approx(float(seen.velocities[-1].square().mean().sqrt()))
    back = (seen.positions - seen.now).square().mean().sqrt()
    assert float(fitted.reach) == pytest.approx(float(back))


def test_is_linear_between_knots_and_nothing_at_once(fitted):
    lags = torch.tensor([0.0, 0.5, 1.5, 5, 8])
    found = fitted.units(lags, torch.zeros(2, dtype=torch.int64))
    torch.testing.assert_close(found, lags[:, None].expand(-1, 2))


def test_knows_kinds_frames_and_horizon(fitted):
    seen = window(argon(4))
    assert fitted.horizon == 8
    torch.testing.assert_close(
        fitted.checked(seen, torch.tensor([0.2, 0.8])),
        torch.tensor([2.0, 8], dtype=torch.float64),
    )
    for wrong in (torch.zeros(0), torch.tensor([-0.1]), torch.tensor([0.9])):
        with pytest.raises(UsageError):
            fitted.checked(seen, wrong)
    with pytest.raises(InputError, match="at least one training window"):
        fitted_scales([], KNOTS)


def test_a_pose_is_undone():
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0]
    shift, places = torch.ones(3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    back = Pose(turn=turn, shift=shift).places_back(places @ turn.T + shift)
    torch.testing.assert_close(back, places)
    assert Pose().places_back(places) is places
