import math

import pytest
import torch
from tests.nn.atoms import Atoms
from tests.nn.turning import reflection, rotation

from undula.errors import UsageError
from undula.nn import painn as module
from undula.nn.atom_graph import AtomGraph, joined, repeated
from undula.nn.ode.solve import SolverConfig, solve
from undula.nn.painn import Norm, PaiNN, PaiNNConfig, neighbour_sums
from undula.nn.radial import RadialConfig, RadialWeights

FORMS = ("plain", "fused")
RADIAL = RadialConfig(window=4.0, centres=6, hidden=8, knots=40)
ALIKE = {"rtol": 0, "atol": 1e-10}


def network(dtype=torch.float64, **changes) -> PaiNN:
    config = {"features": 8, "radial": RADIAL, "pair_kinds": 2, "neighbours": 5.0} | changes
    return PaiNN(PaiNNConfig(**config), torch.Generator().manual_seed(1)).to(dtype)


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
    graph = joined([atoms.graph, other.graph])
    together = net(
        torch.cat((atoms.scalars, other.scalars)),
        torch.cat((atoms.vectors, other.vectors)),
        net.filters(graph, form),
    )
    each = zip(atoms.through(net, form), other.through(net, form), strict=True)
    alone = [torch.cat(two) for two in each]
    torch.testing.assert_close(list(together), alone, **ALIKE)


def leaves(atoms, net, dtype):
    return [
        one.to(dtype).detach().requires_grad_() for one in (atoms.scalars, atoms.vectors)
    ], list(net.parameters())


def numbers_and_derivatives(atoms, dtype, form, **changes):
    net = network(dtype, **changes)
    inputs, parameters = leaves(atoms, net, dtype)
    graph = atoms.graph
    graph = AtomGraph(
        pairs=graph.pairs, vectors=graph.vectors.to(dtype), atoms=graph.atoms, kinds=graph.kinds
    )
    filters = net.filters(graph, form)
    once = net(*inputs, filters)
    twice = net(*once, filters)
    loss = sum(one.square().mean() for one in twice)
    return [*twice, *torch.autograd.grad(loss, [*inputs, *parameters], allow_unused=True)]


