"""Meshes as PLY files: binary little endian out, ours (binary or ASCII) back in."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from undula import atomic
from undula.errors import InputError
from undula.types import Mesh

_COORDINATES = ("x", "y", "z")
_NUMBERS = {
    "char": "<i1",
    "int8": "<i1",
    "uchar": "<u1",
    "uint8": "<u1",
    "short": "<i2",
    "int16": "<i2",
    "ushort": "<u2",
    "uint16": "<u2",
    "int": "<i4",
    "int32": "<i4",
    "uint": "<u4",
    "uint32": "<u4",
    "float": "<f4",
    "float32": "<f4",
    "double": "<f8",
    "float64": "<f8",
}
_LONGEST_HEADER = 65_536


class _Header(NamedTuple):
    binary: bool
    vertices: int
    faces: int
    vertex: np.dtype
    face: np.dtype
    size: int


def write_ply(path: Path, mesh: Mesh) -> str:
    """Write a mesh as binary PLY, every scalar a vertex property of its own name.

    Numbers are stored as ``float`` (32 bits), the type every other program reads. A mesh
    without faces is written too: a file with nothing in it says that there was no surface.

    Args:
        path: The file to write.
        mesh: Vertices in Å; scalar names may hold letters, digits, ``_``, ``.`` and ``-``.

    Returns:
        The SHA-256 of the file.

    Raises:
        InputError: The name of a scalar cannot be a PLY property.
        MachineError: The place is full, read-only or not allowed.
    """
    for name in mesh.scalars:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]*", name) or name in _COORDINATES:
            raise InputError(f"{path}: the mesh scalar {name!r} cannot name a PLY property")
    properties = [*_COORDINATES, *mesh.scalars]
    header = "\n".join(
        [
            "ply",
            "format binary_little_endian 1.0",
            "comment undula: lengths in angstrom",
            f"element vertex {len(mesh.vertices)}",
            *(f"property float {name}" for name in properties),
            f"element face {len(mesh.faces)}",
            "property list uchar int vertex_indices",
            "end_header\n",
        ]
    )
    columns = [mesh.vertices, *(values[:, None] for values in mesh.scalars.values())]
    vertices = torch.cat([part.detach().cpu().float() for part in columns], dim=1)
    faces = np.empty(len(mesh.faces), dtype=[("corners", "<u1"), ("indices", "<i4", 3)])
    faces["corners"] = 3
    faces["indices"] = mesh.faces.cpu().numpy()
    content = header.encode() + vertices.numpy().astype("<f4").tobytes() + faces.tobytes()
    return atomic.write(path, content)


def read_ply(path: Path) -> Mesh:
    """Read a triangle mesh from a PLY file, binary little endian or ASCII.

    This is for files in the manner of `write_ply`: an element ``vertex`` of numbers, then an
    element ``face`` of one list of three indices, and nothing else. Header, number of elements
    and size of the file must agree.

    Args:
        path: The file, lengths in Å.

    Returns:
        The mesh in single precision; each vertex property beside x, y, z is a scalar.

    Raises:
        InputError: The file is missing, damaged, cut, of another layout, or holds values
            that are not finite.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    header = _read_header(path, content)
    body = content[header.size :]
    vertices, faces = (_binary if header.binary else _ascii)(path, header, body)
    wrong = np.flatnonzero(faces["corners"] != 3)
    if len(wrong):
        raise InputError(f"{path}: face {wrong[0] + 1} has {faces['corners'][wrong[0]]} corners")
    values = {
        name: torch.from_numpy(vertices[name].astype(np.float32))
        for name in header.vertex.names or ()
    }
    for name, column in values.items():
        bad = ~torch.isfinite(column)
        if bad.any():
            row = int(bad.nonzero()[0]) + 1
            raise InputError(f"{path}: {name} of vertex {row} is not finite")
    try:
        return Mesh(
            vertices=torch.stack([values.pop(axis) for axis in _COORDINATES], dim=1),
            faces=torch.from_numpy(faces["indices"].astype(np.int64)),
            scalars=values,
        )
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _read_header(path: Path, content: bytes) -> _Header:
    found = re.match(rb"ply\r?\n(.*?\n)?end_header\r?\n", content[:_LONGEST_HEADER], re.DOTALL)
    if not found:
        raise InputError(f"{path}: there is no complete PLY header")
    layout = ""
    elements: list[tuple[str, int, list[list[str]]]] = []
    text = found.group(1) or b""
    for number, line in enumerate(text.decode("ascii", "replace").splitlines(), start=2):
        match line.split():
            case ["comment" | "obj_info", *_] | []:
                pass
            case ["format", layout, "1.0"]:
                pass
            case ["element", name, count] if count.isdecimal():
                elements.append((name, int(count), []))
            case ["property", *words] if elements:
                elements[-1][2].append(words)
            case _:
                raise InputError(f"{path}: line {number}: cannot read {line[:60]!r} in the header")
    if layout not in ("binary_little_endian", "ascii"):
        raise InputError(f"{path}: the PLY layout {layout!r} is not read, only little endian")
    if [name for name, _, _ in elements] != ["vertex", "face"]:
        names = ", ".join(name for name, _, _ in elements) or "nothing"
        raise InputError(f"{path}: a mesh should hold vertex and face, found {names}")
    (_, vertices, columns), (_, faces, lists) = elements
    return _Header(
        binary=layout == "binary_little_endian",
        vertices=vertices,
        faces=faces,
        vertex=_vertex_type(path, columns),
        face=_face_type(path, lists),
        size=found.end(),
    )


