"""MoE-DSR: a router that reads a protein's first surface, and a few experts that move it.

Everything the model knows of a protein comes from its first frame, so it serves proteins that
it was never trained on.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from undula.errors import InputError, UsageError
from undula.learn.checkpoint import check_dtypes
from undula.nn.implicit import ImplicitConfig, ImplicitNetwork
from undula.nn.mixture import Dispatch, Gate, GateConfig, Gating, mixture
from undula.nn.radial import RadialConfig
from undula.nn.rows import rows_of
from undula.surface.backbones.dmasif import DMaSIF, DMaSIFConfig
from undula.surface.backbones.point_transformer import PointTransformer, PointTransformerConfig
from undula.surface.backbones.pointcnn import PointCNN, PointCNNConfig
from undula.surface.backbones.pointmlp import PointMLP, PointMLPConfig
from undula.surface.backbones.pointnet2 import PointNet2, PointNet2Config
from undula.surface.clouds import CloudConfig, RouterCloud
from undula.surface.experts import (
    ContractionInputs,
    ExpertConfig,
    FeatureExpert,
    LocalInputs,
    PointRows,
)
from undula.surface.first_frame import REACH, LocalConfig
from undula.surface.geoan import GeoAN, GeoANConfig
from undula.surface.qmpnn import QMPNN, QMPNNConfig
from undula.surface.router import RouterOutput
from undula.surface.time import TimeConfig, time_features

BACKBONES: dict[str, tuple[type[nn.Module], type]] = {
    "pointnet++": (PointNet2, PointNet2Config),
    "pointcnn": (PointCNN, PointCNNConfig),
    "point-transformer": (PointTransformer, PointTransformerConfig),
    "pointmlp": (PointMLP, PointMLPConfig),
    "dmasif": (DMaSIF, DMaSIFConfig),
}
"""The routers beside Q-MPNN: module and configuration."""
ROUTERS = ("q-mpnn", *BACKBONES)
_ONSET_PS = 0.5
"""After about this time the surface has left the first frame's, to begin with."""


@dataclass(frozen=True, kw_only=True)
class MixtureModelConfig:
    """What a MoE-DSR model is made of.

    Attributes:
        router: "q-mpnn", or one of the point networks of the paper's Table 4.
        width: Channels of a point network as a multiple of the published ones.
        qmpnn: Sizes of Q-MPNN; the chemistry (``qmpnn.features``) and ``qmpnn.code`` serve the
            point networks too.
        cloud: How the first frame becomes the router's cloud.
        gate: How experts are chosen.
        experts: Their form.
        local: What a point knows of the first frame (experts of kind local, and samples).
        time: Features of time.
        latent: Length of the latent code z.
        latent_from: "encoder" computes z from the router's code; "fitted" learns one for each
            training protein and, for an unseen one, fits it to the first frame, as DSR needs.
        code: Whether the experts see the router's code, as in the paper, and not the gate alone.
        samples: Whether the model is distributional: it learns how far samples spread.
    """

    router: Literal[
        "q-mpnn", "pointnet++", "pointcnn", "point-transformer", "pointmlp", "dmasif"
    ] = "q-mpnn"
    width: float = 0.25
    qmpnn: QMPNNConfig = field(default_factory=QMPNNConfig)
    cloud: CloudConfig = field(default_factory=CloudConfig)
    gate: GateConfig = field(default_factory=GateConfig)
    experts: ExpertConfig = field(default_factory=ExpertConfig)
    local: LocalConfig = field(default_factory=LocalConfig)
    time: TimeConfig = field(default_factory=TimeConfig)
    latent: int = 4
    latent_from: Literal["encoder", "fitted"] = "encoder"
    code: bool = False
    samples: bool = True

    def __post_init__(self) -> None:
        if self.router not in ROUTERS:
            raise UsageError(f"there is no router {self.router}; there are {', '.join(ROUTERS)}")
        if not self.width > 0:
            raise UsageError(f"width should be positive, not {self.width}")
        if self.latent < 0:
            raise UsageError(f"latent should not be negative, it is {self.latent}")
        if self.latent_from not in ("encoder", "fitted"):
            raise UsageError(f"latent_from is encoder or fitted, not {self.latent_from}")
        if self.samples and self.experts.kind == "paper":
            raise UsageError("experts of kind paper are deterministic: set samples to false")
        if self.experts.kind == "contraction" and self.router != "q-mpnn":
            raise UsageError(f"a contraction needs irreps, which {self.router} does not have")
        if self.latent_from == "fitted" and self.experts.kind != "paper":
            raise UsageError(
                "a latent code is fitted to the first frame; experts of kind "
                f"{self.experts.kind} have the first frame already, so take the encoder"
            )
        if abs(self.qmpnn.radial.window - self.cloud.window) > 1e-9:
            raise UsageError(
                f"cloud.window ({self.cloud.window:g} Å) and qmpnn.radial.window "
                f"({self.qmpnn.radial.window:g} Å) should be the same"
            )

    @property
    def residual(self) -> int:
        """Numbers an expert answers for the typical field: a weight for each lift, and a shift."""
        return len(self.local.blurs) + 1 if self.experts.kind == "local" else 1

    @property
    def outputs(self) -> int:
        """Numbers an expert answers: for the typical field, and for `FirstFrame.tremble`."""
        return self.residual + (3 if self.samples else 0)

    @property
    def condition(self) -> int:
        """Numbers in the condition: time, latent code, code."""
        return self.time.size + self.latent + (self.qmpnn.code if self.code else 0)


