"""Promise 5 for what undula itself made, and for its settings: weights, checkpoints, data, YAML.

Each damage is made in a copy of a tiny run or data set; the bits of single files are turned in
`tests/learn/test_checkpoint.py`.
"""

from __future__ import annotations

import json
import shutil
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.promises.answers import answer, check_refused, snapshot

from undula import atomic
from undula.cli.configured import read_yaml
from undula.cli.options import made, parse_values, parser
from undula.config import PRESETS, TrainConfig, preset_file
from undula.errors import UsageError
from undula.learn import checkpoint
from undula.learn.checkpoint import load_weights, save_weights
from undula.learn.plateau import PlateauConfig

Change = Callable[[Path], None]
WEIGHTS = {"surface": "model.safetensors", "motion": "weights.safetensors"}


def flipped(path: Path) -> None:
    """Turn one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) * 2 // 3] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def lengthened(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def pickled(path: Path) -> None:
    torch.save({"a": torch.ones(2)}, path)


def rewritten(change: Callable[[dict[str, Any], dict[str, Any]], None]) -> Change:
    """Return what changes the tensors or the metadata and signs them again."""

    def write(path: Path) -> None:
        tensors, metadata = load_weights(path)
        change(tensors, metadata)
        save_weights(path, tensors, metadata)

    return write


def _first(tensors: dict[str, Any]) -> str:
    return max(tensors, key=lambda name: tensors[name].numel())


def _renamed(tensors: dict[str, Any], _: dict[str, Any]) -> None:
    tensors["other"] = tensors.pop(_first(tensors))


def _reshaped(tensors: dict[str, Any], _: dict[str, Any]) -> None:
    tensors[_first(tensors)] = torch.zeros(3)


def _retyped(tensors: dict[str, Any], _: dict[str, Any]) -> None:
    tensors[_first(tensors)] = tensors[_first(tensors)].to(torch.float16)


def _another_kind(_: dict[str, Any], metadata: dict[str, Any]) -> None:
    metadata["kind"] = "something else"


def _without_model(_: dict[str, Any], metadata: dict[str, Any]) -> None:
    del metadata["model"]


def _odd_model(_: dict[str, Any], metadata: dict[str, Any]) -> None:
    metadata["model"] = {"layers": "many"}


def newer(path: Path) -> None:
    tensors, metadata = load_weights(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "FORMAT", 99)
        save_weights(path, tensors, metadata)


def not_finite(path: Path) -> None:
    tensors, metadata = load_weights(path)
    tensors[_first(tensors)].view(-1)[0] = torch.nan
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "_check_finite", lambda *_: None)
        save_weights(path, tensors, metadata)


DAMAGES: dict[str, tuple[Change, str]] = {
    "a turned bit": (flipped, "is damaged"),
    "cut": (cut, ""),
    "an extra byte": (lengthened, ""),
    "a pickle": (pickled, "is a pickle or an archive, which undula never opens"),
    "another key": (rewritten(_renamed), ""),
    "another shape": (rewritten(_reshaped), ""),
    "another dtype": (rewritten(_retyped), ""),
    "another kind": (rewritten(_another_kind), ""),
    "no model": (rewritten(_without_model), "damaged"),
    "an odd model": (rewritten(_odd_model), "damaged"),
    "NaN": (not_finite, "not finite"),
    "a newer format": (newer, "written by a newer undula (format 99"),
}


@pytest.mark.parametrize("family", WEIGHTS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_weights_are_refused(workplace, tmp_path, capsys, family, damage):
    run = tmp_path / "run"
    run.mkdir()
    for path in (workplace.folder / f"{family} run").glob("*.safetensors"):
        shutil.copy(path, run)
    change, words = DAMAGES[damage]
    change(run / WEIGHTS[family])
    told = answer(capsys, "inspect", run)
    check_refused(told, str(run), words)
    command = "forecast" if family == "surface" else "forecast atoms"
    out = tmp_path / "out"
    asked = [
        str(run) if word.endswith(" run") else word for word in workplace.commands[command](out)
    ]
    check_refused(answer(capsys, *asked), str(run), words)
    assert not out.exists()


def test_weights_of_the_other_family_are_refused(workplace, tmp_path, capsys):
    for command, other in (("forecast", "motion run"), ("forecast atoms", "surface run")):
        asked = workplace.commands[command](tmp_path / "out")
        asked[asked.index("--model") + 1] = str(workplace.folder / other)
        check_refused(answer(capsys, *asked), str(workplace.folder / other))


@pytest.fixture(params=["surface", "motion"])
def run(request, workplace, tmp_path) -> tuple[Path, list[str]]:
    """Return a training that lacks its end, and the words that let it go on."""
    folder = tmp_path / "run"
    shutil.copytree(workplace.folder / f"{request.param} run", folder)
    (folder / WEIGHTS[request.param]).unlink()
    return folder, workplace.commands[f"train {request.param}"](folder)


def newest(folder: Path) -> Path:
    return max((folder / "checkpoints").iterdir())


def resigned(place: Path) -> None:
    """Write a checkpoint's manifest anew, so that it is true of what lies there."""
    manifest = json.loads((place / "manifest.json").read_text())
    manifest["files"] = {name: atomic.sha256(place / name) for name in manifest["files"]}
    del manifest["sha256"]
    signed = manifest | {"sha256": checkpoint._json_sha256(manifest)}
    atomic.write_json(place / "manifest.json", signed)


