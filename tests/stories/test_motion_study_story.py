"""A study of moving atoms, as a user types it, on atoms that walk."""

from __future__ import annotations

import json
from contextlib import redirect_stdout
from io import StringIO

import pytest
from tests.motion.studies.walkers import walkers

from undula.cli.main import main

PROTOCOL = """
name: tiny
kind: motion
systems:
- {name: argon, train: 2, test: 1, observed: 40, window: 12, horizon: 40, preset: argon, linear_ps: [0.5, 4.0], seeds: 1}
- {name: water, train: 1, test: 2, observed: 40, window: 12, horizon: 40, preset: argon, linear_ps: [0.5, 4.0]}
seeds: [0, 1]
scoring: {frames: 4, starts: 3, lags: [1, 2, 5, 20], samples: 4, sample_starts: 2, sample_frames: 3, fine: 6}
rows:
- name: ours
  label: ours
  systems: [argon]
  decoded: [0]
  set: &small
    fit: {steps: 2}
    motion:
      model:
        encoder: {features: 8, layers: 1, cutoff: 4.0, oldest: 4, latent: 2}
        levels: {horizon: 40, strides: [20, 1], solver: {steps: 2}, segment_chunk: 4}
      batch: {observed: 12, near: 3, segments: 1, times: 1, validation_windows: 1, fitted_windows: 6}
- {name: one, label: one level, levels: 1, systems: [argon], set: *small}
ablation: [ours, one]
published:
  full: {ours: {argon: 0.1786}, LG-ODE: {argon: 0.1859}}
  windows: {argon: {ours: {40: 0.184}}}
  differs: other atoms
"""  # noqa: E501


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """Run the study once; return the folder, the words of the command and what it printed."""
    folder = tmp_path_factory.mktemp("study")
    walkers(folder / "argon")
    walkers(folder / "molecules", atoms=9, water=True)
    (folder / "tiny.yaml").write_text(PROTOCOL)
    data = [str(folder / "argon"), f"water={folder / 'molecules'}"]
    words = ["evaluate", "--protocol", str(folder / "tiny.yaml"), "--data", *data]
    words += ["--runs", str(folder / "runs")]
    with redirect_stdout(StringIO()) as printed:
        assert main([*words, "-o", str(folder / "out")]) == 0
    return folder, words, printed.getvalue()


def test_a_system_is_trained_with_as_many_seeds_as_it_asks_for(workplace):
    folder, _, _ = workplace
    assert [run.name for run in (folder / "runs" / "argon" / "ours").iterdir()] == ["seed-0"]


def test_every_table_is_printed_beside_the_published_numbers(workplace):
    _, _, printed = workplace
    for part in (
        "constant (trivial)", "damped ballistic (trivial)", "linear response (trivial)",
        "ours (published)", "LG-ODE (published)", "0.1786", "0.1840", "other atoms",
        "ours, decoded at level 0", "skill over the best trivial row",
        "n = 1 test recordings of one system: too few to judge in general",
        "CRPS of samples", "RDF error", "frozen (now) (reference)", "other recordings (reference)",
        "The constant, which knows nothing, moves by", "Ablation",
    ):  # fmt: skip
        assert part in printed, part


def test_what_is_finished_is_not_done_again_and_repeats_byte_by_byte(workplace):
    folder, words, _ = workplace
    known = {path: path.read_bytes() for path in (folder / "out").rglob("*") if path.is_file()}
    runs = {path: path.stat().st_mtime_ns for path in (folder / "runs").rglob("*.safetensors")}
    assert main([*words, "-o", str(folder / "out")]) == 0
    assert known == {p: p.read_bytes() for p in (folder / "out").rglob("*") if p.is_file()}
    assert runs == {p: p.stat().st_mtime_ns for p in (folder / "runs").rglob("*.safetensors")}


def test_there_are_figures_of_every_system(workplace):
    folder, _, _ = workplace
    names = {path.name for path in (folder / "out").glob("*.png")}
    assert {
        f"argon-{name}.png" for name in ("physical", "samples", "calibration", "levels")
    } < names
    assert "water-physical.png" in names
    assert "water-levels.png" not in names


def test_the_ablation_gives_retrained_and_decoded_levels(workplace):
    folder, _, _ = workplace
    found = json.loads((folder / "out" / "ablation.json").read_text())
    assert set(found) == {"argon/ours", "argon/ours@0", "argon/one"}
    assert found["argon/one"]["weights"] < found["argon/ours"]["weights"]


def test_trivial_rows_alone_need_no_training(workplace, capsys):
    folder, words, _ = workplace
    out = ["-o", str(folder / "trivial"), "--only", "trivial", "--systems", "water", "--json"]
    assert main([*words, *out]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["water-skill-physical"] == {"rows": []}
    assert "ablation" not in found
    scores = json.loads((folder / "out" / "scores/water/trivial/ballistic.json").read_text())
    again = json.loads((folder / "trivial" / "scores/water/trivial/ballistic.json").read_text())
    assert scores == again


def test_mistakes_get_one_sentence(workplace, capsys):
    folder, words, _ = workplace
    out = ["-o", str(folder / "wrong")]
    for more, code, sentence in (
        (["--only", "theirs"], 2, "there is no row theirs"),
        (["--systems", "neon"], 2, "has no folder of neon"),
        (["--seeds", "0", "0"], 2, "the seed 0 twice"),
        (["--steps", "3"], 2, "fit.steps = 2"),
    ):
        assert main([*words, *out, *more]) == code
        said = capsys.readouterr().err
        assert sentence in said
