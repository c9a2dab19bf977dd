"""How alike two surfaces are: each published measure under its own name, and in Å."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.stats import wasserstein_distance
from torch import Tensor

from undula.errors import InputError
from undula.geometry.isosurface import Field, lattice_values
from undula.geometry.lattice import Lattice
from undula.geometry.neighbours import search_tree
from undula.types import Mesh, SurfaceCloud

DSR_NODES = 128
"""DSR counts occupancy on so many nodes along each axis of the cube [-1, 1]³, corners included."""


def intersection_over_union(
    inside_a: Bool[Tensor, "*nodes"], inside_b: Bool[Tensor, "*nodes"]
) -> float:
    r"""Compute how much of two solids is common to both, :math:`|A \cap B| / |A \cup B|`.

    Args:
        inside_a: Which nodes lie inside A.
        inside_b: Which lie inside B.

    Returns:
        1 for equal solids, also when both are empty: they do not differ; 0 when only one is.
    """
    union = int((inside_a | inside_b).sum())
    return int((inside_a & inside_b).sum()) / union if union else 1.0


def sample_mesh(mesh: Mesh, count: int, generator: torch.Generator) -> SurfaceCloud:
    """Draw points on a mesh, uniformly by area, with the normals of their faces.

    Args:
        mesh: At least one face with an area.
        count: How many points.
        generator: Of all draws.

    Raises:
        InputError: The mesh has no area.
    """
    normals = mesh.face_normals.double()
    upto = normals.norm(dim=1).cumsum(dim=0)
    if mesh.is_empty or not float(upto[-1]) > 0:
        raise InputError("cannot sample points on a mesh without area")
    draws = torch.rand(
        (3, count), generator=generator, dtype=torch.float64, device=generator.device
    ).to(upto.device)
    face = torch.searchsorted(upto, draws[0] * upto[-1], right=True).clamp(max=len(upto) - 1)
    a, b, c = mesh.vertices[mesh.faces[face]].double().unbind(dim=1)
    folded = draws[1:].sum(dim=0) > 1
    u, v = torch.where(folded, 1 - draws[1:], draws[1:])[:, :, None]
    points = a + u * (b - a) + v * (c - a)
    outward = torch.nn.functional.normalize(normals[face], dim=1, eps=0)
    return SurfaceCloud(points=points.to(mesh.vertices), normals=outward.to(mesh.vertices))


def chamfer(
    points_a: Float[Tensor, "n 3"],
    points_b: Float[Tensor, "m 3"],
    *,
    squared: bool,
    reduce: Literal["sum", "half-sum"],
) -> float:
    r"""Compute the Chamfer distance of two clouds.

    .. math:: \frac{1}{|A|} \sum_{a} \min_b \lVert a - b \rVert^p
        + \frac{1}{|B|} \sum_{b} \min_a \lVert a - b \rVert^p

    or half of it, with p = 2 where squared and p = 1 otherwise.

    ====================  =========  ==============  ================
    name in reports       squared    reduce          unit of points
    ====================  =========  ==============  ================
    ``chamfer_dsr``       yes        ``"sum"``       normalised
    ``chamfer_paper``     no         ``"half-sum"``  normalised
    ``chamfer_angstrom``  no         ``"half-sum"``  Å
    ====================  =========  ==============  ================

    No square is legible in MoE-DSR's formula. Clouds drawn at random from the same surface
    have not distance 0 but about half the distance of neighbouring points.

    Args:
        points_a: Points a, usually 300,000 by `sample_mesh`.
        points_b: Points b.
        squared: Whether distances are squared before the mean.
        reduce: Whether the two directions are added, or averaged.

    Raises:
        InputError: A cloud is empty.

    Source: DSR's evaluation code; MoE-DSR, the definition of CD.
    """
    return _chamfer(*_gaps(points_a, points_b), squared=squared, reduce=reduce)


def hausdorff_95(points_a: Float[Tensor, "n 3"], points_b: Float[Tensor, "m 3"]) -> float:
    """Compute how far 95 % of the points of either cloud are from the other at most.

    The larger of the two directions' 95th percentiles, in the unit of the points.

    Raises:
        InputError: A cloud is empty.
    """
    return _hausdorff_95(*_gaps(points_a, points_b))


def f_score(
    points_predicted: Float[Tensor, "n 3"],
    points_true: Float[Tensor, "m 3"],
    threshold: float = 1.0,
) -> float:
    """Compute the harmonic mean of precision and recall within a distance.

    Args:
        points_predicted: Precision is the share of these within reach of a true point.
        points_true: Recall is the share of these within reach of a predicted point.
        threshold: The reach, Å.

    Returns:
        Between 0 (no point within reach) and 1 (all).

    Raises:
        InputError: A cloud is empty.

    Source: Knapitsch et al., Tanks and Temples (2017).
    """
    return _f_score(*_gaps(points_predicted, points_true), threshold)


def normal_consistency(
    points_true: Float[Tensor, "n 3"],
    normals_true: Float[Tensor, "n 3"],
    points_predicted: Float[Tensor, "m 3"],
    normals_predicted: Float[Tensor, "m 3"],
    *,
    signed: bool,
) -> float:
    r"""Compute how well normals agree with those of the nearest predicted points.

    .. math:: \frac1n \sum_i \langle n_i, n'_{j(i)} \rangle \quad\text{or its absolute value},
        \qquad j(i) = \arg\min_j \lVert x_i - x'_j \rVert

    One direction, from truth to prediction. Normals that have nothing to do with each other
    give 0 signed and ½ absolute, so values of the two definitions cannot be compared.

    =================================  ========  =========================  =================
    name in reports                    signed    points                     directions
    =================================  ========  =========================  =================
    ``normal_consistency_dsr``         no        mesh vertices              truth → predicted
    ``normal_consistency_paper``       yes       mesh vertices              truth → predicted
    ``normal_consistency_both``        no        uniform by area            both
    =================================  ========  =========================  =================

    Args:
        points_true: x.
        normals_true: n, of length one.
        points_predicted: x'.
        normals_predicted: n', of length one.
        signed: Whether opposite normals count as -1 (MoE-DSR's formula) or as 1 (DSR's code).

    Raises:
        InputError: A cloud is empty.

    Source: DSR's evaluation code; MoE-DSR, the definition of NC.
    """
    _, nearest = _nearest(points_true, points_predicted)
    return _alignment(normals_true, normals_predicted, nearest, signed=signed)


def normal_consistency_both(
    points_a: Float[Tensor, "n 3"],
    normals_a: Float[Tensor, "n 3"],
    points_b: Float[Tensor, "m 3"],
    normals_b: Float[Tensor, "m 3"],
    *,
    signed: bool,
) -> float:
    """Compute the mean of `normal_consistency` from A to B and from B to A."""
    there = normal_consistency(points_a, normals_a, points_b, normals_b, signed=signed)
    back = normal_consistency(points_b, normals_b, points_a, normals_a, signed=signed)
    return (there + back) / 2


@dataclass(frozen=True, kw_only=True, eq=False)
class Solid:
    """A body: its field and the mesh of its boundary.

    Attributes:
        mesh: The boundary, Å; empty when the field never falls below the level.
        field: Below ``level`` inside; asked for points in the precision of the mesh.
        level: Where the boundary is.
        lipschitz: How much the field changes per Å at most: 1 for an exact distance,
            infinity where nothing is known.
    """

    mesh: Mesh
    field: Field
    level: float = 0.0
    lipschitz: float = 1.3
    _kept: dict[Any, Tensor] = dataclasses.field(default_factory=dict, init=False, repr=False)

    def inside(self, lattice: Lattice, *, keep: bool = False) -> Bool[Tensor, "nx ny nz"]:
        """Tell which nodes of a lattice lie inside; on the CPU.

        Args:
            lattice: Whose nodes.
            keep: Whether the answer is kept for the next question about the same lattice.
        """
        if not keep:
            return self._inside(lattice)
        key = (tuple(lattice.origin.tolist()), lattice.spacing, lattice.shape)
        if key not in self._kept:
            self._kept.clear()
            self._kept[key] = self._inside(lattice)
        return self._kept[key]

    def _inside(self, lattice: Lattice) -> Bool[Tensor, "nx ny nz"]:
        found = lattice_values(
            self.field,
            lattice.to(self.mesh.vertices),
            level=self.level,
            lipschitz=self.lipschitz,
        )
        return found.inside.cpu()


def compare_surfaces(
    predicted: Solid,
    truth: Solid,
    *,
    centre: Float[Tensor, " 3"],
    scale: float,
    generator: torch.Generator,
    samples: int = 300_000,
    spacing: float = 0.5,
) -> dict[str, float]:
    """Compute every measure of a predicted surface against the true one.

    Normalised coordinates are (x - centre) / scale. They serve only the published measures,
    which depend on the scale; those in Å do not. A prediction that is empty fails: overlap,
    agreement of normals and F-score are 0, and every point of either surface counts as one
    diagonal of the truth's box away from the other.

    Args:
        predicted: May be empty.
        truth: Not empty.
        centre: Centre of the normalised cube [-1, 1]³, Å; from the first frame.
        scale: Å per normalised unit; the same for all models that are compared.
        generator: Of the points drawn on both meshes.
        samples: Points drawn on each mesh; 300,000 in DSR.
        spacing: Of the lattice on which ``iou`` counts, Å.

    Returns:
        =============================  ==========================================================
        ``iou``                        on a lattice over the union of both boxes
        ``iou_dsr``                    on DSR's 128³ nodes of [-1, 1]³; what lies outside is lost
        ``chamfer_dsr``                `chamfer`, normalised and squared
        ``chamfer_paper``              `chamfer`, normalised
        ``chamfer_angstrom``           `chamfer`, Å
        ``hausdorff_95_angstrom``      `hausdorff_95`, Å
        ``f_score_1A``                 `f_score` within 1 Å
        ``normal_consistency_dsr``     `normal_consistency`, absolute
        ``normal_consistency_paper``   `normal_consistency`, signed
        ``normal_consistency_both``    `normal_consistency_both` of drawn points, absolute
        ``volume_error``               |V - V*| / V*
        ``area_error``                 |A - A*| / A*
        ``empty``                      1 if there is no prediction, else 0
        =============================  ==========================================================

    Raises:
        InputError: The truth is empty, or the boxes need too fine a lattice.

    Source: DSR's evaluation code and MoE-DSR, where named so. Differs from DSR in that
    occupancy is the sign of the field, not the parity of rays through the mesh.
    """
    if truth.mesh.is_empty:
        raise InputError("there is no true surface to compare with")
    if predicted.mesh.is_empty:
        return _failed(truth.mesh, scale)
    ends = [end for mesh in (predicted.mesh, truth.mesh) for end in _box(mesh)]
    low, high = torch.stack(ends[::2]).amin(dim=0), torch.stack(ends[1::2]).amax(dim=0)
    both = Lattice.covering(low, high, spacing)
    cube = Lattice(
        origin=centre.double() - scale,
        spacing=2 * scale / (DSR_NODES - 1),
        shape=(DSR_NODES, DSR_NODES, DSR_NODES),
    )
    true_cloud = sample_mesh(truth.mesh, samples, generator)
    cloud = sample_mesh(predicted.mesh, samples, generator)
    there, nearest = _nearest(cloud.points, true_cloud.points)
    back, nearest_back = _nearest(true_cloud.points, cloud.points)
    _, vertex = _nearest(truth.mesh.vertices, predicted.mesh.vertices)
    normals_true, normals = truth.mesh.vertex_normals, predicted.mesh.vertex_normals
    return {
        "iou": intersection_over_union(predicted.inside(both), truth.inside(both)),
        "iou_dsr": intersection_over_union(
            predicted.inside(cube, keep=True), truth.inside(cube, keep=True)
        ),
        **_chamfers(there, back, scale),
        "hausdorff_95_angstrom": _hausdorff_95(there, back),
        "f_score_1A": _f_score(there, back, 1.0),
        "normal_consistency_dsr": _alignment(normals_true, normals, vertex, signed=False),
        "normal_consistency_paper": _alignment(normals_true, normals, vertex, signed=True),
        "normal_consistency_both": (
            _alignment(cloud.normals, true_cloud.normals, nearest, signed=False)
            + _alignment(true_cloud.normals, cloud.normals, nearest_back, signed=False)
        )
        / 2,
        "volume_error": abs(predicted.mesh.volume / truth.mesh.volume - 1),
        "area_error": abs(predicted.mesh.area / truth.mesh.area - 1),
        "empty": 0.0,
    }


def wasserstein(values_a: Sequence[float], values_b: Sequence[float]) -> float:
    r"""Compute the 1-Wasserstein distance of two sets of numbers, as distributions.

    .. math:: \int |F_a(x) - F_b(x)| \, dx

    How far numbers must be moved on average to turn one distribution into the other: the shift
    between shifted ones, and |mean − a| between anything and a single number beside it. Small sets
    drawn from one distribution are some way apart all the same.

    Args:
        values_a: At least one.
        values_b: At least one, in the same unit.

    Returns:
        In that unit.

    Raises:
        InputError: A set is empty.
    """
    if not values_a or not values_b:
        raise InputError("a distribution of no numbers cannot be compared")
    return float(wasserstein_distance(list(values_a), list(values_b)))


def skill(value: float, reference: float, perfect: float = 0.0) -> float:
    r"""Compute how much of the way from a reference to perfection a model has come.

    .. math:: 1 - \frac{v - p}{r - p}

    1 is perfect, 0 is as good as the reference, negative is worse. The same for errors
    (perfect is 0) and for scores such as IoU (perfect is 1).

    Args:
        value: The model's, v.
        reference: The trivial model's on the same data, r.
        perfect: The best possible, p; the noise floor where one is known.

    Raises:
        InputError: The reference is perfect already, so that there is no way to go.
    """
    if reference == perfect:
        raise InputError(f"there is no skill to measure: the reference is perfect ({perfect:g})")
    return 1 - (value - perfect) / (reference - perfect)


def _failed(truth: Mesh, scale: float) -> dict[str, float]:
    low, high = _box(truth)
    diagonal = np.array([float((high - low).norm())])
    return {
        "iou": 0.0,
        "iou_dsr": 0.0,
        **_chamfers(diagonal, diagonal, scale),
        "hausdorff_95_angstrom": float(diagonal[0]),
        "f_score_1A": 0.0,
        "normal_consistency_dsr": 0.0,
        "normal_consistency_paper": 0.0,
        "normal_consistency_both": 0.0,
        "volume_error": 1.0,
        "area_error": 1.0,
        "empty": 1.0,
    }


def _box(mesh: Mesh) -> tuple[Float[Tensor, " 3"], Float[Tensor, " 3"]]:
    vertices = mesh.vertices.cpu().double()
    return vertices.amin(dim=0), vertices.amax(dim=0)


def _nearest(
    points: Float[Tensor, "n 3"], others: Float[Tensor, "m 3"]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the distance and the index of the nearest other point."""
    if len(points) == 0 or len(others) == 0:
        raise InputError("an empty cloud cannot be compared")
    tree = search_tree(others.detach().cpu().double().numpy())
    distance, index = tree.query(points.detach().cpu().double().numpy())
    return np.asarray(distance), np.asarray(index)


