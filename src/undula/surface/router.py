"""What every router gives: one code per protein, and irreps of it where it has any."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from undula.surface.clouds import RouterCloud


@dataclass(frozen=True, eq=False)
class RouterOutput:
    r"""What a router says of some proteins.

    Attributes:
        code: Invariant numbers :math:`h^P`, one row per protein.
        irreps: For a router that has them: by degree l = 1, 2, … the pooled features of each
            protein, channels × (2 l + 1) in e3nn's order, parity (−1)^l. Empty otherwise.
    """

    code: Float[Tensor, "proteins size"]
    irreps: tuple[Float[Tensor, "proteins _channels _components"], ...] = ()


@runtime_checkable
class Router(Protocol):
    """A network from surface clouds to codes; every backbone is one."""

    def __call__(self, cloud: RouterCloud) -> RouterOutput:
        """Return one code per protein of the cloud."""
        ...
