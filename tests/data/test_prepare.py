import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from undula.data.prepare import aligned, labelled_points, prepare, surface_of
from undula.data.prepare_config import PrepareConfig
from undula.errors import InputError, UsageError
from undula.geometry.frames import rmsd
from undula.io.datasets import open_dataset
from undula.io.structures import load_structure
from undula.io.trajectories import load_trajectory

CONFIG = PrepareConfig(near=64, local=16, uniform=16, frames_per_shard=5)


@pytest.fixture(scope="module")
def folder(peptide, tmp_path_factory):
    topology, first, second = peptide
    out = tmp_path_factory.mktemp("prepared") / "set"
    prepare(topology, [first, second], out, CONFIG, holdout=[second])
    return out


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_surface_rows_lie_on_the_exact_surface_of_their_frame(folder):
    dataset = open_dataset(folder)
    trajectory = dataset.trajectories[0]
    for frame in (0, 7, 11):
        rows = torch.from_numpy(np.array(trajectory.surface(frame))).double()
        positions = torch.from_numpy(np.array(trajectory.positions[frame])).double()
        exact = surface_of(_moved(dataset.structure, positions))
        value, gradient = exact.signed_distance_and_gradient(rows[:, :3])
        assert value.abs().max() < 1e-4
        assert (gradient - rows[:, 3:6]).norm(dim=1).quantile(0.99) < 1e-2
        assert (rows[:, 6] > 0).all()


def test_pool_rows_hold_exact_distances_of_the_frame_and_of_the_first(folder):
    dataset = open_dataset(folder)
    trajectory = dataset.trajectories[1]
    rows = torch.from_numpy(np.array(trajectory.pool(9))).double()
    for frame, columns in ((9, slice(3, 7)), (0, slice(7, 11))):
        positions = torch.from_numpy(np.array(trajectory.positions[frame])).double()
        exact = surface_of(_moved(dataset.structure, positions))
        value, gradient = exact.signed_distance_and_gradient(rows[:, :3])
        found = rows[:, columns]
        torch.testing.assert_close(found[:, 0], value, atol=1e-4, rtol=1e-4)
        assert (found[:, 1:] - gradient).norm(dim=1).quantile(0.95) < 1e-2


def test_pool_rows_are_near_local_and_uniform(folder):
    rows = np.array(open_dataset(folder).trajectories[0].pool(3))
    near, local, uniform = np.split(abs(rows[:, 3]), [64, 80])
    assert near.mean() < local.mean() < uniform.mean()


def test_the_compact_form_holds_the_same_rows_in_a_third_of_the_space(folder, peptide, tmp_path):
    topology, first, second = peptide
    compact = replace(CONFIG, storage="compact")
    prepare(topology, [first, second], tmp_path / "set", compact, holdout=[second])
    full, packed = (open_dataset(one, verify=True) for one in (folder, tmp_path / "set"))
    for one, other in zip(full.trajectories, packed.trajectories, strict=True):
        for frame in (0, 4, 5, 11):
            for kind in ("surface", "pool"):
                before, after = (np.array(getattr(t, kind)(frame)) for t in (one, other))
                assert after.dtype == before.dtype == np.float32
                assert abs(after[:, :3] - before[:, :3]).max() < 5e-4
                assert abs(after - before).max() < 0.02
    shards = "run?/surface-*.npy", "run?/pool-*.npy"
    sizes = [
        sum(path.stat().st_size - 128 for name in shards for path in place.glob(name))
        for place in (folder, tmp_path / "set")
    ]
    assert sizes[1] * 44 == sizes[0] * 14


def test_an_unknown_storage_is_refused():
    with pytest.raises(UsageError, match="full or compact, not tiny"):
        PrepareConfig(storage="tiny")


def test_all_trajectories_share_the_pose_of_the_first_frame(folder, peptide):
    dataset = open_dataset(folder)
    on = dataset.structure.alpha_carbons.numpy()
    first = dataset.trajectories[0].positions[0]
    assert np.allclose(dataset.structure.positions.numpy(), first, atol=1e-4)
    second = dataset.trajectories[1].positions[0]
    raw = load_trajectory(load_structure(peptide[0]), peptide[2]).positions[0].numpy()
    as_read = np.sqrt(((raw[on] - first[on]) ** 2).sum(axis=1).mean())
    as_stored = np.sqrt(((second[on] - first[on]) ** 2).sum(axis=1).mean())
    assert as_stored <= as_read + 1e-4


