"""A study and a search, as a user types them, on tiny proteins."""

from __future__ import annotations

import json
from pathlib import Path
from shutil import copytree

import pytest
from tests.toy_proteins import toy_datasets

from undula.cli.configured import read_protocol, row_training
from undula.cli.main import main
from undula.errors import InputError
from undula.surface.studies.runs import PLATEAU

PROTOCOL = """
name: tiny
proteins: {test: [two_A, five_A], validation: [one_A]}
seeds: [0, 1]
scoring: {frames: 2, samples: 200, members: 3}
rows:
- {name: ours, label: ours with 2 experts, set: &small {fit: {steps: 3}, mixture: {batch: {points: 32, proteins: 2, frames: 2}, model: {gate: {experts: 2}, cloud: {spacing: 3.0}}}}}
- name: no-time
  seeds: 1
  set: {fit: {steps: 3}, mixture: {batch: {points: 32, proteins: 2, frames: 2}, model: {cloud: {spacing: 3.0}, time: {kind: none}}}}
tables:
- {name: table-1, title: Models, kind: models, rows: [ours, no-time], published: {ours: {iou: 0.7028}}, differs: other proteins}
- {name: spread, title: Distributions, kind: distributions, rows: [ours]}
- {name: table-4, title: Routers, kind: routers, rows: [ours]}
- {name: figure-3, title: Experts, kind: experts, rows: [ours, no-time]}
- {name: table-3, title: Specialisation, kind: specialisation, rows: [ours]}
"""  # noqa: E501
OUTPUTS = [
    "figure-3.csv", "figure-3.json", "figure-3.md", "figure-3.png", "figure-3.tex",
    "rows.csv", "rows.json", "rows.md", "rows.tex",
    "spread.csv", "spread.json", "spread.md", "spread.tex",
    "table-1.csv", "table-1.json", "table-1.md", "table-1.tex",
    "table-3.csv", "table-3.json", "table-3.md", "table-3.tex",
    "table-4.csv", "table-4.json", "table-4.md", "table-4.tex",
]  # fmt: skip


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """Run the study once; return the folder and the words of the command."""
    folder = tmp_path_factory.mktemp("study")
    data = [str(path) for path in toy_datasets(folder / "data")]
    (folder / "tiny.yaml").write_text(PROTOCOL)
    words = ["evaluate", "--protocol", str(folder / "tiny.yaml"), "--data", *data]
    words += ["--runs", str(folder / "runs")]
    assert main([*words, "-o", str(folder / "out")]) == 0
    return folder, words


def test_every_table_is_printed_and_every_number_is_kept(workplace, capsys):
    folder, words = workplace
    assert main([*words, "-o", str(folder / "out")]) == 0
    printed = capsys.readouterr().out
    for part in (
        "copied first frame (trivial)", "blurred first frame (trivial)",
        "dilated first frame (trivial)", "eroded first frame (trivial)",
        "majority of the elastic network (trivial)", "elastic network (trivial)",
        "ours with 2 experts: samples", "frames of another replica (oracle, 1 of 2)",
        "other replica at the same time (oracle)", "majority of the other frames (oracle)",
        "n = 2 proteins: too few to judge", "other proteins", "0.7028", "its weights",
        "over seeds 0, 1, where there is one; rows without ± have one seed",
        "sequence cluster", "secondary structure", "Of five_A there is one replica",
    ):  # fmt: skip
        assert part in printed, part
    written = {p.name for p in (folder / "out").iterdir() if p.is_file()}
    assert written == {*OUTPUTS, "report.json", "times.json"}
    described = json.loads((folder / "out" / "table-1.json").read_text())
    assert described["proteins"] == ["five_A", "two_A"]
    assert len(described["rows"][0]["values"]["iou"]["two_A"]) == 2
    experts = json.loads((folder / "out" / "figure-3.json").read_text())["figure-3"]["rows"]
    assert {name: one["experts"] for name, one in experts.items()} == {"ours": 2, "no-time": 4}
    about = json.loads((folder / "out" / "rows.json").read_text())
    assert list(about) == ["no-time", "ours"]
    assert about["ours"]["steps"] == [3, 3]
    assert about["ours"]["seeds"] == [0, 1]
    assert about["no-time"]["seeds"] == [0]
    assert about["ours"]["plateaus"] == [None, None]
    served = json.loads((folder / "out" / "table-3.json").read_text())["table-3-ours"]
    assert len(served["top_expert"]) == 4


