r"""Messages between points: depth-wise tensor products with harmonics, summed over neighbours.

.. math::
    m_{i,\,p,\,M c} = \sum_{j \in N(i)} w_{p c}(d_{ij}) \sum_{m, \mu} \sqrt{2 L + 1} \;
    C^{l \lambda L}_{m \mu M} \; (a_i + b_j)_{l,\,m c} \; Y_{\lambda \mu}(\hat x_{ij})

================  ==========================================================================
a, b              ``receivers``, ``senders``: features of the points in their two parts
p = (l, λ, L)     a path: degrees of feature, harmonic and message
c                 channel; a message channel depends on one feature channel ("depth-wise")
w                 `undula.nn.radial.RadialWeights`
C                 `_gaunt`, of length one: e3nn's ``wigner_3j``
Y                 ``graph.harmonics``, :math:`\sum_\mu Y_{\lambda \mu}^2 = 2 \lambda + 1`
================  ==========================================================================

Features and messages are flat rows of `undula.nn.irreps`. A linear layer that mixes channels
commutes with the sum over neighbours, so it belongs behind the sum, where there are fewer rows.

**Parity.** Degree l always has parity :math:`(-1)^l`, and the paths with odd
:math:`l + \lambda + L`, which would make axial vectors, are left out. So the mirror image of a
cloud gives the mirror image of the features, and invariants (degree 0) are the same for both:
they do not see chirality.

The same sums exist in three forms: e3nn's code (reference), plain torch in chunks (any device)
and one compiled loop (CPU). The latter two do not keep what belongs to a pair but compute it
again on the way back, so their memory does not grow with the number of pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from math import pi, sqrt
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from undula.errors import InputError, MachineError, UsageError
from undula.nn.compiled import added_in_parts, check_fused, in_parts
from undula.nn.harmonics import solid_harmonics
from undula.nn.irreps import by_degree, joined, width
from undula.nn.message_kernels import add_derivatives, add_messages
from undula.nn.radial import RadialWeights, check_places

Form = Literal["auto", "plain", "fused", "e3nn"]
"""How to compute messages; "auto" is "fused" on a CPU and "plain" elsewhere."""

CHUNK_ON_CPU = 4096
"""Pairs that the plain form takes at a time on a CPU, where a tensor must stay below 32 MB."""

CHUNK_ELSEWHERE = 65_536
"""Pairs that the plain form takes at a time elsewhere: some 300 MB for degrees up to 2."""

_PAIRS_PER_THREAD = 16_384
"""Below this a second thread costs more than it saves."""


@dataclass(frozen=True, eq=False)
class MessageGraph:
    """Who hears whom, and from which side; made by `message_graph`.

    Attributes:
        receivers: Receiver of each pair, ascending.
        senders: Sender of each pair.
        starts: Where the pairs of each receiver begin, and the number of pairs.
        harmonics: Harmonics of the direction from sender to receiver, degree by degree from 0.
    """

    receivers: Int[Tensor, " pairs"]
    senders: Int[Tensor, " pairs"]
    starts: Int[Tensor, " starts"]
    harmonics: Float[Tensor, "pairs components"]


def message_graph(
    points: Float[Tensor, "n 3"], pairs: Int[Tensor, "2 pairs"], degree: int
) -> MessageGraph:
    r"""Compute the harmonics of all directions :math:`x_i - x_j` and where each point's pairs are.

    Args:
        points: Positions x, Å. Only differences enter.
        pairs: Receiver i and sender j, sorted by i. Points that coincide have no direction:
            their harmonics are 0 but for degree 0, which is 1.
        degree: Highest degree of the harmonics.

    Returns:
        The graph, with no derivative by the points.

    Raises:
        InputError: The pairs are not sorted by receiver, or name points that do not exist.
    """
    if pairs.numel() and (int(pairs.min()) < 0 or int(pairs.max()) >= len(points)):
        raise InputError(f"the pairs name points that do not exist: there are {len(points)}")
    receivers, senders = pairs
    if bool((receivers.diff() < 0).any()):
        raise InputError("the pairs should be sorted by their receiver")
    with torch.no_grad():
        away = points[receivers] - points[senders]
        length = away.norm(dim=1, keepdim=True)
        direction = away / torch.where(length > 0, length, torch.ones_like(length))
        harmonics = solid_harmonics(direction, degree)
        for level in range(degree + 1):
            harmonics[:, level**2 : (level + 1) ** 2] *= sqrt(2 * level + 1)
    every = torch.arange(len(points) + 1, device=points.device)
    return MessageGraph(
        receivers=receivers.contiguous(),
        senders=senders.contiguous(),
        starts=torch.searchsorted(receivers.contiguous(), every),
        harmonics=harmonics.contiguous(),
    )


class Path(NamedTuple):
    """One way to make a message: degrees, and where its numbers are.

    Attributes:
        degrees: (l, λ, L) of feature, harmonic and message.
        channels: Channels of the feature and of the message.
        weight: Where its own among a pair's radial weights begin.
        column: Where its own among the message's channels of degree L begin.
    """

    degrees: tuple[int, int, int]
    channels: int
    weight: int
    column: int

    @property
    def weights(self) -> slice:
        """Its own among a pair's radial weights."""
        return slice(self.weight, self.weight + self.channels)

    @property
    def columns(self) -> slice:
        """Its own among the message's channels of degree L."""
        return slice(self.column, self.column + self.channels)