def test_superposing_never_raises_the_rmsd(peptide):
    raw = load_trajectory(load_structure(peptide[0]), peptide[1])
    posed = aligned(raw)
    on = raw.structure.alpha_carbons
    before = rmsd(raw.positions[:, on], raw.positions[0, on])
    after = rmsd(posed.positions[:, on], posed.positions[0, on])
    assert (after <= before + 1e-4).all()
    assert posed.times_ps[0] == 0


def test_times_count_from_the_first_frame(folder):
    times = open_dataset(folder).trajectories[1].times_ps
    assert times[0] == 0
    assert np.allclose(np.diff(times), 5.0)


def test_the_manifest_names_every_file_with_its_hash(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    on_disk = set(contents(folder)) - {"manifest.json"}
    assert set(manifest["files"]) == on_disk
    assert len(open_dataset(folder, verify=True).trajectories) == 2
    assert [entry["holdout"] for entry in manifest["trajectories"]] == [False, True]


def test_data_are_the_same_whatever_version_prepared_them(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["versions"]["numpy"] = "of another year"
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert open_dataset(copy).sha256 == open_dataset(folder).sha256
    manifest["files"]["structure.npy"] = "0" * 64
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert open_dataset(copy).sha256 != open_dataset(folder).sha256


@pytest.mark.parametrize("shards_done", [0, 2, 4])
def test_a_killed_preparation_resumes_to_the_same_bytes(folder, peptide, tmp_path, shards_done):
    topology, first, second = peptide
    out = tmp_path / "set"

    class KilledError(Exception):
        pass

    def say(_):
        nonlocal shards_done
        if shards_done == 0:
            raise KilledError
        shards_done -= 1

    with pytest.raises(KilledError):
        prepare(topology, [first, second], out, CONFIG, holdout=[second], say=say)
    assert not (out / "manifest.json").exists()
    # Everything is read before the first file is written.
    with pytest.raises(InputError, match="not complete" if out.exists() else "does not exist"):
        open_dataset(out)
    prepare(topology, [first, second], out, CONFIG, holdout=[second])
    assert contents(out) == contents(folder)


def test_a_damaged_shard_is_made_again(folder, peptide, tmp_path):
    topology, first, second = peptide
    out = tmp_path / "set"
    shutil.copytree(folder, out)
    (out / "manifest.json").unlink()
    shard = out / "run1" / "pool-0001.npy"
    shard.write_bytes(shard.read_bytes()[:-5])
    prepare(topology, [first, second], out, CONFIG, holdout=[second])
    assert contents(out) == contents(folder)


def test_a_changed_input_is_refused(folder, peptide, tmp_path):
    topology, first, second = peptide
    changed = tmp_path / first.name
    changed.write_bytes(second.read_bytes())
    out = tmp_path / "set"
    shutil.copytree(folder, out)
    with pytest.raises(InputError, match=r"run1\.xtc has changed"):
        prepare(topology, [changed, second], out, CONFIG, holdout=[second])


def test_other_rules_are_refused_and_named(folder, peptide):
    topology, first, second = peptide
    other = PrepareConfig(near=64, local=16, uniform=16, frames_per_shard=5, spacing=2.0)
    with pytest.raises(UsageError, match=r"begun with spacing=1\.0, not 2\.0"):
        prepare(topology, [first, second], folder, other, holdout=[second])


def test_a_folder_of_something_else_is_left_alone(peptide, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="not a data set folder"):
        prepare(peptide[0], [peptide[1]], tmp_path, CONFIG)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_changed_file_is_found_when_verifying(folder, tmp_path):
    out = tmp_path / "set"
    shutil.copytree(folder, out)
    target = out / "run2" / "surface-0000.npy"
    damaged = bytearray(target.read_bytes())
    damaged[-3] ^= 1
    target.write_bytes(bytes(damaged))
    with pytest.raises(InputError, match=r"surface-0000\.npy has changed"):
        open_dataset(out, verify=True)


def test_inputs_are_not_written(peptide, folder):
    assert sorted(path.name for path in peptide[0].parent.iterdir()) == [
        "peptide.pdb",
        "run1.xtc",
        "run2.xtc",
    ]


def test_labelled_points_repeat_with_the_generator(peptide):
    structure = load_structure(peptide[0])
    exact = surface_of(structure)
    box = structure.positions.amin(dim=0), structure.positions.amax(dim=0)
    draws = [
        labelled_points(exact, exact, box, CONFIG, torch.Generator().manual_seed(2))
        for _ in range(2)
    ]
    assert torch.equal(draws[0][0], draws[1][0])
    assert torch.equal(draws[0][1], draws[1][1])
    assert torch.equal(draws[0][1][:, 3], draws[0][1][:, 7])


def _moved(structure, positions):
    return replace(structure, positions=positions)
