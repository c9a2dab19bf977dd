"""DSR: one implicit network of place, time and latent code for the moving surfaces it was shown.

What it knows of a protein it knows from training on that protein's own trajectories; a
structure of another protein is refused, not guessed at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from undula.errors import InputError, UsageError
from undula.io.residues import standard_name
from undula.learn.checkpoint import check_dtypes
from undula.nn.grid import GridConfig, GridField
from undula.nn.implicit import ImplicitConfig, ImplicitNetwork
from undula.surface.time import TimeConfig, time_features
from undula.types import Structure


@dataclass(frozen=True, kw_only=True)
class SurfaceModelConfig:
    """What a DSR model is made of.

    Attributes:
        network: DSR's implicit network, or none.
        grid: The faster field of splines on grids in its place, or none.
        time: Features of time.
        latent: Length of the latent code z, one code per training trajectory.
        base: "first-frame" adds the first frame's exact distance to the network, whose last
            layer starts at zero: the untrained model is the copied first frame. "none" is DSR.
    """

    network: ImplicitConfig | None = None
    grid: GridConfig | None = None
    time: TimeConfig = field(default_factory=TimeConfig)
    latent: int = 16
    base: Literal["first-frame", "none"] = "first-frame"

    def __post_init__(self) -> None:
        if self.latent < 0:
            raise UsageError(f"model.latent should not be negative, it is {self.latent}")
        if (self.network is None) == (self.grid is None):
            raise UsageError(
                "a surface model has either model.network or model.grid; set the other to null"
            )
        if self.form.condition or self.form.zero_last:
            raise UsageError(
                "condition and zero_last of a field follow from time, latent and base; "
                "leave them out"
            )

    @property
    def form(self) -> ImplicitConfig | GridConfig:
        """The configuration of the field, whichever it is."""
        chosen = self.grid if self.network is None else self.network
        assert chosen is not None
        return chosen


@dataclass(frozen=True, kw_only=True, eq=False)
class System:
    """A protein the model was trained on.

    Attributes:
        name: As the data set calls it.
        sequence: Residue names in order.
        alpha_carbons: Where they were in the first frame: the pose the model knows, Å.
        centre: Centroid of the first frame's atoms, Å.
        scale: Å per unit of the network's coordinates: 1.1 times the largest distance of an
            atom from the centre, so that the protein fills [-1, 1]³. From the first frame only.
    """

    name: str
    sequence: tuple[str, ...]
    alpha_carbons: Float[Tensor, "residues 3"]
    centre: Float[Tensor, " 3"]
    scale: float

    @classmethod
    def of(cls, structure: Structure) -> System:
        """Describe a system by its first frame.

        Raises:
            InputError: Fewer than three Cα atoms: no pose can be recognised.
        """
        on = structure.alpha_carbons
        if len(on) < 3:
            raise InputError(f"{structure.name} has {len(on)} Cα atoms; at least 3 are needed")
        positions = structure.positions.double()
        centre = positions.mean(dim=0)
        return cls(
            name=structure.name,
            sequence=sequence(structure),
            alpha_carbons=positions[on],
            centre=centre,
            scale=1.1 * float((positions - centre).norm(dim=1).max()),
        )


def sequence(structure: Structure) -> tuple[str, ...]:
    """Return the residue names of the Cα atoms in order, the same for every force field's names."""
    names = structure.residue_names[structure.alpha_carbons.numpy()].tolist()
    return tuple(standard_name(name) or name for name in names)


