import hashlib
import io
import json
import shutil
import zipfile

import mdtraj
import pytest
from tests.loopback import serving

from undula.data import atlas
from undula.data.atlas import fetch, prepare_atlas, proteins
from undula.data.bundled import villin
from undula.data.prepare_config import PrepareConfig
from undula.errors import InputError, MachineError, UsageError
from undula.io.datasets import open_dataset
from undula.io.downloads import DownloadConfig, verify_fetched

NAME = "1vii_A"
CONFIG = PrepareConfig(stride=4, near=32, local=16, uniform=16, frames_per_shard=5)
QUICK = DownloadConfig(pause_s=0.0, attempts=2, timeout_s=2.0)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Return the first residues of villin in the layout of the database: name → content."""
    folder = tmp_path_factory.mktemp("files")
    topology, trajectory, _ = villin()
    frames = mdtraj.load(str(trajectory), top=str(topology))
    few = frames.atom_slice(frames.topology.select("resid < 6 and element != H"))
    few[0].save_pdb(str(folder / f"{NAME}.pdb"))
    for number, start in ((1, 0), (2, 40), (3, 70)):
        few[start : start + 12].save_xtc(str(folder / f"{NAME}_R{number}.xtc"))
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def archive_of(files):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in files.items():
            opened.writestr(name, content)
    return packed.getvalue()


@pytest.fixture
def server(files):
    with serving() as loopback:
        loopback.files[f"/protein/{NAME}"] = archive_of({**files, "README.txt": b"read me"})
        yield loopback


@pytest.fixture
def local(files, tmp_path):
    folder = tmp_path / "local" / NAME
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def bring(server, out, name=NAME, **more):
    more = {"config": QUICK, "base_url": f"{server.url}/protein/{{name}}", **more}
    return fetch(name, out, **more)


def names(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


OURS = [f"{NAME}/{NAME}{end}" for end in (".json", ".pdb", "_R1.xtc", "_R2.xtc", "_R3.xtc")]


def test_a_protein_comes_with_its_replicas_its_licence_and_nothing_else(server, files, tmp_path):
    folder = bring(server, tmp_path)
    assert names(tmp_path) == OURS
    assert all((folder / name).read_bytes() == content for name, content in files.items())
    record = verify_fetched(folder)
    assert record["licence"].startswith("CC-BY-NC-4.0")
    assert "gkad1084" in record["cite"]
    assert record["archive"] == {
        "url": f"{server.url}/protein/{NAME}",
        "sha256": hashlib.sha256(server.files[f"/protein/{NAME}"]).hexdigest(),
        "size": len(server.files[f"/protein/{NAME}"]),
    }


def test_what_is_there_is_checked_and_not_brought_again(server, tmp_path):
    folder = bring(server, tmp_path)
    asked = len(server.asked)
    assert bring(server, tmp_path) == folder
    assert len(server.asked) == asked
    with (folder / f"{NAME}_R2.xtc").open("ab") as file:
        file.write(b"x")
    with pytest.raises(InputError, match=r"1vii_A_R2\.xtc has changed since it was fetched"):
        bring(server, tmp_path)


def test_a_fetch_that_was_cut_goes_on_in_the_next_call(server, tmp_path):
    whole = len(server.files[f"/protein/{NAME}"])
    server.cuts = [1000, 1000]
    with pytest.raises(MachineError, match="2000 bytes are kept"):
        bring(server, tmp_path)
    bring(server, tmp_path)
    assert server.sent == whole
    assert names(tmp_path) == OURS


def test_an_unpacking_that_was_cut_goes_on_in_the_next_call(server, tmp_path, monkeypatch):
    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(atlas.atomic, "write_json", lambda path, value: die())
    monkeypatch.setattr("undula.io.downloads.atomic.write_json", lambda path, value: "")
    monkeypatch.setattr(atlas, "extract", die)
    with pytest.raises(KeyboardInterrupt):
        bring(server, tmp_path)
    monkeypatch.undo()
    assert names(tmp_path) == [f"{NAME}.zip"]
    bring(server, tmp_path)
    assert len(server.asked) == 1
    assert names(tmp_path) == OURS


def test_the_long_names_of_some_archives_become_the_short_ones(server, files, tmp_path):
    long = {
        "protein/" + name.replace("_R", "_prod_R").replace(".xtc", "_fit.xtc"): content
        for name, content in files.items()
    }
    server.files[f"/protein/{NAME}"] = archive_of(long)
    bring(server, tmp_path)
    assert names(tmp_path) == OURS


def test_the_environment_names_a_mirror(server, tmp_path, monkeypatch):
    monkeypatch.setenv("UNDULA_ATLAS_URL", f"{server.url}/protein/{{name}}")
    bring(server, tmp_path, base_url=None)
    monkeypatch.setenv("UNDULA_ATLAS_URL", server.url)
    with pytest.raises(UsageError, match=r"should have \{name\}"):
        bring(server, tmp_path, name="1abc_A", base_url=None)


def test_a_protein_that_is_not_in_the_database_is_named(server, tmp_path):
    with pytest.raises(InputError, match="ATLAS has no 9xyz_B"):
        bring(server, tmp_path, name="9xyz_B")
    assert names(tmp_path) == []


def test_a_wrong_hash_leaves_nothing(server, tmp_path):
    with pytest.raises(InputError, match="as promised"):
        bring(server, tmp_path, sha256="0" * 64)
    assert names(tmp_path) == []


def test_an_incomplete_or_damaged_archive_is_removed_and_named(server, files, tmp_path):
    some = {name: content for name, content in files.items() if "R3" not in name}
    server.files[f"/protein/{NAME}"] = archive_of(some)
    with pytest.raises(InputError, match=r"has no 1vii_A_R3\.xtc; it was removed"):
        bring(server, tmp_path)
    server.files[f"/protein/{NAME}"] = archive_of(files)[:-50]
    with pytest.raises(InputError, match=r"not a whole zip archive.*; it was removed"):
        bring(server, tmp_path)
    server.files[f"/protein/{NAME}"] = archive_of({**files, "../../evil": b"x"})
    with pytest.raises(InputError, match=r"unsafe.*; it was removed"):
        bring(server, tmp_path)
    assert names(tmp_path) == []


def test_two_files_for_one_replica_are_refused(server, files, tmp_path):
    more = {**files, f"{NAME}_prod_R1_fit.xtc": b"x"}
    server.files[f"/protein/{NAME}"] = archive_of(more)
    with pytest.raises(InputError, match="has replica 1 of 1vii_A twice"):
        bring(server, tmp_path)
    server.files[f"/protein/{NAME}"] = archive_of({**files, f"old/{NAME}_R1.xtc": b"x"})
    with pytest.raises(InputError, match=r"holds 1vii_A_R1\.xtc twice"):
        bring(server, tmp_path)


def test_a_folder_of_another_origin_is_not_touched(server, local):
    with pytest.raises(UsageError, match="was not made by a fetch"):
        bring(server, local.parent)
    assert len(names(local)) == 4


@pytest.mark.parametrize("name", ["1VII_A", "1vii", "1vii_", "../etc", "villin_A", "1vii_A/x", ""])
def test_what_cannot_be_a_name_is_refused_before_the_network_is_used(server, tmp_path, name):
    with pytest.raises(UsageError, match="is no ATLAS name"):
        bring(server, tmp_path, name=name)
    assert server.asked == []


def test_a_fetched_protein_becomes_a_data_set_with_replicas_apart(server, tmp_path):
    bring(server, tmp_path / "raw")
    made = prepare_atlas(tmp_path / "raw", tmp_path / "sets", CONFIG, holdout_replica=3)
    assert made.skipped == {}
    dataset = open_dataset(tmp_path / "sets" / NAME, verify=True)
    assert [(t.name, len(t), t.holdout) for t in dataset.trajectories] == [
        (f"{NAME}_R1", 3, False),
        (f"{NAME}_R2", 3, False),
        (f"{NAME}_R3", 3, True),
    ]
    record = json.loads((tmp_path / "sets" / "atlas.json").read_text())
    assert record["datasets"] == {NAME: dataset.sha256}
    assert record["licence"].startswith("CC-BY-NC-4.0")


def test_every_300th_frame_is_the_default():
    assert PrepareConfig(stride=300) == atlas.PREPARE_CONFIG
    assert len(range(0, 10_000, 300)) == 34


def test_one_that_fails_is_skipped_and_the_others_are_made(local, tmp_path):
    for other in ("2aaa_A", "2bbb_A", "2ccc_A"):
        for path in local.iterdir():
            shutil.copy(path, local.parent / path.name.replace(NAME, other))
    (local.parent / "2aaa_A_R2.xtc").write_bytes(b"junk")
    (local.parent / "2bbb_A_R3.xtc").unlink()
    (local.parent / "2ccc_A.zip.part").write_bytes(b"PK")
    made = prepare_atlas(local.parent, tmp_path / "sets", CONFIG, holdout_replica=3)
    assert list(made.datasets) == [NAME]
    assert "2aaa_A_R2.xtc" in made.skipped["2aaa_A"]
    assert "has no replica 3 of 2bbb_A" in made.skipped["2bbb_A"]
    assert "2ccc_A is not complete" in made.skipped["2ccc_A"]
    assert json.loads((tmp_path / "sets" / "atlas.json").read_text())["skipped"] == made.skipped


def test_a_later_call_goes_on_and_remembers_the_earlier(local, tmp_path):
    for path in local.iterdir():
        shutil.copy(path, local.parent / path.name.replace(NAME, "2aaa_A"))
    lines = []
    prepare_atlas(local.parent, tmp_path / "sets", CONFIG, names=[NAME])
    prepare_atlas(local.parent, tmp_path / "sets", CONFIG, names=["2aaa_A"])
    record = json.loads((tmp_path / "sets" / "atlas.json").read_text())
    assert sorted(record["datasets"]) == [NAME, "2aaa_A"]
    prepare_atlas(local.parent, tmp_path / "sets", CONFIG, say=lines.append)
    assert [line for line in lines if "complete" in line] == [
        f"{tmp_path / 'sets' / name} is complete" for name in (NAME, "2aaa_A")
    ]


def test_other_rules_in_a_later_call_are_a_mistake(local, tmp_path):
    prepare_atlas(local.parent, tmp_path / "sets", CONFIG)
    with pytest.raises(UsageError, match="begun with stride=4"):
        prepare_atlas(local.parent, tmp_path / "sets")


def test_proteins_are_found_in_the_folder_and_in_its_folders(local):
    (local.parent / "notes.pdb").write_text("no protein")
    (local.parent / "2abc_B.pdb").write_text("")
    found = proteins(local.parent)
    assert list(found) == [NAME, "2abc_B"]
    assert list(found[NAME].replicas) == [1, 2, 3]
    assert found["2abc_B"].replicas == {}
    shutil.copy(local / f"{NAME}.pdb", local.parent)
    with pytest.raises(InputError, match="twice"):
        proteins(local.parent)


def test_folders_without_proteins_and_names_that_are_not_there_are_named(local, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no protein of ATLAS"):
        proteins(tmp_path / "empty")
    with pytest.raises(InputError, match="there is no folder"):
        proteins(tmp_path / "nowhere")
    with pytest.raises(InputError, match="has no 2abc_B"):
        prepare_atlas(local.parent, tmp_path / "sets", names=["2abc_B"])


def test_real_trajectories_of_this_layout_are_found(shared):
    found = proteins(shared / "proteins")
    assert len(found) == 6
    assert list(found["1l2y_A"].replicas) == [1, 2]
