r"""The best linear forecast of atoms and the normal distribution around it: what a model must beat.

.. math::
    r(\tau) &= r_0 + u \tau + \sum_p g_p(\tau) \, \tau \, x_p + \sigma(\tau) \, \epsilon(\tau), \\
    \langle \epsilon_a(\tau) \, \epsilon_b(\tau) \rangle &= \rho_{h(a, b)}(\tau), \qquad
    \langle \epsilon(\tau) \, \epsilon(\tau') \rangle = e^{-|c(\tau) - c(\tau')|}

======================  ====================================================================
r₀                      position now
u                       ``drift``: velocity of the system's centre of mass over the window
x_p                     `ClimatologyConfig.terms`: velocity now, mean velocities over the last
                        frames, velocity of the molecule, the ways to its centre, to the bonded
                        atoms and to the observed mean (all as seen by who moves along with u),
                        and u
g_p τ, σ, ρ, c          `Law`: for each chemical kind, at knots spaced evenly in log τ
h                       number of bonds between two atoms of a molecule
======================  ====================================================================

One coefficient serves all three axes and all atoms of a kind, so a turned, mirrored, shifted or
relabelled molecule gets the turned, mirrored, shifted or relabelled forecast. All is fitted on
training recordings only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from math import inf, log10
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from undula.errors import InputError, UsageError
from undula.motion.predictors import ClimatologyConfig, predictors
from undula.motion.windows import Window
from undula.types import MolecularSystem


@dataclass(frozen=True, kw_only=True, eq=False)
class Law:
    """How displacements follow from what is observed; one row per chemical kind.

    Attributes:
        response: g τ of each term, at the knots; ps for velocities, 1 for the mean.
        spread: σ along each axis, Å.
        correlation: ρ of atoms 0, 1, … bonds apart; the first is 1.
        clock: c, from 0 at the first knot on.
    """

    response: Float[Tensor, "kinds knots terms"]
    spread: Float[Tensor, "kinds knots"]
    correlation: Float[Tensor, "knots hops"]
    clock: Float[Tensor, "kinds knots"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Expectation:
    """What the climate says about one window.

    Attributes:
        mean: Expected positions, Å.
        velocities: The derivative of ``mean`` by time, Å/ps: the expected velocities.
        spread: σ along each axis, Å.
        correlation: ρ of atoms 0, 1, … bonds apart.
        clock: c of each atom.
    """

    mean: Float[Tensor, "times atoms 3"]
    velocities: Float[Tensor, "times atoms 3"]
    spread: Float[Tensor, "times atoms"]
    correlation: Float[Tensor, "times hops"]
    clock: Float[Tensor, "times atoms"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Climatology:
    """A fitted linear forecast with its distribution; made by `fit_climatologies`.

    Attributes:
        config: What it uses.
        kinds: Names of the chemical kinds it knows.
        frame_ps: Time between frames, ps.
        observed: How many frames the windows had; of longer ones it takes the last.
        knots: Frames after now, from 1 to the horizon.
        known: For windows with velocities; none if the training data had none.
        differenced: For windows without, the difference of the last two frames taken for the
            velocity now; none for windows too short for it.
    """

    config: ClimatologyConfig
    kinds: tuple[str, ...]
    frame_ps: float
    observed: int
    knots: tuple[int, ...]
    known: Law | None
    differenced: Law | None

    @property
    def horizon_ps(self) -> float:
        """How far it reaches, ps."""
        return self.knots[-1] * self.frame_ps

    def law(self, window: Window) -> tuple[Law, bool]:
        """Return the law for a window, and whether it takes the known velocities.

        Raises:
            InputError: The window has other frames than the training data, or too few.
        """
        name = window.system.structure.name
        if abs(window.frame_ps - self.frame_ps) > 1e-6 * self.frame_ps:
            raise InputError(
                f"{name}: frames are {window.frame_ps:g} ps apart, but the climatology was fitted "
                f"on frames {self.frame_ps:g} ps apart"
            )
        known = window.velocities is not None and self.known is not None
        law = self.known if known else self.differenced
        if law is None:
            raise InputError(
                f"{name}: the window has no velocities, and the climatology was fitted on windows "
                "too short to difference"
            )
        return law, known

    def kind_of_atoms(self, system: MolecularSystem) -> Int[Tensor, " atoms"]:
        """Return the row of each atom's kind.

        Raises:
            InputError: An atom is of a kind that the training data did not have.
        """
        return kind_rows(system, {kind: row for row, kind in enumerate(self.kinds)})

    def expected(self, window: Window, lags_ps: Float[Tensor, " times"]) -> Expectation:
        """Compute the mean, its velocity and the spread of every atom at some times.

        Args:
            window: Of the kinds, frames and length of the training windows. A shorter one is
                taken, though its mean means less than the fit knows.
            lags_ps: Times after now, ps, in any order; at 0 nothing has moved.

        Returns:
            In the precision and on the device of the window.

        Raises:
            InputError: See `law` and `kind_of_atoms`.
            UsageError: A lag is negative or beyond the horizon.
        """
        law, known = self.law(window)
        kinds = self.kind_of_atoms(window.system)
        terms, drift = predictors(window.last(self.observed), self.config, known)
        lags = lags_ps.to(window.positions)
        response, rate = self._response(law, lags, known)
        spread, correlation, clock = self._distribution(law, lags, known)
        mean = window.now + drift * lags[:, None, None]
        velocities = drift.repeat(*mean.shape[:2], 1)
        for kind in kinds.unique():
            atoms = (kinds == kind).nonzero().squeeze(-1)
            mean[:, atoms] += torch.tensordot(response[kind], terms[:, atoms], dims=1)
            velocities[:, atoms] += torch.tensordot(rate[kind], terms[:, atoms], dims=1)
        return Expectation(
            mean=mean,
            velocities=velocities,
            spread=spread[kinds].T,
            correlation=correlation,
            clock=clock[kinds].T,
        )

    def distribution(
        self, system: MolecularSystem, lags_ps: Float[Tensor, " times"], known: bool
    ) -> tuple[
        Float[Tensor, "times atoms"], Float[Tensor, "times hops"], Float[Tensor, "times atoms"]
    ]:
        """Return spread, correlation and clock of `Expectation` without a window.

        Args:
            system: The atoms.
            lags_ps: Times after now, ps.
            known: Whether the velocities now are known.

        Raises:
            InputError: A kind is unknown, or there is no law of this sort.
            UsageError: A lag is negative or beyond the horizon.
        """
        law = self.known if known else self.differenced
        if law is None:
            raise InputError("the climatology was not fitted on windows of this sort")
        kinds = self.kind_of_atoms(system)
        spread, correlation, clock = self._distribution(law, lags_ps, known)
        return spread[kinds].T, correlation, clock[kinds].T

    def _knots_ps(self, like: Tensor) -> Float[Tensor, " knots"]:
        return torch.tensor(self.knots, dtype=like.dtype, device=like.device) * self.frame_ps

    def _check(self, lags: Float[Tensor, " times"]) -> None:
        if lags.numel() == 0:
            return
        if not float(lags.min()) >= 0:
            raise UsageError(f"a forecast cannot reach back: {float(lags.min()):g} ps after now")
        if not float(lags.max()) <= self.horizon_ps * (1 + 1e-6):
            raise UsageError(
                f"{float(lags.max()):g} ps is beyond the horizon of {self.horizon_ps:g} ps that "
                "the training recordings showed"
            )

    def _response(
        self, law: Law, lags: Float[Tensor, " times"], known: bool
    ) -> tuple[Float[Tensor, "kinds times terms"], Float[Tensor, "kinds times terms"]]:
        r"""Interpolate g τ and its derivative.

        g is a cubic in :math:`\log(1 + \tau / \tau_1)` through the knots. Before the first knot
        it comes from its limit: where the velocity is known and used, 1 for it and 0 for all
        others (at first everything flies straight on), else the value at the first knot.
        """
        self._check(lags)
        knots = self._knots_ps(lags)
        first = knots[0]
        rates = law.response.to(lags) / knots[:, None]
        start = rates[:, :1].clone()
        if known and self.config.velocity:
            start.zero_()
            start[:, :, 0] = 1
        places = torch.cat([knots.new_zeros(1), torch.log1p(knots / first)])
        g, slope = _cubic(places, torch.cat([start, rates], dim=1), torch.log1p(lags / first))
        at = lags[:, None]
        return g * at, g + slope * at / (at + first)

    def _distribution(
        self, law: Law, lags: Float[Tensor, " times"], known: bool
    ) -> tuple[
        Float[Tensor, "kinds times"], Float[Tensor, "times hops"], Float[Tensor, "kinds times"]
    ]:
        """Interpolate σ (a power law between knots), ρ and the clock (linear in log τ).

        Before the first knot σ grows as τ² where the velocity is known and used, for then only
        the force is not, else as τ.
        """
        self._check(lags)
        knots = self._knots_ps(lags)
        power = 2 if known and self.config.velocity else 1
        place = torch.log(lags.clamp(min=knots[0], max=knots[-1]))
        early = (lags / knots[0]).clamp(max=1) ** power
        spread = _linear(torch.log(knots), law.spread.to(lags).log(), place).exp() * early
        clock = _linear(torch.log(knots), law.clock.to(lags), place)
        correlation = _linear(torch.log(knots), law.correlation.to(lags).T, place).T
        return spread, correlation, clock

    def state(self) -> dict[str, Tensor]:
        """Return all numbers as named tensors, to be stored beside weights."""
        return {
            f"{name}.{table.name}": getattr(law, table.name)
            for name, law in (("known", self.known), ("differenced", self.differenced))
            if law is not None
            for table in fields(Law)
        }

    def settings(self) -> dict[str, Any]:
        """Return what is not a tensor as plain values for JSON."""
        return {
            "config": asdict(self.config) | {"earlier": list(self.config.earlier)},
            "kinds": list(self.kinds),
            "frame_ps": self.frame_ps,
            "observed": self.observed,
            "knots": list(self.knots),
        }

    @classmethod
    def from_state(cls, settings: Mapping[str, Any], state: Mapping[str, Tensor]) -> Climatology:
        """Put together what `settings` and `state` returned.

        Raises:
            InputError: Something is missing, or tables are of another shape than they should be.
        """
        try:
            config = settings["config"] | {"earlier": tuple(settings["config"]["earlier"])}
            made = cls(
                config=ClimatologyConfig(**config),
                kinds=tuple(settings["kinds"]),
                frame_ps=float(settings["frame_ps"]),
                observed=int(settings["observed"]),
                knots=tuple(settings["knots"]),
                known=_stored_law("known", state),
                differenced=_stored_law("differenced", state),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"this is no stored climatology: {error}") from error
        if not made.knots or any(b <= a for a, b in pairwise((0, *made.knots))):
            raise InputError(f"the stored climatology has knots that do not ascend: {made.knots}")
        if not 0 < made.frame_ps < inf or made.observed < 1:
            raise InputError(
                f"the stored climatology observes {made.observed} frames {made.frame_ps} ps apart"
            )
        expected = (len(made.kinds), len(made.knots), len(made.config.terms))
        for law in (made.known, made.differenced):
            if law is not None and law.response.shape != expected:
                raise InputError(
                    f"the stored climatology has responses of the shape "
                    f"{tuple(law.response.shape)}, not {expected}"
                )
        return made


def _stored_law(name: str, state: Mapping[str, Tensor]) -> Law | None:
    if f"{name}.response" not in state:
        return None
    return Law(**{table.name: state[f"{name}.{table.name}"] for table in fields(Law)})


def knot_frames(horizon: int, per_decade: int = 8) -> tuple[int, ...]:
    """Choose frames after now, evenly in the logarithm, from 1 to the horizon.

    Args:
        horizon: The last frame, at least 1.
        per_decade: How many from 1 to 10, and so on; fewer where frames are whole numbers.

    Raises:
        UsageError: There is no future, or no knot.
    """
    if horizon < 1 or per_decade < 1:
        raise UsageError(
            f"knots need a horizon and a number per decade of at least 1, not {horizon} and "
            f"{per_decade}"
        )
    steps = round(log10(horizon) * per_decade)
    spaced = {round(horizon ** (step / steps)) for step in range(steps + 1)} if steps else {1}
    return tuple(sorted(spaced | {1, horizon}))


def kind_rows(system: MolecularSystem, rows: Mapping[str, int]) -> Int[Tensor, " atoms"]:
    """Return the row of each atom's chemical kind.

    Args:
        system: The atoms.
        rows: The row of each kind that a climatology knows.

    Raises:
        InputError: It knows not all of them.
    """
    unknown = sorted(set(system.kinds.tolist()) - rows.keys())
    if unknown:
        raise InputError(
            f"{system.structure.name}: the climatology was not fitted on atoms of the kind "
            f"{', '.join(unknown)}"
        )
    found = [rows[kind] for kind in system.kinds.tolist()]
    return torch.tensor(found, dtype=torch.int64, device=system.molecules.device)


def _linear(
    knots: Float[Tensor, " knots"], values: Float[Tensor, "rows knots"], at: Float[Tensor, " times"]
) -> Float[Tensor, "rows times"]:
    """Interpolate linearly between knots, at places within them."""
    if len(knots) == 1:
        return values.expand(-1, len(at))
    left = (torch.searchsorted(knots, at, right=True) - 1).clamp(0, len(knots) - 2)
    part = (at - knots[left]) / (knots[left + 1] - knots[left])
    return torch.lerp(values[:, left], values[:, left + 1], part)


def _cubic(
    knots: Float[Tensor, " knots"],
    values: Float[Tensor, "kinds knots terms"],
    at: Float[Tensor, " times"],
) -> tuple[Float[Tensor, "kinds times terms"], Float[Tensor, "kinds times terms"]]:
    """Interpolate by cubics whose slopes are those of parabolas through three knots.

    Returns:
        Values and derivatives by the place.
    """
    width = knots.diff()[:, None]
    secant = values.diff(dim=1) / width
    before, after = width[:-1], width[1:]
    inner = (after * secant[:, :-1] + before * secant[:, 1:]) / (before + after)
    slopes = torch.cat([secant[:, :1], inner, secant[:, -1:]], dim=1)
    left = (torch.searchsorted(knots, at, right=True) - 1).clamp(0, len(knots) - 2)
    step = width[left]
    part = (at - knots[left])[:, None] / step
    low, high = values[:, left], values[:, left + 1]
    rise, fall = slopes[:, left] * step, slopes[:, left + 1] * step
    square = 3 * (high - low) - 2 * rise - fall
    cube = rise + fall - 2 * (high - low)
    value = low + part * (rise + part * (square + part * cube))
    slope = (rise + part * (2 * square + 3 * part * cube)) / step
    return value, slope
