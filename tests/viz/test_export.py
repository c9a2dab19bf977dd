import json

import matplotlib.image
import pytest
from tests.breathing import Breathing

from undula.io.meshes import read_ply
from undula.io.structures import load_structure
from undula.io.trajectories import load_trajectory
from undula.surface.evaluation import EvaluationConfig, evaluate
from undula.surface.forecast import forecast
from undula.viz import export as exporting
from undula.viz.export import export, page, write_evaluation

TIMES = [4.0, 9.0]


@pytest.fixture(scope="module")
def structure(peptide):
    return load_structure(peptide[0])


def moving(structure, samples):
    return forecast(structure, TIMES, Breathing(), spacing=1.5, samples=samples)


def shown(structure, samples):
    surface = moving(structure, samples)
    return page(surface, TIMES, [surface.mesh(time) for time in TIMES], None, [])


def test_a_page_of_samples_offers_their_spread_and_some_of_themselves(structure):
    found = shown(structure, 3)
    assert list(found.labels) == ["displacement", "spread"]
    assert list(found.others) == [f"sample {i} of 3" for i in (1, 2, 3)]
    for meshes in (found.forecast, *found.others.values()):
        assert all("spread" in mesh.scalars for mesh in meshes)
    volumes = [meshes[0].volume for meshes in found.others.values()]
    assert volumes[0] > found.forecast[0].volume > volumes[2]


def test_a_page_without_samples_is_as_it_was(structure):
    found = shown(structure, 0)
    assert list(found.labels) == ["displacement"]
    assert not found.others


def test_a_large_forecast_shows_fewer_samples(structure, monkeypatch):
    vertices = sum(len(mesh.vertices) for mesh in shown(structure, 0).forecast)
    monkeypatch.setattr(exporting, "SHOWN_VERTICES", 2 * vertices)
    assert len(shown(structure, 4).others) == 2
    monkeypatch.setattr(exporting, "SHOWN_VERTICES", 1)
    assert len(shown(structure, 4).others) == 1


def test_exported_meshes_carry_the_spread(structure, tmp_path):
    export(moving(structure, 4), tmp_path, formats=["ply"])
    mesh = read_ply(tmp_path / "meshes" / "mesh-0000.ply")
    assert set(mesh.scalars) == {"displacement", "spread"}
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["samples"], report["seed"]) == (4, 0)


def test_an_evaluation_of_samples_writes_their_table_and_their_figure(structure, peptide, tmp_path):
    surface = forecast(structure, [5.0, 25.0, 45.0], Breathing(), spacing=1.5, samples=4)
    truth = load_trajectory(structure, peptide[1])
    evaluation = evaluate(surface, truth, EvaluationConfig(spacing=1.5, samples=200, members=4))
    table = write_evaluation(surface, evaluation, tmp_path)
    appendix, sizes = table.appendices
    assert (tmp_path / "sizes.csv").read_text() == sizes.csv()
    assert "(oracle)" in (tmp_path / "scores.tex").read_text()
    assert appendix.title in table.terminal()
    assert appendix.title in (tmp_path / "scores.md").read_text()
    values = json.loads((tmp_path / "evaluation.json").read_text())["samples"]
    assert values["judgements"] == list(appendix.sentences)
    picture = matplotlib.image.imread(tmp_path / "calibration.png")
    assert picture.shape[1] > 2 * picture.shape[0] > 800
    assert (picture[..., :3].std(axis=(0, 1)) > 0.05).all()
    assert appendix.sentences[-1] in (tmp_path / "index.html").read_text()
