"""The committed weights of scored rows are those that the committed results speak of."""

import json
from pathlib import Path

import pytest

from undula.cli.configured import read_motion_protocol, read_protocol
from undula.io.recordings import open_recordings
from undula.motion.catalog import load_forecaster
from undula.motion.studies.runs import parameters
from undula.surface.studies.runs import parameters as mixture_parameters
from undula.surface.trained_mixture import TrainedMixture

ROOT = Path(__file__).parents[2]
RUNS = ROOT / "checkpoints"
FOUND = sorted(path.parent for path in RUNS.glob("domino/*/*/*/weights.safetensors"))
SURFACES = sorted(path.parent for path in RUNS.glob("moe-dsr/*/*/model.safetensors"))
pytestmark = pytest.mark.skipif(not FOUND, reason="checkpoints lie in the repository alone")


@pytest.mark.parametrize("run", FOUND, ids=lambda run: "/".join(run.parts[-3:]))
def test_a_checkpoint_is_a_row_of_the_results_at_its_plateau(run):
    system, row, seed = run.parts[-3:]
    protocol = read_motion_protocol("domino")
    assert row in [one.name for one in protocol.rows]
    rows = json.loads((ROOT / "results" / "domino" / system / "rows.json").read_text())
    about, number = rows[f"{system}/{row}"], protocol.seeds.index(int(seed.removeprefix("seed-")))
    trained = load_forecaster(run)
    assert about["weights"] == parameters(trained)
    assert about["steps"][number] == trained.provenance["steps"]
    assert trained.provenance["plateau"]["reached"]


@pytest.mark.parametrize("run", SURFACES, ids=lambda run: "/".join(run.parts[-2:]))
def test_a_checkpoint_of_a_surface_is_a_row_of_the_results_at_its_plateau(run):
    row, seed = run.parts[-2:]
    assert row in [one.name for one in read_protocol("moe-dsr").rows]
    about = json.loads((ROOT / "results" / "moe-dsr" / "all" / "rows.json").read_text())[row]
    number = about["seeds"].index(int(seed.removeprefix("seed-")))
    trained = TrainedMixture.load(run)
    assert about["weights"]["all"] == mixture_parameters(trained.model)
    assert about["steps"][number] == trained.provenance["steps"]
    assert about["plateaus"][number] == trained.provenance["plateau"]
    assert trained.provenance["plateau"]["reached"]


@pytest.mark.parametrize("system", sorted({run.parts[-3] for run in FOUND}))
def test_recordings_prepared_today_are_those_of_the_checkpoints(shared, tmp_path, system):
    from train_atoms import recorded

    now = open_recordings(recorded(system, shared, tmp_path)).sha256
    runs = [run for run in FOUND if run.parts[-3] == system]
    assert {load_forecaster(run).provenance["data"]["sha256"] for run in runs} == {now}
