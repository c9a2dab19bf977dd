import math

import pytest
import torch

from undula.geometry import elastic_network
from undula.geometry.elastic_network import (
    ANM_CUTOFF,
    anisotropic_network_modes,
    gaussian_network_fluctuations,
)
from undula.geometry.frames import random_rotation

MIRROR = torch.diag(torch.tensor([-1.0, 1.0, 1.0])).double()


def chain(seed=0, nodes=12):
    """Return a random coil whose neighbours are about 3.8 Å apart, as Cα are."""
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randn(nodes, 3, generator=generator, dtype=torch.float64)
    return (3.8 * torch.nn.functional.normalize(steps, dim=1)).cumsum(dim=0)


def rotation(seed=1):
    return random_rotation(torch.Generator().manual_seed(seed))


def spring_energy(positions, reference, cutoff):
    i, j = torch.triu_indices(len(reference), len(reference), offset=1)
    apart, rest = ((p[i] - p[j]).norm(dim=1) for p in (positions, reference))
    return 0.5 * (apart - rest)[rest < cutoff].square().sum()


POSES = [(rotation(), 0.0), (MIRROR, 0.0), (torch.eye(3).double(), 40.0), (rotation(2), -9.0)]


@pytest.mark.parametrize(("matrix", "shift"), POSES, ids=["turned", "mirrored", "shifted", "both"])
def test_fluctuations_stay_and_modes_turn_with_the_chain(matrix, shift):
    moved = chain() @ matrix.T + shift
    torch.testing.assert_close(
        gaussian_network_fluctuations(moved), gaussian_network_fluctuations(chain())
    )
    stiffness, modes = anisotropic_network_modes(chain(), 20)
    turned_stiffness, turned_modes = anisotropic_network_modes(moved, 20)
    torch.testing.assert_close(turned_stiffness, stiffness)
    torch.testing.assert_close(turned_modes, modes @ matrix.T, rtol=0, atol=1e-9)


def test_another_order_of_the_nodes_only_reorders_the_answers():
    order = torch.randperm(12, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(
        gaussian_network_fluctuations(chain()[order]), gaussian_network_fluctuations(chain())[order]
    )
    stiffness, modes = anisotropic_network_modes(chain(), 20)
    again, reordered = anisotropic_network_modes(chain()[order], 20)
    torch.testing.assert_close(again, stiffness)
    torch.testing.assert_close(reordered, modes[:, order], rtol=0, atol=1e-9)


def test_two_nodes_have_one_mode_that_stretches_their_spring():
    pair = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 8.0]]).double()
    torch.testing.assert_close(
        gaussian_network_fluctuations(pair), torch.full((2,), 0.25, dtype=torch.float64)
    )
    stiffness, modes = anisotropic_network_modes(pair, 20)
    torch.testing.assert_close(stiffness, torch.tensor([2.0]).double())
    half = math.sqrt(0.5)
    expected = torch.tensor([[[0.0, 0.0, -half], [0.0, 0.0, half]]]).double()
    torch.testing.assert_close(modes, expected)


def test_three_nodes_in_a_row_fluctuate_as_the_path_graph_says():
    row = torch.tensor([[0.0, 0.0, 0.0], [6.0, 0.0, 0.0], [12.0, 0.0, 0.0]]).double()
    expected = torch.tensor([5 / 9, 2 / 9, 5 / 9]).double()
    torch.testing.assert_close(gaussian_network_fluctuations(row), expected)


def test_a_triangle_has_the_modes_of_a_triatomic_ring():
    angles = torch.arange(3).double() * 2 * math.pi / 3
    triangle = 4 * torch.stack([angles.cos(), angles.sin(), torch.zeros(3).double()], dim=1)
    stiffness, modes = anisotropic_network_modes(triangle, 20)
    torch.testing.assert_close(stiffness, torch.tensor([1.5, 1.5, 3.0]).double())
    torch.testing.assert_close(modes[2], triangle / (4 * math.sqrt(3)))  # breathing, outwards


def test_the_modes_are_orthonormal_and_no_rigid_motion():
    _, modes = anisotropic_network_modes(chain(), 100)
    flat = modes.flatten(1)
    assert len(modes) == 3 * 12 - 6
    torch.testing.assert_close(flat @ flat.T, torch.eye(len(flat), dtype=torch.float64))
    centred = chain() - chain().mean(dim=0)
    for axis in torch.eye(3, dtype=torch.float64):
        shift = axis.expand(12, 3).flatten()
        turn = torch.linalg.cross(axis.expand(12, 3), centred).flatten()
        assert (flat @ shift).abs().max() < 1e-9
        assert (flat @ turn).abs().max() < 1e-8


