"""Trajectories written by the tests themselves, whole and damaged."""

import gzip
import struct
import subprocess
import sys
from pathlib import Path

import mdtraj
import numpy as np
import pytest
import torch
from mdtraj.formats import DCDTrajectoryFile, TRRTrajectoryFile, XTCTrajectoryFile
from tests.io.alanines import pdb_line, peptide_lines

from undula.errors import InputError, UsageError
from undula.io import trajectory_child
from undula.io.structures import load_structure
from undula.io.trajectories import load_trajectory, load_whole_structure, open_trajectory

FRAMES = 12
TIMES = 2.0 * np.arange(FRAMES, dtype=np.float32)


@pytest.fixture
def topology(write) -> Path:
    """Return a peptide of four residues with a hydrogen in front."""
    return write([pdb_line("H", (-0.5, 0.8, 0.3)), *peptide_lines(4)], "topology.pdb")


@pytest.fixture
def positions(topology) -> np.ndarray:
    """Return rattling positions in nm, rounded as XTC rounds them."""
    whole = load_whole_structure(topology).positions.numpy()
    drift = 0.1 * np.arange(FRAMES)[:, None, None]
    noise = 0.02 * np.random.default_rng(0).standard_normal((FRAMES, *whole.shape))
    return np.round((whole + drift + noise) / 10, 3).astype(np.float32)


@pytest.fixture
def xtc(tmp_path, positions) -> Path:
    return write_xtc(tmp_path / "run.xtc", positions)


def write_xtc(path: Path, positions: np.ndarray, times=TIMES, box=None) -> Path:
    with XTCTrajectoryFile(str(path), "w") as file:
        file.write(positions, time=np.asarray(times, dtype=np.float32), box=box)
    return path


def write_trr(path: Path, positions: np.ndarray, velocities=None, times=TIMES) -> Path:
    with TRRTrajectoryFile(str(path), "w") as file:
        count = len(positions)
        step, zero = np.arange(count, dtype=np.int32), np.zeros(count, dtype=np.float32)
        box = np.tile(5 * np.eye(3, dtype=np.float32), (count, 1, 1))
        file._write(positions, times[:count], step, box, zero, vel=velocities)
    return path


def codes(trajectory) -> dict[str, int]:
    return {notice.code: notice.count for notice in trajectory.notices}


def frame_starts(path: Path) -> list[int]:
    return [header.start for header in open_trajectory(path).headers]


def test_reads_xtc_in_angstrom_and_picoseconds(topology, xtc, positions):
    trajectory = load_trajectory(topology, xtc)
    assert trajectory.positions.dtype == torch.float32
    np.testing.assert_allclose(trajectory.positions, 10 * positions, atol=1e-4)
    assert trajectory.times_ps.tolist() == TIMES.tolist()
    assert trajectory.box is None
    assert trajectory.notices == ()


def test_reads_the_atoms_of_the_structure_and_the_frames_asked_for(topology, xtc, positions):
    structure = load_structure(topology)
    trajectory = load_trajectory(structure, str(xtc), start=1, stop=10, stride=3)
    np.testing.assert_allclose(trajectory.positions, 10 * positions[1:10:3, 1:], atol=1e-4)
    assert trajectory.times_ps.tolist() == [2.0, 8.0, 14.0]


def test_leaves_the_folder_of_the_input_alone(topology, xtc):
    before = {path: path.stat().st_mtime_ns for path in xtc.parent.iterdir()}
    content = xtc.read_bytes()
    load_trajectory(topology, xtc)
    assert {path: path.stat().st_mtime_ns for path in xtc.parent.iterdir()} == before
    assert xtc.read_bytes() == content


