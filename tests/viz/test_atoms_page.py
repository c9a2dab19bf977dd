import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import mdtraj
import numpy as np
import pytest
import torch
from tests.motion.small_systems import BOX, FRAME_PS, argon, chain, path, trained, waters, window
from tests.viz.test_page import HOSTILE, inside, picture, until

from undula.errors import InputError, UsageError
from undula.motion.forecast import forecast_atoms
from undula.motion.forecast_scores import evaluate_atoms
from undula.types import Trajectory
from undula.viz import atoms_export
from undula.viz.atoms_export import atoms_page, export_atoms, write_atom_evaluation
from undula.viz.atoms_page import AtomsPage, write_atoms_page

TIMES = [FRAME_PS * k for k in range(1, 6)]


@pytest.fixture(scope="module")
def moving():
    return forecast_atoms(window(argon(12)), TIMES, trained(argon(12)), samples=3)


@pytest.fixture(scope="module")
def evaluation(moving):
    positions, _ = path(argon(12), 30, torch.Generator().manual_seed(0))
    times = FRAME_PS * (torch.arange(30, dtype=torch.float64) - 11)
    boxes = BOX.expand(30, 3, 3)
    truth = Trajectory(
        structure=argon(12).structure, positions=positions, times_ps=times, box=boxes
    )
    return evaluate_atoms(moving, truth)


def described(path: Path) -> dict:
    return json.loads(re.search(r'id="page">(.*?)</script>', path.read_text()).group(1))


def test_a_forecast_leaves_files_that_other_programs_read(tmp_path, moving):
    export_atoms(moving, tmp_path, formats=("html", "xtc", "pdb"))
    mean = mdtraj.load(str(tmp_path / "mean.xtc"), top=str(tmp_path / "now.pdb"))
    np.testing.assert_allclose(mean.xyz * 10, moving.expected.mean, atol=0.006)
    np.testing.assert_allclose(mean.time, TIMES, atol=1e-5)
    assert sorted(one.name for one in tmp_path.glob("sample-*.xtc")) == [
        f"sample-0{k}.xtc" for k in (1, 2, 3)
    ]
    assert mdtraj.load(str(tmp_path / "forecast.pdb")).n_frames == 5
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["samples"] == 3
    assert report["atoms"] == 12
    assert len(report["expected_error_angstrom"]) == 5


def test_molecules_are_wrapped_only_if_asked(tmp_path, moving):
    export_atoms(moving, tmp_path, formats=("xtc",), wrap=True)
    read = mdtraj.load(str(tmp_path / "mean.xtc"), top=str(tmp_path / "now.pdb"))
    shares = torch.from_numpy(read.xyz * 10).double() @ torch.linalg.inv(BOX)
    assert shares.min() > -0.01
    assert shares.max() < 1.01
    assert not (tmp_path / "index.html").exists()


def test_an_unknown_format_is_refused_before_anything_is_written(tmp_path, moving):
    with pytest.raises(UsageError, match="there is no format ply"):
        export_atoms(moving, tmp_path / "out", formats=("ply",))
    assert not (tmp_path / "out").exists()


def test_the_page_is_the_same_twice_and_asks_for_nothing(tmp_path, moving):
    page, _ = atoms_page(moving)
    assert write_atoms_page(tmp_path / "a.html", page) == write_atoms_page(
        tmp_path / "b.html", page
    )
    text = (tmp_path / "a.html").read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text).group(1)
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    assert "connect-src" not in policy
    assert policy.count("'sha256-") == 3


def test_the_page_tells_bonds_elements_and_the_box(tmp_path):
    page = AtomsPage(
        title="water",
        times_ps=[1.0],
        system=waters(2),
        now=torch.zeros(6, 3),
        forecast=torch.rand(1, 6, 3),
    )
    write_atoms_page(tmp_path / "a.html", page)
    found = described(tmp_path / "a.html")
    assert found["atoms"]["bonds"] == [[0, 1], [0, 2], [3, 4], [3, 5]]
    assert found["atoms"]["edges"] == []
    assert found["atoms"]["spread"] == -1
    labels = [one["label"] for one in found["scalars"]]
    assert labels == ["way from the last observed frame, Å", "element"]
    assert [one["name"] for one in found["scalars"][-1]["elements"]] == ["H", "O"]
    write_atoms_page(tmp_path / "b.html", replace(page, box=BOX))
    edges = np.array(described(tmp_path / "b.html")["atoms"]["edges"])
    lengths = sorted(np.linalg.norm(edges[:, 1] - edges[:, 0], axis=1))
    np.testing.assert_allclose(lengths, sorted(4 * BOX.norm(dim=1).tolist()))


def test_numbers_that_are_not_finite_are_refused(moving):
    page, _ = atoms_page(moving)
    with pytest.raises(InputError, match="not finite"):
        replace(page, forecast=page.forecast * torch.nan)
    with pytest.raises(InputError, match="4 times but 5 of forecast"):
        replace(page, times_ps=TIMES[:4])