def _state(change: Callable[[dict[str, Any]], None]) -> Change:
    def write(place: Path) -> None:
        state = json.loads((place / "state.json").read_text())
        change(state)
        atomic.write_json(place / "state.json", state)

    return write


def _of_optimizer(change: Callable[[dict[str, Any]], None]) -> Change:
    def write(place: Path) -> None:
        rewritten(lambda tensors, _: change(tensors))(place / "optimizer.safetensors")

    return write


TRUE_BUT_WRONG: dict[str, tuple[Change, str]] = {
    "an optimiser of another model": (
        _of_optimizer(lambda t: t.update({"other/exp_avg": t.pop(_first(t))})),
        "which is of another model",
    ),
    "an optimiser without a quantity": (_of_optimizer(lambda t: t.pop(_first(t))), "lacks"),
    "an optimiser of another shape": (
        _of_optimizer(lambda t: t.update({_first(t): torch.zeros(3)})),
        "of another shape",
    ),
    "an empty optimiser state name": (
        _of_optimizer(lambda t: t.update({"loose": torch.zeros(3)})),
        "which is of another model",
    ),
    "weights of another model": (
        lambda place: rewritten(_reshaped)(place / "weights.safetensors"),
        "another architecture",
    ),
    "no position": (_state(lambda state: state.pop("position")), "damaged"),
    "another position": (
        _state(lambda state: state["position"].update(place=3)),
        "damaged",
    ),
    "no configuration": (_state(lambda state: state.pop("configuration")), "damaged"),
}
"""A checkpoint whose checksums are right, but that cannot be of this training."""


@pytest.mark.parametrize("name", TRUE_BUT_WRONG)
def test_a_checkpoint_of_something_else_is_refused(run, capsys, name):
    folder, words = run
    change, said = TRUE_BUT_WRONG[name]
    change(newest(folder))
    resigned(newest(folder))
    before = snapshot(folder / "checkpoints")
    check_refused(answer(capsys, *words), said)
    assert snapshot(folder / "checkpoints") == before


@pytest.mark.parametrize("damage", ["a turned bit", "cut", "an extra byte", "a pickle", "missing"])
@pytest.mark.parametrize("name", ["weights", "optimizer", "state", "manifest"])
def test_where_all_checkpoints_are_damaged_none_is_used(run, capsys, name, damage):
    folder, words = run
    suffix = "safetensors" if name in ("weights", "optimizer") else "json"
    for place in (folder / "checkpoints").iterdir():
        if damage == "missing":
            if name == "manifest":
                pytest.skip("a checkpoint without manifest is an unfinished one, and no damage")
            (place / f"{name}.{suffix}").unlink()
        else:
            DAMAGES[damage][0](place / f"{name}.{suffix}")
    check_refused(answer(capsys, *words), "no checkpoint in", "is intact")
    check_refused(answer(capsys, "inspect", folder))


def _manifest(change: Callable[[dict[str, Any]], None]) -> Change:
    def write(folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_text())
        change(manifest)
        atomic.write_json(folder / "manifest.json", manifest)

    return write


def _array(folder: Path) -> Path:
    return next(path for path in sorted(folder.rglob("*.npy")) if "positions" in path.name)


