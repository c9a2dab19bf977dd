"""What EGNN and PaiNN have in common, each in its plain and in its fused form."""

import math

import pytest
import torch
from tests.nn.atoms import Atoms
from tests.nn.turning import reflection, rotation

from undula.errors import UsageError
from undula.nn import egnn, painn
from undula.nn.atom_graph import AtomGraph, joined, repeated
from undula.nn.egnn import EGNN, EGNNConfig
from undula.nn.ode.solve import SolverConfig, solve
from undula.nn.painn import PaiNN, PaiNNConfig
from undula.nn.radial import RadialConfig

KINDS = {"EGNN": (EGNN, EGNNConfig, egnn), "PaiNN": (PaiNN, PaiNNConfig, painn)}
RADIAL = RadialConfig(window=4.0, centres=6, hidden=8, knots=40)
ALIKE = {"rtol": 0, "atol": 1e-10}


class Made:
    """One of the networks."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.kind, self.config, self.module = KINDS[name]

    def __call__(self, dtype=torch.float64, **changes):
        config = {"features": 8, "radial": RADIAL, "pair_kinds": 2, "neighbours": 5.0} | changes
        return self.kind(self.config(**config), torch.Generator().manual_seed(1)).to(dtype)


@pytest.fixture(params=sorted(KINDS))
def network(request) -> Made:
    return Made(request.param)


@pytest.fixture(params=["plain", "fused"])
def form(request) -> str:
    return request.param


@pytest.fixture
def atoms() -> Atoms:
    return Atoms.drawn()


@pytest.mark.parametrize("matrix", [rotation(2), reflection(3)], ids=["turned", "mirrored"])
def test_turns_and_mirrors_with_the_molecule(atoms, network, form, matrix):
    net = network()
    scalars, vectors = atoms.through(net, form)
    again, turned = atoms.turned(matrix).through(net, form)
    torch.testing.assert_close(again, scalars, **ALIKE)
    torch.testing.assert_close(turned, matrix @ vectors, **ALIKE)


def test_relabelled_atoms_have_relabelled_features(atoms, network, form):
    net, order = network(), torch.randperm(14, generator=torch.Generator().manual_seed(0))
    scalars, vectors = atoms.through(net, form)
    theirs = atoms.relabelled(order).through(net, form)
    torch.testing.assert_close(theirs, (scalars[order], vectors[order]), **ALIKE)


def test_graphs_side_by_side_are_as_each_alone(atoms, network, form):
    net, other = network(), Atoms.drawn(9)
    together = net(
        torch.cat((atoms.scalars, other.scalars)),
        torch.cat((atoms.vectors, other.vectors)),
        net.filters(joined([atoms.graph, other.graph]), form),
    )
    each = zip(atoms.through(net, form), other.through(net, form), strict=True)
    torch.testing.assert_close(list(together), [torch.cat(two) for two in each], **ALIKE)


def test_copies_of_a_graph_give_copies_of_the_numbers(atoms, network, form):
    net = network()
    scalars, vectors = atoms.through(net, form)
    found = net(
        atoms.scalars.repeat(3, 1),
        atoms.vectors.repeat(3, 1, 1),
        net.filters(repeated(atoms.graph, 3), form),
    )
    torch.testing.assert_close(found, (scalars.repeat(3, 1), vectors.repeat(3, 1, 1)), **ALIKE)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("apart", [True, False], ids=["far apart", "not asked for"])
def test_atoms_without_neighbours_are_served(network, form, count, apart):
    atoms, net = Atoms.drawn(count), network()
    if apart:
        atoms.positions = 100 * torch.arange(3.0 * count, dtype=torch.float64).reshape(-1, 3)
    else:
        atoms.cutoff = 0.0
    assert atoms.graph.pairs.shape == (2, 0)
    inputs = [atoms.scalars.requires_grad_(), atoms.vectors.requires_grad_()]
    scalars, vectors = atoms.through(net, form)
    assert scalars.shape == (count, 8)
    assert vectors.shape == (count, 3, 8)
    for one in torch.autograd.grad(scalars.sum() + vectors.sum(), inputs):
        assert torch.isfinite(one).all()


def test_no_atoms_are_served(network, form):
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


def test_a_pair_at_the_window_says_nothing(network, form):
    atoms, net = Atoms.drawn(2), network()
    alone = [torch.zeros(2, 3, dtype=torch.float64) for _ in range(2)]
    alone[1][1, 0], atoms.positions = 1000, alone[1]
    far = atoms.through(net, form)
    atoms.positions[1, 0], atoms.cutoff = RADIAL.window, math.inf
    assert atoms.graph.pairs.shape == (2, 2)
    torch.testing.assert_close(atoms.through(net, form), far, **ALIKE)


def test_the_kind_of_a_pair_matters(atoms, network, form):
    scalars, _ = atoms.through(network(), form)
    atoms.kinds = torch.zeros_like(atoms.kinds)
    assert not torch.allclose(scalars, atoms.through(network(), form)[0])


def test_graphs_without_kinds_have_the_first_kind_alone(atoms, network, form):
    net, graph = network(), atoms.graph
    bare = AtomGraph(pairs=graph.pairs, vectors=graph.vectors, atoms=14)
    atoms.kinds = torch.zeros_like(atoms.kinds)
    found = net(atoms.scalars, atoms.vectors, net.filters(bare, form))
    torch.testing.assert_close(found, atoms.through(net, form), rtol=0, atol=0)


def numbers_and_derivatives(network, atoms, dtype, form, **changes):
    net, graph = network(dtype, **changes), atoms.graph
    graph = AtomGraph(
        pairs=graph.pairs, vectors=graph.vectors.to(dtype), atoms=graph.atoms, kinds=graph.kinds
    )
    inputs = [one.to(dtype).detach().requires_grad_() for one in (atoms.scalars, atoms.vectors)]
    filters = net.filters(graph, form)
    twice = net(*net(*inputs, filters), filters)
    loss = sum(one.square().mean() for one in twice)
    return [*twice, *torch.autograd.grad(loss, [*inputs, *net.parameters()], allow_unused=True)]


def assert_alike(found, expected, **tolerances):
    for one, other in zip(found, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, **tolerances)


@pytest.mark.parametrize("radial", ["table", "network"])
@pytest.mark.parametrize(("dtype", "within"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_both_forms_give_the_same_numbers_and_derivatives(atoms, network, radial, dtype, within):
    changes = {"radial": RadialConfig(window=4.0, centres=6, hidden=8, knots=40, form=radial)}
    plain, fused = (
        numbers_and_derivatives(network, atoms, dtype, form, **changes)
        for form in ("plain", "fused")
    )
    assert_alike(fused, plain, rtol=10 * within, atol=within)


def test_the_plain_form_has_second_derivatives(network):
    atoms, net = Atoms.drawn(4, features=2), network(features=2, layers=1)
    filters = net.filters(atoms.graph, "plain")
    inputs = [atoms.scalars.requires_grad_(), atoms.vectors.requires_grad_()]
    assert torch.autograd.gradgradcheck(lambda s, v: net(s, v, filters), inputs)


def test_the_fused_form_gives_the_same_bytes_each_time(atoms, network):
    first, again = (
        numbers_and_derivatives(network, atoms, torch.float32, "fused") for _ in range(2)
    )
    assert_alike(again, first, rtol=0, atol=0)


def test_a_cpu_takes_the_fused_form(atoms, network):
    net = network()
    torch.testing.assert_close(atoms.through(net), atoms.through(net, "fused"), rtol=0, atol=0)


def test_the_number_of_threads_does_not_matter(atoms, network, monkeypatch):
    alone = numbers_and_derivatives(network, atoms, torch.float64, "fused")
    monkeypatch.setattr(network.module, "_PAIRS_PER_THREAD", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    found = numbers_and_derivatives(network, atoms, torch.float64, "fused")
    assert_alike(found, alone, rtol=0, atol=1e-12)


def test_the_fused_form_keeps_nothing_for_a_pair_but_its_place(atoms, network):
    net = network()
    filters, pairs = net.filters(atoms.graph, "fused"), atoms.graph.pairs.shape[1]
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(one) or one, lambda x: x):
        net(atoms.scalars, atoms.vectors, filters)
    assert sum(one.numel() for one in kept if one.shape[:1] == (pairs,)) == 2 * 2 * pairs


def test_derivatives_through_a_solution_do_not_depend_on_checkpoints(atoms, network, form):
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


def test_numbers_that_are_not_finite_are_not_hidden(atoms, network, form):
    i, j = atoms.graph.pairs[:, 0]
    atoms.scalars[j] = torch.nan
    assert torch.isnan(atoms.through(network(), form)[0][i]).all()


def test_refuses_kinds_of_pairs_that_it_does_not_know(atoms, network):
    with pytest.raises(UsageError, match="1 kinds of pairs"):
        network(pair_kinds=1).filters(atoms.graph)


def test_refuses_a_form_that_cannot_serve(atoms, network):
    graph = atoms.graph
    half = AtomGraph(pairs=graph.pairs, vectors=graph.vectors.half(), atoms=14)
    words = rf"{network.name} needs float32 or float64 on a CPU, not torch\.float16"
    with pytest.raises(UsageError, match=words):
        network().filters(half, "fused")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same_numbers(atoms, network):
    net, graph = network(), atoms.graph
    expected = atoms.through(net)
    moved = AtomGraph(
        pairs=graph.pairs.cuda(), vectors=graph.vectors.cuda(), atoms=14, kinds=graph.kinds.cuda()
    )
    net = net.cuda()
    found = net(atoms.scalars.cuda(), atoms.vectors.cuda(), net.filters(moved))
    torch.testing.assert_close([one.cpu() for one in found], list(expected))