def test_the_decoder_does_not_load_torch():
    code = (
        "import runpy, sys; sys.argv = ['x', '/nowhere'];"
        f"runpy.run_path({trajectory_child.__file__!r}, run_name='child');"
        "print('torch' in sys.modules, 'undula' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "False False"


def test_reads_a_few_uncompressed_atoms(write, tmp_path):
    lines = [
        pdb_line("AR", (5.0 * k, 0, 0), residue="AR", element="AR", number=k) for k in range(3)
    ]
    positions = np.random.default_rng(1).random((FRAMES, 3, 3), dtype=np.float32)
    trajectory = load_trajectory(write(lines), write_xtc(tmp_path / "a.xtc", positions))
    np.testing.assert_allclose(trajectory.positions, 10 * positions, atol=1e-5)


def test_keeps_the_box_and_takes_none_for_a_thin_one(topology, positions, tmp_path):
    box = np.tile(np.diag([3.0, 4.0, 5.0]).astype(np.float32), (FRAMES, 1, 1))
    boxed = load_trajectory(topology, write_xtc(tmp_path / "a.xtc", positions, box=box))
    torch.testing.assert_close(boxed.box, torch.from_numpy(10 * box))
    box[4] *= 0.01
    thin = load_trajectory(topology, write_xtc(tmp_path / "b.xtc", positions, box=box))
    assert thin.box is None
    assert codes(thin) == {"box-dropped": 1}


def test_a_molecule_broken_by_the_box_is_read(topology, positions, tmp_path):
    box = np.tile(2.0 * np.eye(3, dtype=np.float32), (FRAMES, 1, 1))
    wrapped = write_xtc(tmp_path / "a.xtc", positions % np.float32(2.0), box=box)
    assert load_trajectory(topology, wrapped).notices == ()


def test_uses_the_whole_frames_of_a_file_that_was_cut(topology, xtc):
    starts = frame_starts(xtc)
    whole = load_trajectory(topology, xtc)
    xtc.write_bytes(xtc.read_bytes()[: starts[7] + 100])
    trajectory = load_trajectory(topology, xtc)
    assert torch.equal(trajectory.positions, whole.positions[:7])
    assert "100 bytes after 7 whole frames" in trajectory.notices[0].message


def test_uses_the_frames_before_a_tail(topology, xtc):
    xtc.write_bytes(xtc.read_bytes() + b"\x07some words" * 9)
    trajectory = load_trajectory(topology, xtc)
    assert len(trajectory) == FRAMES
    assert codes(trajectory) == {"file-cut": 1}


@pytest.mark.parametrize(
    ("offset", "number", "words"),
    [
        (4, -5, "-5 atoms"),
        (4, 2**30, "1073741824 atoms"),
        (0, 1996, "1995"),
        (88, 2**30, "ends within the frame"),
        (88, 1, "21 atoms in 1 bytes"),
        (56, -1, "impossible range"),
    ],
)
@pytest.mark.parametrize("frame", [0, 5])
def test_names_the_frame_of_a_damaged_header(topology, xtc, offset, number, words, frame):
    content = bytearray(xtc.read_bytes())
    struct.pack_into(">i", content, frame_starts(xtc)[frame] + offset, number)
    xtc.write_bytes(content)
    with pytest.raises(InputError, match=r"frame 6|no whole frame|no known format") as caught:
        load_trajectory(topology, xtc)
    assert words in str(caught.value) or (frame == 0 and offset == 0)


def test_notices_a_shifted_frame_by_the_range_in_its_header(topology, xtc):
    content = bytearray(xtc.read_bytes())
    low = frame_starts(xtc)[5] + 60
    struct.pack_into(">i", content, low, struct.unpack_from(">i", content, low)[0] - 250)
    xtc.write_bytes(content)
    with pytest.raises(InputError, match="frame 6 is damaged"):
        load_trajectory(topology, xtc)


def test_notices_a_frame_that_is_scaled_by_its_precision(topology, xtc):
    """Seven percent more in every bond is within what bonds do."""
    content = bytearray(xtc.read_bytes())
    place = frame_starts(xtc)[5] + 56
    assert struct.unpack_from(">f", content, place) == (1000.0,)
    struct.pack_into(">f", content, place, 936.0)
    xtc.write_bytes(content)
    with pytest.raises(InputError, match="frame 6 is damaged: its precision is 936, that of other"):
        load_trajectory(topology, xtc)


def test_frames_of_other_decimals_are_read(topology, positions, tmp_path):
    """As when files of two simulations are joined."""
    fine, coarse = (write_xtc(tmp_path / f"{k}.xtc", positions) for k in "ab")
    content = bytearray(coarse.read_bytes())
    for start in frame_starts(coarse):
        struct.pack_into(">f", content, start + 56, 100.0)
    joined = tmp_path / "c.xtc"
    joined.write_bytes(fine.read_bytes() + bytes(content))
    assert len(open_trajectory(joined).headers) == 2 * FRAMES


def packed_otherwise(xtc: Path, frames) -> None:
    """Set the last bit of some frames, which no coordinate needs."""
    content, ends = bytearray(xtc.read_bytes()), [*frame_starts(xtc)[1:], xtc.stat().st_size]
    for frame in frames:
        content[ends[frame] - 1] ^= 1
    xtc.write_bytes(content)


@pytest.mark.parametrize("within", [slice(None), slice(5, 6), slice(4, 6)])
def test_a_frame_that_is_packed_otherwise_than_the_others_is_damaged(topology, xtc, within):
    whole = load_trajectory(topology, xtc)
    packed_otherwise(xtc, [5])
    with pytest.raises(InputError, match=r"frame 6 is damaged .* do not pack into its bytes"):
        load_trajectory(topology, xtc, start=within.start or 0, stop=within.stop)
    others = load_trajectory(topology, xtc, stop=5)
    assert torch.equal(others.positions, whole.positions[:5])


def test_a_file_of_another_writer_is_read_with_a_notice(topology, xtc):
    whole = load_trajectory(topology, xtc)
    packed_otherwise(xtc, range(FRAMES))
    trajectory = load_trajectory(topology, xtc)
    assert torch.equal(trajectory.positions, whole.positions)
    assert codes(trajectory) == {"packing-unknown": FRAMES}


@pytest.mark.parametrize("precision", [10.0, 123.456, 1e6])
def test_packing_is_compared_at_any_precision_part_by_part(
    positions, tmp_path, monkeypatch, precision
):
    path = write_xtc(tmp_path / "a.xtc", positions)
    content = bytearray(path.read_bytes())
    for start in frame_starts(path):
        struct.pack_into(">f", content, start + 56, precision)
    path.write_bytes(content)
    child = tmp_path / "child.py"
    text = Path(trajectory_child.__file__).read_text()
    child.write_text(text.replace("2**22", str(5 * positions[0].nbytes)))
    monkeypatch.setattr(trajectory_child, "__file__", str(child))
    for changed in ([], [7]):
        packed_otherwise(path, changed)
        _, alike = open_trajectory(path).decoded(np.arange(FRAMES), np.arange(3))
        assert np.nonzero(~alike)[0].tolist() == changed


def test_coordinates_too_far_out_to_compare_are_not(positions, tmp_path):
    far = write_xtc(tmp_path / "a.xtc", positions + np.float32(5000.0))
    frames = open_trajectory(far).read(np.arange(FRAMES), np.arange(3))
    assert frames.notices == ()


def test_one_frame_without_a_time_is_no_frame(topology, positions, tmp_path):
    path = write_xtc(tmp_path / "a.xtc", positions[:2], times=[np.nan, 2.0])
    assert load_trajectory(topology, path).times_ps.tolist() == [2.0]


def test_velocities_that_cannot_be_are_named(topology, positions, tmp_path):
    velocities = np.ones_like(positions)
    velocities[3, 4, 1] = np.nan
    path = write_trr(tmp_path / "a.trr", positions, velocities)
    with pytest.raises(InputError, match="frame 4: the velocity of atom 5 is not finite"):
        load_trajectory(topology, path)


def test_refuses_another_number_of_atoms_with_both_numbers(write, xtc):
    other = write(peptide_lines(3), "other.pdb")
    with pytest.raises(InputError, match="has 21 atoms, the structure other has 15"):
        load_trajectory(other, xtc)


def test_takes_a_trajectory_of_just_the_atoms_kept(topology, positions, tmp_path):
    path = write_xtc(tmp_path / "kept.xtc", positions[:, 1:])
    trajectory = load_trajectory(load_structure(topology), path)
    np.testing.assert_allclose(trajectory.positions, 10 * positions[:, 1:], atol=1e-4)
    assert codes(trajectory) == {"atoms-as-kept": 20}


def test_notices_another_order_of_atoms(topology, positions, tmp_path):
    path = write_xtc(tmp_path / "a.xtc", np.ascontiguousarray(positions[:, ::-1]))
    with pytest.raises(InputError, match="is the order of the atoms the same"):
        load_trajectory(topology, path)


def test_names_the_frame_of_an_atom_that_left_its_bonds(topology, positions, tmp_path):
    positions[4, 9] += 0.15
    with pytest.raises(InputError, match=r"frame 5 is damaged .1 of 12 are.*Å apart"):
        load_trajectory(topology, write_xtc(tmp_path / "a.xtc", positions))


def test_drops_frames_that_a_restart_repeats(topology, positions, tmp_path):
    times = [0, 2, 4, 6, 4, 6, 8, 10, 12, 14, 16, 18]
    trajectory = load_trajectory(topology, write_xtc(tmp_path / "a.xtc", positions, times))
    assert trajectory.times_ps.tolist() == [0, 2, 4, 6, 8, 10, 12, 14, 16, 18]
    assert codes(trajectory) == {"times-dropped": 2}


def test_one_time_out_of_order_costs_one_frame(topology, positions, tmp_path):
    times = [0, 2, 4, 6, 1e9, 10, 12, 14, 16, 18, 20, 22]
    trajectory = load_trajectory(topology, write_xtc(tmp_path / "a.xtc", positions, times))
    assert codes(trajectory) == {"times-dropped": 1}
    assert len(trajectory) == 11


def test_numbers_frames_that_all_have_one_time(topology, positions, tmp_path):
    trajectory = load_trajectory(topology, write_xtc(tmp_path / "a.xtc", positions, [0] * FRAMES))
    assert trajectory.times_ps.tolist() == list(range(FRAMES))
    assert codes(trajectory) == {"times-numbered": FRAMES}


def test_times_can_be_scaled_or_replaced(topology, xtc):
    assert load_trajectory(topology, xtc, time_unit="fs", stride=6).times_ps.tolist() == [0, 0.012]
    assert load_trajectory(topology, xtc, frame_ps=5.0, start=2, stride=6).times_ps.tolist() == [
        10.0,
        40.0,
    ]


@pytest.mark.parametrize(
    "options",
    [{"stride": 0}, {"start": -1}, {"time_unit": "days"}, {"frame_ps": 0.0}],
)
def test_refuses_options_that_do_not_exist(topology, xtc, options):
    with pytest.raises(UsageError, match=next(iter(options))):
        load_trajectory(topology, xtc, **options)


def test_refuses_frames_that_are_not_there(topology, xtc):
    with pytest.raises(InputError, match="no frame is left of 12"):
        load_trajectory(topology, xtc, start=12)


def test_refuses_a_packed_trajectory_by_name(topology, xtc):
    xtc.write_bytes(gzip.compress(xtc.read_bytes()))
    with pytest.raises(InputError, match=r"packed trajectory .XTC., unpack it first"):
        load_trajectory(topology, xtc)


def test_reads_trr_with_velocities(topology, positions, tmp_path):
    velocities = np.random.default_rng(2).standard_normal(positions.shape).astype(np.float32)
    path = write_trr(tmp_path / "run.trr", positions, velocities)
    trajectory = load_trajectory(load_structure(topology), path, stride=2)
    np.testing.assert_allclose(trajectory.positions, 10 * positions[::2, 1:], rtol=1e-6)
    np.testing.assert_allclose(trajectory.velocities, 10 * velocities[::2, 1:], rtol=1e-6)
    torch.testing.assert_close(trajectory.box[3], 50 * torch.eye(3))
    assert trajectory.times_ps.tolist() == TIMES[::2].tolist()
    assert trajectory.notices == ()


def test_zeros_in_trr_are_no_positions_and_no_velocities(topology, positions, tmp_path):
    velocities = np.ones_like(positions)
    velocities[3] = 0
    positions[7] = 0
    trajectory = load_trajectory(topology, write_trr(tmp_path / "a.trr", positions, velocities))
    assert trajectory.times_ps.tolist() == np.delete(TIMES, 7).tolist()
    assert trajectory.velocities is None
    assert codes(trajectory) == {"frames-without-positions": 1, "frames-without-velocities": 1}


def test_reads_trr_frames_of_different_content_and_cut(topology, positions, tmp_path):
    with_velocities = write_trr(tmp_path / "a.trr", positions[:3], positions[:3]).read_bytes()
    plain = write_trr(tmp_path / "b.trr", positions[:2], times=TIMES[3:]).read_bytes()
    path = tmp_path / "c.trr"
    path.write_bytes(with_velocities + plain + plain[:90])
    trajectory = load_trajectory(topology, path)
    assert len(trajectory) == 5
    assert trajectory.velocities is None
    assert codes(trajectory) == {"file-cut": 1, "frames-without-velocities": 2}


def test_names_the_frame_of_damage_in_trr(topology, positions, tmp_path):
    path = write_trr(tmp_path / "a.trr", positions)
    content = bytearray(path.read_bytes())
    start = frame_starts(path)[5]
    content[start + 64] ^= 0x40
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"frame 6 .* is damaged"):
        load_trajectory(topology, path)
    content[start + 64] ^= 0x40
    struct.pack_into(">f", content, start + 200, np.nan)
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"frame 6: a coordinate of atom \d+ is not finite"):
        load_trajectory(topology, path)


