"""Promise 1: no code from a data file is ever executed, whatever its name and wherever it lies.

The pickles here make a file when they are opened. It is never made.
"""

from __future__ import annotations

import ast
import io
import json
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import undula
from undula.atomic import sha256
from undula.cli.main import main
from undula.errors import InputError
from undula.io.inspection import inspect

SUFFIXES = (
    ".pt", ".pth", ".ckpt", ".pkl", ".npy", ".npz", ".safetensors", ".json", ".yaml", ".pdb",
    ".cif",    ".gro", ".xtc", ".trr", ".dcd", ".ent.gz", ".zip", "",
)  # fmt: skip
SOURCES = sorted(Path(undula.__file__).parent.rglob("*.py"))


class Bomb:
    """Makes a file when its pickle is opened."""

    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self):
        return Path.touch, (self.made,)


def _objects(bomb: Bomb, **names: str) -> bytes:
    file = io.BytesIO()
    if names:
        np.savez(file, allow_pickle=True, **dict.fromkeys(names, np.array([bomb], dtype=object)))
    else:
        np.save(file, np.array([bomb], dtype=object), allow_pickle=True)
    return file.getvalue()


def _torch(bomb: Bomb, *, zipped: bool) -> bytes:
    file = io.BytesIO()
    torch.save({"weights": bomb}, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


KINDS: dict[str, Callable[[Bomb], bytes]] = {
    "pickle 0": lambda bomb: pickle.dumps(bomb, protocol=0),
    "pickle 2": lambda bomb: pickle.dumps(bomb, protocol=2),
    "pickle 5": lambda bomb: pickle.dumps(bomb, protocol=5),
    "torch": lambda bomb: _torch(bomb, zipped=True),
    "old torch": lambda bomb: _torch(bomb, zipped=False),
    "objects": _objects,
    "an archive of objects": lambda bomb: _objects(bomb, velocity="", position_first=""),
}


@pytest.fixture
def made(tmp_path):
    """Return the path of the file that is never made."""
    path = tmp_path / "made"
    yield path
    assert not path.exists(), "a pickle was opened"


@pytest.fixture(params=KINDS)
def content(request, made) -> bytes:
    return KINDS[request.param](Bomb(made))


def refused(words: list, capsys) -> str:
    """Run a command that refuses its input in one sentence, and return that."""
    capsys.readouterr()
    assert main([str(word) for word in words]) in (2, 3), words
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith("undula: ")
    assert "Traceback" not in said
    return said[-1]


def test_the_pickles_would_do_it(tmp_path):
    for number, kind in enumerate(KINDS.values()):
        made = tmp_path / str(number)
        content = kind(Bomb(made))
        file = tmp_path / "file"
        file.write_bytes(content)
        if content.startswith((b"\x93NUMPY", b"PK")) and b"data.pkl" not in content:
            found = np.load(file, allow_pickle=True)
            for name in getattr(found, "files", ()):
                found[name]
        elif b"weights" in content:
            torch.load(file, weights_only=False)
        else:
            pickle.loads(content)
        assert made.exists(), number


def test_it_is_opened_under_no_suffix(tmp_path, content):
    for suffix in SUFFIXES:
        path = tmp_path / f"file{suffix}"
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"file"):
            inspect(path)


def test_it_is_opened_as_no_input(tmp_path, content, workplace, capsys):
    given = workplace.folder
    path = tmp_path / "bomb"
    path.write_bytes(content)
    out = ["-o", tmp_path / "out"]
    peptide = given / "peptide.pdb"
    for words in (
        ["prepare", path, path, *out],
        ["prepare", peptide, path, *out],
        ["prepare", "atoms", path, *out],
        ["prepare", "atoms", peptide, path, *out],
        ["prepare", "atoms", peptide, given / "run.pdb", "--velocities", path, *out],
        ["forecast", path, "--time", "1", *out],
        ["forecast", peptide, "--window", path, "--time", "1", *out],
        ["train", path],
        ["data", "split", path, "--counts", "1", "0", "1", *out],
        ["evaluate", "--protocol", path, "--data", given / "surface", *out],
        ["sweep", path, "--data", given / "surface", *out],
    ):
        refused(words, capsys)
        assert not (tmp_path / "out").exists()


