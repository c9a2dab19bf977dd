import math

import pytest
import torch
from tests.nn.atoms import Atoms

from undula.errors import UsageError
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