@pytest.fixture
def dcd(tmp_path, positions) -> Path:
    path = tmp_path / "run.dcd"
    with DCDTrajectoryFile(str(path), "w") as file:
        right = np.full((FRAMES, 3), 90.0, dtype=np.float32)
        file.write(10 * positions, np.full((FRAMES, 3), 40.0, dtype=np.float32), right)
    return path


def test_reads_dcd(topology, dcd, positions):
    trajectory = load_trajectory(load_structure(topology), dcd, start=2)
    np.testing.assert_allclose(trajectory.positions, 10 * positions[2:, 1:], rtol=1e-6)
    torch.testing.assert_close(trajectory.box, 40 * torch.eye(3).expand(FRAMES - 2, 3, 3))
    assert codes(trajectory) == {"times-numbered": FRAMES}


def test_dcd_times_are_in_units_of_akma(topology, dcd):
    content = bytearray(dcd.read_bytes())
    struct.pack_into("<ii", content, 12, 1000, 500)
    struct.pack_into("<f", content, 44, 0.002 / 0.04888821)
    dcd.write_bytes(content)
    trajectory = load_trajectory(topology, dcd)
    np.testing.assert_allclose(trajectory.times_ps, 2.0 + np.arange(FRAMES), rtol=1e-6)
    assert trajectory.notices == ()