class SurfaceModel(nn.Module):
    """A signed distance field over space and time for the systems it was trained on.

    Args:
        config: Sizes and choices.
        systems: The proteins it knows.
        trajectories: For each training trajectory its name and the index of its system.
        shortest_ps: Shortest positive lag in training, ps.
        horizon_ps: Longest lag in training, ps.
        generator: Draws the weights, and the latent codes from N(0, 1/φ_z) as DSR does.

    Source: DSR (Sun et al. 2024) as MoE-DSR's baseline. Differs from it: works in Å; centre and
    scale come from the first frame alone; optional base field; features of time.
    """

    centres: Tensor
    scales: Tensor

    def __init__(
        self,
        config: SurfaceModelConfig,
        systems: Sequence[System],
        trajectories: Sequence[tuple[str, int]],
        *,
        shortest_ps: float,
        horizon_ps: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.config = config
        self.trajectories = tuple((name, system) for name, system in trajectories)
        self.shortest_ps = shortest_ps
        self.horizon_ps = horizon_ps
        self.names = tuple(system.name for system in systems)
        self.sequences = tuple(system.sequence for system in systems)
        for index, system in enumerate(systems):
            self.register_buffer(f"alpha_carbons_{index}", system.alpha_carbons.double())
        self.register_buffer("centres", torch.stack([s.centre.double() for s in systems]))
        self.register_buffer(
            "scales", torch.tensor([s.scale for s in systems], dtype=torch.float64)
        )
        form = replace(
            config.form,
            condition=config.time.size + config.latent,
            zero_last=config.base == "first-frame",
        )
        self.network: ImplicitNetwork | GridField
        if isinstance(form, GridConfig):
            self.network = GridField(form, generator)
        else:
            self.network = ImplicitNetwork(form, generator)
        codes = torch.randn(len(self.trajectories), config.latent, generator=generator)
        self.latents = nn.Parameter(codes / max(config.latent, 1) ** 0.5)

    def alpha_carbons(self, system: int) -> Float[Tensor, "residues 3"]:
        """Return the pose in which the model knows a system, Å."""
        return self.get_buffer(f"alpha_carbons_{system}")

    def system_of(self, structure: Structure) -> int:
        """Return which system a structure is.

        Raises:
            InputError: The model was not trained on this protein.
        """
        found = sequence(structure)
        if found in self.sequences:
            return self.sequences.index(found)
        known = ", ".join(
            f"{name} ({len(residues)} residues)"
            for name, residues in zip(self.names, self.sequences, strict=True)
        )
        raise InputError(
            f"{structure.name} has {len(found)} residues of another sequence than what this model "
            f"was trained on: {known}; this kind of model (DSR) knows only its own proteins"
        )

    def conditions(
        self, lag_ps: Float[Tensor, " times"], latent: Float[Tensor, "times latent"]
    ) -> Float[Tensor, "times condition"]:
        """Join the features of time with latent codes, one row per time.

        Args:
            lag_ps: Time since the first frame, ps.
            latent: A code for each time.
        """
        features = time_features(self.config.time, lag_ps, self.shortest_ps, self.horizon_ps)
        return torch.cat([features.to(latent.dtype), latent], dim=1)

    def field(
        self,
        points: Float[Tensor, "n 3"],
        condition: Float[Tensor, " condition"],
        system: int,
        base: Float[Tensor, " n"] | None = None,
    ) -> Float[Tensor, " n"]:
        """Return the signed distance at points at one time, Å, negative inside.

        Args:
            points: In the pose of the system, Å.
            condition: A row of `conditions`.
            system: Which protein.
            base: The first frame's signed distance at the points, Å, where the model has a base.
        """
        scale = self.scales[system].to(condition.dtype)
        value = scale * self.network(self._normalised(points, system, condition), condition)
        return value if base is None else value + base

    def field_and_gradient(
        self,
        points: Float[Tensor, "n 3"],
        condition: Float[Tensor, " condition"],
        system: int,
        base: tuple[Float[Tensor, " n"], Float[Tensor, "n 3"]] | None = None,
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, "n 3"]]:
        """Return the signed distance and its gradient by the points, as plain forward code.

        Args:
            points: In the pose of the system, Å.
            condition: A row of `conditions`.
            system: Which protein.
            base: The first frame's signed distance and gradient at the points.
        """
        scale = self.scales[system].to(condition.dtype)
        value, gradient = self.network.value_and_gradient(
            self._normalised(points, system, condition), condition
        )
        if base is None:
            return scale * value, gradient
        return scale * value + base[0], gradient + base[1]

    def _normalised(
        self, points: Float[Tensor, "n 3"], system: int, like: Tensor
    ) -> Float[Tensor, "n 3"]:
        centred = points - self.centres[system].to(points.dtype)
        return (centred / self.scales[system].to(points.dtype)).to(like.dtype)

    def describe(self) -> dict[str, Any]:
        """Return what is needed, beside the weights, to build the model again, as JSON values."""
        return {
            "config": asdict(self.config),
            "names": list(self.names),
            "sequences": [list(residues) for residues in self.sequences],
            "trajectories": [list(entry) for entry in self.trajectories],
            "shortest_ps": self.shortest_ps,
            "horizon_ps": self.horizon_ps,
        }

    @classmethod
    def build(cls, description: dict[str, Any], weights: dict[str, Tensor]) -> SurfaceModel:
        """Build a model from what `describe` returned and its weights.

        Raises:
            InputError: Description and weights do not belong together.
        """
        try:
            described = dict(description["config"])
            network, grid = described.pop("network"), described.pop("grid")
            config = SurfaceModelConfig(
                network=network and ImplicitConfig(**network),
                grid=grid and GridConfig(**grid),
                time=TimeConfig(**described.pop("time")),
                **described,
            )
            systems = [
                System(
                    name=name,
                    sequence=tuple(residues),
                    alpha_carbons=weights[f"alpha_carbons_{index}"],
                    centre=weights["centres"][index],
                    scale=float(weights["scales"][index]),
                )
                for index, (name, residues) in enumerate(
                    zip(description["names"], description["sequences"], strict=True)
                )
            ]
            model = cls(
                config,
                systems,
                [(str(name), int(system)) for name, system in description["trajectories"]],
                shortest_ps=float(description["shortest_ps"]),
                horizon_ps=float(description["horizon_ps"]),
                generator=torch.Generator(),
            )
            # What is learned may be of either precision; where systems lie is always double.
            for learned in model.parameters():
                learned.data = learned.data.to(weights["latents"].dtype)
            check_dtypes(model, weights)
            model.load_state_dict(weights)
        except (KeyError, TypeError, ValueError, IndexError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[-1].strip()
            raise InputError(f"the weights do not fit their description: {reason}") from error
        return model
