"""What is measured on moving atoms: structure, dynamics, shapes of molecules, torsions, clashes.

Bare functions of positions or velocities, the same for the truth and for samples. The mean of a
forecast is not a configuration: its atoms draw together, so structure and dynamics are measured
on samples. Angles are in radians, lags in frames unless they say ps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations
from math import e, pi

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.sparse import coo_array, eye_array
from torch import Tensor

from undula.errors import InputError, UsageError
from undula.geometry.frames import centre
from undula.geometry.periodic import distance_blocks, inscribed_radius
from undula.motion.observables_kernels import count_shells
from undula.types import MolecularSystem

_NUMBERS_AT_ONCE = 2**20
"""Numbers that sums over time handle at once."""
_CELLS = 4096
"""Equal parts of the squared range of distances that are looked up before their shells."""
_STILL = 1e-12
"""Circular variance below which an angle does not move."""


def radial_distribution(
    positions: Float[Tensor, "frames atoms 3"],
    box: Float[Tensor, "3 3"] | Float[Tensor, "frames 3 3"],
    edges: Float[Tensor, " edges"],
    *,
    first: Int[Tensor, " n"] | None = None,
    second: Int[Tensor, " m"] | None = None,
    molecules: Int[Tensor, " atoms"] | None = None,
) -> Float[Tensor, " edges-1"]:
    r"""Compute how much more often than by chance two kinds of atoms are some distance apart.

    .. math:: g_b = \Big\langle \frac{V \, n_b}{N \cdot \frac{4}{3}\pi (r_{b+1}^3 - r_b^3)}
        \Big\rangle_{frames}

    with :math:`n_b` of the N ordered pairs of a frame in shell b. An ideal gas has 1 everywhere.

    Args:
        positions: Å, in any image.
        box: Rows are the edge vectors, Å, one for all frames or one each; its volume is V.
        edges: Of the shells r, Å, increasing; the last one within the box's `inscribed_radius`.
        first: Atoms of one kind; by default all.
        second: Atoms of the other kind, which may be the same; by default all.
        molecules: Number of each atom's molecule; given, pairs of one molecule do not count.

    Returns:
        g of each shell, float64; a distance on an edge belongs to the outer shell.

    Raises:
        UsageError: The edges do not increase from 0 or more, or reach beyond the box.
        InputError: There are no frames or no pairs.
    """
    atoms = torch.arange(positions.shape[1], device=positions.device)
    one, other = (atoms if chosen is None else chosen for chosen in (first, second))
    owner = atoms if molecules is None else molecules.to(atoms)
    excluded = owner[one][:, None] == owner[other]
    pairs = excluded.numel() - int(excluded.sum())
    if pairs == 0 or len(positions) == 0:
        raise InputError("there are no pairs of atoms whose distances could be counted")
    boxes = _boxes(box, positions)
    _check_shells(edges, boxes)
    squared_edges = edges.to(positions).square()
    counts = torch.zeros(len(positions), len(edges) - 1, dtype=torch.long, device=positions.device)
    count = _counted_on_cpu if positions.device.type == "cpu" else _counted
    for part, rows, squared in distance_blocks(positions[:, one], positions[:, other], boxes):
        count(squared, excluded[rows], squared_edges, counts[part])
    volume = torch.linalg.det(boxes.double()).abs()
    shells = 4 / 3 * pi * edges.to(volume).pow(3).diff()
    return (volume @ counts.to(volume)) / (len(positions) * pairs * shells)


def _counted(
    squared: Float[Tensor, "frames rows columns"],
    excluded: Bool[Tensor, "rows columns"],
    edges: Float[Tensor, " edges"],
    counts: Int[Tensor, "frames edges-1"],
) -> None:
    """Add how many squared distances lie between the squared edges, on any device."""
    places = len(edges) + 1
    shell = torch.bucketize(squared.masked_fill_(excluded, torch.inf), edges, right=True)
    shell += places * torch.arange(len(squared), device=shell.device)[:, None, None]
    found = torch.bincount(shell.flatten(), minlength=len(squared) * places)
    counts += found.view(-1, places)[:, 1:-1]


def _counted_on_cpu(
    squared: Float[Tensor, "frames rows columns"],
    excluded: Bool[Tensor, "rows columns"],
    edges: Float[Tensor, " edges"],
    counts: Int[Tensor, "frames edges-1"],
) -> None:
    """Add the same numbers in less than half the time."""
    known = edges.numpy()
    scale = known.dtype.type(_CELLS / known[-1])
    cells = (known * scale).astype(np.int64)
    before = np.searchsorted(cells, np.arange(_CELLS + 2), side="left")
    count_shells(squared.numpy(), excluded.numpy(), known, before, scale, counts.numpy())


def rdf_error(
    distribution: Float[Tensor, " shells"], truth: Float[Tensor, " shells"]
) -> Float[Tensor, ""]:
    """Compute the mean absolute difference of two `radial_distribution`s in equal shells.

    Source: after Fu et al., Forces are not Enough, Trans. Mach. Learn. Res. (2023).
    """
    return (distribution - truth).abs().mean()


def drift_free(
    positions: Float[Tensor, "frames atoms 3"], masses: Float[Tensor, " atoms"] | None = None
) -> Float[Tensor, "frames atoms 3"]:
    """Move every frame so that the centre of all atoms stays where it was in the first, Å.

    The drift of a whole system, which a thermostat may leave, is not diffusion. Centres are
    those of mass where masses are given.
    """
    path = centre(positions, masses)
    return positions - (path - path[:1])[:, None]


def mean_squared_displacement(
    positions: Float[Tensor, "frames atoms 3"], lags: Int[Tensor, " lags"]
) -> Float[Tensor, " lags"]:
    r"""Compute how far atoms come in some time, over all atoms and all times of departure.

    .. math:: \langle \lVert r_a(t + \tau) - r_a(t) \rVert^2 \rangle_{a, t}

    Args:
        positions: r, unwrapped, Å; `drift_free` where the drift of all should not count.
        lags: τ, in frames, from 0 to below the number of frames.

    Returns:
        Å², float64; 0 at lag 0.

    Raises:
        UsageError: A lag is negative or longer than the trajectory.
        InputError: There are no atoms.
    """
    return _over_time(positions, lags, lambda late, early: (late - early).square())


def velocity_autocorrelation(
    velocities: Float[Tensor, "frames atoms 3"], lags: Int[Tensor, " lags"]
) -> Float[Tensor, " lags"]:
    r"""Compute how much of their velocity atoms keep.

    .. math:: \langle v_a(t + \tau) \cdot v_a(t) \rangle_{a, t} / \langle v_a \cdot v_a \rangle

    Args:
        velocities: v, in any unit.
        lags: τ, in frames, from 0 to below the number of frames.

    Returns:
        1 at lag 0, float64.

    Raises:
        UsageError: A lag is negative or longer than the trajectory.
        InputError: There are no atoms, or none of them ever moves.
    """
    product = _over_time(velocities, lags, torch.mul)
    square = _over_time(velocities, torch.zeros_like(lags[:1]), torch.mul)
    if not (square > 0).all():
        raise InputError("the correlation of velocities that are all 0 has no value")
    return product / square


def diffusion_coefficient(
    displacement: Float[Tensor, " lags"],
    lags_ps: Float[Tensor, " lags"],
    linear_ps: tuple[float, float],
    dimensions: int = 3,
) -> float:
    r"""Compute the diffusion coefficient from the slope of the mean squared displacement.

    .. math:: D = \frac{1}{2 d} \, \frac{d}{d\tau} \langle \Delta r^2 \rangle

    The slope is that of the straight line through the lags of the linear part that is closest in
    least squares; the line need not pass through 0, since atoms first fly before they diffuse.
    In a periodic box D is smaller than in a large system (Yeh and Hummer, J. Phys. Chem. B 108,
    15873 (2004)); compare equal boxes.

    Args:
        displacement: `mean_squared_displacement`, Å².
        lags_ps: Its lags, ps.
        linear_ps: From which lag to which it is taken for linear, both included, ps.
        dimensions: d.

    Returns:
        D, Å²/ps.

    Raises:
        InputError: Fewer than two different lags are in the linear part.
    """
    lags, values = lags_ps.double(), displacement.double()
    chosen = (lags >= linear_ps[0]) & (lags <= linear_ps[1])
    lags, values = lags[chosen], values[chosen]
    if len(lags.unique()) < 2:
        raise InputError(
            f"fewer than two lags lie from {linear_ps[0]:g} to {linear_ps[1]:g} ps, "
            "where the squared displacement should be linear"
        )
    away = lags - lags.mean()
    return float((away * values).sum() / away.square().sum() / (2 * dimensions))


def bond_lengths(
    positions: Float[Tensor, "*frames atoms 3"], bonds: Int[Tensor, "2 bonds"]
) -> Float[Tensor, "*frames bonds"]:
    """Compute the lengths of bonds in whole molecules, Å."""
    one, other = bonds
    return (positions[..., other, :] - positions[..., one, :]).norm(dim=-1)


def bond_angles(
    positions: Float[Tensor, "*frames atoms 3"], triples: Int[Tensor, "3 angles"]
) -> Float[Tensor, "*frames angles"]:
    """Compute the angles at the middle atoms of triples in whole molecules, from 0 to π."""
    before, middle, after = (positions[..., atoms, :] for atoms in triples)
    one, other = before - middle, after - middle
    across = torch.linalg.cross(one, other).norm(dim=-1)
    return torch.atan2(across, (one * other).sum(dim=-1))


def angle_triples(bonds: Int[Tensor, "2 bonds"]) -> Int[Tensor, "3 angles"]:
    """List every angle between two bonds at an atom: its ends in the outer rows.

    Each angle is listed once, its lower end first; sorted by the middle atom, then the ends.
    """
    rows = [
        (one, middle, other)
        for middle, ends in sorted(_partners(bonds).items())
        for one, other in combinations(sorted(ends), 2)
    ]
    return torch.tensor(rows, dtype=torch.long, device=bonds.device).reshape(-1, 3).T


def torsions(
    positions: Float[Tensor, "*frames atoms 3"], quadruples: Int[Tensor, "4 torsions"]
) -> Float[Tensor, "*frames torsions"]:
    r"""Compute the angles by which chains of four atoms are twisted about their middle bonds.

    .. math:: \operatorname{atan2}(\lVert b_2 \rVert \, b_1 \cdot (b_2 \times b_3),\;
        (b_1 \times b_2) \cdot (b_2 \times b_3))

    Args:
        positions: Whole molecules, Å.
        quadruples: The four atoms of each chain, b the three steps between them.

    Returns:
        From −π to π; 0 where the outer atoms eclipse each other (cis), positive where, seen
        along the middle bond, the farther one is turned clockwise (IUPAC). A mirror image has
        the opposite sign.
    """
    a, b, c, d = (positions[..., atoms, :] for atoms in quadruples)
    one, two, three = b - a, c - b, d - c
    normal, next_normal = torch.linalg.cross(one, two), torch.linalg.cross(two, three)
    sine = two.norm(dim=-1) * (one * next_normal).sum(dim=-1)
    return torch.atan2(sine, (normal * next_normal).sum(dim=-1))


def backbone_torsions(
    system: MolecularSystem,
) -> tuple[Int[Tensor, "4 residues"], Int[Tensor, "4 residues"]]:
    """Find the atoms of φ and ψ of every residue that has both.

    A residue with N, CA and C qualifies where its N is bonded to the C of another residue and
    its C to the N of another: capped termini do, free ones do not. ACE-ALA-NME has one.

    Returns:
        C, N, CA, C of φ and N, CA, C, N of ψ; the same residues in both, in the order of their
        CA; no columns where nothing qualifies.
    """
    structure = system.structure
    names, residue = structure.atom_names.tolist(), structure.residue_index.tolist()
    partners = _partners(system.bonds)

    def bonded(atom: int, name: str, inside: bool) -> int | None:
        found = (
            other
            for other in sorted(partners.get(atom, ()))
            if names[other] == name and (residue[other] == residue[atom]) == inside
        )
        return next(found, None)

    rows = []
    for alpha in structure.alpha_carbons.tolist():
        nitrogen, carbon = bonded(alpha, "N", True), bonded(alpha, "C", True)
        if nitrogen is None or carbon is None:
            continue
        before, after = bonded(nitrogen, "C", False), bonded(carbon, "N", False)
        if before is not None and after is not None:
            rows.append([before, nitrogen, alpha, carbon, after])
    chain = torch.tensor(rows, dtype=torch.long, device=system.bonds.device).reshape(-1, 5).T
    return chain[:4], chain[1:]


def ramachandran(
    positions: Float[Tensor, "*frames atoms 3"],
    phi: Int[Tensor, "4 residues"],
    psi: Int[Tensor, "4 residues"],
) -> Float[Tensor, "*frames residues 2"]:
    """Compute φ and ψ of residues, given the atoms that `backbone_torsions` found."""
    return torch.stack([torsions(positions, phi), torsions(positions, psi)], dim=-1)


def shares(
    values: Float[Tensor, "*any"], edges: Float[Tensor, " edges"]
) -> Float[Tensor, " edges-1"]:
    """Compute which share of some values is in each bin.

    Args:
        values: In any shape.
        edges: Increasing. What lies beyond the outer ones counts to the outermost bins, so that
            nothing is lost.

    Returns:
        Shares that add up to 1, float64; a value on an inner edge belongs to the upper bin.

    Raises:
        UsageError: The edges do not increase.
        InputError: There are no values, or one is not a number.
    """
    if len(edges) < 2 or not (edges.diff() > 0).all():
        raise UsageError("the edges of bins should increase and be two at least")
    if values.numel() == 0 or values.isnan().any():
        raise InputError("a distribution needs values, all of them numbers")
    bins = torch.bucketize(values.flatten(), edges[1:-1].to(values), right=True)
    return torch.bincount(bins, minlength=len(edges) - 1).double() / values.numel()


def torus_shares(angles: Float[Tensor, "n 2"], bins: int) -> Float[Tensor, "bins bins"]:
    """Compute which share of pairs of angles is in each of bins × bins equal cells.

    Cells start at −π; π is the same as −π, and so are angles that differ by whole turns.

    Raises:
        InputError: There are no angles, or one is not finite.
    """
    if len(angles) == 0 or not torch.isfinite(angles).all():
        raise InputError("a distribution of angles needs values, all of them finite")
    turned = torch.remainder(angles.double() + pi, 2 * pi)
    cell = (turned * (bins / (2 * pi))).long().clamp(max=bins - 1)
    counts = torch.bincount(cell[:, 0] * bins + cell[:, 1], minlength=bins * bins)
    return counts.double().view(bins, bins) / len(angles)


def divergence(shares: Float[Tensor, "*bins"], others: Float[Tensor, "*bins"]) -> Float[Tensor, ""]:
    r"""Compute the Jensen–Shannon divergence of two distributions over the same bins.

    .. math:: H\big(\tfrac{p + q}{2}\big) - \tfrac{1}{2} H(p) - \tfrac{1}{2} H(q),
        \quad H(p) = -\textstyle\sum_b p_b \log_2 p_b

    Two finite draws from one distribution do not have 0, the less so the more bins they fill:
    beside a model stands the value of two parts of the truth of the same size.

    Args:
        shares: p, or counts; not negative.
        others: q, or counts.

    Returns:
        Bits, float64: 0 for equal distributions, 1 where they share no bin.

    Raises:
        InputError: A distribution is empty or has negative or infinite entries.

    Source: Lin, IEEE Trans. Inf. Theory 37, 145 (1991), eq. 4.1. Not the square root, which is
    also in use.
    """
    p, q = shares.double(), others.double()
    for one in (p, q):
        if not (one >= 0).all() or not 0 < float(one.sum()) < float("inf"):
            raise InputError("a distribution should have shares of 0 or more, not all of them 0")
    p, q = p / p.sum(), q / q.sum()
    nats = torch.special.entr((p + q) / 2) - (torch.special.entr(p) + torch.special.entr(q)) / 2
    return (nats.sum() / np.log(2)).clamp(0, 1)


def ramachandran_divergence(
    samples: Float[Tensor, "n 2"], truth: Float[Tensor, "m 2"], bins: int = 36
) -> Float[Tensor, ""]:
    """Compute the `divergence` of φ and ψ of one residue, taken together.

    Args:
        samples: φ and ψ of samples, as many as there are.
        truth: φ and ψ of true frames.
        bins: Along each angle; 36 are 10° each.

    Returns:
        Bits, from 0 to 1.

    Raises:
        InputError: There are no samples or no frames, or an angle is not finite.
    """
    return divergence(torus_shares(samples, bins), torus_shares(truth, bins))


def torsion_decorrelation(
    angles: Float[Tensor, "frames torsions"], lags: Int[Tensor, " lags"]
) -> Float[Tensor, "lags torsions"]:
    r"""Compute how much of its deviation from the mean an angle keeps.

    .. math:: C(\tau) = \frac{\langle \cos(\theta(t + \tau) - \theta(t)) \rangle_t
        - \lvert \langle e^{i \theta} \rangle \rvert^2}{1 - \lvert \langle e^{i \theta}
        \rangle \rvert^2}

    The correlation of the cosine and the sine about their means, so whole turns do not matter.

    Args:
        angles: θ.
        lags: τ, in frames, from 0 to below the number of frames.

    Returns:
        1 at lag 0, about 0 once the present is forgotten, float64. An angle that does not move
        keeps 1.

    Raises:
        UsageError: A lag is negative or longer than the trajectory.

    Source: after the torsional autocorrelation of Jing et al., Generative Modeling of Molecular
    Dynamics Trajectories (2024).
    """
    _check_lags(lags, len(angles))
    circle = torch.stack([angles.double().cos(), angles.double().sin()])
    mean = circle.mean(dim=1).square().sum(dim=0)
    rows = [
        (circle[:, lag:] * circle[:, : len(angles) - lag]).sum(dim=0).mean(dim=0)
        for lag in lags.tolist()
    ]
    kept = torch.stack(rows) if rows else circle.new_zeros(0, angles.shape[1])
    still = 1 - mean < _STILL
    return torch.where(still, 1.0, (kept - mean) / torch.where(still, 1.0, 1 - mean))


def decorrelation_time(
    correlation: Float[Tensor, "lags torsions"],
    lags_ps: Float[Tensor, " lags"],
    level: float = 1 / e,
) -> Float[Tensor, " torsions"]:
    """Compute when correlations first fall to a level, between lags along straight lines.

    Args:
        correlation: 1 at lag 0, whether or not that is among the lags.
        lags_ps: Increasing, ps.
        level: Below 1.

    Returns:
        ps, float64; infinite where the level is not reached within the lags.

    Raises:
        UsageError: The lags do not increase from 0 or more, or the level is not below 1.
    """
    lags, values = lags_ps.double(), correlation.double()
    if (lags < 0).any() or not (lags.diff() > 0).all() or not level < 1:
        raise UsageError("lags should increase from 0 or more, and the level be below 1")
    lags = torch.cat([lags.new_zeros(1), lags])
    values = torch.cat([values.new_ones(1, values.shape[1]), values])
    low = values <= level
    after = low.int().argmax(dim=0).clamp(min=1)
    before = after - 1
    column = torch.arange(values.shape[1], device=values.device)
    above, below = values[before, column], values[after, column]
    fraction = (above - level) / torch.where(low.any(dim=0), above - below, 1.0)
    time = lags[before] + fraction * (lags[after] - lags[before])
    return torch.where(low.any(dim=0), time, torch.inf)


def bonded_within(
    bonds: Int[Tensor, "2 bonds"], atoms: int, most: int = 3
) -> Bool[Tensor, "atoms atoms"]:
    """Tell which atoms are at most some bonds apart: pairs that are near without a clash.

    Args:
        bonds: Atom indices of each bond.
        atoms: How many there are.
        most: Bonds walked; 3 for the 1-4 pairs of force fields.

    Returns:
        Symmetric; an atom is 0 bonds from itself.
    """
    i, j = bonds.cpu().numpy()
    one = coo_array((np.ones(len(i), dtype=np.int64), (i, j)), shape=(atoms, atoms)).tocsr()
    step = ((one + one.T + eye_array(atoms, dtype=np.int64)) > 0).astype(np.int64)
    reached = eye_array(atoms, dtype=np.int64).tocsr()
    for _ in range(most):
        reached = ((reached @ step) > 0).astype(np.int64)
    return torch.from_numpy(reached.toarray() > 0).to(bonds.device)


def minimum_distance(
    positions: Float[Tensor, "frames atoms 3"],
    box: Float[Tensor, "3 3"] | Float[Tensor, "frames 3 3"] | None,
    excluded: Bool[Tensor, "atoms atoms"] | None = None,
) -> Float[Tensor, " frames"]:
    """Compute how close the closest two atoms of every frame are.

    Args:
        positions: Å, in any image.
        box: Rows are the edge vectors, Å, one for all frames or one each; none without a box.
        excluded: Pairs that do not count, such as those `bonded_within` three bonds.

    Returns:
        Å; in a skewed box exact up to its `inscribed_radius`.

    Raises:
        InputError: There are no pairs.
    """
    apart = _apart(positions, excluded)
    if not apart.any():
        raise InputError("there are no pairs of atoms whose distance could be the smallest")
    least = positions.new_full((len(positions),), torch.inf)
    for part, rows, squared in _all_distances(positions, box):
        squared.masked_fill_(~apart[rows], torch.inf)
        least[part] = torch.minimum(least[part], squared.amin(dim=(1, 2)))
    return least.sqrt()


def closest_contacts(
    positions: Float[Tensor, "frames atoms 3"],
    box: Float[Tensor, "3 3"] | Float[Tensor, "frames 3 3"] | None,
    kinds: Int[Tensor, " atoms"],
    excluded: Bool[Tensor, "atoms atoms"] | None = None,
) -> Float[Tensor, "kinds kinds"]:
    """Compute how close two atoms of two kinds ever come.

    On true frames this says, for any system and hydrogen bonds included, how close is possible;
    a little less is a limit for `clash_rate`.

    Args:
        positions: Å, in any image.
        box: Rows are the edge vectors, Å, one for all frames or one each; none without a box.
        kinds: Number of each atom's kind, from 0.
        excluded: Pairs that do not count.

    Returns:
        Å, symmetric; infinite where two kinds have no pair. Memory grows with atoms².

    Raises:
        InputError: There are no frames or no atoms.
    """
    if positions.numel() == 0:
        raise InputError("the closest contacts need a frame and an atom")
    apart = _apart(positions, excluded)
    least = positions.new_full(tuple(apart.shape), torch.inf)
    for _, rows, squared in _all_distances(positions, box):
        least[rows] = torch.minimum(least[rows], squared.amin(dim=0))
    least.masked_fill_(~apart, torch.inf)
    count = int(kinds.max()) + 1
    table = least.new_full((count * count,), torch.inf)
    place = kinds[:, None] * count + kinds
    table.scatter_reduce_(0, place.flatten(), least.flatten(), "amin")
    return table.view(count, count).sqrt()


def clash_rate(
    positions: Float[Tensor, "frames atoms 3"],
    box: Float[Tensor, "3 3"] | Float[Tensor, "frames 3 3"] | None,
    kinds: Int[Tensor, " atoms"],
    limits: Float[Tensor, "kinds kinds"],
    excluded: Bool[Tensor, "atoms atoms"] | None = None,
) -> Float[Tensor, " frames"]:
    """Count the pairs of atoms that are closer than they can be, for each atom.

    Args:
        positions: Å, in any image.
        box: Rows are the edge vectors, Å, one for all frames or one each; none without a box.
        kinds: Number of each atom's kind, from 0.
        limits: Distance below which two atoms of two kinds clash, Å; symmetric, such as 0.9
            times the `closest_contacts` of the training frames.
        excluded: Pairs that do not count.

    Returns:
        Clashing pairs, each counted once, over the number of atoms, in every frame.

    Raises:
        InputError: There are no atoms; pairs exist for which there is no finite limit.
    """
    if positions.shape[1] == 0:
        raise InputError("there are no atoms that could clash")
    apart = _apart(positions, excluded)
    limit = torch.where(apart, limits.to(positions)[kinds][:, kinds], 0.0)
    if not torch.isfinite(limit).all():
        raise InputError("some kinds of atoms have pairs but no limit below which they clash")
    clashes = torch.zeros(len(positions), dtype=torch.long, device=positions.device)
    for part, rows, squared in _all_distances(positions, box):
        clashes[part] += (squared < limit[rows].square()).sum(dim=(1, 2))
    return clashes.to(positions) / (2 * positions.shape[1])


def _boxes(
    box: Float[Tensor, "3 3"] | Float[Tensor, "frames 3 3"],
    positions: Float[Tensor, "frames atoms 3"],
) -> Float[Tensor, "frames 3 3"]:
    return box.to(positions).expand(len(positions), 3, 3)


def _all_distances(
    positions: Float[Tensor, "frames atoms 3"],
    box: Float[Tensor, "3 3"] | Float[Tensor, "frames 3 3"] | None,
) -> Iterator[tuple[slice, slice, Float[Tensor, "part rows atoms"]]]:
    return distance_blocks(positions, positions, None if box is None else _boxes(box, positions))


def _apart(
    positions: Float[Tensor, "frames atoms 3"], excluded: Bool[Tensor, "atoms atoms"] | None
) -> Bool[Tensor, "atoms atoms"]:
    """Tell which pairs count: two atoms that are not excluded."""
    atoms = positions.shape[1]
    apart = ~torch.eye(atoms, dtype=torch.bool, device=positions.device)
    return apart if excluded is None else apart & ~excluded.to(positions.device)


def _check_shells(edges: Float[Tensor, " edges"], boxes: Float[Tensor, "frames 3 3"]) -> None:
    if len(edges) < 2 or float(edges[0]) < 0 or not (edges.diff() > 0).all():
        raise UsageError("the edges of shells should increase from 0 or more, and be two at least")
    widest = float(inscribed_radius(boxes).min())
    if float(edges[-1]) > widest * (1 + 1e-6):
        raise UsageError(
            f"the shells reach to {float(edges[-1]):g} Å, but only {widest:g} Å around an atom "
            "are inside the box"
        )


def _check_lags(lags: Int[Tensor, " lags"], frames: int) -> None:
    wrong = (lags < 0) | (lags >= frames)
    if wrong.any():
        raise UsageError(
            f"a lag of {int(lags[wrong][0])} frames does not exist in a trajectory of {frames}"
        )


def _over_time(
    values: Float[Tensor, "frames atoms 3"],
    lags: Int[Tensor, " lags"],
    formula: Callable[[Tensor, Tensor], Tensor],
) -> Float[Tensor, " lags"]:
    """Sum a formula of later and earlier values over axes; its mean over atoms and departures."""
    frames, atoms = values.shape[:2]
    _check_lags(lags, frames)
    if atoms == 0:
        raise InputError("there are no atoms to take a mean over")
    total = torch.zeros(len(lags), dtype=torch.float64, device=values.device)
    for some in values.split(max(1, _NUMBERS_AT_ONCE // max(3 * frames, 1)), dim=1):
        for row, lag in enumerate(lags.tolist()):
            total[row] += formula(some[lag:], some[: frames - lag]).sum(dtype=torch.float64)
    return total / ((frames - lags.to(values.device)) * atoms)


def _partners(bonds: Int[Tensor, "2 bonds"]) -> dict[int, set[int]]:
    """Return the atoms each atom is bonded to."""
    partners: dict[int, set[int]] = {}
    for one, other in bonds.T.tolist():
        partners.setdefault(one, set()).add(other)
        partners.setdefault(other, set()).add(one)
    return partners
