"""From recorded atoms to a forecast of them, its score and its page, as a user types it."""

from __future__ import annotations

import json

import mdtraj
import pytest
import torch
from tests.data.fixed_point import swinging

from undula.cli.main import main
from undula.io.atom_export import write_pdb, write_xtc
from undula.io.kinds import molecular_system
from undula.io.structures import load_structure
from undula.types import MolecularSystem

EDGE, STEP, OBSERVED = 20.0, 0.1, 24
BOX = EDGE * torch.eye(3, dtype=torch.float64)
TINY = """
preset: argon
mixture: null
protein: null
motion:
  model:
    encoder: {features: 8, layers: 1, cutoff: 6.0, neighbours: 4, oldest: 4, latent: 2, heads: 2}
    levels: {horizon: 16, strides: [4, 1], layers: 1, solver: {steps: 2}}
  batch: {observed: 6, windows: 1, near: 2, segments: 1, times: 1, fitted_windows: 5}
fit: {steps: 5, evaluate_every: 5, checkpoint_every: 5}
"""


def argon_system() -> MolecularSystem:
    from tests.motion.small_systems import argon

    return argon(8)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Return a folder with argon.pdb, two runs to train on, and one that is observed in part."""
    folder = tmp_path_factory.mktemp("story")
    system = argon_system()
    for name, seed in (("run1", 0), ("run2", 1), ("new", 2)):
        positions = torch.from_numpy(swinging(60, 0, seed)[0]) * 10
        inside = positions - (positions / EDGE).floor() * EDGE
        if name == "run1":
            write_pdb(folder / "argon.pdb", system, inside[:1], box=BOX)
        times = [STEP * frame for frame in range(60)]
        write_xtc(folder / f"{name}.xtc", inside, times, BOX)
        if name == "new":
            write_xtc(folder / "seen.xtc", inside[:OBSERVED], times[:OBSERVED], BOX)
            finer = inside[: 2 * OBSERVED]
            write_xtc(folder / "finer.xtc", finer, [STEP / 2 * k for k in range(len(finer))], BOX)
    (folder / "tiny.yaml").write_text(TINY)
    return folder


@pytest.fixture(scope="module")
def model(files):
    names = [str(files / name) for name in ("argon.pdb", "run1.xtc", "run2.xtc")]
    assert main(["prepare", "atoms", *names, "-o", str(files / "box")]) == 0
    words = [str(files / "tiny.yaml"), "--data", f'["{files / "box"}"]', "--out"]
    assert main(["train", *words, str(files / "model")]) == 0
    return files / "model"


def words(files, model, out, *more, window="seen.xtc", times="0:1.6:0.2"):
    first = [str(files / "argon.pdb"), "--window", str(files / window), "--model", str(model)]
    return ["forecast", *first, "--time", times, "-o", str(out), *more]


def test_a_window_becomes_moving_atoms_with_a_page_files_and_scores(files, model, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(words(files, model, out, "--samples", "3", "--formats", "html,xtc,pdb")) == 0
    said = capsys.readouterr()
    assert said.out == f"{out}: 8 atoms of argon at 9 times after 2.3 ps, 3 samples\n"
    mean = mdtraj.load(str(out / "mean.xtc"), top=str(out / "now.pdb"))
    assert mean.n_frames == 9
    assert mean.time[-1] == pytest.approx(3.9)
    assert mean.unitcell_lengths[0] * 10 == pytest.approx([EDGE] * 3)
    report = json.loads((out / "report.json").read_text())
    assert report["observed_frames"] == 6
    assert report["samples"] == 3

    assert main(["evaluate", str(out), "--truth", str(files / "new.xtc")]) == 0
    said = capsys.readouterr()
    for row in ("DoMiNO", "last position (trivial)", "observed mean", "linear response"):
        assert row in said.out
    assert "notice" not in said.err
    scores = json.loads((out / "evaluation.json").read_text())
    assert scores["times_ps"] == pytest.approx([0.2 * k for k in range(1, 9)])

    assert main(["show", str(out), "-o", str(tmp_path / "alone.html")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'alone.html'}\n"
    assert main(["show", str(out), "--truth", str(files / "new.xtc")]) == 0


def test_the_same_words_write_the_same_bytes(files, model, tmp_path):
    written = []
    for name in ("one", "two"):
        assert main(words(files, model, tmp_path / name, "--samples", "2")) == 0
        paths = sorted(one for one in (tmp_path / name).rglob("*") if one.is_file())
        written.append([(one.name, one.read_bytes()) for one in paths])
    assert written[0] == written[1]


def test_a_finer_window_is_thinned_and_said(files, model, tmp_path, capsys):
    assert main(words(files, model, tmp_path / "out", window="finer.xtc")) == 0
    assert "the model takes one in 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "changed", "code", "sentence"),
    [
        ((), {"times": "0:2:0.5"}, 2, "the model reaches 1.6 ps"),
        (("--last", "1"), {}, 3, "the window has 1 frames, the model takes at least 3"),
        (("--last", "0"), {}, 2, "at least 1 frame"),
        (("--level", "1.0"), {}, 2, "--level is for forecasts of surfaces"),
        (("--formats", "ply"), {}, 2, "there is no format ply; there are html, xtc, pdb"),
        (("--samples", "1"), {}, 2, "draw at least 2"),
        (("--surface",), {}, 2, "8 in a box have no outside"),
        ((), {"window": "nowhere.xtc"}, 3, "there is no such file"),
    ],
)
def test_what_cannot_be_meant_gets_one_sentence(
    files, model, tmp_path, capsys, more, changed, code, sentence
):
    assert main(words(files, model, tmp_path / "out", *more, **changed)) == code
    said = capsys.readouterr().err.strip().splitlines()
    assert sentence in said[-1]
    assert "Traceback" not in "".join(said)


def test_other_atoms_are_sent_to_prepare_and_train(files, model, peptide, tmp_path, capsys):
    topology, run, _ = map(str, peptide)
    start = ["forecast", topology, "--window", run, "--time", "1", "-o", str(tmp_path / "out")]
    assert main([*start, "--model", str(model)]) == 3
    said = capsys.readouterr().err
    assert "knows no atoms of the kind" in said
    assert "undula prepare atoms" in said
    argon = ["forecast", str(files / "argon.pdb"), "--window", run, "--time", "1"]
    assert main([*argon, "-o", str(tmp_path / "out"), "--model", str(model)]) == 3
    assert "the structure argon has 8" in capsys.readouterr().err
    assert main([*argon[:2], "--time", "1", "-o", str(tmp_path / "out"), "--wrap"]) == 2
    assert "--wrap is for forecasts of atoms" in capsys.readouterr().err


def test_python_has_the_same_words(files, model, tmp_path):
    import undula

    structure = load_structure(
        files / "argon.pdb", select="all", hydrogens="keep", heterogens="keep"
    )
    assert molecular_system(structure).molecule_count == 8
    run = undula.load_trajectory(structure, files / "new.xtc")
    seen = undula.window(run.frames(slice(0, OBSERVED)), last_ps=2.0)
    future = undula.forecast(seen, [0.1, 0.35, 1.6], undula.load_trained(model), samples=2)
    assert isinstance(future, undula.MovingAtoms)
    assert undula.evaluate(future, run).lags_ps == (0.1, 1.6)
    undula.export(future, tmp_path / "out", formats=["xtc"])
    assert (tmp_path / "out" / "sample-02.xtc").exists()
