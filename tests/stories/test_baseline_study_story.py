"""The baselines in a study of moving atoms, as a user types it, on atoms that walk."""

from __future__ import annotations

import json
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from shutil import copytree

import pytest
import torch
from tests.motion.small_systems import argon
from tests.motion.studies.walkers import FRAME_PS, walk, walkers

import undula
from undula.cli.main import main
from undula.errors import InputError, UsageError
from undula.forecasts import load_trained
from undula.io.atom_export import write_pdb, write_xtc
from undula.motion.catalog import KINDS, load_forecaster
from undula.motion.forecast import MovingAtoms

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
  sparing: {starts: 2}
  sparing_on: {argon: {starts: 1, frames: 4, samples: 2, sample_starts: 1}}
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


def test_several_processes_make_the_same_files_from_nothing(workplace, tmp_path, capsys):
    folder, words, printed = workplace
    again = [*words[:-4], "--runs", str(tmp_path / "runs"), "-o", str(tmp_path / "out")]
    assert main([*again, "--jobs", "2"]) == 0
    said = capsys.readouterr()
    assert said.out == printed
    assert "argon/lg-ode, seed 1: done" in said.err
    known, found = files(folder), files(tmp_path)
    assert sorted(found) == sorted(known)
    scores = [name for name in known if name.startswith("out/")]
    assert {name: found[name] for name in scores} == {name: known[name] for name in scores}
    seconds = json.loads((tmp_path / "out" / "times.json").read_text())["seconds"]
    assert "score argon/ito@20/seed-0" in seconds
    assert "train argon/lg-ode seed 1" in seconds
    assert main([*again, "--jobs", "0"]) == 2
    assert "--jobs is at least 1" in capsys.readouterr().err


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


def test_a_baseline_is_trained_on_its_own_until_its_plateau_and_read_back(workplace, tmp_path):
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
    assert type(load_trained(tmp_path)).__name__ == "TrainedSCINet"


@pytest.fixture(scope="module")
def observed(tmp_path_factory):
    """Write what a user has: a structure, what was observed, and what came."""
    folder = tmp_path_factory.mktemp("observed")
    frames = walk(40, 8, 9)
    times = [FRAME_PS * number for number in range(40)]
    write_pdb(folder / "argon.pdb", argon(8), frames.positions[:1], box=frames.box)
    write_xtc(folder / "seen.xtc", frames.positions[:12], times[:12], frames.box)
    write_xtc(folder / "whole.xtc", frames.positions, times, frames.box)
    return folder


@pytest.mark.parametrize("row", ["lg-ode", "roller", "ito", "scinet"])
def test_every_baseline_forecasts_as_a_user_asks_and_says_what_it_cannot(
    workplace, observed, row, tmp_path, capsys
):
    run, out = workplace[0] / "runs" / "argon" / row / "seed-0", tmp_path / "out"
    model = load_forecaster(run)
    words = ["forecast", str(observed / "argon.pdb"), "--window", str(observed / "seen.xtc")]
    words += ["--model", str(run), "--time", "0.05,0.4,2", "--formats", "html,xtc,pdb"]
    assert main([*words, "-o", str(out)]) == 0
    said = capsys.readouterr()
    alone = f"{model.name} forecasts the mean alone: no spread and no samples"
    drawn = ", 8 samples" if model.demands.samples else f"\n{alone}"
    assert said.out == f"{out}: 8 atoms of argon at 3 times after 1.1 ps{drawn}\n"
    moving = MovingAtoms.load(out)
    assert (moving.model, moving.said) == (model.name, model.demands.said)
    assert (moving.expected.spread is None) != model.demands.samples
    assert list(moving.trivial) == ["last position", "observed mean", "ballistic"]
    drawn_files = len(list(out.glob("sample-*.xtc")))
    assert drawn_files == len(moving.samples) == (8 if model.demands.samples else 0)
    report = json.loads((out / "report.json").read_text())
    assert report["model"] == model.name
    assert (report["expected_error_angstrom"] is None) != model.demands.samples
    assert any(note.startswith(model.name) for note in moving.notes)
    told = "ANGSTROM" if model.demands.samples else "DOES NOT SAY HOW SURE IT IS"
    assert told in (out / "forecast.pdb").read_text()

    assert main(["evaluate", str(out), "--truth", str(observed / "whole.xtc")]) == 0
    assert model.name in capsys.readouterr().out
    assert main(["show", str(out), "--truth", str(observed / "whole.xtc")]) == 0
    if not model.demands.samples:
        assert main([*words, "--samples", "2", "-o", str(tmp_path / "more")]) == 2
        assert "has no distribution to draw samples from" in capsys.readouterr().err


def test_python_forecasts_with_every_baseline_what_the_command_does(workplace, observed):
    structure = undula.load_structure(observed / "argon.pdb", select="all", heterogens="keep")
    seen = undula.window(undula.load_trajectory(structure, observed / "seen.xtc"))
    for row in ("lg-ode", "roller", "ito", "scinet"):
        model = undula.load_trained(workplace[0] / "runs" / "argon" / row / "seed-0")
        moving = undula.forecast(seen, [0.4, 2.0], model)
        wanted = model.forecast(seen, torch.tensor([0.4, 2.0], dtype=torch.float64))
        assert torch.equal(moving.expected.mean, wanted.mean)
        assert len(moving.samples) == (16 if model.demands.samples else 0)
        with pytest.raises(UsageError, match="the model reaches 4 ps"):
            undula.forecast(seen, [5.0], model)
        short = replace(seen, positions=seen.positions[-1:], velocities=None)
        if row != "ito":
            with pytest.raises(InputError, match="the model takes at least"):
                undula.forecast(short, [0.4], model)
        other = replace(seen, frame_ps=0.2)
        with pytest.raises(InputError, match="cut the window with frame_ps"):
            undula.forecast(other, [0.4], model)


def test_a_rollout_that_diverges_is_said_in_the_forecast(workplace, observed):
    structure = undula.load_structure(observed / "argon.pdb", select="all", heterogens="keep")
    seen = undula.window(undula.load_trajectory(structure, observed / "seen.xtc"))
    roller = load_forecaster(workplace[0] / "runs" / "argon" / "roller" / "seed-0")
    timid = replace(roller.model.config, sane=1.0)
    roller.model.config = timid
    fast = replace(seen, positions=seen.positions * torch.linspace(1, 3, 12)[:, None, None])
    moving = undula.forecast(fast, [0.4, 2.0], roller)
    assert [notice.code for notice in moving.notices] == ["rollout-diverged"]
    assert torch.isfinite(moving.expected.mean).all()
