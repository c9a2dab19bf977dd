"""Fit linear forecasts to training windows by least squares; see `undula.motion.climatology`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

from undula.errors import UsageError
from undula.motion.climatology import Climatology, Law, kind_rows
from undula.motion.noise import Topology, topologies
from undula.motion.predictors import ClimatologyConfig, predictors
from undula.motion.windows import Window
from undula.types import MolecularSystem

_LEAST_SPREAD = 1e-8
"""Å: where a forecast is exact, so that logarithms exist."""

_LEAST_TERM = 1e-3
"""Å/ps or Å: terms that are smaller in training tell nothing about larger ones, and must not seem
to: the drift of recordings whose centre of mass is at rest is one of rounding."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Example:
    """A window and what came after it.

    Attributes:
        window: What was observed.
        future: Positions at the knots, unwrapped, Å.
    """

    window: Window
    future: Float[Tensor, "knots atoms 3"]


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
    place = {id(piece.system): kind_rows(piece.system, rows) for piece in pieces}
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
