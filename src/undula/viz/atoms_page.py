"""The page of moving atoms: balls, sticks, the box, and how sure the forecast is of each atom."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from undula.errors import InputError
from undula.io.atom_export import in_box
from undula.types import MolecularSystem
from undula.viz.colours import STEPS, range_top
from undula.viz.page import (
    PageText,
    packed,
    place_streams,
    seen_from,
    stream,
    write_document,
)
from undula.viz.rendering import View, view_of_points

ELEMENT_COLOURS: Mapping[str, str] = {
    "H": "#e9e7e2",
    "C": "#7d858c",
    "N": "#4a6cc3",
    "O": "#cf4a3f",
    "S": "#d9b23c",
    "P": "#dd8434",
    "AR": "#5a9fb3",
    "NA": "#8b5fbf",
    "CL": "#5fae57",
}
"""Display colours of elements; all others are `OTHER_COLOUR`."""
OTHER_COLOUR = "#b0749b"
BONDED_BALL, FREE_BALL = 0.22, 0.5
"""Radii of the balls as shares of the van der Waals radius, for atoms with and without bonds."""
LABELS: Mapping[str, str] = {
    "spread": "expected error (one standard deviation along an axis), Å",
    "error": "true error of the mean (root mean square of the axes), Å",
    "way": "way from the last observed frame, Å",
}
"""What atoms can be coloured by, that shown first in front."""
_MARGIN = 1.0
_TILT = ((0.94, 0.0, -0.34), (-0.12, 0.94, -0.32), (0.32, 0.34, 0.88))
"""From where a box is looked at: nearly along z, a little from above and from the right."""


@dataclass(frozen=True, kw_only=True, eq=False)
class AtomsPage(PageText):
    """A page of moving atoms.

    Attributes:
        system: The atoms.
        now: Positions from which displacements are counted, unwrapped, Å.
        forecast: Expected positions, unwrapped, Å.
        spread: Standard deviation along each axis, Å; none where it is not known.
        truth: What happened, unwrapped, Å, or none: then there is a single view.
        others: What the forecast's view can show instead, such as single samples, by name.
        box: Edge vectors, Å; molecules are shown within it.
    """

    system: MolecularSystem
    now: Float[Tensor, "atoms 3"]
    forecast: Float[Tensor, "times atoms 3"]
    spread: Float[Tensor, "times atoms"] | None = None
    truth: Float[Tensor, "times atoms 3"] | None = None
    others: Mapping[str, Float[Tensor, "times atoms 3"]] = field(default_factory=dict)
    box: Float[Tensor, "3 3"] | None = None

    def __post_init__(self) -> None:
        truth = {} if self.truth is None else {"truth": len(self.truth)}
        spread = {} if self.spread is None else {"spread": len(self.spread)}
        others = {name: len(frames) for name, frames in self.others.items()}
        self.check_lengths({"forecast": len(self.forecast)} | truth | spread | others)
        shown = [self.now, self.forecast, self.truth, self.spread, *self.others.values()]
        if any(one is not None and not torch.isfinite(one).all() for one in shown):
            raise InputError(f"page {self.title!r}: there are numbers that are not finite")


def write_atoms_page(path: Path, page: AtomsPage) -> str:
    """Write a page as one HTML file that needs nothing else, neither network nor server.

    Every view can be coloured by the standard deviation of the forecast (with a halo of that
    size), by the way since the last observed frame, and by element. Positions are stored to
    1/65535 of the common box: about 4 kB for 1,000 atoms at one time, beside 0.5 MB for three.js.

    Args:
        path: The file to write, such as ``index.html``.
        page: What to show.

    Returns:
        The SHA-256 of the file; same page, same bytes.

    Raises:
        MachineError: The place is full, read-only or not allowed.
    """
    description, payload = _packed(page)
    return write_document(path, page, description, payload, "Moving atoms", ("atoms.js", "page.js"))


def _packed(page: AtomsPage) -> tuple[dict[str, Any], bytes]:
    """Return what the page must know, and per view and frame x, y, z and the view's numbers."""
    truth = {} if page.truth is None else {page.truth_label: page.truth}
    moving = {**truth, page.forecast_label: page.forecast, **page.others}
    shown = {
        name: in_box(frames.double(), page.system, page.box) for name, frames in moving.items()
    }
    numbers = {name: _numbers(page, name, frames) for name, frames in moving.items()}
    labels = {
        label: text
        for label, text in LABELS.items()
        if any(label in known for known in numbers.values())
    }
    tops = {
        label: range_top(
            torch.cat([known[label].reshape(-1) for known in numbers.values() if label in known]),
            1.0 if label == "spread" else 0.95,
        )
        for label in labels
    }
    places = torch.cat([frames.reshape(-1, 3) for frames in shown.values()])
    low = places.amin(dim=0).numpy()
    size = (places.amax(dim=0) - places.amin(dim=0)).clamp(min=1e-6).numpy()
    described, streams = [], []
    for name, frames in shown.items():
        # The element has no numbers of its own.
        known = [label in numbers[name] for label in labels] + [False]
        sizes = [(len(page.system), 0)] * len(frames)
        described.append({"name": name, "scalars": known, "sizes": sizes})
        for index, frame in enumerate(frames):
            streams += place_streams(frame.numpy(), low, size)
            for label in labels:
                if (values := numbers[name].get(label)) is not None:
                    share = (values[index] / tops[label]).clamp(0, 1)
                    streams.append(stream((share * (STEPS - 1)).round().numpy(), 1))
    views = len(truth) + 1
    description = page.described() | {
        "box": {"low": low.tolist(), "size": size.tolist()},
        "view": seen_from(_view(places, page.box)),
        "scalars": [{"label": labels[name], "top": tops[name]} for name in labels]
        + [{"label": "element", "top": 1.0, "elements": _elements(page.system)}],
        "views": described[:views],
        "others": described[views:],
        "atoms": _atoms(page.system, page.box, list(labels)),
    }
    return description, packed(streams)


