"""Training a surface model: which frames, which points, which losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from undula.errors import InputError, UsageError
from undula.io.datasets import Dataset, PreparedTrajectory, Rows
from undula.learn.task import ParameterGroup
from undula.surface.losses import (
    LossConfig,
    distance_loss,
    eikonal_loss,
    latent_loss,
    manifold_loss,
    normal_loss,
)
from undula.surface.model import SurfaceModel, SurfaceModelConfig, System


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """What one training step sees.

    Attributes:
        frames: How many frames.
        surface: Surface points per frame (manifold and normal terms).
        pool: Labelled points per frame around the surface (distance and eikonal terms); they
            come from near, local and uniform in the proportion in which they were prepared.
        validation: Part of the training frames, the last in time of each trajectory, that is
            kept for validation instead.
        until_ps: Frames later than this are never read; by default all are.
    """

    frames: int = 4
    surface: int = 512
    pool: int = 1024
    validation: float = 0.2
    until_ps: float | None = None

    def __post_init__(self) -> None:
        for name in ("frames", "surface", "pool"):
            if getattr(self, name) < 1:
                raise UsageError(f"batch.{name} should be at least 1")
        if self.until_ps is not None and not self.until_ps >= 0:
            raise UsageError(f"batch.until_ps should not be negative, but is {self.until_ps}")
        if not 0 <= self.validation < 1:
            raise UsageError(f"batch.validation should be in [0, 1), not {self.validation}")


@dataclass(frozen=True)
class Frame:
    """One frame of one training trajectory, by index."""

    trajectory: int
    frame: int


@dataclass(frozen=True, eq=False)
class SurfaceBatch:
    """Points of some frames.

    Attributes:
        trajectory: Index of each frame's trajectory among those of training.
        lag_ps: Time since the first frame.
        surface: Rows of `undula.io.datasets.SURFACE_COLUMNS`.
        pool: Rows of `undula.io.datasets.POOL_COLUMNS`.
    """

    trajectory: Tensor
    lag_ps: Float[Tensor, " frames"]
    surface: Float[Tensor, "frames on 11"]
    pool: Float[Tensor, "frames around 11"]


class SurfaceTask:
    """The task of learning moving surfaces from prepared data sets.

    Trajectories marked as holdout are never read, nor frames after ``batch.until_ps``.

    Args:
        datasets: One per system.
        model: Sizes and choices of the model.
        loss: Weights.
        batch: What a step sees.
        seed: Of the initial weights.

    Raises:
        InputError: No training frame is left.
    """

    def __init__(
        self,
        datasets: Sequence[Dataset],
        model: SurfaceModelConfig,
        loss: LossConfig,
        batch: BatchConfig,
        *,
        seed: int = 0,
    ) -> None:
        self.loss_config = loss
        self.batch_config = batch
        self.trajectories: list[PreparedTrajectory] = []
        self.owners: list[int] = []
        self.training: list[Frame] = []
        self.validation: list[Frame] = []
        for system, dataset in enumerate(datasets):
            for trajectory in dataset.trajectories:
                if not trajectory.holdout:
                    self._add(trajectory, system)
        if not self.training:
            raise InputError("no training frames: all trajectories are marked as holdout or empty")
        lags = np.concatenate([t.times_ps for t in self.trajectories])
        known = lags[lags <= self._until]
        later = known[known > 0]
        if not len(later):
            later = np.ones(1)  # a static structure: any horizon serves
        self.module = SurfaceModel(
            model,
            [System.of(dataset.structure) for dataset in datasets],
            [
                (trajectory.name, owner)
                for trajectory, owner in zip(self.trajectories, self.owners, strict=True)
            ],
            shortest_ps=float(later.min()),
            horizon_ps=float(later.max()),
            generator=torch.Generator().manual_seed(seed),
        )

    @property
    def _until(self) -> float:
        return np.inf if self.batch_config.until_ps is None else self.batch_config.until_ps

    def _add(self, trajectory: PreparedTrajectory, system: int) -> None:
        frames = np.nonzero(trajectory.times_ps <= self._until)[0].tolist()
        kept = len(frames) - int(len(frames) * self.batch_config.validation)
        index = len(self.trajectories)
        self.trajectories.append(trajectory)
        self.owners.append(system)
        self.training += [Frame(index, frame) for frame in frames[:kept]]
        self.validation += [Frame(index, frame) for frame in frames[kept:]]

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return network and latent codes; the codes learn ten times as fast, as in DSR."""
        network = list(self.module.network.parameters())
        return [
            ParameterGroup(name="network", parameters=network),
            ParameterGroup(
                name="latent codes", parameters=[self.module.latents], learning_rate_factor=10.0
            ),
        ]

    def batch(self, step: int, generator: torch.Generator) -> SurfaceBatch:
        """Draw frames with replacement and a contiguous slice of shuffled points of each."""
        del step
        config = self.batch_config
        chosen = torch.randint(len(self.training), (config.frames,), generator=generator)
        return self._read([self.training[i] for i in chosen.tolist()], generator)

    def _read(self, frames: Sequence[Frame], generator: torch.Generator) -> SurfaceBatch:
        config = self.batch_config
        surfaces, pools, lags = [], [], []
        for frame in frames:
            trajectory = self.trajectories[frame.trajectory]
            rows = trajectory.surface(frame.frame)
            surfaces.append(adjoining_rows(rows, 0, len(rows), config.surface, generator))
            pools.append(
                _proportional(
                    trajectory.pool(frame.frame), trajectory.pool_rows, config.pool, generator
                )
            )
            lags.append(float(trajectory.times_ps[frame.frame]))
        return SurfaceBatch(
            torch.tensor([frame.trajectory for frame in frames]),
            torch.tensor(lags),
            torch.from_numpy(np.stack(surfaces)),
            torch.from_numpy(np.stack(pools)),
        )

    def loss(self, batch: SurfaceBatch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted loss of a batch and its terms."""
        del step
        config = self.loss_config
        model = self.module
        latents = model.latents[batch.trajectory]
        conditions = model.conditions(batch.lag_ps, latents)
        terms: dict[str, list[Tensor]] = {}
        for row, trajectory in enumerate(batch.trajectory.tolist()):
            system = self.owners[trajectory]
            unit = 1.0
            if config.units == "normalised":
                unit = 1 / float(model.scales[system])
            for name, value in self._terms(batch, row, conditions[row], system, unit).items():
                terms.setdefault(name, []).append(value)
        means = {name: torch.stack(values).mean() for name, values in terms.items()}
        if config.latent and model.config.latent:
            means["latent"] = latent_loss(latents)
        weights = {name: getattr(config, name) for name in means}
        total = torch.stack([weights[name] * value for name, value in means.items()]).sum()
        return total, {name: value.detach() for name, value in means.items()}

    def _terms(
        self,
        batch: SurfaceBatch,
        row: int,
        condition: Tensor,
        system: int,
        unit: float,
    ) -> dict[str, Tensor]:
        config, model = self.loss_config, self.module
        has_base = model.config.base == "first-frame"
        terms = {}
        if config.manifold or config.normal:
            points, normals, _, base, base_gradient = batch.surface[row].split([3, 3, 1, 1, 3], 1)
            if config.normal:
                known = (base[:, 0], base_gradient) if has_base else None
                value, gradient = model.field_and_gradient(points, condition, system, known)
                terms["normal"] = normal_loss(gradient, normals)
            else:
                value = model.field(points, condition, system, base[:, 0] if has_base else None)
            if config.manifold:
                terms["manifold"] = manifold_loss(value) * unit
        if config.distance or config.eikonal:
            points, distance, _, base, base_gradient = batch.pool[row].split([3, 1, 3, 1, 3], 1)
            if config.eikonal:
                known = (base[:, 0], base_gradient) if has_base else None
                value, gradient = model.field_and_gradient(points, condition, system, known)
                terms["eikonal"] = eikonal_loss(gradient)
            else:
                value = model.field(points, condition, system, base[:, 0] if has_base else None)
            if config.distance:
                terms["distance"] = distance_loss(value, distance[:, 0]) * unit
        return terms

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Score the validation frames, or the training frames where there are none for it.

        Returns:
            ``distance``: mean |f − d| near the surface, Å; ``copied``: the same for the first
            frame; ``skill``: 1 − distance / copied, above 0 when better than the copied frame.
        """
        model = self.module
        device = model.centres.device
        error = copied = 0.0
        frames = self.validation or self.training
        for frame in frames:
            trajectory = self.trajectories[frame.trajectory]
            rows = trajectory.pool(frame.frame)[: min(trajectory.pool_rows[0], 2048)]
            pool = torch.from_numpy(np.array(rows)).to(device)
            points, distance, _, base, _ = pool.split([3, 1, 3, 1, 3], 1)
            lag = torch.tensor([float(trajectory.times_ps[frame.frame])], device=device)
            condition = model.conditions(lag, model.latents[frame.trajectory][None])[0]
            known = base[:, 0] if model.config.base == "first-frame" else None
            value = model.field(points, condition, self.owners[frame.trajectory], known)
            error += float((value - distance[:, 0]).abs().mean())
            copied += float((base - distance).abs().mean())
        return {
            "distance": error / len(frames),
            "copied": copied / len(frames),
            "skill": 1 - error / copied if copied > 0 else 0.0,
        }


def adjoining_rows(
    rows: Rows, first: int, end: int, count: int, generator: torch.Generator
) -> np.ndarray:
    """Return ``count`` adjoining rows of a block from a random start, around its end if need be.

    Args:
        rows: Shuffled when they were written, so that adjoining rows are a random subset.
        first: Where the block begins.
        end: Where it ends.
        count: How many rows.
        generator: Draws the start.
    """
    start = int(torch.randint(end - first, (1,), generator=generator))
    if first + start + count <= end:
        return np.array(rows[first + start : first + start + count])
    return np.array(rows[first + np.arange(start, start + count) % (end - first)])


def _proportional(
    rows: Rows, blocks: Sequence[int], count: int, generator: torch.Generator
) -> np.ndarray:
    """Return ``count`` rows, from each block in proportion to its length."""
    ends = np.cumsum([0, *blocks])
    shares = np.floor(ends / ends[-1] * count).astype(int)
    parts = [
        adjoining_rows(
            rows, int(ends[i]), int(ends[i + 1]), int(shares[i + 1] - shares[i]), generator
        )
        for i in range(len(blocks))
        if shares[i + 1] > shares[i]
    ]
    return np.concatenate(parts)