def _gaps(a: Float[Tensor, "n 3"], b: Float[Tensor, "m 3"]) -> tuple[np.ndarray, np.ndarray]:
    return _nearest(a, b)[0], _nearest(b, a)[0]


def _chamfer(there: np.ndarray, back: np.ndarray, *, squared: bool, reduce: str) -> float:
    power = 2 if squared else 1
    total = float((there**power).mean() + (back**power).mean())
    return total if reduce == "sum" else total / 2


def _chamfers(there: np.ndarray, back: np.ndarray, scale: float) -> dict[str, float]:
    normalised = there / scale, back / scale
    return {
        "chamfer_dsr": _chamfer(*normalised, squared=True, reduce="sum"),
        "chamfer_paper": _chamfer(*normalised, squared=False, reduce="half-sum"),
        "chamfer_angstrom": _chamfer(there, back, squared=False, reduce="half-sum"),
    }


def _hausdorff_95(there: np.ndarray, back: np.ndarray) -> float:
    return float(max(np.quantile(there, 0.95), np.quantile(back, 0.95)))


def _f_score(there: np.ndarray, back: np.ndarray, threshold: float) -> float:
    precision, recall = float((there <= threshold).mean()), float((back <= threshold).mean())
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _alignment(
    normals: Float[Tensor, "n 3"],
    others: Float[Tensor, "m 3"],
    nearest: np.ndarray,
    *,
    signed: bool,
) -> float:
    partner = others.detach().cpu().double()[torch.from_numpy(nearest)]
    cosine = (normals.detach().cpu().double() * partner).sum(dim=1)
    return float((cosine if signed else cosine.abs()).mean())
