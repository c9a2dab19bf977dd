r"""Wavelet ARIMA: every coordinate of every atom as a time series of its own.

The series of an atom's coordinate (its displacement from now, over the window) is cut into bands
by a wavelet transform, an ARIMA model is fitted to each band, and the forecasts are added:

.. math:: x(f) = \sum_b x_b(f), \qquad \hat x(f) = \sum_b \hat x_b(f)

It learns from nothing but the window, hears no neighbour, and knows no velocity but differences.
Far ahead only the differenced models have an opinion: without differences a forecast ends at the
mean of its band, with them where the band's last values were. It is not equivariant: axes are
taken one by one, and another frame of axes gives other orders. Shifts and relabelling it respects.

Source: the slides' row "Wavelet ARIMA", a citation without settings; the form (db4, three levels,
bands at full length, orders up to (2, 1, 2) by AIC) is ours. Differs from what is usual: the
series is not wrapped into the box, and beyond its ends it is continued as its mirror image. A
periodic continuation (``boundary: periodization``) joins the last frame to the first, which for
atoms that have gone somewhere is a jump: on argon the error 0.1 ps ahead is then 12 Å, against
0.07 Å (and 0.10 Å for the last position; two axes of 6 atoms, orders (1, 0, 1) and (2, 1, 2)).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from itertools import product
from multiprocessing import get_context
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from undula.errors import InputError, MachineError, UsageError
from undula.motion.baselines.trivial import WithoutDistribution
from undula.motion.windows import AtomForecast, Window
from undula.types import MolecularSystem

_INSTALL = (
    'the row "Wavelet ARIMA" needs PyWavelets and statsmodels: pip install "undula[baselines]"'
)
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_STILL = 1e-9
"""Å: a band that moves less than this is a constant, which has no likelihood."""


@dataclass(frozen=True, kw_only=True)
class WaveletArimaConfig:
    """How series are cut up and fitted.

    Attributes:
        observed: Last frames that are used; whole multiples of 2 to the number of levels.
        wavelet: Its name in PyWavelets.
        levels: Details split off; there is one band more.
        boundary: How the series goes on beyond its ends, in PyWavelets' words.
        autoregressive: Highest order p.
        differences: Highest order d.
        moving_average: Highest order q.
        screened: Orders whose likelihood is searched for its greatest value: those of the least
            AIC by the method of Hannan and Rissanen, which takes a hundredth of the time. On 8
            bands of argon 3 of 18 held the best order 7 times, and a tenth of a percent less
            than its AIC once. None for all.
        iterations: Of that search, at most.
        atoms: How many atoms are forecast, at least, in whole molecules that are evenly spread
            over the list; the others are forecast to stay. None for all.
        workers: Processes, no more than cores, each with one thread; 1 computes in this one, five
            times as slowly where its linear algebra has several threads (``OMP_NUM_THREADS=1``
            cures that).
    """

    observed: int = 2000
    wavelet: str = "db4"
    levels: int = 3
    boundary: Literal["symmetric", "periodization"] = "symmetric"
    autoregressive: int = 2
    differences: int = 1
    moving_average: int = 2
    screened: int | None = 3
    iterations: int = 50
    atoms: int | None = 16
    workers: int = 1

    def __post_init__(self) -> None:
        at_least = {"observed": 2, "levels": 0, "autoregressive": 0, "differences": 0}
        at_least |= {"moving_average": 0, "iterations": 1, "workers": 1}
        for name, least in at_least.items():
            if getattr(self, name) < least:
                raise UsageError(
                    f"arima.{name} must be at least {least}, not {getattr(self, name)}"
                )
        for name in ("screened", "atoms"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"arima.{name} must be at least 1, not {value}")
        if self.boundary not in ("symmetric", "periodization"):
            raise UsageError(
                f'arima.boundary must be "symmetric" or "periodization", not {self.boundary!r}'
            )

    @property
    def orders(self) -> list[tuple[int, int, int]]:
        """All orders (p, d, q) that are tried."""
        return list(
            product(
                range(self.autoregressive + 1),
                range(self.differences + 1),
                range(self.moving_average + 1),
            )
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class WaveletArima(WithoutDistribution):
    """Wavelet ARIMA as a forecaster.

    Attributes:
        config: How series are cut up and fitted.
    """

    config: WaveletArimaConfig = field(default_factory=WaveletArimaConfig)

    @property
    def name(self) -> str:
        """What it is called in tables."""
        return "Wavelet ARIMA"

    @property
    def remark(self) -> str:
        """What it is fitted on."""
        config = self.config
        tried = len(config.orders)
        fitted = tried if config.screened is None else min(config.screened, tried)
        return (
            f"fitted in each window on its last {config.observed} frames at most, without "
            f"training; the likelihood of {fitted} of {tried} orders decides"
        )

    def forecast_atoms(self, system: MolecularSystem) -> Int[Tensor, " chosen"]:
        """Return which atoms are forecast: whole molecules, so that these can be wrapped."""
        wanted, atoms, molecules = self.config.atoms, len(system), system.molecule_count
        if wanted is None or wanted >= atoms:
            return torch.arange(atoms)
        count = -(-wanted * molecules // atoms)
        chosen = torch.arange(count) * molecules // count
        return torch.isin(system.molecules, chosen).nonzero().squeeze(-1)

    def forecast(self, window: Window, lags_ps: Float[Tensor, " times"]) -> AtomForecast:
        """Forecast positions; between frames on the straight line.

        Raises:
            InputError: The window is too short for a single wavelet.
            UsageError: There is no time, or a negative one.
            MachineError: PyWavelets or statsmodels is not installed.
        """
        lags = lags_ps.to(window.positions) / window.frame_ps
        if len(lags) == 0 or bool((~(lags >= 0)).any()):
            raise UsageError("a forecast needs times after now, at least one and none negative")
        series, chosen = self._series(window), self.forecast_atoms(window.system)
        steps = int(lags.max().ceil()) + 1
        courses = _courses(series, steps, self.config)
        moved = torch.from_numpy(np.stack(courses)).to(lags).unflatten(0, (-1, 3))
        moved = torch.cat([torch.zeros_like(moved[..., :1]), moved], dim=-1)
        lower = lags.floor().long()
        between = torch.lerp(moved[..., lower], moved[..., lower + 1], lags - lower)
        mean = window.now.repeat(len(lags), 1, 1)
        chosen = chosen.to(mean.device)
        mean[:, chosen] += between.permute(2, 0, 1)
        return AtomForecast(lags_ps=lags_ps.to(lags), mean=mean)

    def _series(self, window: Window) -> list[np.ndarray]:
        """Return displacements from now, one series for each axis of each chosen atom."""
        grain = 2**self.config.levels
        frames = min(len(window), self.config.observed) // grain * grain
        if frames < 2 * grain:
            raise InputError(
                f"{window.system.structure.name}: {len(window)} observed frames are too few for "
                f"wavelets of {self.config.levels} levels; {2 * grain} are needed"
            )
        chosen = self.forecast_atoms(window.system).to(window.positions.device)
        moved = (window.positions[-frames:, chosen] - window.now[chosen]).double()
        return list(moved.permute(1, 2, 0).flatten(0, 1).cpu().numpy())


def bands(series: np.ndarray, wavelet: str, levels: int, boundary: str) -> list[np.ndarray]:
    """Cut a series into bands that add up to it, the slowest first.

    Args:
        series: Numbers at even times; as many as a multiple of 2 to the number of levels.
        wavelet: Its name in PyWavelets.
        levels: Bands, less one.
        boundary: How it goes on beyond its ends.

    Raises:
        MachineError: PyWavelets is not installed.
    """
    pywt, _ = _libraries()
    with warnings.catch_warnings():
        # PyWavelets says that short series are all boundary; their bands still add up.
        warnings.simplefilter("ignore", UserWarning)
        parts = pywt.wavedec(series, wavelet, mode=boundary, level=levels)
    found = []
    for kept in range(len(parts)):
        alone = [one if place == kept else np.zeros_like(one) for place, one in enumerate(parts)]
        found.append(pywt.waverec(alone, wavelet, mode=boundary)[: len(series)])
    return found


def band_forecast(
    band: np.ndarray,
    steps: int,
    orders: Sequence[tuple[int, int, int]],
    iterations: int,
    screened: int | None = None,
) -> np.ndarray:
    """Forecast one band by the ARIMA model of the least AIC.

    Orders whose likelihood cannot be computed are passed over. Likelihoods of differenced models
    leave their first value out, so AIC leans a little towards them, as usual. Models without
    differences have a constant.

    Args:
        band: Numbers at even times.
        steps: How many to forecast.
        orders: Those tried, (p, d, q).
        iterations: Of the search for the greatest likelihood, at most.
        screened: How many of the orders are fitted by likelihood; see `WaveletArimaConfig`.

    Returns:
        Forecasts; of a band that does not move, where it is.

    Raises:
        MachineError: statsmodels is not installed.
        InputError: No order can be fitted.
    """
    _, arima = _libraries()
    size = float(np.ptp(band))
    if size < _STILL:
        return np.full(steps, band[-1])
    best, least = None, np.inf
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        # Of starting values and searches that end early; AIC judges the outcome.
        warnings.simplefilter("ignore")
        for order in _screened(band / size, orders, screened):
            p, d, q = order
            # Taking the scale out of the search is quicker; where it is all there is, it stays.
            settings = {"trend": "n" if d else "c", "concentrate_scale": p + q > 0 or d == 0}
            try:
                model = arima.ARIMA(band / size, order=order, **settings)
                fitted = model.fit(cov_type="none", method_kwargs={"maxiter": iterations})
            except (ValueError, np.linalg.LinAlgError):
                continue
            if fitted.aic < least:
                best, least = fitted, fitted.aic
    if best is None:
        raise InputError("no ARIMA model could be fitted to a band of an atom's coordinate")
    return np.asarray(best.forecast(steps)) * size


def _screened(
    band: np.ndarray, orders: Sequence[tuple[int, int, int]], count: int | None
) -> Sequence[tuple[int, int, int]]:
    """Return the orders of the least AIC by two regressions; all where none can be computed.

    Source: Hannan and Rissanen, Recursive estimation of mixed autoregressive-moving average order
    (Biometrika 1982), as in statsmodels.
    """
    if count is None or count >= len(orders):
        return orders
    estimate = import_module("statsmodels.tsa.arima.estimators.hannan_rissanen").hannan_rissanen
    judged: list[tuple[float, tuple[int, int, int]]] = []
    for p, d, q in orders:
        series = np.diff(band, n=d)
        try:
            found, _ = estimate(series, ar_order=p, ma_order=q, demean=d == 0)
        except (ValueError, np.linalg.LinAlgError):
            continue
        variance = float(found.sigma2)
        if variance > 0:
            size = 2 * (p + q + 1 + (d == 0))
            judged.append((len(series) * np.log(variance) + size, (p, d, q)))
    return [order for _, order in sorted(judged)[:count]] or orders


def series_forecast(series: np.ndarray, steps: int, config: WaveletArimaConfig) -> np.ndarray:
    """Forecast one series: cut it into bands, forecast each, add them up."""
    parts = bands(series, config.wavelet, config.levels, config.boundary)
    ahead = [
        band_forecast(part, steps, config.orders, config.iterations, config.screened)
        for part in parts
    ]
    return np.sum(ahead, axis=0)


def _courses(
    series: Sequence[np.ndarray], steps: int, config: WaveletArimaConfig
) -> list[np.ndarray]:
    """Forecast many series, in several processes where that is asked for."""
    work = partial(series_forecast, steps=steps, config=config)
    workers = min(config.workers, len(series), os.cpu_count() or 1)
    if workers == 1:
        return [work(one) for one in series]
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
    try:
        with _children_with_one_thread(), pool:
            return list(pool.map(work, series))
    except BrokenProcessPool as error:
        raise MachineError(
            f"one of the {workers} processes that fit ARIMA models was killed, perhaps for want of "
            "memory; fewer workers need less"
        ) from error


@contextmanager
def _children_with_one_thread() -> Iterator[None]:
    """Let processes that are started meanwhile compute with one thread each."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _libraries() -> tuple[Any, Any]:
    """Import PyWavelets and the ARIMA models of statsmodels."""
    try:
        return import_module("pywt"), import_module("statsmodels.tsa.arima.model")
    except ImportError as error:
        raise MachineError(_INSTALL) from error
