"""Forecasts anybody could make: the rows that a model must beat.

==================  =========================================  ==================  ============
row                 mean                                       velocity            distribution
==================  =========================================  ==================  ============
constant            training mean, or the centre of the box    0                   none
observed mean       mean of the window                         0                   none
last position       where it is now                            0                   fitted
ballistic           straight on                                that of now         none
damped ballistic    r + a(lag) v                               a'(lag) v           fitted
drift + diffusion   along with the centre of mass              that of the centre  fitted
linear response     `undula.motion.climatology`, every term    its derivative      fitted
==================  =========================================  ==================  ============

The last four are one class with different configurations (`LINEAR_ROWS`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from undula.errors import InputError
from undula.motion.climatology import Climatology, ClimatologyConfig, Example, fit_climatologies
from undula.motion.noise import climatological_noise
from undula.motion.windows import AtomForecast, AtomForecaster, Window

LINEAR_ROWS: Mapping[str, ClimatologyConfig] = {
    "last position": ClimatologyConfig(velocity=False, earlier=(), mean=False, drift=False),
    "damped ballistic": ClimatologyConfig(earlier=(), mean=False, drift=False),
    "drift + diffusion": ClimatologyConfig(velocity=False, earlier=(), mean=False),
    "linear response": ClimatologyConfig(),
}
"""What each fitted row uses."""


class WithoutDistribution:
    """A forecaster that says where, not how sure."""

    def samples(
        self,
        window: Window,  # noqa: ARG002
        lags_ps: Float[Tensor, " times"],  # noqa: ARG002
        count: int,  # noqa: ARG002
        generator: torch.Generator,  # noqa: ARG002
    ) -> Float[Tensor, "samples times atoms 3"] | None:
        """Return none: there is no distribution."""
        return None


@dataclass(frozen=True, kw_only=True, eq=False)
class Constant(WithoutDistribution):
    """The training mean, whatever is observed.

    For one molecule whose recordings were superposed it is the mean position of each atom. In a
    liquid atoms are everywhere in the box equally often, so it is the centre of the box, in the
    image in which the atom is now: only the wrapped error can mean it, the physical one of this
    row is that of a lattice of boxes.

    Attributes:
        positions: Mean of the superposed training frames, Å; none for a liquid.
        name: In tables.
    """

    positions: Float[Tensor, "atoms 3"] | None = None
    name: str = "constant"

    def forecast(self, window: Window, lags_ps: Float[Tensor, " times"]) -> AtomForecast:
        """Forecast the same positions at all times, at rest.

        Raises:
            InputError: There is neither a training mean nor a box, or the atoms are not those of
                the training mean.
        """
        return _still(self._place(window), lags_ps)

    def _place(self, window: Window) -> Float[Tensor, "atoms 3"]:
        name = window.system.structure.name
        if self.positions is not None:
            if self.positions.shape != window.now.shape:
                raise InputError(
                    f"{name}: the training mean is of {len(self.positions)} atoms, "
                    f"the window of {len(window.system)}"
                )
            return self.positions.to(window.now)
        if window.box is None:
            raise InputError(f"{name}: without a box a constant forecast needs a training mean")
        box = window.box.to(window.now)
        return ((window.now @ torch.linalg.inv(box)).floor() + 0.5) @ box


@dataclass(frozen=True, kw_only=True, eq=False)
class ObservedMean(WithoutDistribution):
    """The mean position of each atom over the window.

    Attributes:
        name: In tables.
    """

    name: str = "observed mean"

    def forecast(self, window: Window, lags_ps: Float[Tensor, " times"]) -> AtomForecast:
        """Forecast the same positions at all times, at rest."""
        return _still(window.positions.mean(dim=0), lags_ps)


@dataclass(frozen=True, kw_only=True, eq=False)
class Ballistic(WithoutDistribution):
    r"""Straight on, :math:`r_0 + v_0 \tau`.

    Without known velocities the difference of the last two frames stands in.

    Attributes:
        name: In tables.
    """

    name: str = "ballistic"

    def forecast(self, window: Window, lags_ps: Float[Tensor, " times"]) -> AtomForecast:
        """Forecast straight lines.

        Raises:
            InputError: The window has no velocities and a single frame.
        """
        lags = lags_ps.to(window.positions)
        velocity = window.velocity_now
        if velocity is None:
            if len(window) < 2:
                raise InputError(
                    f"{window.system.structure.name}: a ballistic forecast needs velocities or "
                    "two frames"
                )
            velocity = window.positions[-2:].diff(dim=0)[0] / window.frame_ps
        velocity = velocity.to(lags)
        return AtomForecast(
            lags_ps=lags,
            mean=window.now + velocity * lags[:, None, None],
            velocities=velocity.expand(len(lags), -1, -1),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearForecaster:
    """A climatology as a forecaster: the mean with its spread, and samples of it.

    Attributes:
        name: In tables; a key of `LINEAR_ROWS` for the usual ones.
        climatology: Fitted on training recordings.
    """

    name: str
    climatology: Climatology

    def forecast(self, window: Window, lags_ps: Float[Tensor, " times"]) -> AtomForecast:
        """Forecast mean, spread and velocity; raises what `Climatology.expected` does."""
        expected = self.climatology.expected(window, lags_ps)
        return AtomForecast(
            lags_ps=lags_ps.to(expected.mean),
            mean=expected.mean,
            spread=expected.spread,
            velocities=expected.velocities,
        )

    def samples(
        self,
        window: Window,
        lags_ps: Float[Tensor, " times"],
        count: int,
        generator: torch.Generator,
    ) -> Float[Tensor, "samples times atoms 3"] | None:
        """Draw futures: the mean and `undula.motion.noise.climatological_noise` around it."""
        expected = self.climatology.expected(window, lags_ps)
        noise = climatological_noise(
            window.system,
            lags_ps.to(expected.mean),
            expected.spread,
            expected.correlation,
            expected.clock,
            count,
            generator,
        )
        return expected.mean + noise


def trivial_forecasters(
    examples: Iterable[Example],
    knots: Sequence[int],
    mean_positions: Float[Tensor, "atoms 3"] | None,
) -> list[AtomForecaster]:
    """Fit every trivial row on the same training windows.

    Args:
        examples: Windows of training recordings, read once.
        knots: Frames after now of their futures.
        mean_positions: Mean of the superposed training frames of one molecule, Å; none in a
            liquid.

    Returns:
        In the order of the table above.
    """
    fitted = fit_climatologies(examples, knots, list(LINEAR_ROWS.values()))
    linear = {
        name: LinearForecaster(name=name, climatology=climatology)
        for name, climatology in zip(LINEAR_ROWS, fitted, strict=True)
    }
    return [
        Constant(positions=mean_positions),
        ObservedMean(),
        linear["last position"],
        Ballistic(),
        linear["damped ballistic"],
        linear["drift + diffusion"],
        linear["linear response"],
    ]


def _still(positions: Float[Tensor, "atoms 3"], lags_ps: Float[Tensor, " times"]) -> AtomForecast:
    lags = lags_ps.to(positions)
    mean = positions.expand(len(lags), -1, -1)
    return AtomForecast(lags_ps=lags, mean=mean, velocities=torch.zeros_like(mean))
