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

from undula.errors import InputError

COVERED = 1e-8
"""How deep inside a ball a point must lie to count as covered, Å."""

CONTAINED = 1e-6
"""A ball that reaches out of another by no more than this is left out, Å."""

MOST_OVERLAPS = 50_000_000
"""The number of overlapping pairs of balls beyond which the input is refused."""

_LEAF = 4

_compiled = numba.njit(cache=True, nogil=True, error_model="numpy")
_inlined = numba.njit(cache=True, nogil=True, error_model="numpy", forceinline=True)


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
    boxes = _tree_boxes(centres - radii[:, None], centres + radii[:, None])
    pairs, kept = _overlaps(centres, radii, boxes, MOST_OVERLAPS)
    if len(pairs) > MOST_OVERLAPS:
        raise InputError(
            f"the atoms are too crowded: more than {MOST_OVERLAPS} pairs of them overlap; "
            "are the positions in Å?"
        )
    if not kept.all():
        pairs = (np.cumsum(kept) - 1)[pairs[kept[pairs].all(axis=1)]]
        centres, radii = centres[kept], radii[kept]
        boxes = _tree_boxes(centres - radii[:, None], centres + radii[:, None])
    neighbours_from, neighbours = _neighbours(centres, pairs)
    arcs, exposed = _exposed_arcs(centres, radii, neighbours_from, neighbours)
    arc_low, arc_high = _arc_extents(arcs)
    arc_order = _tree_order((arc_low + arc_high) / 2)
    return BallUnion(
        centres,
        radii,
        exposed,
        neighbours_from,
        neighbours,
        arcs[arc_order],
        boxes,
        _tree_boxes(arc_low[arc_order], arc_high[arc_order]),
    )


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
    order, values = np.arange(count), np.empty(count)
    for level in range(_tree_levels(count)):
        for node in range(1 << level):
            begin, end = (count * node) >> level, (count * (node + 1)) >> level
            widest, axis = -1.0, 0
            for k in range(3):
                low, high = np.inf, -np.inf
                for place in range(begin, end):
                    low = min(low, middles[order[place], k])
                    high = max(high, middles[order[place], k])
                if high - low > widest:
                    widest, axis = high - low, k
            for place in range(begin, end):
                values[place] = middles[order[place], axis]
            _part(order, values, begin, end, (count * (2 * node + 1)) >> (level + 1))
    return order


