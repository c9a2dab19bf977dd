"""Facts about periodic boxes: pairs against enumerated images, and atoms brought back inside."""

from __future__ import annotations

import itertools

import pytest
import torch

from undula.errors import InputError, UsageError
from undula.geometry import periodic
from undula.geometry.neighbours import pairs_within
from undula.geometry.periodic import (
    inscribed_radius,
    pair_vectors,
    pairs_of_frames,
    periodic_pairs,
    squared_distances,
    widths,
    wrapped,
)

BOXES = {
    "cube": 3 * torch.eye(3).double(),
    "rectangular": torch.diag(torch.tensor([2.0, 3.0, 5.0])).double(),
    "dodecahedron": torch.tensor([[3.0, 0, 0], [0, 3.0, 0], [1.5, 1.5, 4.5**0.5]]).double(),
    "octahedron": torch.tensor([[3, 0, 0], [1, 8**0.5, 0], [-1, 2**0.5, 6**0.5]]).double(),
    "not reduced": torch.tensor([[3.0, 0, 0], [2.5, 3.0, 0], [0, 0, 3.0]]).double(),
}


@pytest.fixture(params=BOXES.values(), ids=BOXES.keys())
def box(request) -> torch.Tensor:
    return request.param


@pytest.fixture(params=["all distances", "tree"])
def form(request, monkeypatch) -> str:
    if request.param == "tree":
        monkeypatch.setattr(periodic, "_ATOMS_AT_ONCE", 0)
    return request.param


