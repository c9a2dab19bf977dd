"""What the training loop asks of a problem; everything it knows of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class ParameterGroup:
    """Parameters that learn at one pace.

    Attributes:
        name: For messages, such as ``network`` or ``latent codes``.
        parameters: Parameters of the task's module.
        learning_rate_factor: Times the learning rate of the run; DSR's latent codes use 10.
    """

    name: str
    parameters: Sequence[nn.Parameter]
    learning_rate_factor: float = 1.0


@runtime_checkable
class Task(Protocol):
    """A problem that `undula.learn.fit.fit` can solve.

    Attributes:
        module: All that is learned; it also holds whatever must be stored with the weights.
    """

    @property
    def module(self) -> nn.Module:
        """Return all that is learned and whatever must be stored with the weights."""
        ...

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return every trainable parameter of the module, each in exactly one group."""
        ...

    def batch(self, step: int, generator: torch.Generator) -> Any:
        """Draw the data of one step.

        Must depend on nothing but its arguments: the position in the data is the step number,
        and that is how an interrupted run goes on as if nothing had happened.

        Args:
            step: Steps done so far.
            generator: Seeded from the run's seed, the step, the process and the micro-batch.

        Returns:
            Tensors on the CPU, alone or in dictionaries, lists, tuples or dataclasses; the loop
            moves them to the device.
        """
        ...

    def loss(self, batch: Any, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss to minimise, a scalar, and its named parts for the record.

        Chance inside (dropout, gate noise) comes from torch's global generator, which the loop
        seeds anew before every step.
        """
        ...

    def evaluate(self) -> dict[str, float]:
        """Measure the module on validation data, never on test data.

        Called without gradients, in full precision, with the averaged weights if there are
        any, on the first process only; so it must not wait for the others.
        """
        ...


def moved(batch: Any, device: torch.device) -> Any:
    """Return a batch with every tensor in it on a device; on that device already, it is the same.

    Args:
        batch: Tensors, alone or nested in mappings, lists, tuples and dataclasses (frozen ones
            too); anything else is left alone.
        device: Where the tensors go.
    """
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {key: moved(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(moved(value, device) for value in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(moved(value, device) for value in batch)
    if is_dataclass(batch) and not isinstance(batch, type):
        values = {one.name: moved(getattr(batch, one.name), device) for one in fields(batch)}
        same = all(value is getattr(batch, name) for name, value in values.items())
        return batch if same else replace(batch, **values)
    return batch
