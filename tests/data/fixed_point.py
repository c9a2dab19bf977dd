"""Small fluids in fixed point, as the shared data have them, for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np

POSITION_UNIT_NM = 0.001
VELOCITY_UNIT_NM_PER_PS = 0.005


def write_fluid(
    path: Path,
    positions_nm: np.ndarray,
    velocities_nm_per_ps: np.ndarray,
    *,
    edge_nm: float = 2.0,
    frame_ps: float = 0.1,
    **others: np.ndarray,
) -> Path:
    """Write an archive of rounded positions and velocities; others replace or add arrays."""
    counts = np.round(positions_nm / POSITION_UNIT_NM).astype(np.int64)
    velocity = np.round(velocities_nm_per_ps / VELOCITY_UNIT_NM_PER_PS).astype(np.int8)
    arrays = {
        "position_first": counts[0].astype(np.int32),
        "position_step": np.diff(counts, axis=0).astype(np.int16),
        "position_unit_nm": np.float64(POSITION_UNIT_NM),
        "velocity": velocity,
        "velocity_unit_nm_per_ps": np.float64(VELOCITY_UNIT_NM_PER_PS),
        "box_nm": np.full(3, edge_nm),
        "frame_ps": np.float64(frame_ps),
    }
    np.savez_compressed(path, **arrays | others)
    return path


def swinging(
    frames: int, known: int, seed: int, *, period_ps: float = 2.0, frame_ps: float = 0.1
) -> tuple[np.ndarray, np.ndarray]:
    """Return eight atoms 0.5 nm apart that drift out of the box and swing: nm and nm/ps."""
    generator = np.random.default_rng(seed)
    sites = np.stack(np.meshgrid(*[[0.2, 0.7]] * 3), axis=-1).reshape(-1, 3)
    drift = generator.normal(size=(8, 3)) * 0.1
    phase = generator.uniform(0, 2 * np.pi, size=(8, 3))
    time = np.arange(frames)[:, None, None] * frame_ps
    angle = 2 * np.pi / period_ps * time + phase
    positions = sites + drift * time + 0.05 * np.sin(angle)
    velocities = drift + 0.05 * 2 * np.pi / period_ps * np.cos(angle)
    return positions, velocities[:known]