@dataclass(frozen=True, kw_only=True)
class Coupling:
    """The paths between features and harmonics.

    Attributes:
        channels: Channels of the features, degree by degree from 0.
        degree: The highest degree of harmonics and messages.
        paths: Sorted by L, then l, then λ; all with even l + λ + L.
        weights: Radial weights of a pair.
        message_channels: Channels of the messages, degree by degree from 0.
    """

    channels: tuple[int, ...]
    degree: int
    paths: tuple[Path, ...]
    weights: int
    message_channels: tuple[int, ...]


@lru_cache(maxsize=64)
def coupling(channels: tuple[int, ...], degree: int) -> Coupling:
    """Find the paths of features.

    Args:
        channels: Channels of degree 0, 1, … with parity (−1)^l, each a multiple of 8 (what a
            processor computes at once).
        degree: The highest degree of harmonics and messages, at least that of the features.

    Raises:
        UsageError: There is no degree, or some channels are not a positive multiple of 8.
    """
    if not channels or any(count < 8 or count % 8 for count in channels):
        raise UsageError(
            "channels of messages should be positive multiples of 8, one number per degree from "
            f"0, not {list(channels)}"
        )
    paths: list[Path] = []
    columns = [0] * (degree + 1)
    weight = 0
    for out in range(degree + 1):
        for level in range(len(channels)):
            for angular in range(degree + 1):
                even = (level + angular + out) % 2 == 0
                if even and abs(level - angular) <= out <= level + angular:
                    count = channels[level]
                    paths.append(Path((level, angular, out), count, weight, columns[out]))
                    weight += count
                    columns[out] += count
    return Coupling(
        channels=channels,
        degree=degree,
        paths=tuple(paths),
        weights=weight,
        message_channels=tuple(columns),
    )


def messages(
    receivers: Float[Tensor, "n features"],
    senders: Float[Tensor, "n features"],
    radial: RadialWeights,
    graph: MessageGraph,
    paths: Coupling,
    *,
    form: Form = "auto",
) -> Float[Tensor, "n messages"]:
    """Compute the sum of all messages to each point, in one of three forms with equal numbers.

    The derivatives by features and radial rows exist once in the forms "plain" and "fused" (and
    any number of times in "e3nn"); there is none by the points, which are data.

    Args:
        receivers: The receiver's part a of the features, `width` numbers a point.
        senders: The sender's part b.
        radial: Weights of the pairs, `Coupling.weights` numbers each.
        graph: Pairs and harmonics.
        paths: What couples to what.
        form: See `Form`. "fused" needs a CPU and float32 or float64.

    Returns:
        One row a point, `Coupling.message_channels` in each degree, those of a path adjoining;
        0 for a point that hears nobody.

    Raises:
        UsageError: The form cannot serve these tensors.
        MachineError: The form is "e3nn" and e3nn is not installed.
        ValueError: The rows have another length than the paths need, a place lies outside the
            table, or a derivative by distances or directions is asked for, which does not exist.

    Source: MoE-DSR, eq. 3, with Equiformer's depth-wise tensor product (e3nn's mode "uvu",
    weights per pair). Differs from it: the linear layer comes after the sum (the same numbers),
    and only paths of natural parity exist.
    """
    if form == "auto":
        form = "fused" if receivers.device.type == "cpu" else "plain"
    needed = (*[width(paths.channels)] * 2, paths.weights, (paths.degree + 1) ** 2)
    given = (receivers, senders, radial.rows, graph.harmonics)
    found = tuple(one.shape[1] for one in given)
    if found != needed:
        raise ValueError(
            f"rows of features, weights and harmonics should have {needed} numbers, not {found}"
        )
    if radial.part.requires_grad or graph.harmonics.requires_grad:
        raise ValueError("messages have no derivative by distances or directions; detach them")
    return _FORMS[form](receivers, senders, radial, graph, paths)


