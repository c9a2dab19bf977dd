import mdtraj
import numpy as np
import pytest
import torch
from tests.motion.small_systems import argon, water_positions, waters

from undula.errors import MachineError, UsageError
from undula.io.atom_export import in_box, write_pdb, write_xtc
from undula.io.structures import load_structure

BOX = torch.tensor([[12.0, 0, 0], [0, 13.0, 0], [3.0, 0, 14.0]], dtype=torch.float64)


@pytest.fixture(scope="module")
def water():
    generator = torch.Generator().manual_seed(2)
    frames = [water_positions(5, generator) for _ in range(3)]
    return waters(5), torch.stack(frames) + 30


def test_another_program_reads_positions_times_and_box_of_an_xtc(tmp_path, water):
    system, frames = water
    write_pdb(tmp_path / "now.pdb", system, frames[:1], box=BOX)
    write_xtc(tmp_path / "a.xtc", frames, [1.0, 2.5, 4.0], BOX)
    read = mdtraj.load(str(tmp_path / "a.xtc"), top=str(tmp_path / "now.pdb"))
    np.testing.assert_allclose(read.xyz * 10, frames, atol=0.006)
    np.testing.assert_allclose(read.time, [1.0, 2.5, 4.0])
    np.testing.assert_allclose(read.unitcell_vectors[0] * 10, BOX, atol=1e-4)


def test_an_xtc_without_a_box_has_none(tmp_path, water):
    system, frames = water
    write_pdb(tmp_path / "now.pdb", system, frames[:1])
    write_xtc(tmp_path / "a.xtc", frames, [0.0, 1.0, 2.0], None)
    read = mdtraj.load(str(tmp_path / "a.xtc"), top=str(tmp_path / "now.pdb"))
    assert read.unitcell_lengths is None


def test_models_carry_the_spread_as_b_factors(tmp_path, water):
    system, frames = water
    spread = torch.arange(45.0).reshape(3, 15) / 10
    spread[0, 0] = 5000.0
    write_pdb(tmp_path / "a.pdb", system, frames, box=BOX, b_factors=spread, remarks=("Å",))
    read = mdtraj.load(str(tmp_path / "a.pdb"))
    np.testing.assert_allclose(read.xyz * 10, frames, atol=6e-4)
    assert read.topology.n_bonds == 10
    lines = (tmp_path / "a.pdb").read_text().splitlines()
    b = [float(line[60:66]) for line in lines if line.startswith("HETATM")]
    assert b[0] == 999.99
    assert b[1:] == pytest.approx(spread.reshape(-1)[1:].tolist())
    assert lines[0].isascii()
    assert lines[1].startswith("CRYST1")
    assert sum(line.startswith("MODEL") for line in lines) == 3


def test_we_read_again_what_we_wrote(tmp_path, water):
    system, frames = water
    write_pdb(tmp_path / "a.pdb", system, frames[:1], box=BOX)
    again = load_structure(tmp_path / "a.pdb", select="all", hydrogens="keep", heterogens="keep")
    assert again.elements.tolist() == system.structure.elements.tolist()
    torch.testing.assert_close(again.positions.double(), frames[0], rtol=0, atol=6e-4)
    torch.testing.assert_close(again.box.double(), BOX, rtol=0, atol=2e-3)


def test_refuses_what_does_not_fit_into_the_columns(tmp_path):
    with pytest.raises(UsageError, match="write XTC"):
        write_pdb(tmp_path / "a.pdb", argon(1), torch.full((1, 1, 3), 12_345.0))
    assert not (tmp_path / "a.pdb").exists()


def test_molecules_come_into_the_box_as_wholes(water):
    system, frames = water
    found = in_box(frames, system, BOX)
    first = frames.reshape(3, 5, 3, 3)
    again = found.reshape(3, 5, 3, 3)
    torch.testing.assert_close(again - again[:, :, :1], first - first[:, :, :1])
    shares = again.mean(dim=2) @ torch.linalg.inv(BOX)
    assert ((shares >= -1e-9) & (shares < 1 + 1e-9)).all()
    moved = ((found - frames) @ torch.linalg.inv(BOX)).numpy()
    np.testing.assert_allclose(moved, moved.round(), atol=1e-9)
    assert in_box(frames, system, None) is frames


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path, water):
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineError, match="cannot write"):
        write_xtc(tmp_path / "file" / "a.xtc", water[1], [0.0, 1.0, 2.0], None)
    assert [one.name for one in tmp_path.iterdir()] == ["file"]
