import math

import pytest
import torch
from tests.nn.atoms import Atoms

from undula.errors import UsageError
from undula.nn.egnn import EGNN, EGNNConfig, gate, pair_sums
from undula.nn.radial import RadialConfig

FORMS = ("plain", "fused")
RADIAL = RadialConfig(window=4.0, centres=6, hidden=8, knots=40)
ALIKE = {"rtol": 0, "atol": 1e-10}


def network(dtype=torch.float64, **changes) -> EGNN:
    config = {"features": 8, "radial": RADIAL, "pair_kinds": 2} | changes
    return EGNN(EGNNConfig(**config), torch.Generator().manual_seed(1)).to(dtype)


@pytest.fixture
def atoms() -> Atoms:
    return Atoms.drawn()


@pytest.mark.parametrize("form", FORMS)
def test_hears_how_neighbours_move_towards_it(atoms, form):
    net = network(layers=1)
    before, _ = atoms.through(net, form)
    i, j = atoms.graph.pairs[:, 0]
    atoms.vectors[j] = -atoms.vectors[j]
    after, _ = atoms.through(net, form)
    assert not torch.allclose(before[i], after[i])


def test_a_common_motion_is_not_heard_by_others():
    atoms, net = Atoms.drawn(), network(layers=1)
    layer, graph = net.layers[0], atoms.graph
    together = atoms.vectors[:1].expand(14, 3, 8)
    p = layer.mix(together).chunk(3, dim=2)[0]
    torch.testing.assert_close(graph.from_senders(p), graph.from_receivers(p))


def test_equals_the_formula_written_out_for_each_pair(atoms):
    net = network(layers=1)
    graph = atoms.graph
    filters = net.filters(graph, "plain")
    draw = torch.Generator().manual_seed(3)
    here, there = torch.randn(2, 14, 8, dtype=torch.float64, generator=draw)
    heard = torch.zeros(14, 8, dtype=torch.float64)
    pushed = torch.zeros(14, 3, 8, dtype=torch.float64)
    for (i, j), away, weight in zip(graph.pairs.T, graph.vectors, filters.layers[0], strict=True):
        distance = away.norm()
        way = away / distance
        q = here[i] + there[j] + weight + way @ (atoms.vectors[j] - atoms.vectors[i])
        window = (torch.cos(math.pi * distance / 4) + 1) / 2
        message = q * (1 + q / torch.sqrt(1 + q**2)) / 2 * window / math.sqrt(24)
        heard[i] += message
        pushed[i] += way[:, None] * message
    found = pair_sums(here, there, atoms.vectors, filters, filters.layers[0])
    torch.testing.assert_close(found, (heard, pushed), **ALIKE)


@pytest.mark.parametrize("form", FORMS)
def test_derivatives_are_those_of_finite_differences(form):
    atoms, net = Atoms.drawn(4, features=2), network(features=2, layers=1)
    filters = net.filters(atoms.graph, form)
    inputs = [atoms.scalars.requires_grad_(), atoms.vectors.requires_grad_()]
    assert torch.autograd.gradcheck(lambda s, v: net(s, v, filters), inputs)


def test_fused_derivatives_by_the_table_are_those_of_finite_differences():
    atoms, net = Atoms.drawn(5, features=2), network(features=2, layers=1)
    filters = net.filters(atoms.graph, "fused")
    terms = filters.layers[0]
    rows = terms.rows.detach()[:6].contiguous().requires_grad_()
    places = terms.lower % 5

    def sums(rows):
        return pair_sums(
            atoms.scalars,
            atoms.scalars.flip(0),
            atoms.vectors,
            filters,
            terms._replace(rows=rows, lower=places),
        )

    assert torch.autograd.gradcheck(sums, [rows])


def test_the_gate_is_closed_far_below_nothing_and_open_far_above():
    values = torch.tensor([-1e3, -1.0, 0.0, 1.0, 1e3], dtype=torch.float64)
    root = math.sqrt(0.5)
    expected = torch.tensor([0.0, (root - 1) / 2, 0.0, (1 + root) / 2, 1e3], dtype=torch.float64)
    torch.testing.assert_close(gate(values), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("features", 0),
        ("layers", 0),
        ("pair_kinds", 0),
        ("neighbours", math.nan),
    ],
)
def test_refuses_configurations_that_make_no_network(key, value):
    with pytest.raises(UsageError, match=rf"egnn\.{key}"):
        EGNNConfig(**{key: value})


def test_refuses_channels_and_places_that_would_be_misread(atoms):
    filters = network().filters(atoms.graph, "fused")
    terms, wide = filters.layers[0], atoms.scalars
    with pytest.raises(ValueError, match=r"not \[7, 8\]"):
        pair_sums(wide, wide, atoms.vectors, filters, terms._replace(rows=terms.rows[:, 1:]))
    fewer = terms._replace(lower=terms.lower[1:], part=terms.part[1:])
    with pytest.raises(ValueError, match="as many places"):
        pair_sums(wide, wide, atoms.vectors, filters, fewer)
    for step in (-len(terms.rows), len(terms.rows)):
        moved = terms._replace(lower=terms.lower + step)
        with pytest.raises(ValueError, match="from 0 to 78"):
            pair_sums(wide, wide, atoms.vectors, filters, moved)