def _numbers(
    page: AtomsPage, name: str, frames: Float[Tensor, "times atoms 3"]
) -> dict[str, Float[Tensor, "times atoms"]]:
    """Return what the atoms of a view can be coloured by."""
    mean = page.forecast.double()
    numbers = {"way": (frames.double() - page.now.double()).norm(dim=-1)}
    if page.spread is not None and frames is not page.truth:
        numbers["spread"] = page.spread.double()
    if page.truth is not None and name not in page.others:
        numbers["error"] = (page.truth.double() - mean).norm(dim=-1) / 3**0.5
    return numbers


def _atoms(
    system: MolecularSystem, box: Float[Tensor, "3 3"] | None, labels: list[str]
) -> dict[str, Any]:
    bonded = np.isin(np.arange(len(system)), system.bonds.numpy())
    share = np.where(bonded, BONDED_BALL, FREE_BALL)
    radii = system.structure.vdw_radii.double().numpy() * share
    return {
        "radii": np.round(radii, 3).tolist(),
        "bonds": system.bonds.T.tolist(),
        "colours": [_colour(symbol) for symbol in system.structure.elements.tolist()],
        "edges": _edges(box),
        "spread": labels.index("spread") if "spread" in labels else -1,
    }


def _elements(system: MolecularSystem) -> list[dict[str, str]]:
    symbols = sorted(set(system.structure.elements.tolist()))
    return [{"name": symbol.capitalize(), "colour": _colour(symbol)} for symbol in symbols]


def _colour(symbol: str) -> str:
    return ELEMENT_COLOURS.get(symbol, OTHER_COLOUR)


def _corners(box: Float[Tensor, "3 3"]) -> Float[Tensor, "8 3"]:
    shares = torch.cartesian_prod(*[torch.arange(2.0, dtype=torch.float64)] * 3)
    return shares @ box.double().cpu()


def _edges(box: Float[Tensor, "3 3"] | None) -> list[list[list[float]]]:
    """Return both ends of the twelve edges of the box."""
    if box is None:
        return []
    corners = _corners(box)
    # Corners are numbered by their shares in binary; an edge joins two that differ in one.
    pairs = [(i, i | bit) for i in range(8) for bit in (1, 2, 4) if not i & bit]
    return [[corners[i].tolist(), corners[j].tolist()] for i, j in pairs]


def _view(places: Float[Tensor, "n 3"], box: Float[Tensor, "3 3"] | None) -> View:
    """Look at a molecule from its broad side, and at a box from a corner's direction."""
    if box is None:
        view = view_of_points(places)
        return View(axes=view.axes, centre=view.centre, half=view.half + _MARGIN)
    axes = torch.linalg.qr(torch.tensor(_TILT, dtype=torch.float64).T)[0].T
    axes = axes * torch.sign((axes * torch.tensor(_TILT, dtype=torch.float64)).sum(dim=1))[:, None]
    corners = _corners(box)
    seen = corners @ axes.T
    low, high = seen.amin(dim=0), seen.amax(dim=0)
    return View(
        axes=axes.float(),
        centre=((low + high) / 2 @ axes).float(),
        half=((high - low) / 2).float(),
    )
