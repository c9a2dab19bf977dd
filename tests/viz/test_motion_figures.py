from __future__ import annotations

import pytest

from undula.viz.motion_figures import error_figure

ROWS = {
    "ours": [0.5, 0.8, None],
    "constant (trivial)": [1.0, 1.0, 1.0],
    "nothing (trivial)": [None, None, None],
}


@pytest.mark.parametrize("rows", [ROWS, {"constant (trivial)": [1.0, 1.0, 1.0]}], ids=len)
def test_errors_over_the_horizon_have_the_same_bytes_twice(tmp_path, rows):
    first, second = (
        error_figure(tmp_path / f"{name}.png", [1, 10, 100], rows, "error, Å²", 0.1)
        for name in ("one", "two")
    )
    assert first == second
    assert (tmp_path / "one.png").stat().st_size > 1000
