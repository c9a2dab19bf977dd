import hashlib
import json

import pytest
from tests.loopback import serving

from undula.data import mdshare
from undula.data.mdshare import PublishedFile, fetch
from undula.errors import InputError, MachineError, UsageError
from undula.io.downloads import DownloadConfig, verify_fetched

QUICK = DownloadConfig(pause_s=0.0, attempts=2, timeout_s=2.0)
OURS = ["ala2.json", "ala2.pdb", "ala2_R1.xtc", "ala2_R2.xtc", "ala2_R3.xtc"]


@pytest.fixture
def content(monkeypatch):
    """Replace the four published files by small ones; return name on the server → content."""
    small = {name: f"{name} ".encode() * 50 for name in mdshare.FILES}
    files = {
        name: PublishedFile(
            name=promised.name,
            size=len(small[name]),
            md5=hashlib.md5(small[name], usedforsecurity=False).hexdigest(),
        )
        for name, promised in mdshare.FILES.items()
    }
    monkeypatch.setattr(mdshare, "FILES", files)
    return small


@pytest.fixture
def server(content):
    with serving() as loopback:
        loopback.kind = "application/octet-stream"
        loopback.files = {f"/pub/{name}": value for name, value in content.items()}
        yield loopback


def bring(server, out, **more):
    return fetch(out, base=f"{server.url}/pub/", config=QUICK, **more)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_four_files_come_under_our_names_with_licence_and_hashes(server, content, tmp_path):
    folder = bring(server, tmp_path)
    assert folder == tmp_path / "ala2"
    assert names(folder) == OURS
    record = verify_fetched(folder)
    assert record["licence"].startswith("CC-BY-4.0")
    assert record["base"] == f"{server.url}/pub/"
    for published, value in content.items():
        ours = mdshare.FILES[published].name
        assert (folder / ours).read_bytes() == value
        assert record["files"][ours] == hashlib.sha256(value).hexdigest()
        assert record["origins"][ours] == published


def test_what_is_there_is_checked_and_not_brought_again(server, tmp_path):
    folder = bring(server, tmp_path)
    asked = len(server.asked)
    assert bring(server, tmp_path) == folder
    assert len(server.asked) == asked
    (folder / "ala2_R2.xtc").write_bytes(b"other")
    with pytest.raises(InputError, match=r"ala2_R2\.xtc has changed since it was fetched"):
        bring(server, tmp_path)


def test_a_fetch_that_was_cut_goes_on_in_the_next_call(server, content, tmp_path):
    server.cuts = [1000, 100, 100]
    with pytest.raises(MachineError, match="gave up after 2 attempts"):
        fetch(tmp_path, base=f"{server.url}/pub", config=DownloadConfig(pause_s=0.0, attempts=2))
    assert not (tmp_path / "ala2" / "ala2.json").exists()
    bring(server, tmp_path)
    assert server.sent <= sum(map(len, content.values())) + 1000
    assert names(tmp_path / "ala2") == OURS


def test_another_file_of_that_name_is_refused_and_removed(server, tmp_path):
    server.files["/pub/alanine-dipeptide-1-250ns-nowater.xtc"] = b"something else"
    with pytest.raises(InputError, match="is not the file of mdshare's catalogue"):
        bring(server, tmp_path)
    assert not (tmp_path / "ala2" / "ala2_R2.xtc").exists()
    assert not (tmp_path / "ala2" / "ala2.json").exists()


def test_a_missing_file_is_named_with_the_way_out(server, tmp_path):
    del server.files["/pub/alanine-dipeptide-2-250ns-nowater.xtc"]
    with pytest.raises(InputError, match=r"alanine-dipeptide-2-250ns.*another server: --base"):
        bring(server, tmp_path)


def test_the_files_may_lie_in_a_folder_here(content, tmp_path, monkeypatch):
    local = tmp_path / "local"
    local.mkdir()
    for name, value in content.items():
        (local / name).write_bytes(value)
    monkeypatch.setenv(mdshare.URL_VARIABLE, str(local))
    assert names(fetch(tmp_path / "a")) == OURS
    (local / "alanine-dipeptide-nowater.pdb").write_bytes(b"other")
    with pytest.raises(InputError, match=r"nowater\.pdb is not the file"):
        fetch(tmp_path / "b")
    with pytest.raises(UsageError, match="neither a web address nor a folder"):
        fetch(tmp_path / "c", base="nowhere")


def test_the_record_says_who_made_the_data(server, tmp_path):
    record = json.loads((bring(server, tmp_path) / "ala2.json").read_text())
    assert "Freie Universität Berlin" in record["source"]
    assert "094104" in record["cite"]


def test_the_catalogue_names_three_trajectories_of_43_megabytes():
    sizes = [promised.size for name, promised in mdshare.FILES.items() if name.endswith(".xtc")]
    assert len(sizes) == 3
    assert all(42.9e6 < size < 43.0e6 for size in sizes)
