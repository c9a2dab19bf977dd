"""The page: one HTML file that shows what moves beside the truth, and asks for nothing.

Surfaces (`Page`) and atoms (`undula.viz.atoms_page`) share it. Numbers, code, style and texts are
inside the file. A content-security policy forbids every request and every script but ours, which
it names by their hashes.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Integer

from undula import atomic
from undula.errors import InputError
from undula.types import Mesh
from undula.viz.colours import STEPS, colour_map, colour_steps, common_top
from undula.viz.rendering import View, common_view
from undula.viz.shading import openness

_FINEST = 65_535


@dataclass(frozen=True, kw_only=True, eq=False)
class PageText:
    """What a page says. Texts may hold any characters; they are shown, never obeyed.

    Attributes:
        title: The heading.
        times_ps: Strictly increasing; one per frame.
        scores: Rows of a small table: the name of the row and, by metric, ready text.
        score_series: A metric over time by row name, one number per time; NaN leaves a gap.
        score_label: What the series measure.
        notes: Honest sentences: what the model is, whether it beats the copied frame.
        truth_label: Name of the left view.
        forecast_label: Name of the right view.
        form: Name of the forecast itself among what its view can show.
    """

    title: str
    times_ps: Sequence[float]
    scores: Sequence[tuple[str, Mapping[str, str]]] = ()
    score_series: Mapping[str, Sequence[float]] | None = None
    score_label: str = "IoU"
    notes: Sequence[str] = ()
    truth_label: str = "simulation"
    forecast_label: str = "forecast"
    form: str = "typical surface"

    def check_lengths(self, shown: Mapping[str, int]) -> None:
        """Raise where the times do not increase or something has another number of frames.

        Args:
            shown: Number of frames by name.

        Raises:
            InputError: See above.
        """
        steps = np.diff(np.asarray(self.times_ps, dtype=float), prepend=-np.inf)
        if not len(steps) or not np.isfinite(steps[1:]).all() or not (steps > 0).all():
            raise InputError(f"page {self.title!r}: the times should be finite and increase")
        series = self.score_series or {}
        for name, length in {**shown, **{name: len(series[name]) for name in series}}.items():
            if length != len(self.times_ps):
                raise InputError(
                    f"page {self.title!r}: {len(self.times_ps)} times but {length} of {name}"
                )

    def described(self) -> dict[str, Any]:
        """Return what the page must know of its texts as plain values."""
        series = self.score_series or {}
        return {
            "title": self.title,
            "times_ps": [float(time) for time in self.times_ps],
            "colours": [
                "#" + bytes(np.rint(colour * 255).astype(np.uint8)).hex() for colour in colour_map()
            ],
            "form": self.form,
            "score_label": self.score_label,
            "series": [
                {
                    "name": name,
                    "values": [float(v) if np.isfinite(v) else None for v in series[name]],
                }
                for name in series
                if np.isfinite(np.asarray(series[name], dtype=float)).any()
            ],
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class Page(PageText):
    """A page of moving surfaces.

    Attributes:
        forecast: One mesh per time; an empty one is shown as "no surface at this time".
        truth: The same for the truth, or none: then there is a single view.
        scalar: Which number colours both views first; every forecast mesh has it.
        scalar_label: Its name for people, with the unit.
        further_scalars: Other numbers to choose instead, such as the spread of the samples, and
            their labels. A view whose meshes lack one is grey while it is chosen.
        others: What the forecast's view can show instead, such as single samples: by name, a mesh
            per time.
    """

    forecast: Sequence[Mesh]
    truth: Sequence[Mesh] | None = None
    scalar: str = "displacement"
    scalar_label: str = "displacement from the first frame, Å"
    further_scalars: Mapping[str, str] = field(default_factory=dict)
    others: Mapping[str, Sequence[Mesh]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        truth = {} if self.truth is None else {"truth": len(self.truth)}
        others = {name: len(meshes) for name, meshes in self.others.items()}
        self.check_lengths({"forecast": len(self.forecast)} | truth | others)
        for index, mesh in enumerate(self.forecast):
            for scalar in self.labels:
                if not mesh.is_empty and scalar not in mesh.scalars:
                    raise InputError(
                        f"page {self.title!r}: forecast mesh {index + 1} has no scalar {scalar!r}"
                    )

    @property
    def labels(self) -> dict[str, str]:
        """The label of each scalar, that shown first in front."""
        return {self.scalar: self.scalar_label, **self.further_scalars}

    @property
    def views(self) -> dict[str, Sequence[Mesh]]:
        """The meshes of each view by its key, from left to right."""
        truth = {} if self.truth is None else {"truth": self.truth}
        return truth | {"forecast": self.forecast}


def write_page(path: Path, page: Page) -> str:
    """Write a page as one HTML file that needs nothing else, neither network nor server.

    Positions are stored to 1/65535 of the common box (under 0.002 Å for 100 Å), numbers to
    1/255 of their range, then compressed: about 75 kB per mesh of 5,000 vertices, beside
    0.5 MB for three.js. Same page, same bytes.

    Args:
        path: The file to write, such as ``index.html``.
        page: What to show.

    Returns:
        The SHA-256 of the file.

    Raises:
        InputError: A scalar holds values that are not finite.
        MachineError: The place is full, read-only or not allowed.
    """
    return write_document(path, page, *_packed(page), "Moving surface", ("page.js",))


def write_document(
    path: Path,
    page: PageText,
    description: Mapping[str, Any],
    payload: bytes,
    thing: str,
    scripts: Sequence[str],
) -> str:
    """Write the HTML file of a page.

    Args:
        path: The file.
        page: Its texts.
        description: What the script must know.
        payload: Compressed numbers.
        thing: What is shown, for those who hear it.
        scripts: Names of the script files of ours, in their order.

    Returns:
        The SHA-256 of the file.

    Raises:
        MachineError: The place is full, read-only or not allowed.
    """
    style, three = _asset("page.css"), _asset("three.bundle.js")
    script = "".join(_asset(name) for name in scripts)
    policy = (
        f"default-src 'none'; script-src {_fingerprint(three)} {_fingerprint(script)}; "
        f"style-src {_fingerprint(style)}; img-src data:; base-uri 'none'; form-action 'none'"
    )
    content = Template(_asset("page.html")).substitute(
        policy=policy,
        title=html.escape(page.title),
        thing=html.escape(thing),
        style=style,
        table=_table(page),
        notes=_notes(page),
        page=_inert_json(description),
        meshes=base64.b64encode(payload).decode(),
        three=three,
        script=script,
    )
    return atomic.write(path, content)


def _asset(name: str) -> str:
    return (files("undula.viz") / "assets" / name).read_text(encoding="utf-8")


def _fingerprint(script: str) -> str:
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _inert_json(value: Mapping[str, Any]) -> str:
    """Write JSON that no HTML reader can take for markup."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for letter in "<>&":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def _table(page: PageText) -> str:
    if not page.scores:
        return ""
    metrics = list(dict.fromkeys(metric for _, row in page.scores for metric in row))
    head = "".join(f'<th scope="col">{html.escape(metric)}</th>' for metric in metrics)
    rows = "".join(
        f'<tr><th scope="row">{html.escape(name)}</th>'
        + "".join(f"<td>{html.escape(row.get(metric, '–'))}</td>" for metric in metrics)
        + "</tr>"
        for name, row in page.scores
    )
    return (
        '<section id="scores"><h2>Scores</h2><div class="scroll"><table><thead><tr><td></td>'
        f"{head}</tr></thead><tbody>{rows}</tbody></table></div></section>"
    )