def test_from_given_runs_the_tables_repeat_byte_by_byte(workplace):
    folder, words = workplace
    weights = folder / "runs" / "ours" / "seed-0" / "model.safetensors"
    before = weights.read_bytes(), weights.stat().st_mtime_ns
    assert main([*words, "-o", str(folder / "again")]) == 0
    for name in OUTPUTS:
        assert (folder / "again" / name).read_bytes() == (folder / "out" / name).read_bytes(), name
    assert (weights.read_bytes(), weights.stat().st_mtime_ns) == before


def everything(folder):
    """Return the bytes of all files but that of times."""
    found = {str(p.relative_to(folder)): p for p in folder.rglob("*") if p.is_file()}
    return {name: p.read_bytes() for name, p in sorted(found.items()) if p.name != "times.json"}


def test_several_processes_make_the_same_files_from_nothing(workplace, tmp_path, capsys):
    folder, words = workplace
    for name in ("trivial", "oracle"):
        # What is not trained is no part of several: it need not be scored again.
        copytree(folder / "out" / "scores" / name, tmp_path / "out" / "scores" / name)
    again = [*words[:-1], str(tmp_path / "runs"), "-o", str(tmp_path / "out")]
    assert main([*again, "--jobs", "2"]) == 0
    said = capsys.readouterr()
    assert "ours, seed 1: done" in said.err
    assert "no-time, seed 1" not in said.err
    for part in ("out", "runs"):
        known, found = everything(folder / part), everything(tmp_path / part)
        assert sorted(found) == sorted(known)
        assert [name for name in known if found[name] != known[name]] == []
    seconds = json.loads((tmp_path / "out" / "times.json").read_text())["seconds"]
    assert {"train ours seed 0", "score ours/seed-1/two_A"} <= set(seconds)
    assert main([*again, "--jobs", "0"]) == 2
    assert "--jobs is at least 1" in capsys.readouterr().err


def test_rows_scored_one_by_one_stand_together_as_if_scored_at_once(workplace, tmp_path):
    committed = pytest.importorskip("committed", reason="the tools lie in the repository alone")
    folder, words = workplace
    for row in ("no-time", "ours"):
        copytree(folder / "out", tmp_path / row)
        assert main([*words, "-o", str(tmp_path / row), "--only", row]) == 0
    left_out = {"spread", "table-3", "table-4"}  # `ours` alone has them, they do not stay
    files = {path.stem for path in (tmp_path / "no-time").iterdir() if path.is_file()}
    assert files == {Path(name).stem for name in OUTPUTS} - left_out | {"report", "times"}

    def tables(out):
        found = {path.name: json.loads(path.read_text()) for path in sorted(out.glob("*.json"))}
        return {name: table for name, table in found.items() if name != "times.json"}

    before, now = tables(tmp_path / "no-time"), tables(tmp_path / "ours")
    protocol, whole = read_protocol(str(folder / "tiny.yaml")), tables(folder / "out")
    assert committed.surfaces_beside(before, now, protocol) == whole
    assert committed.surfaces_beside(now, before, protocol) == whole
    assert committed.surfaces_beside(whole, before, protocol) == whole
    before["table-1.json"]["rows"][-1]["mean"]["iou"] += 1e-15
    with pytest.raises(InputError, match="have other scores"):
        committed.surfaces_beside(before, now, protocol)
    del before["table-1.json"]
    with pytest.raises(InputError, match="no table has trivial rows in both: spread"):
        committed.surfaces_beside(before, now, protocol)