def cloud(atoms: int, spread: float = 4.0, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return spread * torch.randn(atoms, 3, generator=generator, dtype=torch.float64)


def enumerated(positions: torch.Tensor, box: torch.Tensor, cutoff: float) -> torch.Tensor:
    """Rows i, j and vector, from every image that could matter."""
    inside = wrapped(positions, box)
    rows = []
    for k in itertools.product(range(-6, 7), repeat=3):
        vector = inside[None] - inside[:, None] + torch.tensor(k).double() @ box
        close = vector.norm(dim=-1) <= cutoff
        if not any(k):
            close.fill_diagonal_(False)
        i, j = close.nonzero().unbind(dim=1)
        rows.append(torch.cat([i[:, None], j[:, None], vector[i, j]], dim=1))
    return torch.cat(rows)


def as_rows(positions, found) -> torch.Tensor:
    pairs, shift = found
    return torch.cat([pairs.T.double(), pair_vectors(positions, pairs, shift)], dim=1)


def in_order(rows: torch.Tensor) -> torch.Tensor:
    """Rows sorted by numbers that rounding cannot exchange."""
    keys = (rows * torch.tensor([1e6, 1e3, 1, 0.7310, 0.5497])).sum(dim=1)
    return rows[keys.argsort()]


@pytest.mark.parametrize("cutoff", [0.9, 1.7, 4.1])
def test_pairs_are_those_of_all_images_enumerated(box, cutoff, form):
    positions = cloud(25)
    found = as_rows(positions, periodic_pairs(positions, box, cutoff))
    expected = enumerated(positions, box, cutoff)
    assert found.shape == expected.shape
    torch.testing.assert_close(in_order(found), in_order(expected))


def test_in_a_small_box_an_atom_is_its_own_neighbour_once_for_each_image():
    box = torch.diag(torch.tensor([2.0, 3.0, 50.0])).double()
    pairs, shift = periodic_pairs(torch.tensor([[17.0, -4.0, 1.0]]).double(), box, 4.0)
    assert pairs.tolist() == [[0] * 10, [0] * 10]
    steps = [[-4, 0], [-2, -3], [-2, 0], [-2, 3], [0, -3], [0, 3], [2, -3], [2, 0], [2, 3], [4, 0]]
    expected = torch.tensor([[x, y, 0] for x, y in steps]).double()
    torch.testing.assert_close(shift, expected)


def test_the_cutoff_itself_is_within_and_half_a_box_counts_both_images(form):
    box = 8 * torch.eye(3).double()
    positions = torch.tensor([[1.0, 1.0, 1.0], [5.0, 1.0, 1.0]]).double()
    pairs, shift = periodic_pairs(positions, box, 4.0)
    assert pairs.tolist() == [[0, 0, 1, 1], [1, 1, 0, 0]]
    assert shift[:, 0].tolist() == [-8, 0, 0, 8]
    assert periodic_pairs(positions, box, 3.999)[0].shape == (2, 0)


def test_every_pair_has_its_opposite(box, form):
    positions = cloud(30)
    rows = as_rows(positions, periodic_pairs(positions, box, 1.3))
    opposite = torch.cat([rows[:, 1:2], rows[:, :1], -rows[:, 2:]], dim=1)
    torch.testing.assert_close(in_order(rows), in_order(opposite))


@pytest.mark.parametrize("cutoff", [0.9, 2.3])
def test_pairs_are_sorted_by_receiver_sender_and_image(box, cutoff, form):
    pairs, shift = periodic_pairs(cloud(30), box, cutoff)
    images = (shift @ torch.linalg.inv(box)).round().long()
    keys = torch.cat([pairs.T, images], dim=1).tolist()
    assert keys == sorted(keys)
    assert len({tuple(key) for key in keys}) == len(keys)


@pytest.mark.parametrize("cutoff", [0.9, 2.3])
def test_other_images_of_the_atoms_change_the_shift_but_not_the_vectors(box, cutoff, form):
    positions = cloud(30)
    generator = torch.Generator().manual_seed(3)
    steps = torch.randint(-4, 5, (30, 3), generator=generator).double() @ box
    before = periodic_pairs(positions, box, cutoff)
    after = periodic_pairs(positions + steps, box, cutoff)
    assert not torch.equal(before[1], after[1])
    torch.testing.assert_close(
        in_order(as_rows(positions, before)), in_order(as_rows(positions + steps, after))
    )


def test_both_forms_find_the_same(box, monkeypatch):
    positions = cloud(60)
    cutoff = 0.99 * float(inscribed_radius(box))
    first = periodic_pairs(positions, box, cutoff)
    monkeypatch.setattr(periodic, "_ATOMS_AT_ONCE", 0)
    second = periodic_pairs(positions, box, cutoff)
    assert torch.equal(first[0], second[0])
    torch.testing.assert_close(first[1], second[1])


def test_without_a_box_pairs_are_those_within_the_radius(form):
    positions = cloud(40)
    pairs, shift = periodic_pairs(positions, None, 2.5)
    assert torch.equal(pairs, pairs_within(positions, 2.5))
    assert shift.shape == (pairs.shape[1], 3)
    assert not shift.any()


@pytest.mark.parametrize("cutoff", [0.9, 2.3])
def test_frames_together_are_frames_one_by_one(box, cutoff, form):
    frames = torch.stack([cloud(20, seed=seed) for seed in range(5)])
    pairs, shift = pairs_of_frames(frames, box, cutoff)
    alone = [periodic_pairs(frame, box, cutoff) for frame in frames]
    expected = torch.cat([one + 20 * number for number, (one, _) in enumerate(alone)], dim=1)
    assert torch.equal(pairs, expected)
    torch.testing.assert_close(shift, torch.cat([one for _, one in alone]))


@pytest.mark.parametrize("block", [1, 300, 900])
def test_the_size_of_a_block_does_not_matter(box, monkeypatch, block):
    frames = torch.stack([cloud(20, seed=seed) for seed in range(5)])
    whole = pairs_of_frames(frames, box, 0.9)
    monkeypatch.setattr(periodic, "BLOCK_ON_CPU", block)
    assert all(map(torch.equal, pairs_of_frames(frames, box, 0.9), whole))


def test_frames_may_have_boxes_of_their_own(form):
    boxes = torch.stack(list(BOXES.values()))
    frames = torch.stack([cloud(20, seed=seed) for seed in range(len(boxes))])
    pairs, shift = pairs_of_frames(frames, boxes, 0.9)
    alone = [periodic_pairs(*both, 0.9) for both in zip(frames, boxes, strict=True)]
    expected = torch.cat([one + 20 * number for number, (one, _) in enumerate(alone)], dim=1)
    assert torch.equal(pairs, expected)
    torch.testing.assert_close(shift, torch.cat([one for _, one in alone]))


def test_nobody_is_near_where_there_is_nobody(form):
    box = BOXES["cube"]
    for positions in (torch.zeros(0, 3), torch.zeros(1, 3)):
        for walls in (box.float(), None):
            pairs, shift = periodic_pairs(positions, walls, 1.0)
            assert pairs.shape == (2, 0)
            assert shift.shape == (0, 3)
    assert pairs_of_frames(torch.zeros(0, 4, 3), box.float(), 1.0)[0].shape == (2, 0)


def test_atoms_in_the_same_place_are_pairs(form):
    for box in (BOXES["octahedron"], None):
        pairs, _ = periodic_pairs(torch.zeros(3, 3).double(), box, 0.5)
        assert pairs.tolist() == [[0, 0, 1, 1, 2, 2], [1, 2, 0, 2, 0, 1]]


def test_single_precision_stays_single(box, form):
    pairs, shift = periodic_pairs(cloud(20).float(), box.float(), 0.9)
    assert (pairs.dtype, shift.dtype) == (torch.int64, torch.float32)


def test_vectors_have_the_gradient_of_their_formula(box):
    positions = cloud(8).requires_grad_()
    pairs, shift = periodic_pairs(positions, box, 1.4)
    assert not shift.requires_grad
    assert torch.autograd.gradcheck(lambda x: pair_vectors(x, pairs, shift), positions)


def test_the_gradient_of_vectors_has_the_same_bytes_each_time():
    positions = cloud(300).float().requires_grad_()
    pairs, shift = periodic_pairs(positions, 9 * torch.eye(3), 4.0)
    weights = torch.randn(pairs.shape[1], 3, generator=torch.Generator().manual_seed(0))

    def gradient() -> torch.Tensor:
        vectors = pair_vectors(positions, pairs, shift)
        return torch.autograd.grad((vectors * weights).sum(), positions)[0]

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    first, second = gradient(), gradient()
    torch.set_num_threads(before)
    assert torch.equal(first, second)


def test_refuses_what_has_no_neighbours():
    box = BOXES["cube"]
    for cutoff in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="should be positive"):
            periodic_pairs(cloud(3), box, cutoff)
    with pytest.raises(InputError, match="atom 2 in frame 1 is not finite"):
        periodic_pairs(torch.tensor([[0.0, 0, 0], [0, torch.nan, 0]]).double(), box, 1.0)
    flat = torch.stack([box, torch.diag(torch.tensor([3.0, 3.0, 0.0]).double())])
    with pytest.raises(InputError, match="box of frame 2 has no volume"):
        pairs_of_frames(torch.zeros(2, 2, 3).double(), flat, 1.0)


