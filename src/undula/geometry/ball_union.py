r"""The exact signed distance to the boundary of a union of balls, by compiled kernels.

Let :math:`A = \bigcup_i B(a_i, R_i)`. Its boundary :math:`\partial A` consists of

- *patches*: the points of sphere i that no other ball covers;
- *arcs*: the points of the circle in which spheres i and j meet that no third ball covers;
- *vertices*: the ends of arcs, where three spheres meet.

**Outside** A the closest point lies on the ball of least :math:`|x - a_i| - R_i`, and this
least value is the distance. **Inside**, let c be the closest point of the boundary. If c is
inside a patch, then :math:`c = a_i + R_i u` with :math:`u = (x - a_i)/|x - a_i|` and x is in
ball i, since otherwise the segment from x to c would leave A before it reaches c. If c is
inside an arc, it is the point of the circle at the azimuth of x. Otherwise it is a vertex.
Each of these candidates that no ball covers is a point of the boundary, therefore

.. math:: d(x) = -\min_c |x - c| \quad\text{over all uncovered candidates } c,

exactly, with no sampling. The gradient is the unit vector from x towards c inside and from c
towards x outside; on a patch that is u on both sides. It is not defined where several points
are equally close (the medial axis, ball centres); there one of them is taken, so that the
result is always a unit vector. The distance is 1-Lipschitz everywhere.

Both searches descend a tree of bounding boxes: one over balls, one over arcs. A point counts
as covered by a ball only when it is deeper inside than `COVERED`, so that four spheres
through one point, or circles that coincide, keep their shared points.

A level set of the distance is addressed through ``offset``: the kernels compute
:math:`\varphi = d + \mathrm{offset}`. All compiled code about it is in this one file because
numba's cache does not see changes in the callees of other files.

The analytic description of the boundary goes back to Connolly, J. Appl. Cryst. 16 (1983) 548.
"""

from __future__ import annotations

import math
from typing import NamedTuple, no_type_check

import numba
import numpy as np
from scipy.spatial import cKDTree

from undula.errors import InputError

COVERED = 1e-8
"""How deep inside a ball a point must lie to count as covered, Å."""

CONTAINED = 1e-6
"""A ball that reaches out of another by no more than this is left out, Å."""

MOST_OVERLAPS = 50_000_000
"""The number of overlapping pairs of balls beyond which the input is refused."""

_LEAF = 4
_BLOCK = 16

_compiled = numba.njit(cache=True, nogil=True, error_model="numpy")


class BallUnion(NamedTuple):
    """A union of balls, prepared for distance queries; made by `ball_union`.

    Attributes:
        centres: Ball centres in the order of the ball tree, Å; contained balls are left out.
        radii: Their radii, Å.
        exposed: Whether any of the ball's sphere is part of the boundary.
        neighbours_from: Where each ball's row of ``neighbours`` begins.
        neighbours: The balls that overlap each ball, nearest first.
        arcs: In the order of the arc tree; the columns are the circle's centre, its unit axis,
            the unit direction from the centre to the middle of the arc, the circle's radius,
            and cosine and sine of half the arc's angle.
        ball_boxes: Lower and upper corners of the ball tree's boxes, children of k at 2k+1, 2k+2.
        arc_boxes: The same for the arc tree.
    """

    centres: np.ndarray
    radii: np.ndarray
    exposed: np.ndarray
    neighbours_from: np.ndarray
    neighbours: np.ndarray
    arcs: np.ndarray
    ball_boxes: np.ndarray
    arc_boxes: np.ndarray


