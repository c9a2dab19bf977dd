import math

import pytest
import torch
from tests.nn.atoms import Atoms
from tests.nn.turning import reflection, rotation

from undula.errors import UsageError
from undula.nn.atom_graph import joined
from undula.nn.egnn import EGNN, EGNNConfig
from undula.nn.radial import RadialConfig

ALIKE = {"rtol": 0, "atol": 1e-10}


def network(**changes) -> EGNN:
    radial = RadialConfig(window=4.0, centres=6, hidden=8, knots=40)
    config = {"features": 8, "radial": radial, "pair_kinds": 2} | changes
    return EGNN(EGNNConfig(**config), torch.Generator().manual_seed(1)).double()


@pytest.fixture
def atoms() -> Atoms:
    return Atoms.drawn()


@pytest.mark.parametrize("matrix", [rotation(2), reflection(3)], ids=["turned", "mirrored"])
def test_turns_and_mirrors_with_the_molecule(atoms, matrix):
    net = network()
    scalars, vectors = atoms.through(net)
    again, turned = atoms.turned(matrix).through(net)
    torch.testing.assert_close(again, scalars, **ALIKE)
    torch.testing.assert_close(turned, matrix @ vectors, **ALIKE)


def test_relabelled_atoms_have_relabelled_features(atoms):
    net, order = network(), torch.randperm(14, generator=torch.Generator().manual_seed(0))
    scalars, vectors = atoms.through(net)
    theirs = atoms.relabelled(order).through(net)
    torch.testing.assert_close(theirs, (scalars[order], vectors[order]), **ALIKE)


def test_graphs_side_by_side_are_as_each_alone(atoms):
    net, other = network(), Atoms.drawn(9)
    together = net(
        torch.cat((atoms.scalars, other.scalars)),
        torch.cat((atoms.vectors, other.vectors)),
        net.filters(joined([atoms.graph, other.graph])),
    )
    alone = [torch.cat(two) for two in zip(atoms.through(net), other.through(net), strict=True)]
    torch.testing.assert_close(list(together), alone, **ALIKE)


@pytest.mark.parametrize("count", [1, 3])
def test_atoms_without_neighbours_are_served(count):
    atoms, net = Atoms.drawn(count), network()
    atoms.cutoff = 0.0
    inputs = [atoms.scalars.requires_grad_(), atoms.vectors.requires_grad_()]
    scalars, vectors = atoms.through(net)
    for one in torch.autograd.grad(scalars.sum() + vectors.sum(), inputs):
        assert torch.isfinite(one).all()


def test_a_pair_at_the_window_says_nothing():
    atoms, net = Atoms.drawn(2), network()
    atoms.positions = torch.tensor([[0, 0, 0], [4.0, 0, 0]], dtype=torch.float64)
    apart = atoms.through(net)
    atoms.cutoff = 5.0
    assert atoms.graph.pairs.shape == (2, 2)
    torch.testing.assert_close(atoms.through(net), apart, **ALIKE)


def test_hears_how_neighbours_move_towards_it(atoms):
    net = network(layers=1)
    before, _ = atoms.through(net)
    i, j = atoms.graph.pairs[:, 0]
    atoms.vectors[j] = -atoms.vectors[j]
    after, _ = atoms.through(net)
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


def test_gives_the_same_bytes_each_time(atoms):
    def derivatives() -> list[torch.Tensor]:
        net = network()
        scalars, vectors = atoms.through(net)
        loss = scalars.square().sum() + vectors.square().sum()
        return list(torch.autograd.grad(loss, list(net.parameters())))

    for one, other in zip(derivatives(), derivatives(), strict=True):
        assert torch.equal(one, other)


def test_derivatives_are_those_of_finite_differences():
    atoms, net = Atoms.drawn(4, features=2), network(features=2, layers=1)
    filters = net.filters(atoms.graph)
    inputs = [atoms.scalars.requires_grad_(), atoms.vectors.requires_grad_()]
    assert torch.autograd.gradcheck(lambda s, v: net(s, v, filters), inputs)


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
