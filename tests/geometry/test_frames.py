import math

import pytest
import torch

from undula.errors import InputError
from undula.geometry.distances import minimum_image
from undula.geometry.frames import (
    centre,
    make_whole,
    own_axes,
    random_rotation,
    rmsd,
    superpose,
    superposition,
    unwrap,
)

DODECAHEDRON = torch.tensor([[30.0, 0, 0], [0, 30.0, 0], [15.0, 15.0, 450**0.5]]).double()
CUBE = 25 * torch.eye(3).double()
CHAIN = torch.stack([torch.arange(39), torch.arange(1, 40)])


def generator(seed):
    return torch.Generator().manual_seed(seed)


def cloud(seed, *shape):
    return 5 * torch.randn(*shape, 3, generator=generator(seed)).double()


def wrapped(positions, box):
    share = positions @ torch.linalg.inv(box)
    return (share - share.floor()) @ box


def walk(frames):
    """A chain of 40 atoms longer than half the box that drifts and tumbles, and its pieces."""
    steps = torch.nn.functional.normalize(torch.randn(40, 3, generator=generator(5)), dim=1)
    chain = 1.5 * steps.double().cumsum(dim=0)
    drift = torch.cumsum(torch.randn(frames, 1, 3, generator=generator(6)).double() * 3, dim=0)
    return torch.stack([chain @ random_rotation(generator(t)).T for t in range(frames)]) + drift


def test_recovers_a_known_rotation_and_shift():
    points = cloud(0, 20)
    rotation, shift = random_rotation(generator(1)), torch.tensor([3.0, -7.0, 40.0]).double()
    found, translation = superposition(points, points @ rotation.T + shift)
    torch.testing.assert_close(found, rotation)
    torch.testing.assert_close(translation, shift)


def test_never_mirrors():
    points = cloud(1, 20)
    mirrored = points * torch.tensor([1.0, 1.0, -1.0]).double()
    rotation, _ = superposition(mirrored, points)
    torch.testing.assert_close(torch.linalg.det(rotation), torch.tensor(1.0).double())
    assert rmsd(superpose(mirrored[None], points), points).item() > 1


def test_is_a_proper_rotation_where_atoms_are_few_or_on_a_line():
    line = torch.arange(5.0)[:, None] * torch.tensor([1.0, 2.0, 3.0])
    plane = cloud(2, 12).float() * torch.tensor([1.0, 1.0, 0.0])
    turn = random_rotation(generator(3), torch.float32)
    for points in (line, plane, line[:1], line[:2]):
        moved = points @ turn.T + 2
        rotation, _ = superposition(points, moved)
        torch.testing.assert_close(rotation @ rotation.T, torch.eye(3), atol=1e-5, rtol=0)
        assert torch.linalg.det(rotation).item() == pytest.approx(1, abs=1e-5)
        torch.testing.assert_close(superpose(points[None], moved)[0], moved, atol=1e-4, rtol=0)


def test_no_other_rotation_is_better():
    points, others = cloud(4, 15), cloud(5, 15)
    best = rmsd(superpose(points[None], others), others).item()
    for seed in range(50):
        turned = points @ random_rotation(generator(seed)).T
        shifted = turned - centre(turned) + centre(others)
        assert rmsd(shifted, others).item() >= best


def test_weights_count_like_repeated_atoms():
    points, others = cloud(6, 8), cloud(7, 8)
    weights = torch.tensor([1.0, 2, 1, 3, 1, 1, 2, 1]).double()
    repeated = torch.repeat_interleave(torch.arange(8), weights.long())
    weighted = superposition(points, others, weights)
    torch.testing.assert_close(weighted, superposition(points[repeated], others[repeated]))


def test_superposes_all_frames_at_once_as_one_by_one():
    frames, reference = cloud(8, 6, 10), cloud(9, 10)
    on = torch.tensor([0, 3, 4, 9])
    together = superpose(frames, reference, on)
    for frame, moved in zip(frames, together, strict=True):
        torch.testing.assert_close(superpose(frame[None], reference, on)[0], moved)


