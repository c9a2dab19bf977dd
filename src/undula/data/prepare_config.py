"""How trajectories become a data set: the settings of `undula.data.prepare`."""

from __future__ import annotations

from dataclasses import dataclass

from undula.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """How trajectories become a data set.

    Attributes:
        stride: Keep every n-th frame, counted from the first.
        chain: Chains to keep, comma-separated; all protein chains by default.
        hydrogens: "drop" (the surface of heavy atoms) or "keep".
        heterogens: "drop" or "keep" ligands, ions and waters.
        altloc: "highest", "first" or a letter.
        length_unit: "auto" (the format's own), "angstrom" or "nm".
        probe: Radius of the solvent probe, Å.
        spacing: About the distance between neighbouring surface points, Å.
        near: Labelled points per frame within a narrow Gaussian of the surface.
        local: Labelled points per frame from Gaussians as wide as the distance to the
            50th neighbour on the surface: the local part of DSR's sampling distribution D.
        uniform: Labelled points per frame, uniform in the box around the first frame.
        fixed: Places within ``FIXED_REACH`` of the first frame's surface at which the distance to
            every frame is kept: what a model of unseen proteins is trained on.
        margin: Space between the first frame's atoms and that box, Å.
        seed: Of all sampling.
        frames_per_shard: How many frames a shard holds; a kill loses at most one shard.
        storage: "full" (44 bytes a point) or "compact" (14 bytes; lengths to 0.001 Å and
            directions to 1°, see `undula.io.packing`).
    """

    stride: int = 1
    chain: str | None = None
    hydrogens: str = "drop"
    heterogens: str = "drop"
    altloc: str = "highest"
    length_unit: str = "auto"
    probe: float = 1.4
    spacing: float = 1.0
    near: int = 6144
    local: int = 1024
    uniform: int = 1024
    fixed: int = 4096
    margin: float = 8.0
    seed: int = 0
    frames_per_shard: int = 10
    storage: str = "full"

    def __post_init__(self) -> None:
        for name in ("stride", "near", "local", "uniform", "fixed", "frames_per_shard"):
            if not 1 <= getattr(self, name) < 2**31:
                raise UsageError(f"{name} should be at least 1, not {getattr(self, name)}")
        for name, most in {"probe": 10, "spacing": 10, "margin": 1000}.items():
            if not 0 < getattr(self, name) <= most:
                raise UsageError(
                    f"{name} should be positive and at most {most} Å, not {getattr(self, name)}"
                )
        if self.seed < 0:
            raise UsageError(f"seed should not be negative, not {self.seed}")
        if self.storage not in ("full", "compact"):
            raise UsageError(f"storage should be full or compact, not {self.storage}")
