from dataclasses import replace

import mdtraj
import numpy as np
import pytest
import torch
from tests.data.fixed_point import swinging, write_fluid

from undula.data.recorded import (
    RecordConfig,
    even_spacing,
    record,
)
from undula.errors import InputError, UsageError
from undula.io import recordings, scratch
from undula.io.recordings import open_recordings
from undula.io.trajectories import load_trajectory


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def fluids(tmp_path):
    return [write_fluid(tmp_path / f"argon_{k}.npz", *swinging(40, 10, seed=k)) for k in range(3)]


def test_fluids_are_recorded_as_they_are(fluids, tmp_path):
    found = record(fluids, tmp_path / "out", RecordConfig(licence="CC0-1.0"))
    assert [recording.name for recording in found.recordings] == ["argon_0", "argon_1", "argon_2"]
    assert found.provenance["licence"] == "CC0-1.0"
    assert found.frame_ps == 0.1
    positions, velocities = swinging(40, 10, seed=2)
    recording = found.named("argon_2")
    np.testing.assert_allclose(recording.positions, 10 * positions, atol=0.0051)
    np.testing.assert_allclose(recording.velocities, 10 * velocities, atol=0.026)
    found.verify()


def test_every_nth_frame_is_kept_with_its_velocity(fluids, tmp_path):
    found = record(fluids[:1], tmp_path / "out", RecordConfig(stride=4)).recordings[0]
    whole = record(fluids[:1], tmp_path / "whole", RecordConfig()).recordings[0]
    assert found.frame_ps == pytest.approx(0.4)
    assert np.array_equal(found.positions, whole.positions[::4])
    assert np.array_equal(found.velocities, whole.velocities[::4])


def test_goes_on_after_a_kill_to_the_same_bytes_and_keeps_what_is_finished(fluids, tmp_path):
    record(fluids, tmp_path / "out", RecordConfig())
    before = contents(tmp_path / "out")
    (tmp_path / "out" / "manifest.json").unlink()
    (tmp_path / "out" / "argon_1.recording.json").unlink()
    (tmp_path / "out" / "argon_2.positions.npy").write_bytes(b"cut")
    told: list[str] = []
    record(fluids, tmp_path / "out", RecordConfig(), say=told.append)
    assert told == ["argon_0: kept", "argon_1: 40 frames", "argon_2: 40 frames"]
    assert contents(tmp_path / "out") == before
    record(fluids, tmp_path / "out", RecordConfig(), say=told.append)
    assert told[-1].endswith("is complete")


def test_a_folder_begun_otherwise_is_refused_by_name(fluids, tmp_path):
    record(fluids[:2], tmp_path / "out", RecordConfig())
    with pytest.raises(UsageError, match="begun with stride=1, not 2"):
        record(fluids[:2], tmp_path / "out", RecordConfig(stride=2))
    with pytest.raises(UsageError, match="other trajectories"):
        record(fluids, tmp_path / "out", RecordConfig())
    write_fluid(fluids[1], *swinging(40, 10, seed=9))
    with pytest.raises(InputError, match=r"argon_1\.npz has changed"):
        record(fluids[:2], tmp_path / "out", RecordConfig())


@pytest.fixture
def peptide_velocities(peptide, tmp_path):
    atoms = mdtraj.load(str(peptide[0])).n_atoms
    counts = np.random.default_rng(0).integers(-100, 100, size=(12, atoms, 3)).astype(np.int8)
    path = tmp_path / "velocities.npz"
    np.savez(
        path,
        velocity=counts,
        velocity_unit_nm_per_ps=np.float64(0.01),
        potential_kj_mol=np.arange(12, dtype=np.float32),
    )
    return path, counts


def test_velocities_and_energies_come_from_an_archive(peptide, peptide_velocities, tmp_path):
    topology, run, _ = peptide
    path, counts = peptide_velocities
    config = RecordConfig(stride=2)
    found = record([run], tmp_path / "out", config, topology=topology, velocities=[path])
    recording = found.recordings[0]
    np.testing.assert_allclose(recording.velocities, counts[::2] * 0.1, rtol=1e-6)
    assert recording.potential.tolist() == [0, 2, 4, 6, 8, 10]
    few = RecordConfig(stride=2, select="protein", hydrogens="drop")
    found = record([run], tmp_path / "few", few, topology=topology, velocities=[path])
    index = found.system.structure.file_index
    np.testing.assert_allclose(
        found.recordings[0].velocities, counts[::2][:, index] * 0.1, rtol=1e-6
    )