def test_superposition_does_not_depend_on_how_the_molecule_was_turned():
    frames, reference = cloud(10, 4, 12), cloud(11, 12)
    turned = frames @ random_rotation(generator(12)).T - 17
    torch.testing.assert_close(superpose(turned, reference), superpose(frames, reference))


def test_keeps_its_precision_far_from_the_origin():
    reference = cloud(13, 30).float() + 2000
    moved = superpose((cloud(14, 1, 30).float() * 0 + reference) + 500, reference)
    torch.testing.assert_close(moved[0], reference, atol=5e-4, rtol=0)


def test_nothing_to_superpose_on_is_refused():
    with pytest.raises(InputError, match="no atoms"):
        superpose(cloud(0, 2, 5), cloud(0, 5), torch.zeros(0, dtype=torch.long))


def test_rmsd_of_a_shift_is_its_length():
    points = cloud(15, 3, 9)
    shift = torch.tensor([1.0, 2.0, 2.0]).double()
    torch.testing.assert_close(rmsd(points + shift, points[0])[0].item(), 3.0)
    torch.testing.assert_close(rmsd(points, points[1])[1].item(), 0.0)


def test_centre_weighs_atoms():
    points = torch.tensor([[0.0, 0, 0], [4.0, 0, 0]])
    torch.testing.assert_close(centre(points), torch.tensor([2.0, 0, 0]))
    torch.testing.assert_close(centre(points, torch.tensor([1.0, 3.0])), torch.tensor([3.0, 0, 0]))


def test_random_rotations_are_proper_repeat_and_have_no_preferred_direction():
    many = torch.stack([random_rotation(g) for g in [generator(0)] for _ in range(4000)])
    eye = torch.eye(3).double().expand_as(many)
    torch.testing.assert_close(many @ many.mT, eye)
    torch.testing.assert_close(torch.linalg.det(many), torch.ones(4000).double())
    assert many.mean(dim=0).abs().max() < 0.05
    # The mean of cos(angle) is -1/2 under Haar's measure: the trace 1 + 2 cos has mean 0.
    assert abs(many.diagonal(dim1=1, dim2=2).sum(dim=1).mean()) < 0.06
    assert torch.equal(random_rotation(generator(3)), random_rotation(generator(3)))


@pytest.mark.parametrize("box", [CUBE, DODECAHEDRON], ids=["cube", "dodecahedron"])
def test_a_wrapped_molecule_is_made_whole(box):
    true = walk(6)
    boxes = box.expand(6, 3, 3)
    torn = wrapped(true, box)
    assert (torn[:, 1:] - torn[:, :-1]).norm(dim=2).max() > 10
    whole = make_whole(torn, boxes, CHAIN)
    torch.testing.assert_close(whole - whole[:, :1], true - true[:, :1])
    torch.testing.assert_close(whole[:, 0], torn[:, 0])


@pytest.mark.parametrize("box", [CUBE, DODECAHEDRON], ids=["cube", "dodecahedron"])
def test_unwrapping_restores_the_path_through_the_walls(box):
    true = walk(60)
    restored = unwrap(wrapped(true, box), box.expand(60, 3, 3), CHAIN)
    shift = restored[0, 0] - true[0, 0]
    torch.testing.assert_close(restored - shift, true)
    assert (centre(restored) - centre(restored)[0]).norm(dim=1).max() > 15


def test_unwraps_several_molecules_with_rings_and_single_atoms():
    box, frames = 12 * torch.eye(3).double(), 40
    starts = 12 * torch.rand(3, 3, generator=generator(20)).double()
    drift = torch.cumsum(torch.randn(frames, 3, 3, generator=generator(21)).double(), dim=0)
    molecules = (starts + drift)[:, torch.tensor([0, 1, 0, 1, 2, 0])]
    true = molecules + torch.rand(6, 3, generator=generator(22)).double()
    bonds = torch.tensor([[5, 0, 2, 3], [2, 5, 0, 1]])
    restored = unwrap(wrapped(true, box), box.expand(frames, 3, 3), bonds)
    steps = restored.diff(dim=0)
    torch.testing.assert_close(steps, true.diff(dim=0))
    for i, j in bonds.T:
        torch.testing.assert_close(restored[:, i] - restored[:, j], true[:, i] - true[:, j])


