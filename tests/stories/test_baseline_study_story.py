"""The baselines in a study of moving atoms, as a user types it, on atoms that walk."""

from __future__ import annotations

import json
from contextlib import redirect_stdout
from io import StringIO
from shutil import copytree

import pytest
from tests.motion.studies.walkers import walkers

from undula.cli.main import main
from undula.errors import InputError
from undula.forecasts import load_trained
from undula.motion.catalog import KINDS, load_forecaster

PROTOCOL = """
name: tiny
kind: motion
systems:
- {name: argon, train: 2, test: 1, observed: 40, window: 12, horizon: 40, preset: argon, linear_ps: [0.5, 4.0]}
seeds: [0, 1]
scoring: {frames: 4, starts: 3, lags: [1, 2, 5, 20], samples: 4, sample_starts: 2, sample_frames: 3, fine: 4}
rows:
- name: ours
  label: ours
  seeds: 1
  set:
    fit: &fit {steps: 2, evaluate_every: 2, checkpoint_every: 2, warmup_steps: 0}
    motion:
      model:
        encoder: {features: 8, layers: 1, cutoff: 4.0, oldest: 4, latent: 2}
        levels: {horizon: 40, strides: [20, 1], solver: {steps: 2}, segment_chunk: 4}
      batch: &batch {observed: 12, near: 3, segments: 1, times: 1, validation_windows: 1, fitted_windows: 6}
- name: lg-ode
  label: LG-ODE
  model: lg-ode
  set:
    fit: *fit
    lg_ode:
      model: {features: 8, hidden: 8, augment: 4, latent: 2, oldest: 4, cutoff: 4.0, solver: {steps: 2}}
      batch: *batch
      hierarchy: &hierarchy {horizon: 40, strides: [20, 1]}
- name: roller
  label: step by step
  model: roller
  seeds: 1
  sparing: {starts: 2, frames: 6}
  set:
    fit: *fit
    roller:
      model: {stride: 4, sane: 1.0, encoder: {features: 8, layers: 1, cutoff: 4.0, oldest: 2, latent: 2}}
      batch: *batch
      hierarchy: *hierarchy
- name: ito
  label: ITO
  model: ito
  seeds: 1
  decoded: [20]
  sparing: {starts: 1, frames: 4, samples: 2, sample_starts: 1}
  set:
    fit: *fit
    ito:
      model: {features: 8, layers: 1, cutoff: 4.0, lags: 2}
      sampling: {evaluations: 3, draws: 2}
      batch: *batch
      hierarchy: *hierarchy
- name: scinet
  label: SCINet-style
  model: scinet
  seeds: 1
  set:
    fit: *fit
    scinet:
      model: {frames: 8, levels: 2, kernel: 3}
      batch: *batch
      hierarchy: *hierarchy
- name: wavelet-arima
  label: Wavelet ARIMA
  model: wavelet-arima
  sparing: {starts: 1}
  set: {observed: 16, levels: 1, autoregressive: 1, moving_average: 0, screened: 1, iterations: 5, atoms: 2, workers: 1}
published:
  full: {ito@20: {argon: 0.5422}, wavelet-arima: {argon: 0.1965}, DESCINet: {argon: 0.2099}}
  windows: {argon: {lg-ode: {40: 0.199}}}
"""  # noqa: E501


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """Run the study once; return the folder, the words of the command and what it printed."""
    pytest.importorskip("pywt", reason="wavelets need PyWavelets")
    pytest.importorskip("statsmodels", reason="ARIMA needs statsmodels")
    folder = tmp_path_factory.mktemp("study")
    walkers(folder / "argon")
    (folder / "tiny.yaml").write_text(PROTOCOL)
    words = ["evaluate", "--protocol", str(folder / "tiny.yaml"), "--data", str(folder / "argon")]
    words += ["--runs", str(folder / "runs"), "-o", str(folder / "out")]
    with redirect_stdout(StringIO()) as printed:
        assert main(words) == 0
    return folder, words, printed.getvalue()


def files(folder) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for part in ("out", "runs")
        for path in sorted((folder / part).rglob("*"))
        if path.is_file() and path.name != "times.json"
    }


def test_every_baseline_has_its_row_with_remarks_and_the_published_number(workplace):
    _, _, printed = workplace
    for part in (
        "LG-ODE ", "step by step *", "ITO *", "ITO, rolled out in lags of 20 frames *",
        "SCINet-style ", "Wavelet ARIMA *", "DESCINet (published)", "LG-ODE (published)", "0.5422",
        "The rows: weights, steps of the training of each seed, and remarks",
        "forecasts and is scored on 2 of 8 atoms, as are the trivial rows of its skill",
        "scored from 2 starts of each recording at most", "* argon, ITO: the mean of 2 samples",
        "diverged in 3 of 3 windows, first after 0.4 ps; from there on the last possible frame",
        "see the table of the rows", "data SHA-256",
    ):  # fmt: skip
        assert part in printed, part