def _by_e3nn(
    receivers: Tensor, senders: Tensor, radial: RadialWeights, graph: MessageGraph, paths: Coupling
) -> Tensor:
    """Compute the sums with e3nn's tensor product, pair by pair: the reference."""
    product = _e3nn_product(paths).to(receivers)
    pairs = receivers[graph.receivers] + senders[graph.senders]
    theirs = joined([part.mT for part in by_degree(pairs, paths.channels)])
    made = product(theirs, graph.harmonics, radial.of_pairs())
    sums = made.new_zeros(len(receivers), made.shape[1]).index_add(0, graph.receivers, made)
    sizes = [path.channels * (2 * path.degrees[2] + 1) for path in paths.paths]
    parts: list[list[Tensor]] = [[] for _ in paths.message_channels]
    for path, part in zip(paths.paths, sums.split(sizes, dim=1), strict=True):
        parts[path.degrees[2]].append(part.unflatten(1, (path.channels, -1)).mT)
    return joined([torch.cat(part, dim=2) for part in parts])


@lru_cache(maxsize=8)
def _e3nn_product(paths: Coupling) -> Any:
    """Make e3nn's tensor product with these paths."""
    try:
        e3nn, o3 = import_module("e3nn"), import_module("e3nn.o3")
    except ImportError as error:
        raise MachineError(
            'the form "e3nn" of the messages needs e3nn: python -m pip install "e3nn>=0.6,<0.7"'
        ) from error
    e3nn.set_optimization_defaults(jit_script_fx=False)
    made = [(path.channels, path.degrees[2]) for path in paths.paths]
    features, harmonics, sums = (
        o3.Irreps([(count, (level, (-1) ** level)) for count, level in some])
        for some in (
            [(count, level) for level, count in enumerate(paths.channels)],
            [(1, level) for level in range(paths.degree + 1)],
            made,
        )
    )
    return o3.TensorProduct(
        features,
        harmonics,
        sums,
        [(*path.degrees[:2], row, "uvu", True) for row, path in enumerate(paths.paths)],
        internal_weights=False,
        shared_weights=False,
    )


def _plain(
    receivers: Tensor, senders: Tensor, radial: RadialWeights, graph: MessageGraph, paths: Coupling
) -> Tensor:
    """Compute the sums in plain torch."""
    return _Plain.apply(receivers, senders, *radial, graph, paths)


def _fused(
    receivers: Tensor, senders: Tensor, radial: RadialWeights, graph: MessageGraph, paths: Coupling
) -> Tensor:
    """Compute the sums in a compiled loop."""
    check_fused(receivers, "the messages")
    check_places(radial, len(graph.senders))
    return _Fused.apply(receivers, senders, *radial, graph, paths)


_FORMS: dict[str, Callable[[Tensor, Tensor, RadialWeights, MessageGraph, Coupling], Tensor]] = {
    "plain": _plain,
    "fused": _fused,
    "e3nn": _by_e3nn,
}


def _gaunt(level: int, angular: int, out: int) -> Float[Tensor, "m mu big_m"]:
    r"""Integrate the product of three harmonics over the sphere, and make the result length 1.

    For even :math:`l + \lambda + L` this is the only invariant coupling; sign and size are those
    of e3nn's ``wigner_3j``. Gauss points along the axis y and equal angles around it integrate
    the polynomial exactly.
    """
    order = level + angular + out + 1
    heights, shares = np.polynomial.legendre.leggauss(order)
    angles = torch.arange(order, dtype=torch.float64) * (2 * pi / order)
    height = torch.from_numpy(heights)[:, None].expand(-1, order)
    ring = (1 - height.square()).sqrt()
    nodes = torch.stack((ring * angles.sin(), height, ring * angles.cos()), dim=2).flatten(0, 1)
    weights = torch.from_numpy(shares).repeat_interleave(order)
    values = solid_harmonics(nodes, max(level, angular, out))
    three = [values[:, one**2 : (one + 1) ** 2] for one in (level, angular, out)]
    integral = torch.einsum("n,na,nb,nc->abc", weights, *three)
    return torch.where(integral.abs() > 1e-12, integral, 0.0) / integral.norm()


