import json
from dataclasses import replace

import pytest
import torch
from tests.motion.small_systems import FRAME_PS, argon, chain, trained, window

from undula.errors import UsageError
from undula.motion.forecast import forecast_atoms
from undula.viz.atoms_as_surface import (
    COPIED_ROW,
    MEAN_ROW,
    TYPICAL_ROW,
    AtomSurfaces,
    SurfaceConfig,
    write_surface,
)

TIMES = [FRAME_PS * k for k in (1, 4)]
CONFIG = SurfaceConfig(spacing=0.8, points=2000)


@pytest.fixture(scope="module")
def moving():
    model = trained(chain(6), reference=window(chain(6), 9).now)
    return forecast_atoms(window(chain(6)), TIMES, model, samples=2)


def test_the_surface_of_one_atom_is_its_ball():
    model = trained(chain(1), reference=None)
    one = forecast_atoms(window(chain(1)), TIMES, model, samples=0)
    surfaces = AtomSurfaces(one, SurfaceConfig(spacing=0.2))
    mesh = surfaces.solid(one.now).mesh
    radius = float(surfaces.radii[0])
    away = (mesh.vertices.double() - one.now).norm(dim=-1)
    assert float((away - radius).abs().max()) < 0.02
    assert surfaces.coloured(mesh, 0).scalars["displacement"].max() < 0.02


def test_equal_samples_have_no_spread_and_their_own_surface(moving):
    same = replace(moving, samples=moving.expected.mean.expand(3, -1, -1, -1))
    surfaces = AtomSurfaces(same, CONFIG)
    mesh = surfaces.coloured(surfaces.solid(same.expected.mean[0]).mesh, 0)
    assert mesh.scalars["spread"].max() < 1e-6
    typical = surfaces.typical(1).mesh
    assert typical.volume == pytest.approx(
        surfaces.solid(same.expected.mean[1]).mesh.volume, rel=0.02
    )


def test_a_forecast_of_the_truth_is_perfect_and_the_copied_frame_stands_beside(tmp_path, moving):
    table = write_surface(moving, tmp_path / "s.html", CONFIG, truth=moving.expected.mean)
    scores = {row.name: row.values for row in table.rows}
    assert scores[MEAN_ROW]["iou"] == pytest.approx([1.0, 1.0])
    assert max(scores[MEAN_ROW]["chamfer_angstrom"]) < 0.2
    assert max(scores[COPIED_ROW]["iou"]) < 1
    kinds = {row.name: row.kind for row in table.rows}
    assert kinds[TYPICAL_ROW] == "model"
    assert kinds[COPIED_ROW] == "trivial"
    stored = json.loads((tmp_path / "s.json").read_text())
    assert stored["judged_by"] == "iou"
    assert (tmp_path / "s.csv").exists()
    assert (tmp_path / "s.md").exists()


def test_without_a_truth_there_is_a_page_and_no_scores(tmp_path, moving):
    assert write_surface(moving, tmp_path / "s.html", CONFIG, ply=True) is None
    assert sorted(one.name for one in tmp_path.iterdir()) == ["meshes", "s.html"]
    assert len(list((tmp_path / "meshes").iterdir())) == 2
    text = (tmp_path / "s.html").read_text()
    assert "sample 2 of 2" in text
    assert "spread: standard deviation of 2 samples" in text


def test_a_liquid_has_no_outside():
    liquid = forecast_atoms(window(argon(12)), TIMES, trained(argon(12)), samples=0)
    with pytest.raises(UsageError, match="12 in a box have no outside"):
        AtomSurfaces(liquid, CONFIG)


@pytest.mark.parametrize("wrong", [{"spacing": 0.0}, {"probe": -1.0}, {"points": 0}])
def test_names_the_option_that_is_wrong(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        SurfaceConfig(**wrong)


def test_a_shifted_forecast_has_the_shifted_surface(moving):
    shift = torch.tensor([3.2, -1.6, 0.8], dtype=torch.float64)
    expected = replace(moving.expected, mean=moving.expected.mean + shift)
    moved = replace(
        moving, now=moving.now + shift, expected=expected, samples=moving.samples + shift
    )
    first = AtomSurfaces(moving, CONFIG).solid(moving.expected.mean[1]).mesh
    second = AtomSurfaces(moved, CONFIG).solid(moved.expected.mean[1]).mesh
    assert second.volume == pytest.approx(first.volume, rel=1e-6)
