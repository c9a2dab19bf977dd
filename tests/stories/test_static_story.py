"""From static structures to a model, to one that goes on with a simulation, as a user types it."""

from __future__ import annotations

import json

import pytest

from undula.cli.main import main
from undula.surface.trained_mixture import TrainedMixture

TINY = """
out: nowhere
mixture:
  model:
    qmpnn:
      features: {embedding: 4, hidden: 8, size: 6}
      channels: [16, 8, 8]
      radial: {centres: 8, hidden: 16, knots: 256}
      readout: 16
      code: 8
    experts: {width: 8}
  batch: {proteins: 1, frames: 2, points: 64, samples: 2, validation: 0}
fit: {steps: 3, warmup_steps: 0, checkpoint_every: 3, evaluate_every: 3}
"""


@pytest.fixture(scope="module")
def workplace(peptide, tmp_path_factory):
    """Prepare the peptide twice, as a static structure and as a trajectory; train on the first."""
    folder = tmp_path_factory.mktemp("static-story")
    topology, first, _ = map(str, peptide)
    static, real, run = (str(folder / name) for name in ("static", "real", "run"))
    assert main(["prepare", "static", topology, "-o", static, "--frames", "4"]) == 0
    assert main(["prepare", topology, first, "-o", real]) == 0
    (folder / "tiny.yaml").write_text(TINY)
    words = ["train", str(folder / "tiny.yaml"), f"--data=[{static}/peptide]", f"--out={run}"]
    assert main(words) == 0
    return folder


def test_a_training_goes_on_with_simulations_from_the_weights_of_static_structures(
    workplace, peptide, tmp_path
):
    tuned = str(tmp_path / "tuned")
    words = ["train", str(workplace / "tiny.yaml"), f"--data=[{workplace / 'real'}]"]
    words += [f"--out={tuned}", f"--mixture.start_from={workplace / 'run'}"]
    assert main(words) == 0
    assert "start_from" in TrainedMixture.load(tmp_path / "tuned").provenance
    forecast = ["forecast", str(peptide[0]), "--model", tuned, "--time", "5", "--formats", "ply"]
    assert main([*forecast, "-o", str(tmp_path / "result")]) == 0
    assert (tmp_path / "result" / "meshes" / "mesh-0000.ply").stat().st_size > 1000


def test_one_that_fails_is_named_and_the_code_is_6(peptide, tmp_path, capsys):
    broken = tmp_path / "broken.pdb"
    broken.write_text("HEADER\n")
    words = ["prepare", "static", str(broken), str(peptide[0]), "--frames", "3"]
    assert main([*words, "-o", str(tmp_path / "sets")]) == 6
    said = capsys.readouterr()
    assert "undula: broken was skipped" in said.err
    assert "peptide: 3 frames of pseudo-dynamics" in said.out
    recorded = json.loads((tmp_path / "sets" / "static.json").read_text())
    assert list(recorded["skipped"]) == ["broken"]


def test_mistakes_get_one_sentence(workplace, peptide, tmp_path, capsys):
    words = ["prepare", "static", str(peptide[0]), "-o", str(tmp_path / "s"), "--frames", "1"]
    assert main(words) == 2
    assert "frames should be at least 3, not 1" in capsys.readouterr().err
    words = ["train", str(workplace / "tiny.yaml"), f"--data=[{workplace / 'real'}]"]
    words += [f"--out={tmp_path / 'run'}", f"--mixture.start_from={workplace / 'run'}"]
    assert main([*words, "--mixture.model.latent=7"]) == 2
    said = capsys.readouterr().err
    assert "latent = 4" in said
    assert [line for line in said.splitlines() if not line.startswith("estimate: ")] == [
        said.splitlines()[-1]
    ]
