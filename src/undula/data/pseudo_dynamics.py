"""Motion of a structure that nobody has simulated: an elastic network and swinging side chains.

A set of static structures teaches a model of unseen proteins how surfaces follow atoms: each
structure is the first frame of a made-up trajectory, which is prepared like a real one and says
in its manifest that it is none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from undula.data.prepare import (
    aligned,
    begin,
    check_free,
    chosen_structure,
    input_hash,
    is_begun,
    kept,
    write_dataset,
    write_record,
)
from undula.data.prepare_config import PrepareConfig
from undula.errors import InputError, UsageError
from undula.geometry.elastic_network import anisotropic_network_modes
from undula.geometry.neighbours import search_tree
from undula.geometry.residue_motion import FEWEST_NODES, carried, residue_centres
from undula.io.datasets import FORMAT, Dataset, open_dataset
from undula.locks import claims
from undula.notices import refuse
from undula.types import Structure, Trajectory

ORIGIN = "pseudo-dynamics of an elastic network"
"""What the manifest of such a data set says of its frames."""
RECORD = "static.json"
"""In a folder of data sets: which there are."""
NAME = "pseudo"
"""The name of the trajectory."""
CONTACTS_RADIUS = 8.0
"""Atoms within this distance of a side chain's Cα hold it, Å."""
CONTACTS_TO_STILL = 60.0
"""A side chain swings less by e for so many atoms around its Cα."""
FASTEST_SWING_PS, SLOWEST_SWING_PS = 1.0, 100.0
"""Between these the relaxation times of side chains are drawn, evenly in their logarithm."""
_BACKBONE = ("N", "CA", "C", "O", "OXT", "OC1", "OC2", "OT1", "OT2", "H", "HA")


@dataclass(frozen=True, kw_only=True)
class PseudoDynamicsConfig:
    """How a structure is made to move.

    The defaults follow simulations of small proteins. Mean distance of the Cα from the first frame
    there: 0.5 Å after 1.5 ps, 1 Å after 20 ps, 1 to 2 Å after 200 ps; here 0.5 Å after 1 ps, 1 Å
    from 25 ps on. Mean change of the signed distance around the first surface there: 0.40 Å after
    1 to 4 ps, 0.59 after 10 to 30, 0.69 after 40 to 100; here 0.34, 0.55 and 0.57. Side-chain atoms
    one, three and six bonds out, seen from their backbone, after 3 to 15 ps there: 0.3, 0.95 and
    1.7 Å; here 0.3, 0.6 and 0.9.

    Attributes:
        frames: How many, the structure itself being the first.
        shortest_ps: Time of the second frame, ps; from there on they grow by a constant factor.
        longest_ps: Time of the last, ps.
        amplitude: Root mean square displacement of the network's nodes long after the start, Å.
            Residues move with the nodes around them and frames are superposed, so that the Cα
            of the data set end at about two thirds of it: 1 Å.
        modes: How many of the softest modes move. With all, neighbours in the chain would move
            apart as if they were not bonded: the springs are all alike.
        friction_ps: Relaxation time of a mode of stiffness one, ps.
        swing: Root mean square angle about each axis by which a side chain without any atom
            around it would swing about its Cα, rad.
    """

    frames: int = 20
    shortest_ps: float = 1.0
    longest_ps: float = 200.0
    amplitude: float = 1.5
    modes: int = 40
    friction_ps: float = 20.0
    swing: float = 0.5

    def __post_init__(self) -> None:
        for name, least in {"frames": 3, "modes": 1}.items():
            if getattr(self, name) < least:
                raise UsageError(f"{name} should be at least {least}, not {getattr(self, name)}")
        for name in ("shortest_ps", "amplitude", "friction_ps"):
            if not 0 < getattr(self, name) < math.inf:
                raise UsageError(f"{name} should be positive, not {getattr(self, name)}")
        if not 0 <= self.swing < math.inf:
            raise UsageError(f"swing should not be negative, not {self.swing}")
        if not self.shortest_ps < self.longest_ps < math.inf:
            raise UsageError(
                f"longest_ps ({self.longest_ps:g}) should be above shortest_ps "
                f"({self.shortest_ps:g})"
            )

    @property
    def times_ps(self) -> Float[Tensor, " frames"]:
        """Times of the frames, ps: 0, then evenly spaced in their logarithm."""
        ends = math.log(self.shortest_ps), math.log(self.longest_ps)
        later = torch.linspace(*ends, self.frames - 1, dtype=torch.float64).exp()
        return torch.cat([torch.zeros(1, dtype=torch.float64), later])


