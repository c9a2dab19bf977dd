import json
import os

import numpy as np
import pytest

from undula import atomic
from undula.errors import MachineError


def test_what_is_written_can_be_read_and_hashed(tmp_path):
    path = tmp_path / "deep" / "file.txt"
    digest = atomic.write(path, "Å")
    assert path.read_text(encoding="utf-8") == "Å"
    assert atomic.sha256(path) == digest


def test_json_is_stable_and_never_holds_nan(tmp_path):
    first = atomic.write_json(tmp_path / "a.json", {"b": 1, "a": [2.5]})
    second = atomic.write_json(tmp_path / "b.json", {"a": [2.5], "b": 1})
    assert first == second
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [2.5], "b": 1}
    with pytest.raises(ValueError, match="not JSON compliant"):
        atomic.write_json(tmp_path / "c.json", {"a": float("nan")})
    assert not (tmp_path / "c.json").exists()


def test_arrays_come_back_without_pickle(tmp_path):
    atomic.write_array(tmp_path / "a.npy", np.arange(6).reshape(2, 3)[:, ::-1])
    found = np.load(tmp_path / "a.npy", allow_pickle=False)
    assert found.tolist() == [[2, 1, 0], [5, 4, 3]]
    with pytest.raises(ValueError, match="allow_pickle"):
        atomic.write_array(tmp_path / "b.npy", np.array([{"a": 1}], dtype=object))


@pytest.mark.parametrize("operation", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, operation):
    path = tmp_path / "file.txt"
    atomic.write(path, "old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    target = os if operation == "fsync" else type(path)
    monkeypatch.setattr(target, operation, fail)
    with pytest.raises(MachineError, match=r"cannot write .*: No space left on device"):
        atomic.write(path, "new")
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.txt"]


def test_a_folder_that_is_a_file_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(MachineError, match="cannot write"):
        atomic.write(tmp_path / "file" / "inside.txt", "x")
