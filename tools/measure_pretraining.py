"""Does training on made-up motion of static structures help? Train with and without, and compare.

    undula prepare static structures/*.pdb.gz -o static --frames 12
    python tools/measure_pretraining.py --static static --real sets --out runs

The default model is trained on the pseudo-dynamics of some chains (``--chains``), and then on the
real ensembles but those of ``--held-out``, once from those weights and once from drawn ones, for
the same number of steps and with several seeds. What is printed are skill (1 − error / error of
the copied first frame, the error being the quantile loss of the training) and IoU at the fixed
points, over all later frames: of the held-out real proteins, and of chains whose pseudo-dynamics
were held out. Runs that are there already are not trained again.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from undula.cli.options import parser
from undula.config import TrainConfig, preset_file
from undula.data.prepare import surface_of
from undula.geometry.lattice import Lattice
from undula.io.datasets import Dataset, open_dataset
from undula.learn.progress import SilentProgress
from undula.surface.baselines import blurred, occupancy
from undula.surface.losses import quantile_loss
from undula.surface.trained import WEIGHTS
from undula.surface.trained_mixture import TrainedMixture
from undula.surface.training import train_mixture


def preset() -> TrainConfig:
    """Return the default preset."""
    p = parser("train", "")
    p.add_argument("--config", action="config")
    p.add_class_arguments(TrainConfig, as_group=False)
    options = p.parse_args(["--config", str(preset_file("default")), "--data=[none]", "--out=none"])
    options.pop("config")
    return TrainConfig(**vars(p.instantiate(options)))


def scores(model: TrainedMixture, dataset: Dataset) -> dict[str, float]:
    """Return skill and IoU at the fixed points, and IoU of the copied and blurred first frame."""
    quantile = preset().mixture.loss.quantile
    found: dict[str, list[float]] = {}
    for trajectory in dataset.trajectories:
        positions = torch.from_numpy(np.array(trajectory.positions[0])).double()
        structure = replace(dataset.structure, positions=positions)
        field = model.posed(structure, None, 0)
        points = torch.from_numpy(trajectory.fixed[:, :3]).double()
        known = field.known(points)
        surface = surface_of(structure, model.provenance["probe"])
        corners = positions.amin(dim=0) - 8, positions.amax(dim=0) + 8
        lattice = Lattice.covering(*corners, 0.6)
        soft = lattice.interpolate(
            blurred(occupancy(surface, lattice), lattice, model.blur), points
        )
        later = range(1, len(trajectory))
        for frame in later[:: max(1, len(later) // 12)]:
            true = torch.from_numpy(np.array(trajectory.fixed_distances(frame)))
            value = field.values(known, float(trajectory.times_ps[frame]), None)
            for prefix, one in (("", value), ("copied_", known.distance), ("blurred_", soft)):
                inside, real = one < 0, true < 0
                error = float(quantile_loss(one.float(), true, quantile))
                overlap = float((inside & real).sum() / (inside | real).sum())
                found.setdefault(f"{prefix}error", []).append(error)
                found.setdefault(f"{prefix}iou", []).append(overlap)
    means = {name: float(np.mean(values)) for name, values in found.items()}
    means["skill"] = 1 - means["error"] / means["copied_error"]
    return means


def trained(
    name: str,
    datasets: Sequence[Dataset],
    folder: Path,
    steps: int,
    seed: int,
    start_from: Path | None = None,
) -> TrainedMixture:
    """Train the default model, unless its run is there."""
    if (folder / name / WEIGHTS).is_file():
        return TrainedMixture.load(folder / name)
    config = preset()
    begun = time.perf_counter()
    fit = replace(config.fit, steps=steps, seed=seed, evaluate_every=steps, checkpoint_every=100)
    model = train_mixture(
        datasets,
        folder / name,
        model=config.mixture.model,
        loss=config.mixture.loss,
        batch=replace(config.mixture.batch, validation=0),
        fit_config=fit,
        progress=SilentProgress(),
        start_from=start_from,
    )
    print(
        f"{name}: {steps} steps, {time.perf_counter() - begun:.0f} s", file=sys.stderr, flush=True
    )
    return model


def table(rows: dict[str, list[TrainedMixture]], datasets: Sequence[Dataset], title: str) -> None:
    """Print one table: rows of models by columns of proteins, mean (spread) over seeds."""
    names = [dataset.structure.name for dataset in datasets]
    print(f"\n{title}\n\n| skill / IoU | " + " | ".join(names) + " | mean |")
    print("| --- " * (len(names) + 2) + "|")
    trivial: dict[str, list[float]] = {}
    for name, models in rows.items():
        every = [[scores(model, dataset) for dataset in datasets] for model in models]
        for still in ("copied", "blurred"):
            trivial[still] = [one[f"{still}_iou"] for one in every[0]]
        skill = np.array([[one["skill"] for one in seed] for seed in every])
        iou = np.array([[one["iou"] for one in seed] for seed in every])
        cells = [f"{skill[:, i].mean():+.3f} / {iou[:, i].mean():.3f}" for i in range(len(names))]
        spread = f" (± {skill.mean(axis=1).std():.3f} / {iou.mean(axis=1).std():.3f} over seeds)"
        cells.append(f"{skill.mean():+.3f} / {iou.mean():.3f}{spread if len(models) > 1 else ''}")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    for name, values in trivial.items():
        cells = [f"{value:.3f}" for value in [*values, float(np.mean(values))]]
        print(f"| {name} first frame | " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    """Train what is not there, and print both tables."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--static", type=Path, required=True, help="folder of undula prepare static")
    p.add_argument("--real", type=Path, required=True, help="folder of data sets of ensembles")
    p.add_argument("--out", type=Path, required=True, help="folder of runs")
    p.add_argument("--held-out", nargs="+", default=["1vii_A", "2xcj_A", "4bfh_A"])
    p.add_argument("--chains", type=int, default=50)
    p.add_argument("--steps", type=int, default=500)
    p.add_argument("--fine-steps", type=int, default=200)
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    words = p.parse_args()
    torch.set_flush_denormal(True)
    real = {folder.name: open_dataset(folder) for folder in sorted(words.real.iterdir())}
    held = [real[name] for name in words.held_out]
    kept = [dataset for name, dataset in real.items() if name not in words.held_out]
    folders = [one.parent for one in sorted(words.static.glob("*/manifest.json"))]
    static = [open_dataset(one) for one in folders if one.name not in words.held_out]
    order = torch.randperm(len(static), generator=torch.Generator().manual_seed(0)).tolist()
    chains = [static[i] for i in order[: words.chains]]
    others = [static[i] for i in order[words.chains :] if static[i].structure.name not in real]
    first = trained("pretrained", chains, words.out, words.steps, 0)
    rows: dict[str, list[TrainedMixture]] = {
        "pseudo-dynamics alone": [first],
        "drawn": [],
        "pretrained": [],
    }
    for seed in words.seeds:
        start = words.out / "pretrained"
        rows["drawn"].append(trained(f"drawn-{seed}", kept, words.out, words.fine_steps, seed))
        rows["pretrained"].append(
            trained(f"fine-{seed}", kept, words.out, words.fine_steps, seed, start)
        )
        table(rows, held, f"held-out real proteins, {len(rows['drawn'])} seeds")
    table(
        {"pseudo-dynamics alone": [first], "drawn": rows["drawn"]},
        others[:12],
        "held-out static chains",
    )


if __name__ == "__main__":
    main()