@dataclass(frozen=True, eq=False)
class Encoding:
    """What the model has understood of some proteins.

    Attributes:
        routed: The router's output.
        gating: Which experts answer.
        latent: z, one row per protein.
        scales: Å per unit of the experts' coordinates, one per protein.
    """

    routed: RouterOutput
    gating: Gating
    latent: Float[Tensor, "proteins latent"]
    scales: Float[Tensor, " proteins"]


class MixtureModel(nn.Module):
    r"""A signed distance field over space and time for any protein.

    .. math::
        f(x, t) = d_0(x) + \kappa(d_0) \, (1 - e^{-t/\tau})
        \Big( s + \sum_\sigma w_\sigma (\delta_\sigma(x) - d_0(x)) \Big), \qquad
        (w, s) = \sum_i G_i(P_0) \, E_i(\phi(x), c), \qquad \kappa(d) = (1 - d^2 / D^2)_+^2

    ==================  ===========================================================
    d_0                 signed distance to the first frame's surface
    G_i, E_i            ``gate``, ``experts``
    φ                   ``inputs`` (see `undula.surface.experts`)
    c                   features of time, latent code, code of the router
    δ                   blurred distances (`LocalInputs.lifts`; experts of kind local only)
    τ                   ``onset``, learned; with ``time.kind`` "none" the step from 0 to 1 at t = 0
    D                   `REACH`
    ==================  ===========================================================

    At t = 0, and for fresh experts at any time, it is the exact first frame. Experts of kind
    ``paper`` have neither base nor window, as published: f = S Σ G_i E_i(Ψ(x / S), c).

    Args:
        config: Sizes and choices.
        proteins: How many training proteins have a fitted latent code.
        shortest_ps: Shortest positive lag in training, ps.
        horizon_ps: Longest lag in training, ps.
        generator: Draws the weights.

    Source: MoE-DSR, eqs. 3-6. Differs from it: base and window, features of the point, the
    encoder; with the preset ``paper`` only in what the paper leaves open.
    """

    mean: Tensor
    spread: Tensor
    onset: nn.Parameter | None
    experts: nn.ModuleList

    def __init__(
        self,
        config: MixtureModelConfig,
        *,
        proteins: int,
        shortest_ps: float,
        horizon_ps: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.config = config
        self.proteins = proteins
        self.shortest_ps = shortest_ps
        self.horizon_ps = horizon_ps
        self.router = _router(config, generator)
        self.gate = Gate(config.gate, config.qmpnn.code, generator)
        self.encoder: nn.Linear | None = None
        if config.latent_from == "encoder":
            self.encoder = nn.Linear(config.qmpnn.code, config.latent)
            with torch.no_grad():
                spread = config.qmpnn.code**-0.5
                self.encoder.weight.normal_(0, spread, generator=generator)
                self.encoder.bias.zero_()
        drawn = torch.randn(proteins, config.latent, generator=generator)
        fitted = config.latent_from == "fitted"
        self.latents = nn.Parameter(drawn / max(config.latent, 1) ** 0.5) if fitted else None
        self.inputs: LocalInputs | ContractionInputs | None = None
        experts = range(config.gate.experts)
        if config.experts.kind == "paper":
            assert config.experts.network is not None
            form = replace(config.experts.network, condition=config.condition)
            self.experts = nn.ModuleList(ImplicitNetwork(form, generator) for _ in experts)
            self.onset = None
            return
        if config.experts.kind == "local":
            self.inputs = LocalInputs(config.local)
        else:
            self.inputs = ContractionInputs(
                config.qmpnn.channels[1:], config.experts.channels, generator
            )
        size = self.inputs.size
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("spread", torch.ones(size))
        self.experts = nn.ModuleList(
            FeatureExpert(size, config.condition, config.outputs, config.experts, generator)
            for _ in experts
        )
        timeless = config.time.kind == "none"
        self.onset = None if timeless else nn.Parameter(torch.tensor(_ONSET_PS).log())

    def encode(
        self,
        cloud: RouterCloud,
        scales: Float[Tensor, " proteins"],
        *,
        keys: Int[Tensor, " proteins"] | None = None,
        step: int = 0,
        latent: Float[Tensor, "proteins latent"] | None = None,
    ) -> Encoding:
        """Read the first surfaces of some proteins.

        Args:
            cloud: Of one or several proteins.
            scales: Å per unit of the experts' coordinates.
            keys: Which training protein each is: seeds the gate's noise, finds its latent code.
            step: Of the training.
            latent: Latent codes that were fitted, for unseen proteins of a model that needs it.

        Raises:
            ValueError: A model with fitted latent codes was given neither keys nor codes.
        """
        routed = self.router(cloud)
        if latent is None:
            if self.encoder is not None:
                latent = self.encoder(routed.code)
            elif self.latents is not None and keys is not None:
                latent = rows_of(self.latents, keys)
            else:
                raise ValueError("this model needs the latent code of each protein")
        return Encoding(routed, self.gate(routed.code, keys=keys, step=step), latent, scales)

    def conditions(
        self,
        encoding: Encoding,
        protein: Int[Tensor, " frames"],
        lag_ps: Float[Tensor, " frames"],
    ) -> Float[Tensor, "frames condition"]:
        """Join the features of time with what is known of the proteins, one row per frame."""
        features = time_features(self.config.time, lag_ps, self.shortest_ps, self.horizon_ps)
        parts = [features.to(encoding.latent.dtype), rows_of(encoding.latent, protein)]
        if self.config.code:
            parts.append(rows_of(encoding.routed.code, protein))
        return torch.cat(parts, dim=1)

    def features(self, encoding: Encoding, protein: Tensor, rows: PointRows) -> Tensor:
        """Return the experts' features of some points, before normalisation."""
        if isinstance(self.inputs, LocalInputs):
            return self.inputs(rows.features, rows.distance)
        assert isinstance(self.inputs, ContractionInputs)
        owner = protein[rows.frame]
        scaled = rows.points / encoding.scales[owner][:, None].to(rows.points)
        return self.inputs(scaled, rows.distance, encoding.routed.irreps, owner)

    def field(
        self,
        encoding: Encoding,
        protein: Int[Tensor, " frames"],
        lag_ps: Float[Tensor, " frames"],
        rows: PointRows,
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, "n 3"] | None]:
        """Return the signed distance at points of some frames.

        Args:
            encoding: Of the proteins.
            protein: Which protein each frame shows.
            lag_ps: Time of each frame since the first, ps.
            rows: Points and what they know.

        Returns:
            The typical field, Å, negative inside; and how strongly the motions of
            `FirstFrame.tremble` move it there, where the model is distributional: the two random
            ones, and the constant one from the quantile to the middle of the samples.
        """
        condition = rows_of(self.conditions(encoding, protein, lag_ps), rows.frame)
        owner = protein[rows.frame]
        dispatch = Dispatch(encoding.gating, owner)
        if self.inputs is None:
            scale = encoding.scales[owner].to(condition)
            points = (rows.points / scale[:, None]).to(condition)
            (answer,) = mixture(self.experts, dispatch, points, condition)
            return scale * answer, None
        found = (self.features(encoding, protein, rows) - self.mean) / self.spread
        (answer,) = mixture(self.experts, dispatch, found, condition)
        window = functional.relu(1 - (rows.distance / REACH).square()).square()
        if self.onset is None:
            left = (lag_ps > 0).to(window)
        else:
            left = -torch.expm1(-lag_ps / self.onset.exp())
        left = rows_of(left[:, None], rows.frame)[:, 0].to(window)
        count = self.config.residual
        residual = answer[:, count - 1]
        if isinstance(self.inputs, LocalInputs):
            lifts = self.inputs.lifts(rows.features, rows.distance)
            residual = residual + (answer[:, : count - 1] * lifts).sum(dim=1)
        value = rows.distance + window * left * residual
        if not self.config.samples:
            return value, None
        strength = functional.softplus(answer[:, count : count + 2] - 1)
        amplitude = torch.cat([strength, answer[:, count + 2 :]], dim=1)
        amplitude = amplitude * (window * left)[:, None]
        return value, amplitude

    def field_and_gradient(
        self,
        encoding: Encoding,
        protein: Int[Tensor, " frames"],
        lag_ps: Float[Tensor, " frames"],
        rows: PointRows,
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, "n 3"]]:
        """Return the field of paper experts and its gradient by the points."""
        condition = rows_of(self.conditions(encoding, protein, lag_ps), rows.frame)
        owner = protein[rows.frame]
        scale = encoding.scales[owner].to(condition)
        points = (rows.points / scale[:, None]).to(condition)
        networks = [cast(ImplicitNetwork, one).value_and_gradient for one in self.experts]
        value, gradient = mixture(networks, Dispatch(encoding.gating, owner), points, condition)
        return scale * value, gradient

    def describe(self) -> dict[str, Any]:
        """Return what is needed, beside the weights, to build the model again, as JSON values."""
        return {
            "config": asdict(self.config),
            "proteins": self.proteins,
            "shortest_ps": self.shortest_ps,
            "horizon_ps": self.horizon_ps,
        }

    @classmethod
    def build(cls, description: dict[str, Any], weights: dict[str, Tensor]) -> MixtureModel:
        """Build a model from what `describe` returned and its weights.

        Raises:
            InputError: Description and weights do not belong together.
        """
        try:
            model = cls(
                model_config(description["config"]),
                proteins=int(description["proteins"]),
                shortest_ps=float(description["shortest_ps"]),
                horizon_ps=float(description["horizon_ps"]),
                generator=torch.Generator(),
            )
            check_dtypes(model, weights)
            model.load_state_dict(weights)
        except (KeyError, TypeError, ValueError, RuntimeError, UsageError) as error:
            reason = str(error).strip().splitlines()[-1].strip()
            raise InputError(f"the weights do not fit their description: {reason}") from error
        return model


def model_config(described: dict[str, Any]) -> MixtureModelConfig:
    """Make a configuration of nested dictionaries, as JSON and YAML have them."""
    values = dict(described)
    qmpnn = dict(values.pop("qmpnn"))
    experts = dict(values.pop("experts"))
    network = experts.pop("network")
    return MixtureModelConfig(
        qmpnn=QMPNNConfig(
            features=GeoANConfig(**qmpnn.pop("features")),
            radial=RadialConfig(**qmpnn.pop("radial")),
            **qmpnn,
        ),
        cloud=CloudConfig(**values.pop("cloud")),
        gate=GateConfig(**values.pop("gate")),
        experts=ExpertConfig(network=network and ImplicitConfig(**network), **experts),
        local=LocalConfig(**values.pop("local")),
        time=TimeConfig(**values.pop("time")),
        **values,
    )


def _router(config: MixtureModelConfig, generator: torch.Generator) -> nn.Module:
    if config.router == "q-mpnn":
        return QMPNN(config.qmpnn, generator)
    module, form = BACKBONES[config.router]
    features = GeoAN(config.qmpnn.features, generator)
    made = form(code=config.qmpnn.code, width=config.width)
    return module(made, features, config.qmpnn.features.size, generator)
