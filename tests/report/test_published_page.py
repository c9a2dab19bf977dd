import json
from hashlib import sha256
from pathlib import Path
from shutil import copytree

import pytest

from undula.atomic import write, write_json
from undula.errors import InputError

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "published.md"
pytestmark = pytest.mark.skipif(not PAGE.is_file(), reason="docs lie in the repository alone")


@pytest.fixture(scope="module")
def tool():
    import published

    return published


def lines(page: str, row: str) -> list[list[str]]:
    """Return the cells of the lines of a row, in the order of the page."""
    starts = [line for line in page.splitlines() if line.startswith(f"| {row} |")]
    return [[cell.strip() for cell in line.strip("|").split("|")][1:] for line in starts]


def test_the_page_says_what_the_results_say(tool):
    page = PAGE.read_text(encoding="utf-8")
    assert tool.written(page) == page, "run python tools/published.py"


def test_without_results_there_is_no_number_of_ours(tool, tmp_path):
    page = tool.written(PAGE.read_text(encoding="utf-8"), tmp_path)
    assert lines(page, "DoMiNO (ours)")[0] == ["0.1786", "not yet trained", "–", "–", "–"]
    assert lines(page, "MoE-DSR (paper, half as wide)")[0] == [
        "0.7028", "0.0039", "0.6723", "not yet trained", "–", "–", "–",
    ]  # fmt: skip
    assert "(trivial) | –" not in page


def test_a_number_of_the_results_reaches_the_page(tool, tmp_path):
    table = {"mean": {"domino": {"tip3p": {"paper": 0.3, "paper_expected": 0.25}}}}
    folder = tmp_path / "domino" / "tip3p"
    folder.mkdir(parents=True)
    (folder / "table-1.json").write_text(json.dumps(table))
    about = {"tip3p/domino": {"seeds": 2, "steps": [800, 1600], "weights": 5, "remarks": []}}
    (folder / "rows.json").write_text(json.dumps(about))
    page = tool.written(PAGE.read_text(encoding="utf-8"), tmp_path)
    assert ["0.1513", "0.3000", "0.2500", "2", "800, 1,600"] in lines(page, "DoMiNO (ours)")


def test_scores_of_surfaces_stand_beside_the_steps_of_each_seed(tool, tmp_path):
    folder = tmp_path / "moe-dsr" / "all"
    folder.mkdir(parents=True)
    mean = {"iou": 0.6, "chamfer_paper": 0.01, "normal_consistency_paper": 0.5}
    row = {"name": "MoE-DSR (paper, half as wide)", "kind": "model", "mean": mean}
    (folder / "table-1.json").write_text(json.dumps({"rows": [row]}))
    (folder / "rows.json").write_text(json.dumps({"moe-dsr": {"steps": [20000, 40000]}}))
    page = tool.written(PAGE.read_text(encoding="utf-8"), tmp_path)
    assert lines(page, "MoE-DSR (paper, half as wide)")[0] == [
        "0.7028", "0.0039", "0.6723", "0.6000", "0.0100", "0.5000", "20,000, 40,000",
    ]  # fmt: skip


def test_a_study_is_taken_without_its_times_and_never_with_a_place_of_a_machine(tool, tmp_path):
    study, results = tmp_path / "study", tmp_path / "results"
    study.mkdir()
    for name, table in {
        "table-1.json": {"mean": {"domino": {"ala2": {"paper": 0.1}}}},
        "times.json": {"seconds": {"score": 1.0}},
        "rows.json": {},
    }.items():
        (study / name).write_text(json.dumps(table))
    assert tool.take(study, results) == results / "domino" / "ala2"
    taken = sorted(path.name for path in (results / "domino" / "ala2").iterdir())
    assert taken == ["rows.json", "table-1.json"]
    copytree(study, tmp_path / "other")
    (tmp_path / "other" / "rows.json").write_text('{"place": "/home/somebody/runs"}')
    with pytest.raises(InputError, match="names a place of a machine"):
        tool.take(tmp_path / "other", results)
    with pytest.raises(InputError, match="holds no study"):
        tool.take(tmp_path, results)


