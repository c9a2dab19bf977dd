"""Promise 3: whatever fails while files are written, each final name holds the old or the new."""

from __future__ import annotations

import ast
import resource
import signal
from contextlib import suppress
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.faults import ERRORS, Fault, files, nth, temporary_of, torn

import undula
from undula import atomic
from undula.errors import MachineError
from undula.io.atom_export import write_xtc
from undula.learn.checkpoint import Checkpoint, newest_checkpoint, save_checkpoint
from undula.locks import claimed

OPERATIONS = [name for name in ERRORS if name != "mkdir"]
SOURCE = Path(undula.__file__).parent


def fail_each(folder, operation, act, check):
    """Let the k-th operation fail for k = 1, 2, … until none is left; return how many failed."""
    for k in count(1):
        with Fault(folder, nth(operation, k)) as fault, suppress(MachineError):
            act()
        check()
        if fault.happened is None:
            return k - 1
    raise AssertionError


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("kind", ["text", "array"])
def test_a_write_that_fails_anywhere_leaves_the_old_content_or_the_new(tmp_path, operation, kind):
    path = tmp_path / "file"
    contents = {"text": ("old" * 9, "new" * 9), "array": (np.zeros(9), np.ones(9))}[kind]
    put = {"text": atomic.write, "array": atomic.write_array}[kind]
    put(path, contents[0])
    old = path.read_bytes()
    put(path, contents[1])
    new = path.read_bytes()
    put(path, contents[0])

    def check():
        assert path.read_bytes() in (old, new)
        with claimed(tmp_path):  # the next writer tidies up what could not be removed
            pass
        assert [entry.name for entry in tmp_path.iterdir()] == ["file"]

    failed = fail_each(tmp_path, operation, lambda: put(path, contents[1]), check)
    assert failed == {"fsync": 2}.get(operation, 1)
    assert path.read_bytes() == new


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    place = tmp_path / "new" / "file"
    with (
        Fault(tmp_path, nth("mkdir", 1)),
        pytest.raises(MachineError, match="Read-only file system"),
    ):
        atomic.write(place, "content")
    assert not place.parent.exists()


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_checkpoint_that_fails_anywhere_leaves_the_old_one_or_the_new(tmp_path, operation):
    def checkpoint(step: int) -> Checkpoint:
        return Checkpoint(step=step, tensors={"weights": {"w": torch.full((4,), float(step))}})

    save_checkpoint(tmp_path, checkpoint(1))
    steps = set()

    def check():
        found, _ = newest_checkpoint(tmp_path)
        assert found.tensors["weights"]["w"].tolist() == [found.step] * 4
        steps.add(found.step)

    failed = fail_each(tmp_path, operation, lambda: save_checkpoint(tmp_path, checkpoint(2)), check)
    assert failed >= 3
    assert steps == {1, 2}


def test_a_disk_that_is_full_never_leaves_half_a_trajectory(tmp_path):
    path, positions = tmp_path / "run.xtc", torch.rand(40, 30, 3) * 10
    times = [float(frame) for frame in range(40)]
    write_xtc(path, positions, times, None)
    whole, size = path.read_bytes(), path.stat().st_size
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    refused = 0
    try:
        for limit in (1, 100, 4096, size // 2, size - 1, size):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, usual[1]))
            try:
                write_xtc(path, positions, times, None)
            except MachineError:
                refused += 1
            assert path.read_bytes() == whole
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
        signal.signal(signal.SIGXFSZ, handler)
    assert refused == 5
    assert list(tmp_path.iterdir()) == [path]


def assert_one_sentence(ended, code):
    told = [line for line in ended.err.splitlines() if line.startswith("undula: ")]
    assert ended.code == code, ended.err
    assert len(told) == 1, ended.err
    assert "Traceback" not in ended.err


@pytest.mark.parametrize("name", ["prepare", "prepare atoms", "train surface", "forecast"])
def test_a_command_whose_files_fail_one_after_another_is_never_torn(
    workplace, children, undisturbed, tmp_path, name
):
    out, whole = tmp_path / "out", undisturbed(name)
    words = workplace.commands[name](out)
    failed: list[str] = []
    while True:
        ended = children.run(words, folder=str(out), failed=failed)
        assert not torn(out, whole.versions), failed[-1:]
        if ended.fault["happened"] is None:
            break
        assert_one_sentence(ended, 4)
        failed.append(temporary_of(ended.fault["happened"][1]))
    assert ended.code == 0
    assert files(out) == whole.files
    assert len(failed) > 6


@pytest.mark.parametrize("name", ["forecast atoms", "train motion"])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.95])
def test_a_command_that_fails_somewhere_is_never_torn(
    workplace, children, undisturbed, tmp_path, name, part
):
    out, whole = tmp_path / "out", undisturbed(name)
    words = workplace.commands[name](out)
    targets = list(
        dict.fromkeys(temporary_of(t) for o, t in whole.ended.fault["told"] if o == "replace")
    )
    before = targets[: int(part * len(targets))]
    ended = children.run(words, folder=str(out), failed=before)
    assert_one_sentence(ended, 4)
    assert not torn(out, whole.versions)


