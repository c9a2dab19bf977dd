import pytest
import torch

from undula.geometry.blocks import EDGE, LatticeBlocks, needed_blocks
from undula.geometry.lattice import Lattice

SHAPE = (41, 33, 50)
BLOCKS = tuple(-(-size // EDGE) for size in SHAPE)


@pytest.fixture
def lattice():
    return Lattice(origin=torch.tensor([1.0, 2.0, 3.0]).double(), spacing=0.5, shape=SHAPE)


@pytest.fixture
def values():
    return torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))


def filled(lattice, values, needed):
    blocks = LatticeBlocks(lattice, len(values))
    for start in range(0, SHAPE[0], 2 * EDGE):
        planes = values[:, start : start + 2 * EDGE]
        first = start // EDGE
        blocks.begin(start, needed[first : first + -(-planes.shape[1] // EDGE)])
        for number, plane in enumerate(planes):
            blocks.put(number, plane)
    return blocks


def test_gives_what_the_whole_lattice_gives(lattice, values):
    generator = torch.Generator().manual_seed(1)
    points = lattice.origin + torch.rand(300, 3, generator=generator).double() * 24 - 1
    blocks = filled(lattice, values, torch.ones(BLOCKS, dtype=torch.bool))
    for found, one in zip(blocks.interpolate(points), values, strict=True):
        assert torch.equal(found, lattice.interpolate(one, points))


def test_what_was_not_needed_is_zero_and_takes_no_room(lattice, values):
    needed = torch.zeros(BLOCKS, dtype=torch.bool)
    needed[3 // EDGE, 20 // EDGE, 40 // EDGE] = True
    blocks = filled(lattice, values, needed)
    inside = lattice.points_of(torch.tensor([[3, 20, 40], [20, 3, 3]]))
    assert torch.equal(blocks.interpolate(inside)[:, 0], values[:, 3, 20, 40].double())
    assert blocks.interpolate(inside)[:, 1].abs().max() == 0
    assert sum(len(part) for part in blocks._values) == 1


def test_blocks_beside_marked_nodes_are_needed_too():
    near = torch.zeros(5 * EDGE, 3 * EDGE, 2 * EDGE, dtype=torch.bool)
    near[2 * EDGE, EDGE, 0] = True
    needed = needed_blocks(near, EDGE, 3 * EDGE)
    assert needed.shape == (3, 3, 2)
    assert needed.all()
    assert not needed_blocks(near, 4 * EDGE, EDGE).any()


def test_marks_before_the_planes_count_wherever_the_planes_begin():
    near = torch.zeros(27 + 2 * EDGE, EDGE, EDGE, dtype=torch.bool)
    near[27 - EDGE] = True
    assert needed_blocks(near, 27, 2 * EDGE)[:, 0, 0].tolist() == [True, False]
