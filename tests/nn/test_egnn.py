import math

import pytest
import torch
from tests.nn.atoms import Atoms
from tests.nn.turning import reflection, rotation

from undula.errors import UsageError
from undula.nn import egnn as module
from undula.nn.atom_graph import AtomGraph, joined
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
@pytest.mark.parametrize("matrix", [rotation(2), reflection(3)], ids=["turned", "mirrored"])
def test_turns_and_mirrors_with_the_molecule(atoms, form, matrix):
    net = network()
    scalars, vectors = atoms.through(net, form)
    again, turned = atoms.turned(matrix).through(net, form)
    torch.testing.assert_close(again, scalars, **ALIKE)
    torch.testing.assert_close(turned, matrix @ vectors, **ALIKE)


@pytest.mark.parametrize("form", FORMS)
def test_relabelled_atoms_have_relabelled_features(atoms, form):
    net, order = network(), torch.randperm(14, generator=torch.Generator().manual_seed(0))
    scalars, vectors = atoms.through(net, form)
    theirs = atoms.relabelled(order).through(net, form)
    torch.testing.assert_close(theirs, (scalars[order], vectors[order]), **ALIKE)


@pytest.mark.parametrize("form", FORMS)
def test_graphs_side_by_side_are_as_each_alone(atoms, form):
    net, other = network(), Atoms.drawn(9)
    together = net(
        torch.cat((atoms.scalars, other.scalars)),
        torch.cat((atoms.vectors, other.vectors)),
        net.filters(joined([atoms.graph, other.graph]), form),
    )
    alone = [
        torch.cat(two)
        for two in zip(atoms.through(net, form), other.through(net, form), strict=True)
    ]
    torch.testing.assert_close(list(together), alone, **ALIKE)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("count", [1, 3])
def test_atoms_without_neighbours_are_served(form, count):
    atoms, net = Atoms.drawn(count), network()
    atoms.cutoff = 0.0
    inputs = [atoms.scalars.requires_grad_(), atoms.vectors.requires_grad_()]
    scalars, vectors = atoms.through(net, form)
    for one in torch.autograd.grad(scalars.sum() + vectors.sum(), inputs):
        assert torch.isfinite(one).all()


@pytest.mark.parametrize("form", FORMS)
def test_a_pair_at_the_window_says_nothing(form):
    atoms, net = Atoms.drawn(2), network()
    atoms.positions = torch.tensor([[0, 0, 0], [4.0, 0, 0]], dtype=torch.float64)
    apart = atoms.through(net, form)
    atoms.cutoff = 5.0
    assert atoms.graph.pairs.shape == (2, 2)
    torch.testing.assert_close(atoms.through(net, form), apart, **ALIKE)


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


def test_the_kind_of_a_pair_matters(atoms):
    scalars, _ = atoms.through(network())
    atoms.kinds = torch.zeros_like(atoms.kinds)
    assert not torch.allclose(scalars, atoms.through(network())[0])


def numbers_and_derivatives(atoms, dtype, form, **changes):
    net, graph = network(dtype, **changes), atoms.graph
    graph = AtomGraph(
        pairs=graph.pairs, vectors=graph.vectors.to(dtype), atoms=graph.atoms, kinds=graph.kinds
    )
    inputs = [one.to(dtype).requires_grad_() for one in (atoms.scalars, atoms.vectors)]
    filters = net.filters(graph, form)
    twice = net(*net(*inputs, filters), filters)
    loss = sum(one.square().mean() for one in twice)
    return [*twice, *torch.autograd.grad(loss, [*inputs, *net.parameters()])]


@pytest.mark.parametrize("radial", ["table", "network"])
@pytest.mark.parametrize(("dtype", "within"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_both_forms_give_the_same_numbers_and_derivatives(atoms, radial, dtype, within):
    changes = {"radial": RadialConfig(window=4.0, centres=6, hidden=8, knots=40, form=radial)}
    plain, fused = (numbers_and_derivatives(atoms, dtype, form, **changes) for form in FORMS)
    for one, other in zip(plain, fused, strict=True):
        torch.testing.assert_close(other, one, rtol=10 * within, atol=within)


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


def test_the_plain_form_has_second_derivatives():
    atoms, net = Atoms.drawn(4, features=2), network(features=2, layers=1)
    filters = net.filters(atoms.graph, "plain")
    inputs = [atoms.scalars.requires_grad_(), atoms.vectors.requires_grad_()]
    assert torch.autograd.gradgradcheck(lambda s, v: net(s, v, filters), inputs)


def test_the_fused_form_gives_the_same_bytes_each_time(atoms):
    first, again = (numbers_and_derivatives(atoms, torch.float32, "fused") for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    torch.testing.assert_close(
        atoms.through(network()), atoms.through(network(), "fused"), rtol=0, atol=0
    )


def test_the_number_of_threads_does_not_matter(atoms, monkeypatch):
    alone = numbers_and_derivatives(atoms, torch.float64, "fused")
    monkeypatch.setattr(module, "_PAIRS_PER_THREAD", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    found = numbers_and_derivatives(atoms, torch.float64, "fused")
    for one, other in zip(alone, found, strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=1e-12)


def test_the_fused_form_keeps_nothing_for_a_pair_but_its_place(atoms):
    net = network()
    filters, pairs = net.filters(atoms.graph, "fused"), atoms.graph.pairs.shape[1]
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(one) or one, lambda x: x):
        net(atoms.scalars, atoms.vectors, filters)
    assert sum(one.numel() for one in kept if one.shape[:1] == (pairs,)) == 2 * 2 * pairs


@pytest.mark.parametrize("form", FORMS)
def test_numbers_that_are_not_finite_are_not_hidden(atoms, form):
    i, j = atoms.graph.pairs[:, 0]
    atoms.scalars[j] = torch.nan
    assert torch.isnan(atoms.through(network(), form)[0][i]).all()


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


def test_refuses_kinds_of_pairs_that_it_does_not_know(atoms):
    with pytest.raises(UsageError, match="1 kinds of pairs"):
        network(pair_kinds=1).filters(atoms.graph)


def test_refuses_a_form_that_cannot_serve(atoms):
    graph = atoms.graph
    half = AtomGraph(pairs=graph.pairs, vectors=graph.vectors.half(), atoms=14)
    with pytest.raises(
        UsageError, match=r"EGNN needs float32 or float64 on a CPU, not torch\.float16"
    ):
        network().filters(half, "fused")


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


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same_numbers(atoms):
    net = network()
    expected = atoms.through(net)
    for name in ("positions", "kinds", "scalars", "vectors"):
        setattr(atoms, name, getattr(atoms, name).cuda())
    net = net.cuda()
    graph = atoms.graph
    found = net(atoms.scalars, atoms.vectors, net.filters(graph))
    torch.testing.assert_close([one.cpu() for one in found], list(expected))
