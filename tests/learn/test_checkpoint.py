import hashlib
import json
import pickle
import shutil
import zipfile

import pytest
import safetensors.torch
import torch

from undula import atomic
from undula.errors import InputError, MachineError
from undula.learn.checkpoint import (
    FORMAT,
    Checkpoint,
    NewerFormatError,
    checkpoint_place,
    load_checkpoint,
    load_into,
    load_weights,
    newest_checkpoint,
    optimizer_tensors,
    prune_checkpoints,
    restore_optimizer,
    save_checkpoint,
    save_weights,
)

TENSORS = {
    "single": torch.tensor(0.5),
    "rows": torch.arange(6, dtype=torch.float64).reshape(2, 3),
    "turned": torch.arange(6.0).reshape(2, 3).T,
    "half": torch.ones(3, dtype=torch.bfloat16),
    "count": torch.tensor([7]),
    "mask": torch.tensor([True, False]),
    "empty": torch.zeros(4, 0),
    "cut": torch.arange(6.0).reshape(2, 3)[:1, 1:2],
}


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_weights(path, TENSORS, {"model": "tiny", "rate": 0.1, "sizes": [1, 2]})
    return path


@pytest.fixture
def run_folder(tmp_path):
    for step in (10, 20, 30):
        save_checkpoint(tmp_path, checkpoint(step))
    return tmp_path


def checkpoint(step: int) -> Checkpoint:
    tensors = {"w": torch.full((3,), float(step))}
    return Checkpoint(
        step=step, tensors={"weights": tensors}, state={"position": step, "history": []}
    )


def test_loads_what_was_saved(weights):
    tensors, metadata = load_weights(weights)
    assert metadata == {"model": "tiny", "rate": 0.1, "sizes": [1, 2]}
    assert tensors.keys() == TENSORS.keys()
    torch.testing.assert_close(tensors, TENSORS, rtol=0, atol=0)


def test_the_same_content_gives_the_same_bytes(weights, tmp_path):
    again = tmp_path / "again.safetensors"
    reordered = dict(reversed(TENSORS.items()))
    digest = save_weights(again, reordered, {"sizes": [1, 2], "rate": 0.1, "model": "tiny"})
    assert again.read_bytes() == weights.read_bytes()
    assert digest == atomic.sha256(weights)


def test_finds_a_flipped_bit_anywhere_in_the_file(tmp_path):
    path = tmp_path / "small.safetensors"
    save_weights(path, {"w": torch.tensor([1.5, 0.0])}, {"a": 1})
    content = path.read_bytes()
    for position in range(0, 8 * len(content), 5):
        damaged = bytearray(content)
        damaged[position // 8] ^= 1 << position % 8
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"small\.safetensors"):
            load_weights(path)


def test_finds_cuts_and_extra_bytes(weights):
    content = weights.read_bytes()
    for damaged in (*(content[:length] for length in range(0, len(content), 7)), content + b"\0"):
        weights.write_bytes(damaged)
        with pytest.raises(InputError):
            load_weights(weights)


class Bomb:
    def __init__(self, sentinel):
        self.sentinel = sentinel

    def __reduce__(self):
        return open, (self.sentinel, "w")


@pytest.mark.parametrize("protocol", range(6))
def test_refuses_a_pickle_under_any_suffix(tmp_path, protocol):
    sentinel = tmp_path / "sentinel"
    path = tmp_path / "weights.safetensors"
    path.write_bytes(pickle.dumps(Bomb(str(sentinel)), protocol))
    with pytest.raises(InputError):
        load_weights(path)
    assert not sentinel.exists()


def test_says_that_a_torch_file_is_never_opened(tmp_path):
    path = tmp_path / "weights.safetensors"
    torch.save(TENSORS, path)
    assert zipfile.is_zipfile(path)
    with pytest.raises(InputError, match="never opens"):
        load_weights(path)


def test_refuses_safetensors_without_checksums(tmp_path):
    path = tmp_path / "foreign.safetensors"
    safetensors.torch.save_file({"w": torch.ones(2)}, path)
    with pytest.raises(InputError, match="no readable undula checksums"):
        load_weights(path)


@pytest.mark.parametrize(
    "body",
    [{}, {"format": FORMAT}, {"format": "1"}, {"format": FORMAT, "metadata": [], "tensors": {}}],
)
def test_refuses_odd_metadata_with_a_right_checksum(tmp_path, body):
    path = tmp_path / "odd.safetensors"
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    text = json.dumps({**body, "sha256": digest})
    safetensors.torch.save_file({"w": torch.ones(2)}, path, metadata={"undula": text})
    with pytest.raises(InputError, match="damaged"):
        load_weights(path)


