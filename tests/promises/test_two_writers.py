"""Two writers in one folder: the second refuses and names the first; dead ones hold nothing."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import threading
import time

import pytest
from tests.faults import files

from undula import atomic
from undula.data import prepare
from undula.data.atlas import prepare_atlas
from undula.data.prepare import write_record
from undula.errors import MachineError, UsageError
from undula.locks import LOCK, claimed, claims
from undula.motion.studies.study import run_motion_study
from undula.surface.studies.study import run_study


@pytest.fixture
def holder(children, tmp_path):
    """Return a process that holds tmp_path/out."""
    child = children.start([], hold=str(tmp_path / "out"))
    child.wait_until(lambda: "held" in child.files[1].read_text())
    yield child
    child.signal(signal.SIGKILL)
    child.wait()


def assert_refused(ended, holder):
    assert ended.code == 4, ended.err
    assert f"is being written by process {holder.pid};" in ended.err
    assert "Traceback" not in ended.err


@pytest.mark.parametrize(
    "name",
    ["prepare", "prepare atoms", "train surface", "train motion", "forecast", "forecast atoms"],
)
def test_a_command_refuses_a_folder_that_another_process_writes(
    workplace, children, holder, tmp_path, name
):
    assert_refused(children.run(workplace.commands[name](tmp_path / "out")), holder)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [LOCK]


def test_simulations_and_structures_refuse_it_too(workplace, children, holder, tmp_path):
    pytest.importorskip("openmm")
    assert_refused(
        children.run(["simulate", "argon", "--preset", "tiny", "-o", str(tmp_path / "out")]), holder
    )
    structure = tmp_path / "out.pdb"
    structure.write_bytes((workplace.folder / "peptide.pdb").read_bytes())
    words = ["prepare", "static", str(structure), "-o", str(tmp_path), "--frames", "3"]
    assert_refused(children.run(words), holder)


def test_the_record_of_many_data_sets_is_kept_from_other_writers(
    workplace, children, holder, tmp_path, monkeypatch
):
    words = [
        "prepare",
        "static",
        str(workplace.folder / "peptide.pdb"),
        "-o",
        str(tmp_path / "out"),
    ]
    assert_refused(children.run([*words, "--frames", "3"]), holder)
    (tmp_path / "atlas").mkdir()
    for name in ("1vii_A.pdb", "1vii_A_R1.xtc"):
        (tmp_path / "atlas" / name).write_bytes(b"")
    monkeypatch.setattr(prepare, "RECORD_SECONDS", 0.1)
    with pytest.raises(MachineError, match=f"process {holder.pid}"):
        prepare_atlas(tmp_path / "atlas", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [LOCK]


def test_processes_that_note_data_sets_in_one_record_lose_none(tmp_path):
    path, names = tmp_path / "sets" / "static.json", [f"set {k}" for k in range(6)]
    started = []
    for name in names:
        started.append(os.fork())
        if started[-1] == 0:
            try:
                write_record(path, {"origin": "here"}, {name: name}, {})
                os._exit(0)
            finally:
                os._exit(1)
    assert [os.waitpid(pid, 0)[1] for pid in started] == [0] * len(names)
    assert json.loads(path.read_text())["datasets"] == {name: name for name in names}
    assert [one.name for one in path.parent.iterdir()] == ["static.json"]


def test_pages_and_splits_are_not_written_beside_another_writer(
    workplace, children, holder, tmp_path
):
    result, taken = tmp_path / "result", str(tmp_path / "out" / "file")
    assert children.run(workplace.commands["forecast"](result)).code == 0
    assert_refused(children.run(["show", str(result), "-o", taken]), holder)
    (tmp_path / "two.fasta").write_text(">a\nACDEFGHIKL\n>b\nMNPQRSTVWY\n")
    split = ["data", "split", str(tmp_path / "two.fasta"), "--counts", "1", "0", "1"]
    assert_refused(children.run([*split, "--program", "undula", "-o", taken]), holder)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [LOCK]


def test_a_result_is_not_shown_or_scored_while_it_is_written(workplace, children, tmp_path):
    out = tmp_path / "out"
    assert children.run(workplace.commands["forecast"](out)).code == 0
    before = files(out)
    child = children.start([], hold=str(out))
    child.wait_until(lambda: "held" in child.files[1].read_text())
    truth = ["--truth", str(workplace.folder / "run.pdb"), "--spacing", "3", "--samples", "100"]
    assert_refused(children.run(["show", str(out)]), child)
    assert_refused(children.run(["evaluate", str(out), *truth]), child)
    child.signal(signal.SIGKILL)
    child.wait()
    (out / LOCK).unlink()
    assert files(out) == before


@pytest.mark.parametrize("study", [run_study, run_motion_study])
def test_studies_refuse_it_before_anything_else(holder, tmp_path, study):
    with pytest.raises(MachineError, match=f"process {holder.pid}"):
        study(None, (), None, runs=tmp_path, out=tmp_path / "out", only=(), progress=None, say=None)


def test_a_lock_falls_with_its_process(children, tmp_path):
    child = children.start([], hold=str(tmp_path / "out"))
    child.wait_until(lambda: "held" in child.files[1].read_text())
    child.signal(signal.SIGKILL)
    child.wait()
    assert json.loads((tmp_path / "out" / LOCK).read_text())["pid"] == child.pid
    with claimed(tmp_path / "out"):
        assert json.loads((tmp_path / "out" / LOCK).read_text())["pid"] == os.getpid()
    assert list((tmp_path / "out").iterdir()) == []


def test_a_lock_is_not_kept_by_a_forked_child(tmp_path):
    with claimed(tmp_path):
        pid = os.fork()
        if pid == 0:
            time.sleep(60)
            os._exit(0)
    try:
        with claimed(tmp_path):
            pass
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_one_thread_may_claim_twice_and_another_may_not(tmp_path):
    said = []

    def other():
        with pytest.raises(MachineError, match=f"process {os.getpid()}"), claimed(tmp_path):
            pass
        said.append("refused")

    with claimed(tmp_path), claimed(tmp_path / "." / ""):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert (tmp_path / LOCK).exists()
    assert said == ["refused"]
    assert not (tmp_path / LOCK).exists()


def test_a_patient_writer_waits_for_one_of_moments(tmp_path):
    holding, seconds = threading.Event(), 0.3

    def other():
        with claimed(tmp_path):
            holding.set()
            time.sleep(seconds)

    thread = threading.Thread(target=other)
    thread.start()
    holding.wait()
    with pytest.raises(MachineError), claimed(tmp_path, patience=0.01):
        pass
    with claimed(tmp_path, patience=30.0):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    thread.join()


def test_runs_beside_each_other_and_within_each_other_are_independent(children, tmp_path):
    child = children.start([], hold=str(tmp_path / "runs" / "one" / "seed-0"))
    child.wait_until(lambda: "held" in child.files[1].read_text())
    with claimed(tmp_path / "runs" / "one" / "seed-1"), claimed(tmp_path / "runs"):
        pass
    child.signal(signal.SIGKILL)
    child.wait()


def test_a_folder_that_stays_empty_is_not_left_behind(tmp_path):
    with claimed(tmp_path / "deep" / "er"):
        pass
    assert list(tmp_path.iterdir()) == []
    with claimed(tmp_path / "deep" / "er"):
        atomic.write(tmp_path / "deep" / "er" / "file", "content")
    assert (tmp_path / "deep" / "er" / "file").exists()


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file, not a folder"), claimed(tmp_path / "file"):
        pass


def test_leftovers_of_the_dead_are_removed_and_those_of_the_living_are_not(tmp_path):
    dead = os.fork()
    if dead == 0:
        os._exit(0)
    os.waitpid(dead, 0)
    names = {
        f"{atomic.TEMPORARY_PREFIX}{dead}-a": False,
        f"deep/{atomic.TEMPORARY_PREFIX}{dead}-a": False,
        f"{atomic.TEMPORARY_PREFIX}{os.getppid()}-a": True,
        f"other/{LOCK}": True,
        f"other/{atomic.TEMPORARY_PREFIX}{dead}-a": True,
        f"{dead}-a": True,
    }
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    deep = {name: (tmp_path / name).exists() for name in names if "/" in name}
    with claimed(tmp_path, within=False):
        assert {name: (tmp_path / name).exists() for name in names} == {**names, **deep}
    with claimed(tmp_path):
        assert {name: (tmp_path / name).exists() for name in names} == names


class TestWithoutFlock:
    """A file system that has none: the text decides."""

    @pytest.fixture(autouse=True)
    def no_flock(self, monkeypatch):
        def refuse(*_):
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(fcntl, "flock", refuse)

    def owner(self, folder, **changes):
        with claimed(folder):
            described = json.loads((folder / LOCK).read_text())
        (folder / LOCK).write_text(json.dumps({**described, **changes}))

    def test_a_living_process_is_believed(self, tmp_path):
        self.owner(tmp_path)
        with pytest.raises(MachineError, match=f"process {os.getpid()};"), claimed(tmp_path):
            pass

    @pytest.mark.parametrize(
        "changes",
        [{"pid": 2**22 + 1}, {"boot": "another"}, {"began": "1"}, {"pid": "none"}, {"more": 1}],
    )
    def test_a_process_that_is_gone_is_not(self, tmp_path, changes):
        self.owner(tmp_path, **changes)
        with claimed(tmp_path):
            pass

    def test_a_process_elsewhere_is_believed_and_its_machine_named(self, tmp_path):
        self.owner(tmp_path, host="elsewhere", pid=7)
        with pytest.raises(MachineError, match="process 7 on elsewhere;"), claimed(tmp_path):
            pass


def test_a_decorated_function_holds_the_folder_it_names(tmp_path):
    @claims("folder")
    def held(number: int, folder) -> bool:
        return number == 1 and (folder / LOCK).exists()

    assert held(1, tmp_path)
    assert held(1, folder=tmp_path)
    assert not (tmp_path / LOCK).exists()
