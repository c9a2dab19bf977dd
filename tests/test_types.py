from dataclasses import replace

import numpy as np
import pytest
import torch

from undula.errors import InputError
from undula.types import Mesh, Structure, SurfaceCloud, Trajectory


def structure_of(atoms=4, **changes):
    strings = {
        name: np.array(["CA"] * atoms)
        for name in ("atom_names", "residue_names", "insertion_codes", "chain_ids")
    }
    fields = {
        "name": "four",
        "positions": torch.arange(3.0 * atoms).reshape(atoms, 3),
        "elements": np.array(["C"] * atoms),
        "residue_numbers": np.arange(atoms),
        "residue_index": np.arange(atoms) // 2,
        "file_index": np.arange(atoms),
        "file_atoms": atoms,
    }
    return Structure(**strings, **(fields | changes))


def test_a_structure_knows_its_residues_radii_and_alpha_carbons():
    found = structure_of()
    assert len(found) == 4
    assert found.residues == 2
    assert found.vdw_radii.tolist() == pytest.approx([1.7] * 4)
    assert found.alpha_carbons.tolist() == [0, 1, 2, 3]


def test_a_part_counts_its_residues_anew_and_keeps_its_place_in_the_file():
    part = structure_of().select(np.array([False, False, True, True]))
    assert part.residue_index.tolist() == [0, 0]
    assert part.file_index.tolist() == [2, 3]
    assert part.positions[0].tolist() == [6.0, 7.0, 8.0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"positions": torch.full((4, 3), float("nan"))}, "not finite"),
        ({"elements": np.array(["C", "C", "QQ", "C"])}, "unknown elements QQ"),
        ({"residue_index": np.array([0, 2, 3, 4])}, "count up from 0"),
        ({"file_index": np.arange(3)}, "4 atoms but 3 file_index"),
    ],
)
def test_a_structure_checks_itself(changes, message):
    with pytest.raises(InputError, match=message):
        structure_of(**changes)


def test_a_trajectory_checks_its_times():
    structure = structure_of()
    positions = torch.zeros(3, 4, 3)
    with pytest.raises(InputError, match="do not increase"):
        Trajectory(structure=structure, positions=positions, times_ps=torch.tensor([0.0, 1.0, 1.0]))


def test_a_frame_is_a_structure():
    structure = structure_of()
    positions = torch.stack([structure.positions, structure.positions + 1])
    moving = Trajectory(structure=structure, positions=positions, times_ps=torch.tensor([0.0, 2.0]))
    assert torch.equal(moving.frame(1).positions, structure.positions + 1)
    assert moving.frames(slice(1, None)).times_ps.tolist() == [2.0]


def test_normals_of_another_length_are_refused():
    with pytest.raises(InputError, match="length one"):
        SurfaceCloud(points=torch.zeros(1, 3), normals=torch.full((1, 3), 1.0))


def tetrahedron():
    vertices = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    faces = torch.tensor([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])
    return Mesh(vertices=vertices, faces=faces)


def test_area_and_volume_of_a_tetrahedron():
    mesh = tetrahedron()
    assert mesh.volume == pytest.approx(1 / 6)
    assert mesh.area == pytest.approx(1.5 + 3**0.5 / 2)
    assert mesh.vertex_normals[0].tolist() == pytest.approx([-(3**-0.5)] * 3)


def test_a_mesh_turned_inside_out_has_negative_volume():
    mesh = tetrahedron()
    assert replace(mesh, faces=mesh.faces.flip(1)).volume == pytest.approx(-1 / 6)


def test_a_mesh_checks_its_faces():
    with pytest.raises(InputError, match="vertices that do not exist"):
        replace(tetrahedron(), faces=torch.tensor([[0, 1, 4]]))


def test_an_empty_mesh_has_no_area():
    empty = Mesh(vertices=torch.zeros(0, 3), faces=torch.zeros(0, 3, dtype=torch.long))
    assert empty.is_empty
    assert empty.area == empty.volume == 0.0