@dataclass(frozen=True, kw_only=True)
class PreparedStatic:
    """What `prepare_static` made.

    Attributes:
        datasets: Name → data set.
        skipped: Name → why there is none.
    """

    datasets: Mapping[str, Dataset]
    skipped: Mapping[str, str]


def ornstein_uhlenbeck(
    times_ps: Float[Tensor, " frames"],
    relaxation_ps: Float[Tensor, " variables"],
    generator: torch.Generator,
) -> Float[Tensor, "frames variables"]:
    r"""Draw paths of independent overdamped springs that start at rest, exact at any spacing.

    .. math:: q(t + \Delta) = e^{-\Delta/\tau} q(t) + \sqrt{1 - e^{-2\Delta/\tau}} \, \xi, \qquad
        q(t_0) = 0, \qquad \langle q(t)^2 \rangle = 1 - e^{-2 (t - t_0) / \tau}

    Args:
        times_ps: Increasing, ps.
        relaxation_ps: τ of each variable, ps.
        generator: Of ξ.

    Returns:
        One column per variable, of variance 1 in the end; the first row is 0.
    """
    steps = times_ps.double().diff()[:, None] / relaxation_ps.double()
    noise = torch.randn(len(steps), len(relaxation_ps), generator=generator, dtype=torch.float64)
    path = [torch.zeros(len(relaxation_ps), dtype=torch.float64)]
    for step, kick in zip(steps, noise, strict=True):
        path.append((-step).exp() * path[-1] + (-torch.expm1(-2 * step)).sqrt() * kick)
    return torch.stack(path)


def pseudo_trajectory(
    structure: Structure, config: PseudoDynamicsConfig, generator: torch.Generator
) -> Trajectory:
    r"""Make a structure tremble as an elastic network with side chains that swing.

    .. math::
        \delta_r(t) = A \sum_k \lambda_k^{-1/2} v_{kr} \, q_k(t), \quad \tau_k = \zeta / \lambda_k,
        \qquad
        x_a(t) = R_r(t) \left( c_r + e^{[w_r(t)]_\times} (x_a - c_r) \right) + s_r(t)

    =================  ==============================================================
    λ_k, v_k           stiffness and displacement of mode k (anisotropic network)
    q_k, w_r           Ornstein–Uhlenbeck paths that start at 0; w only for side chains
    A                  such that δ is ``amplitude`` in the end, root mean square
    ζ                  ``friction_ps``
    R_r, s_r           motion of the Cα around residue r (`carried`)
    c_r                Cα of the residue
    =================  ==============================================================

    Soft modes are slow and wide, stiff ones quick and narrow (an overdamped spring), so that the
    time since the first frame matters. Backbone and side chain turn with what is around them;
    bond lengths within a residue stay exactly, those between residues nearly (0.1 Å). Proline's
    ring does not swing. The first frame is the structure itself. Nothing keeps atoms from
    overlapping.

    Args:
        structure: One or several chains; contacts between chains are springs like all others.
        config: How far and how fast.
        generator: Of all paths.

    Returns:
        ``config.frames`` frames in the structure's own pose.

    Raises:
        InputError: Fewer than `FEWEST_NODES` Cα, or a network without an inner motion.

    Source: Atilgan et al. (2001) for the modes; their times are those of an overdamped spring.
    The side chains are ours.
    """
    on = structure.alpha_carbons
    if len(on) < FEWEST_NODES:
        raise InputError(
            f"{structure.name}: {len(on)} Cα are too few for an elastic network, which needs "
            f"{FEWEST_NODES}"
        )
    nodes = structure.positions[on].double()
    stiffness, modes = anisotropic_network_modes(nodes, config.modes)
    if not len(stiffness):
        raise InputError(f"{structure.name}: the Cα are too far apart for an elastic network")
    times_ps = config.times_ps
    paths = ornstein_uhlenbeck(times_ps, config.friction_ps / stiffness, generator)
    size = stiffness.rsqrt() * (config.amplitude * len(on) ** 0.5 / stiffness.rsqrt().norm())
    moved = nodes + torch.einsum("fk,k,knc->fnc", paths, size, modes)
    swinging = _swinging(structure, config, times_ps, generator)
    return Trajectory(
        structure=structure,
        positions=_swung(structure, moved, swinging).to(structure.positions.dtype),
        times_ps=times_ps,
    )


