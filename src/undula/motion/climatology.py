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

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from math import inf, log10
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from undula.errors import InputError, UsageError
from undula.motion.noise import Topology, topologies
from undula.motion.windows import Window
from undula.types import MolecularSystem

_LEAST_SPREAD = 1e-8
"""Å: where a forecast is exact, so that logarithms exist."""

_LEAST_TERM = 1e-3
"""Å/ps or Å: terms that are smaller in training tell nothing about larger ones, and must not seem
to: the drift of recordings whose centre of mass is at rest is one of rounding."""


@dataclass(frozen=True, kw_only=True)
class ClimatologyConfig:
    """What a linear forecast may use.

    Attributes:
        velocity: The velocity now; the difference of the last two frames where none is known.
        earlier: Mean velocities over the last k frames, for each k named here: the rest of a
            short memory. On argon 1 and 2 bring nearly all there is.
        molecule: Velocity of the molecule's centre of mass, and the way to it: where atoms of a
            molecule that turns about are soon expected.
        neighbours: The way to the mean of the atoms it is bonded to.
        mean: The way to the mean of the observed window: large for atoms that are bound in an
            aligned molecule, next to nothing in a liquid.
        drift: The velocity of the centre of mass over the window.
        hops: Correlations reach so many bonds far; atoms farther apart have the last one.
    """

    velocity: bool = True
    earlier: tuple[int, ...] = (1, 2)
    molecule: bool = True
    neighbours: bool = True
    mean: bool = True
    drift: bool = True
    hops: int = 8

    def __post_init__(self) -> None:
        if any(frames < 1 for frames in self.earlier) or len(set(self.earlier)) < len(self.earlier):
            raise UsageError(f"earlier should name different positive frames, not {self.earlier}")
        if self.hops < 1:
            raise UsageError(f"hops should be at least 1, not {self.hops}")

    @property
    def terms(self) -> tuple[str, ...]:
        """What each coefficient belongs to."""
        return (
            *(["velocity"] if self.velocity else []),
            *(f"velocity over {frames}" for frames in self.earlier),
            *(["velocity of the molecule", "centre of the molecule"] if self.molecule else []),
            *(["neighbours"] if self.neighbours else []),
            *(["mean"] if self.mean else []),
            *(["drift"] if self.drift else []),
        )

    def frames_needed(self, known: bool) -> int:
        """Return how many observed frames a forecast takes, with or without velocities."""
        two = self.drift or ((self.velocity or self.molecule) and not known)
        return max([1, 2 if two else 1, *(frames + 1 for frames in self.earlier)])


@dataclass(frozen=True, kw_only=True, eq=False)
class Example:
    """A window and what came after it.

    Attributes:
        window: What was observed.
        future: Positions at the knots, unwrapped, Å.
    """

    window: Window
    future: Float[Tensor, "knots atoms 3"]


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
        return _kind_rows(system, {kind: row for row, kind in enumerate(self.kinds)})

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


def predictors(
    window: Window, config: ClimatologyConfig, known: bool
) -> tuple[Float[Tensor, "terms atoms 3"], Float[Tensor, " 3"]]:
    """Compute what a linear forecast is made of, as seen by who moves along with the drift.

    Args:
        window: At least `ClimatologyConfig.frames_needed` frames.
        config: Which terms.
        known: Whether to take the velocity now, or the difference of the last two frames.

    Returns:
        The terms, Å/ps but for the way to the mean, Å; and the drift, Å/ps, 0 if it is not used.

    Raises:
        InputError: The window is too short, or has no velocities.
    """
    name, frames = window.system.structure.name, len(window)
    needed = config.frames_needed(known)
    if frames < needed:
        raise InputError(f"{name}: a forecast takes at least {needed} frames, not {frames}")
    now, step = window.now, window.frame_ps
    drift = _drift(window) if config.drift else now.new_zeros(3)
    terms: list[Tensor] = []
    if config.velocity:
        terms.append(_velocity(window, known) - drift)
    for back in config.earlier:
        terms.append((now - window.positions[-1 - back]) / (back * step) - drift)
    if config.molecule:
        terms.append(_centres(_velocity(window, known), window.system) - drift)
        terms.append(_centres(now, window.system) - now)
    if config.neighbours:
        terms.append(_to_neighbours(now, window.system.bonds))
    if config.mean:
        age = step * (frames - 1) / 2
        terms.append(window.positions.mean(dim=0) + drift * age - now)
    if config.drift:
        terms.append(drift.expand_as(now))
    empty = now.new_zeros(0, *now.shape)
    return (torch.stack(terms) if terms else empty), drift


def _velocity(window: Window, known: bool) -> Float[Tensor, "atoms 3"]:
    if not known:
        return (window.now - window.positions[-2]) / window.frame_ps
    if window.velocity_now is None:
        raise InputError(f"{window.system.structure.name}: the velocities now are not known")
    return window.velocity_now.to(window.now)


