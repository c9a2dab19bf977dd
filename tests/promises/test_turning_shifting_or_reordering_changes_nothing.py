"""Promise 7: turning, shifting or reordering the input does not change the answer.

From files through the command line to the stored result. Files round: a PDB keeps 0.001 Å, a TRR
seven digits. In double precision, without files, the same is tested to 1e-8 in `tests/facts/`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from mdtraj.formats import TRRTrajectoryFile
from tests.motion.small_systems import path as drawn_path
from tests.motion.small_systems import trained
from tests.promises.answers import answer

from undula.data.bundled import villin
from undula.geometry.frames import random_rotation
from undula.io.kinds import molecular_system
from undula.io.structures import load_structure
from undula.motion.forecast import MovingAtoms
from undula.surface.forecast import MovingSurface

ROTATION = random_rotation(torch.Generator().manual_seed(0))
SHIFT = torch.tensor([25.0, -40.0, 12.0], dtype=torch.float64)
STILL = torch.eye(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
SURFACE_TOLERANCE = 0.02
"""Å of the signed distance, by way of PDB files that keep 0.001 Å."""
ORDER_TOLERANCE = 1e-3
"""Å of the signed distance, where the same numbers come in another order."""
ATOM_TOLERANCE = 5e-3
"""Å of every expected position, by way of TRR files; measured 0.001 for a chain that is 40 Å from
the origin, whose velocities are differences of positions."""

Lines = list[str]


def moved(lines: Lines, matrix: torch.Tensor, shift: torch.Tensor) -> Lines:
    """Return atoms of a PDB file turned, then shifted."""
    found = []
    for line in lines:
        place = torch.tensor([float(line[i : i + 8]) for i in (30, 38, 46)], dtype=torch.float64)
        x, y, z = (matrix @ place + shift).tolist()
        found.append(f"{line[:30]}{x:8.3f}{y:8.3f}{z:8.3f}{line[54:]}")
    return found


def shuffled_within_residues(lines: Lines) -> Lines:
    rng = np.random.default_rng(0)
    residues: dict[str, Lines] = {}
    for line in lines:
        residues.setdefault(line[21:27], []).append(line)
    return [part[k] for part in residues.values() for k in rng.permutation(len(part))]


def renamed(lines: Lines, chain: str) -> Lines:
    return [f"{line[:21]}{chain}{line[22:]}" for line in lines]


def heavy(path: Path, residues: int | None = None) -> Lines:
    lines = [line for line in path.read_text().splitlines() if line.startswith("ATOM")]
    kept = [line for line in lines if line[76:78].strip() != "H"]
    numbers = list(dict.fromkeys(line[22:26] for line in kept))[:residues]
    return [line for line in kept if line[22:26] in numbers]


def forecast(capsys, folder: Path, name: str, lines: Lines, model: str | Path) -> MovingSurface:
    (folder / f"{name}.pdb").write_text("\n".join([*lines, "TER", "END"]) + "\n")
    words = ["--model", model, "--time", "20", "--samples", "0", "--formats=,"]
    told = answer(capsys, "forecast", folder / f"{name}.pdb", *words, "-o", folder / name)
    assert told.code == 0, told.err
    return MovingSurface.load(folder / name)


def points_around(lines: Lines, count: int = 300) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    places = torch.tensor([[float(line[i : i + 8]) for i in (30, 38, 46)] for line in lines])
    chosen = torch.randint(len(places), (count,), generator=generator)
    return places[chosen].double() + 2.5 * torch.randn(count, 3, generator=generator).double()


@pytest.fixture(params=["a protein nobody trained on", "the peptide of a training"])
def case(request, workplace) -> tuple[Lines, str | Path]:
    if "nobody" in request.param:
        return heavy(villin()[0]), "any"
    return heavy(workplace.folder / "peptide.pdb"), workplace.folder / "surface run"


def test_the_surface_of_turned_shifted_and_reordered_files_is_the_same(case, tmp_path, capsys):
    lines, model = case
    points = points_around(lines)
    first = forecast(capsys, tmp_path, "first", lines, model)
    expected = first.sdf(points, 20.0)
    others: dict[str, tuple[Lines, tuple[torch.Tensor, torch.Tensor], float]] = {
        "turned": (moved(lines, ROTATION, SHIFT), (ROTATION, SHIFT), SURFACE_TOLERANCE),
        "shifted": (moved(lines, STILL[0], SHIFT), (STILL[0], SHIFT), SURFACE_TOLERANCE),
        "reordered": (shuffled_within_residues(lines), STILL, ORDER_TOLERANCE),
    }
    for name, (other, (matrix, shift), tolerance) in others.items():
        found = forecast(capsys, tmp_path, name, other, model)
        away = (found.sdf(points @ matrix.T + shift, 20.0) - expected).abs().max()
        assert away < tolerance, (name, float(away))
    if model == "any":
        still = first.sdf(points, 0.0)
        assert (expected - still).abs().mean() > 0.02  # there is something that could differ


def test_chains_in_another_order_have_the_same_surface(tmp_path, capsys):
    one = renamed(heavy(villin()[0], residues=12), "A")
    turn = random_rotation(torch.Generator().manual_seed(7))
    other = renamed(moved(one, turn, torch.tensor([14.0, 6.0, -3.0]).double()), "B")
    points = points_around([*one, *other])
    first = forecast(capsys, tmp_path, "ab", [*one, *other], "any").sdf(points, 20.0)
    second = forecast(capsys, tmp_path, "ba", [*other, *one], "any").sdf(points, 20.0)
    assert (first - second).abs().max() < ORDER_TOLERANCE


def write_window(
    path: Path, positions: torch.Tensor, box: torch.Tensor | None, step: float
) -> Path:
    frames = len(positions)
    edges = torch.zeros(3, 3) if box is None else box / 10
    with TRRTrajectoryFile(str(path), "w") as file:
        times = (step * np.arange(frames)).astype("f4")
        boxes = np.broadcast_to(edges.numpy().astype("f4"), (frames, 3, 3))
        file.write((positions / 10).numpy().astype("f4"), times, np.arange(frames), boxes)
    return path


def carbons(positions: torch.Tensor) -> Lines:
    return [
        f"HETATM{k + 1:5d}  C{k + 1:<2d} MOL A   1    {x:8.3f}{y:8.3f}{z:8.3f}{1.0:6.2f}{0.0:6.2f}"
        f"{'C':>12}"
        for k, (x, y, z) in enumerate(positions.tolist())
    ]


Forecast = Callable[[str, torch.Tensor, torch.Tensor], MovingAtoms]


@pytest.fixture
def chain(tmp_path, capsys) -> tuple[Forecast, torch.Tensor]:
    """Return what forecasts a chain of six carbons, and the frames that are observed of it."""
    turn = torch.arange(6, dtype=torch.float64) * 1.7
    still = torch.stack([turn.cos(), turn.sin(), 0.6 * turn], dim=1)
    (tmp_path / "still.pdb").write_text("\n".join([*carbons(still), "END"]) + "\n")
    structure = load_structure(
        tmp_path / "still.pdb", select="all", hydrogens="keep", heterogens="keep"
    )
    system = molecular_system(structure)
    assert system.molecule_count == 1
    model = trained(system)
    model.model.float()  # as a training leaves it
    model.save(tmp_path / "model")
    frames = drawn_path(system, 12, torch.Generator().manual_seed(4))[0]

    def forecast_of(name: str, positions: torch.Tensor, order: torch.Tensor) -> MovingAtoms:
        folder = tmp_path / name
        folder.mkdir()
        labelled = carbons(still)
        lines = [labelled[k] for k in order.tolist()]
        (folder / "chain.pdb").write_text("\n".join([*lines, "END"]) + "\n")
        run = write_window(folder / "seen.trr", positions[:, order], None, 0.1)
        words = ["--window", run, "--model", tmp_path / "model", "--time", "0.1,0.4,1.6"]
        words += ["--samples", "0", "--formats=,", "-o", folder / "out"]
        told = answer(capsys, "forecast", folder / "chain.pdb", *words)
        assert told.code == 0, told.err
        return MovingAtoms.load(folder / "out")

    return forecast_of, frames


def test_the_atoms_of_turned_shifted_and_reordered_files_are_the_same(chain):
    forecast_of, frames = chain
    same = torch.arange(6)
    expected = forecast_of("first", frames, same).expected
    turned = forecast_of("turned", frames @ ROTATION.T + SHIFT, same).expected
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    relabelled = forecast_of("relabelled", frames, order).expected
    there = expected.mean.double() @ ROTATION.T + SHIFT
    assert (turned.mean - there).abs().max() < ATOM_TOLERANCE
    assert (relabelled.mean - expected.mean[:, order]).abs().max() < ATOM_TOLERANCE
    assert turned.spread is not None
    assert (turned.spread - expected.spread).abs().max() < ATOM_TOLERANCE
    last = frames[-1].float()
    assert (expected.mean[-1] - last).abs().mean() > 0.1  # there is something that could differ


def test_atoms_in_a_box_may_be_shifted_reordered_and_in_any_image(workplace, tmp_path, capsys):
    # The box of a file cannot be turned (a lies along x), so a fluid is shifted and relabelled.
    from undula.io.trajectories import load_trajectory

    seen = load_trajectory(workplace.folder / "argon.pdb", workplace.folder / "seen.trr")
    frames, box = seen.positions.double(), seen.box[0].double()
    lines = [
        line
        for line in (workplace.folder / "argon.pdb").read_text().splitlines()
        if line.startswith(("ATOM", "HETATM"))
    ]
    cell = next(
        line
        for line in (workplace.folder / "argon.pdb").read_text().splitlines()
        if line.startswith("CRYST1")
    )

    def expected(name: str, positions: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
        folder = tmp_path / name
        folder.mkdir()
        topology = [cell, *(lines[k] for k in order.tolist()), "END"]
        (folder / "argon.pdb").write_text("\n".join(topology) + "\n")
        run = write_window(folder / "seen.trr", positions[:, order], box, 0.1)
        words = ["--window", run, "--model", workplace.folder / "motion run", "--time", "0.2,0.4"]
        words += ["--samples", "0", "--formats=,", "-o", folder / "out"]
        told = answer(capsys, "forecast", folder / "argon.pdb", *words)
        assert told.code == 0, told.err
        moving = MovingAtoms.load(folder / "out")
        return (moving.expected.mean - moving.now).double()

    same = torch.arange(8)
    first = expected("first", frames, same)
    edges = box.diagonal()
    shifted = expected("shifted", (frames + SHIFT) % edges, same)
    images = expected("images", frames + torch.tensor([1.0, -2.0, 3.0]).double() * edges, same)
    order = torch.tensor([5, 2, 7, 0, 3, 6, 1, 4])
    relabelled = expected("relabelled", frames, order)
    assert first.abs().mean() > 1e-2
    for found in (shifted, images):
        assert (found - first).abs().max() < ATOM_TOLERANCE
    assert (relabelled - first[:, order]).abs().max() < ATOM_TOLERANCE
