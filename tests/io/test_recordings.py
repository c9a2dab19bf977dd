import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.motion.small_systems import pairs, vibrating
from tests.motion.small_systems import recorded as recorded_in

from undula import atomic
from undula.errors import InputError, Notice
from undula.io.kinds import molecular_system
from undula.io.recordings import (
    Differences,
    RecordedFrames,
    central_differences,
    finish_recordings,
    is_recorded,
    open_recordings,
    write_recording,
)
from undula.types import Structure

ATOMS = 4
NOTICE = Notice(code="told", message="something was assumed")


def system(charges=None):
    structure = Structure(
        name="pairs",
        positions=torch.arange(ATOMS * 3, dtype=torch.float64).reshape(ATOMS, 3) / 3,
        elements=np.array(["O", "H", "O", "H"]),
        atom_names=np.array(["O", "H", "O", "H"]),
        residue_names=np.full(ATOMS, "OH"),
        residue_numbers=np.array([1, 1, 2, 2]),
        insertion_codes=np.full(ATOMS, ""),
        chain_ids=np.full(ATOMS, "A"),
        residue_index=np.array([0, 0, 1, 1]),
        file_index=np.arange(ATOMS),
        file_atoms=ATOMS,
    )
    return molecular_system(structure, torch.tensor([[0, 2], [1, 3]]), charges)


def recorded(frames=12, known=5, seed=0, **others):
    generator = torch.Generator().manual_seed(seed)
    values = {
        "positions": torch.randn(frames, ATOMS, 3, generator=generator),
        "velocities": torch.randn(known, ATOMS, 3, generator=generator),
        "frame_ps": 0.1,
        "box": torch.eye(3, dtype=torch.float64) * 20,
        "potential": torch.arange(frames, dtype=torch.float64),
        "notices": (NOTICE,),
    }
    return RecordedFrames(**values | others)


def written(folder, recordings, **others):
    folder.mkdir(exist_ok=True)
    atomic.write_json(folder / "request.json", {"rules": {}})
    for name, frames in recordings.items():
        write_recording(folder, name, frames)
    given = {"provenance": {"origin": "a test", "licence": "CC0-1.0"}, "notices": (NOTICE,)}
    return finish_recordings(
        folder, others.pop("system", system()), list(recordings), {"rules": {}}, **given | others
    )


def test_what_is_written_is_read_again(tmp_path):
    first, charges = recorded(), torch.tensor([-0.8, 0.4, -0.8, 1.2], dtype=torch.float64)
    reference = torch.randn(ATOMS, 3, dtype=torch.float64)
    second = recorded(frames=7, known=7, seed=1, start_ps=3.0)
    found = written(
        tmp_path, {"a": first, "b": second}, system=system(charges), reference=reference
    )
    assert found.frame_ps == 0.1
    assert found.provenance["licence"] == "CC0-1.0"
    assert found.system.kinds.tolist() == ["O(H)", "H(O)"] * 2
    assert torch.equal(found.system.molecules, torch.tensor([0, 0, 1, 1]))
    assert torch.equal(found.system.charges, charges)
    assert torch.equal(found.reference, reference)
    assert found.system.structure.elements.tolist() == ["O", "H", "O", "H"]
    a, b = found.recordings
    assert torch.equal(torch.from_numpy(np.array(a.positions)), first.positions)
    assert (len(a), a.velocity_frames, a.start_ps) == (12, 5, 0.0)
    assert (len(b), b.velocity_frames, b.start_ps) == (7, 7, 3.0)
    assert a.potential.tolist() == list(range(12))
    assert found.manifest["notices"] == [NOTICE.as_dict()]
    found.verify()


def test_a_slice_has_velocities_only_if_all_its_frames_have(tmp_path):
    frames = recorded()
    recording = written(tmp_path, {"a": frames}).named("a")
    positions, velocities, box = recording.slice(2, 5)
    assert torch.equal(positions, frames.positions[2:5])
    assert torch.equal(velocities, frames.velocities[2:5])
    assert torch.equal(box, torch.eye(3) * 20)
    assert recording.slice(2, 6)[1] is None
    assert torch.equal(recording.velocity(4), frames.velocities[4])
    assert recording.velocity(5) is None
    for start, stop in ((-1, 3), (3, 3), (5, 13)):
        with pytest.raises(IndexError, match="asked for"):
            recording.slice(start, stop)
    with pytest.raises(IndexError):
        recording.velocity(12)


