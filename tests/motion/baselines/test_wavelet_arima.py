import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.motion.small_systems import FRAME_PS, argon, chain, waters, window

from undula.errors import InputError, UsageError
from undula.motion.baselines.wavelet_arima import (
    WaveletArima,
    WaveletArimaConfig,
    band_forecast,
    bands,
)
from undula.motion.windows import AtomForecaster

pytest.importorskip("pywt", reason="PyWavelets is not installed")
pytest.importorskip("statsmodels", reason="statsmodels is not installed")

SMALL = WaveletArimaConfig(
    observed=64, levels=2, autoregressive=1, differences=1, moving_average=0, atoms=None
)
LAGS = FRAME_PS * torch.tensor([1.0, 2.5, 7.0], dtype=torch.float64)


def autoregression(share: float, count: int) -> np.ndarray:
    noise = np.random.default_rng(0).normal(size=count)
    series = np.zeros(count)
    for place in range(1, count):
        series[place] = share * series[place - 1] + noise[place]
    return series


@pytest.fixture(scope="module")
def seen():
    return window(argon(3), frames=70)


@pytest.mark.parametrize("boundary", ["symmetric", "periodization"])
def test_bands_add_up_to_the_series(boundary):
    series = autoregression(0.9, 64)
    found = bands(series, "db4", 3, boundary)
    assert len(found) == 4
    np.testing.assert_allclose(sum(found), series, atol=1e-12)


def test_finds_the_decay_of_an_autoregression():
    series = autoregression(0.8, 2000)
    orders = [(0, 0, 0), (1, 0, 0)]
    ahead = band_forecast(series, 30, orders, 50) - series.mean()
    np.testing.assert_allclose(ahead[1:4] / ahead[:3], 0.8, atol=0.04)
    assert abs(ahead[-1]) < 0.1


def test_chooses_differences_for_a_straight_walk_and_none_for_noise():
    noise = np.random.default_rng(1).normal(size=300)
    orders = [(0, 0, 0), (0, 1, 0)]
    np.testing.assert_allclose(band_forecast(noise, 3, orders, 50), noise.mean(), atol=1e-3)
    walk = np.cumsum(noise)
    np.testing.assert_allclose(band_forecast(walk, 3, orders, 50), walk[-1], atol=1e-3)


def test_what_stands_still_stays(seen):
    still = replace(seen, positions=seen.now.expand(70, -1, -1).contiguous())
    found = WaveletArima(config=SMALL).forecast(still, LAGS)
    assert torch.equal(found.mean, seen.now.expand(3, -1, -1))


def test_is_a_forecaster_without_a_distribution(seen):
    row = WaveletArima(config=SMALL)
    assert isinstance(row, AtomForecaster)
    assert row.samples(seen, LAGS, 2, torch.Generator()) is None
    assert row.name == "Wavelet ARIMA"


def test_shifts_with_the_window_and_relabels_with_the_atoms(seen):
    row = WaveletArima(config=SMALL)
    plain = row.forecast(seen, LAGS).mean
    away = replace(seen, positions=seen.positions + 8.0)
    torch.testing.assert_close(row.forecast(away, LAGS).mean, plain + 8, rtol=0, atol=1e-4)
    order = torch.tensor([2, 0, 1])
    dealt = replace(seen, positions=seen.positions[:, order])
    assert torch.equal(row.forecast(dealt, LAGS).mean, plain[:, order])


def test_lies_on_a_line_between_frames_and_on_now_at_once(seen):
    row = WaveletArima(config=SMALL)
    lags = FRAME_PS * torch.tensor([0.0, 1, 2, 1.5], dtype=torch.float64)
    now, one, two, between = row.forecast(seen, lags).mean
    assert torch.equal(now, seen.now)
    torch.testing.assert_close(between, (one + two) / 2)


def test_atoms_that_are_not_chosen_stay(seen):
    row = WaveletArima(config=replace(SMALL, atoms=1))
    found = row.forecast(seen, LAGS).mean
    assert row.forecast_atoms(argon(3)).tolist() == [0]
    assert torch.equal(found[:, 1:], seen.now[1:].expand(3, -1, -1))
    whole = WaveletArima(config=SMALL).forecast(seen, LAGS).mean
    assert torch.equal(found[:, 0], whole[:, 0])


def test_the_atoms_that_are_chosen_are_whole_molecules_spread_over_the_list():
    row = WaveletArima(config=replace(SMALL, atoms=4))
    assert row.forecast_atoms(argon(8)).tolist() == [0, 2, 4, 6]
    assert row.forecast_atoms(waters(4)).tolist() == [0, 1, 2, 6, 7, 8]
    assert row.forecast_atoms(chain(9)).tolist() == list(range(9))


def test_screening_finds_the_order_that_made_a_band_and_loses_little_by_it():
    random = np.random.default_rng(0)
    band = np.zeros(400)
    for now in range(2, 400):
        band[now] = 1.6 * band[now - 1] - 0.8 * band[now - 2] + random.normal()
    orders = WaveletArimaConfig().orders
    every = band_forecast(band, 10, orders, 20)
    few = band_forecast(band, 10, orders, 20, screened=3)
    np.testing.assert_allclose(few, every, atol=0.1 * band.std())
    one = band_forecast(band, 10, orders, 20, screened=1)
    np.testing.assert_allclose(one, every, atol=0.2 * band.std())


def test_says_what_it_was_fitted_on():
    assert "without training; the likelihood of 3 of 18 orders" in WaveletArima().remark


def test_several_processes_give_the_same_bytes(seen):
    alone = WaveletArima(config=replace(SMALL, atoms=1))
    shared = WaveletArima(config=replace(SMALL, atoms=1, workers=2))
    before = dict(os.environ)
    assert torch.equal(alone.forecast(seen, LAGS).mean, shared.forecast(seen, LAGS).mean)
    assert dict(os.environ) == before


def test_frames_before_those_it_uses_do_not_matter(seen):
    row = WaveletArima(config=SMALL)
    assert torch.equal(row.forecast(seen, LAGS).mean, row.forecast(seen.last(64), LAGS).mean)


def test_refuses_what_cannot_be_meant(seen):
    row = WaveletArima(config=SMALL)
    with pytest.raises(InputError, match="too few for wavelets"):
        row.forecast(seen.last(7), LAGS)
    with pytest.raises(UsageError, match="none negative"):
        row.forecast(seen, -LAGS)
    with pytest.raises(UsageError, match=r"arima\.levels"):
        WaveletArimaConfig(levels=-1)
