"""Forecasts anybody could make: the rows that a model must beat.

==================  =========================================  ==================  ============
row                 mean                                       velocity            distribution
==================  =========================================  ==================  ============
constant            training mean, or the centre of the box    0                   training
observed mean       mean of the window, wrapped or not         0                   none
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
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from undula.errors import InputError
from undula.motion.climatology import Climatology
from undula.motion.climatology_fit import Example, fit_climatologies
from undula.motion.noise import climatological_noise
from undula.motion.predictors import ClimatologyConfig
from undula.motion.scores import wrapped
from undula.motion.windows import AtomForecast, AtomForecaster, Window

_LAST = ClimatologyConfig(
    velocity=False, earlier=(), molecule=False, neighbours=False, mean=False, drift=False
)
LINEAR_ROWS: Mapping[str, ClimatologyConfig] = {
    "last position": _LAST,
    "damped ballistic": replace(_LAST, velocity=True),
    "drift + diffusion": replace(_LAST, drift=True),
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
class Constant:
    """The training mean, whatever is observed.

    For one molecule whose recordings were superposed it is the mean position of each atom, its
    spread that of the training frames, and its samples are training frames drawn at random,
    each time anew: the climate itself, which nothing beats far in the future. In a liquid atoms
    are everywhere in the box equally often, so it is the centre of the box, in the image in
    which the atom is now, without a distribution; only the wrapped error can mean it, the
    physical one of this row is that of a lattice of boxes.

    Attributes:
        frames: Superposed training frames, Å; none for a liquid.
        name: In tables.
    """

    frames: Float[Tensor, "frames atoms 3"] | None = None
    name: str = "constant"

    def forecast(self, window: Window, lags_ps: Float[Tensor, " times"]) -> AtomForecast:
        """Forecast the same positions at all times, at rest.

        Raises:
            InputError: There are neither training frames nor a box, or the frames have other
                atoms than the window.
        """
        if self.frames is None:
            return _still(_box_centre(window), lags_ps)
        frames = self._frames(window)
        variance = frames.var(dim=0, correction=0).mean(dim=-1)
        return replace(
            _still(frames.mean(dim=0), lags_ps),
            spread=variance.sqrt().expand(len(lags_ps), -1),
        )

    def samples(
        self,
        window: Window,
        lags_ps: Float[Tensor, " times"],
        count: int,
        generator: torch.Generator,
    ) -> Float[Tensor, "samples times atoms 3"] | None:
        """Draw training frames, with no memory from one time to the next; none in a liquid."""
        if self.frames is None:
            return None
        shape = (count, len(lags_ps))
        frames = self._frames(window)
        drawn = torch.randint(len(frames), shape, generator=generator, device=generator.device)
        return frames[drawn.to(frames.device)]

    def _frames(self, window: Window) -> Float[Tensor, "frames atoms 3"]:
        assert self.frames is not None
        if self.frames.shape[1] != len(window.system):
            raise InputError(
                f"{window.system.structure.name}: the training frames have "
                f"{self.frames.shape[1]} atoms, the window {len(window.system)}"
            )
        return self.frames.to(window.now)


def _box_centre(window: Window) -> Float[Tensor, "atoms 3"]:
    if window.box is None:
        raise InputError(
            f"{window.system.structure.name}: without a box a constant forecast needs training "
            "frames"
        )
    box = window.box.to(window.now)
    return ((window.now @ torch.linalg.inv(box)).floor() + 0.5) @ box


@dataclass(frozen=True, kw_only=True, eq=False)
class ObservedMean(WithoutDistribution):
    """The mean position of each atom over the window.

    Attributes:
        wrapped: Whether to average positions wrapped into the box, as the published data are. An
            atom that went through a wall then seems to have been in between: better under the
            wrapped error (argon, whole horizon: 0.20 instead of 0.34), meaningless under the
            physical one.
        name: In tables.
    """

    wrapped: bool = False
    name: str = "observed mean"

    def forecast(self, window: Window, lags_ps: Float[Tensor, " times"]) -> AtomForecast:
        """Forecast the same positions at all times, at rest.

        Raises:
            InputError: Positions should be wrapped, but there is no box.
        """
        positions = window.positions
        if self.wrapped and window.box is None:
            raise InputError(f"{window.system.structure.name}: there is no box to wrap into")
        if self.wrapped and window.box is not None:
            positions = wrapped(positions, window.system, window.box)
        return _still(positions.mean(dim=0), lags_ps)


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
    training_frames: Float[Tensor, "frames atoms 3"] | None,
) -> list[AtomForecaster]:
    """Fit every trivial row on the same training windows.

    Args:
        examples: Windows of training recordings, read once.
        knots: Frames after now of their futures.
        training_frames: Superposed training frames of one molecule, Å, for the constant; none in
            a liquid.

    Returns:
        In the order of the table above.
    """
    fitted = fit_climatologies(examples, knots, list(LINEAR_ROWS.values()))
    linear = {
        name: LinearForecaster(name=name, climatology=climatology)
        for name, climatology in zip(LINEAR_ROWS, fitted, strict=True)
    }
    return [
        Constant(frames=training_frames),
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
