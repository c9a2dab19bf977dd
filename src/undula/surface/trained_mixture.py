"""A trained MoE-DSR model as one folder, and bound to the first frame of any protein."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from undula.errors import InputError
from undula.geometry.lattice import Lattice
from undula.geometry.molecular_surface import MolecularSurface
from undula.learn.checkpoint import described_in, load_weights, save_weights
from undula.surface.baselines import Blur, Shifts
from undula.surface.clouds import router_cloud
from undula.surface.experts import PointRows
from undula.surface.first_frame import REACH, FirstFrame, LocalPoints
from undula.surface.mixture import Encoding, MixtureModel
from undula.surface.posed import SurfaceForecaster
from undula.surface.trained import WEIGHTS, TrainedSurface, check_provenance, known_shifts
from undula.types import Structure

KIND = "surface-mixture"
_WAVES = 32
"""How many waves make the path of one random number in time."""


@dataclass(frozen=True, eq=False)
class TrainedMixture:
    """A MoE-DSR model ready to forecast any protein.

    Attributes:
        model: The network.
        blur: σ and cut of the blurred first frame, fitted on the training frames.
        memory_ps: How long the passing part of a deviation from the typical surface lasts, ps.
        lasting: The part of its variance that lasts as long as a trajectory.
        provenance: What it was trained on and how, for the model card.
        shifts: Of the dilated and the eroded first frame, fitted likewise; none in weights that
            are older than those rows.
    """

    model: MixtureModel
    blur: Blur
    memory_ps: float
    lasting: float
    provenance: dict[str, Any]
    shifts: Shifts | None = None

    def __post_init__(self) -> None:
        check_provenance(self.provenance, ("steps", "proteins", "training_frames", "probe"))
        if not 0 < self.memory_ps < math.inf or not 0 <= self.lasting <= 1:
            raise InputError(
                f"deviations cannot last {self.memory_ps} ps, a part of {self.lasting} for good"
            )

    @property
    def horizon_ps(self) -> float:
        """The longest lag in training, ps."""
        return self.model.horizon_ps

    @property
    def distributional(self) -> bool:
        """Whether it can draw samples."""
        return self.model.config.samples

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader should know of it."""
        config = self.model.config
        told = [
            f"Model: MoE-DSR, router {config.router}, {config.gate.chosen} of "
            f"{config.gate.experts} experts of kind {config.experts.kind}, trained for "
            f"{self.provenance['steps']} steps on {self.provenance['proteins']} proteins, "
            f"{self.provenance['training_frames']} frames up to {self.horizon_ps:g} ps.",
            "All it knows of this protein is the first frame.",
        ]
        if config.experts.kind == "paper":
            told.append("As published, this form is not equivariant: a turned protein differs.")
        return tuple(told)

    def posed(self, structure: Structure, surface: MolecularSurface, seed: int) -> FirstFrameField:
        """Bind the model to the first frame of any protein."""
        del surface
        paper = self.model.config.experts.kind == "paper"
        probe = float(self.provenance["probe"])
        first = FirstFrame(structure, self.model.config.local, probe, turned=not paper)
        return FirstFrameField(self, first, seed)

    def save(self, folder: Path) -> None:
        """Write the weights with what it takes to build the model again."""
        save_weights(
            folder / WEIGHTS,
            self.model.state_dict(),
            {
                "kind": KIND,
                "model": self.model.describe(),
                "blur": asdict(self.blur),
                "shifts": self.shifts and asdict(self.shifts),
                "memory_ps": self.memory_ps,
                "lasting": self.lasting,
                "provenance": self.provenance,
            },
        )

    @classmethod
    def load(cls, folder: Path) -> TrainedMixture:
        """Read what `save` wrote.

        Raises:
            InputError: No such model there, or a damaged one.
        """
        weights, metadata = load_weights(folder / WEIGHTS)
        if metadata.get("kind") != KIND:
            raise InputError(f"{folder / WEIGHTS} is not a MoE-DSR model")
        with described_in(folder / WEIGHTS):
            model = MixtureModel.build(metadata["model"], weights).eval()
            model.requires_grad_(False)
            return cls(
                model=model,
                blur=Blur(**metadata["blur"]),
                memory_ps=float(metadata["memory_ps"]),
                lasting=float(metadata["lasting"]),
                provenance=metadata["provenance"],
                shifts=known_shifts(metadata),
            )


def load_trained(folder: Path) -> SurfaceForecaster:
    """Read a trained surface model of either kind.

    Args:
        folder: A run or result folder, or bundled weights.

    Raises:
        InputError: No trained surface model there, or a damaged one.
    """
    path = folder / WEIGHTS
    if path.is_file() and load_weights(path)[1].get("kind") == KIND:
        return TrainedMixture.load(folder)
    return TrainedSurface.load(folder)


@dataclass(frozen=True, eq=False)
class ShellPoints:
    """Points, of which those near the first frame's surface know more.

    Attributes:
        distance: Of all points to the first frame's surface, Å.
        row: Row in ``near`` of each point, −1 beyond the reach of the experts.
        near: What the points within reach know.
    """

    distance: Float[Tensor, " n"]
    row: Int[Tensor, " n"]
    near: LocalPoints

    def __getitem__(self, rows: Tensor) -> ShellPoints:
        return ShellPoints(self.distance[rows], self.row[rows], self.near)