def _notes(page: PageText) -> str:
    if not page.notes:
        return ""
    items = "".join(f"<li>{html.escape(note)}</li>" for note in page.notes)
    return f'<section id="notes"><h2>What this is</h2><ul>{items}</ul></section>'


def _packed(page: Page) -> tuple[dict[str, Any], bytes]:
    """Return what the page must know as plain values, and all meshes as compressed numbers.

    Per view and frame: x, y and z (two bytes each), corners of the faces (two bytes, or four
    above 65,536 vertices), openness and the view's scalars (one byte each).
    """
    names = {"truth": page.truth_label, "forecast": page.forecast_label}
    kept = [(names[key], meshes) for key, meshes in page.views.items()] + [*page.others.items()]
    every = [mesh for _, meshes in kept for mesh in meshes]
    view = common_view(every)
    low, size = _box(every)
    tops = {scalar: common_top(every, scalar) for scalar in page.labels}
    described, streams = [], []
    for name, meshes in kept:
        shown = [mesh for mesh in meshes if not mesh.is_empty]
        present = [all(scalar in mesh.scalars for mesh in shown) for scalar in page.labels]
        scalars = [scalar for scalar, here in zip(page.labels, present, strict=True) if here]
        sizes = [(0, 0) if m.is_empty else (len(m.vertices), len(m.faces)) for m in meshes]
        described.append({"name": name, "scalars": present, "sizes": sizes})
        for mesh in shown:
            streams += place_streams(mesh.vertices.detach().cpu().double().numpy(), low, size)
            width = 2 if len(mesh.vertices) <= _FINEST + 1 else 4
            streams.append(stream(mesh.faces.cpu().numpy().reshape(-1), width))
            streams.append(stream(np.rint(openness(mesh).numpy() * (STEPS - 1)), 1))
            for scalar in scalars:
                streams.append(stream(colour_steps(mesh, scalar, tops[scalar]), 1))
    description = page.described() | {
        "box": {"low": low.tolist(), "size": size.tolist()},
        "view": seen_from(view),
        "scalars": [{"label": page.labels[name], "top": tops[name]} for name in page.labels],
        "views": described[: len(page.views)],
        "others": described[len(page.views) :],
    }
    return description, packed(streams)


def seen_from(view: View) -> dict[str, list[Any]]:
    """Return a view as plain values."""
    return {
        "axes": view.axes.tolist(),
        "centre": view.centre.tolist(),
        "half": view.half.tolist(),
    }


def packed(streams: Sequence[bytes]) -> bytes:
    """Join and compress streams of numbers; same numbers, same bytes."""
    return gzip.compress(b"".join(streams), compresslevel=9, mtime=0)


def place_streams(
    points: Float[np.ndarray, "n 3"], low: Float[np.ndarray, " 3"], size: Float[np.ndarray, " 3"]
) -> list[bytes]:
    """Write places as x, then y, then z, in two bytes each, within a box."""
    return [stream(axis, 2) for axis in np.rint((points - low) / size * _FINEST).T]


def _box(meshes: Sequence[Mesh]) -> tuple[np.ndarray, np.ndarray]:
    """Return the lowest corner and the size of the box around all meshes, Å."""
    shown = [mesh.vertices.detach().cpu().double() for mesh in meshes if not mesh.is_empty]
    points = torch.cat(shown) if shown else torch.zeros(1, 3, dtype=torch.float64)
    low = points.min(dim=0).values
    return low.numpy(), (points.max(dim=0).values - low).clamp(min=1e-6).numpy()


def stream(values: np.ndarray, width: int) -> bytes:
    """Write whole numbers as differences to the one before, in planes of bytes, lowest first."""
    steps: Integer[np.ndarray, " n"] = np.diff(values.astype(np.int64), prepend=0)
    return b"".join(
        ((steps >> (8 * plane)) & 0xFF).astype(np.uint8).tobytes() for plane in range(width)
    )
