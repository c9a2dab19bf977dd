"""Colours: one map for every number on a surface, and one range for all its frames."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from scipy.interpolate import PchipInterpolator
from torch import Tensor

from undula.errors import InputError
from undula.types import Mesh

STEPS = 256
"""How many colours the map has."""

_ANCHORS = ("f4f0e6", "f2cd8d", "e58a62", "b8476f", "78308a")
_OKLAB_TO_ROOT = np.array(
    [
        [1.0, 0.3963377774, 0.2158037573],
        [1.0, -0.1055613458, -0.0638541728],
        [1.0, -0.0894841775, -1.2914855480],
    ]
)
_CONE_TO_LINEAR = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)


def linear(colours: Float[np.ndarray, "*many 3"]) -> Float[np.ndarray, "*many 3"]:
    """Convert display colours (sRGB, 0 to 1) to linear light."""
    return np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)


def display(light: Float[np.ndarray, "*many 3"]) -> Float[np.ndarray, "*many 3"]:
    """Convert linear light to display colours (sRGB, 0 to 1); what is too bright is cut."""
    cut = np.clip(light, 0, 1)
    return np.where(cut <= 0.0031308, cut * 12.92, 1.055 * cut ** (1 / 2.4) - 0.055)


def oklab(colours: Float[np.ndarray, "*many 3"]) -> Float[np.ndarray, "*many 3"]:
    """Convert display colours to OKLab: lightness, green to red, blue to yellow.

    Equal distances look about equally different.

    Source: Ottosson, A perceptual color space for image processing (2020).
    """
    cones = linear(colours) @ np.linalg.inv(_CONE_TO_LINEAR).T
    return np.cbrt(cones) @ np.linalg.inv(_OKLAB_TO_ROOT).T


@functools.cache
def colour_map() -> Float[np.ndarray, "256 3"]:
    """Compute the colours of a surface's numbers, from ivory (zero) to plum (the top).

    Lightness falls in equal steps, so that the map reads in grey and for every kind of colour
    vision, and the resting part of a surface is the lightest: its relief stays visible.

    Returns:
        Display colours (sRGB), 0 to 1.
    """
    anchors = oklab(
        np.array([[int(text[i : i + 2], 16) / 255 for i in (0, 2, 4)] for text in _ANCHORS])
    )
    along = np.linspace(0, 1, STEPS)
    path = PchipInterpolator(np.linspace(0, 1, len(anchors)), anchors)(along)
    path[:, 0] = anchors[0, 0] + (anchors[-1, 0] - anchors[0, 0]) * along
    return display((path @ _OKLAB_TO_ROOT.T) ** 3 @ _CONE_TO_LINEAR.T)


def colour_steps(mesh: Mesh, scalar: str, top: float) -> UInt8[np.ndarray, " vertices"]:
    """Compute where numbers lie on the map: 0 at zero or below, 255 at ``top`` or above.

    Raises:
        InputError: The mesh does not have the scalar, or it holds values that are not finite.
    """
    share = (_numbers(mesh, scalar) / top).clamp(0, 1)
    return (share * (STEPS - 1)).round().byte().numpy()


def common_top(meshes: Sequence[Mesh], scalar: str) -> float:
    """Compute the upper end of the colour range that many meshes share; the lower is zero.

    The 95 % quantile over all vertices, rounded up to two digits, so that a few stray vertices
    do not wash out the rest.

    Args:
        meshes: All frames of all views; those without the scalar do not count.
        scalar: Which number.

    Returns:
        A positive number in the scalar's unit; 1 where nothing is above zero.

    Raises:
        InputError: A mesh has the scalar with values that are not finite.
    """
    values = [_numbers(mesh, scalar) for mesh in meshes if scalar in mesh.scalars]
    joined = torch.cat([torch.zeros(0, dtype=torch.float64), *values])
    return range_top(joined, 0.95)


def range_top(values: Float[Tensor, " n"], share: float) -> float:
    """Compute a quantile, rounded up to two digits, as the upper end of a colour range.

    Args:
        values: Any; finite.
        share: Of the values that lie below it.

    Returns:
        A positive number; 1 where nothing is above zero.
    """
    quantile = float(np.quantile(values.numpy(), share)) if len(values) else 0.0
    if quantile <= 0:
        return 1.0
    unit = 10.0 ** (math.floor(math.log10(quantile)) - 1)
    return float(f"{math.ceil(quantile / unit - 1e-9) * unit:.12g}")


def _numbers(mesh: Mesh, scalar: str) -> Float[Tensor, " vertices"]:
    if scalar not in mesh.scalars:
        raise InputError(f"a mesh has no scalar {scalar!r} to colour it by")
    values = mesh.scalars[scalar].detach().cpu().double()
    if not torch.isfinite(values).all():
        raise InputError(f"the mesh scalar {scalar!r} holds values that are not finite")
    return values