@dataclass(frozen=True, eq=False)
class FirstFrameField:
    """The moving field of a protein of which only the first frame is known.

    Attributes:
        trained: The model.
        first: The first frame.
        seed: Of the samples.
    """

    trained: TrainedMixture
    first: FirstFrame
    seed: int
    _moving: dict[tuple[tuple[int, ...], float], Tensor] = field(default_factory=dict, repr=False)

    @cached_property
    def encoding(self) -> Encoding:
        """What router and gate make of the first frame; computed once."""
        model = self.trained.model
        cloud = router_cloud(self.first.structure, model.config.cloud)
        scales = torch.tensor([self.first.scale])
        with torch.no_grad():
            return model.encode(cloud.to(dtype=torch.float32), scales, latent=self._latent())

    def _latent(self) -> Float[Tensor, "1 latent"] | None:
        if self.trained.model.latents is None:
            return None
        from undula.surface.latent import fitted_latent

        return fitted_latent(self.trained.model, self.first)

    @property
    def _shell(self) -> bool:
        """Whether the field is the first frame's beyond the experts' reach."""
        return self.trained.model.inputs is not None

    def known(self, points: Float[Tensor, "n 3"]) -> ShellPoints:
        """Return the points with what they know of the first frame."""
        assert self.encoding is not None  # what it takes to compute is free again before the rest
        own = self.first.to_own(points)
        count = len(own)
        if not self._shell:
            zeros = torch.zeros(count)
            return ShellPoints(
                zeros,
                torch.arange(count),
                LocalPoints(own, zeros, torch.zeros(count, 3), torch.zeros(count, 0)),
            )
        distance = self.first.surface.signed_distance(own)
        near = torch.nonzero(distance.abs() < REACH)[:, 0]
        row = torch.full((count,), -1, dtype=torch.long)
        row[near] = torch.arange(len(near))
        return ShellPoints(distance.float(), row, self.first.local(own[near]))

    def values(self, known: ShellPoints, time_ps: float, sample: int | None) -> Float[Tensor, " n"]:
        """Return the field at one time, Å: the first frame's, moved by the experts near it."""
        typical, moved = self._fields(known, time_ps, [] if sample is None else [sample])
        return typical if sample is None else moved[0]

    def samples(self, known: ShellPoints, time_ps: float, count: int) -> Float[Tensor, "count n"]:
        """Return the fields of the first few samples; the experts are asked once for all."""
        return self._fields(known, time_ps, range(count))[1]

    @torch.no_grad()
    def _fields(
        self, known: ShellPoints, time_ps: float, chosen: Sequence[int]
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, "samples n"]]:
        """Return the typical field and those of the chosen samples."""
        model = self.trained.model
        value = known.distance.clone()
        inside = torch.nonzero(known.row >= 0)[:, 0]
        if not len(inside):
            return value, value.repeat(len(chosen), 1)
        near = known.near[known.row[inside]]
        rows = PointRows(
            frame=torch.zeros(len(near), dtype=torch.long),
            points=near.points.float(),
            distance=near.distance,
            features=near.features,
        )
        one = torch.zeros(1, dtype=torch.long)
        lag = torch.tensor([time_ps], dtype=torch.float32)
        typical, amplitude = model.field(self.encoding, one, lag, rows)
        value[inside] = typical
        drawn = value.repeat(len(chosen), 1)
        if len(chosen):
            assert amplitude is not None, "this model draws no samples"
            moved = self.first.carried(near, self._motions(tuple(chosen), time_ps))
            drawn[:, inside] += (moved * amplitude.T).sum(dim=1)
        return value, drawn

    def _motions(self, chosen: tuple[int, ...], time_ps: float) -> Float[Tensor, "atoms channels"]:
        """Return how some samples move the atoms at a time; the last ones are kept."""
        if (chosen, time_ps) not in self._moving:
            self._moving.clear()
            motions = [self._motion(sample, time_ps) for sample in chosen]
            modes, residues = (torch.cat(parts) for parts in zip(*motions, strict=True))
            self._moving[chosen, time_ps] = self.first.motions(modes, residues)
        return self._moving[chosen, time_ps]

    def _motion(self, sample: int, time_ps: float) -> tuple[Tensor, Tensor]:
        r"""Return the random numbers of a sample at a time.

        .. math::
            u(t) = \sqrt p \, u_0 + \sqrt{1 - p} \, \sqrt{2 / M} \sum_m
            \cos(\omega_m t + \varphi_m), \qquad \omega_m \sim \mathrm{Cauchy}(1 / \tau)

        Nearly normal at any time, and smooth enough to be animated: the correlation of two
        times is :math:`p + (1 - p) e^{-|t - t'| / \tau}`, with the model's ``lasting`` p and
        ``memory_ps`` τ, as it was between the errors of the typical surface in training.
        """
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + sample) % 2**63)
        count = self.first.modes + self.first.residues
        uniform = torch.rand(2, count, _WAVES, generator=generator, dtype=torch.float64)
        stays = torch.randn(count, generator=generator, dtype=torch.float64)
        frequency = torch.tan(math.pi * (uniform[0] - 0.5)) / self.trained.memory_ps
        path = torch.cos(frequency * time_ps + 2 * math.pi * uniform[1]).sum(dim=1)
        passing = path * (2 * (1 - self.trained.lasting) / _WAVES) ** 0.5
        numbers = (passing + stays * self.trained.lasting**0.5).float()[None]
        return numbers[:, : self.first.modes], numbers[:, self.first.modes :]

    def still(self, lattice: Lattice) -> dict[str, Float[Tensor, "nx ny nz"]]:
        """Return no further trivial rows: nothing is known of this protein but its first frame."""
        del lattice
        return {}