@_compiled
@no_type_check
def _part(order, values, begin, end, middle):
    """Exchange things between two places until none before the middle exceeds one after it."""
    last = end - 1
    while begin < last:
        a, b, c = values[begin], values[(begin + last) // 2], values[last]
        pivot = max(min(a, b), min(max(a, b), c))
        left, right = begin, last
        while left <= right:
            while values[left] < pivot:
                left += 1
            while values[right] > pivot:
                right -= 1
            if left <= right:
                values[left], values[right] = values[right], values[left]
                order[left], order[right] = order[right], order[left]
                left += 1
                right -= 1
        if middle <= right:
            last = right
        elif middle >= left:
            begin = left
        else:
            return


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
def _overlaps(centres, radii, boxes, most):
    """Return the pairs of balls that overlap, the lower index first, and which balls to keep.

    Of two balls of which one contains the other the larger is kept, of equal ones the first.
    The search descends the tree of the balls in pairs of nodes whose boxes meet, and ends
    early beyond the most pairs.
    """
    balls = len(radii)
    levels = _tree_levels(balls)
    first_leaf = (1 << levels) - 1
    pairs = np.empty((16 * balls + 16, 2), dtype=np.int64)
    kept = np.ones(balls, dtype=np.bool_)
    waiting = np.empty((4 * levels + 4, 2), dtype=np.int64)
    waiting[0] = 0
    found, height = 0, 1
    while height and found <= most:
        height -= 1
        a, b = waiting[height]
        apart = False
        for k in range(3):
            apart = apart or boxes[a, k] >= boxes[b, k + 3] or boxes[b, k] >= boxes[a, k + 3]
        if apart:
            continue
        if a < first_leaf:
            waiting[height] = (2 * a + 1, 2 * b + 1)
            waiting[height + 1] = (2 * a + 1, 2 * b + 2)
            waiting[height + 2] = (2 * a + 2, 2 * b + 2)
            height += 3
            if a != b:
                waiting[height] = (2 * a + 2, 2 * b + 1)
                height += 1
            continue
        a, b = a - first_leaf, b - first_leaf
        for i in range((balls * a) >> levels, (balls * (a + 1)) >> levels):
            from_ball = i + 1 if a == b else (balls * b) >> levels
            for j in range(from_ball, (balls * (b + 1)) >> levels):
                dx = centres[j, 0] - centres[i, 0]
                dy = centres[j, 1] - centres[i, 1]
                dz = centres[j, 2] - centres[i, 2]
                distance = math.sqrt(dx * dx + dy * dy + dz * dz)
                if distance >= radii[i] + radii[j]:
                    continue
                if distance <= abs(radii[i] - radii[j]) + CONTAINED:
                    kept[i if radii[i] < radii[j] else j] = False
                if found == len(pairs):
                    grown = np.empty((2 * found, 2), dtype=np.int64)
                    grown[:found] = pairs
                    pairs = grown
                pairs[found, 0], pairs[found, 1] = i, j
                found += 1
    return pairs[:found], kept


@_compiled
@no_type_check
def _neighbours(centres, pairs):
    """Turn pairs into one row of overlapping balls per ball, nearest first."""
    balls = len(centres)
    begins = np.zeros(balls + 1, dtype=np.int64)
    for pair in range(len(pairs)):
        begins[pairs[pair, 0] + 1] += 1
        begins[pairs[pair, 1] + 1] += 1
    begins = np.cumsum(begins)
    filled = begins[:-1].copy()
    others, squares = np.empty(begins[-1], dtype=np.int64), np.empty(begins[-1])
    for pair in range(len(pairs)):
        i, j = pairs[pair]
        square = 0.0
        for k in range(3):
            square += (centres[i, k] - centres[j, k]) ** 2
        others[filled[i]], squares[filled[i]] = j, square
        others[filled[j]], squares[filled[j]] = i, square
        filled[i] += 1
        filled[j] += 1
    for ball in range(balls):
        first = begins[ball]
        for row in range(first + 1, begins[ball + 1]):
            other, square = others[row], squares[row]
            while row > first and squares[row - 1] > square:
                others[row], squares[row] = others[row - 1], squares[row - 1]
                row -= 1
            others[row], squares[row] = other, square
    return begins, others


@_inlined
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
def _turn(x, y):
    """Return where a direction points, from -2 to 2, growing with the angle."""
    turn = y / (abs(x) + abs(y))
    return turn if x >= 0 else math.copysign(2.0, y) - turn


@_compiled
@no_type_check
def _angle(turn):
    """Return the angle of a direction from its turn; four turns more are 2π more."""
    whole = math.floor((turn + 2) / 4)
    turn -= 4 * whole
    y = turn if abs(turn) <= 1 else math.copysign(2 - abs(turn), turn)
    return math.atan2(y, 1 - abs(turn)) + 2 * math.pi * whole


@_compiled
@no_type_check
def _caps(ball, centres, radii, row, caps, owners):
    """List the caps in which other balls cover this ball's sphere, taken as the unit sphere.

    The points u of a cap have u·w > t. Its columns are w, t, the radius of its rim, and t for
    the ball that is smaller by `COVERED`. Caps whose rim lies within an earlier cap are left
    out. Returns how many there are, -1 if two of them cover the sphere, and whether a ball
    just touches.
    """
    count, touched = 0, False
    for other in row:
        wx = centres[other, 0] - centres[ball, 0]
        wy = centres[other, 1] - centres[ball, 1]
        wz = centres[other, 2] - centres[ball, 2]
        distance = math.sqrt(wx * wx + wy * wy + wz * wz)
        wx, wy, wz = wx / distance, wy / distance, wz / distance
        radius, reach = radii[ball], radii[other]
        along = (distance + (radius - reach) / distance * (radius + reach)) / 2 / radius
        squared_rim = (1 - along) * (1 + along)
        if squared_rim <= 0:
            touched = True
            continue
        hidden = False
        for cap in range(count):
            vx, vy, vz = caps[cap, 0], caps[cap, 1], caps[cap, 2]
            aligned = vx * wx + vy * wy + vz * wz
            missing = caps[cap, 5] - along * aligned
            if missing >= 0:
                continue
            cx, cy, cz = vy * wz - vz * wy, vz * wx - vx * wz, vx * wy - vy * wx
            if missing * missing < squared_rim * (cx * cx + cy * cy + cz * cz):
                continue
            if aligned < -along:  # all but this cap is within the other
                return -1, touched
            hidden = True
            break
        if hidden:
            continue
        caps[count, 0], caps[count, 1], caps[count, 2] = wx, wy, wz
        caps[count, 3], caps[count, 4] = along, math.sqrt(squared_rim)
        caps[count, 5] = along + (reach - COVERED / 2) * COVERED / (distance * radius)
        owners[count] = other
        count += 1
    return count, touched


@_compiled
@no_type_check
def _gaps(caps, rim, frame, begins, ends):
    """List the parts of one cap's rim that no other cap covers, in turns; return how many.

    In the frame (e, f) of the rim of height t and radius s, a cap (w', t') covers the angles θ
    with s |w⊥| cos(θ - θ₀) > t' - t w·w', where w⊥ is the part of w' in the rim's plane and θ₀
    its azimuth. A gap across the turn 2 begins below -2.
    """
    ex, ey, ez, fx, fy, fz = frame
    wx, wy, wz, along, radius = caps[rim, 0], caps[rim, 1], caps[rim, 2], caps[rim, 3], caps[rim, 4]
    begins[0], ends[0] = -2.0, 2.0
    gaps = 1
    for cap in range(len(caps)):
        vx, vy, vz = caps[cap, 0], caps[cap, 1], caps[cap, 2]
        missing = caps[cap, 5] - along * (vx * wx + vy * wy + vz * wz)
        ve = vx * ex + vy * ey + vz * ez
        vf = vx * fx + vy * fy + vz * fz
        across = math.sqrt(ve * ve + vf * vf)
        if missing >= radius * across:
            continue
        if missing <= -radius * across:
            return 0
        cosine = missing / (radius * across)
        sine = math.sqrt((1 - cosine) * (1 + cosine))
        ve, vf = ve / across, vf / across
        begin = _turn(ve * cosine + vf * sine, vf * cosine - ve * sine)
        end = _turn(ve * cosine - vf * sine, vf * cosine + ve * sine)
        if begin <= end:
            gaps = _without(begin, end, begins, ends, gaps)
        else:
            gaps = _without(-2.0, end, begins, ends, gaps)
            gaps = _without(begin, 2.0, begins, ends, gaps)
        if gaps == 0:
            return 0
    first, last = -1, -1
    for gap in range(gaps):
        if begins[gap] == -2.0 and ends[gap] != 2.0:
            first = gap
        if ends[gap] == 2.0 and begins[gap] != -2.0:
            last = gap
    if first != -1 and last != -1:
        begins[first] = begins[last] - 4
        gaps -= 1
        begins[last], ends[last] = begins[gaps], ends[gaps]
    return gaps


@_compiled
@no_type_check
def _without(begin, end, begins, ends, gaps):
    """Take a part out of the gaps; return the new number of gaps."""
    gap = 0
    while gap < gaps:
        left, right = begins[gap] < begin, end < ends[gap]
        if end <= begins[gap] or ends[gap] <= begin:
            gap += 1
        elif left and right:
            begins[gaps], ends[gaps] = end, ends[gap]
            ends[gap] = begin
            return gaps + 1
        elif left:
            ends[gap] = begin
            gap += 1
        elif right:
            begins[gap] = end
            gap += 1
        else:
            gaps -= 1
            begins[gap], ends[gap] = begins[gaps], ends[gaps]
    return gaps


@_compiled
@no_type_check
def _exposed_arcs(centres, radii, neighbours_from, neighbours):
    """Return the arcs of all circles that no third ball covers, and which balls have any."""
    balls = len(radii)
    exposed = np.diff(neighbours_from) == 0
    arcs = np.empty((4 * balls + 16, 12))
    found = 0
    most = np.diff(neighbours_from).max()
    begins, ends = np.empty(most + 2), np.empty(most + 2)
    all_caps, owners = np.empty((most, 6)), np.empty(most, dtype=np.int64)
    for i in range(balls):
        row = neighbours[neighbours_from[i] : neighbours_from[i + 1]]
        count, touched = _caps(i, centres, radii, row, all_caps, owners)
        if touched:
            exposed[i] = True
        caps = all_caps[: max(count, 0)]
        for rim in range(count):
            j = owners[rim]
            if j < i:
                continue
            wx, wy, wz = caps[rim, 0], caps[rim, 1], caps[rim, 2]
            ex, ey, ez = _perpendicular(wx, wy, wz)
            fx, fy, fz = wy * ez - wz * ey, wz * ex - wx * ez, wx * ey - wy * ex
            for gap in range(_gaps(caps, rim, (ex, ey, ez, fx, fy, fz), begins, ends)):
                exposed[i] = exposed[j] = True
                if found == len(arcs):
                    grown = np.empty((2 * found, 12))
                    grown[:found] = arcs
                    arcs = grown
                begin, end = _angle(begins[gap]), _angle(ends[gap])
                middle, half = (begin + end) / 2, (end - begin) / 2
                c, s = math.cos(middle), math.sin(middle)
                along = caps[rim, 3] * radii[i]
                arcs[found, 0] = centres[i, 0] + along * wx
                arcs[found, 1] = centres[i, 1] + along * wy
                arcs[found, 2] = centres[i, 2] + along * wz
                arcs[found, 3], arcs[found, 4], arcs[found, 5] = wx, wy, wz
                arcs[found, 6] = c * ex + s * fx
                arcs[found, 7] = c * ey + s * fy
                arcs[found, 8] = c * ez + s * fz
                arcs[found, 9] = caps[rim, 4] * radii[i]
                arcs[found, 10], arcs[found, 11] = math.cos(half), math.sin(half)
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


@_inlined
@no_type_check
def _covers(union, other, x, y, z):
    """Return whether a ball covers a point."""
    dx = x - union.centres[other, 0]
    dy = y - union.centres[other, 1]
    dz = z - union.centres[other, 2]
    reach = max(union.radii[other] - COVERED, 0.0)
    return dx * dx + dy * dy + dz * dz < reach * reach


@_inlined
@no_type_check
def _cover(union, ball, x, y, z, guess):
    """Return some other ball that covers a point of this ball's sphere, or -1.

    The guess is tried first; -1 is none.
    """
    if guess != -1 and _covers(union, guess, x, y, z):
        return guess
    for row in range(union.neighbours_from[ball], union.neighbours_from[ball + 1]):
        if _covers(union, union.neighbours[row], x, y, z):
            return union.neighbours[row]
    return -1


@_inlined
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


@_inlined
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


@_inlined
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
            px, py, pz = ax + radius * vx, ay + radius * vy, az + radius * vz
            if _cover(union, ball, px, py, pz, -1) == -1:
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

    Without a band every node descends the trees. With one, every ball and every arc writes
    to the nodes in its reach, so that a narrow band costs as much as the surface.
    """
    if band == np.inf:
        values = np.empty(shape)
        for i in range(shape[0]):
            for j in range(shape[1]):
                for k in range(shape[2]):
                    x, y, z = origin[0] + i * spacing, origin[1] + j * spacing, k * spacing
                    value, _, _, _ = _distance_and_gradient(union, x, y, origin[2] + z)
                    values[i, j, k] = value + offset
        return values
    highest, deepest = max(band - offset, 0.0), -band - offset
    enough = min(band - offset, 0.0)
    values = np.full(shape, highest)
    for ball in range(len(union.radii)):
        _spread_ball(union, ball, origin, spacing, values, (highest, enough, deepest))
    low, high = _arc_extents(union.arcs)
    for arc in range(len(union.arcs)):
        box = (low[arc] + deepest, high[arc] - deepest)
        _spread_arc(union.arcs, arc, box, origin, spacing, values, enough)
    for i in range(shape[0]):
        for j in range(shape[1]):
            for k in range(shape[2]):
                values[i, j, k] = min(max(values[i, j, k] + offset, -band), band)
    return values


@_compiled
@no_type_check
def _nodes_between(low, high, origin, spacing, size):
    """Return the range of nodes from low to high along one axis of a lattice."""
    first = max(math.ceil((low - origin) / spacing), 0)
    return range(first, min(math.floor((high - origin) / spacing), size - 1) + 1)


@_compiled
@no_type_check
def _spread_ball(union, ball, origin, spacing, values, bounds):
    """Lower the values around a ball; raise those inside it that lie below its patches.

    Nodes in no ball have values from 0 to the highest, nodes in a ball have from the deepest
    to 0; there what is enough need not be raised.
    """
    highest, enough, deepest = bounds
    cover = -1
    ax, ay, az = union.centres[ball, 0], union.centres[ball, 1], union.centres[ball, 2]
    radius, exposed = union.radii[ball], union.exposed[ball]
    reach = radius + highest
    nx, ny, nz = values.shape
    for i in _nodes_between(ax - reach, ax + reach, origin[0], spacing, nx):
        dx = origin[0] + i * spacing - ax
        across = math.sqrt(max(reach * reach - dx * dx, 0.0))
        for j in _nodes_between(ay - across, ay + across, origin[1], spacing, ny):
            dy = origin[1] + j * spacing - ay
            half = math.sqrt(max(reach * reach - dx * dx - dy * dy, 0.0))
            for k in _nodes_between(az - half, az + half, origin[2], spacing, nz):
                value = values[i, j, k]
                if value < 0 and (not exposed or value >= enough):
                    continue
                dz = origin[2] + k * spacing - az
                squared = dx * dx + dy * dy + dz * dz
                if squared >= radius * radius:
                    if value >= 0:
                        values[i, j, k] = min(value, math.sqrt(squared) - radius)
                    continue
                if value >= 0:
                    values[i, j, k] = value = deepest
                least = max(radius + value, 0.0)
                if not exposed or squared < least * least:
                    continue
                length = math.sqrt(squared)
                if length > 0:
                    ux, uy, uz = dx / length, dy / length, dz / length
                else:
                    ux, uy, uz = 0.0, 0.0, 1.0
                x, y, z = ax + radius * ux, ay + radius * uy, az + radius * uz
                cover = _cover(union, ball, x, y, z, cover)
                if cover == -1:
                    values[i, j, k] = length - radius


@_compiled
@no_type_check
def _spread_arc(arcs, arc, box, origin, spacing, values, enough):
    """Raise the values of nodes inside the balls that lie near an arc, unless they are enough."""
    nx, ny, nz = values.shape
    low, high = box
    for i in _nodes_between(low[0], high[0], origin[0], spacing, nx):
        x = origin[0] + i * spacing
        for j in _nodes_between(low[1], high[1], origin[1], spacing, ny):
            y = origin[1] + j * spacing
            for k in _nodes_between(low[2], high[2], origin[2], spacing, nz):
                value = values[i, j, k]
                if value >= enough:
                    continue
                squared = _squared_distance_to_arc(arcs, arc, x, y, origin[2] + k * spacing)
                if squared < value * value:
                    values[i, j, k] = -math.sqrt(squared)


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
    """Return the points where lattice edges cross the zero level, and the gradients there.

    An edge crosses the level if its ends' values have other signs. Its point is where the way
    from the end inside first comes within the offset of the boundary of the union: out of the
    shrunken ball below a patch, or so close to an arc.
    """
    nx, ny, nz = values.shape
    ways_from, directions = _ways_out(values)
    lengths, gradients = np.full(len(directions), np.inf), np.empty((len(directions), 3))
    ways = (ways_from, directions, lengths, gradients)
    for ball in range(len(union.radii)):
        if union.exposed[ball]:
            _leave_ball(union, ball, offset, origin, spacing, values.shape, ways)
    if offset > 0:
        low, high = _arc_extents(union.arcs)
        for arc in range(len(union.arcs)):
            reach = offset + spacing
            box = (low[arc] - reach, high[arc] + reach)
            _approach_arc(union.arcs, arc, box, offset, origin, spacing, values.shape, ways)
    points = np.empty((len(directions), 3))
    for i in range(nx):
        for j in range(ny):
            for k in range(nz):
                node = (i * ny + j) * nz + k
                for way in range(ways_from[node], ways_from[node + 1]):
                    axis, sign = directions[way] >> 1, 1 - 2 * (directions[way] & 1)
                    points[way, 0] = origin[0] + i * spacing
                    points[way, 1] = origin[1] + j * spacing
                    points[way, 2] = origin[2] + k * spacing
                    if lengths[way] < np.inf:
                        points[way, axis] += sign * lengths[way]
                        continue
                    # Rounding has put the point a hair's breadth beyond the edge.
                    first = values[i, j, k]
                    last = values[
                        i + sign * (axis == 0), j + sign * (axis == 1), k + sign * (axis == 2)
                    ]
                    if sign == -1:
                        points[way, axis] -= spacing
                        first, last = last, first
                    place, gx, gy, gz = _crossing(
                        union, offset, points[way], axis, spacing, first, last
                    )
                    points[way, axis] += place
                    gradients[way, 0], gradients[way, 1], gradients[way, 2] = gx, gy, gz
    return points, gradients


@_compiled
@no_type_check
def _ways_out(values):
    """List the lattice edges from nodes inside to nodes that are not, node by node.

    Returns where each node's rows begin, and the edges' directions: twice the axis, plus one
    towards lower coordinates.
    """
    nx, ny, nz = values.shape
    ways_from = np.zeros(nx * ny * nz + 1, dtype=np.int32)
    directions = np.empty(0, dtype=np.int8)
    for filling in (False, True):
        if filling:
            directions = np.empty(ways_from[-1], dtype=np.int8)
        count = 0
        for i in range(nx):
            for j in range(ny):
                for k in range(nz):
                    ways_from[(i * ny + j) * nz + k] = count
                    if values[i, j, k] >= 0:
                        continue
                    for direction in range(6):
                        axis, sign = direction >> 1, 1 - 2 * (direction & 1)
                        a, b, c = (
                            i + sign * (axis == 0),
                            j + sign * (axis == 1),
                            k + sign * (axis == 2),
                        )
                        if not (0 <= a < nx and 0 <= b < ny and 0 <= c < nz):
                            continue
                        if values[a, b, c] >= 0:
                            if filling:
                                directions[count] = direction
                            count += 1
        ways_from[-1] = count
    return ways_from, directions


@_compiled
@no_type_check
def _leave_ball(union, ball, offset, origin, spacing, shape, ways):
    """Shorten the ways that leave a shrunken ball below one of the ball's patches.

    The lines of the lattice through the shrunken ball are visited, and both ends of each chord.
    """
    ways_from, directions, lengths, gradients = ways
    radius = union.radii[ball] - offset
    growth = union.radii[ball] / radius
    node, touched = np.empty(3, dtype=np.int64), np.empty(3)
    for axis in range(3):
        b, c = (axis + 1) % 3, (axis + 2) % 3
        middle_b, middle_c = union.centres[ball, b], union.centres[ball, c]
        for at_b in _nodes_between(
            middle_b - radius, middle_b + radius, origin[b], spacing, shape[b]
        ):
            db = origin[b] + at_b * spacing - middle_b
            across = math.sqrt(max(radius * radius - db * db, 0.0))
            for at_c in _nodes_between(
                middle_c - across, middle_c + across, origin[c], spacing, shape[c]
            ):
                dc = origin[c] + at_c * spacing - middle_c
                half = math.sqrt(max(radius * radius - db * db - dc * dc, 0.0))
                for direction in (2 * axis, 2 * axis + 1):
                    sign = 1 - 2 * (direction & 1)
                    place = (union.centres[ball, axis] + sign * half - origin[axis]) / spacing
                    start = math.floor(place) if sign == 1 else math.ceil(place)
                    if start < 0 or start >= shape[axis]:
                        continue
                    node[axis], node[b], node[c] = start, at_b, at_c
                    first = (node[0] * shape[1] + node[1]) * shape[2] + node[2]
                    for way in range(ways_from[first], ways_from[first + 1]):
                        length = abs(place - start) * spacing
                        if directions[way] != direction or length >= lengths[way]:
                            continue
                        touched[axis] = union.centres[ball, axis] + sign * half * growth
                        touched[b], touched[c] = middle_b + db * growth, middle_c + dc * growth
                        if _cover(union, ball, touched[0], touched[1], touched[2], -1) == -1:
                            lengths[way] = length
                            gradients[way, axis] = sign * half / radius
                            gradients[way, b], gradients[way, c] = db / radius, dc / radius


@_compiled
@no_type_check
def _approach_arc(arcs, arc, box, offset, origin, spacing, shape, ways):
    """Shorten the ways that begin in a box and come within the offset of an arc."""
    ways_from, directions, lengths, gradients = ways
    low, high = box
    for i in _nodes_between(low[0], high[0], origin[0], spacing, shape[0]):
        x = origin[0] + i * spacing
        for j in _nodes_between(low[1], high[1], origin[1], spacing, shape[1]):
            y = origin[1] + j * spacing
            for k in _nodes_between(low[2], high[2], origin[2], spacing, shape[2]):
                node = (i * shape[1] + j) * shape[2] + k
                if ways_from[node] == ways_from[node + 1]:
                    continue
                z = origin[2] + k * spacing
                squared = _squared_distance_to_arc(arcs, arc, x, y, z)
                for way in range(ways_from[node], ways_from[node + 1]):
                    limit = min(lengths[way], spacing)
                    if squared >= (offset + limit) * (offset + limit):
                        continue
                    axis, sign = directions[way] >> 1, 1 - 2 * (directions[way] & 1)
                    length, gx, gy, gz = _way_to_arc(
                        arcs, arc, offset, x, y, z, axis, sign, squared, limit
                    )
                    if length < lengths[way]:
                        lengths[way] = length
                        gradients[way, 0], gradients[way, 1], gradients[way, 2] = gx, gy, gz


@_compiled
@no_type_check
def _way_to_arc(arcs, arc, offset, x, y, z, axis, sign, squared, limit):
    """Return how far along an axis an arc comes within the offset, and the direction to it.

    Infinite if that is nowhere before the limit. The squared distance on the way s is s² plus
    a concave function of s, since it is so for every point of the arc. Its values at both ends
    therefore bound it from below by a parabola, whose first root is a good start and never
    beyond the place looked for.
    """
    direction = (sign * (axis == 0), sign * (axis == 1), sign * (axis == 2))
    squared_last = _squared_distance_to_arc(
        arcs, arc, x + limit * direction[0], y + limit * direction[1], z + limit * direction[2]
    )
    lowest = ((squared - squared_last) / limit + limit) / 2
    root = lowest * lowest - (squared - offset * offset)
    within = squared_last <= offset * offset
    if not within and not (root >= 0 and 0 < lowest < limit):
        return np.inf, 0.0, 0.0, 1.0
    way, low, high = lowest - math.sqrt(max(root, 0.0)), 0.0, limit if within else np.inf
    for _ in range(200):
        gap, approach, gx, gy, gz = _gap_to_arc(arcs, arc, offset, x, y, z, direction, way)
        if abs(gap) < 1e-10 or high - low < 1e-12:
            return way, gx, gy, gz
        if gap < 0:
            high = way
        else:
            low = way
        newton = way + gap / approach if approach > 0 else np.inf
        if high < np.inf:
            way = newton if low < newton < high else (low + high) / 2
            continue
        if way + gap >= limit:
            break
        beyond = way + 1.1 * (newton - way)
        if beyond < limit and _gap_to_arc(arcs, arc, offset, x, y, z, direction, beyond)[0] < 0:
            way, high = newton, beyond
        else:
            way += gap
    return np.inf, 0.0, 0.0, 1.0


@_inlined
@no_type_check
def _gap_to_arc(arcs, arc, offset, x, y, z, direction, way):
    """Return by how much an arc is farther than the offset some way along a direction.

    Also how fast the gap closes on that way, and the direction to the arc.
    """
    x, y, z = x + way * direction[0], y + way * direction[1], z + way * direction[2]
    cx, cy, cz = _closest_point_of_arc(arcs, arc, x, y, z)
    cx, cy, cz = cx - x, cy - y, cz - z
    distance = math.sqrt(cx * cx + cy * cy + cz * cz)
    cx, cy, cz = cx / distance, cy / distance, cz / distance
    approach = cx * direction[0] + cy * direction[1] + cz * direction[2]
    return distance - offset, approach, cx, cy, cz


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
