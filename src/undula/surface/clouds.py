"""The surface of first frames as the router sees it: points, normals, chemistry and neighbours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from undula.data.prepare import surface_of
from undula.errors import InputError, UsageError
from undula.geometry.distances import quasi_geodesic
from undula.geometry.frames import own_axes
from undula.geometry.molecular_surface import MolecularSurface
from undula.geometry.neighbours import closest_pairs, nearest, pairs_to, pairs_within
from undula.geometry.sampling import farthest_points
from undula.geometry.smoothing import smoothed_normals
from undula.io.residues import standard_name
from undula.types import Structure, SurfaceCloud

AMINO_ACIDS = (
    *("ALA", "ARG", "ASN", "ASP", "CYS", "GLN", "GLU", "GLY", "HIS", "ILE"),
    *("LEU", "LYS", "MET", "PHE", "PRO", "SER", "THR", "TRP", "TYR", "VAL"),
)
"""Residue types 0 to 19."""

OTHER_RESIDUE = len(AMINO_ACIDS)
"""The type of every other residue: modified amino acids, ligands, ions, water."""

_TYPE_OF = {name: number for number, name in enumerate(AMINO_ACIDS)} | {
    "MSE": AMINO_ACIDS.index("MET")
}
AT_ONCE = 20_000
"""Points of larger clouds that are worked on at once: their pairs take 0.2 GB."""
_CANDIDATES = 4
"""From how many times as many points a fixed number of points is chosen, at least."""


@dataclass(frozen=True, kw_only=True)
class CloudConfig:
    """How a protein's surface becomes a cloud for the router.

    Attributes:
        spacing: About one point per ``spacing²`` of the surface, Å. Memory and time of the
            router grow with 1/spacing². None where the number of points is fixed.
        points: That fixed number, the points being as far from each other as they can; None
            where the spacing is. Large proteins need a wider window then: 512 points on 363
            residues have 7 neighbours each within 9 Å.
        smoothing: σ_n of the Gaussian that smooths normals for the distances, Å (the paper's 9
            turns 13 to 21 % of a protein's normals by more than 90°, 3 turns 4 to 6 %).
        window: σ_d, the quasi-geodesic distance below which points are neighbours, Å.
        neighbours: How many neighbours a point has at most, the closest.
        residues: ζ, how many residues a point knows of.
        probe: Radius of the solvent probe, Å.
    """

    spacing: float | None = 2.0
    points: int | None = None
    smoothing: float = 3.0
    window: float = 9.0
    neighbours: int = 32
    residues: int = 16
    probe: float = 1.4

    def __post_init__(self) -> None:
        if (self.spacing is None) == (self.points is None):
            raise UsageError(
                "a cloud has either a spacing or a fixed number of points; set the other to null"
            )
        for name in ("spacing", "smoothing", "window"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UsageError(f"{name} of a cloud should be positive, it is {value} Å")
        for name in ("points", "neighbours", "residues"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} of a cloud should be at least 1, it is {value}")
        if not 0 <= self.probe < math.inf:
            raise UsageError(f"probe of a cloud should not be negative, it is {self.probe} Å")


@dataclass(frozen=True, eq=False)
class RouterCloud:
    """The surface clouds of one or several proteins, one after the other.

    Attributes:
        points: Surface points x, Å, from the centroid of the protein's atoms.
        normals: Outward unit normals, as the surface has them.
        smoothed: Unit normals smoothed by a Gaussian (MoE-DSR, eq. 1), for distances only.
        owner: Which protein a point belongs to, ascending from 0.
        proteins: How many proteins there are.
        residue_types: Types of the ζ residues nearest to each point, 0 to 20 (20: not standard).
        residue_distances: How far their Cα are from the point, Å, ascending. Where a protein has
            fewer than ζ residues, the rest are infinitely far.
        residue_chains: Which chain of its protein each of those residues is in, from 0.
        pairs: Receiver i and sender j of each message, sorted by i; never i = j, never across
            proteins.
        distances: Quasi-geodesic distance of each pair, Å, below the window.
    """

    points: Float[Tensor, "n 3"]
    normals: Float[Tensor, "n 3"]
    smoothed: Float[Tensor, "n 3"]
    owner: Int[Tensor, " n"]
    proteins: int
    residue_types: Int[Tensor, "n zeta"]
    residue_distances: Float[Tensor, "n zeta"]
    residue_chains: Int[Tensor, "n zeta"]
    pairs: Int[Tensor, "2 pairs"]
    distances: Float[Tensor, " pairs"]

    def __post_init__(self) -> None:
        count, zeta = len(self.points), self.residue_types.shape[-1]
        shapes: dict[str, tuple[int, ...]] = {
            name: (count, 3) for name in ("points", "normals", "smoothed")
        }
        shapes |= {f"residue_{name}": (count, zeta) for name in ("types", "distances", "chains")}
        shapes |= {"owner": (count,), "pairs": (2, self.pairs.shape[-1])}
        shapes |= {"distances": (self.pairs.shape[-1],)}
        for name, shape in shapes.items():
            found = tuple(getattr(self, name).shape)
            if found != shape:
                raise InputError(f"{name} of a cloud should have the shape {shape}, not {found}")
        if zeta < 1:
            raise InputError("the points of a cloud should know of at least one residue")
        self._check_owners()
        self._check_numbers()
        self._check_pairs()

    def _check_owners(self) -> None:
        if self.proteins < 1:
            raise InputError(f"a cloud should hold at least one protein, not {self.proteins}")
        known = torch.arange(self.proteins, device=self.owner.device)
        if not torch.equal(torch.unique_consecutive(self.owner).to(known), known):
            raise InputError(
                f"the points of a cloud should belong to {self.proteins} proteins in ascending "
                "order, at least one point to each"
            )

    def _check_numbers(self) -> None:
        for name in ("points", "normals", "smoothed", "distances"):
            if not bool(torch.isfinite(getattr(self, name)).all()):
                raise InputError(f"{name} of a cloud should be finite")
        for name in ("normals", "smoothed"):
            if not bool(((getattr(self, name).norm(dim=1) - 1).abs() < 1e-3).all()):
                raise InputError(f"{name} of a cloud should have length one")
        if not bool((self.residue_distances >= 0).all() & (self.distances >= 0).all()):
            raise InputError("the distances of a cloud should not be negative")
        if not bool(((self.residue_types >= 0) & (self.residue_types <= OTHER_RESIDUE)).all()):
            raise InputError(f"the residue types of a cloud should be from 0 to {OTHER_RESIDUE}")

    def _check_pairs(self) -> None:
        receiver, sender = self.pairs
        if self.pairs.numel() == 0:
            return
        if int(self.pairs.min()) < 0 or int(self.pairs.max()) >= len(self):
            raise InputError("the pairs of a cloud name points that do not exist")
        if bool((receiver == sender).any()):
            raise InputError("the pairs of a cloud should not join a point with itself")
        if bool((receiver.diff() < 0).any()):
            raise InputError("the pairs of a cloud should be sorted by their receiver")
        if bool((self.owner[receiver] != self.owner[sender]).any()):
            raise InputError("the pairs of a cloud should not join points of different proteins")

    def __len__(self) -> int:
        return len(self.points)

    def to(
        self, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> RouterCloud:
        """Return the same clouds on a device, with lengths and normals in a precision."""
        moved = {}
        for name, value in self._tensors().items():
            moved[name] = value.to(device, dtype if value.is_floating_point() else None)
        return RouterCloud(proteins=self.proteins, **moved)

    def _tensors(self) -> dict[str, Tensor]:
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "proteins"}


def router_cloud(structure: Structure, config: CloudConfig) -> RouterCloud:
    r"""Sample a protein's surface and look up what surrounds each point.

    All is computed in the molecule's own frame: centroid, principal axes of its atoms, each
    pointing where the third moment is positive. Thus shifts, rotations and mirror images of the
    molecule, or another order of its atoms, shift, rotate and mirror the cloud and leave its
    rows as they are, to rounding: on proteins of 36 to 363 residues 5e-12 Å, in single precision
    8e-5 Å. A symmetric molecule has no frame of its own: where principal moments are equal or a
    third moment vanishes, the turned molecule gets other, equally good points, on average 0.4
    spacings from those of the first and at most one; features averaged over them differ by 1 to
    2 % of their spread from point to point.

    Args:
        structure: Atoms; all of them make the surface, with hydrogens if there are any.
        config: The rules.

    Returns:
        The cloud of one protein, in the precision of its positions. Every point knows of the
        :math:`\min(\zeta, \text{residues})` nearest residues, by their Cα, or by the first atom
        of those that have none. Selenomethionine counts as methionine. Chains are numbered as
        they appear. A point is kept as neighbour of another if it is among the closest
        ``neighbours`` of that one, which need not hold the other way round.

    Raises:
        InputError: The atoms cannot make a surface, or it is too small for the spacing.

    Source: MoE-DSR, eq. 1 and 2 and GeoAN's ζ residues. Differs from it: the exact
    solvent-excluded surface, thinned to a spacing or number; a limit on the neighbours.
    """
    positions = structure.positions.double()
    centred = positions - positions.mean(dim=0)
    axes = own_axes(centred)
    own = replace(structure, positions=centred @ axes)
    sample = _sample(own, config)
    smoothed = smoothed_normals(sample.points, sample.normals, config.smoothing)
    pairs, distances = _neighbourhood(sample.points, smoothed, config)
    types, away, chains = _residues_around(own, sample.points, config.residues)
    cloud = RouterCloud(
        points=sample.points @ axes.T,
        normals=sample.normals @ axes.T,
        smoothed=smoothed @ axes.T,
        owner=torch.zeros(len(sample), dtype=torch.long, device=positions.device),
        proteins=1,
        residue_types=types,
        residue_distances=away,
        residue_chains=chains,
        pairs=pairs,
        distances=distances,
    )
    return cloud.to(dtype=structure.positions.dtype)


def part_of(
    cloud: RouterCloud, rows: Int[Tensor, " some"], rounds: int
) -> tuple[RouterCloud, Int[Tensor, " some"]]:
    """Cut out some points of one protein with all that messages bring to them.

    Args:
        cloud: Of one protein.
        rows: The points.
        rounds: Of messages; so many steps along pairs are followed.

    Returns:
        A cloud that holds the points, their neighbours and theirs; and where the points are in it.
    """
    inside = torch.zeros(len(cloud), dtype=torch.bool, device=cloud.points.device)
    inside[rows] = True
    receiver, sender = cloud.pairs
    for _ in range(rounds):
        inside[sender[inside[receiver]]] = True
    place = inside.cumsum(dim=0) - 1
    joined = inside[receiver] & inside[sender]
    chosen = {
        name: value[inside]
        for name, value in cloud._tensors().items()
        if name not in ("pairs", "distances")
    }
    part = RouterCloud(
        proteins=1,
        pairs=place[cloud.pairs[:, joined]],
        distances=cloud.distances[joined],
        **chosen,
    )
    return part, place[rows]


def collated(clouds: Sequence[RouterCloud]) -> RouterCloud:
    """Put the clouds of several proteins into one, in order.

    Args:
        clouds: One or more, made with the same ζ, of one device and precision.

    Returns:
        All points; owners and pairs are renumbered.

    Raises:
        InputError: There is no cloud, or their points know of different numbers of residues.
    """
    if not clouds:
        raise InputError("there are no clouds to put together")
    zetas = sorted({cloud.residue_types.shape[1] for cloud in clouds})
    if len(zetas) > 1:
        raise InputError(
            f"clouds to put together should know of equally many residues, found {zetas}"
        )
    points = np.cumsum([0, *(len(cloud) for cloud in clouds)]).tolist()
    proteins = np.cumsum([0, *(cloud.proteins for cloud in clouds)]).tolist()
    parts = [cloud._tensors() for cloud in clouds]
    for part, first_point, first_protein in zip(parts, points, proteins, strict=False):
        part["owner"] = part["owner"] + first_protein
        part["pairs"] = part["pairs"] + first_point
    joined = {
        name: torch.cat([part[name] for part in parts], dim=1 if name == "pairs" else 0)
        for name in parts[0]
    }
    return RouterCloud(proteins=proteins[-1], **joined)


def _sample(structure: Structure, config: CloudConfig) -> SurfaceCloud:
    """Return points of the surface with the wanted spacing, or the wanted number of them."""
    surface = surface_of(structure, config.probe)
    if config.points is not None:
        return _farthest_of(surface, config.points)
    assert config.spacing is not None
    cloud = surface.cloud(config.spacing)
    if len(cloud) == 0:
        raise InputError(
            f"the surface of {structure.name} is too small for points "
            f"{config.spacing:g} Å apart; choose a smaller spacing"
        )
    return cloud


def _neighbourhood(
    points: Float[Tensor, "n 3"], smoothed: Float[Tensor, "n 3"], config: CloudConfig
) -> tuple[Int[Tensor, "2 pairs"], Float[Tensor, " pairs"]]:
    """Return the pairs of points that hear each other and how far apart they are along the surface.

    Many points are taken in parts, because there are several times as many pairs within the
    window as are kept.
    """
    kept_pairs, kept_distances = [], []
    for rows in torch.arange(len(points), device=points.device).split(AT_ONCE):
        if len(rows) == len(points):
            pairs = pairs_within(points, config.window)
        else:
            pairs = pairs_to(points, rows, config.window)
        distances = quasi_geodesic(points, smoothed, pairs)
        below = distances < config.window
        pairs, distances = pairs[:, below], distances[below]
        kept = closest_pairs(pairs, distances, config.neighbours)
        kept_pairs.append(pairs[:, kept])
        kept_distances.append(distances[kept])
    return torch.cat(kept_pairs, dim=1), torch.cat(kept_distances)


def _farthest_of(surface: MolecularSurface, count: int) -> SurfaceCloud:
    """Choose points far from each other, beginning with the one farthest from the origin."""
    spacing = 2.0
    cloud = surface.cloud(spacing)
    while len(cloud) < _CANDIDATES * count:
        spacing *= math.sqrt(0.5)
        cloud = surface.cloud(spacing)
    start = int(cloud.points.norm(dim=1).argmax())
    chosen = farthest_points(cloud.points, count, start=start)
    return SurfaceCloud(points=cloud.points[chosen], normals=cloud.normals[chosen])


def _residues_around(
    structure: Structure, points: Float[Tensor, "n 3"], zeta: int
) -> tuple[Int[Tensor, "n zeta"], Float[Tensor, "n zeta"], Int[Tensor, "n zeta"]]:
    """Return types, distances and chains of the nearest residues; infinitely far if too few."""
    place = np.unique(structure.residue_index, return_index=True)[1]
    alpha = structure.alpha_carbons.flip(0).numpy()
    place[structure.residue_index[alpha]] = alpha
    names = structure.residue_names[place].tolist()
    types = torch.tensor([_residue_type(name) for name in names], device=points.device)
    number: dict[str, int] = {}
    chains = torch.tensor(
        [number.setdefault(chain, len(number)) for chain in structure.chain_ids[place].tolist()],
        device=points.device,
    )
    centres = structure.positions[torch.from_numpy(place).to(points.device)]
    index = torch.cat([nearest(some, centres, zeta) for some in points.split(AT_ONCE)])
    away = (points[:, None] - centres[index]).norm(dim=2)
    missing = (0, zeta - index.shape[1])
    pad = torch.nn.functional.pad
    return (
        pad(types[index], missing, value=OTHER_RESIDUE),
        pad(away, missing, value=math.inf),
        pad(chains[index], missing),
    )


def _residue_type(name: str) -> int:
    return _TYPE_OF.get(standard_name(name) or name, OTHER_RESIDUE)
