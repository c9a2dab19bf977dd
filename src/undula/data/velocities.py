"""Velocities of recorded frames: from an archive, or from positions where these show them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from undula.elements import ELEMENTS
from undula.errors import InputError, Notice
from undula.io.arrays import load_archive
from undula.io.recordings import STENCIL, Differences, RecordedFrames, central_differences
from undula.io.scratch import parts
from undula.types import Structure
from undula.units import ANGSTROM_PER_NM

LARGEST_ERROR = 0.1
"""Differences stand for velocities if they are off by at most this share of those known.
Fourth order at 0.1 ps: argon 0.07, water 0.97 (it librates faster than the sampling)."""
LARGEST_CHANGE = 0.25
"""The same where no velocities are known, for the change when every second frame is left out:
argon 0.19 at 0.1 ps and 0.42 at 0.2 ps (where the error is 0.22), water 0.77. Motion that is
faster than the sampling and of one frequency only can look slow: nothing in positions tells."""

COLDEST, HOTTEST = 0.5, 8000.0
"""K; the temperature that velocities tell is between these, or they are something else."""
BOLTZMANN = 0.831446
"""u Å²/ps² per kelvin."""


def load_velocities(
    path: Path, structure: Structure
) -> tuple[Float[Tensor, "known atoms 3"], Float[Tensor, " frames"] | None]:
    """Load velocities, and potential energies if there are any, that were kept in an archive.

    Args:
        path: An ``.npz`` archive of ``velocity`` and ``velocity_unit_nm_per_ps``, and maybe
            ``potential_kj_mol``, for the atoms of the file of ``structure``.
        structure: Which of those atoms are wanted.

    Returns:
        Å/ps for the first frames or all; kJ/mol for each frame, or none.

    Raises:
        InputError: It is no such archive, or one of other atoms.
    """
    arrays = load_archive(path)
    for key in ("velocity", "velocity_unit_nm_per_ps"):
        if key not in arrays:
            raise InputError(f"{path}: there is no {key}")
    counts, unit = arrays["velocity"], arrays["velocity_unit_nm_per_ps"]
    if counts.ndim == 3 and len(counts) == 0:
        raise InputError(f"{path}: there are no velocities")
    if counts.ndim != 3 or counts.shape[1:] != (structure.file_atoms, 3) or unit.shape != ():
        raise InputError(
            f"{path}: velocity should be frames × {structure.file_atoms} × 3 and its unit one "
            f"number, found {' × '.join(map(str, counts.shape))}"
        )
    potential = arrays.get("potential_kj_mol")
    if potential is not None and potential.ndim != 1:
        raise InputError(f"{path}: potential_kj_mol should hold one energy a frame")
    for key, value in arrays.items():
        if value.dtype.kind not in "iuf" or not np.isfinite(value).all():
            raise InputError(f"{path}: {key} should hold finite real numbers")
    scale = float(unit) * ANGSTROM_PER_NM
    with np.errstate(over="ignore"):
        velocities = (counts[:, structure.file_index] * scale).astype(np.float32)
    if not np.isfinite(velocities).all():
        raise InputError(f"{path}: the velocities are too large")
    return torch.from_numpy(velocities), (
        None if potential is None else torch.from_numpy(potential.astype(np.float64))
    )


def check_velocities(
    path: Path, structure: Structure, velocities: Float[Tensor, "known atoms 3"]
) -> None:
    r"""Raise where velocities tell a temperature that no matter has.

    .. math:: k T = \langle m v_x^2 \rangle

    Args:
        path: Where they come from, for the message.
        structure: Whose atoms have them.
        velocities: v, Å/ps.

    Raises:
        InputError: It is not between `COLDEST` and `HOTTEST`: another unit, or something else.
    """
    masses = torch.tensor([ELEMENTS[symbol].mass for symbol in structure.elements.tolist()])
    kelvin = float((masses[:, None] * velocities.double().square()).mean()) / BOLTZMANN
    if not COLDEST < kelvin < HOTTEST:
        raise InputError(
            f"{path}: these are no velocities, or in another unit: they would be those of "
            f"{kelvin:.3g} K"
        )


def examined(frames: RecordedFrames) -> RecordedFrames:
    """Return a recording that says whether differences of its positions are velocities."""
    found = differences(frames.positions, frames.frame_ps, frames.velocities, frames.release)
    known = 0 if frames.velocities is None else len(frames.velocities)
    if found is None or known == len(frames):
        return replace(frames, differences=found)
    what = f"velocities are known for {known} of {len(frames)} frames; differences of positions "
    if found.by == "velocities":
        what += f"are off by {found.error:.0%} of them"
    else:
        what += f"change by {found.error:.0%} when every second frame is left out"
    what += " and may judge forecasts of the others" if found.valid else " and are no velocities"
    code = "velocities-differenced" if found.valid else "differences-refused"
    notice = Notice(code=code, message=what, count=len(frames) - known)
    return replace(frames, differences=found, notices=(*frames.notices, notice))


def differences(
    positions: Float[Tensor, "frames atoms 3"],
    frame_ps: float,
    velocities: Float[Tensor, "known atoms 3"] | None = None,
    release: Callable[[], None] = lambda: None,
) -> Differences | None:
    """Find out whether differences of positions to fourth order are velocities.

    Args:
        positions: Unwrapped, Å.
        frame_ps: Time between frames, ps.
        velocities: Of the first frames, Å/ps, where they are known.
        release: Called after some frames were looked at.

    Returns:
        The root mean square of differences minus velocities as a share of the velocities'; where
        none are known, that of differences over every second frame minus those over all. None
        for fewer than five and nine frames.
    """
    frames = len(positions)
    wrong, right = _Squares(), _Squares()
    if velocities is not None and min(frames, len(velocities) + STENCIL) > 2 * STENCIL:
        for some in parts(positions[2 * STENCIL : len(velocities) + STENCIL]):
            around = positions[some.start : some.stop + 2 * STENCIL].double()
            true = velocities[some.start + STENCIL : some.stop + STENCIL].double()
            wrong.add(central_differences(around, frame_ps) - true)
            right.add(true)
            release()
        error = wrong.share(right)
        return Differences(error=error, by="velocities", valid=error <= LARGEST_ERROR)
    if frames > 4 * STENCIL:
        halved = -(-frames // 2) - 2 * STENCIL
        for some in parts(positions[:halved]):
            around = positions[2 * some.start : 2 * some.stop + 4 * STENCIL - 1].double()
            fine = central_differences(around, frame_ps)[STENCIL::2]
            coarse = central_differences(around[::2], 2 * frame_ps)
            wrong.add(fine[: len(coarse)] - coarse)
            # The last one of a part is the first of the next.
            right.add(fine if some.stop == halved else fine[: len(coarse)])
            release()
        change = wrong.share(right)
        return Differences(error=change, by="halving", valid=change <= LARGEST_CHANGE)
    return None


class _Squares:
    """The mean square of numbers that come a few at a time."""

    def __init__(self) -> None:
        self._sum, self._count = 0.0, 0

    def add(self, numbers: Tensor) -> None:
        """Count in some numbers."""
        self._sum += float(numbers.square().sum())
        self._count += numbers.numel()

    @property
    def root(self) -> float:
        """The root of the mean square."""
        return math.sqrt(self._sum / self._count)

    def share(self, whole: _Squares) -> float:
        """Return the root mean square as a share of that of others; 0 where these are all 0."""
        return self.root / whole.root if whole.root > 0 else 0.0