def test_wrapped_atoms_are_in_the_box_and_differ_by_whole_edges(box):
    positions = cloud(200, spread=20.0)
    inside = wrapped(positions, box)
    fraction = inside @ torch.linalg.inv(box)
    assert fraction.min() > -1e-12
    assert fraction.max() < 1 + 1e-12
    steps = (positions - inside) @ torch.linalg.inv(box)
    torch.testing.assert_close(steps, steps.round(), atol=1e-9, rtol=0)
    torch.testing.assert_close(wrapped(inside, box), inside)


def test_wraps_frames_with_one_box_or_with_boxes_of_their_own():
    boxes = torch.stack(list(BOXES.values()))
    frames = torch.stack([cloud(20, seed=seed) for seed in range(len(boxes))])
    expected = torch.stack([wrapped(*both) for both in zip(frames, boxes, strict=True)])
    torch.testing.assert_close(wrapped(frames, boxes), expected)


def test_widths_are_the_edges_of_a_rectangle_and_less_in_a_skewed_box():
    assert widths(BOXES["rectangular"]).tolist() == pytest.approx([2, 3, 5])
    assert widths(BOXES["dodecahedron"]).tolist() == pytest.approx([6**0.5] * 2 + [4.5**0.5])
    assert float(inscribed_radius(BOXES["rectangular"])) == pytest.approx(1)


def test_distances_are_the_shortest_up_to_the_inscribed_radius(box):
    first, second = cloud(20)[None], cloud(30, seed=1)[None]
    found = squared_distances(first, second, box[None])[0].sqrt()
    around = torch.tensor(list(itertools.product(range(-6, 7), repeat=3))).double() @ box
    inside = wrapped(second[0], box)[None] - wrapped(first[0], box)[:, None]
    shortest = (inside[:, :, None] + around).norm(dim=-1).amin(dim=-1)
    short = (shortest < inscribed_radius(box)) | torch.equal(box, torch.diag(box.diagonal()))
    assert short.any()
    torch.testing.assert_close(found[short], shortest[short])
    assert (found >= shortest - 1e-9).all()


def test_exchanging_the_sets_transposes_their_distances(box):
    first, second = cloud(20)[None], cloud(30, seed=1)[None]
    for walls in (box[None], None):
        there, back = (
            squared_distances(first, second, walls),
            squared_distances(second, first, walls),
        )
        assert torch.equal(there, back.mT)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("cutoff", [0.9, 2.3])
def test_a_gpu_finds_the_same(box, cutoff):
    frames = torch.stack([cloud(40, seed=seed) for seed in range(3)])
    expected = pairs_of_frames(frames, box, cutoff)
    found = pairs_of_frames(frames.cuda(), box.cuda(), cutoff)
    assert all(one.is_cuda for one in found)
    assert torch.equal(found[0].cpu(), expected[0])
    torch.testing.assert_close(found[1].cpu(), expected[1])