def test_a_plateau_goes_on_with_what_is_finished_is_told_and_repeats(workplace, tmp_path, capsys):
    folder, words = workplace
    copytree(folder / "runs", tmp_path / "runs")
    run = tmp_path / "runs" / "ours" / "seed-0"
    more = [*words[:-1], str(tmp_path / "runs"), "--only", "ours", "--seeds", "0"]
    assert main([*more, "-o", str(tmp_path / "out"), "--until-plateau"]) == 0
    printed = capsys.readouterr().out
    told = json.loads((run / "plateau.json").read_text())
    assert told["ended"]
    assert told["rule"]["measure"] == "iou"
    assert len(told["ends"]) >= 2
    steps = 3 * told["best"]
    about = json.loads((tmp_path / "out" / "rows.json").read_text())
    assert list(about) == ["ours"]
    assert about["ours"]["steps"] == [steps]
    assert about["ours"]["plateaus"] == [told]
    assert f"trained for {steps} steps on 2 proteins" in printed
    assert "one improved iou on validation proteins by less than 0.005" in printed
    known = (run / "model.safetensors").read_bytes()
    assert main([*more, "-o", str(tmp_path / "again"), "--until-plateau"]) == 0
    assert (run / "model.safetensors").read_bytes() == known
    assert everything(tmp_path / "again") == everything(tmp_path / "out")
    capsys.readouterr()
    assert main([*more, "-o", str(tmp_path / "out")]) == 2
    assert "has gone on to step" in capsys.readouterr().err


def test_a_plateau_is_never_judged_on_training_or_test_proteins(workplace, tmp_path, capsys):
    _, words = workplace
    (tmp_path / "none.yaml").write_text(PROTOCOL.replace("validation: [one_A]", "validation: 0"))
    changed = [str(tmp_path / "none.yaml") if w.endswith("tiny.yaml") else w for w in words[:-1]]
    changed += [str(tmp_path / "runs"), "-o", str(tmp_path / "out"), "--until-plateau"]
    assert main(changed) == 2
    assert "a plateau is judged on whole proteins that no step reads" in capsys.readouterr().err


def test_no_training_reads_a_test_protein(workplace):
    folder, _ = workplace
    from undula.surface.trained_mixture import TrainedMixture

    for row, seed in (("ours", 0), ("ours", 1), ("no-time", 0)):
        found = TrainedMixture.load(folder / "runs" / row / f"seed-{seed}").provenance
        assert [one["name"] for one in found["data"]] == ["four_A", "one_A"]
        assert found["validation"] == ["one_A"]
        assert found["fit"]["seed"] == seed


def test_a_single_row_and_seed_may_be_taken(workplace, capsys):
    folder, words = workplace
    out = str(folder / "part")
    assert main([*words, "-o", out, "--only", "no-time", "--seeds", "0", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in printed["table-1"]["rows"] if row["kind"] == "model"] == [
        "no-time"
    ]
    assert "one seed (0): no ±" in printed["table-1"]["notes"][0]
    assert "table-3" not in printed


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        (("name: tiny", "name: tiny\nsedes: [0]"), 2, "did you mean seeds"),
        (("kind: none", "knd: none"), 2, "row no-time"),
        (("{test: [two_A, five_A]", "{test: [six_A]"), 3, "test protein six_A"),
        (("rows: [ours]}", "rows: [theirs]}"), 2, "a row theirs that there is not"),
        (("batch: {points: 32", "batch: {points: 16"), 2, "batch.points = 32, now it is 16"),
    ],
)  # fmt: skip
def test_mistakes_get_one_sentence(workplace, tmp_path, capsys, change, code, message):
    _, words = workplace
    path = tmp_path / "changed.yaml"
    assert change[0] in PROTOCOL
    path.write_text(PROTOCOL.replace(*change))
    changed = [str(path) if word.endswith("tiny.yaml") else word for word in words]
    assert main([*changed, "-o", str(tmp_path / "out")]) == code
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said


def test_a_row_that_fails_is_left_out_and_named(workplace, monkeypatch, capsys):
    from undula.errors import InputError
    from undula.surface.studies import study

    def fails(training, datasets, folder, progress):
        if folder.parent.name == "no-time":
            raise InputError("the loss is not finite")
        return trained_run(training, datasets, folder, progress)

    trained_run = study.trained_run
    monkeypatch.setattr(study, "trained_run", fails)
    folder, words = workplace
    assert main([*words, "-o", str(folder / "failing"), "--seeds", "0"]) == 6
    captured = capsys.readouterr()
    assert "no-time is left out: the loss is not finite" in captured.err
    assert "no-time failed: the loss is not finite." in captured.out
    assert main([*words, "-o", str(folder / "failing"), "--only", "no-time"]) == 3
    assert "no row could be trained" in capsys.readouterr().err