def test_a_box_that_changes_is_that_of_the_last_frame(tmp_path):
    boxes = torch.eye(3, dtype=torch.float64) * torch.arange(10, 22)[:, None, None]
    recording = written(tmp_path, {"a": recorded(box=boxes)}).named("a")
    assert torch.equal(recording.slice(0, 4)[2], torch.eye(3) * 13)
    assert torch.equal(recording.box(7), torch.eye(3) * 17)


def test_what_is_not_known_is_none(tmp_path):
    bare = recorded(velocities=None, box=None, potential=None)
    found = written(tmp_path, {"a": bare})
    recording = found.named("a")
    assert recording.slice(0, 3)[1:] == (None, None)
    assert recording.velocity(0) is recording.potential is recording.box(0) is None
    assert recording.differenced_velocity(5) is None
    assert found.reference is found.system.charges is None


def test_differences_are_exact_for_polynomials_of_degree_four():
    time = torch.arange(9, dtype=torch.float64) * 0.1
    positions = (2 + 3 * time - time**2 + 5 * time**3 - 7 * time**4)[:, None, None].expand(9, 2, 3)
    expected = (3 - 2 * time + 15 * time**2 - 28 * time**3)[2:-2, None, None].expand(5, 2, 3)
    torch.testing.assert_close(central_differences(positions, 0.1), expected)


def test_differences_of_an_oscillation_lose_the_stated_share_of_its_speed():
    for theta, share in ((1.0, 0.97), (2.0, 0.67), (math.pi, 0.0)):
        path = torch.sin(theta * torch.arange(-2, 3, dtype=torch.float64))[:, None, None]
        found = central_differences(path.expand(5, 1, 3), 1.0)
        assert float(found[0, 0, 0]) / theta == pytest.approx(share, abs=0.005)


def test_differenced_velocities_need_valid_differences_and_two_frames_on_each_side(tmp_path):
    valid = Differences(error=0.05, by="velocities", valid=True)
    frames = recorded(differences=valid)
    recordings = {
        "a": frames,
        "b": replace(frames, differences=replace(valid, error=0.9, valid=False)),
    }
    found = written(tmp_path, recordings)
    expected = central_differences(frames.positions.double(), 0.1)[3].float()
    torch.testing.assert_close(found.named("a").differenced_velocity(5), expected)
    assert [found.named("a").differenced_velocity(f) is None for f in (0, 1, 2, 9, 10, 11)] == [
        True,
        True,
        False,
        False,
        True,
        True,
    ]
    assert found.named("b").differenced_velocity(5) is None


def test_the_same_recordings_have_the_same_bytes(tmp_path):
    one = written(tmp_path / "one", {"a": recorded()})
    other = written(tmp_path / "other", {"a": recorded()})
    assert [(one.folder / "manifest.json").read_bytes(), one.sha256] == [
        (other.folder / "manifest.json").read_bytes(),
        other.sha256,
    ]


def test_what_was_noticed_and_by_which_version_does_not_make_other_data(tmp_path):
    one = written(tmp_path / "one", {"a": recorded()})
    noticed = recorded(notices=(Notice(code="atoms-guessed", message="in other words"),))
    other = written(tmp_path / "other", {"a": noticed}, provenance={"origin": "said otherwise"})
    path = other.folder / "manifest.json"
    manifest = atomic.read_json(path)
    manifest["versions"]["numpy"] = "of another year"
    path.write_text(json.dumps(manifest))
    assert open_recordings(other.folder).sha256 == one.sha256