def prepare_static(
    structures: Sequence[Path],
    out: Path,
    config: PrepareConfig,
    dynamics: PseudoDynamicsConfig,
    *,
    strict: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> PreparedStatic:
    """Make one data set for each static structure, of its pseudo-dynamics; go on when one fails.

    The random numbers depend on the seed and the file's content, not on the other files.
    ``OUT/static.json`` records what was made by this call and those before, and what it skipped.

    Args:
        structures: Structure files; a data set is called as its file without the suffixes.
        out: The folder in which a folder for each structure is made.
        config: How frames are sampled and labelled; its stride means nothing here.
        dynamics: How the structures move.
        strict: Skip a structure that would get a notice.
        say: Called with one line for each structure, and one for each step done.

    Returns:
        The data sets, and what was skipped.

    Raises:
        UsageError: Two files have the same name, or an earlier call had other rules.
        MachineError: The disk is full or the like: the others would fail too.
    """
    names = [_dataset_name(path) for path in structures]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(f"two of the files are called {twice[0]}; prepare them into two folders")
    check_free(out / RECORD)
    datasets, skipped = {}, {}
    for number, (name, path) in enumerate(zip(names, structures, strict=True), 1):
        say(f"{name}: {number} of {len(names)}")
        try:
            datasets[name] = _prepared(path, out / name, config, dynamics, strict=strict)
        except InputError as error:
            skipped[name] = str(error)
    made = {name: dataset.sha256 for name, dataset in datasets.items()}
    write_record(out / RECORD, {"origin": ORIGIN}, made, skipped)
    return PreparedStatic(datasets=datasets, skipped=skipped)


@claims("out")
def _prepared(
    path: Path, out: Path, config: PrepareConfig, dynamics: PseudoDynamicsConfig, *, strict: bool
) -> Dataset:
    digest = input_hash(path)
    request: dict[str, Any] = {
        "format": FORMAT,
        "origin": ORIGIN,
        "topology": {"name": path.name, "sha256": digest},
        "trajectories": [{"name": NAME, "file": path.name, "sha256": digest, "holdout": False}],
        "rules": asdict(config) | asdict(dynamics),
    }
    if is_begun(out, request) and (out / "manifest.json").exists():
        return kept(open_dataset(out), strict=strict)
    structure = chosen_structure(path, config)
    refuse(structure.notices, strict=strict)
    seed = np.random.SeedSequence([config.seed, int(digest[:16], 16)]).generate_state(1)[0]
    moving = pseudo_trajectory(structure, dynamics, torch.Generator().manual_seed(int(seed)))
    begin(out, request)
    return write_dataset(out, request, structure.notices, [aligned(moving)], config)


def _dataset_name(path: Path) -> str:
    return path.name.removesuffix(".gz").rsplit(".", 1)[0]


def _swinging(
    structure: Structure,
    config: PseudoDynamicsConfig,
    times_ps: Float[Tensor, " frames"],
    generator: torch.Generator,
) -> Float[Tensor, "frames residues 3"]:
    """Draw the rotation vector of every side chain, rad; buried ones swing less."""
    residues = structure.residues
    positions = structure.positions.double().numpy()
    around = search_tree(positions).query_ball_point(
        positions[residue_centres(structure)], CONTACTS_RADIUS, return_length=True
    )
    angle = config.swing * torch.from_numpy(np.exp(-(around - 1) / CONTACTS_TO_STILL))
    ends = math.log(FASTEST_SWING_PS), math.log(SLOWEST_SWING_PS)
    drawn = torch.rand(residues, generator=generator, dtype=torch.float64)
    relaxation = (ends[0] + (ends[1] - ends[0]) * drawn).exp()
    paths = ornstein_uhlenbeck(times_ps, relaxation.repeat_interleave(3), generator)
    return paths.reshape(-1, residues, 3) * angle[:, None]


def _swung(
    structure: Structure,
    moved: Float[Tensor, "frames nodes 3"],
    swinging: Float[Tensor, "frames residues 3"],
) -> Float[Tensor, "frames atoms 3"]:
    """Swing each side chain about its Cα, and move each residue with the Cα around it."""
    start = structure.positions.double()
    turns = torch.linalg.matrix_exp(_cross(swinging))
    held = np.isin(structure.atom_names, _BACKBONE) | (structure.residue_names == "PRO")
    swings = torch.from_numpy(~held)
    swung = start.expand(len(moved), -1, -1).clone()
    for residue, centre in enumerate(start[torch.from_numpy(residue_centres(structure))]):
        mine = torch.from_numpy(np.nonzero(structure.residue_index == residue)[0])
        arm = start[mine] - centre
        swung[:, mine] = centre + torch.where(
            swings[mine][:, None], arm @ turns[:, residue].mT, arm.expand(len(moved), -1, -1)
        )
    return carried(structure, swung, moved)


def _cross(vectors: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 3 3"]:
    """Return the matrices that multiply as the cross product with the vectors does."""
    x, y, z = vectors.unbind(dim=-1)
    none = torch.zeros_like(x)
    rows = [(none, -z, y), (z, none, -x), (-y, x, none)]
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)
