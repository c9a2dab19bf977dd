import os

import pytest

from undula.errors import MachineError
from undula.viz.earlier import discard_earlier

EXPORTS = ("forecast.json", "report.json", "meshes/mesh-0000.ply", "sample-01.xtc", "index.html")
OTHERS = ("notes.txt", "meshes/mine.ply", "model.safetensors")


def test_removes_exports_and_nothing_else(tmp_path):
    (tmp_path / "meshes").mkdir()
    for name in EXPORTS + OTHERS:
        (tmp_path / name).write_text("")
    discard_earlier(tmp_path)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == set(OTHERS)
    discard_earlier(tmp_path / "nowhere")


def test_what_names_the_forecast_whole_goes_first(tmp_path, monkeypatch):
    for name in ("forecast.json", "now.pdb"):
        (tmp_path / name).write_text("")

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "unlink", refuse)
    with pytest.raises(MachineError, match=r"cannot remove .*forecast.json: Permission denied"):
        discard_earlier(tmp_path)
