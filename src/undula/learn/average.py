"""The moving average of weights, which often predicts better than the last weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@torch.no_grad()
def update_average(
    average: Mapping[str, Tensor], module: nn.Module, decay: float, step: int
) -> None:
    r"""Move an average of a module's state towards its present state, in place.

    .. math:: \bar w \leftarrow d \, \bar w + (1 - d) \, w, \qquad
        d = \min(\mathrm{decay}, (1 + \mathrm{step}) / (10 + \mathrm{step}))

    The early bound lets the average forget where the module started.

    Args:
        average: Tensors by the names of the module's state; integers are copied, not averaged.
        module: Whose state is averaged.
        decay: How much of the average remains in the long run, such as 0.999.
        step: Steps done before this one.

    Source: the exponential moving average of TensorFlow, with its ``num_updates``.
    """
    weight = 1 - min(decay, (1 + step) / (10 + step))
    for name, present in module.state_dict().items():
        if present.is_floating_point():
            average[name].lerp_(present, weight)
        else:
            average[name].copy_(present)


@contextmanager
def weights_from(module: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Lend a module other weights for the length of a ``with`` block."""
    own = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    module.load_state_dict(dict(tensors))
    try:
        yield
    finally:
        module.load_state_dict(own)