def test_a_long_forecast_shows_fewer_times_and_says_so(moving, monkeypatch):
    monkeypatch.setattr(atoms_export, "SHOWN_PLACES", 12 * 4 * 3)
    page, notices = atoms_page(moving)
    assert len(page.times_ps) == 3
    assert page.times_ps[0] == TIMES[0]
    assert page.times_ps[-1] == TIMES[-1]
    assert [(one.code, one.count) for one in notices] == [("times-not-shown", 2)]


def test_an_evaluation_has_the_trivial_rows_the_horizons_and_a_verdict(
    tmp_path, moving, evaluation
):
    table = write_atom_evaluation(moving, evaluation, tmp_path)
    text = table.terminal()
    for row in ("DoMiNO", "last position (trivial)", "linear response (trivial)"):
        assert row in text
    assert "samples by themselves have a CRPS" in text
    for name in ("evaluation.json", "scores.csv", "scores.md", "score.png", "index.html"):
        assert (tmp_path / name).exists()
    series = {one["name"] for one in described(tmp_path / "index.html")["series"]}
    assert {"DoMiNO", table.best_trivial.name} <= series
    error = table.metrics[0]
    allowed = atoms_export.TALLEST * table.mean(table.best_trivial, error)
    assert series == {
        row.name for row in table.rows if row.kind == "model" or table.mean(row, error) <= allowed
    }
    assert [one["name"] for one in described(tmp_path / "index.html")["views"]] == [
        "truth",
        "forecast",
    ]


# ---- In a browser --------------------------------------------------------------------------


@pytest.fixture
def opened(browser) -> Iterator:
    """Open a page; at the end nothing was asked of any network and nothing went wrong."""
    asked, troubles, tabs = [], [], []

    def open_page(path: Path):
        tab = browser.new_page(viewport={"width": 900, "height": 700}, reduced_motion="reduce")
        tabs.append((tab, path.as_uri()))
        tab.on("request", lambda request: asked.append(request.url))
        tab.on("console", lambda message: troubles.append(message.text))
        tab.on("pageerror", lambda error: troubles.append(str(error)))
        tab.goto(path.as_uri())
        until(tab, "window.undula.ready && window.undula.draws > 0")
        return tab

    yield open_page
    assert set(asked) == {address for _, address in tabs}
    assert troubles == []
    for tab, _ in tabs:
        tab.close()


@pytest.mark.browser
def test_atoms_move_show_samples_and_wear_halos(opened, tmp_path, moving, evaluation):
    write_atom_evaluation(moving, evaluation, tmp_path)
    tab = opened(tmp_path / "index.html")
    assert tab.locator(".view-name").all_text_contents()[1].startswith("forecast")
    right, left = ".view:last-child", ".view:first-child"
    first = picture(tab, tmp_path / "first.png")
    tab.evaluate("undula.seek(4)")
    last = picture(tab, tmp_path / "last.png")
    assert (inside(tab, right, last) != inside(tab, right, first)).any()
    tab.get_by_label("Halo of one standard deviation").uncheck()
    bare = picture(tab, tmp_path / "bare.png")
    assert (inside(tab, right, bare) != inside(tab, right, last)).mean() > 0.01
    np.testing.assert_array_equal(inside(tab, left, bare), inside(tab, left, last))
    tab.get_by_label("Show").select_option("sample 2 of 3")
    sample = picture(tab, tmp_path / "sample.png")
    assert (inside(tab, right, sample) != inside(tab, right, bare)).any()
    tab.get_by_label("Lay truth over forecast").check()
    over = picture(tab, tmp_path / "over.png")
    assert (inside(tab, right, over) != inside(tab, right, sample)).any()
    tab.get_by_label("Colour by").select_option("element")
    assert tab.locator("#legend-ticks").text_content() == "Ar"


@pytest.mark.browser
def test_a_molecule_has_sticks_and_hostile_texts_stay_texts(opened, tmp_path):
    model = trained(chain(6), reference=window(chain(6), 9).now)
    moving = forecast_atoms(window(chain(6)), TIMES, model, samples=0)
    page, _ = atoms_page(moving)
    write_atoms_page(tmp_path / "a.html", replace(page, title=HOSTILE, notes=[HOSTILE]))
    tab = opened(tmp_path / "a.html")
    assert tab.title() == HOSTILE
    assert tab.locator("img").count() == 0
    assert not tab.locator("#form-choice").is_visible()
    tab.evaluate("undula.seek(4)")
    pixels = inside(tab, ".view", picture(tab, tmp_path / "a.png"))
    assert float((pixels.max(axis=-1) - pixels.min(axis=-1) > 0.12).mean()) > 0.005
