"""Closed streams, odd locales, places that may not be written, and names of every kind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from tests.children import THREADS
from tests.faults import files, obey_permissions

from undula import atomic
from undula.cli import main as command
from undula.cli.main import _cache_for_kernels

NAMES = [
    "Ångström 水 é.npz",
    " .npz",
    "a  b\t.npz",
    "x" * 200 + ".npz",
    "-o.npz",
    "--help.npz",
    "CON.npz",
    "NUL.npz",
    "$(touch sentinel).npz",
    "no\nline.npz",
    os.fsdecode(b"\xff\xfe.npz"),
]


@pytest.mark.parametrize("closed", [[0], [1], [2], [0, 1, 2]])
def test_closed_streams_do_not_reach_files(workplace, children, undisturbed, tmp_path, closed):
    out = tmp_path / "out"
    ended = children.run(workplace.commands["prepare atoms"](out), closed=closed)
    assert ended.code == 0, ended.err
    assert files(out) == undisturbed("prepare atoms").files


def test_a_full_disk_behind_standard_output_is_an_error(workplace, children, tmp_path):
    ended = children.run(["inspect", str(workplace.folder / "peptide.pdb")], full=True)
    assert ended.code == 4
    assert ended.err == "undula: No space left on device\n"


def real(words, *, environment=None, drop=(), **how):
    inherited = {name: value for name, value in os.environ.items() if name not in drop}
    return subprocess.Popen(
        [sys.executable, "-m", "undula", *words],
        env={**inherited, **THREADS, **(environment or {})},
        **how,
    )


def test_an_output_that_nobody_reads_ends_the_command_well(workplace):
    reading, writing = os.pipe()
    os.close(reading)
    process = real(
        ["inspect", str(workplace.folder / "peptide.pdb")], stdout=writing, stderr=subprocess.PIPE
    )
    os.close(writing)
    _, said = process.communicate()
    assert process.returncode == 0
    assert said == b""


@pytest.fixture
def read_only(tmp_path):
    """Return a folder that may not be written, made by a function that fills it."""
    made = []

    def sealed(fill) -> Path:
        place = tmp_path / "read-only"
        fill(place)
        made.extend([place, *(path for path in place.rglob("*") if path.is_dir())])
        for folder in made:
            folder.chmod(0o555)
        return place

    yield sealed
    for folder in made:
        folder.chmod(0o755)


def test_a_process_without_home_locale_or_a_place_to_write_is_served(workplace, read_only):
    def fill(place):
        place.mkdir()
        shutil.copyfile(workplace.folder / "peptide.pdb", place / "Å.pdb")

    place = read_only(fill)
    process = real(
        ["inspect", "Å.pdb"],
        environment={"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        drop=("HOME", "PYTHONIOENCODING", "XDG_CACHE_HOME", "NUMBA_CACHE_DIR"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=obey_permissions,
        cwd=place,
    )
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert out.isascii()
    assert b"Traceback" not in err
    assert [entry.name for entry in place.iterdir()] == ["Å.pdb"]


@pytest.mark.parametrize("name", ["prepare", "prepare atoms", "forecast", "forecast atoms"])
def test_inputs_that_may_only_be_read_are_enough_and_an_output_is_refused(
    workplace, children, undisturbed, read_only, tmp_path, name
):
    place = read_only(lambda place: shutil.copytree(workplace.folder, place))
    before = files(place)
    words = [
        word.replace(str(workplace.folder), str(place))
        for word in workplace.commands[name](tmp_path / "out")
    ]
    ended = children.run(words, obedient=True)
    assert ended.code == 0, ended.err
    assert files(tmp_path / "out") == undisturbed(name).files
    refused = children.run([*words, "-o", str(place / "out")], obedient=True)
    assert refused.code == 4, refused.err
    assert f"undula: cannot write {place / 'out'}: Permission denied" in refused.err
    assert files(place) == before


@pytest.mark.parametrize("name", NAMES)
def test_files_and_folders_of_any_name_are_served(workplace, children, tmp_path, name):
    place = tmp_path / "in"
    place.mkdir()
    shutil.copyfile(workplace.folder / "box.npz", place / name)
    out = tmp_path / name.removesuffix(".npz")
    ended = children.run(["prepare", "atoms", str(place / name), "-o", str(out)])
    assert ended.code == 0, ended.err
    assert "Traceback" not in ended.err
    request = json.loads((out / "request.json").read_text())
    assert request["trajectories"][0]["file"] == name
    assert children.run(["data", "verify", str(out)]).code == 0
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted(["in", out.name])


def test_a_name_as_long_as_the_file_system_allows_is_written(tmp_path):
    path = tmp_path / ("é" * 127)
    atomic.write(path, "content")
    assert path.read_text() == "content"
    with pytest.raises(command.MachineError, match="File name too long"):
        atomic.write(tmp_path / ("é" * 128), "content")


def test_text_that_is_no_unicode_comes_back_from_json(tmp_path):
    name = os.fsdecode(b"\xff.pdb")
    atomic.write_json(tmp_path / "a.json", {"file": name})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"file": name}


class TestCacheForKernels:
    """What numba keeps is code: it lies where only this user may write."""

    @pytest.fixture(autouse=True)
    def surroundings(self, monkeypatch, tmp_path):
        monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
        for name in ("NUMBA_CACHE_DIR", "HOME", "XDG_CACHE_HOME"):
            # Set first, so that what the function sets is taken back.
            monkeypatch.setenv(name, "")
            monkeypatch.delenv(name)

    def test_lies_in_the_home(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        _cache_for_kernels()
        assert os.environ["NUMBA_CACHE_DIR"] == str(tmp_path / "home/.cache/undula/kernels")

    def test_lies_in_a_private_temporary_folder_without_a_home(self, tmp_path):
        _cache_for_kernels()
        folder = Path(os.environ["NUMBA_CACHE_DIR"])
        assert folder == tmp_path / f"undula-{os.getuid()}" / "kernels"
        assert folder.stat().st_mode & 0o777 == 0o700

    @pytest.mark.parametrize("how", ["open to all", "a link", "a file"])
    def test_does_not_lie_where_others_may_write(self, tmp_path, how):
        place = tmp_path / f"undula-{os.getuid()}"
        if how == "a file":
            place.write_text("")
        elif how == "a link":
            (tmp_path / "elsewhere").mkdir()
            place.symlink_to(tmp_path / "elsewhere")
        else:
            place.mkdir()
            place.chmod(0o777)
        _cache_for_kernels()
        assert "NUMBA_CACHE_DIR" not in os.environ