def ball_union(centres: np.ndarray, radii: np.ndarray) -> BallUnion:
    """Find the exposed arcs and balls of a union and put them into trees.

    Args:
        centres: One row of three finite numbers per ball, Å, in double precision.
        radii: Positive, Å.

    Returns:
        The union, in an order of its own.

    Raises:
        InputError: So many balls overlap that they cannot be atoms in Å.
    """
    order = _tree_order(centres)
    centres, radii = centres[order], radii[order]
    first, second, distance = _overlaps(centres, radii)

    # Where two balls are equal the one of lower index stays.
    inside = distance <= np.abs(radii[first] - radii[second]) + CONTAINED
    smaller = np.where(radii[first] < radii[second], first, second)
    kept = np.ones(len(radii), dtype=bool)
    kept[smaller[inside]] = False
    pairs = kept[first] & kept[second]
    new_index = np.cumsum(kept) - 1
    first, second, distance = new_index[first[pairs]], new_index[second[pairs]], distance[pairs]
    centres, radii = np.ascontiguousarray(centres[kept]), np.ascontiguousarray(radii[kept])

    owner, other = np.concatenate([first, second]), np.concatenate([second, first])
    rows = np.lexsort((np.tile(distance, 2), owner))
    neighbours = other[rows]
    neighbours_from = np.zeros(len(radii) + 1, dtype=np.int64)
    np.cumsum(np.bincount(owner, minlength=len(radii)), out=neighbours_from[1:])

    arcs, exposed = _exposed_arcs(centres, radii, neighbours_from, neighbours)
    arc_low, arc_high = _arc_extents(arcs)
    arc_order = _tree_order((arc_low + arc_high) / 2)
    return BallUnion(
        centres,
        radii,
        exposed,
        neighbours_from,
        neighbours,
        np.ascontiguousarray(arcs[arc_order]),
        _tree_boxes(centres - radii[:, None], centres + radii[:, None]),
        _tree_boxes(arc_low[arc_order], arc_high[arc_order]),
    )