def test_a_second_call_repeats_every_file_byte_by_byte(workplace):
    folder, words, printed = workplace
    known = files(folder)
    with redirect_stdout(StringIO()) as again:
        assert main(words) == 0
    assert files(folder) == known
    assert again.getvalue() == printed


def test_scores_alone_are_made_again_from_the_same_weights_byte_by_byte(workplace):
    folder, words, printed = workplace
    with redirect_stdout(StringIO()) as again:
        assert main([*words[:-1], str(folder / "again")]) == 0
    assert again.getvalue() == printed
    found = files(folder)
    for name in [one for one in found if one.startswith("out/")]:
        assert (folder / "again" / name.removeprefix("out/")).read_bytes() == found[name]


def test_every_kind_lies_in_its_run_folder_with_its_provenance(workplace):
    folder, _, _ = workplace
    for row, kind in (("ours", "domino"), ("ito", "ito"), ("lg-ode", "lg-ode")):
        run = folder / "runs" / "argon" / row / "seed-0"
        found = load_forecaster(run)
        assert type(found) is type(KINDS[kind].load(run))
        assert found.provenance["recordings"] == ["run0", "run1"]
        assert found.provenance["steps"] == 2
        assert "plateau" not in found.provenance
    assert (folder / "runs/argon/lg-ode/seed-1").is_dir()
    assert not (folder / "runs/argon/scinet/seed-1").exists()


def test_what_a_row_is_spared_is_left_out_and_its_skill_has_the_same_windows(workplace):
    folder, _, _ = workplace
    scores = json.loads((folder / "out/scores/argon/ito/seed-0.json").read_text())
    assert scores["of"]["sparing"] == {"starts": 1, "frames": 4, "samples": 2, "sample_starts": 1}
    run = scores["scores"]["run2"]
    assert [one[0] is None for one in run["starts"]["physical"]] == [False, True, True]
    assert sum(one is not None for one in run["standard"]["physical"]) == 4
    assert len(run["samples"]["crps"]) == 1
    arima = json.loads((folder / "out/scores/argon/wavelet-arima/seed-0.json").read_text())
    assert "workers" not in arima["of"]["fitted"]
    beside = arima["scores"]["run2"]["beside"]["last position"]["physical"]
    assert [one[0] is None for one in beside] == [False, True, True]
    skills = json.loads((folder / "out" / "argon-skill-physical.json").read_text())["rows"]
    assert {one["windows"] for one in skills if one["row"] == "wavelet-arima"} == {1}
    assert {one["windows"] for one in skills if one["row"] == "lg-ode"} == {3}


def test_a_plateau_goes_on_with_what_is_finished_then_repeats_and_is_not_taken_for_less(
    workplace, tmp_path, capsys
):
    folder, words, _ = workplace
    runs = tmp_path / "runs"
    copytree(folder / "runs" / "argon" / "scinet", runs / "argon" / "scinet")
    run = runs / "argon" / "scinet" / "seed-0"
    more = [*words[:-4], "--runs", str(runs), "-o", str(tmp_path / "out"), "--only", "scinet"]
    assert main([*more, "--until-plateau"]) == 0
    told = json.loads((run / "plateau.json").read_text())
    assert told["ended"]
    assert len(told["ends"]) >= 2
    found = load_forecaster(run)
    assert found.provenance["plateau"]["ends"] == told["ends"]
    assert found.provenance["steps"] == 2 * told["best"]
    known = (run / "weights.safetensors").read_bytes()
    assert main([*more, "--until-plateau"]) == 0
    assert (run / "weights.safetensors").read_bytes() == known
    capsys.readouterr()
    assert main(more) == 2
    assert "has gone on to step" in capsys.readouterr().err


def test_a_baseline_is_trained_on_its_own_until_its_plateau_but_makes_no_forecasts(
    workplace, tmp_path
):
    folder, _, _ = workplace
    words = ["train", "--preset", "scinet/argon", "--data", f'["{folder / "argon"}"]']
    words += ["--scinet.model", "{frames: 8, levels: 2, kernel: 3}"]
    words += ["--scinet.hierarchy", "{horizon: 40, strides: [20, 1]}"]
    words += ["--scinet.batch", "{observed: 12, near: 3, segments: 1, times: 1, fitted_windows: 6}"]
    words += ["--fit.steps", "2", "--fit.warmup_steps", "0"]
    words += ["--fit.plateau", "{measure: skill_near, cycles: 2}"]
    assert main([*words, "--out", str(tmp_path)]) == 0
    found = load_forecaster(tmp_path)
    assert type(found).__name__ == "TrainedSCINet"
    assert len(found.provenance["plateau"]["ends"]) == 2
    with pytest.raises(InputError, match="holds a baseline, scinet"):
        load_trained(tmp_path)