@pytest.mark.parametrize(
    "name", ["prepare", "prepare atoms", "train surface", "forecast", "forecast atoms"]
)
@pytest.mark.parametrize(("part", "lasting"), [(0.02, False), (0.6, False), (0.6, True)])
def test_a_command_that_runs_out_of_memory_says_so_or_does_with_less(
    workplace, children, undisturbed, tmp_path, name, part, lasting
):
    out, whole = tmp_path / "out", undisturbed(name)
    at = 1 + int(part * (whole.allocations - 1))
    words = workplace.commands[name](out)
    ended = children.run(words, folder=str(out), memory_at=at, lasting=lasting)
    assert ended.fault["happened"]
    if ended.code == 0 and not lasting:
        assert files(out) == whole.files
        return
    assert_one_sentence(ended, 4)
    assert "memory" in ended.err
    assert not torn(out, whole.versions)


@pytest.mark.parametrize(
    ("name", "last", "earlier"),
    [
        ("prepare", "manifest.json", "run/shard-0001.json"),
        ("prepare", "run/shard-0000.json", "run/pool-0000.npy"),
        ("prepare atoms", "manifest.json", "box.recording.json"),
        ("train surface", "checkpoints/00000002/manifest.json", "checkpoints/00000002/state.json"),
        ("forecast", "forecast.json", "model.safetensors"),
        ("forecast atoms", "forecast.json", "state/samples.npy"),
    ],
)
def test_what_names_a_result_whole_is_written_last(undisturbed, name, last, earlier):
    order = [target for o, target in undisturbed(name).ended.fault["told"] if o == "replace"]
    assert order.index(last) > order.index(earlier)
    assert set(order) == set(undisturbed(name).versions)


WRITERS = {
    "atomic.py": "it is the one place",
    "locks.py": "a lock is no result: it is empty again before anyone could read half of it",
    "cli/streams.py": "standard streams",
    "data/similarity.py": "input of MMseqs2, in a temporary folder of its own",
    "io/archives.py": "large members, piece by piece, under the name that atomic.replacing lends",
    "io/atom_export.py": "XTC by mdtraj, under the name that atomic.replacing lends",
    "io/downloads.py": "NAME.part grows while it comes, and is published when it is whole",
    "io/recordings.py": "long arrays, part by part, under the name that atomic.replacing lends",
    "io/trajectory_child.py": "for its parent, in a temporary folder of its own",
    "io/xtc.py": "for the process that decodes, in a temporary folder of its own",
    "learn/sweep.py": "lock files; Optuna's journal is only ever appended to",
}
"""Modules that open files for writing, and why they may."""
_WRITING = {"write_bytes", "write_text", "savefig", "savez", "savetxt", "open_memmap", "to_csv"}
_WRITING_TO = {"np": {"save"}, "torch": {"save"}, "json": {"dump"}, "pickle": {"dump"}}
_WRITING_TO["shutil"] = {"copy", "copy2", "copyfile", "copyfileobj", "copytree", "move"}


def writes(tree: ast.AST) -> bool:
    """Tell whether a module opens a file for writing, as far as its words show."""
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        function = call.func
        name = getattr(function, "attr", getattr(function, "id", ""))
        owner = getattr(getattr(function, "value", None), "id", "")
        modes = [
            word.value
            for word in [*call.args, *(one.value for one in call.keywords if one.arg == "mode")]
            if isinstance(word, ast.Constant) and isinstance(word.value, str)
        ]
        opens = name in ("open", "XTCTrajectoryFile", "FileIO", "ZipFile") and any(
            set(mode) <= set("rwxabt+") and set(mode) & set("wxa+") for mode in modes
        )
        if opens or (owner == "os" and name == "open" and "O_RDONLY" not in ast.dump(call)):
            return True
        if name in _WRITING or name in _WRITING_TO.get(owner, ()):
            return True
    return False


def test_no_other_module_opens_files_for_writing():
    found = {
        str(path.relative_to(SOURCE))
        for path in SOURCE.rglob("*.py")
        if writes(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert found == set(WRITERS)