def _overlaps(centres: np.ndarray, radii: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the pairs of balls that overlap (first < second) and their centres' distance."""
    tree, reach = cKDTree(centres), 2 * float(radii.max())
    count = (int(tree.count_neighbors(tree, reach)) - len(radii)) // 2
    if count > MOST_OVERLAPS:
        raise InputError(
            f"the atoms are too crowded: {count} pairs lie within {reach:.1f} Å; "
            "are the positions in Å?"
        )
    first, second = tree.query_pairs(reach, output_type="ndarray").T
    distance = np.linalg.norm(centres[first] - centres[second], axis=1)
    touch = distance < radii[first] + radii[second]
    return first[touch], second[touch], distance[touch]


@_compiled
@no_type_check
def _tree_levels(count):
    """Return the number of levels below the root, so that leaves hold about `_LEAF` things."""
    levels = 0
    while (count >> levels) > _LEAF:
        levels += 1
    return levels


@_compiled
@no_type_check
def _tree_order(middles):
    """Order things so that every node k of level l is the slice n·k >> l to n·(k+1) >> l."""
    count = len(middles)
    order = np.arange(count)
    for level in range(_tree_levels(count)):
        for node in range(1 << level):
            begin, end = (count * node) >> level, (count * (node + 1)) >> level
            part = order[begin:end].copy()
            widest, axis = -1.0, 0
            for k in range(3):
                values = middles[part, k]
                if values.max() - values.min() > widest:
                    widest, axis = values.max() - values.min(), k
            order[begin:end] = part[np.argsort(middles[part, axis])]
    return order


@_compiled
@no_type_check
def _tree_boxes(low, high):
    """Return the boxes of the tree's nodes; an empty tree is one box that is nowhere."""
    count = len(low)
    levels = _tree_levels(count)
    boxes = np.empty(((2 << levels) - 1, 6))
    boxes[:, :3] = np.inf
    boxes[:, 3:] = -np.inf
    first_leaf = (1 << levels) - 1
    for leaf in range(1 << levels):
        for item in range((count * leaf) >> levels, (count * (leaf + 1)) >> levels):
            for k in range(3):
                boxes[first_leaf + leaf, k] = min(boxes[first_leaf + leaf, k], low[item, k])
                boxes[first_leaf + leaf, 3 + k] = max(
                    boxes[first_leaf + leaf, 3 + k], high[item, k]
                )
    for node in range(first_leaf - 1, -1, -1):
        for k in range(3):
            boxes[node, k] = min(boxes[2 * node + 1, k], boxes[2 * node + 2, k])
            boxes[node, 3 + k] = max(boxes[2 * node + 1, 3 + k], boxes[2 * node + 2, 3 + k])
    return boxes


@_compiled
@no_type_check
def _squared_distance_to_box(boxes, node, x, y, z):
    dx = max(boxes[node, 0] - x, 0.0, x - boxes[node, 3])
    dy = max(boxes[node, 1] - y, 0.0, y - boxes[node, 4])
    dz = max(boxes[node, 2] - z, 0.0, z - boxes[node, 5])
    return dx * dx + dy * dy + dz * dz


@_compiled
@no_type_check
def _perpendicular(x, y, z):
    """Return some unit vector at a right angle to a unit vector."""
    if abs(x) <= abs(y) and abs(x) <= abs(z):
        scale = 1 / math.sqrt(y * y + z * z)
        return 0.0, -z * scale, y * scale
    if abs(y) <= abs(z):
        scale = 1 / math.sqrt(x * x + z * z)
        return z * scale, 0.0, -x * scale
    scale = 1 / math.sqrt(x * x + y * y)
    return -y * scale, x * scale, 0.0


@_compiled
@no_type_check
def _covered_angles(others, centres, radii, skip, circle, begins, ends):
    """List the angles of a circle that third balls cover; return their count, -1 for all.

    On the circle of centre m, radius ρ and frame (e, f), a ball of centre m + g and radius R
    covers the angles t with cos(t - t₀) > (|g|² + ρ² - R²) / (2ρ|g'|), where g' is the part of
    g in the plane of the circle and t₀ its azimuth. Angles are in [-π, π], cut there in two.
    """
    mx, my, mz, ex, ey, ez, fx, fy, fz, rho = circle
    pieces = 0
    for third in others:
        if third == skip:
            continue
        gx, gy, gz = centres[third, 0] - mx, centres[third, 1] - my, centres[third, 2] - mz
        reach = max(radii[third] - COVERED, 0.0)
        missing = gx * gx + gy * gy + gz * gz + rho * rho - reach * reach
        ge = gx * ex + gy * ey + gz * ez
        gf = gx * fx + gy * fy + gz * fz
        gain = 2 * rho * math.sqrt(ge * ge + gf * gf)
        if missing >= gain:
            continue
        if missing <= -gain:
            return -1
        middle, half = math.atan2(gf, ge), math.acos(missing / gain)
        begin, end = middle - half, middle + half
        if begin < -math.pi:
            begins[pieces], ends[pieces] = begin + 2 * math.pi, math.pi
            pieces += 1
            begin = -math.pi
        elif end > math.pi:
            begins[pieces], ends[pieces] = -math.pi, end - 2 * math.pi
            pieces += 1
            end = math.pi
        begins[pieces], ends[pieces] = begin, end
        pieces += 1
    return pieces


@_compiled
@no_type_check
def _exposed_arcs(centres, radii, neighbours_from, neighbours):
    """Return the arcs of all circles that no third ball covers, and which balls have any."""
    balls = len(radii)
    exposed = np.diff(neighbours_from) == 0
    arcs = np.empty((4 * balls + 16, 12))
    found = 0
    room = 2 * np.diff(neighbours_from).max() + 2
    begins, ends = np.empty(room), np.empty(room)
    for i in range(balls):
        row = neighbours[neighbours_from[i] : neighbours_from[i + 1]]
        for j in row:
            if j < i:
                continue
            wx, wy, wz = (
                centres[j, 0] - centres[i, 0],
                centres[j, 1] - centres[i, 1],
                centres[j, 2] - centres[i, 2],
            )
            distance = math.sqrt(wx * wx + wy * wy + wz * wz)
            wx, wy, wz = wx / distance, wy / distance, wz / distance
            along = (distance + (radii[i] - radii[j]) / distance * (radii[i] + radii[j])) / 2
            squared_rho = (radii[i] - along) * (radii[i] + along)
            if squared_rho <= 0:  # the spheres touch
                exposed[i] = exposed[j] = True
                continue
            rho = math.sqrt(squared_rho)
            mx, my, mz = (
                centres[i, 0] + along * wx,
                centres[i, 1] + along * wy,
                centres[i, 2] + along * wz,
            )
            ex, ey, ez = _perpendicular(wx, wy, wz)
            fx, fy, fz = wy * ez - wz * ey, wz * ex - wx * ez, wx * ey - wy * ex
            circle = (mx, my, mz, ex, ey, ez, fx, fy, fz, rho)
            pieces = _covered_angles(row, centres, radii, j, circle, begins, ends)
            if pieces == -1:
                continue
            if pieces == 0:  # the whole turn is one gap, from the angle π to the angle π
                begins[0] = ends[0] = math.pi
                pieces = 1
            reached = ends[:pieces].max() - 2 * math.pi
            for piece in np.argsort(begins[:pieces]):
                begin, end = reached, begins[piece]
                reached = max(reached, ends[piece])
                if end <= begin:
                    continue
                exposed[i] = exposed[j] = True
                if found == len(arcs):
                    grown = np.empty((2 * found, 12))
                    grown[:found] = arcs
                    arcs = grown
                middle, half = (begin + end) / 2, (end - begin) / 2
                c, s = math.cos(middle), math.sin(middle)
                arcs[found, 0], arcs[found, 1], arcs[found, 2] = mx, my, mz
                arcs[found, 3], arcs[found, 4], arcs[found, 5] = wx, wy, wz
                arcs[found, 6] = c * ex + s * fx
                arcs[found, 7] = c * ey + s * fy
                arcs[found, 8] = c * ez + s * fz
                arcs[found, 9], arcs[found, 10], arcs[found, 11] = (
                    rho,
                    math.cos(half),
                    math.sin(half),
                )
                found += 1
    return arcs[:found].copy(), exposed


@_compiled
@no_type_check
def _arc_extents(arcs):
    """Return the lower and upper corners of the boxes around arcs."""
    low, high = np.empty((len(arcs), 3)), np.empty((len(arcs), 3))
    for arc in range(len(arcs)):
        m, w, e = arcs[arc, 0:3], arcs[arc, 3:6], arcs[arc, 6:9]
        rho, cosine, sine = arcs[arc, 9], arcs[arc, 10], arcs[arc, 11]
        for k in range(3):
            f = w[(k + 1) % 3] * e[(k + 2) % 3] - w[(k + 2) % 3] * e[(k + 1) % 3]
            # Over all angles t, cos(t) e + sin(t) f is largest where cos(t) = e / steepest.
            steepest = math.sqrt(e[k] * e[k] + f * f)
            end = cosine * e[k] + sine * abs(f)
            start = cosine * e[k] - sine * abs(f)
            top = steepest if e[k] >= cosine * steepest else end
            bottom = -steepest if -e[k] >= cosine * steepest else start
            low[arc, k] = m[k] + rho * bottom
            high[arc, k] = m[k] + rho * top
    return low, high


@_compiled
@no_type_check
def _is_covered(union, ball, x, y, z):
    """Return whether another ball covers a point of this ball's sphere."""
    for row in range(union.neighbours_from[ball], union.neighbours_from[ball + 1]):
        other = union.neighbours[row]
        dx = x - union.centres[other, 0]
        dy = y - union.centres[other, 1]
        dz = z - union.centres[other, 2]
        reach = max(union.radii[other] - COVERED, 0.0)
        if dx * dx + dy * dy + dz * dz < reach * reach:
            return True
    return False


@_compiled
@no_type_check
def _squared_distance_to_arc(arcs, arc, x, y, z):
    vx, vy, vz = x - arcs[arc, 0], y - arcs[arc, 1], z - arcs[arc, 2]
    height = vx * arcs[arc, 3] + vy * arcs[arc, 4] + vz * arcs[arc, 5]
    middle = vx * arcs[arc, 6] + vy * arcs[arc, 7] + vz * arcs[arc, 8]
    across = max(vx * vx + vy * vy + vz * vz - height * height, 0.0)
    out = math.sqrt(across)
    rho, cosine, sine = arcs[arc, 9], arcs[arc, 10], arcs[arc, 11]
    if middle >= out * cosine:
        return (out - rho) * (out - rho) + height * height
    side = math.sqrt(max(across - middle * middle, 0.0))
    a, b = middle - rho * cosine, side - rho * sine
    return a * a + b * b + height * height


@_compiled
@no_type_check
def _closest_point_of_arc(arcs, arc, x, y, z):
    mx, my, mz = arcs[arc, 0], arcs[arc, 1], arcs[arc, 2]
    wx, wy, wz = arcs[arc, 3], arcs[arc, 4], arcs[arc, 5]
    ex, ey, ez = arcs[arc, 6], arcs[arc, 7], arcs[arc, 8]
    fx, fy, fz = wy * ez - wz * ey, wz * ex - wx * ez, wx * ey - wy * ex
    rho, cosine, sine = arcs[arc, 9], arcs[arc, 10], arcs[arc, 11]
    middle = (x - mx) * ex + (y - my) * ey + (z - mz) * ez
    side = (x - mx) * fx + (y - my) * fy + (z - mz) * fz
    out = math.sqrt(middle * middle + side * side)
    if out == 0:
        c, s = 1.0, 0.0
    elif middle >= out * cosine:
        c, s = middle / out, side / out
    else:
        c, s = cosine, math.copysign(sine, side)
    c, s = rho * c, rho * s
    return mx + c * ex + s * fx, my + c * ey + s * fy, mz + c * ez + s * fz


@_compiled
@no_type_check
def _put_children(boxes, node, x, y, z, waiting, bounds, height):
    """Put a node's children on the stack, the nearer one on top; return the new height."""
    near, far = 2 * node + 1, 2 * node + 2
    near_bound = _squared_distance_to_box(boxes, near, x, y, z)
    far_bound = _squared_distance_to_box(boxes, far, x, y, z)
    if far_bound < near_bound:
        near, far, near_bound, far_bound = far, near, far_bound, near_bound
    waiting[height], bounds[height] = far, far_bound
    waiting[height + 1], bounds[height + 1] = near, near_bound
    return height + 2


@_compiled
@no_type_check
def _nearest_balls(union, x, y, z, waiting, bounds):
    """Return the least |x - a| - R with its direction u, and the same for the nearest patch.

    The second is the depth of x below the nearest patch of the balls that hold x, infinite if
    there is none.
    """
    gap, gx, gy, gz = np.inf, 0.0, 0.0, 1.0
    depth, ux, uy, uz = np.inf, 0.0, 0.0, 1.0
    boxes, balls = union.ball_boxes, len(union.radii)
    first_leaf, levels = len(boxes) // 2, _tree_levels(balls)
    waiting[0], bounds[0] = 0, 0.0
    height = 1
    while height:
        height -= 1
        node, reach = waiting[height], max(gap, 0.0)
        if bounds[height] > reach * reach:
            continue
        if node < first_leaf:
            height = _put_children(boxes, node, x, y, z, waiting, bounds, height)
            continue
        leaf = node - first_leaf
        for ball in range((balls * leaf) >> levels, (balls * (leaf + 1)) >> levels):
            ax, ay, az = union.centres[ball, 0], union.centres[ball, 1], union.centres[ball, 2]
            radius = union.radii[ball]
            vx, vy, vz = x - ax, y - ay, z - az
            length = math.sqrt(vx * vx + vy * vy + vz * vz)
            if length > 0:
                vx, vy, vz = vx / length, vy / length, vz / length
            else:
                vz = 1.0
            here = length - radius
            if here < gap:
                gap, gx, gy, gz = here, vx, vy, vz
            if here > 0 or -here >= depth or not union.exposed[ball]:
                continue
            if not _is_covered(union, ball, ax + radius * vx, ay + radius * vy, az + radius * vz):
                depth, ux, uy, uz = -here, vx, vy, vz
    return gap, gx, gy, gz, depth, ux, uy, uz


@_compiled
@no_type_check
def _nearest_arc(union, x, y, z, depth, waiting, bounds):
    """Return the arc nearest to a point, or -1 if all are at least as far as the depth."""
    best, nearest = depth * depth, -1
    boxes, arcs = union.arc_boxes, len(union.arcs)
    first_leaf, levels = len(boxes) // 2, _tree_levels(arcs)
    waiting[0], bounds[0] = 0, 0.0
    height = 1
    while height:
        height -= 1
        node = waiting[height]
        if bounds[height] >= best:
            continue
        if node < first_leaf:
            height = _put_children(boxes, node, x, y, z, waiting, bounds, height)
            continue
        leaf = node - first_leaf
        for arc in range((arcs * leaf) >> levels, (arcs * (leaf + 1)) >> levels):
            squared = _squared_distance_to_arc(union.arcs, arc, x, y, z)
            if squared < best:
                best, nearest = squared, arc
    return nearest


@_compiled
@no_type_check
def _distance_and_gradient(union, x, y, z):
    """Return d(x) and its gradient, as the top of the file derives them."""
    waiting, bounds = np.empty(64, dtype=np.int64), np.empty(64)
    gap, gx, gy, gz, depth, ux, uy, uz = _nearest_balls(union, x, y, z, waiting, bounds)
    if gap > 0:
        return gap, gx, gy, gz
    arc = _nearest_arc(union, x, y, z, depth, waiting, bounds)
    if arc == -1:
        return -depth, ux, uy, uz
    cx, cy, cz = _closest_point_of_arc(union.arcs, arc, x, y, z)
    vx, vy, vz = cx - x, cy - y, cz - z
    depth = math.sqrt(vx * vx + vy * vy + vz * vz)
    if depth < COVERED:  # on the crease itself: take the direction away from the nearest ball
        return -depth, gx, gy, gz
    return -depth, vx / depth, vy / depth, vz / depth


@_compiled
@no_type_check
def distances(union, offset, points):
    """Return the distances at points and the gradients, as the module's text defines them."""
    values, gradients = np.empty(len(points)), np.empty((len(points), 3))
    for row in range(len(points)):
        value, gx, gy, gz = _distance_and_gradient(
            union, points[row, 0], points[row, 1], points[row, 2]
        )
        values[row] = value + offset
        gradients[row, 0], gradients[row, 1], gradients[row, 2] = gx, gy, gz
    return values, gradients


@_compiled
@no_type_check
def lattice_distances(union, offset, origin, spacing, shape, band):
    """Return the distances at lattice nodes, clamped to [-band, band].

    Blocks of nodes that lie beyond the band as a whole, by the value in their middle and the
    Lipschitz constant 1, are filled at once; the others are halved.
    """
    values = np.empty(shape)
    pending = np.empty((256, 4), dtype=np.int64)
    for i in range(0, shape[0], _BLOCK):
        for j in range(0, shape[1], _BLOCK):
            for k in range(0, shape[2], _BLOCK):
                pending[0] = (i, j, k, _BLOCK)
                height = 1
                while height:
                    height -= 1
                    a, b, c, size = pending[height]
                    if a >= shape[0] or b >= shape[1] or c >= shape[2]:
                        continue
                    if size == 1 or band < np.inf:
                        half = (size - 1) / 2
                        value, _, _, _ = _distance_and_gradient(
                            union,
                            origin[0] + (a + half) * spacing,
                            origin[1] + (b + half) * spacing,
                            origin[2] + (c + half) * spacing,
                        )
                        value += offset
                        if size == 1 or abs(value) > band + half * spacing * math.sqrt(3.0):
                            values[a : a + size, b : b + size, c : c + size] = min(
                                max(value, -band), band
                            )
                            continue
                    size //= 2
                    for corner in range(8):
                        pending[height, 0] = a + size * (corner & 1)
                        pending[height, 1] = b + size * (corner >> 1 & 1)
                        pending[height, 2] = c + size * (corner >> 2)
                        pending[height, 3] = size
                        height += 1
    return values


@_compiled
@no_type_check
def _crossing(union, offset, start, axis, spacing, first, last):
    """Return where the distance is zero on an edge whose ends have other signs.

    Newton's method along the edge, with bisection where it does not halve the value.
    """
    low, high = 0.0, spacing
    place = spacing * first / (first - last)
    point = start.copy()
    before = np.inf
    gx, gy, gz = 0.0, 0.0, 1.0
    for _ in range(60):
        point[axis] = start[axis] + place
        value, gx, gy, gz = _distance_and_gradient(union, point[0], point[1], point[2])
        value += offset
        if abs(value) < 1e-9 or high - low < 1e-10:
            break
        if (value < 0) == (first < 0):
            low = place
        else:
            high = place
        slope = gx if axis == 0 else (gy if axis == 1 else gz)
        step = value / slope if abs(slope) > abs(value) / spacing else np.inf
        place -= step
        if abs(value) > before / 2 or place <= low or place >= high:
            place = (low + high) / 2
        before = abs(value)
    return place, gx, gy, gz


@_compiled
@no_type_check
def lattice_crossings(union, offset, origin, spacing, values):
    """Return the points where lattice edges cross the zero level, and the gradients there."""
    nx, ny, nz = values.shape
    count = 0
    for i in range(nx):
        for j in range(ny):
            for k in range(nz):
                inside = values[i, j, k] < 0
                count += i + 1 < nx and (values[i + 1, j, k] < 0) != inside
                count += j + 1 < ny and (values[i, j + 1, k] < 0) != inside
                count += k + 1 < nz and (values[i, j, k + 1] < 0) != inside
    points, gradients = np.empty((count, 3)), np.empty((count, 3))
    found = 0
    for i in range(nx):
        for j in range(ny):
            for k in range(nz):
                for axis in range(3):
                    a, b, c = i + (axis == 0), j + (axis == 1), k + (axis == 2)
                    if a == nx or b == ny or c == nz:
                        continue
                    if (values[i, j, k] < 0) == (values[a, b, c] < 0):
                        continue
                    points[found, 0] = origin[0] + i * spacing
                    points[found, 1] = origin[1] + j * spacing
                    points[found, 2] = origin[2] + k * spacing
                    place, gx, gy, gz = _crossing(
                        union,
                        offset,
                        points[found],
                        axis,
                        spacing,
                        values[i, j, k],
                        values[a, b, c],
                    )
                    points[found, axis] += place
                    gradients[found, 0], gradients[found, 1], gradients[found, 2] = gx, gy, gz
                    found += 1
    return points, gradients


@_compiled
@no_type_check
def move_onto_zero(union, offset, origin, spacing, values, vertices):
    """Move vertices along the lattice edges that they lie on to where the distance is zero.

    The vertices are in units of the spacing. They keep a thousandth of the spacing from the
    ends of their edges, so that no two meet; vertices inside a cell stay where they are.
    """
    moved = np.empty(vertices.shape)
    for row in range(len(vertices)):
        start = np.floor(vertices[row])
        axis, fractional = 0, 0
        for k in range(3):
            if vertices[row, k] != start[k]:
                axis, fractional = k, fractional + 1
        for k in range(3):
            moved[row, k] = origin[k] + vertices[row, k] * spacing
        if fractional != 1:
            continue
        i, j, k = int(start[0]), int(start[1]), int(start[2])
        first = values[i, j, k]
        last = values[i + (axis == 0), j + (axis == 1), k + (axis == 2)]
        moved[row, axis] = origin[axis] + start[axis] * spacing
        place, _, _, _ = _crossing(union, offset, moved[row], axis, spacing, first, last)
        moved[row, axis] += min(max(place, 0.001 * spacing), 0.999 * spacing)
    return moved
