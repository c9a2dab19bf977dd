"""Whole commands on a tiny peptide, as a user types them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from undula.cli.main import main
from undula.data.bundled import folder, models
from undula.surface.trained_mixture import load_trained

TINY = (
    "preset: dsr\n"
    "protein:\n"
    "  model:\n"
    "    network: {depth: 2, width: 32, skip_at: 1, harmonics: solid, degree: 2}\n"
    "    latent: 3\n"
    "  batch: {frames: 2, surface: 64, pool: 128}\n"
    "fit: {steps: 40, learning_rate: 0.003, warmup_steps: 0, checkpoint_every: 10, "
    "evaluate_every: 20}\n"
)


@pytest.fixture(scope="module")
def workplace(peptide, tmp_path_factory):
    """Run prepare, train and forecast once; return the folder and the peptide's files."""
    folder = tmp_path_factory.mktemp("story")
    topology, first, second = map(str, peptide)
    data, run, result = (str(folder / name) for name in ("data", "run", "result"))
    assert main(["prepare", topology, first, second, "-o", data, "--holdout", second]) == 0
    config = folder / "tiny.yaml"
    config.write_text(f"data: [{data}]\nout: {run}\n{TINY}")
    assert main(["train", str(config)]) == 0
    words = ["forecast", topology, "--model", run, "--time", "5:45:20", "-o", result]
    assert main([*words, "--formats", "html,ply"]) == 0
    return folder


def test_the_forecast_leaves_page_meshes_and_report(workplace):
    result = workplace / "result"
    assert (result / "index.html").stat().st_size > 100_000
    assert sorted(p.name for p in (result / "meshes").iterdir()) == [
        "mesh-0000.ply",
        "mesh-0001.ply",
        "mesh-0002.ply",
    ]
    report = json.loads((result / "report.json").read_text())
    assert report["times_ps"] == [5.0, 25.0, 45.0]
    assert report["empty_level_sets"] == 0


def test_evaluate_prints_the_table_and_writes_its_files(workplace, peptide, capsys):
    code = main(
        ["evaluate", str(workplace / "result"), "--truth", str(peptide[1]), "--samples", "2000"]
    )
    printed = capsys.readouterr().out
    assert code == 0
    for row in ("model", "copied first frame (trivial)", "blurred first frame", "best ellipsoid"):
        assert row in printed
    for name in ("evaluation.json", "scores.csv", "scores.md", "score.png", "strip.png"):
        assert (workplace / "result" / name).stat().st_size > 500, name
    described = json.loads((workplace / "result" / "evaluation.json").read_text())
    assert described["frames"] == 3
    assert described["judged_by"] == "iou"


def test_show_writes_the_page_with_the_truth_beside_it(workplace, peptide, capsys, tmp_path):
    page = tmp_path / "page.html"
    words = ["show", str(workplace / "result"), "--truth", str(peptide[1]), "-o", str(page)]
    assert main(words) == 0
    assert capsys.readouterr().out.strip() == str(page)
    assert page.stat().st_size > 100_000


def test_inspect_says_what_is_in_a_file(peptide, capsys):
    assert main(["inspect", str(peptide[0]), "--for", "surface"]) == 0
    assert "6 residues" in capsys.readouterr().out
    assert main(["inspect", str(peptide[1]), "--topology", str(peptide[0]), "--json"]) == 0
    (described,) = json.loads(capsys.readouterr().out)
    assert described["frames"] == 12


def test_an_empty_level_set_is_reported_and_not_a_crash(workplace, peptide, tmp_path, capsys):
    words = ["forecast", str(peptide[0]), "--model", str(workplace / "run"), "--time", "5"]
    assert main([*words, "--level=-40", "-o", str(tmp_path / "r"), "--formats", "ply"]) == 0
    assert "does not exist at 5 ps" in capsys.readouterr().err
    report = json.loads((tmp_path / "r" / "report.json").read_text())
    assert report["empty_level_sets"] == 1


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["train", "nowhere.yaml"], 2, "there is no configuration file nowhere.yaml"),
        (["train", "CONFIG", "--preset", "papers"], 2, "there is no preset papers"),
        (["train", "CONFIG", "--protien.model.latent=3"], 2, "did you mean protein"),
        (["train", "CONFIG", "--fit.steps=many"], 2, "fit.steps"),
        (["prepare", "nowhere.pdb", "nowhere.xtc", "-o", "OUT"], 3, "nowhere.pdb"),
        (["forecast", "PDB", "--model", "nowhere", "--time", "5", "-o", "OUT"], 3, "nor a bundled"),
        (["forecast", "PDB", "--model", "RUN", "--time", "5 parsec", "-o", "OUT"], 2, "parsec"),
        (["forecast", "PDB", "--model", "RUN", "--time", "5", "-o", "OUT", "--formats", "stl"], 2,
         "there is no format stl"),
        (["evaluate", "OUT", "--truth", "XTC"], 3, "forecast.json is missing"),
        (["inspect", "nowhere.pdb"], 3, "nowhere.pdb"),
    ],
)  # fmt: skip
def test_mistakes_get_one_sentence_and_an_exit_code(
    workplace, peptide, tmp_path, capsys, words, code, message
):
    places = {
        "CONFIG": workplace / "tiny.yaml",
        "OUT": tmp_path / "out",
        "PDB": peptide[0],
        "XTC": peptide[1],
        "RUN": workplace / "run",
    }
    assert main([str(places.get(word, word)) for word in words]) == code
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert "Traceback" not in said