def test_the_stiffness_is_the_curvature_of_the_spring_energy():
    start = chain()
    stiffness, modes = anisotropic_network_modes(start, 100)
    flat = modes.flatten(1)

    def energy(moved):
        return spring_energy(start + moved.reshape(-1, 3), start, ANM_CUTOFF)

    hessian = torch.autograd.functional.hessian(energy, torch.zeros(36, dtype=torch.float64))
    torch.testing.assert_close(hessian @ flat.T, flat.T * stiffness)


def test_modes_come_softest_first_and_no_more_than_wanted():
    every, modes = anisotropic_network_modes(chain(), 100)
    assert (every.diff() >= 0).all()
    few, first = anisotropic_network_modes(chain(), 4)
    torch.testing.assert_close(few, every[:4])
    torch.testing.assert_close(first, modes[:4])


def test_the_node_that_moves_most_moves_away_from_the_centroid():
    _, modes = anisotropic_network_modes(chain(), 100)
    centred = chain() - chain().mean(dim=0)
    for mode in modes:
        most = int(mode.norm(dim=1).argmax())
        assert float(mode[most] @ centred[most]) >= 0


def test_a_node_without_contact_counts_as_the_loosest_of_the_others():
    lonely = torch.cat([chain(), torch.full((1, 3), 500.0).double()])
    found = gaussian_network_fluctuations(lonely)
    torch.testing.assert_close(found[:-1], gaussian_network_fluctuations(chain()))
    assert float(found[-1]) == float(found[:-1].max())


@pytest.mark.parametrize("nodes", [1, 3])
def test_without_any_contact_nothing_fluctuates_and_nothing_is_a_mode(nodes):
    apart = 100 * torch.arange(3 * nodes).double().reshape(nodes, 3)
    assert not gaussian_network_fluctuations(apart).any()
    stiffness, modes = anisotropic_network_modes(apart, 5)
    assert stiffness.shape == (0,)
    assert modes.shape == (0, nodes, 3)


def test_no_modes_can_be_asked_for():
    assert anisotropic_network_modes(chain(), 0)[1].shape == (0, 12, 3)


def folded(nodes=120):
    """Return a compact coil: successive nodes 3.8 Å apart, bent towards the origin."""
    generator = torch.Generator().manual_seed(5)
    places = [torch.zeros(3).double()]
    for _ in range(nodes - 1):
        step = torch.randn(3, generator=generator, dtype=torch.float64) - 0.15 * places[-1]
        places.append(places[-1] + 3.8 * torch.nn.functional.normalize(step, dim=0))
    return torch.stack(places)


def test_many_nodes_fluctuate_as_few_do(monkeypatch):
    apart = torch.cat([folded(), folded() + 100, torch.full((1, 3), 500.0).double()])
    expected = gaussian_network_fluctuations(apart)
    monkeypatch.setattr(elastic_network, "LARGEST_DENSE", 10)
    torch.testing.assert_close(gaussian_network_fluctuations(apart), expected)


def test_blocks_of_one_node_have_the_modes_of_nodes(monkeypatch):
    stiffness, modes = anisotropic_network_modes(folded(60), 10)
    monkeypatch.setattr(elastic_network, "LARGEST_DENSE", 120)
    found, moved = anisotropic_network_modes(folded(60), 10)
    torch.testing.assert_close(found, stiffness)
    torch.testing.assert_close(moved, modes)


def test_blocks_of_three_nodes_keep_the_softest_modes(monkeypatch):
    stiffness, modes = anisotropic_network_modes(folded(), 10)
    monkeypatch.setattr(elastic_network, "LARGEST_DENSE", 300)
    monkeypatch.setattr(elastic_network, "MOST_BLOCKS", 40)
    found, moved = anisotropic_network_modes(folded(), 10)
    assert (found >= stiffness - 1e-9).all()
    overlap = (modes.flatten(1) @ moved.flatten(1).T).square().sum(dim=1)
    assert overlap[:5].min() > 0.7
    torch.testing.assert_close(moved.flatten(1).norm(dim=1), torch.ones(10).double())


@pytest.mark.parametrize("nodes", [0, 1])
def test_without_a_neighbour_there_is_no_mode(nodes):
    stiffness, modes = anisotropic_network_modes(torch.zeros(nodes, 3), 20)
    assert len(stiffness) == 0
    assert modes.shape == (0, nodes, 3)
