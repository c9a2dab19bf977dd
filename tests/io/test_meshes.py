import itertools

import numpy as np
import pytest
import torch
import trimesh

from undula.errors import InputError
from undula.io.meshes import read_ply, write_ply
from undula.types import Mesh

CUBE_FACES = torch.tensor(
    [
        [0, 1, 3, 0, 3, 2, 4, 6, 7, 4, 7, 5, 0, 4, 5, 0, 5, 1],
        [2, 3, 7, 2, 7, 6, 0, 2, 6, 0, 6, 4, 1, 5, 7, 1, 7, 3],
    ]
).reshape(12, 3)


@pytest.fixture
def cube() -> Mesh:
    corners = torch.tensor(list(itertools.product((0.0, 2.0), repeat=3)))
    scalars = {"displacement": torch.linspace(0, 1, 8), "spread": torch.full((8,), 1 / 3)}
    return Mesh(vertices=corners + 0.1, faces=CUBE_FACES, scalars=scalars)


def assert_same(found: Mesh, expected: Mesh) -> None:
    assert torch.equal(found.vertices, expected.vertices)
    assert torch.equal(found.faces, expected.faces)
    assert list(found.scalars) == list(expected.scalars)
    for name, values in expected.scalars.items():
        assert torch.equal(found.scalars[name], values)


def test_returns_what_was_written(tmp_path, cube):
    write_ply(tmp_path / "cube.ply", cube)
    assert_same(read_ply(tmp_path / "cube.ply"), cube)


def test_writes_the_same_bytes_twice(tmp_path, cube):
    assert write_ply(tmp_path / "a.ply", cube) == write_ply(tmp_path / "b.ply", cube)


def test_keeps_an_empty_mesh(tmp_path):
    nothing = Mesh(vertices=torch.zeros(0, 3), faces=torch.zeros(0, 3, dtype=torch.long))
    write_ply(tmp_path / "nothing.ply", nothing)
    assert_same(read_ply(tmp_path / "nothing.ply"), nothing)


def test_another_program_reads_the_same_mesh(tmp_path, cube):
    write_ply(tmp_path / "cube.ply", cube)
    seen = trimesh.load(tmp_path / "cube.ply", process=False)
    np.testing.assert_array_equal(seen.vertices, cube.vertices.numpy().astype(float))
    np.testing.assert_array_equal(seen.faces, cube.faces)
    assert seen.is_watertight
    assert seen.volume == pytest.approx(abs(cube.volume))
    stored = seen.metadata["_ply_raw"]["vertex"]["data"]["displacement"]
    np.testing.assert_array_equal(np.ravel(stored), cube.scalars["displacement"])


@pytest.mark.parametrize("encoding", ["ascii", "binary"])
def test_reads_what_another_program_wrote(tmp_path, cube, encoding):
    other = trimesh.Trimesh(cube.vertices, cube.faces, process=False)
    (tmp_path / "other.ply").write_bytes(
        trimesh.exchange.ply.export_ply(other, encoding=encoding, vertex_normal=False)
    )
    mesh = read_ply(tmp_path / "other.ply")
    torch.testing.assert_close(mesh.vertices, cube.vertices)
    assert torch.equal(mesh.faces, cube.faces)


def ascii_ply(body: str, vertices: int = 3, extra: str = "") -> str:
    return (
        f"ply\nformat ascii 1.0\nelement vertex {vertices}\nproperty float x\nproperty float y\n"
        f"property float z\n{extra}element face 1\nproperty list uchar int vertex_indices\n"
        f"end_header\n{body}"
    )


TRIANGLE = "0 0 0\n1 0 0\n0 1 0\n"


def test_reads_ascii_with_windows_line_ends(tmp_path):
    text = ascii_ply("0 0 0 5\n1 0 0 6\n0 1 0 7\n3 0 1 2\n", extra="property float spread\n")
    (tmp_path / "a.ply").write_bytes(text.replace("\n", "\r\n").encode())
    mesh = read_ply(tmp_path / "a.ply")
    assert mesh.area == pytest.approx(0.5)
    assert mesh.scalars["spread"].tolist() == [5, 6, 7]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("<html>not found</html>", "no complete PLY header"),
        ("ply\nformat ascii 1.0\n", "no complete PLY header"),
        (ascii_ply(TRIANGLE), "found 3"),
        (ascii_ply(TRIANGLE + "3 0 1 3\n"), "vertices that do not exist"),
        (ascii_ply(TRIANGLE + "4 0 1 2\n"), "face 1 has 4 corners"),
        (ascii_ply(TRIANGLE + "3 0 1 2 0\n"), "face 1 has 5 numbers, not 4"),
        (ascii_ply("0 0 0\n1 0 0\n0 nan 0\n3 0 1 2\n"), "y of vertex 3 is not finite"),
        (ascii_ply("0 0 0\n1 0 0\n0 .ish 0\n3 0 1 2\n"), "a vertex is not made of numbers"),
        (ascii_ply(TRIANGLE, vertices=2**40), "found 3"),
        (ascii_ply("", extra="property list uchar int neighbours\n"), "vertex property"),
        (ascii_ply("", extra="property float x\n"), "each name once"),
        (ascii_ply("").replace("ascii", "binary_big_endian"), "only little endian"),
        (ascii_ply("").replace("element face", "element edge"), "found vertex, edge"),
        (ascii_ply("").replace("uchar int", "float int"), "one list of indices"),
        (ascii_ply("").replace("element vertex 3", "element vertex -3"), "line 3"),
    ],
)
def test_refuses_a_damaged_file_in_one_sentence(tmp_path, content, reason):
    path = tmp_path / "bad.ply"
    path.write_text(content)
    with pytest.raises(InputError, match=reason) as caught:
        read_ply(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_refuses_a_file_cut_anywhere(tmp_path, cube):
    path = tmp_path / "cube.ply"
    write_ply(path, cube)
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError):
            read_ply(path)


def test_refuses_a_missing_file(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_ply(tmp_path / "none.ply")


@pytest.mark.parametrize("name", ["x", "two words", "line\nbreak", "", "7"])
def test_refuses_a_scalar_that_cannot_be_a_property(tmp_path, cube, name):
    mesh = Mesh(vertices=cube.vertices, faces=cube.faces, scalars={name: torch.zeros(8)})
    with pytest.raises(InputError, match="PLY property"):
        write_ply(tmp_path / "cube.ply", mesh)
    assert not (tmp_path / "cube.ply").exists()
