"""Somebody who has just installed undula asks whether it works here, and what came with it."""

from __future__ import annotations

import json

import pytest
import torch

from undula.cli.main import main
from undula.cli.models import bundled
from undula.surface.forecast import MovingSurface


def test_the_doctor_names_versions_weights_and_turns_a_protein(capsys):
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["versions"]["torch"] == torch.__version__
    assert set(found["weights"]) == set(bundled())
    assert 0 < found["rotation"]["largest_difference"] < 0.02
    assert found["rotation"]["moved"] > 0.05  # The forecast is not merely the first frame.
    assert main(["doctor"]) == 0
    told = capsys.readouterr().out
    assert f"torch {torch.__version__}" in told
    assert "rotation: the forecast of villin" in told


def test_the_doctor_notices_a_forecast_that_does_not_turn(monkeypatch, capsys):
    sdf = MovingSurface.sdf

    def unturned(self, points, time_ps, sample=None):
        return sdf(self, points, time_ps, sample) + 0.1 * torch.sign(points[:, 0])

    monkeypatch.setattr(MovingSurface, "sdf", unturned)
    assert main(["doctor"]) == 4
    assert "differs by 0.2" in capsys.readouterr().err


def test_models_are_listed_with_what_they_forecast_and_their_cards_are_printed(capsys):
    assert main(["models", "list"]) == 0
    told = capsys.readouterr().out
    for name, (what, folder) in bundled().items():
        assert f"{name:<8} {what}" in told
        assert main(["models", "card", name]) == 0
        assert capsys.readouterr().out == (folder / "card.md").read_text(encoding="utf-8")


def test_verified_models_are_whole(capsys):
    assert main(["models", "verify", "any", "water"]) == 0
    told = capsys.readouterr().out
    assert told.count(", whole") == 2
    assert str(bundled()["any"][1]) in told


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["models", "cart", "any"], "there is no action cart; did you mean card?"),
        (["models", "card", "argom"], "there is no bundled model argom; did you mean argon?"),
        (["models", "verify", "x1"], "there is no bundled model x1; there are alanine, any"),
    ],
)
def test_what_is_not_there_is_named_with_what_is(words, said, capsys):
    assert main(words) == 2
    assert said in capsys.readouterr().err


def test_a_changed_byte_of_bundled_weights_is_noticed(tmp_path, monkeypatch, capsys):
    what, folder = bundled()["any"]
    copy = tmp_path / "model"
    copy.mkdir()
    for one in folder.iterdir():
        data = bytearray(one.read_bytes())
        if one.suffix == ".safetensors":
            data[-8] ^= 0x10
        (copy / one.name).write_bytes(bytes(data))
    monkeypatch.setattr("undula.cli.models.bundled", lambda: {"any": (what, copy)})
    assert main(["models", "verify"]) == 3
    assert "any" not in capsys.readouterr().out
    assert main(["doctor"]) == 3