def study(folder: Path, rows: dict[str, float], *, constant: float = 0.5) -> Path:
    """Write the tables of rows beside a trivial one; an error is the number of a row."""
    folder.mkdir()
    every = rows | {"constant": constant}
    tables = {
        "table-1.json": {"mean": {row: {"ala2": {"paper": one}} for row, one in every.items()}},
        "rows.json": {f"ala2/{row}": {"steps": [round(one * 10)]} for row, one in rows.items()},
        "ala2-skill-physical.json": {
            "rows": [
                {"row": row, "first": first, "error": one}
                for row, one in every.items()
                for first in (1, 2)
            ]
        },
        "ala2-calibration.json": {
            "rows": [
                {"row": row, "lag": lag, "crps": one}
                for lag in (1, 2)
                for row, one in every.items()
            ]
        },
        "ala2-samples.json": {
            {
                "domino": "DoMiNO (ours)",
                "lg-ode": "LG-ODE",
                "no-bonds": "DoMiNO without bonds",
                "single-frame": "DoMiNO from the last frame alone",
                "single-frame@0": "DoMiNO from the last frame alone, decoded at level 0",
            }.get(row, row): {"energy": one}
            for row, one in every.items()
        },
        "ala2-lags-physical.json": {
            "lags": [1, 2],
            "mean": {row: [one, 2 * one] for row, one in every.items()},
        },
    }
    for name, table in tables.items():
        (folder / name).write_text(json.dumps(table))
    return folder


def test_rows_that_a_study_lacks_stay_where_they_were_scored_alike(tool, tmp_path):
    results = tmp_path / "results"
    # The protocol asks for a forecast from the last frame alone on argon and nowhere else.
    before = {"domino": 0.3, "lg-ode": 0.4, "single-frame": 0.6, "single-frame@0": 0.7}
    tool.take(study(tmp_path / "before", before), results)
    tool.take(study(tmp_path / "now", {"domino": 0.1, "no-bonds": 0.2}), results, keep=True)
    every = {"domino": 0.1, "no-bonds": 0.2, "lg-ode": 0.4}
    whole = tool.take(study(tmp_path / "whole", every), tmp_path / "other")
    for path in sorted(whole.iterdir()):
        assert path.read_bytes() == (results / "domino" / "ala2" / path.name).read_bytes()


def test_rows_do_not_stay_beside_those_of_other_data(tool, tmp_path):
    results = tmp_path / "results"
    tool.take(study(tmp_path / "before", {"domino": 0.3}), results)
    with pytest.raises(InputError, match="the rows before cannot stay"):
        tool.take(study(tmp_path / "now", {"painn": 0.2}, constant=0.6), results, keep=True)
    table = {"mean": {"domino": {"ala2": {"paper": 0.3}, "argon": {"paper": 0.2}}}}
    (tmp_path / "now" / "table-1.json").write_text(json.dumps(table))
    with pytest.raises(InputError, match="of one system of atoms alone"):
        tool.take(tmp_path / "now", results, keep=True)


def test_the_weights_that_were_scored_are_taken_and_no_others(tool, tmp_path):
    folder, runs, out = (tmp_path / name for name in ("study", "runs", "checkpoints"))
    scores = {
        "ala2/ito/seed-0.json": {"weights": sha256(b"of ito").hexdigest()},
        "ala2/ito@400/seed-0.json": {"weights": sha256(b"of ito").hexdigest()},
        "ala2/wavelet-arima/seed-0.json": {"fitted": {}},
        "default/seed-1/1vii_A.json": {"weights": sha256(b"of ours").hexdigest()},
    }
    for name, of in scores.items():
        write_json(folder / "scores" / name, {"of": of, "scores": {}})
    for name, weights in (
        ("ala2/ito/seed-0/weights.safetensors", b"of ito"),
        ("default/seed-1/model.safetensors", b"of ours"),
    ):
        write(runs / name, weights)
    taken, left = tool.take_weights(folder, runs, out)
    assert sorted(taken) == [out / "ala2" / "ito" / "seed-0", out / "default" / "seed-1"]
    assert left == []
    found = sorted(path for path in out.rglob("*") if path.is_file())
    assert [path.read_bytes() for path in found] == [b"of ito", b"of ours"]
    taken, left = tool.take_weights(folder, runs, tmp_path / "small", largest=6)
    assert taken == [tmp_path / "small" / "ala2" / "ito" / "seed-0"]
    assert left == [runs / "default" / "seed-1"]
    write(runs / "default" / "seed-1" / "model.safetensors", b"of another training")
    with pytest.raises(InputError, match="has not the weights"):
        tool.take_weights(folder, runs, out)


def test_no_committed_result_names_times_or_places():
    import committed

    found = sorted((ROOT / "results").rglob("*"))
    assert not [path for path in found if path.is_file() and path.suffix != ".json"]
    assert not [path for path in found if path.name == "times.json"]
    for path in found:
        if path.is_file():
            assert committed.places_named(json.loads(path.read_text())) == [], path