@lru_cache(maxsize=64)
def _matrices(paths: Coupling, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """Return each path's coefficients: components of λ × (components of L · components of l)."""
    with torch.inference_mode(False):
        return tuple(
            (sqrt(2 * path.degrees[2] + 1) * _gaunt(*path.degrees).permute(1, 2, 0).flatten(1)).to(
                device, dtype
            )
            for path in paths.paths
        )


@dataclass(frozen=True, eq=False)
class _Block:
    """Some receivers and all their pairs, as many for each; what is missing is filled up."""

    flat: Float[Tensor, "points pairs width"]
    features: list[Float[Tensor, "points pairs _components _channels"]]
    weights: Float[Tensor, "points pairs weights"]

    def weights_of(self, path: Path) -> Float[Tensor, "points pairs 1 channels"]:
        """Return the radial weights of one path."""
        return self.weights[:, :, None, path.weights]


def _blocks(graph: MessageGraph) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield receivers, their pairs, and which of these exist; those with the most pairs first."""
    counts, order = graph.starts.diff().sort(descending=True, stable=True)
    chunk = CHUNK_ON_CPU if counts.device.type == "cpu" else CHUNK_ELSEWHERE
    sizes = counts.tolist()
    first = 0
    while first < len(sizes) and sizes[first]:
        most = sizes[first]
        last = first + max(1, chunk // most)
        points = order[first:last]
        steps = torch.arange(most, device=counts.device)
        there = steps < counts[first:last, None]
        pairs = torch.where(there, graph.starts[points][:, None] + steps, 0)
        yield points, pairs, there
        first = last


def _block(
    receivers: Tensor,
    senders: Tensor,
    radial: RadialWeights,
    graph: MessageGraph,
    paths: Coupling,
    points: Tensor,
    pairs: Tensor,
) -> _Block:
    """Gather features and weights of some pairs."""
    flat = senders[graph.senders[pairs]] + receivers[points][:, None]
    features = by_degree(flat.flatten(0, 1), paths.channels)
    return _Block(
        flat,
        [feature.unflatten(0, pairs.shape) for feature in features],
        RadialWeights(radial.rows, radial.lower[pairs.flatten()], radial.part[pairs.flatten()])
        .of_pairs()
        .unflatten(0, pairs.shape),
    )


def _turned(
    graph: MessageGraph, paths: Coupling, pairs: Tensor, there: Tensor
) -> Iterator[Float[Tensor, "points out pairs_in"]]:
    """Yield for each path the matrix from features to messages that a pair's direction makes."""
    harmonics = graph.harmonics[pairs] * there[:, :, None]
    factors = _matrices(paths, harmonics.dtype, harmonics.device)
    for path, factor in zip(paths.paths, factors, strict=True):
        level, angular, out = path.degrees
        turned = harmonics[:, :, angular**2 : (angular + 1) ** 2] @ factor
        yield turned.unflatten(2, (2 * out + 1, 2 * level + 1)).transpose(1, 2).flatten(2)


class _Plain(torch.autograd.Function):
    """The sums as products of small matrices, for some receivers with equally many pairs a time."""

    @staticmethod
    def forward(
        ctx: Any,
        receivers: Tensor,
        senders: Tensor,
        rows: Tensor,
        lower: Tensor,
        part: Tensor,
        graph: MessageGraph,
        paths: Coupling,
    ) -> Tensor:
        ctx.save_for_backward(receivers, senders, rows, lower, part)
        ctx.graph, ctx.paths = graph, paths
        radial = RadialWeights(rows, lower, part)
        sums = receivers.new_zeros(len(receivers), width(paths.message_channels))
        for points, pairs, there in _blocks(graph):
            block = _block(receivers, senders, radial, graph, paths, points, pairs)
            made = sums.new_empty(len(points), sums.shape[1])
            views = by_degree(made, paths.message_channels)
            for path, matrix in zip(paths.paths, _turned(graph, paths, pairs, there), strict=True):
                features = block.features[path.degrees[0]] * block.weights_of(path)
                views[path.degrees[2]][:, :, path.columns] = matrix @ features.flatten(1, 2)
            sums[points] = made
        return sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_sums: Tensor) -> tuple[Tensor | None, ...]:
        receivers, senders, rows, lower, part = ctx.saved_tensors
        graph, paths, radial = ctx.graph, ctx.paths, RadialWeights(rows, lower, part)
        by_receivers, by_senders, by_rows = map(torch.zeros_like, (receivers, senders, rows))
        for points, pairs, there in _blocks(graph):
            block = _block(receivers, senders, radial, graph, paths, points, pairs)
            arriving = by_degree(by_sums[points], paths.message_channels)
            by_features = torch.zeros_like(block.flat)
            by_weights = torch.empty_like(block.weights)
            views = by_degree(by_features.flatten(0, 1), paths.channels)
            for path, matrix in zip(paths.paths, _turned(graph, paths, pairs, there), strict=True):
                towards = matrix.mT @ arriving[path.degrees[2]][:, :, path.columns]
                towards = towards.unflatten(1, (pairs.shape[1], -1))
                feature = block.features[path.degrees[0]]
                by_weights[:, :, path.weights] = (towards * feature).sum(dim=2)
                views[path.degrees[0]] += (towards * block.weights_of(path)).flatten(0, 1)
            by_receivers[points] = by_features.sum(dim=1)
            flat = pairs.flatten()
            by_senders.index_add_(0, graph.senders[flat], by_features.flatten(0, 1))
            share = part[pairs][:, :, None] * by_weights
            by_rows.index_add_(0, lower[flat] + 1, share.flatten(0, 1))
            by_rows.index_add_(0, lower[flat], (by_weights - share).flatten(0, 1))
        return by_receivers, by_senders, by_rows, None, None, None, None