def test_dcd_that_was_cut_or_has_a_tail_serves_with_its_whole_frames(topology, dcd):
    content = dcd.read_bytes()
    dcd.write_bytes(content[:-500])
    cut = load_trajectory(topology, dcd)
    assert len(cut) == FRAMES - 2
    assert "frame-count-differs" in codes(cut)
    dcd.write_bytes(content + b"tail" * 200)
    tail = load_trajectory(topology, dcd)
    assert len(tail) == FRAMES
    assert "file-cut" in codes(tail)


def test_names_the_frame_of_a_damaged_marker_in_dcd(topology, dcd):
    content = bytearray(dcd.read_bytes())
    size = 56 + 3 * (8 + 4 * 21)
    content[len(content) - 4 * size] ^= 1
    dcd.write_bytes(content)
    with pytest.raises(InputError, match="frame 9 is damaged"):
        load_trajectory(topology, dcd)


@pytest.mark.parametrize(
    ("offset", "value", "words"), [(36, 21, "fixed"), (4, b"VELD", "velocities")]
)
def test_refuses_dcd_headers_that_cannot_be(topology, dcd, offset, value, words):
    content = bytearray(dcd.read_bytes())
    struct.pack_into(
        "4s" if isinstance(value, bytes) else "<i", content, offset + 4 * (value == 21), value
    )
    dcd.write_bytes(content)
    with pytest.raises(InputError, match=words):
        load_trajectory(topology, dcd)