DATA: dict[str, tuple[Change, str]] = {
    "a changed array": (lambda folder: flipped(_array(folder)), "has changed"),
    "a cut array": (lambda folder: cut(_array(folder)), ""),
    "a missing array": (lambda folder: _array(folder).unlink(), "is missing"),
    "an extra array": (
        lambda folder: np.save(_array(folder).with_name("surface-0077.npy"), np.zeros(3)) or None,
        "is no part of what",
    ),
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), "complete"),
    "a manifest that is no JSON": (
        lambda folder: (folder / "manifest.json").write_text("{") and None,
        "cannot be read as JSON",
    ),
    "a manifest that is a list": (
        lambda folder: (folder / "manifest.json").write_text("[1]") and None,
        "should hold a JSON object",
    ),
    "another format": (_manifest(lambda m: m.update(format=99)), "format 99"),
    "no files in the manifest": (_manifest(lambda m: m.pop("files")), "damaged"),
    "files that are a list": (_manifest(lambda m: m.update(files=[1])), "damaged"),
    "odd notices": (_manifest(lambda m: m.update(notices=[{"a": 1}])), "damaged"),
    "a changed structure": (lambda folder: flipped(folder / "structure.npy"), "has changed"),
    "a changed description": (
        lambda folder: (folder / "structure.json").write_text("{}") and None,
        "",
    ),
}


@pytest.mark.parametrize("family", ["surface", "motion"])
@pytest.mark.parametrize("name", DATA)
def test_a_data_set_that_is_not_as_it_was_made_is_refused(
    workplace, tmp_path, capsys, family, name
):
    folder = tmp_path / "data"
    shutil.copytree(workplace.folder / family, folder)
    change, words = DATA[name]
    change(folder)
    asked = workplace.commands[f"train {family}"](tmp_path / "out")
    asked = [word.replace(str(workplace.folder / family), str(folder)) for word in asked]
    asked[1] = str(workplace.folder / f"{family}.yaml")
    check_refused(answer(capsys, *asked), str(folder), words)
    assert not (tmp_path / "out").exists()
    if name != "no manifest":
        check_refused(answer(capsys, "inspect", folder), str(folder), words)


@pytest.fixture(scope="module")
def train_parser():
    asked = parser("train", "A training.")
    asked.add_class_arguments(TrainConfig, as_group=False)
    return asked


@pytest.fixture(scope="module")
def bases(train_parser) -> list[TrainConfig]:
    """Return the configuration of every preset."""
    found = []
    for preset in PRESETS:
        values = read_yaml(preset_file(preset)) | {"data": ["-"], "out": "-"}
        found.append(made(TrainConfig, train_parser, parse_values(train_parser, values, preset)))
    going_on = replace(found[0].fit, plateau=PlateauConfig(measure="skill"), keep="last")
    return [*found, replace(found[0], fit=going_on)]


def numeric_keys(kind: Any, place: str = "") -> Iterator[tuple[str, tuple[type, bool]]]:
    """List the keys of a dataclass whose values are numbers: of which type, and whether listed."""
    for name, hint in typing.get_type_hints(kind).items():
        key = f"{place}{name}"
        for one in typing.get_args(hint) or (hint,):
            if is_dataclass(one):
                yield from numeric_keys(one, f"{key}.")
            elif one in (int, float):
                union = typing.get_origin(hint) in (None, typing.Union, types.UnionType)
                yield key, (one, not union)


KEYS = dict(numeric_keys(TrainConfig))
FIRST_OF_SECTIONS = list({key.rpartition(".")[0]: key for key in reversed(KEYS)}.values())
MAY_BE_NEGATIVE = {
    "fit.devices": "all there are",
    "ito.model.first": "of a logarithm",
    "ito.model.last": "of a logarithm",
}
ODD = {int: (-1, 10**30), float: (-1.0, float("nan"), float("inf"), 1e30)}


def placed(config: Any, keys: Sequence[str], value: Any) -> Any:
    """Return a nested dataclass with another value; none where a part on the way is not there."""
    if len(keys) == 1:
        return replace(config, **{keys[0]: value})
    inner = getattr(config, keys[0])
    other = None if inner is None else placed(inner, keys[1:], value)
    return None if other is None else replace(config, **{keys[0]: other})


def refusal(config: TrainConfig, key: str, value: Any) -> str | None:
    """Return why a configuration refuses a value; none where it takes it."""
    try:
        placed(config, key.split("."), value)
    except UsageError as error:
        return str(error)
    return None


@pytest.mark.parametrize("key", KEYS)
def test_numbers_that_cannot_be_meant_are_refused_by_key(bases, key):
    kind, listed = KEYS[key]
    known = [base for base in bases if placed(base, key.split("."), _value(base, key)) is not None]
    assert known
    for value in ODD[kind]:
        said = refusal(known[0], key, (value,) if listed else value)
        if value == -1 and key in MAY_BE_NEGATIVE:
            continue
        assert said is not None, value
        assert any(part in said for part in key.split(".")[-2:]), said
        assert "\n" not in said


