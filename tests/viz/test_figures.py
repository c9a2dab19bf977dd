import math

import matplotlib.image
import numpy as np
import pytest

from undula.errors import InputError
from undula.viz.figures import score_figure, strip_figure, time_texts

TIMES = [0.0, 500.0, 2000.0]


def pixels(path) -> np.ndarray:
    return matplotlib.image.imread(path)[..., :3]


def test_times_are_told_in_ps_below_a_nanosecond_and_in_ns_above():
    assert time_texts([0.0, 999.0]) == ([0.0, 999.0], "ps")
    assert time_texts([0.0, 2000.0]) == ([0.0, 2.0], "ns")
    assert time_texts([]) == ([], "ps")


def test_a_score_figure_shows_every_row(tmp_path):
    rows = {"model": [1.0, 0.8, 0.7], "copy": [1.0, math.nan, 0.6]}
    score_figure(tmp_path / "one.png", TIMES, {"model": rows["model"]}, "IoU")
    score_figure(tmp_path / "two.png", TIMES, rows, "IoU")
    assert not np.array_equal(pixels(tmp_path / "one.png"), pixels(tmp_path / "two.png"))


def test_a_score_figure_has_the_same_bytes_twice(tmp_path):
    rows = {"model": [1.0, 0.8, 0.7]}
    first = score_figure(tmp_path / "a.png", TIMES, rows, "IoU")
    assert first == score_figure(tmp_path / "b.png", TIMES, rows, "IoU")


def test_text_with_dollar_signs_is_not_read_as_mathematics(tmp_path):
    score_figure(tmp_path / "a.png", TIMES, {r"$\frac$": [1.0, 2.0, 3.0]}, r"$\bad$")
    assert pixels(tmp_path / "a.png").std() > 0


@pytest.mark.parametrize("rows", [{}, {"model": [math.nan] * 3}])
def test_refuses_to_draw_no_score(tmp_path, rows):
    with pytest.raises(InputError, match="no score to draw"):
        score_figure(tmp_path / "a.png", TIMES, rows, "IoU")


def test_refuses_a_row_of_another_length(tmp_path):
    with pytest.raises(InputError, match="3 times but 2 of model"):
        score_figure(tmp_path / "a.png", TIMES, {"model": [1.0, 2.0]}, "IoU")


def test_a_strip_has_a_column_per_time_and_a_row_per_source(tmp_path, sphere):
    strip_figure(tmp_path / "both.png", TIMES, [sphere] * 3, [sphere] * 3)
    strip_figure(tmp_path / "alone.png", TIMES, None, [sphere] * 3)
    strip_figure(tmp_path / "short.png", TIMES[:2], None, [sphere] * 2)
    both, alone, short = (pixels(tmp_path / f"{n}.png") for n in ("both", "alone", "short"))
    assert both.shape[0] > alone.shape[0] + 250
    assert alone.shape[1] > short.shape[1] + 250


def test_a_strip_shows_the_same_mesh_the_same_in_both_rows(tmp_path, sphere):
    strip_figure(tmp_path / "both.png", TIMES[:1], [sphere], [sphere])
    picture = pixels(tmp_path / "both.png")
    coloured = picture.max(axis=-1) - picture.min(axis=-1) > 0.15
    rows = np.flatnonzero(coloured[:, 100:].sum(axis=1) > 80)
    breaks = np.flatnonzero(np.diff(rows) > 1)
    assert len(breaks) >= 1
    upper, lower = rows[: breaks[0] + 1], rows[breaks[0] + 1 :]
    assert len(upper) == pytest.approx(len(lower), abs=25)


def test_a_strip_says_where_there_is_no_surface(tmp_path, sphere, nothing):
    strip_figure(tmp_path / "a.png", TIMES[:2], [sphere] * 2, [sphere, nothing])
    strip_figure(tmp_path / "b.png", TIMES[:2], [nothing] * 2, [nothing] * 2)
    assert (pixels(tmp_path / "b.png") < 0.6).any()


def test_refuses_a_strip_that_does_not_fit_its_times(tmp_path, sphere):
    with pytest.raises(InputError, match="3 times but 2 of forecast"):
        strip_figure(tmp_path / "a.png", TIMES, None, [sphere] * 2)
    with pytest.raises(InputError, match="no time to draw"):
        strip_figure(tmp_path / "a.png", [], None, [])
    with pytest.raises(InputError, match="no scalar 'spread'"):
        strip_figure(tmp_path / "a.png", TIMES[:1], None, [sphere], scalar="spread")
