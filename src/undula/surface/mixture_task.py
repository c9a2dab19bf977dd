"""Training a MoE-DSR model: which proteins, which frames, which points, which losses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from undula.errors import InputError, UsageError
from undula.io.datasets import Dataset, PreparedTrajectory
from undula.learn.recipe import batch_seed
from undula.learn.task import ParameterGroup, moved
from undula.surface.clouds import RouterCloud, collated, router_cloud
from undula.surface.experts import PointRows
from undula.surface.first_frame import FirstFrame, LocalPoints
from undula.surface.latent import fitted_latent
from undula.surface.losses import (
    MixtureLossConfig,
    eikonal_loss,
    energy_score,
    latent_loss,
    manifold_loss,
    normal_loss,
    quantile_loss,
)
from undula.surface.mixture import Encoding, MixtureModel, MixtureModelConfig
from undula.surface.task import adjoining_rows


@dataclass(frozen=True, kw_only=True)
class MixtureBatchConfig:
    """What one training step sees.

    Attributes:
        proteins: Trajectories (with replacement), N_B.
        frames: Frames of each.
        points: Fixed points of each frame (experts of kind local and contraction).
        samples: Samples of each frame for the energy score, at least 2.
        surface: Surface points of each frame (experts of kind paper).
        pool: Points around them for the eikonal term (experts of kind paper).
        validation: How many proteins are kept for validation, evenly over the data sets in
            their order; none if fewer than three would be left for training. Or which, by name.
        until_ps: Frames later than this are never read; by default all are.
        shuffled_times: Whether training is told the times of other frames: each trajectory's
            later times change places once, by the seed. A control that shows whether time is
            used; validation keeps the true times.
    """

    proteins: int = 4
    frames: int = 2
    points: int = 512
    samples: int = 4
    surface: int = 512
    pool: int = 576
    validation: int | Sequence[str] = 2
    until_ps: float | None = None
    shuffled_times: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.validation, str):
            raise UsageError(f"batch.validation is a number or a list, not {self.validation}")
        if not isinstance(self.validation, int):
            object.__setattr__(self, "validation", tuple(self.validation))
        elif self.validation < 0:
            raise UsageError("batch.validation should be at least 0")
        if self.until_ps is not None and not self.until_ps >= 0:
            raise UsageError(f"batch.until_ps should not be negative, but is {self.until_ps}")
        if self.samples < 2:
            raise UsageError("batch.samples should be at least 2")
        for name in ("proteins", "frames", "points", "surface", "pool"):
            if getattr(self, name) < 1:
                raise UsageError(f"batch.{name} should be at least 1")


@dataclass(frozen=True, eq=False)
class MixtureBatch:
    """Some frames of some proteins.

    Attributes:
        keys: Which training protein each protein of the batch is.
        cloud: Of the proteins' first frames.
        scales: Å per unit of the experts' coordinates.
        protein: Which protein of the batch each frame shows.
        lag_ps: Time of each frame since the first.
        rows: Points; for experts of kind paper the surface points, then the pool.
        distance: True distance at fixed points, Å; normals' place is in ``normals``.
        normals: True normals at surface points.
        on_surface: How many of the rows are surface points.
        tremble: Random motions carried to the points: frames × samples × 3 × points.
    """

    keys: Int[Tensor, " proteins"]
    cloud: RouterCloud
    scales: Float[Tensor, " proteins"]
    protein: Int[Tensor, " frames"]
    lag_ps: Float[Tensor, " frames"]
    rows: PointRows
    distance: Float[Tensor, " n"]
    normals: Float[Tensor, "on 3"]
    on_surface: int
    tremble: Float[Tensor, "frames samples 3 points"]


class MixtureTask:
    """The task of learning how surfaces of any protein move.

    Trajectories marked as holdout are never read, nor frames after ``batch.until_ps``.

    Args:
        datasets: One per protein.
        model: Sizes and choices of the model.
        loss: Weights.
        batch: What a step sees.
        seed: Of the initial weights.

    Raises:
        InputError: No training frame is left, or no trajectory has a later frame.
        UsageError: The losses do not suit the experts.
    """

    def __init__(
        self,
        datasets: Sequence[Dataset],
        model: MixtureModelConfig,
        loss: MixtureLossConfig,
        batch: MixtureBatchConfig,
        *,
        seed: int = 0,
    ) -> None:
        self.loss_config = loss
        self.batch_config = batch
        self.paper = model.experts.kind == "paper"
        loss.check(paper=self.paper, samples=model.samples)
        self.datasets = list(datasets)
        self.trajectories: list[PreparedTrajectory] = []
        self.owners: list[int] = []
        self.frames: list[list[int]] = []
        for system, dataset in enumerate(datasets):
            for trajectory in dataset.trajectories:
                frames = np.nonzero(trajectory.times_ps <= self._until)[0].tolist()
                if not trajectory.holdout and (self.paper or len(frames) > 1):
                    self.trajectories.append(trajectory)
                    self.owners.append(system)
                    self.frames.append(frames if self.paper else frames[1:])
        if not self.trajectories:
            raise InputError(
                "no training frames: all trajectories are marked as holdout or have one frame only"
            )
        names = [dataset.structure.name for dataset in datasets]
        kept = validation_systems(sorted(set(self.owners)), names, batch.validation)
        self.validation = [i for i, owner in enumerate(self.owners) if owner in kept]
        self.training = [i for i, owner in enumerate(self.owners) if owner not in kept]
        if not self.training:
            raise InputError("all proteins are kept for validation, none is left for training")
        self.told_ps = self._told(seed) if batch.shuffled_times else {}
        lags = np.concatenate(
            [t.times_ps[f] for t, f in zip(self.trajectories, self.frames, strict=True)]
        )
        later = lags[lags > 0]
        self._local: dict[int, LocalPoints] = {}
        self._clouds: dict[int, RouterCloud] = {}
        self._firsts: dict[int, FirstFrame] = {}
        self.module = MixtureModel(
            model,
            proteins=len(datasets),
            shortest_ps=float(later.min()) if len(later) else 1.0,
            horizon_ps=float(later.max()) if len(later) else 1.0,
            generator=torch.Generator().manual_seed(seed),
        )
        if not self.paper:
            self._normalise()

    def _told(self, seed: int) -> dict[tuple[int, int], float]:
        """Return the time that training is told for each later frame: that of another one."""
        told: dict[tuple[int, int], float] = {}
        for trajectory in self.training:
            times = self.trajectories[trajectory].times_ps
            later = [frame for frame in self.frames[trajectory] if frame > 0]
            generator = torch.Generator().manual_seed(batch_seed(seed, trajectory))
            order = torch.randperm(len(later), generator=generator).tolist()
            for frame, place in zip(later, order, strict=True):
                told[trajectory, frame] = float(times[later[place]])
        return told

    def _lag(self, trajectory: int, frame: int) -> float:
        true = float(self.trajectories[trajectory].times_ps[frame])
        return self.told_ps.get((trajectory, frame), true)

    @property
    def _until(self) -> float:
        return np.inf if self.batch_config.until_ps is None else self.batch_config.until_ps

    def first_frame(self, trajectory: int) -> FirstFrame:
        """Return the first frame of a trajectory; paper experts see it as it lies."""
        if trajectory not in self._firsts:
            dataset = self.datasets[self.owners[trajectory]]
            positions = np.array(self.trajectories[trajectory].positions[0], dtype=np.float64)
            structure = replace(dataset.structure, positions=torch.from_numpy(positions))
            probe = float(dataset.manifest["request"]["rules"]["probe"])
            self._firsts[trajectory] = FirstFrame(
                structure, self.module.config.local, probe, turned=not self.paper
            )
        return self._firsts[trajectory]

    def cloud(self, trajectory: int) -> RouterCloud:
        """Return the router's cloud of a trajectory's first frame."""
        if trajectory not in self._clouds:
            first = self.first_frame(trajectory)
            cloud = router_cloud(first.structure, self.module.config.cloud)
            self._clouds[trajectory] = cloud.to(dtype=torch.float32)
        return self._clouds[trajectory]

    def local(self, trajectory: int) -> LocalPoints:
        """Return the fixed points of a trajectory with what they know of the first frame."""
        if trajectory not in self._local:
            first = self.first_frame(trajectory)
            fixed = torch.from_numpy(self.trajectories[trajectory].fixed)
            points, distance, direction = fixed.split([3, 1, 3], dim=1)
            turned = direction.double() @ first.axes
            self._local[trajectory] = first.local(first.to_own(points), distance[:, 0], turned)
            first.forget_blurs()
        return self._local[trajectory]

    def _normalise(self) -> None:
        """Measure mean and spread of the experts' features on training proteins."""
        with torch.no_grad():
            found = []
            for trajectory in self.training:
                one = torch.zeros(1, dtype=torch.long)
                encoding = self.module.eval().encode(
                    self.cloud(trajectory), self._scales([trajectory]), keys=one
                )
                rows = self._rows(self.local(trajectory)[:1024], 0)
                found.append(self.module.features(encoding, one, rows))
            every = torch.cat(found)
            self.module.mean.copy_(every.mean(dim=0))
            self.module.spread.copy_(every.std(dim=0) + 0.05)
        self.module.train()

    def _scales(self, trajectories: Sequence[int]) -> Tensor:
        return torch.tensor([self.first_frame(t).scale for t in trajectories])

    def _rows(self, points: LocalPoints, frame: int) -> PointRows:
        return PointRows(
            frame=torch.full((len(points),), frame),
            points=points.points.float(),
            distance=points.distance,
            features=points.features,
        )

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return router with gate, experts and latent codes; codes learn ten times as fast."""
        module = self.module
        latents = [] if module.latents is None else [module.latents]
        known = {id(parameter) for parameter in latents}
        others = [p for p in module.parameters() if id(p) not in known]
        groups = [ParameterGroup(name="network", parameters=others)]
        if latents:
            groups.append(
                ParameterGroup(name="latent codes", parameters=latents, learning_rate_factor=10.0)
            )
        return groups

    def batch(self, step: int, generator: torch.Generator) -> MixtureBatch:
        """Draw trajectories with replacement, frames and points of each."""
        del step
        picked = torch.randint(
            len(self.training), (self.batch_config.proteins,), generator=generator
        )
        chosen = [self.training[i] for i in sorted(picked.tolist())]
        frames = [
            (trajectory, self.frames[trajectory][i])
            for trajectory in chosen
            for i in torch.randint(
                len(self.frames[trajectory]), (self.batch_config.frames,), generator=generator
            ).tolist()
        ]
        return self._read(frames, generator)

    def _read(self, frames: Sequence[tuple[int, int]], generator: torch.Generator) -> MixtureBatch:
        distinct = sorted({trajectory for trajectory, _ in frames})
        parts: list[PointRows] = []
        distances: list[Tensor] = []
        normals: list[Tensor] = []
        trembles: list[Tensor] = []
        for number, (trajectory, frame) in enumerate(frames):
            if self.paper:
                rows, normal = self._paper_rows(trajectory, frame, number, generator)
                parts.append(rows)
                normals.append(normal)
                continue
            local = self.local(trajectory)
            picked = torch.randperm(len(local), generator=generator)[: self.batch_config.points]
            points = local[picked]
            parts.append(self._rows(points, number))
            true = self.trajectories[trajectory].fixed_distances(frame)
            distances.append(torch.from_numpy(np.array(true))[picked])
            if self.module.config.samples:
                trembles.append(self._tremble(trajectory, points, generator))
        return MixtureBatch(
            keys=torch.tensor([self.owners[t] for t in distinct]),
            cloud=collated([self.cloud(t) for t in distinct]),
            scales=self._scales(distinct),
            protein=torch.tensor([distinct.index(t) for t, _ in frames]),
            lag_ps=torch.tensor([self._lag(t, f) for t, f in frames]),
            rows=PointRows(*(torch.cat([getattr(p, name) for p in parts]) for name in _ROW_PARTS)),
            distance=torch.cat(distances) if distances else torch.zeros(0),
            normals=torch.cat(normals) if normals else torch.zeros(0, 3),
            on_surface=len(normals[0]) if normals else 0,
            tremble=torch.stack(trembles) if trembles else torch.zeros(len(frames), 0, 3, 0),
        )

    def _paper_rows(
        self, trajectory: int, frame: int, number: int, generator: torch.Generator
    ) -> tuple[PointRows, Tensor]:
        """Return surface points and the points around them, and the normals of the former."""
        config, read = self.batch_config, self.trajectories[trajectory]
        on = read.surface(frame)
        surface = adjoining_rows(on, 0, len(on), config.surface, generator)
        # The paper's D is local and uniform; the narrow Gaussian's rows come first.
        near, every = read.pool_rows[0], sum(read.pool_rows)
        around = adjoining_rows(read.pool(frame), near, every, config.pool, generator)
        points = torch.from_numpy(np.concatenate([surface[:, :3], around[:, :3]]))
        centre = self.first_frame(trajectory).centre.float()
        rows = PointRows(
            frame=torch.full((len(points),), number),
            points=points - centre,
            distance=torch.zeros(len(points)),
            features=torch.zeros(len(points), 0),
        )
        return rows, torch.from_numpy(surface[:, 3:6])

    def _tremble(
        self, trajectory: int, points: LocalPoints, generator: torch.Generator
    ) -> Float[Tensor, "samples 3 points"]:
        first, samples = self.first_frame(trajectory), self.batch_config.samples
        modes = torch.randn(samples, first.modes, generator=generator)
        residues = torch.randn(samples, first.residues, generator=generator)
        return first.tremble(points, modes, residues)

    def loss(self, batch: MixtureBatch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted loss of a batch and its terms."""
        config, module = self.loss_config, self.module
        encoding = module.encode(batch.cloud, batch.scales, keys=batch.keys, step=step)
        terms = self._paper_terms(batch, encoding) if self.paper else self._terms(batch, encoding)
        if config.balance:
            terms["balance"] = module.gate.balance(encoding.gating)
        if config.latent:
            terms["latent"] = latent_loss(encoding.latent)
        weights = {name: getattr(config, name) for name in terms}
        total = torch.stack([weights[name] * value for name, value in terms.items()]).sum()
        return total, {name: value.detach() for name, value in terms.items()}

    def _terms(self, batch: MixtureBatch, encoding: Encoding) -> dict[str, Tensor]:
        config = self.loss_config
        value, amplitude = self.module.field(encoding, batch.protein, batch.lag_ps, batch.rows)
        terms = {"distance": quantile_loss(value, batch.distance, config.quantile)}
        if amplitude is not None and config.energy:
            frames = len(batch.protein)
            moved = torch.einsum("fskn,fnk->fsn", batch.tremble, amplitude.reshape(frames, -1, 3))
            typical = value.detach().reshape(frames, 1, -1)
            terms["energy"] = energy_score(typical + moved, batch.distance.reshape(frames, -1))
        return terms

    def _paper_terms(self, batch: MixtureBatch, encoding: Encoding) -> dict[str, Tensor]:
        config = self.loss_config
        value, gradient = self.module.field_and_gradient(
            encoding, batch.protein, batch.lag_ps, batch.rows
        )
        frames, on = len(batch.protein), batch.on_surface
        value, gradient = value.reshape(frames, -1), gradient.reshape(frames, -1, 3)
        scale = encoding.scales[batch.protein][:, None].to(value)
        terms = {"manifold": manifold_loss((value[:, :on] / scale).flatten())}
        if config.normal:
            terms["normal"] = normal_loss(gradient[:, :on].flatten(0, 1), batch.normals)
        if config.eikonal:
            terms["eikonal"] = eikonal_loss(gradient[:, on:].flatten(0, 1))
        return terms

    @torch.no_grad()
    def forecasts(
        self, trajectory: int, most: int, points: int = 2048
    ) -> Iterator[tuple[float, Tensor, Tensor | None, Tensor]]:
        """Forecast some frames of a trajectory at its first fixed points.

        Where codes are fitted, a protein kept for validation gets one by its first frame, as any
        protein does when the model is used.

        Args:
            trajectory: Its number.
            most: About how many frames, evenly spaced.
            points: How many fixed points.

        Yields:
            Time in ps, typical field, amplitudes of samples where there are any, true field.
        """
        read, frames = self.trajectories[trajectory], self.frames[trajectory]
        device = self.module.gate.share.device
        one = torch.zeros(1, dtype=torch.long, device=device)
        encoding = self.module.encode(
            self.cloud(trajectory).to(device=device),
            self._scales([trajectory]).to(device),
            keys=one + self.owners[trajectory],
            latent=self._unseen_latent(trajectory),
        )
        rows = moved(self._rows(self.local(trajectory)[:points], 0), device)
        for frame in frames[:: max(1, len(frames) // most)]:
            lag = float(read.times_ps[frame])
            value, amplitude = self.module.field(
                encoding, one, torch.tensor([lag], device=device), rows
            )
            true = torch.from_numpy(np.array(read.fixed_distances(frame)[:points]))
            yield lag, value.cpu(), None if amplitude is None else amplitude.cpu(), true

    def _unseen_latent(self, trajectory: int) -> Float[Tensor, "1 latent"] | None:
        """Return the code that a protein kept for validation gets where codes are fitted.

        No step has read that protein, so its own code is as drawn. None for other proteins.
        """
        if self.module.latents is None or trajectory not in self.validation:
            return None
        return fitted_latent(self.module, self.first_frame(trajectory))

    def residuals(self, trajectory: int, most: int = 25) -> tuple[np.ndarray, Tensor]:
        """Return times (ps) of some frames, and true less typical field at fixed points, Å."""
        found = [(lag, true - value) for lag, value, _, true in self.forecasts(trajectory, most)]
        return np.array([lag for lag, _ in found]), torch.stack([error for _, error in found])

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Score whole proteins kept for validation; training proteins where there are none.

        Returns:
            ``distance``: quantile loss at the fixed points; ``copied``: that of the first frame;
            ``skill``: 1 − distance / copied; ``iou``: of the inside among the fixed points, and
            ``copied_iou``; for a distributional model ``energy`` and ``energy_still``, the score
            without any spread. All are means over trajectories.
        """
        chosen = self.validation or self.training
        found = [self._measured(trajectory) for trajectory in chosen]
        means = {name: float(np.mean([one[name] for one in found])) for name in found[0]}
        means["skill"] = 1 - means["distance"] / means["copied"] if means["copied"] > 0 else 0.0
        return means

    def _measured(self, trajectory: int) -> dict[str, float]:
        local = self.local(trajectory)[:2048]
        generator = torch.Generator().manual_seed(trajectory)
        quantile = self.loss_config.quantile
        sums: dict[str, list[float]] = {}
        for _, value, amplitude, true in self.forecasts(trajectory, most=12):
            scores = {
                "distance": float(quantile_loss(value, true, quantile)),
                "copied": float(quantile_loss(local.distance, true, quantile)),
                "iou": _overlap(value, true),
                "copied_iou": _overlap(local.distance, true),
            }
            if amplitude is not None:
                motions = self._tremble(trajectory, local, generator)
                drawn = value + (motions * amplitude.T).sum(dim=1)
                scores["energy"] = float(energy_score(drawn[None], true[None]))
                still = value.expand_as(drawn)
                scores["energy_still"] = float(energy_score(still[None], true[None]))
            for name, number in scores.items():
                sums.setdefault(name, []).append(number)
        return {name: float(np.mean(values)) for name, values in sums.items()}


_ROW_PARTS = ("frame", "points", "distance", "features")


def validation_systems(
    systems: Sequence[int], names: Sequence[str], wanted: int | Sequence[str]
) -> set[int]:
    """Choose proteins for validation.

    Args:
        systems: The numbers of those with training frames.
        names: Of all.
        wanted: How many, evenly over the list, none if too few are left; or which, by name.

    Raises:
        InputError: A name is not among them.
    """
    if not isinstance(wanted, int):
        missing = sorted(set(wanted) - {names[system] for system in systems})
        if missing:
            raise InputError(f"there is no protein {missing[0]} to keep for validation")
        return {system for system in systems if names[system] in wanted}
    count = wanted
    if count == 0 or len(systems) - count < 3:
        return set()
    step = len(systems) / count
    return {systems[int((i + 0.5) * step)] for i in range(count)}


def _overlap(value: Tensor, true: Tensor) -> float:
    inside, real = value < 0, true < 0
    return float((inside & real).sum() / (inside | real).sum().clamp(min=1))