def test_velocities_of_other_atoms_or_frames_are_refused(peptide, peptide_velocities, tmp_path):
    topology, run, _ = peptide
    _, counts = peptide_velocities
    for velocity, said in ((counts[:, :-1], "velocity should be"), (counts, "does not belong")):
        np.savez(tmp_path / "v.npz", velocity=velocity, velocity_unit_nm_per_ps=np.float64(1))
        config = RecordConfig(frame_ps=1.0)
        runs = [run]
        if said == "does not belong":
            frames = mdtraj.load(str(run), top=str(topology))[:5]
            frames.save_xtc(str(tmp_path / "short.xtc"))
            runs = [tmp_path / "short.xtc"]
        with pytest.raises(InputError, match=said):
            record(
                runs, tmp_path / said, config, topology=topology, velocities=[tmp_path / "v.npz"]
            )


def test_aligned_recordings_lie_on_the_mean_of_the_reference(peptide, tmp_path):
    topology, *runs = peptide
    config = RecordConfig(align="mean", reference=("run1",))
    found = record(runs, tmp_path / "out", config, topology=topology)
    positions = torch.from_numpy(np.array(found.named("run1").positions)).double()
    torch.testing.assert_close(positions.mean(dim=0), found.reference, atol=1e-4, rtol=0)
    assert found.provenance["alignment"] == {"weights": "mass", "mean of": ["run1"]}
    (tmp_path / "out" / "manifest.json").unlink()
    before = contents(tmp_path / "out")
    record(runs, tmp_path / "out", config, topology=topology)
    after = contents(tmp_path / "out")
    assert {name: after[name] for name in before} == before


def test_the_reference_does_not_look_at_recordings_that_are_not_named(peptide, tmp_path):
    topology, *runs = peptide
    config = RecordConfig(align="mean")
    one = record(runs[:1], tmp_path / "one", config, topology=topology)
    both = record(runs, tmp_path / "both", config, topology=topology)
    assert torch.equal(one.reference, both.reference)


def test_waters_are_made_whole_and_followed_through_the_walls(tmp_path, request):
    edge, speed = 12.0, 0.7
    whole = np.array([[0.0, 0.0, 0.0], [0.957, 0.0, 0.0], [-0.24, 0.927, 0.0]])
    path = whole + np.arange(40)[:, None, None] * np.array([speed, 0.3, -0.5])
    top = mdtraj.Topology()
    residue = top.add_residue("HOH", top.add_chain())
    for name in ("O", "H1", "H2"):
        top.add_atom(name, mdtraj.element.get_by_symbol(name[0]), residue)
    frames = mdtraj.Trajectory(
        path % edge / 10,
        top,
        time=np.arange(40) * 0.5,
        unitcell_lengths=np.full((40, 3), edge / 10),
        unitcell_angles=np.full((40, 3), 90.0),
    )
    frames[0].save_pdb(str(tmp_path / "w.pdb"))
    frames.save_xtc(str(tmp_path / "w.xtc"))
    found = record(
        [tmp_path / "w.xtc"], tmp_path / "out", RecordConfig(), topology=tmp_path / "w.pdb"
    )
    recording = found.recordings[0]
    assert abs(np.diff(recording.positions, axis=0)).max() < 1
    oxygen = recording.positions[:, :1]
    np.testing.assert_allclose(recording.positions - oxygen, path - path[:, :1], atol=0.03)
    assert recording.boxes.shape == (3, 3)
    assert found.system.kinds.tolist() == ["O(HH)", "H(O(H))", "H(O(H))"]
    request.getfixturevalue("through_disk")
    record([tmp_path / "w.xtc"], tmp_path / "disk", RecordConfig(), topology=tmp_path / "w.pdb")
    assert contents(tmp_path / "disk") == contents(tmp_path / "out")


@pytest.fixture
def through_disk(monkeypatch):
    """Let a few frames be read and worked on at once, and count the files on disk."""
    made = []
    empty = scratch.Scratch.empty

    def counted(self, *shape, dtype=torch.float32):
        found = empty(self, *shape, dtype=dtype)
        made.append(len(self._maps))
        return found

    for module in (scratch, recordings):
        monkeypatch.setattr(module, "HELD_BYTES", 1000)
    monkeypatch.setattr(scratch, "READ_BYTES", 3000)
    monkeypatch.setattr(scratch, "WORK_BYTES", 1000)
    monkeypatch.setattr(scratch.Scratch, "empty", counted)
    return made


