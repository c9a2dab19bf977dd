import pytest
import torch
from tests.nn.atoms import Atoms

from undula.errors import InputError
from undula.nn.atom_graph import AtomGraph, joined, repeated


def graph_of(pairs, atoms, kinds=None) -> AtomGraph:
    pairs = torch.tensor(pairs, dtype=torch.long).reshape(2, -1)
    vectors = torch.arange(3.0 * pairs.shape[1]).reshape(-1, 3) + 1
    return AtomGraph(pairs=pairs, vectors=vectors, atoms=atoms, kinds=kinds)


def test_sums_are_over_the_pairs_of_each_receiver():
    graph = graph_of([[0, 0, 2], [1, 2, 0]], 4)
    assert graph.starts.tolist() == [0, 2, 2, 3, 3]
    sums = graph.sums(torch.tensor([[1.0], [2.0], [4.0]]))
    assert sums.flatten().tolist() == [3, 0, 4, 0]


def test_rows_go_to_the_pairs_they_belong_to():
    graph = graph_of([[0, 0, 2], [1, 2, 0]], 4)
    values = torch.arange(4.0)[:, None, None].expand(4, 3, 2)
    assert graph.from_senders(values)[:, 0, 0].tolist() == [1, 2, 0]
    assert graph.from_receivers(values)[:, 2, 1].tolist() == [0, 0, 2]


def test_directions_have_length_one_and_none_for_atoms_that_coincide():
    vectors = torch.tensor([[0.0, 3, 4], [0, 0, 0]], dtype=torch.float64)
    graph = AtomGraph(pairs=torch.tensor([[0, 1], [1, 0]]), vectors=vectors, atoms=2)
    assert graph.distances.tolist() == [5, 0]
    expected = torch.tensor([[0, 0.6, 0.8], [0, 0, 0]], dtype=torch.float64)
    torch.testing.assert_close(graph.directions, expected)


def test_copies_are_the_graph_joined_with_itself():
    graph = Atoms.drawn().graph
    copies, same = repeated(graph, 3), joined([graph] * 3)
    assert copies.atoms == same.atoms == 42
    assert torch.equal(copies.pairs, same.pairs)
    assert torch.equal(copies.vectors, same.vectors)
    assert torch.equal(copies.kinds, same.kinds)


def test_graphs_without_pairs_or_atoms_can_be_joined():
    empty = graph_of([[], []], 0)
    both = joined([empty, graph_of([[0], [1]], 2), graph_of([[], []], 1)])
    assert both.atoms == 3
    assert both.pairs.tolist() == [[0], [1]]
    assert both.starts.tolist() == [0, 1, 1, 1]


@pytest.mark.parametrize(
    ("pairs", "words"),
    [([[1, 0], [0, 1]], "sorted"), ([[0, 1], [1, 5]], "do not exist"), ([[-1], [0]], "exist")],
)
def test_refuses_pairs_that_would_be_misread(pairs, words):
    with pytest.raises(InputError, match=words):
        graph_of(pairs, 5)


def test_refuses_what_does_not_belong_together():
    pairs, vectors = torch.tensor([[0], [1]]), torch.ones(1, 3)
    with pytest.raises(InputError, match="detach"):
        AtomGraph(pairs=pairs, vectors=vectors.requires_grad_(), atoms=2)
    plain = graph_of([[0], [1]], 2)
    with pytest.raises(InputError, match="with and without kinds"):
        joined([plain, graph_of([[0], [1]], 2, torch.zeros(1, dtype=torch.long))])
    with pytest.raises(InputError, match="no graphs"):
        joined([])
    with pytest.raises(InputError, match="at least once"):
        repeated(plain, 0)
