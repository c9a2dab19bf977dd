"""Which proteins an expert serves, and whether they have anything in common."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int

from undula.data.alignment import letter_numbers, local_alignment
from undula.data.similarity import SimilarityConfig, similarity
from undula.errors import InputError
from undula.geometry.secondary_structure import secondary_structure
from undula.io.sequences import sequence_of
from undula.surface.clouds import collated, router_cloud
from undula.surface.first_frame import FirstFrame
from undula.surface.trained_mixture import TrainedMixture
from undula.types import Structure

PERMUTATIONS = 2000
_LENGTHS = (50.0, 100.0, 200.0, 300.0)
_RADII = (10.0, 14.0, 18.0, 22.0)
_MOST_PAIRS = 300
_FEW = 200
"""Up to so many sequences our own alignment clusters them: the same on every machine."""


@dataclass(frozen=True, eq=False)
class Routing:
    """Which expert every protein gets.

    Attributes:
        names: Of the proteins.
        experts: The one that counts most for each, from 0.
        probabilities: Softmax of the gate over all experts, without noise.
    """

    names: tuple[str, ...]
    experts: Int[np.ndarray, " proteins"]
    probabilities: Float[np.ndarray, "proteins experts"]

    @property
    def load(self) -> Float[np.ndarray, " experts"]:
        """Share of the proteins for which each expert counts most."""
        count = np.bincount(self.experts, minlength=self.probabilities.shape[1])
        return count / len(self.names)

    @property
    def load_entropy(self) -> float:
        """Entropy of the load, as a part of the largest there is: 1 where all serve alike."""
        return _part(_entropy(self.load), self.probabilities.shape[1])

    @property
    def routing_entropy(self) -> float:
        """Mean entropy of the gate's softmax, likewise: 0 where every choice is sharp."""
        every = [_entropy(row) for row in self.probabilities]
        return _part(float(np.mean(every)), self.probabilities.shape[1])

    def part(self, names: Sequence[str]) -> Routing:
        """Return the routing of some of the proteins."""
        wanted = set(names)
        rows = [i for i, name in enumerate(self.names) if name in wanted]
        return Routing(
            tuple(self.names[i] for i in rows), self.experts[rows], self.probabilities[rows]
        )


@dataclass(frozen=True, kw_only=True)
class Association:
    """How much the expert says of a class.

    Attributes:
        classes: How many classes there are among the proteins.
        information: Mutual information of expert and class, nats.
        normalised: The same divided by the mean of the two entropies: 1 where each tells the
            other.
        null: Mean over permutations of the labels. Many classes on few proteins share much
            information with anything, so only what exceeds this counts.
        p: How often a permutation shares at least as much, (1 + count) / (1 + permutations).
    """

    classes: int
    information: float
    normalised: float
    null: float
    p: float


@torch.no_grad()
def routing(trained: TrainedMixture, structures: Sequence[Structure]) -> Routing:
    """Return the expert that a model's gate chooses for each protein, from its first frame.

    Args:
        trained: The model.
        structures: First frames.
    """
    model = trained.model
    paper = model.config.experts.kind == "paper"
    probe = float(trained.provenance["probe"])
    rows = []
    for structure in structures:
        first = FirstFrame(structure, model.config.local, probe, turned=not paper)
        cloud = router_cloud(first.structure, model.config.cloud).to(dtype=torch.float32)
        rows.append(model.gate(model.router(collated([cloud])).code))
    return Routing(
        names=tuple(structure.name for structure in structures),
        experts=np.array([int(gating.chosen[0, 0]) for gating in rows]),
        probabilities=np.stack([gating.probabilities[0].numpy() for gating in rows]),
    )


def mutual_information(
    first: Int[np.ndarray, " proteins"], second: Int[np.ndarray, " proteins"]
) -> float:
    r"""Compute the mutual information of two labellings, in nats.

    .. math:: I = \sum_{ab} p_{ab} \ln \frac{p_{ab}}{p_a p_b}

    Args:
        first: Whole numbers from 0.
        second: Likewise.

    Returns:
        0 for independent labels; the entropy of either where they say the same.
    """
    joint = np.zeros((int(first.max()) + 1, int(second.max()) + 1))
    np.add.at(joint, (first, second), 1 / len(first))
    return _entropy(joint.sum(1)) + _entropy(joint.sum(0)) - _entropy(joint.ravel())


def association(
    experts: Int[np.ndarray, " proteins"],
    labels: Sequence[str],
    generator: torch.Generator,
    permutations: int = PERMUTATIONS,
) -> Association:
    """Compute what the expert of a protein says of its class, against permuted labels.

    Args:
        experts: Of each protein.
        labels: The class of each.
        generator: Draws the permutations.
        permutations: How many.

    Returns:
        With p = 1 where all proteins have the same expert, or all the same class, or each its
        own: then no permutation differs.
    """
    names = sorted(set(labels))
    classes = np.array([names.index(label) for label in labels])
    own = mutual_information(experts, classes)
    drawn = np.array(
        [
            mutual_information(
                experts, classes[torch.randperm(len(classes), generator=generator).numpy()]
            )
            for _ in range(permutations)
        ]
    )
    entropies = [_entropy(np.bincount(of) / len(of)) for of in (experts, classes)]
    mean = sum(entropies) / 2
    return Association(
        classes=len(names),
        information=max(own, 0.0),
        normalised=max(own, 0.0) / mean if mean > 0 else 0.0,
        null=float(drawn.mean()),
        p=(1 + int((drawn >= own - 1e-12).sum())) / (1 + permutations),
    )