@pytest.mark.parametrize("radial", ["table", "network"])
@pytest.mark.parametrize(("dtype", "within"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_both_forms_give_the_same_numbers_and_derivatives(atoms, radial, dtype, within):
    changes = {
        "radial": RadialConfig(window=4.0, centres=6, hidden=8, knots=40, form=radial),
    }
    plain, fused = (numbers_and_derivatives(atoms, dtype, form, **changes) for form in FORMS)
    for one, other in zip(plain, fused, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(other, one, rtol=10 * within, atol=within)


def sums_of(graph, radial):
    def sums(features, vectors, rows):
        return neighbour_sums(features, vectors, graph, RadialWeights(rows, *radial[1:]))

    return sums


def test_fused_derivatives_are_those_of_finite_differences():
    atoms = Atoms.drawn(6, features=3)
    graph, draw = atoms.graph, torch.Generator().manual_seed(0)
    count = graph.pairs.shape[1]
    radial = RadialWeights(
        torch.randn(5, 9, dtype=torch.float64, generator=draw),
        torch.randint(4, (count,), generator=draw),
        torch.rand(count, dtype=torch.float64, generator=draw),
    )
    features = torch.randn(6, 9, dtype=torch.float64, generator=draw)
    inputs = [one.requires_grad_() for one in (features, atoms.vectors, radial.rows)]
    assert torch.autograd.gradcheck(sums_of(graph, radial), inputs)


def test_the_plain_form_has_second_derivatives():
    atoms, net = Atoms.drawn(5, features=2), network(features=2, layers=1)
    filters = net.filters(atoms.graph, "plain")
    inputs = [atoms.scalars.requires_grad_(), atoms.vectors.requires_grad_()]
    assert torch.autograd.gradgradcheck(lambda s, v: net(s, v, filters), inputs)


def test_equals_the_formula_written_out_for_each_pair(atoms):
    net = network(layers=1)
    message, graph = net.messages[0], atoms.graph
    own, carried = message.norm(atoms.scalars, atoms.vectors)
    x = message.outer(torch.nn.functional.silu(message.inner(own)))
    w = message.weights(graph).of_pairs()
    scalars, vectors = atoms.scalars.clone(), atoms.vectors.clone()
    for pair, (i, j) in enumerate(graph.pairs.T.tolist()):
        first, second, third = (x[j] * w[pair]).chunk(3)
        away = graph.vectors[pair] / graph.vectors[pair].norm()
        scalars[i] = scalars[i] + first
        vectors[i] = vectors[i] + second * carried[j] + third * away[:, None]
    expected = net.updates[0](scalars, vectors)
    torch.testing.assert_close(atoms.through(net, "fused"), expected, **ALIKE)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("count", [1, 3])
def test_atoms_without_neighbours_are_served(form, count):
    atoms, net = Atoms.drawn(count), network()
    atoms.positions = 100 * torch.arange(3.0 * count, dtype=torch.float64).reshape(-1, 3)
    assert atoms.graph.pairs.shape == (2, 0)
    inputs = [atoms.scalars.requires_grad_(), atoms.vectors.requires_grad_()]
    scalars, vectors = atoms.through(net, form)
    assert scalars.shape == (count, 8)
    assert vectors.shape == (count, 3, 8)
    for one in torch.autograd.grad(scalars.sum() + vectors.sum(), inputs):
        assert torch.isfinite(one).all()


@pytest.mark.parametrize("form", FORMS)
def test_no_atoms_are_served(form):
    nothing = torch.zeros(0, 3, dtype=torch.float64)
    graph = AtomGraph(pairs=torch.zeros(2, 0, dtype=torch.long), vectors=nothing, atoms=0)
    net = network()
    scalars, vectors = net(
        torch.zeros(0, 8, dtype=torch.float64),
        torch.zeros(0, 3, 8, dtype=torch.float64),
        net.filters(graph, form),
    )
    assert scalars.shape == (0, 8)
    assert vectors.shape == (0, 3, 8)


@pytest.mark.parametrize("form", FORMS)
def test_a_pair_at_the_window_says_nothing(form):
    atoms, net = Atoms.drawn(2), network()
    alone = [torch.zeros(2, 3, dtype=torch.float64) for _ in range(2)]
    alone[1][1, 0], atoms.positions = 1000, alone[1]
    far = atoms.through(net, form)
    atoms.positions[1, 0], atoms.cutoff = RADIAL.window, math.inf
    assert atoms.graph.pairs.shape == (2, 2)
    torch.testing.assert_close(atoms.through(net, form), far, **ALIKE)


@pytest.mark.parametrize("form", FORMS)
def test_vectors_of_zero_stay_zero_where_there_is_no_direction(form):
    atoms, net = Atoms.drawn(3), network()
    atoms.vectors, atoms.cutoff = torch.zeros_like(atoms.vectors), 0.0
    assert not atoms.through(net, form)[1].any()
    atoms.positions, atoms.cutoff = torch.zeros_like(atoms.positions), 1.0
    assert not atoms.through(net, form)[1].any()


def test_normalised_vectors_keep_small_differences_of_size():
    norm, small = Norm(4), torch.full((1, 3, 4), 1e-3)
    _, (first, second) = norm(torch.zeros(2, 4), torch.cat((small, 2 * small)))
    torch.testing.assert_close(second, 2 * first)
    _, huge = norm(torch.zeros(1, 4), 1e6 * small)
    torch.testing.assert_close(huge.square().mean(), torch.tensor(1.0))


def test_the_kind_of_a_pair_matters(atoms):
    scalars, _ = atoms.through(network())
    atoms.kinds = torch.zeros_like(atoms.kinds)
    others, _ = atoms.through(network())
    assert not torch.allclose(scalars, others)


def test_graphs_without_kinds_have_the_first_kind_alone(atoms):
    net, graph = network(), atoms.graph
    bare = AtomGraph(pairs=graph.pairs, vectors=graph.vectors, atoms=14)
    atoms.kinds = torch.zeros_like(atoms.kinds)
    found = net(atoms.scalars, atoms.vectors, net.filters(bare))
    torch.testing.assert_close(found, atoms.through(net), rtol=0, atol=0)


def test_the_fused_form_gives_the_same_bytes_each_time(atoms):
    first, again = (numbers_and_derivatives(atoms, torch.float32, "fused") for _ in range(2))
    for one, other in zip(first, again, strict=True):
        assert (one is None and other is None) or torch.equal(one, other)
    torch.testing.assert_close(
        atoms.through(network()), atoms.through(network(), "fused"), rtol=0, atol=0
    )


def test_the_number_of_threads_does_not_matter(atoms, monkeypatch):
    alone = numbers_and_derivatives(atoms, torch.float64, "fused")
    monkeypatch.setattr(module, "_PAIRS_PER_THREAD", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    found = numbers_and_derivatives(atoms, torch.float64, "fused")
    for one, other in zip(alone, found, strict=True):
        assert (one is None and other is None) or torch.allclose(one, other, rtol=0, atol=1e-12)


def test_the_fused_form_keeps_nothing_for_a_pair_but_its_place(atoms):
    net = network()
    filters, pairs = net.filters(atoms.graph, "fused"), atoms.graph.pairs.shape[1]
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(one) or one, lambda x: x):
        net(atoms.scalars, atoms.vectors, filters)
    assert sum(one.numel() for one in kept if one.shape[:1] == (pairs,)) == 2 * 2 * pairs


def test_numbers_that_are_not_finite_are_not_hidden(atoms):
    i, j = atoms.graph.pairs[:, 0]
    atoms.scalars[j] = torch.nan
    assert torch.isnan(atoms.through(network())[0][i]).all()


def test_copies_of_a_graph_give_copies_of_the_numbers(atoms):
    net = network()
    scalars, vectors = atoms.through(net)
    found = net(
        atoms.scalars.repeat(3, 1),
        atoms.vectors.repeat(3, 1, 1),
        net.filters(repeated(atoms.graph, 3)),
    )
    torch.testing.assert_close(found, (scalars.repeat(3, 1), vectors.repeat(3, 1, 1)), **ALIKE)


@pytest.mark.parametrize("form", FORMS)
def test_derivatives_through_a_solution_do_not_depend_on_checkpoints(atoms, form):
    numbers = []
    for checkpoint in (False, True):
        net = network()
        filters = net.filters(atoms.graph, form)

        def flow(_, state, net=net, filters=filters):
            return tuple(one - own for one, own in zip(net(*state, filters), state, strict=True))

        config = SolverConfig(steps=3, checkpoint=checkpoint)
        solution = solve(flow, (atoms.scalars, atoms.vectors), config)
        scalars, vectors = solution.at(torch.tensor([0.3, 0.9]))
        loss = scalars.square().mean() + vectors.square().mean()
        numbers.append([loss, *torch.autograd.grad(loss, list(net.parameters()))])
    torch.testing.assert_close(*numbers, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("features", 0),
        ("layers", 0),
        ("pair_kinds", 0),
        ("neighbours", 0.0),
        ("neighbours", math.inf),
    ],
)
def test_refuses_configurations_that_make_no_network(key, value):
    with pytest.raises(UsageError, match=rf"painn\.{key}"):
        PaiNNConfig(**{key: value})


def test_refuses_kinds_of_pairs_that_it_does_not_know(atoms):
    with pytest.raises(UsageError, match="1 kinds of pairs"):
        network(pair_kinds=1).filters(atoms.graph)


def test_refuses_a_form_that_cannot_serve(atoms):
    graph = atoms.graph
    half = AtomGraph(pairs=graph.pairs, vectors=graph.vectors.half(), atoms=14)
    with pytest.raises(UsageError, match=r"float32 or float64 on a CPU, not torch\.float16"):
        network().filters(half, "fused")


def test_refuses_rows_and_places_that_would_be_misread(atoms):
    graph, weights = atoms.graph, network().messages[0].weights(atoms.graph)
    features = torch.zeros(14, 24, dtype=torch.float64)
    with pytest.raises(ValueError, match="24 numbers, not 23 and 24"):
        neighbour_sums(features[:, 1:], atoms.vectors, graph, weights)
    fewer = RadialWeights(weights.rows, weights.lower[1:], weights.part[1:])
    with pytest.raises(ValueError, match="as many places"):
        neighbour_sums(features, atoms.vectors, graph, fewer)
    for step in (-len(weights.rows), len(weights.rows)):
        moved = weights._replace(lower=weights.lower + step)
        with pytest.raises(ValueError, match="from 0 to 78"):
            neighbour_sums(features, atoms.vectors, graph, moved)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same_numbers(atoms):
    net, graph = network(), atoms.graph
    expected = atoms.through(net)
    moved = AtomGraph(
        pairs=graph.pairs.cuda(), vectors=graph.vectors.cuda(), atoms=14, kinds=graph.kinds.cuda()
    )
    net = net.cuda()
    found = net(atoms.scalars.cuda(), atoms.vectors.cuda(), net.filters(moved))
    torch.testing.assert_close([one.cpu() for one in found], list(expected))