def test_refuses_absurd_atom_counts_in_dcd_before_reading(topology, dcd):
    content = bytearray(dcd.read_bytes())
    title = struct.unpack_from("<i", content, 92)[0]
    struct.pack_into("<i", content, 92 + 4 + title + 4 + 4, 2**30)
    dcd.write_bytes(content)
    with pytest.raises(InputError, match="promises 1073741824 atoms"):
        load_trajectory(topology, dcd)


def test_reads_models_as_frames_and_compares_names(topology, write):
    body = topology.read_text().splitlines()
    moved = [line[:46] + f"{float(line[46:54]) + 1.0:8.3f}" + line[54:] for line in body]
    lines = ["MODEL        1", *body, "ENDMDL", "MODEL        2", *moved, "ENDMDL"]
    trajectory = load_trajectory(topology, write(lines, "models.pdb"))
    assert len(trajectory) == 2
    difference = trajectory.positions[1] - trajectory.positions[0]
    torch.testing.assert_close(difference, torch.tensor([0.0, 0.0, 1.0]).expand(21, 3))
    swapped = write([*body[:3], body[4], body[3], *body[5:]], "swapped.pdb")
    with pytest.raises(InputError, match="atom 4 is O, but C in the structure"):
        load_trajectory(topology, swapped)