def _centres(values: Float[Tensor, "atoms 3"], system: MolecularSystem) -> Float[Tensor, "atoms 3"]:
    """Average over each molecule, weighted by mass, and give every atom its molecule's."""
    weights = system.masses.to(values)[:, None]
    both = torch.cat([values * weights, weights], dim=1)
    total = values.new_zeros(system.molecule_count, 4).index_add_(0, system.molecules, both)
    return (total[:, :3] / total[:, 3:])[system.molecules]


def _to_neighbours(
    positions: Float[Tensor, "atoms 3"], bonds: Int[Tensor, "2 bonds"]
) -> Float[Tensor, "atoms 3"]:
    """Compute the way to the mean of the bonded atoms; 0 for an atom without bonds."""
    i, j = torch.cat([bonds, bonds.flip(0)], dim=1)
    total = torch.zeros_like(positions).index_add_(0, i, positions[j] - positions[i])
    return total / torch.bincount(i, minlength=len(positions)).clamp(min=1)[:, None]


def _drift(window: Window) -> Float[Tensor, " 3"]:
    weights = (window.system.masses / window.system.masses.sum()).to(window.positions)
    way = weights @ (window.positions[-1] - window.positions[0])
    return way / ((len(window) - 1) * window.frame_ps)


def _kind_rows(system: MolecularSystem, rows: Mapping[str, int]) -> Int[Tensor, " atoms"]:
    unknown = sorted(set(system.kinds.tolist()) - rows.keys())
    if unknown:
        raise InputError(
            f"{system.structure.name}: the climatology was not fitted on atoms of the kind "
            f"{', '.join(unknown)}"
        )
    found = [rows[kind] for kind in system.kinds.tolist()]
    return torch.tensor(found, dtype=torch.int64, device=system.molecules.device)


def fit_climatology(
    examples: Iterable[Example], knots: Sequence[int], config: ClimatologyConfig
) -> Climatology:
    """Fit one climatology; see `fit_climatologies`."""
    return fit_climatologies(examples, knots, [config])[0]


def fit_climatologies(
    examples: Iterable[Example], knots: Sequence[int], configs: Sequence[ClimatologyConfig]
) -> list[Climatology]:
    """Fit linear forecasts that use different things to the same windows, by least squares.

    At every knot and for every kind on its own, over all atoms, axes and windows. Coefficients of
    terms that are never larger than about 0.001 Å/ps or Å are held at 0; for the drift, whose
    coefficient is what remains beyond moving along with it, that is the motion of an observer.

    Args:
        examples: Windows of training recordings, read once, all with the same number of frames.
            Each keeps (terms + knots) × atoms × 3 numbers in memory.
        knots: Frames after now at which the futures are given, as of `knot_frames`.
        configs: What each forecast uses.

    Returns:
        One climatology per configuration, in float64. Both laws are fitted wherever windows
        allow: windows with velocities serve both.

    Raises:
        UsageError: There are no windows; knots do not increase from 1 on; windows differ in
            length or time between frames, or only some have velocities.
    """
    if not knots or knots[0] != 1 or any(b <= a for a, b in pairwise(knots)):
        raise UsageError(f"knots should increase from 1 on, not {list(knots)}")
    pieces: list[_Piece] = []
    for example in examples:
        _check_example(example, pieces, len(knots))
        pieces.append(_Piece.of(example, configs))
    if not pieces:
        raise UsageError("a climatology needs at least one training window")
    return [_fitted(pieces, knots, number, config) for number, config in enumerate(configs)]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Piece:
    """What remains of an example: displacements at the knots, and terms per configuration."""

    system: MolecularSystem
    frames: int
    frame_ps: float
    displacement: Float[Tensor, "knots atoms 3"]
    known: list[tuple[Tensor, Tensor]] | None
    differenced: list[tuple[Tensor, Tensor] | None]

    @classmethod
    def of(cls, example: Example, configs: Sequence[ClimatologyConfig]) -> _Piece:
        window = example.window
        known = window.velocities is not None
        wide = Window(
            system=window.system,
            positions=window.positions.double(),
            velocities=None if window.velocities is None else window.velocities.double(),
            box=None,
            frame_ps=window.frame_ps,
        )
        return cls(
            system=window.system,
            frames=len(window),
            frame_ps=window.frame_ps,
            displacement=example.future.double() - wide.now,
            known=[predictors(wide, config, True) for config in configs] if known else None,
            differenced=[
                predictors(wide, config, False)
                if len(window) >= config.frames_needed(False)
                else None
                for config in configs
            ],
        )

    def terms(self, number: int, known: bool) -> tuple[Tensor, Tensor] | None:
        if not known:
            return self.differenced[number]
        return None if self.known is None else self.known[number]


def _check_example(example: Example, before: list[_Piece], knots: int) -> None:
    window = example.window
    if example.future.shape != (knots, len(window.system), 3):
        raise UsageError(
            f"{window.system.structure.name}: futures have the shape "
            f"{tuple(example.future.shape)}, not {(knots, len(window.system), 3)}"
        )
    here = (len(window), window.frame_ps, window.velocities is not None)
    if before:
        first = (before[0].frames, before[0].frame_ps, before[0].known is not None)
        if here != first:
            raise UsageError(
                "training windows should have the same number of frames, time between them, and "
                f"velocities either all or none: {first} and then {here}"
            )


