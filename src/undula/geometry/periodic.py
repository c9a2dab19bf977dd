"""A periodic box: who is near whom through its walls, and atoms brought back inside."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import embedding

from undula.errors import InputError, UsageError
from undula.geometry.neighbours import pairs_within, search_tree

_ATOMS_AT_ONCE = 1500
"""Up to so many atoms all distances are computed; beyond, a search tree is quicker."""
BLOCK_ON_CPU = 2**18
"""Distances computed at once: so few that a few arrays of them stay in the cache."""
BLOCK_ON_GPU = 2**24
"""So many that launching kernels costs little; 0.5 GB with what they are computed from."""
_ROUNDING = 1e-9
"""Relative slack of a search whose result is then decided exactly."""


def widths(box: Float[Tensor, "*frames 3 3"]) -> Float[Tensor, "*frames 3"]:
    r"""Compute how far opposite faces of a box are apart.

    .. math:: w_a = 1 / \lVert (B^{-1})_{\cdot a} \rVert

    In a rectangular box these are the lengths of the edges, in a skewed one less.

    Args:
        box: Rows are the edge vectors B, Å.

    Returns:
        Across the first, second and third edge, Å.
    """
    return 1 / torch.linalg.inv(box).norm(dim=-2)


def inscribed_radius(box: Float[Tensor, "*frames 3 3"]) -> Float[Tensor, "*frames"]:
    """Compute the radius of the largest sphere inside a box: half its smallest width, Å.

    A displacement shorter than this is the shortest of all its images, in any box.
    """
    return widths(box).amin(dim=-1) / 2


def wrapped(
    positions: Float[Tensor, "*frames atoms 3"], box: Float[Tensor, "*frames 3 3"]
) -> Float[Tensor, "*frames atoms 3"]:
    r"""Bring every atom into the box, each on its own.

    .. math:: x - \lfloor x B^{-1} \rfloor B

    Molecules are torn at the walls; `undula.geometry.frames.unwrap` is the way back.

    Args:
        positions: x, in any image, Å.
        box: Rows are the edge vectors B, Å; one corner of the box is the origin.

    Returns:
        The images whose coordinates along the edges are from 0 to below 1 (but for rounding), Å.
    """
    return positions - (positions @ torch.linalg.inv(box)).floor() @ box


def pair_vectors(
    positions: Float[Tensor, "atoms 3"],
    pairs: Int[Tensor, "2 pairs"],
    shift: Float[Tensor, "pairs 3"],
) -> Float[Tensor, "pairs 3"]:
    """Compute the vectors from receivers i to senders j, r_j − r_i + shift.

    Can be differentiated by the positions, with the same bytes each time.

    Args:
        positions: Those that `periodic_pairs` was given, or others in the same images, Å.
        pairs: i and j.
        shift: Å.

    Returns:
        One vector per pair, Å.
    """
    receiver, sender = pairs
    return embedding(sender, positions) - embedding(receiver, positions) + shift


def squared_distances(
    first: Float[Tensor, "frames n 3"],
    second: Float[Tensor, "frames m 3"],
    box: Float[Tensor, "frames 3 3"] | None,
) -> Float[Tensor, "frames n m"]:
    r"""Compute all squared distances between two sets, through the walls of a box.

    .. math:: \lVert (f - \lfloor f \rceil) B \rVert^2, \quad f = (y_j - x_i) B^{-1}

    The result is exact up to the squared `inscribed_radius`, and in a rectangular box beyond it;
    longer ones in a skewed box may be those of an image that is not the closest. Exchanging the
    two sets transposes it to the last bit.

    Args:
        first: x, Å, in any image.
        second: y, Å, in any image.
        box: Rows are the edge vectors B, Å; none without a box.

    Returns:
        Å². Memory is three times that of the result.
    """
    if box is None:
        axes = [_differences(first, second, axis) for axis in range(3)]
        return axes[0].square_().add_(axes[1].square_()).add_(axes[2].square_())
    inverse, metric = torch.linalg.inv(box), box @ box.mT
    rectangular = bool((metric == torch.diag_embed(metric.diagonal(dim1=-2, dim2=-1))).all())
    first, second = first @ inverse, second @ inverse
    steps: list[Tensor] = []
    total = first.new_zeros(len(first), first.shape[1], second.shape[1])
    for axis in range(3):
        step = _differences(first, second, axis)
        step -= step.round()
        total.addcmul_(step * metric[:, axis, axis, None, None], step)
        for other, before in enumerate([] if rectangular else steps):
            total.addcmul_(step * (2 * metric[:, axis, other, None, None]), before)
        steps.append(step)
    return total


def distance_blocks(
    first: Float[Tensor, "frames n 3"],
    second: Float[Tensor, "frames m 3"],
    box: Float[Tensor, "frames 3 3"] | None,
) -> Iterator[tuple[slice, slice, Float[Tensor, "part rows m"]]]:
    """Compute `squared_distances` in blocks that need little memory.

    Args:
        first: Å, in any image.
        second: Å, in any image.
        box: Rows are the edge vectors, Å; none without a box.

    Returns:
        For each block its frames, its rows (of the first set) and its squared distances, Å²;
        frame by frame, and row by row where one frame is too large. The caller may change them.
    """
    frames, n, m = len(first), first.shape[1], second.shape[1]
    block = BLOCK_ON_CPU if first.device.type == "cpu" else BLOCK_ON_GPU
    rows_at_once = max(1, min(n, block // max(m, 1)))
    frames_at_once = max(1, block // max(n * m, 1))
    for start in range(0, frames, frames_at_once):
        part = slice(start, min(start + frames_at_once, frames))
        walls = None if box is None else box[part]
        for row in range(0, n, rows_at_once):
            rows = slice(row, min(row + rows_at_once, n))
            yield part, rows, squared_distances(first[part, rows], second[part], walls)


def _differences(
    first: Float[Tensor, "frames n 3"], second: Float[Tensor, "frames m 3"], axis: int
) -> Float[Tensor, "frames n m"]:
    return second[:, None, :, axis] - first[:, :, None, axis]


def periodic_pairs(
    positions: Float[Tensor, "atoms 3"], box: Float[Tensor, "3 3"] | None, cutoff: float
) -> tuple[Int[Tensor, "2 pairs"], Float[Tensor, "pairs 3"]]:
    r"""Find all pairs of atoms, images counted, that are at most a cutoff apart.

    .. math:: \{(i, j, k) : \lVert r_j - r_i + k B \rVert \le c,\;
        k \in \mathbb{Z}^3,\; (i, k) \neq (j, 0)\}

    In a box wider than 2 c an atom has at most one image near another, which rounding finds.
    In a narrower one several images of the same atom, and images of the receiver itself, are
    pairs of their own. Exact in every box that has a volume, reduced or not.

    Args:
        positions: r, Å, in any image; they need not be wrapped. Nothing is differentiated here:
            `pair_vectors` computes from the result what can be.
        box: Rows are the edge vectors B, Å; none for an isolated molecule.
        cutoff: c, Å.

    Returns:
        Receiver i and sender j of each pair, with each (i, j) also (j, i), sorted by i, j and k;
        and the shifts k B, Å. On the device of the positions; with more than 1,500 atoms or a
        cutoff beyond half the width of the box they are found on the CPU.

    Raises:
        UsageError: The cutoff is not positive.
        InputError: A position is not finite; the box has no volume.
    """
    return pairs_of_frames(positions[None], box, cutoff)


def pairs_of_frames(
    positions: Float[Tensor, "frames atoms 3"],
    box: Float[Tensor, "3 3"] | Float[Tensor, "frames 3 3"] | None,
    cutoff: float,
) -> tuple[Int[Tensor, "2 pairs"], Float[Tensor, "pairs 3"]]:
    """Find the `periodic_pairs` of many frames as those of one large system.

    Args:
        positions: Å, in any image.
        box: Edge vectors, Å, the same for all frames or one box each; none without a box.
        cutoff: Å.

    Returns:
        As `periodic_pairs`, where atom a of frame f has the number f · atoms + a: the pairs of
        ``positions.flatten(0, 1)``, of which none joins two frames.

    Raises:
        UsageError: The cutoff is not positive.
        InputError: A position is not finite; a box has no volume.
    """
    frames, atoms = positions.shape[:2]
    places = positions.detach().double()
    boxes = None if box is None else box.detach().to(places).expand(frames, 3, 3)
    _check(places, boxes, cutoff)
    single = boxes is None or bool((cutoff < inscribed_radius(boxes)).all())
    if single and atoms <= _ATOMS_AT_ONCE:
        pairs, images = _closest_images(places, boxes, cutoff)
    else:
        pairs, images = _images_by_frame(places, boxes, cutoff)
    if boxes is None:
        return pairs, positions.new_zeros(pairs.shape[1], 3)
    if box is not None and box.ndim == 2:
        return pairs, (images @ box.to(images)).to(positions)
    shift = (images[:, None] @ boxes[pairs[0] // max(atoms, 1)])[:, 0]
    return pairs, shift.to(positions)


def _check(
    positions: Float[Tensor, "frames atoms 3"],
    box: Float[Tensor, "frames 3 3"] | None,
    cutoff: float,
) -> None:
    if not 0 < cutoff < float("inf"):
        raise UsageError(f"the cutoff of neighbours should be positive, it is {cutoff} Å")
    bad = ~torch.isfinite(positions).all(dim=-1)
    if bad.any():
        frame, atom = bad.nonzero()[0].tolist()
        raise InputError(f"the position of atom {atom + 1} in frame {frame + 1} is not finite")
    if box is not None:
        flat = ~(torch.linalg.det(box).abs() > 1e-6) | ~torch.isfinite(box).all(-1).all(-1)
        if flat.any():
            raise InputError(f"the box of frame {int(flat.nonzero()[0]) + 1} has no volume")


def _images_by_frame(
    positions: Float[Tensor, "frames atoms 3"],
    box: Float[Tensor, "frames 3 3"] | None,
    cutoff: float,
) -> tuple[Int[Tensor, "2 pairs"], Float[Tensor, "pairs 3"]]:
    """Find the pairs and images k of every frame by a search tree of its own."""
    pairs = [torch.empty(2, 0, dtype=torch.long)]
    images = [torch.empty(0, 3, dtype=torch.float64)]
    for frame in range(len(positions)):
        walls = None if box is None else box[frame]
        found, image = _all_images(positions[frame], walls, cutoff)
        pairs.append(found + frame * positions.shape[1])
        images.append(image)
    return torch.cat(pairs, dim=1).to(positions.device), torch.cat(images).to(positions)


def _closest_images(
    positions: Float[Tensor, "frames atoms 3"],
    box: Float[Tensor, "frames 3 3"] | None,
    cutoff: float,
) -> tuple[Int[Tensor, "2 pairs"], Float[Tensor, "pairs 3"]]:
    """Find the pairs and images k where at most one image can be near; from all distances."""
    atoms = positions.shape[1]
    itself = torch.arange(atoms, device=positions.device)
    found = [torch.empty(0, 3, dtype=torch.long, device=positions.device)]
    for part, rows, squared in distance_blocks(positions, positions, box):
        close = squared <= cutoff**2
        close &= itself[rows, None] != itself
        where = close.nonzero()
        where[:, 0] += part.start
        where[:, 1] += rows.start
        found.append(where)
    frame, i, j = torch.cat(found).unbind(dim=1)
    pairs = torch.stack([frame * atoms + i, frame * atoms + j])
    if box is None:
        return pairs, positions.new_zeros(pairs.shape[1], 3)
    fraction = (positions @ torch.linalg.inv(box)).flatten(0, 1)
    # Adding 0 turns −0 into 0.
    return pairs, -(fraction[pairs[1]] - fraction[pairs[0]]).round() + 0.0


def _all_images(
    positions: Float[Tensor, "atoms 3"], box: Float[Tensor, "3 3"] | None, cutoff: float
) -> tuple[Int[Tensor, "2 pairs"], Float[Tensor, "pairs 3"]]:
    """Find the pairs and images k of one frame, on the CPU, however small the box."""
    if box is None:
        pairs = pairs_within(positions, cutoff).cpu()
        return pairs, torch.zeros(pairs.shape[1], 3).double()
    edges = box.cpu().numpy()
    fraction = positions.cpu().numpy() @ np.linalg.inv(edges)
    cell = np.floor(fraction)
    inside = fraction - cell
    atom, image = _images_within(inside, cutoff / widths(box).cpu().numpy())
    here, there = search_tree(inside @ edges), search_tree((inside[atom] + image) @ edges)
    near = here.sparse_distance_matrix(there, cutoff * (1 + _ROUNDING), output_type="ndarray")
    i, j, k = near["i"].astype(np.int64), atom[near["j"]], image[near["j"]]
    step = (inside[j] - inside[i]) + k
    close = np.einsum("pa,ab,pb->p", step, edges @ edges.T, step) <= cutoff**2
    close &= (i != j) | k.any(axis=1)
    i, j, k = i[close], j[close], (k - cell[j] + cell[i])[close]
    order = np.lexsort((k[:, 2], k[:, 1], k[:, 0], j, i))
    return torch.from_numpy(np.stack([i, j])[:, order]), torch.from_numpy(k[order])


def _images_within(
    inside: Float[np.ndarray, "atoms 3"], reach: Float[np.ndarray, " axes"]
) -> tuple[Int[np.ndarray, " images"], Float[np.ndarray, "images 3"]]:
    """List all images, as atom and k, that lie in the box widened by a reach on every side.

    Positions and reach are fractions of the edges and of the widths.
    """
    atom, image = np.arange(len(inside)), np.zeros((len(inside), 3))
    slack = reach * (1 + _ROUNDING) + _ROUNDING
    for axis in range(3):
        most = int(np.ceil(slack[axis]))
        steps = np.arange(-most, most + 1)
        moved = inside[atom, axis] + steps[:, None]
        step, row = np.nonzero((moved >= -slack[axis]) & (moved <= 1 + slack[axis]))
        atom, image = atom[row], image[row]
        image[:, axis] = steps[step]
    return atom, image