def test_a_row_that_fails_in_another_process_is_left_out_as_in_this_one(
    workplace, tmp_path, capsys
):
    folder, words = workplace
    copytree(folder / "runs", tmp_path / "runs")
    (tmp_path / "runs" / "no-time" / "seed-0" / "model.safetensors").write_bytes(b"no weights")
    for name in ("one", "two"):
        copytree(folder / "out" / "scores", tmp_path / name / "scores")
    again = [*words[:-1], str(tmp_path / "runs")]
    assert main([*again, "-o", str(tmp_path / "one")]) == 6
    printed = capsys.readouterr().out
    assert main([*again, "-o", str(tmp_path / "two"), "--jobs", "2"]) == 6
    assert capsys.readouterr().out == printed
    assert everything(tmp_path / "one") == everything(tmp_path / "two")


def test_an_unknown_protocol_and_row_are_named(workplace, capsys):
    _, words = workplace
    assert main(["evaluate", "--protocol", "moe", "--data", "x", "--runs", "y", "-o", "z"]) == 2
    assert "the built-in protocols are domino, moe-dsr" in capsys.readouterr().err
    assert main([*words, "-o", "never", "--only", "theirs"]) == 2
    assert "there is no row theirs in tiny: ours, no-time" in capsys.readouterr().err


def test_every_row_of_the_papers_protocol_is_a_training_and_the_dense_controls_are_as_large():
    import torch

    from undula.surface.mixture import MixtureModel

    protocol = read_protocol("moe-dsr")
    weights = {}
    for row in protocol.rows:
        asked = row_training(row, 0, 7, 2)
        assert (asked.fit.steps, asked.fit.seed) == (7, 0)
        assert asked.fit.plateau is None
        assert row_training(row, 0, 7, 2, until_plateau=True).fit.plateau == PLATEAU
        if row.name.startswith("paper-experts"):
            continue
        model = MixtureModel(
            asked.model, proteins=2, shortest_ps=1.0, horizon_ps=9.0, generator=torch.Generator()
        )
        each = [sum(p.numel() for p in expert.parameters()) for expert in model.experts]
        weights[row.name] = each
    for prefix, of in (("", "default"), ("paper-", "moe-dsr")):
        assert len(weights[of]) == 4
        (active,), (total,) = weights[f"{prefix}dense-active"], weights[f"{prefix}dense-total"]
        assert active == pytest.approx(sum(weights[of][:2]), rel=0.02)
        assert total == pytest.approx(sum(weights[of]), rel=0.02)
    assert weights["dsr"] == [1_839_421]  # as published
    assert {"no-time", "shuffled-time", "coordinates"} <= set(weights)


def test_a_sweep_judges_on_validation_goes_on_and_never_reads_test_proteins(workplace, capsys):
    folder, _ = workplace
    data = [str(folder / "data" / name) for name in ("one_A", "four_A", "two_A")]
    space = folder / "space.yaml"
    space.write_text(
        "name: tiny\nset: {fit: {steps: 2}, mixture: {batch: {points: 32, proteins: 2}, "
        "model: {cloud: {spacing: 3.0}}}}\nmeasure: iou\n"
        "space: {experts: {keys: [mixture.model.gate.experts], values: [2, 4]}}\n"
    )
    out = str(folder / "sweep")
    words = ["sweep", str(space), "--data", *data, "-o", out, "--test", "two_A"]
    words += ["--validation", "one_A", "--trials"]
    assert main([*words, "1"]) == 0
    assert main([*words, "2"]) == 0
    assert "2 trials; the best is number" in capsys.readouterr().out
    found = json.loads((folder / "sweep" / "sweep.json").read_text())
    assert [trial["state"] for trial in found["trials"]] == ["complete"] * 2
    from undula.surface.trained_mixture import TrainedMixture

    run = TrainedMixture.load(folder / "sweep" / "trial-0001" / "run")
    assert [one["name"] for one in run.provenance["data"]] == ["four_A", "one_A"]
    assert run.provenance["measures"]["iou"] == found["trials"][1]["value"]


def test_a_misspelt_space_is_refused(tmp_path, capsys):
    words = ["--data", "x", "-o", str(tmp_path / "o")]
    assert main(["sweep", "tabel-2", *words]) == 2
    assert "the built-in spaces are default, table-2" in capsys.readouterr().err
    path = tmp_path / "s.yaml"
    path.write_text("name: s\nspace: {a: {keys: [fit.steps], vales: [1]}}\n")
    assert main(["sweep", str(path), *words]) == 2
    assert "vales" in capsys.readouterr().err
