"""From trajectories to recordings of moving atoms, as a user types it."""

from __future__ import annotations

from tests.data.fixed_point import swinging, write_fluid

from undula.cli.main import main
from undula.io.recordings import open_recordings


def test_fluids_become_recordings_in_one_command(tmp_path, capsys):
    files = [
        str(write_fluid(tmp_path / f"argon_{k}.npz", *swinging(40, 10, seed=k))) for k in range(2)
    ]
    words = ["prepare", "atoms", *files, "-o", str(tmp_path / "argon"), "--licence", "CC0-1.0"]
    assert main(words) == 0
    said = capsys.readouterr()
    assert said.out == (
        f"{tmp_path}/argon: 2 recordings of argon, 8 atoms, 80 frames 0.1 ps apart, "
        "velocities of 20\n"
    )
    assert "notice: argon_0.npz: velocities are known for 10 of 40 frames" in said.err
    assert main(words) == 0
    assert "is complete" in capsys.readouterr().err


def test_a_peptide_is_aligned_to_the_runs_that_train(peptide, tmp_path, capsys):
    topology, *runs = map(str, peptide)
    words = ["prepare", "atoms", topology, *runs, "-o", str(tmp_path / "peptide")]
    words += ["--align", "mean", "--reference", "run1", "--hydrogens", "drop"]
    assert main(words) == 0
    assert "2 recordings of peptide" in capsys.readouterr().out
    found = open_recordings(tmp_path / "peptide")
    assert found.provenance["alignment"]["mean of"] == ["run1"]
    assert "H" not in found.system.structure.elements
    found.verify()


def test_mistakes_get_one_sentence(peptide, tmp_path, capsys):
    topology, run, _ = map(str, peptide)
    out = ["-o", str(tmp_path / "out")]
    for words, code, sentence in (
        ([topology, run, "--algin", "mean"], 2, "did you mean align?"),
        ([topology, run, "--stride", "0"], 2, "stride should be at least 1, not 0"),
        ([topology], 2, "no trajectory to record"),
        ([str(tmp_path / "nowhere.npz")], 3, "cannot read"),
        ([topology, topology], 3, "there is one frame"),
    ):
        assert main(["prepare", "atoms", *words, *out]) == code
        said = capsys.readouterr().err
        assert sentence in said
        assert said.count("undula: ") == 1