def protein_classes(
    structures: Sequence[Structure], ecod: Path | None = None
) -> dict[str, list[str]]:
    """Return the classes of proteins that an expert might have learned, one label per protein.

    Args:
        structures: The proteins.
        ecod: ECOD's domain file (``ecod.latest.domains.txt``), if it is there.

    Returns:
        ``sequence cluster`` (40 % identity, 80 % coverage), ``length``, ``secondary structure``
        (mostly helix, mostly strand, both, little), ``size`` (radius of gyration) and, with a
        file, ``ECOD X-group``.

    Raises:
        InputError: The file is no such file.
    """
    sequences = {s.name: sequence_of(s) for s in structures}
    program = "undula" if len(sequences) <= _FEW else "auto"
    clusters = similarity(sequences, SimilarityConfig(program=program)).clusters
    cluster_of = {name: cluster[0] for cluster in clusters for name in cluster}
    found = {
        "sequence cluster": [cluster_of[s.name] for s in structures],
        "length": [_bin(float(len(s.alpha_carbons)), _LENGTHS) for s in structures],
        "secondary structure": [structure_class(s) for s in structures],
        "size": [_bin(_radius(s), _RADII) for s in structures],
    }
    if ecod is not None:
        known = ecod_groups(ecod)
        found["ECOD X-group"] = [
            "+".join(sorted(known.get(_chain(s.name), {"none"}))) for s in structures
        ]
    return found


def structure_class(structure: Structure) -> str:
    """Return "mostly helix", "mostly strand", "both" or "little", by the share of residues.

    At least 15 % of the residues in an element for it to count; one is most where the other does
    not count.
    """
    letters = secondary_structure(structure.positions[structure.alpha_carbons])
    helix, strand = (letters.count(one) >= 0.15 * max(len(letters), 1) for one in "HE")
    if helix and strand:
        return "both"
    return "mostly helix" if helix else "mostly strand" if strand else "little"


def ecod_groups(path: Path) -> dict[tuple[str, str], set[str]]:
    """Read which X-groups (possible homology) the domains of each chain belong to.

    Args:
        path: Tab-separated, a comment line that begins with ``#uid`` naming the columns, among
            them ``pdb``, ``chain`` and ``f_id`` or ``t_id``.

    Returns:
        (PDB code in lower case, chain) → X-groups.

    Raises:
        InputError: It is missing or no such file.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    lines = text.splitlines()
    heads = [line for line in lines if line.startswith("#uid")]
    columns = heads[0].lstrip("#").split("\t") if heads else []
    identifier = next((name for name in ("f_id", "t_id") if name in columns), None)
    if identifier is None or not {"pdb", "chain"} <= set(columns):
        raise InputError(
            f"{path} is no ECOD domain file: a line #uid should name pdb, chain and f_id or t_id"
        )
    rows = (line for line in lines if line and not line.startswith("#"))
    found: dict[tuple[str, str], set[str]] = {}
    for row in csv.DictReader(rows, fieldnames=columns, delimiter="\t", quoting=csv.QUOTE_NONE):
        if row[identifier]:
            group = row[identifier].split(".")[0]
            found.setdefault((str(row["pdb"]).lower(), str(row["chain"])), set()).add(group)
    return found


def mean_identity(structures: Sequence[Structure], generator: torch.Generator) -> tuple[float, int]:
    """Return the mean identity of pairs of proteins by local alignment, and how many pairs.

    The paper's "SI". Of many pairs 300 are drawn. The best local alignment of two unrelated
    sequences is short and thus looks alike (53 % for ten small proteins), so the number means
    something only beside that of all proteins.

    Args:
        structures: The proteins.
        generator: Draws the pairs.

    Returns:
        Identity from 0 to 1; NaN for fewer than two proteins.
    """
    letters = [letter_numbers(sequence_of(structure)) for structure in structures]
    pairs = torch.combinations(torch.arange(len(letters)), 2)
    if len(pairs) > _MOST_PAIRS:
        pairs = pairs[torch.randperm(len(pairs), generator=generator)[:_MOST_PAIRS]]
    found = [local_alignment(letters[i], letters[j]).identity for i, j in pairs.tolist()]
    return (float(np.mean(found)) if found else math.nan), len(found)


def representatives(routed: Routing, expert: int, most: int = 4) -> list[str]:
    """Return the proteins for which an expert counts most, the surest first."""
    rows = [i for i, one in enumerate(routed.experts) if one == expert]
    rows.sort(key=lambda i: (-routed.probabilities[i, expert], routed.names[i]))
    return [routed.names[i] for i in rows[:most]]


def associations(
    routed: Routing, classes: Mapping[str, Sequence[str]], seed: int = 0
) -> dict[str, Association]:
    """Return the association of the experts with every kind of class; seeded."""
    return {
        kind: association(routed.experts, labels, torch.Generator().manual_seed(seed))
        for kind, labels in classes.items()
    }


def _entropy(shares: Float[np.ndarray, " shares"]) -> float:
    positive = shares[shares > 0]
    return max(float(-(positive * np.log(positive)).sum()), 0.0)


def _part(entropy: float, experts: int) -> float:
    return entropy / math.log(experts) if experts > 1 else 0.0


def _bin(value: float, edges: Sequence[float]) -> str:
    """Return the name of the bin of a value."""
    for edge in edges:
        if value < edge:
            return f"below {edge:g}"
    return f"{edges[-1]:g} or more"


def _radius(structure: Structure) -> float:
    """Return the radius of gyration of the Cα, Å."""
    on = structure.positions[structure.alpha_carbons].double()
    return float((on - on.mean(dim=0)).square().sum(dim=1).mean().sqrt())


def _chain(name: str) -> tuple[str, str]:
    """Return PDB code and chain of a name such as 1vii_A."""
    code, _, chain = name.partition("_")
    return code.lower(), chain
