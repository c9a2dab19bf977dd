"""Small MoE-DSR models with random weights, for tests that need no training."""

from __future__ import annotations

from dataclasses import replace

import torch

from undula.nn.implicit import ImplicitConfig
from undula.nn.mixture import GateConfig
from undula.nn.radial import RadialConfig
from undula.surface.baselines import Blur
from undula.surface.clouds import CloudConfig
from undula.surface.experts import ExpertConfig
from undula.surface.geoan import GeoANConfig
from undula.surface.mixture import MixtureModel, MixtureModelConfig
from undula.surface.qmpnn import QMPNNConfig
from undula.surface.time import TimeConfig
from undula.surface.trained_mixture import TrainedMixture

ROUTER = QMPNNConfig(
    features=GeoANConfig(embedding=4, hidden=8, size=6),
    channels=(16, 8, 8),
    radial=RadialConfig(centres=8, hidden=16, knots=256),
    readout=16,
    code=8,
)
LOCAL = MixtureModelConfig(qmpnn=ROUTER, experts=ExpertConfig(width=16))
CONTRACTION = replace(LOCAL, experts=ExpertConfig(kind="contraction", width=16, channels=4))
PAPER = MixtureModelConfig(
    qmpnn=replace(ROUTER, normals=False),
    cloud=CloudConfig(smoothing=9.0),
    gate=GateConfig(balance="paper", memory=0.0),
    experts=ExpertConfig(
        kind="paper",
        network=ImplicitConfig(
            depth=4, width=64, skip_at=2, harmonics="paper", degree=3, condition_start="random"
        ),
    ),
    time=TimeConfig(kind="linear"),
    latent=8,
    latent_from="fitted",
    code=True,
    samples=False,
)
"""The preset ``paper`` with smaller networks."""


def fresh(config: MixtureModelConfig, proteins: int = 3) -> MixtureModel:
    """Return a model as training begins with."""
    return MixtureModel(
        config,
        proteins=proteins,
        shortest_ps=5.0,
        horizon_ps=500.0,
        generator=torch.Generator().manual_seed(0),
    ).eval()


def stirred(config: MixtureModelConfig, proteins: int = 3) -> MixtureModel:
    """Return a model in which no weight is zero: experts move the surface by about 1 Å."""
    model = fresh(config, proteins)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.experts.named_parameters():
            if name.split(".")[1] in ("scale", "last"):
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


def bound(model: MixtureModel) -> TrainedMixture:
    """Return a model ready to forecast."""
    return TrainedMixture(
        model=model.requires_grad_(False),
        blur=Blur(),
        memory_ps=20.0,
        lasting=0.3,
        provenance={"probe": 1.4, "steps": 0, "proteins": 0, "training_frames": 0},
    )