@pytest.mark.parametrize(
    "changes",
    [
        {"frame_ps": 0.2},
        {"start_ps": 5.0},
        {"velocities": None},
        {"differences": Differences(error=0.05, by="velocities", valid=True)},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_frames_are_makes_other_data(tmp_path, changes):
    frames = recorded()
    one = written(tmp_path / "one", {"a": frames})
    other = written(tmp_path / "other", {"a": replace(frames, **changes)})
    moved = replace(frames, positions=frames.positions + 1)
    third = written(tmp_path / "third", {"a": moved})
    named = written(tmp_path / "named", {"b": frames})
    assert len({each.sha256 for each in (one, other, third, named)}) == 4


def test_a_recording_is_recorded_only_while_its_files_are_as_written(tmp_path):
    assert not is_recorded(tmp_path, "a")
    write_recording(tmp_path, "a", recorded())
    assert is_recorded(tmp_path, "a")
    write_recording(tmp_path, "b", recorded())
    (tmp_path / "b.velocities.npy").unlink()
    assert not is_recorded(tmp_path, "b")
    (tmp_path / "a.positions.npy").write_bytes(b"cut")
    assert not is_recorded(tmp_path, "a")


def test_a_changed_file_is_found(tmp_path):
    found = written(tmp_path, {"a": recorded()})
    path = tmp_path / "a.potential.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    with pytest.raises(InputError, match=r"a\.potential\.npy has changed"):
        found.verify()


def test_arrays_of_another_shape_are_refused_when_opened(tmp_path):
    written(tmp_path, {"a": recorded()})
    np.save(tmp_path / "a.positions.npy", np.zeros((12, ATOMS, 3)))
    with pytest.raises(
        InputError, match=r"positions\.npy should hold 12 × 4 × 3 numbers of float32"
    ):
        open_recordings(tmp_path)
    (tmp_path / "a.positions.npy").write_bytes(b"cut")
    with pytest.raises(InputError, match=r"positions\.npy is damaged"):
        open_recordings(tmp_path)
    (tmp_path / "a.positions.npy").unlink()
    with pytest.raises(InputError, match=r"positions\.npy is missing"):
        open_recordings(tmp_path)


def test_another_folder_is_refused_by_what_it_is(tmp_path):
    with pytest.raises(InputError, match="do not exist"):
        open_recordings(tmp_path / "nowhere")
    with pytest.raises(InputError, match="are not complete"):
        open_recordings(tmp_path)
    written(tmp_path, {"a": recorded()})
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    for key, value, said in (
        ("kind", "surfaces", "no recordings of atoms"),
        ("format", 99, "format 99, not 1"),
        ("recordings", [{"name": "a"}], "damaged"),
    ):
        (tmp_path / "manifest.json").write_text(json.dumps(manifest | {key: value}))
        with pytest.raises(InputError, match=said):
            open_recordings(tmp_path)


def test_recordings_of_another_time_between_frames_do_not_belong_together(tmp_path):
    with pytest.raises(InputError, match=r"the frames of b are 0\.2 ps apart, those of a 0\.1 ps"):
        written(tmp_path, {"a": recorded(), "b": recorded(frame_ps=0.2)})
    assert not (tmp_path / "manifest.json").exists()


def test_an_unknown_name_is_answered_with_the_known(tmp_path):
    with pytest.raises(InputError, match="no recording c; it has a, b"):
        written(tmp_path, {"a": recorded(), "b": recorded()}).named("c")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"positions": torch.zeros(0, ATOMS, 3), "potential": None}, "at least one frame"),
        ({"frame_ps": 0.0}, "should be positive"),
        ({"velocities": torch.zeros(13, ATOMS, 3)}, "first frames of 12 × 4 × 3"),
        ({"velocities": torch.zeros(0, ATOMS, 3)}, "found 0 × 4 × 3"),
        ({"positions": torch.full((12, ATOMS, 3), math.nan)}, "positions are not finite"),
        (
            {"potential": torch.full((12,), math.inf)},
            "potential energies are not finite, first in frame 1",
        ),
    ],
)
def test_frames_that_cannot_be_are_refused(change, said):
    with pytest.raises(InputError, match=said):
        recorded(**change)


@pytest.mark.parametrize("name", ["../up.npy", "/etc/passwd", "a/../../up", "..", "", "a\\b"])
def test_a_manifest_that_names_a_file_elsewhere_is_refused(tmp_path, name):
    folder = tmp_path / "set"
    recorded_in(folder, pairs(1), [vibrating(1, 9, torch.Generator().manual_seed(0))])
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name] = "0" * 64
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="names a file elsewhere"):
        open_recordings(folder)


@pytest.mark.parametrize(
    ("key", "value"), [("frame_ps", 0.2), ("start_ps", 1.0), ("frames", 8), ("box", "constant")]
)
def test_a_manifest_that_differs_from_its_descriptions_is_refused(tmp_path, key, value):
    """Nothing signs a manifest; what it says is said elsewhere too."""
    folder = tmp_path / "set"
    recorded_in(folder, pairs(1), [vibrating(1, 9, torch.Generator().manual_seed(0))])
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["recordings"][0][key] = value
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=f"{key} of run_0 differs"):
        open_recordings(folder)