def _value(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = getattr(config, part, None)
    return config


@pytest.mark.parametrize("key", FIRST_OF_SECTIONS)
def test_words_in_place_of_numbers_are_refused_by_key(train_parser, bases, key):
    parts = key.split(".")
    known = [base for base in bases if placed(base, parts, _value(base, key)) is not None]
    values = read_yaml(preset_file(known[0].preset)) | {"data": ["-"], "out": "-"}
    inner = values
    for part in parts[:-1]:
        inner[part] = inner[part] if isinstance(inner.get(part), dict) else {}
        inner = inner[part]
    inner[parts[-1]] = "much"
    with pytest.raises(UsageError) as error:
        made(TrainConfig, train_parser, parse_values(train_parser, values, "conf.yaml"))
    said = str(error.value)
    assert said.startswith("conf.yaml: ")
    assert key in said
    assert len(said) < 300


SETTINGS: dict[str, tuple[str, int, tuple[str, ...]]] = {
    "an unknown key": ("fit: {stepz: 3}", 2, ("there is no option", "stepz", "did you mean")),
    "an unknown key inside": (
        "mixture: {model: {gate: {expert: 3}}}",
        2,
        ("there is no option", "expert", "did you mean"),
    ),
    "an unknown key at the top": ("fitt: {steps: 3}", 2, ("fitt", "did you mean fit")),
    "a wrong value deep inside": (
        "mixture: {model: {qmpnn: {layers: 0}}}",
        2,
        ("layers of Q-MPNN must be at least 1, not 0",),
    ),
    "a list for a section": ("fit: [1, 2]", 2, ("fit",)),
    "an unknown preset": ("preset: defualt", 2, ("there is no preset defualt",)),
    "no YAML": ("fit: {steps: [", 3, ("is not readable YAML",)),
    "a text": ("just words", 3, ("should hold keys and values",)),
    "two families": ("motion: {}", 2, ("a training has one of",)),
    "a seed that is negative": ("fit: {seed: -1}", 2, ("seed must be at least 0",)),
    "a number that is none": ("fit: {learning_rate: .nan}", 2, ("learning_rate",)),
    "an object of Python": ("fit: !!python/object:os.system {}", 3, ("is not readable YAML",)),
    "no data": ("data: []", 2, ("data should name at least one",)),
    "devices that are not there": ("fit: {devices: 3000, accelerator: cuda}", 2, ("fit.devices",)),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_that_cannot_be_meant_are_refused(workplace, tmp_path, capsys, name):
    text, code, words = SETTINGS[name]
    path = tmp_path / "conf.yaml"
    out = tmp_path / "out"
    data = "" if "data" in text else f"data: [{workplace.folder / 'surface'}]\n"
    path.write_text(text if name == "a text" else f"{data}out: {out}\n{text}\n")
    check_refused(answer(capsys, "train", path), *words, code=code)
    assert not out.exists()
    if name != "devices that are not there":
        check_refused(answer(capsys, "inspect", path), *words, code=code)


NUMBERS = {
    "forecast": ["--time", "--spacing", "--seed", "--samples", "--level"],
    "forecast atoms": ["--time", "--seed", "--samples", "--last"],
    "prepare": ["--stride", "--probe", "--spacing", "--seed"],
    "prepare atoms": ["--stride", "--frame-ps"],
}
FOR_EVERY_FLAG = ("nan", "inf", "-1", "much", "", str(10**30))


@pytest.mark.parametrize(("command", "flag"), [(c, f) for c in NUMBERS for f in NUMBERS[c]])
def test_odd_numbers_on_the_command_line_end_in_a_sentence(
    workplace, tmp_path, capsys, command, flag
):
    for value in FOR_EVERY_FLAG:
        out = tmp_path / f"out {value[:4]}"
        words = [word for word in workplace.commands[command](out)]
        if flag in words:
            place = words.index(flag)
            del words[place : place + 2]
        told = answer(capsys, *words, f"{flag}={value}")
        assert "Traceback" not in told.err
        assert told.code in (0, 2, 3), told
        if told.code:
            assert not out.exists()
            assert told.out == ""
        elif value in ("much", "", "nan"):
            pytest.fail(f"{command} {flag}={value} was taken")