def test_a_topology_of_conformations_leads_to_the_right_atoms(write, tmp_path):
    lines = peptide_lines(3)
    double = [line[:16] + label + line[17:] for line in lines[5:10] for label in "AB"]
    topology = write([*lines[:5], *double, *lines[10:]])
    structure = load_structure(topology)
    assert structure.file_atoms == 20
    whole = np.array(
        [
            [float(line[i : i + 8]) for i in (30, 38, 46)]
            for line in [*lines[:5], *double, *lines[10:]]
        ]
    )
    frames = np.stack([whole / 10 + 0.01 * k for k in range(3)])
    path = write_trr(tmp_path / "a.trr", frames.astype(np.float32))
    trajectory = load_trajectory(structure, path)
    np.testing.assert_allclose(trajectory.positions[0], structure.positions, atol=1e-4)


def test_reads_all_shared_trajectories_as_mdtraj_does(shared):
    for folder in ("proteins", "adk", "ensembles", "ala2"):
        for path in sorted((shared / folder).glob("*.xtc")):
            name = path.stem.split("_R")[0].removesuffix("_models")
            stop = 100
            trajectory = load_trajectory(shared / folder / f"{name}.pdb", path, stop=stop)
            with XTCTrajectoryFile(str(path)) as file:
                expected, times = file.read(stop)[:2]
            np.testing.assert_allclose(trajectory.positions, 10 * expected, atol=2e-4)
            np.testing.assert_allclose(trajectory.times_ps, times)
            assert trajectory.notices == ()


def test_no_wrong_frame_comes_from_damaged_bytes(topology, positions, xtc):
    """Flip bytes anywhere: frames that come back are right to 1 Å, or none comes."""
    structure, content = load_whole_structure(topology), xtc.read_bytes()
    rng = np.random.default_rng(7)
    outcomes = {"refused": 0, "read": 0}
    for _ in range(30):
        damaged = bytearray(content)
        for place in rng.integers(0, len(content), rng.integers(1, 9)):
            damaged[place] ^= int(rng.integers(1, 256))
        xtc.write_bytes(damaged)
        try:
            trajectory = load_trajectory(structure, xtc)
        except InputError:
            outcomes["refused"] += 1
            continue
        outcomes["read"] += 1
        wrong = np.linalg.norm(trajectory.positions.numpy()[:, None] - 10 * positions, axis=-1)
        assert wrong.max(axis=2).min(axis=1).max() < 1.0
    assert outcomes["refused"] > outcomes["read"]


def test_a_decoder_that_is_killed_makes_a_sentence(topology, xtc, monkeypatch, tmp_path):
    child = tmp_path / "child.py"
    child.write_text(
        "import os, signal\nprint('.', flush=True)\nos.kill(os.getpid(), signal.SIGSEGV)"
    )
    monkeypatch.setattr(trajectory_child, "__file__", str(child))
    with pytest.raises(InputError, match="frame 2 is damaged: the decoder was killed by signal 11"):
        load_trajectory(topology, xtc)


def test_mdtraj_reads_what_we_read(topology, xtc, positions):
    expected = mdtraj.load(str(xtc), top=str(topology))
    np.testing.assert_allclose(
        load_trajectory(topology, xtc).positions, 10 * expected.xyz, atol=1e-4
    )