@pytest.mark.parametrize("com", ["keep", "remove"])
def test_many_frames_go_through_the_disk_to_the_same_bytes(
    com, peptide, peptide_velocities, tmp_path, request
):
    topology, run, _ = peptide
    velocities, config = [peptide_velocities[0]], RecordConfig(com=com)
    held = record([run], tmp_path / "held", config, topology=topology, velocities=velocities)
    made = request.getfixturevalue("through_disk")
    record([run], tmp_path / "disk", config, topology=topology, velocities=velocities)
    assert max(made) >= 1
    assert contents(tmp_path / "disk") == contents(tmp_path / "held")
    assert held.recordings[0].differences is not None


def test_many_frames_are_aligned_through_the_disk(peptide, tmp_path, request):
    topology, *runs = peptide
    config = RecordConfig(align="mean")
    held = record(runs, tmp_path / "held", config, topology=topology)
    made = request.getfixturevalue("through_disk")
    disk = record(runs, tmp_path / "disk", config, topology=topology)
    assert max(made) >= 1
    torch.testing.assert_close(disk.reference, held.reference, rtol=0, atol=1e-9)
    for one, other in zip(disk.recordings, held.recordings, strict=True):
        np.testing.assert_allclose(one.positions, other.positions, rtol=0, atol=1e-5)


def test_uneven_frames_are_refused_with_the_first_odd_one(peptide, tmp_path):
    topology, run, _ = peptide
    frames = mdtraj.load(str(run), top=str(topology))
    frames.time = np.array([*range(7), *range(9, 14)])
    frames.save_xtc(str(tmp_path / "gap.xtc"))
    with pytest.raises(
        InputError, match=r"gap\.xtc: frames are not evenly spaced.*7 and 8 are 3 ps"
    ):
        record([tmp_path / "gap.xtc"], tmp_path / "out", RecordConfig(), topology=topology)
    config = RecordConfig(frame_ps=0.5)
    found = record([tmp_path / "gap.xtc"], tmp_path / "out2", config, topology=topology)
    assert found.frame_ps == 0.5


def test_late_times_in_single_precision_count_as_even(peptide):
    topology, run, _ = peptide
    read = load_trajectory(topology, run)
    late = torch.from_numpy(np.float32(250_000) + np.arange(12, dtype=np.float32) * np.float32(0.1))
    spaced = replace(read, times_ps=late.double())
    assert even_spacing(run, spaced) == pytest.approx(0.1, abs=0.005)
    with pytest.raises(InputError, match="at least two frames"):
        even_spacing(run, read.frames(slice(1)))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"stride": 0}, "stride should be at least 1, not 0"),
        ({"com": "drop"}, "com should be keep or remove, not drop"),
        ({"align": "first"}, "align should be none or mean"),
        ({"reference": ("a",)}, "add align=mean"),
    ],
)
def test_rules_that_cannot_be_meant_are_refused(options, said):
    with pytest.raises(UsageError, match=said):
        RecordConfig(**options)


def test_options_that_do_not_go_together_are_refused(fluids, peptide, tmp_path):
    out = tmp_path / "out"
    for config, said in (
        (RecordConfig(align="mean"), "single molecule, there are 8 in a box"),
        (RecordConfig(hydrogens="drop"), "hydrogens chooses atoms of a topology"),
        (RecordConfig(align="mean", reference=("argon_9",)), "reference names argon_9"),
    ):
        with pytest.raises(UsageError, match=said):
            record(fluids, out / said[:5], config)
    with pytest.raises(UsageError, match="no trajectory"):
        record([], out, RecordConfig(), topology=peptide[0])
    with pytest.raises(UsageError, match="1 files of velocities for 2"):
        record(peptide[1:], out, RecordConfig(), topology=peptide[0], velocities=fluids[:1])


def test_fluids_of_other_atoms_do_not_belong_together(fluids, tmp_path):
    positions, velocities = swinging(40, 10, seed=5)
    fewer = write_fluid(tmp_path / "fewer.npz", positions[:, :7], velocities[:, :7])
    with pytest.raises(InputError, match="holds other atoms than"):
        record([fluids[0], fewer], tmp_path / "out", RecordConfig())


def test_argon_may_be_differenced_and_water_not(shared, tmp_path):
    for file, valid, share in (("argon/argon_0", True, 0.07), ("tip3p/tip3p_0", False, 0.96)):
        found = record([shared / f"{file}.npz"], tmp_path / file, RecordConfig())
        recording = open_recordings(found.folder).recordings[0]
        assert recording.differences.valid is valid
        assert recording.differences.error == pytest.approx(share, abs=0.01)
        assert (recording.differenced_velocity(900) is not None) is valid