class _Fused(torch.autograd.Function):
    """The sums in one loop over the pairs, compiled."""

    @staticmethod
    def forward(
        ctx: Any,
        receivers: Tensor,
        senders: Tensor,
        rows: Tensor,
        lower: Tensor,
        part: Tensor,
        graph: MessageGraph,
        paths: Coupling,
    ) -> Tensor:
        tensors = (receivers, senders, rows, lower, part)
        ctx.save_for_backward(*tensors)
        ctx.graph, ctx.paths = graph, paths
        given = _arrays(tensors, graph, paths)
        sums = receivers.new_zeros(len(receivers), width(paths.message_channels))

        def work(first: int, last: int) -> None:
            add_messages(first, last, *given, sums.numpy())

        in_parts(work, graph.starts, _PAIRS_PER_THREAD)
        return sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_sums: Tensor) -> tuple[Tensor | None, ...]:
        receivers, senders, rows, _, _ = ctx.saved_tensors
        given = _arrays(ctx.saved_tensors, ctx.graph, ctx.paths)
        arriving = by_sums.contiguous().numpy()
        by_receivers = torch.zeros_like(receivers)

        def add(first: int, last: int, *shared: np.ndarray) -> None:
            add_derivatives(first, last, *given, arriving, by_receivers.numpy(), *shared)

        starts = ctx.graph.starts
        by_shared = added_in_parts(add, starts, _PAIRS_PER_THREAD, (senders, rows))
        return by_receivers, *by_shared, None, None, None, None


def _arrays(tensors: Sequence[Tensor], graph: MessageGraph, paths: Coupling) -> list[np.ndarray]:
    """Return what both kernels take; indices are unsigned, see `undula.nn.message_kernels`."""
    receivers, senders, rows, lower, part = (one.detach().contiguous().numpy() for one in tensors)
    unsigned = (one.numpy().view(np.uint64) for one in (graph.starts, graph.senders))
    return [
        *unsigned,
        graph.harmonics.numpy(),
        receivers,
        senders,
        rows,
        lower.view(np.uint64),
        part,
        *_tables(paths, receivers.dtype),
    ]


@lru_cache(maxsize=64)
def _tables(paths: Coupling, dtype: np.dtype) -> tuple[np.ndarray, ...]:
    """List strands, terms and coefficients as `undula.nn.message_kernels` describes them."""
    features = [width(paths.channels[:level]) for level in range(len(paths.channels))]
    made = [width(paths.message_channels[:level]) for level in range(paths.degree + 1)]
    strands: list[tuple[int, ...]] = []
    terms: list[tuple[int, int]] = []
    components: list[int] = []
    coefficients: list[float] = []
    for path in paths.paths:
        level, angular, out = path.degrees
        factors = (sqrt(2 * out + 1) * _gaunt(*path.degrees)).numpy()
        for m in range(2 * level + 1):
            at = features[level] + m * path.channels
            strands.append((at, path.weight, path.channels, len(terms)))
            for big_m in range(2 * out + 1):
                (some,) = factors[m, :, big_m].nonzero()
                if len(some):
                    row = made[out] + big_m * paths.message_channels[out]
                    terms.append((row + path.column, len(components)))
                    components += (angular**2 + some).tolist()
                    coefficients += factors[m, some, big_m].tolist()
    strands.append((0, 0, 0, len(terms)))
    terms.append((0, len(components)))
    tables = (np.array(table, dtype=np.uint64) for table in (strands, terms, components))
    return *tables, np.array(coefficients, dtype=dtype)
