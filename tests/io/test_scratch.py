import pytest
import torch

from undula.errors import MachineError
from undula.io import scratch
from undula.io.scratch import MEMORY, Scratch, parts


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(scratch, "HELD_BYTES", 100)
    monkeypatch.setattr(scratch, "WORK_BYTES", 48)


def test_what_is_large_lies_in_a_file_without_a_name(tmp_path):
    place = Scratch(tmp_path / "not" / "there")
    found = place.empty(50, 2, 3, dtype=torch.float64)
    found[:] = torch.arange(300).reshape(50, 2, 3)
    place.release()
    assert found[49, 1, 2] == 299
    assert len(place._maps) == 1
    assert list(tmp_path.iterdir()) == []
    del found
    assert len(place._maps) == 0


def test_what_is_small_and_what_has_no_place_is_held_in_memory(tmp_path):
    place = Scratch(tmp_path)
    assert place.empty(2, 2, 3).shape == (2, 2, 3)
    assert len(place._maps) == 0
    MEMORY.empty(500, 2, 3)
    assert len(MEMORY._maps) == 0


def test_frames_are_changed_a_few_at_a_time_and_in_order(tmp_path):
    frames, seen = torch.arange(66.0).reshape(11, 2, 3), []

    def change(few, some):
        seen.append((some.start, some.stop))
        return few.double() + some.start

    found = Scratch(tmp_path).changed(frames, change, torch.float64)
    assert seen == [(0, 2), (2, 4), (4, 6), (6, 8), (8, 10), (10, 11)]
    first = torch.tensor([start for start, stop in seen for _ in range(start, stop)])
    assert torch.equal(found, frames.double() + first[:, None, None])


def test_a_frame_is_never_cut():
    assert len(list(parts(torch.zeros(3, 1000, 3)))) == 3
    assert list(parts(torch.zeros(0, 5, 3))) == []


def test_no_room_gets_one_sentence(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(MachineError, match=r"frames in .*: No space left on device"):
        Scratch(tmp_path).empty(500, 2, 3)