def test_it_is_opened_as_no_model(tmp_path, content, workplace, capsys):
    for kind, verb in (
        ("surface", ["peptide.pdb"]),
        ("motion", ["argon.pdb", "--window", "seen.trr"]),
    ):
        run = tmp_path / kind
        for weights in sorted((workplace.folder / f"{kind} run").glob("*.safetensors")):
            shutil.rmtree(run, ignore_errors=True)
            shutil.copytree(workplace.folder / f"{kind} run", run)
            (run / weights.name).write_bytes(content)
            files = [workplace.folder / one if "." in one else one for one in verb]
            words = ["forecast", *files, "--model", run, "--time", "0.2", "-o", tmp_path / "out"]
            if weights.name in ("model.safetensors", "trivial.safetensors") or kind == "motion":
                assert "pickle" in refused(words, capsys) or content[:1] not in (b"\x80", b"P")


def test_it_is_opened_in_no_checkpoint(tmp_path, content, workplace, capsys):
    """Not even where the manifest vouches for it."""
    from undula.learn.checkpoint import load_checkpoint

    newest = sorted((workplace.folder / "surface run" / "checkpoints").iterdir())[-1]
    for name in ("weights.safetensors", "optimizer.safetensors", "state.json"):
        place = tmp_path / newest.name
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(newest, place)
        (place / name).write_bytes(content)
        vouched(place / "manifest.json", name)
        with pytest.raises(InputError, match=name):
            load_checkpoint(place)


def vouched(manifest: Path, name: str) -> None:
    """Give a file of a checkpoint the hash that its manifest promises, and sign that."""
    import hashlib

    told = json.loads(manifest.read_text())
    told["files"][name] = sha256(manifest.parent / name)
    told.pop("sha256")
    signature = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
    manifest.write_text(json.dumps({**told, "sha256": signature}))


@pytest.mark.parametrize("kind", ["surface", "motion"])
def test_it_is_opened_in_no_data_set(tmp_path, workplace, capsys, made, kind):
    """Not even where the manifest vouches for it."""
    whole = workplace.folder / kind
    for file in sorted(whole.rglob("*.npy")):
        place = tmp_path / "set"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(whole, place)
        name = file.relative_to(whole).as_posix()
        (place / name).write_bytes(_objects(Bomb(made)))
        manifest = json.loads((place / "manifest.json").read_text())
        manifest["files"][name] = sha256(place / name)
        (place / "manifest.json").write_text(json.dumps(manifest))
        config = workplace.folder / f"{kind}.yaml"
        words = ["train", config, "--data", f'["{place}"]', "--out", tmp_path / "run"]
        refused(words, capsys)
        shutil.rmtree(tmp_path / "run", ignore_errors=True)


def test_it_is_opened_in_no_forecast(tmp_path, workplace, capsys, made):
    result = tmp_path / "result"
    assert main([str(word) for word in workplace.commands["forecast atoms"](result)]) == 0
    for file in sorted((result / "state").glob("*.npy")):
        before = file.read_bytes(), (result / "forecast.json").read_bytes()
        file.write_bytes(_objects(Bomb(made)))
        told = json.loads(before[1])
        told["files"][file.name] = sha256(file)
        (result / "forecast.json").write_text(json.dumps(told))
        refused(["show", result], capsys)
        file.write_bytes(before[0])
        (result / "forecast.json").write_bytes(before[1])