def _vertex_type(path: Path, columns: list[list[str]]) -> np.dtype:
    fields = []
    for words in columns:
        if len(words) != 2 or words[0] not in _NUMBERS:
            raise InputError(f"{path}: cannot read the vertex property {' '.join(words)!r}")
        fields.append((words[1], _NUMBERS[words[0]]))
    names = [name for name, _ in fields]
    if len(set(names)) < len(names) or not set(_COORDINATES) <= set(names):
        raise InputError(f"{path}: the vertices should have x, y and z, and each name once")
    return np.dtype(fields)


def _face_type(path: Path, lists: list[list[str]]) -> np.dtype:
    match lists:
        case [["list", count, index, "vertex_indices" | "vertex_index"]] if {
            count,
            index,
        } <= _NUMBERS.keys() - {"float", "float32", "double", "float64"}:
            return np.dtype([("corners", _NUMBERS[count]), ("indices", _NUMBERS[index], 3)])
    raise InputError(f"{path}: the faces should have one list of indices and nothing else")


def _binary(path: Path, header: _Header, body: bytes) -> tuple[np.ndarray, np.ndarray]:
    first = header.vertices * header.vertex.itemsize
    expected = first + header.faces * header.face.itemsize
    if len(body) != expected:
        raise InputError(
            f"{path}: {header.vertices} vertices and {header.faces} triangles take "
            f"{expected} bytes after the header, found {len(body)}"
        )
    return (
        np.frombuffer(body[:first], dtype=header.vertex),
        np.frombuffer(body[first:], dtype=header.face),
    )


def _ascii(path: Path, header: _Header, body: bytes) -> tuple[np.ndarray, np.ndarray]:
    lines = body.decode("ascii", "replace").split("\n")
    rows = [line.split() for line in lines if line.strip()]
    if len(rows) != header.vertices + header.faces:
        raise InputError(
            f"{path}: {header.vertices} vertices and {header.faces} triangles take as many "
            f"lines after the header, found {len(rows)}"
        )
    tables = []
    parts = (
        ("vertex", rows[: header.vertices], header.vertex, len(header.vertex.names or ())),
        ("face", rows[header.vertices :], header.face, 4),
    )
    for what, part, layout, width in parts:
        for number, row in enumerate(part, start=1):
            if len(row) != width:
                raise InputError(f"{path}: {what} {number} has {len(row)} numbers, not {width}")
        try:
            text = io.StringIO("\n".join(" ".join(row) for row in part))
            table = np.loadtxt(text, dtype=layout, ndmin=1) if part else np.empty(0, layout)
        except ValueError as error:
            raise InputError(f"{path}: a {what} is not made of numbers: {error}") from error
        tables.append(table)
    return tables[0], tables[1]
