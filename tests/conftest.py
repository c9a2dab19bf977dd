"""What all tests share: one thread, the shared data folder, and a tiny moving peptide."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import mdtraj
import pytest
import torch

from undula.data.bundled import villin

torch.set_num_threads(1)
SHARED = Path(__file__).parents[2] / "shared" / "data"
CHROMIUM = Path("/usr/bin/chromium")
SOFTWARE_GL = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader"]


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder of shared data, or skip where the checkout stands alone."""
    if not SHARED.is_dir():
        pytest.skip(f"the shared data folder {SHARED} is not here")
    return SHARED


@pytest.fixture(scope="module")
def browser() -> Iterator:
    """Return a browser in which pages are opened for real, or skip where there is none."""
    if not CHROMIUM.exists():
        pytest.skip(f"the browser {CHROMIUM} is not here")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=str(CHROMIUM), args=SOFTWARE_GL)
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def peptide(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Return six residues of the bundled villin: a PDB file and two XTC files of 12 frames."""
    folder = tmp_path_factory.mktemp("peptide")
    topology, trajectory, _ = villin()
    frames = mdtraj.load(str(trajectory), top=str(topology))
    few = frames.atom_slice(frames.topology.select("resid < 6 and element != H"))
    paths = folder / "peptide.pdb", folder / "run1.xtc", folder / "run2.xtc"
    few[0].save_pdb(str(paths[0]))
    few[:12].save_xtc(str(paths[1]))
    few[40:52].save_xtc(str(paths[2]))
    return paths