@pytest.mark.parametrize(
    "text",
    [
        "out: !!python/object/apply:os.system ['touch {made}']",
        "out: !!python/object/apply:pathlib.Path.touch "
        "[!!python/object/apply:pathlib.Path ['{made}']]",
        "out: !!python/object/new:os.system ['touch {made}']",
        "out: !!python/name:os.system",
        "out: {{class_path: os.system, init_args: {{command: 'touch {made}'}}}}",
        "protein: {{class_path: subprocess.Popen, init_args: {{args: [touch, '{made}']}}}}",
        "fit: {{class_path: pathlib.Path.touch, init_args: {{self: '{made}'}}}}",
        'out: ${{oc.env:HOME}}\nfit: {{steps: \'__import__("os").system("touch {made}")\'}}',
    ],
)
def test_no_configuration_names_what_is_executed(tmp_path, capsys, made, text):
    path = tmp_path / "a.yaml"
    path.write_text(f"preset: dsr\ndata: [nowhere]\n{text.format(made=made)}\n")
    capsys.readouterr()
    for words in (
        ["train", path],
        ["sweep", path, "--data", "nowhere", "-o", tmp_path / "out"],
        ["evaluate", "--protocol", path, "--data", "nowhere", "-o", tmp_path / "out"],
    ):
        assert main([str(word) for word in words]) in (2, 3)
        assert capsys.readouterr().err.count("\n") == 1


MODULE = "from pathlib import Path\nPath({made!r}).touch()\nclass Thing:\n    pass\n"
NAMED = "{class_path: named_by_data.Thing, init_args: {}}"
CONFIGURATIONS = {
    "train": ["out: x\ndata: [nowhere]\npreset: dsr\nprotein: NAMED",
              "out: x\ndata: [NAMED]\npreset: dsr"],
    "sweep -o out --data nowhere": [
        "name: a\nspace: {b: {keys: [c], values: [NAMED, NAMED]}}",
        "name: a\nspace: {b: {keys: [c], values: [1]}}\nset: NAMED",
        "name: a\nspace: {b: {keys: [c], values: [1]}}\nset: {mixture: NAMED}",
        "name: a\nspace: {b: NAMED}",
    ],
    "evaluate -o out --runs runs --data nowhere --protocol": [
        "name: a\nrows: [{name: b, set: NAMED}]\n"
        "tables: [{name: c, title: d, kind: models, rows: [b]}]",
        "name: a\nrows: [{name: b, set: {mixture: NAMED}}]\n"
        "tables: [{name: c, title: d, kind: models, rows: [b]}]",
        "name: a\nrows: [NAMED]\ntables: []",
        "name: a\nkind: motion\nsystems: [NAMED]\nrows: [{name: b, set: NAMED}]",
    ],
}  # fmt: skip


@pytest.mark.parametrize("verb", CONFIGURATIONS)
def test_no_configuration_imports_what_lies_beside_it(tmp_path, monkeypatch, capsys, made, verb):
    """As with ``python -m undula``, which looks for modules in the folder it is called in."""
    (tmp_path / "named_by_data.py").write_text(MODULE.format(made=str(made)))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    for text in CONFIGURATIONS[verb]:
        (tmp_path / "a.yaml").write_text(text.replace("NAMED", NAMED))
        refused([*verb.split(), "a.yaml"], capsys)
        assert not made.exists(), text


def test_an_archive_of_pickles_is_unpacked_and_opened_by_nobody(tmp_path, content):
    from undula.io.archives import extract

    with zipfile.ZipFile(tmp_path / "a.zip", "w") as opened:
        opened.writestr("1vii_A.pdb", content)
    extract(tmp_path / "a.zip", {"1vii_A.pdb": tmp_path / "1vii_A.pdb"})
    with pytest.raises(InputError):
        inspect(tmp_path / "1vii_A.pdb")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_the_source_holds_nothing_that_could(path):
    """A look at every call and import: what opens pickles, or runs text, is not there."""
    modules = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert not modules & {one.name.split(".")[0] for one in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] not in modules
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            assert name not in ("eval", "exec", "compile", "__import__"), name
            assert name not in ("torch.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load")
            assert name not in ("os.system", "os.popen", "torch.jit.load", "torch.package"), name
            pickles = [one for one in node.keywords if one.arg == "allow_pickle"]
            assert all(ast.unparse(one.value) == "False" for one in pickles)
            assert not (name.startswith("subprocess.") and "shell" in ast.unparse(node)), name
