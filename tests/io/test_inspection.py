import json

import gemmi
import numpy as np
import pytest
from mdtraj.formats import XTCTrajectoryFile
from tests.io.alanines import NEXT, pdb_line, peptide_lines

from undula.atomic import sha256
from undula.errors import InputError, UndulaError, UsageError
from undula.io.inspection import inspect


def write_xtc(path, positions):
    with XTCTrajectoryFile(str(path), "w") as file:
        file.write(positions.astype(np.float32), time=np.arange(len(positions), dtype=np.float32))
    return path


def test_says_what_is_in_a_structure(write):
    path = write([*peptide_lines(3), pdb_line("O", (9, 9, 9), residue="HOH", number=8)])
    found = inspect(path, purpose="surface")
    assert (found.format, found.atoms, found.file_atoms, found.residues) == ("pdb", 15, 16, 3)
    assert found.families == ("surface",)
    assert found.chains == ("A",)
    assert found.sha256 == sha256(path)
    assert [notice.code for notice in found.notices] == ["water-dropped"]
    assert json.loads(json.dumps(found.as_dict()))["notices"][0]["count"] == 1
    assert "15 of 16 atoms in 3 residues" in str(found)


def test_alpha_carbons_alone_serve_no_surface(write):
    path = write([pdb_line("CA", k * NEXT, number=k) for k in range(1, 6)])
    with pytest.raises(InputError, match="only Cα is there; a surface needs all heavy atoms"):
        inspect(path, purpose="surface")
    assert inspect(path).families == ()


def test_a_trajectory_serves_motion_with_and_without_a_topology(write, tmp_path):
    topology = write(peptide_lines(3))
    lines = topology.read_text().splitlines()
    start = np.array([[float(line[i : i + 8]) for i in (30, 38, 46)] for line in lines])
    path = write_xtc(tmp_path / "a.xtc", np.stack([start + k for k in range(4)]) / 10)
    for found in (inspect(path), inspect(path, purpose="motion", topology=topology)):
        assert found.families == ("motion",)
        assert (found.atoms, found.frames, found.times_ps) == (15, 4, (0.0, 3.0))
    assert found.residues == 3
    with pytest.raises(InputError, match=r"trajectory .XTC.; a surface needs a structure"):
        inspect(path, purpose="surface")


def test_motion_needs_frames_that_differ(write, tmp_path):
    still = write_xtc(tmp_path / "still.xtc", np.ones((3, 12, 3)))
    with pytest.raises(InputError, match="all 3 frames are the same"):
        inspect(still, purpose="motion")
    single = write_xtc(tmp_path / "one.xtc", np.ones((1, 12, 3)))
    with pytest.raises(InputError, match="one frame"):
        inspect(single, purpose="motion")
    with pytest.raises(InputError, match="one frame"):
        inspect(write(peptide_lines(2)), purpose="motion")


def test_refuses_a_purpose_that_does_not_exist(write):
    with pytest.raises(UsageError, match="surface or motion"):
        inspect(write(peptide_lines(1)), purpose="fun")


@pytest.mark.parametrize("seed", range(4))
def test_damaged_text_makes_a_sentence_or_serves_but_never_crashes(write, seed):
    rng = np.random.default_rng(seed)
    content = "\n".join(peptide_lines(4, altloc="A" if seed % 2 else "")).encode()
    if seed > 1:
        document = gemmi.read_pdb_string(content.decode()).make_mmcif_document()
        content = document.as_string().encode()
    for _ in range(100):
        damaged = bytearray(content)
        for place in rng.integers(0, len(content), rng.integers(1, 9)):
            damaged[place] = rng.integers(256)
        path = write(bytes(damaged[: rng.integers(len(content) // 2, len(content) + 1)]))
        try:
            found = inspect(path)
        except UndulaError:
            continue
        assert found.atoms > 0
