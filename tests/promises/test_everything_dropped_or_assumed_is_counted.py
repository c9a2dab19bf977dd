"""Promise 6: everything dropped, assumed or guessed is counted in ``report.json``.

And ``--strict`` takes none of it: one sentence, exit code 3, nothing written.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.io.alanines import pdb_line
from tests.promises.answers import Answer, answer, check_refused

ODD_ATOMS = {"hydrogens-dropped": 2, "water-dropped": 1, "ions-dropped": 1, "zero-occupancies": 1}
ODD_FRAMES = {"times-numbered": 12}


@pytest.fixture(scope="module")
def odd(workplace, tmp_path_factory) -> Path:
    """Return the peptide with atoms that no surface needs, and one of occupancy zero."""
    lines = (workplace.folder / "peptide.pdb").read_text().splitlines()
    atoms = [line for line in lines if line.startswith("ATOM")]
    extra = [
        pdb_line("H", (90, 0, 0), residue="HOH", number=90),
        pdb_line("O", (90.9, 0, 0), residue="HOH", number=90),
        pdb_line("NA", (90, 20, 9), residue="NA", number=91, element="NA"),
    ]
    first = atoms[0]
    place = [float(first[i : i + 8]) for i in (30, 38, 46)]
    hydrogens = [
        pdb_line(
            f"H{k}",
            (place[0] + k, place[1] + 0.5, place[2]),
            residue=first[17:20],
            number=int(first[22:26]),
        )
        for k in (1, 2)
    ]
    blank = f"{atoms[-1][:54]}{0.0:6.2f}{atoms[-1][60:]}"
    path = tmp_path_factory.mktemp("odd") / "odd.pdb"
    path.write_text("\n".join([first, *hydrogens, *atoms[1:-1], blank, *extra, "END"]) + "\n")
    return path


def report(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text())


def counts(notices: list[dict[str, Any]]) -> dict[str, int]:
    assert all(set(notice) == {"code", "message", "count", "place"} for notice in notices)
    return {notice["code"]: notice["count"] for notice in notices}


def check_told(told: Answer, notices: list[dict[str, Any]]) -> None:
    """Assert that what stands in the report was also said."""
    for notice in notices:
        assert notice["message"] in told.err


def check_strict(capsys: pytest.CaptureFixture[str], words: list[str], out: Path, more: int) -> str:
    """Assert that a command with --strict writes nothing and names the first notice."""
    told = answer(capsys, *words, "--strict")
    check_refused(told, "--strict takes no notice", f"(and {more} more)" if more else "")
    assert more or "more)" not in told.sentence
    assert not out.exists()
    return told.sentence


def forecast_words(workplace, structure: Path, out: Path, *more: str) -> list[str]:
    model = str(workplace.folder / "surface run")
    return [
        "forecast",
        str(structure),
        "--model",
        model,
        "--time",
        "1",
        "--formats=,",
        "-o",
        str(out),
        *more,
    ]


def test_a_forecast_counts_what_its_structure_lost(workplace, odd, tmp_path, capsys):
    out = tmp_path / "out"
    sentence = check_strict(capsys, forecast_words(workplace, odd, out), out, more=3)
    assert sentence.startswith("odd.pdb: 2 hydrogen atoms were dropped")
    told = answer(capsys, *forecast_words(workplace, odd, out))
    assert told.code == 0, told.err
    found = report(out)["notices"]
    assert counts(found) == ODD_ATOMS
    assert all(notice["place"].startswith("odd.pdb") for notice in found)
    check_told(told, found)


def test_a_forecast_beyond_training_and_an_empty_level_set_are_counted(workplace, tmp_path, capsys):
    out = tmp_path / "out"
    structure = workplace.folder / "peptide.pdb"
    words = forecast_words(workplace, structure, out, "--level=-30")
    words[words.index("1")] = "1,5000"
    words[words.index("--formats=,")] = "--formats=ply"
    check_strict(capsys, [*words, "--spacing", "3"], out, more=0)
    assert answer(capsys, *words, "--spacing", "3").code == 0
    assert counts(report(out)["notices"]) == {"beyond-training": 1, "empty-level-set": 1}
    assert report(out)["empty_level_sets"] == 2


@pytest.fixture(scope="module")
def data(workplace, odd, tmp_path_factory) -> Path:
    """Return a data set made of the odd peptide, whose atoms are those of the run in order."""
    from undula.cli.main import main

    folder = tmp_path_factory.mktemp("counted") / "data"
    words = ["prepare", str(workplace.folder / "peptide.pdb"), str(workplace.folder / "run.pdb")]
    assert main([*words, "-o", str(folder), "--spacing", "2"]) == 0
    return folder


def test_a_preparation_and_a_training_on_it_count_alike(workplace, data, tmp_path, capsys):
    found = report(data)["notices"]
    assert counts(found) == ODD_FRAMES
    assert json.loads((data / "manifest.json").read_text())["notices"] == found
    words = ["prepare", str(workplace.folder / "peptide.pdb"), str(workplace.folder / "run.pdb")]
    check_strict(capsys, [*words, "-o", str(tmp_path / "new")], tmp_path / "new", more=0)
    complete = answer(capsys, *words, "-o", data, "--spacing", "2", "--strict")
    check_refused(complete, "run.pdb: the file gives no times")

    out = tmp_path / "run"
    asked = ["train", str(workplace.folder / "surface.yaml"), "--data", f'["{data}"]', "--out", out]
    check_strict(capsys, [str(word) for word in asked], out, more=0)
    assert answer(capsys, *asked).code == 0
    assert report(out)["notices"] == found
    assert report(out)["steps"] == 8


def test_recordings_and_a_training_on_them_count_alike(workplace, tmp_path, capsys):
    made = workplace.folder / "motion"
    found = report(made)["notices"]
    assert counts(found) == {"atoms-guessed": 8}
    assert found[0]["place"] == "box.npz"
    assert report(workplace.folder / "motion run")["notices"] == found
    out = tmp_path / "out"
    check_strict(capsys, workplace.commands["prepare atoms"](out), out, more=0)
    check_strict(capsys, workplace.commands["train motion"](out), out, more=0)


def test_a_preparation_of_structures_names_what_it_skipped(odd, tmp_path, capsys):
    out = tmp_path / "out"
    told = answer(capsys, "prepare", "static", odd, "-o", out, "--strict")
    assert told.code == 6
    assert "odd was skipped: odd.pdb: 2 hydrogen atoms were dropped (and 3 more)" in told.err
    assert [one.name for one in out.iterdir()] == ["static.json"]


def test_a_forecast_of_atoms_counts_what_its_window_lost(workplace, tmp_path, capsys):
    out = tmp_path / "out"
    window = tmp_path / "seen.trr"
    window.write_bytes((workplace.folder / "seen.trr").read_bytes() + b"x" * 77)
    words = workplace.commands["forecast atoms"](out)
    words[words.index("--window") + 1] = str(window)
    sentence = check_strict(capsys, words, out, more=0)
    assert sentence.startswith("seen.trr: 77 bytes after 8 whole frames are no frame")
    told = answer(capsys, *words)
    assert told.code == 0, told.err
    found = report(out)["notices"]
    assert counts(found) == {"file-cut": 1}
    check_told(told, found)


def test_strict_refuses_before_the_work_is_done(workplace, odd, tmp_path, capsys, monkeypatch):
    def work(*_, **__):
        raise AssertionError("work was begun")

    out = tmp_path / "out"
    atoms = workplace.commands["forecast atoms"](out)
    for place in (
        "undula.motion.forecast._forecast",
        "undula.surface.forecast.measured",
        "undula.data.prepare.load_trajectory",
        "undula.data.recorded.read_frames",
    ):
        monkeypatch.setattr(place, work)
    sentence = check_strict(capsys, [*atoms, "--last", "5"], out, more=0)
    assert "the window has 5 frames, in training there were 6" in sentence
    late = forecast_words(workplace, workplace.folder / "peptide.pdb", out)
    late[late.index("1")] = "1,5000"
    assert "1 times lie beyond" in check_strict(capsys, late, out, more=0)
    run = ["-o", str(out), str(odd), str(workplace.folder / "run.pdb")]
    check_strict(capsys, ["prepare", *run], out, more=3)
    check_strict(capsys, ["prepare", "atoms", *run, "--hydrogens", "drop"], out, more=1)
    monkeypatch.setattr("undula.motion.catalog.load_forecaster", work)
    atoms[1] = str(odd)
    check_strict(capsys, [*atoms, "--hydrogens", "drop"], out, more=1)


def test_an_evaluation_counts_what_the_truth_lost(workplace, odd, tmp_path, capsys):
    out = tmp_path / "out"
    structure = workplace.folder / "peptide.pdb"
    assert answer(capsys, *forecast_words(workplace, structure, out)).code == 0
    before = (out / "report.json").read_bytes()
    words = ["evaluate", str(out), "--truth", str(workplace.folder / "run.pdb")]
    words += ["--samples", "100", "--spacing", "3"]
    check_refused(answer(capsys, *words, "--strict"), "run.pdb: the file gives no times")
    assert (out / "report.json").read_bytes() == before
    assert not (out / "evaluation.json").exists()
    told = answer(capsys, *words)
    assert told.code == 0, told.err
    found = report(out)
    assert found["notices"] == json.loads(before)["notices"]
    assert counts(found["evaluation"]["notices"]) == ODD_FRAMES
    check_told(told, found["evaluation"]["notices"])
    # Again: the part of the evaluation is replaced and nothing grows.
    assert answer(capsys, *words).code == 0
    assert report(out) == found


def test_an_inspection_says_what_would_be_dropped_and_for_whom_a_file_serves(
    workplace, odd, capsys
):
    told = answer(capsys, "inspect", odd, "--json")
    (found,) = json.loads(told.out)
    assert counts(found["notices"]) == ODD_ATOMS
    assert found["families"] == ["surface"]
    assert "there is one frame" in found["why_not"]["motion"]
    check_refused(answer(capsys, "inspect", odd, "--strict"), "odd.pdb", "--strict takes no notice")
    assert "not for motion" in answer(capsys, "inspect", odd).out


@pytest.mark.parametrize(
    ("name", "kind", "family"),
    [
        ("surface", "data set", "surface"),
        ("motion", "set of recordings", "motion"),
        ("surface run", "trained model", "surface"),
        ("motion run", "trained model", "motion"),
        ("surface.yaml", "training configuration", "surface"),
        ("motion.yaml", "training configuration", "motion"),
        ("motion run/weights.safetensors", "file of weights", "motion"),
        ("surface run/checkpoints", "checkpoint", "surface"),
        ("box.npz", "fluid in fixed point", "motion"),
    ],
)
def test_an_inspection_knows_what_undula_made(workplace, capsys, name, kind, family):
    told = answer(capsys, "inspect", workplace.folder / name, "--json")
    assert told.code == 0, told.err
    for found in json.loads(told.out):
        assert (found["kind"], found["families"]) == (kind, [family])
        assert set(found["why_not"]) == {"surface", "motion"} - {family}
    assert kind in answer(capsys, "inspect", workplace.folder / name).out
    other = ({"surface", "motion"} - {family}).pop()
    check_refused(
        answer(capsys, "inspect", "--for", other, workplace.folder / name),
        f"is for {family}, not for {other}",
    )


def test_an_inspection_refuses_folders_of_nothing_and_of_the_unfinished(
    workplace, tmp_path, capsys
):
    check_refused(answer(capsys, "inspect", tmp_path), "holds nothing that undula made")
    begun = tmp_path / "begun"
    begun.mkdir()
    shutil.copy(workplace.folder / "surface" / "request.json", begun)
    check_refused(answer(capsys, "inspect", begun), "is not complete; run the same command again")
    run = tmp_path / "run"
    shutil.copytree(workplace.folder / "motion run" / "checkpoints", run / "checkpoints")
    told = answer(capsys, "inspect", run)
    assert told.code == 0, told.err
    assert "training that has not ended for motion" in told.out


def test_results_are_known_too(workplace, tmp_path, capsys):
    for command, family in (("forecast", "surface"), ("forecast atoms", "motion")):
        out = tmp_path / family
        assert answer(capsys, *workplace.commands[command](out)).code == 0
        (found,) = json.loads(answer(capsys, "inspect", out, "--json").out)
        assert (found["kind"], found["families"]) == ("forecast", [family])