def _fitted(
    pieces: list[_Piece], knots: Sequence[int], number: int, config: ClimatologyConfig
) -> Climatology:
    kinds = tuple(sorted({kind for piece in pieces for kind in piece.system.kinds.tolist()}))
    rows = {kind: row for row, kind in enumerate(kinds)}
    place = {id(piece.system): _kind_rows(piece.system, rows) for piece in pieces}
    shapes = {id(piece.system): topologies(piece.system) for piece in pieces}
    lags = pieces[0].displacement.new_tensor(knots) * pieces[0].frame_ps

    def law(known: bool) -> Law | None:
        data = []
        for piece in pieces:
            found = piece.terms(number, known)
            if found is None:
                return None
            terms, drift = found
            moved = piece.displacement - drift * lags[:, None, None]
            data.append(_Sample(place[id(piece.system)], shapes[id(piece.system)], terms, moved))
        return _law(data, len(kinds), config)

    return Climatology(
        config=config,
        kinds=kinds,
        frame_ps=pieces[0].frame_ps,
        observed=pieces[0].frames,
        knots=tuple(knots),
        known=law(True),
        differenced=law(False),
    )


@dataclass(frozen=True, eq=False)
class _Sample:
    """One window's numbers for one law."""

    kinds: Int[Tensor, " atoms"]
    groups: list[Topology]
    terms: Float[Tensor, "terms atoms 3"]
    moved: Float[Tensor, "knots atoms 3"]


def _law(data: list[_Sample], kinds: int, config: ClimatologyConfig) -> Law:
    response = _response(data, kinds)
    knots = data[0].moved.shape[0]
    square = response.new_zeros(kinds, knots)
    product = response.new_zeros(kinds, knots - 1)
    for sample in data:
        left = _residual(sample, response)
        square.index_add_(0, sample.kinds, left.square().sum(dim=-1).T)
        product.index_add_(0, sample.kinds, (left[1:] * left[:-1]).sum(dim=-1).T)
    numbers = _numbers(data, kinds)
    spread = (square / numbers[:, None]).sqrt().clamp(min=_LEAST_SPREAD)
    together = product / numbers[:, None] / (spread[:, 1:] * spread[:, :-1])
    ticks = -together.clamp(min=1e-6, max=1.0).log()
    return Law(
        response=response,
        spread=spread,
        correlation=_correlation(data, response, spread, config.hops),
        clock=torch.cat([ticks.new_zeros(kinds, 1), ticks.cumsum(dim=1)], dim=1),
    )


def _response(data: list[_Sample], kinds: int) -> Float[Tensor, "kinds knots terms"]:
    r"""Solve :math:`(X X^T + \epsilon^2 n) g = X y` for every kind, with n numbers each."""
    terms, knots = data[0].terms.shape[0], data[0].moved.shape[0]
    gram = data[0].moved.new_zeros(kinds, terms, terms)
    right = data[0].moved.new_zeros(kinds, terms, knots)
    for sample in data:
        gram.index_add_(0, sample.kinds, torch.einsum("pax,qax->apq", sample.terms, sample.terms))
        right.index_add_(0, sample.kinds, torch.einsum("pax,kax->apk", sample.terms, sample.moved))
    held = _numbers(data, kinds)[:, None] * _LEAST_TERM**2
    return torch.linalg.solve(gram + torch.diag_embed(held.expand(-1, terms)), right).mT


def _numbers(data: list[_Sample], kinds: int) -> Float[Tensor, " kinds"]:
    """Count the coordinates of each kind."""
    rows = torch.cat([sample.kinds for sample in data])
    return 3 * torch.bincount(rows, minlength=kinds).to(data[0].moved)


def _residual(
    sample: _Sample, response: Float[Tensor, "kinds knots terms"]
) -> Float[Tensor, "knots atoms 3"]:
    return sample.moved - torch.einsum("akp,pax->kax", response[sample.kinds], sample.terms)


def _correlation(
    data: list[_Sample],
    response: Float[Tensor, "kinds knots terms"],
    spread: Float[Tensor, "kinds knots"],
    farthest: int,
) -> Float[Tensor, "knots hops"]:
    """Average products of the residuals of atoms by how many bonds lie between them."""
    knots = spread.shape[1]
    total = spread.new_zeros(knots, farthest + 1)
    numbers = spread.new_zeros(farthest + 1)
    for sample in data:
        scaled = _residual(sample, response) / spread[sample.kinds].T.unsqueeze(-1)
        for group in sample.groups:
            inside = scaled[:, group.members]
            products = torch.einsum("kmax,kmbx->kab", inside, inside).flatten(1)
            hops = group.hops.flatten().clamp(max=farthest)
            total.index_add_(1, hops, products)
            weight = 3.0 * len(group.members)
            numbers.index_add_(0, hops, numbers.new_full((len(hops),), weight))
    reached = int(numbers.nonzero().max()) + 1
    found = (total[:, :reached] / numbers[:reached].clamp(min=1)).clamp(-1, 1)
    found[:, 0] = 1
    return found


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
