"""The kinds of models of moving atoms by name: how each is trained, read back and asked.

==============  ===========================================  ======================================
kind            settings of a training                       forecaster
==============  ===========================================  ======================================
domino          `undula.motion.training.MotionConfig`        `undula.motion.trained.TrainedMotion`
lg-ode          `LGODETraining`                              `TrainedLGODE`
roller          `RollerTraining`                             `TrainedRoller`
ito             `ItoTraining`                                `TrainedIto`
scinet          `SCINetTraining`                             `TrainedSCINet`
wavelet-arima   none: `WaveletArimaConfig`                   `WaveletArima`, fitted in each window
==============  ===========================================  ======================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import nn

from undula.errors import InputError
from undula.io.recordings import Recordings
from undula.learn.checkpoint import load_weights
from undula.learn.plateau import PlateauConfig
from undula.learn.progress import Progress
from undula.learn.recipe import FitConfig
from undula.motion.baselines import ito, lg_ode_forecast, roller, scinet
from undula.motion.baselines.ito_training import ItoTraining, train_ito
from undula.motion.baselines.wavelet_arima import WaveletArima, WaveletArimaConfig
from undula.motion.demands import Demands
from undula.motion.trained import KIND as DOMINO
from undula.motion.trained import WEIGHTS, TrainedMotion, together
from undula.motion.training import MotionConfig, train_domino
from undula.motion.windows import AtomForecaster, Forecasts


@runtime_checkable
class TrainedForecaster(AtomForecaster, Protocol):
    """A forecaster with weights, in one file of its run folder."""

    @property
    def model(self) -> nn.Module:
        """The network; its ``config`` says what it is made of."""
        ...

    @property
    def provenance(self) -> dict[str, Any]:
        """What it was trained on and how."""
        ...

    @property
    def demands(self) -> Demands:
        """What it takes and gives."""
        ...

    def save(self, folder: Path) -> None:
        """Write the weights with what it takes to build the model again."""
        ...


@dataclass(frozen=True, kw_only=True)
class OtherWay:
    """A second way to ask a trained model, without training it again.

    Attributes:
        forecaster: Of the model and a number.
        said: Of the number, for tables.
        samples: Whether its samples are scored too.
        together: Of the model and some of its other ways, as they forecast together in less time;
            none where they share nothing.
    """

    forecaster: Callable[[Any, int], AtomForecaster]
    said: str
    samples: bool
    together: Callable[[Sequence[Any]], Forecasts] | None = None


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of model that is trained.

    Attributes:
        name: In protocols and presets.
        section: Its key in a training configuration.
        stored: How its weights name it.
        settings: A dataclass: ``model``, ``batch``, ``recordings`` and ``horizon``, some more.
        train: Trains in a run folder, or goes on there.
        load: Reads what was trained.
        plateau: The rule by which its trainings go on until they no longer get better.
        other_way: Asked for by a number, or none.
    """

    name: str
    section: str
    stored: str
    settings: type
    train: Callable[..., TrainedForecaster]
    load: Callable[[Path], TrainedForecaster]
    plateau: PlateauConfig
    other_way: OtherWay | None = None

    def trained(
        self,
        recordings: Recordings,
        out: Path,
        *,
        settings: Any,
        fit_config: FitConfig,
        progress: Progress,
    ) -> TrainedForecaster:
        """Train in a run folder, or go on there.

        Args:
            recordings: Of one system; only those that the settings name are read.
            out: The run folder.
            settings: Of the kind's own class.
            fit_config: The loop.
            progress: Told how it goes.

        Raises:
            InputError: A recording does not exist or is too short.
            UsageError: A recording is named twice; the folder holds a run of another
                configuration.
        """
        return self.train(
            recordings, out, settings=settings, fit_config=fit_config, progress=progress
        )


@dataclass(frozen=True, kw_only=True)
class FittedKind:
    """A kind of forecaster that learns from nothing but each window.

    Attributes:
        name: In protocols and presets.
        settings: A dataclass.
        make: Makes the forecaster.
    """

    name: str
    settings: type
    make: Callable[[Any], AtomForecaster]


_SKILL = PlateauConfig(measure="skill_near", gain=0.01, cycles=16)

KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind(
            name="domino",
            section="motion",
            stored=DOMINO,
            settings=MotionConfig,
            train=train_domino,
            load=TrainedMotion.load,
            plateau=_SKILL,
            other_way=OtherWay(
                forecaster=TrainedMotion.at_level,
                said="decoded at level {}",
                samples=False,
                together=together,
            ),
        ),
        Kind(
            name="lg-ode",
            section="lg_ode",
            stored=lg_ode_forecast.KIND,
            settings=lg_ode_forecast.LGODETraining,
            train=lg_ode_forecast.train_lg_ode,
            load=lg_ode_forecast.TrainedLGODE.load,
            plateau=_SKILL,
        ),
        Kind(
            name="roller",
            section="roller",
            stored=roller.KIND,
            settings=roller.RollerTraining,
            train=roller.train_roller,
            load=roller.TrainedRoller.load,
            # The mean over lags of its error as a share of the last position's: strides may be
            # too long for a skill near now.
            plateau=PlateauConfig(measure="error", minimise=True),
        ),
        Kind(
            name="ito",
            section="ito",
            stored=ito.KIND,
            settings=ItoTraining,
            train=train_ito,
            load=ito.TrainedIto.load,
            # Its samples say little about a mean; here 1 is knowing nothing, as for a skill.
            plateau=PlateauConfig(measure="denoising", minimise=True),
            other_way=OtherWay(
                forecaster=ito.TrainedIto.rolling,
                said="rolled out in lags of {} frames",
                samples=True,
            ),
        ),
        Kind(
            name="scinet",
            section="scinet",
            stored=scinet.KIND,
            settings=scinet.SCINetTraining,
            train=scinet.train_scinet,
            load=scinet.TrainedSCINet.load,
            plateau=_SKILL,
        ),
    )
}
"""What is trained."""

FITTED_KINDS: Mapping[str, FittedKind] = {
    kind.name: kind
    for kind in (
        FittedKind(
            name="wavelet-arima",
            settings=WaveletArimaConfig,
            make=lambda settings: WaveletArima(config=settings),
        ),
    )
}
"""What is fitted in each window."""


def stored_kind(folder: Path) -> Kind | None:
    """Return the kind of the finished model in a run folder; none if there is none.

    A run that was stopped between its last step and its last file has weights of no kind.

    Raises:
        InputError: The weights are damaged, or of something else than atoms.
    """
    path = folder / WEIGHTS
    if not path.is_file():
        return None
    metadata = load_weights(path)[1]
    if "kind" not in metadata:
        return None
    for kind in KINDS.values():
        if kind.stored == metadata["kind"]:
            return kind
    raise InputError(f"{path} is not a model of moving atoms")


def load_forecaster(folder: Path) -> TrainedForecaster:
    """Read a trained model of any kind.

    Raises:
        InputError: There is no finished model of moving atoms, or a damaged one.
    """
    kind = stored_kind(folder)
    if kind is None:
        raise InputError(f"{folder} holds no finished model of moving atoms")
    return kind.load(folder)