def test_molecules_stay_whole_in_a_box_that_breathes():
    frames = 50
    scale = 1 + 0.05 * torch.sin(torch.arange(frames).double())[:, None, None]
    boxes = CUBE * scale
    true = walk(frames)
    restored = unwrap(wrapped(true, boxes), boxes, CHAIN)
    torch.testing.assert_close(restored - restored[:, :1], true - true[:, :1])


def test_positions_that_need_nothing_stay_as_they_are():
    true = walk(5).float()
    boxes = (200 * torch.eye(3)).expand(5, 3, 3)
    torch.testing.assert_close(unwrap(true, boxes, CHAIN), true)
    alone = unwrap(true, boxes, torch.zeros((2, 0), dtype=torch.long))
    torch.testing.assert_close(alone, true)
    assert unwrap(true[:1], boxes[:1], CHAIN).dtype == torch.float32


def test_does_not_change_its_input():
    torn = wrapped(walk(4), CUBE)
    before = torn.clone()
    unwrap(torn, CUBE.expand(4, 3, 3), CHAIN)
    assert torch.equal(torn, before)


def test_boxes_and_bonds_that_cannot_serve_are_refused():
    true, boxes = walk(3), CUBE.repeat(3, 1, 1)
    boxes[1] = 0
    with pytest.raises(InputError, match="frame 2 has no volume"):
        unwrap(true, boxes, CHAIN)
    skewed = torch.tensor([[20.0, 0, 0], [15.0, 20.0, 0], [0, 0, 20.0]]).double()
    with pytest.raises(InputError, match="reduced"):
        unwrap(true, skewed.expand(3, 3, 3), CHAIN)
    with pytest.raises(InputError, match="beyond the 40"):
        unwrap(true, CUBE.expand(3, 3, 3), CHAIN + 1)


def test_a_bond_across_the_wall_is_the_shortest_image():
    box = 10 * torch.eye(3).double()
    pair = torch.tensor([[[0.5, 5, 5], [9.5, 5, 5]]]).double()
    whole = make_whole(pair, box[None], torch.tensor([[0], [1]]))
    torch.testing.assert_close(whole[0, 1], torch.tensor([-0.5, 5, 5]).double())
    step = minimum_image(pair[:, 1] - pair[:, 0], box)
    assert math.isclose(float(step.norm()), 1.0)


def test_own_axes_are_the_principal_axes_towards_the_positive_third_moments():
    positions = cloud(5, 40) * torch.tensor([1.0, 2.0, 3.0]).double()
    centred = positions - positions.mean(dim=0)
    axes = own_axes(centred)
    torch.testing.assert_close(axes.T @ axes, torch.eye(3).double())
    own = centred @ axes
    moments = own.T @ own
    torch.testing.assert_close(moments, torch.diag(moments.diagonal()), rtol=0, atol=1e-8)
    assert (moments.diagonal().diff() > 0).all()
    assert (own.pow(3).sum(dim=0) > 0).all()


@pytest.mark.parametrize("mirror", [1.0, -1.0], ids=["turned", "mirrored"])
def test_along_their_own_axes_turned_and_relabelled_atoms_are_the_same(mirror):
    centred = cloud(6, 40)
    centred = centred - centred.mean(dim=0)
    matrix = random_rotation(generator(7)) * torch.tensor([mirror, 1.0, 1.0]).double()
    order = torch.randperm(40, generator=generator(8))
    moved = (centred @ matrix.T)[order]
    own, again = centred @ own_axes(centred), moved @ own_axes(moved)
    torch.testing.assert_close(again, own[order], rtol=0, atol=1e-9)