def test_refuses_a_newer_format(tmp_path, monkeypatch):
    path = tmp_path / "weights.safetensors"
    monkeypatch.setattr("undula.learn.checkpoint.FORMAT", FORMAT + 1)
    save_weights(path, TENSORS, {})
    monkeypatch.undo()
    with pytest.raises(NewerFormatError, match="written by a newer undula"):
        load_weights(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_neither_stores_nor_loads_numbers_that_are_not_finite(tmp_path, monkeypatch, value):
    path = tmp_path / "weights.safetensors"
    tensors = {"good": torch.ones(2), "bad": torch.tensor([1.0, value])}
    with pytest.raises(InputError, match="'bad' holds a number that is not finite"):
        save_weights(path, tensors, {})
    assert not path.exists()
    monkeypatch.setattr("undula.learn.checkpoint._check_finite", lambda *_: None)
    save_weights(path, tensors, {})
    monkeypatch.undo()
    with pytest.raises(InputError, match="'bad' holds a number that is not finite"):
        load_weights(path)


def test_a_missing_file_is_bad_input(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        load_weights(tmp_path / "none.safetensors")


def test_an_unreadable_file_is_the_machines_fault(tmp_path):
    with pytest.raises(MachineError, match="cannot read"):
        load_weights(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("weight"), "lacks tensor 'weight'"),
        (lambda t: t.update(extra=torch.ones(1)), "has a tensor 'extra' that this model lacks"),
        (lambda t: t.update(bias=torch.ones(5)), "tensor 'bias' is float32 5 there and float32 2"),
        (lambda t: t.update(bias=t["bias"].double()), "'bias' is float64 2 there and float32 2"),
    ],
)
def test_another_architecture_is_refused_by_naming_the_tensor(tmp_path, change, words):
    module = torch.nn.Linear(3, 2)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    tensors = {name: tensor + 1 for name, tensor in before.items()}
    change(tensors)
    with pytest.raises(InputError, match=words):
        load_into(module, tensors, tmp_path / "w.safetensors")
    torch.testing.assert_close(dict(module.state_dict()), before, rtol=0, atol=0)


def test_a_checkpoint_comes_back_whole(run_folder):
    found, notices = newest_checkpoint(run_folder)
    assert not notices
    assert found.step == 30
    assert found.state == {"position": 30, "history": []}
    torch.testing.assert_close(found.tensors["weights"]["w"], torch.full((3,), 30.0))


def test_no_folder_has_no_checkpoint(tmp_path):
    assert newest_checkpoint(tmp_path / "none") == (None, [])


@pytest.mark.parametrize("name", ["weights.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_newest_checkpoint_is_passed_over_with_a_notice(run_folder, name, damage):
    path = checkpoint_place(run_folder, 30) / name
    content = path.read_bytes()
    if damage == "remove":
        path.unlink()
    else:
        flipped = content[:20] + bytes([content[20] ^ 1]) + content[21:]
        path.write_bytes(flipped if damage == "flip" else content[:-9])
    found, notices = newest_checkpoint(run_folder)
    assert found.step == 20
    assert len(notices) == 1
    assert str(path.parent) in str(notices[0])


def test_says_so_when_no_checkpoint_is_intact(run_folder):
    for step in (10, 20, 30):
        (checkpoint_place(run_folder, step) / "state.json").write_text("{}")
    with pytest.raises(InputError, match=r"no checkpoint in .* is intact"):
        newest_checkpoint(run_folder)


def test_does_not_pass_over_a_checkpoint_of_a_newer_undula(run_folder, monkeypatch):
    monkeypatch.setattr("undula.learn.checkpoint.FORMAT", FORMAT + 1)
    save_checkpoint(run_folder, checkpoint(40))
    monkeypatch.undo()
    with pytest.raises(NewerFormatError):
        newest_checkpoint(run_folder)


def test_a_manifest_cannot_name_a_file_elsewhere(run_folder):
    place = checkpoint_place(run_folder, 30)
    manifest = json.loads((place / "manifest.json").read_text())
    del manifest["sha256"]
    manifest["files"]["../../../etc/passwd"] = "0" * 64
    digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    atomic.write_json(place / "manifest.json", {**manifest, "sha256": digest})
    with pytest.raises(InputError, match="names a file"):
        load_checkpoint(place)


def test_a_write_that_fails_at_any_point_leaves_the_older_checkpoint(run_folder, monkeypatch):
    write = atomic.write
    for step in (30, 40):
        for failing in range(3):
            count = iter(range(99))

            def fail(path, content, count=count, failing=failing):
                if next(count) == failing:
                    raise MachineError("the disk is full")
                return write(path, content)

            monkeypatch.setattr(atomic, "write", fail)
            with pytest.raises(MachineError):
                save_checkpoint(run_folder, checkpoint(step))
            monkeypatch.undo()
            found, _ = newest_checkpoint(run_folder)
            assert found.step == 20
        shutil.rmtree(checkpoint_place(run_folder, step))


def test_keeps_the_newest_two_and_the_best(run_folder):
    save_checkpoint(run_folder, checkpoint(123456789))
    prune_checkpoints(run_folder, {10})
    kept = sorted(int(place.name) for place in (run_folder / "checkpoints").iterdir())
    assert kept == [10, 30, 123456789]


def test_an_optimiser_goes_on_as_if_it_had_never_been_stored():
    def start():
        torch.manual_seed(0)
        module = torch.nn.Linear(3, 2)
        return module, torch.optim.AdamW(module.parameters(), lr=0.1, fused=True)

    def step(module, optimizer):
        optimizer.zero_grad()
        module(torch.ones(1, 3)).square().sum().backward()
        optimizer.step()

    names = ["weight", "bias"]
    module, optimizer = start()
    step(module, optimizer)
    copy, fresh = start()
    copy.load_state_dict(module.state_dict())
    stored = {k: v.clone() for k, v in optimizer_tensors(optimizer, names).items()}
    assert "weight/exp_avg" in stored
    restore_optimizer(fresh, stored, names)
    for _ in range(3):
        step(module, optimizer)
        step(copy, fresh)
    torch.testing.assert_close(copy.state_dict(), module.state_dict(), rtol=0, atol=0)