def test_the_presets_are_valid_and_the_paper_is_dsr(peptide, workplace, tmp_path):
    words = [
        "train",
        "--preset",
        "dsr-paper",
        f"--data=[{workplace / 'data'}]",
        f"--out={tmp_path}",
    ]
    batch = ["--protein.batch.surface=8", "--protein.batch.pool=9"]
    small = ["--fit.steps=1", "--protein.model.network.width=96", *batch]
    assert main([*words, *small]) == 0
    state = json.loads(next((tmp_path / "checkpoints").glob("*/state.json")).read_text())
    described = json.dumps(state)
    assert '"base": "none"' in described
    assert '"skip_at": 4' in described
    assert '"units": "normalised"' in described


def test_a_killed_training_ends_with_the_same_bytes(workplace, tmp_path):
    config, out = workplace / "tiny.yaml", tmp_path / "again"
    command = [sys.executable, "-m", "undula", "train", str(config), f"--out={out}"]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    for _ in range(600):
        if any((out / "checkpoints").glob("*/manifest.json")) or process.poll() is not None:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert main(["train", str(config), f"--out={out}"]) == 0
    for name in ("model.safetensors", "trivial.safetensors", "history.json"):
        assert (out / name).read_bytes() == (workplace / "run" / name).read_bytes(), name


def test_training_again_with_another_model_is_refused(workplace, capsys):
    words = ["train", str(workplace / "tiny.yaml"), "--protein.model.latent=5"]
    assert main(words) == 2
    assert "latent" in capsys.readouterr().err


def test_the_same_seed_gives_the_same_data_set(workplace, peptide, tmp_path):
    topology, first, second = map(str, peptide)
    again = tmp_path / "data"
    assert main(["prepare", topology, first, second, "-o", str(again), "--holdout", second]) == 0
    names = sorted(p.relative_to(again) for p in again.rglob("*") if p.is_file())
    assert len(names) > 10
    for name in names:
        assert (again / name).read_bytes() == (workplace / "data" / name).read_bytes(), name


def test_inputs_are_never_written(peptide, workplace):
    assert sorted(p.name for p in Path(peptide[0]).parent.iterdir()) == [
        "peptide.pdb",
        "run1.xtc",
        "run2.xtc",
    ]


def test_the_demo_forecasts_a_protein_that_was_not_trained_on_and_is_honest(tmp_path, capsys):
    assert main(["demo", "-o", str(tmp_path / "demo")]) == 0
    printed = capsys.readouterr().out
    described = json.loads((tmp_path / "demo" / "evaluation.json").read_text())
    trained_on = {one["name"] for one in load_trained(models()["any"]).provenance["data"]}
    assert trained_on
    assert "1vii_A" not in trained_on
    rows = {row["name"]: row["mean"]["iou"] for row in described["rows"] if row["kind"] != "oracle"}
    assert rows["model"] > rows["blurred first frame"] > rows["copied first frame"]
    assert "averaged training frames" not in rows
    assert described["verdicts"][0] in printed
    beats, _, not_beats = described["verdicts"][0].partition("; it does not beat ")
    for name, score in rows.items():
        if name != "model":
            assert name in (beats if rows["model"] > score else not_beats)
    for name in ("index.html", "strip.png", "score.png", "calibration.png", "scores.md"):
        assert (tmp_path / "demo" / name).stat().st_size > 1000


def test_the_card_of_the_model_for_any_protein_names_proteins_it_never_saw():
    card = (models()["any"] / "card.md").read_text(encoding="utf-8")
    assert "too few to judge" in card
    assert "| 1vii_A_R1 |" in card
    assert "blurred first frame" in card


def test_the_model_card_of_villin_holds_its_scores():
    card = (folder() / "model" / "card.md").read_text(encoding="utf-8")
    assert "too few to judge" in card
    for row in ("model", "copied first frame (trivial)", "averaged training frames (trivial)"):
        assert f"| {row} |" in card
