import math

import torch

from undula.surface.time import linear_time, relaxation


def test_linear_time_runs_from_minus_one_to_one_over_the_horizon():
    lag = torch.tensor([0.0, 50.0, 100.0, 200.0])
    assert linear_time(lag, 100.0)[:, 0].tolist() == [-1.0, 0.0, 1.0, 3.0]


def test_relaxation_starts_at_zero_and_saturates_at_one():
    lag = torch.tensor([0.0, 1e9], dtype=torch.float64)
    features = relaxation(lag, 1.0, 100.0, 3)
    assert features.shape == (2, 3)
    assert (features[0] == 0).all()
    torch.testing.assert_close(features[1], torch.ones(3, dtype=torch.float64))


def test_relaxation_reaches_one_minus_one_over_e_at_its_time_constants():
    lag = torch.tensor([1.0, 10.0, 100.0], dtype=torch.float64)
    features = relaxation(lag, 1.0, 100.0, 3)
    expected = torch.full((3,), 1 - math.exp(-1), dtype=torch.float64)
    torch.testing.assert_close(features.diagonal(), expected)


def test_one_relaxation_has_the_shortest_time_constant():
    features = relaxation(torch.tensor([2.0]), 2.0, 50.0, 1)
    torch.testing.assert_close(features, torch.tensor([[1 - math.exp(-1)]]))
