"""From a command to moving atoms, and from a server to moving atoms, as a user types it."""

from __future__ import annotations

import hashlib

import pytest
from tests.loopback import serving

from undula.cli.main import main
from undula.data import mdshare
from undula.io.recordings import open_recordings


def test_simulate_go_on_and_verify(tmp_path, capsys):
    pytest.importorskip("openmm", reason="OpenMM is not installed: the extra simulate")
    out = str(tmp_path / "argon")
    words = ["simulate", "argon", "-o", out, "--preset", "tiny", "--platform", "CPU"]
    words += ["--trajectories", "2", "--frames", "20", "--seed", "3"]
    assert main([*words, "--xtc"]) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [
        f"{out}: argon_0, 20 frames, 1.9 ps",
        f"{out}: argon_1, 20 frames, 1.9 ps",
    ]
    assert "ns a day" in captured.err
    assert (tmp_path / "argon" / "argon.pdb").exists()
    assert (tmp_path / "argon" / "argon_1.xtc").exists()
    assert open_recordings(tmp_path / "argon").recordings[1].velocity_frames == 20

    assert main(words) == 0
    assert "is complete" in capsys.readouterr().err
    assert main(["data", "verify", out]) == 0
    assert "files as recorded" in capsys.readouterr().out

    assert main([*words[:-1], "4"]) == 2
    assert "was begun with seed=3, not 4" in capsys.readouterr().err


def test_what_cannot_be_simulated_is_said_in_one_sentence(tmp_path, capsys):
    out = str(tmp_path / "out")
    assert main(["simulate", "argn", "-o", out]) == 3
    assert "none of argon, tip3p, tip4p, ala2" in capsys.readouterr().err
    assert main(["simulate", "ala2", "-o", out, "--preset", "paper"]) == 2
    assert "undula data fetch ala2" in capsys.readouterr().err
    assert main(["simulate", "argon", "-o", out, "--frmaes", "3"]) == 2
    assert "did you mean frames?" in capsys.readouterr().err


def test_fetch_alanine_dipeptide_and_verify(tmp_path, capsys, monkeypatch):
    content = {name: f"{name}\n".encode() for name in mdshare.FILES}
    small = {
        name: mdshare.PublishedFile(
            name=promised.name,
            size=len(content[name]),
            md5=hashlib.md5(content[name], usedforsecurity=False).hexdigest(),
        )
        for name, promised in mdshare.FILES.items()
    }
    monkeypatch.setattr(mdshare, "FILES", small)
    out = tmp_path / "raw"
    with serving() as server:
        server.kind = "application/octet-stream"
        server.files = {f"/{name}": value for name, value in content.items()}
        assert main(["data", "fetch", "ala2", "-o", str(out), "--base", server.url]) == 0
    captured = capsys.readouterr()
    assert captured.out.strip() == f"{out}/ala2"
    assert "CC-BY-4.0" in captured.err
    assert main(["data", "verify", f"{out}/ala2"]) == 0
    assert "4 files as fetched" in capsys.readouterr().out
    assert main(["data", "list"]) == 0
    assert "alanine dipeptide, 3 trajectories of 250 ns" in capsys.readouterr().out
