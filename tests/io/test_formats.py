import gzip

import numpy as np
import pytest
from mdtraj.formats import XTCTrajectoryFile
from tests.io.alanines import peptide_lines

from undula.atomic import sha256
from undula.errors import InputError
from undula.io import formats
from undula.io.structures import load_structure
from undula.io.trajectories import load_trajectory

GRO = b"title\n    1\n    1ALA     CA    1   0.000   0.100   0.200\n   3.0   3.0   3.0\n"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("\n".join(peptide_lines()).encode(), "pdb"),
        (b"REMARK only a remark\n", "pdb"),
        (b"# comment\n\ndata_1abc\nloop_\n", "mmcif"),
        (GRO, "gro"),
        (b"\x00\x00\x07\xcb" + bytes(100), "xtc"),
        (b"\x00\x00\x07\xc9" + bytes(100), "trr"),
        (b"T\x00\x00\x00CORD" + bytes(100), "dcd"),
        (b"\x00\x00\x00TCORD" + bytes(100), "dcd"),
        (b"T\x00\x00\x00\x00\x00\x00\x00CORD" + bytes(100), "dcd"),
    ],
)
def test_tells_the_format_by_content_under_any_name(write, content, expected):
    assert formats.recognise(write(content, "file.jpeg")) == expected


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"<!DOCTYPE html><html>not found</html>", "HTML"),
        (b"ITEM: TIMESTEP\n0\n", "LAMMPS"),
        (b"2\ncomment\nHe 0.1 0.2 0.3\nHe 1.1 0.2 0.3\n", "XYZ"),
        (b"CDF\x01" + bytes(50), "NetCDF"),
        (b"PK\x03\x04" + bytes(50), "zip"),
        (b"\x80\x04\x95" + bytes(50), "pickle"),
        (b"\x89HDF\r\n\x1a\n" + bytes(50), "HDF5"),
        (b">1ABC\nMKV\n", "FASTA"),
        (b'{"a": 1}', "JSON"),
        (bytes(range(256)) * 4, "no known format"),
        (b"some words\nin some lines\n", "no known format"),
    ],
)
def test_refuses_other_formats_by_name(write, content, words):
    with pytest.raises(InputError, match=words):
        formats.recognise(write(content, "file.pdb"))


def test_looks_into_gzip_and_reads_it_whole(write):
    content = "\n".join(peptide_lines()).encode()
    path = write(gzip.compress(content), "peptide.ent")
    assert formats.recognise(path) == "pdb"
    assert formats.read_text(path) == content


def test_refuses_gzip_that_was_cut(write):
    packed = gzip.compress("\n".join(peptide_lines(30)).encode())
    with pytest.raises(InputError, match="gzip data is cut or damaged"):
        formats.recognise(write(packed[: len(packed) // 2], "a.pdb.gz"))


def test_refuses_data_packed_twice(write):
    with pytest.raises(InputError, match="packed twice"):
        formats.recognise(write(gzip.compress(gzip.compress(GRO)), "a.gro.gz"))


def test_stops_at_the_limit_of_a_compression_bomb(write, monkeypatch):
    monkeypatch.setattr(formats, "TEXT_LIMIT", 2**20)
    path = write(gzip.compress(b"REMARK   1 nothing\n" * 2**17), "bomb.pdb.gz")
    assert path.stat().st_size < 2**15
    with pytest.raises(InputError, match="more than 1 MiB of text"):
        formats.read_text(path)


def test_drops_a_byte_order_mark(write):
    content = "\n".join(peptide_lines()).encode()
    path = write(b"\xef\xbb\xbf" + content)
    assert formats.recognise(path) == "pdb"
    assert formats.read_text(path) == content


def test_refuses_what_is_not_there_and_what_is_no_file(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        formats.recognise(tmp_path / "absent.pdb")
    with pytest.raises(InputError, match="a folder"):
        formats.recognise(tmp_path)


def test_refuses_an_empty_file(write):
    with pytest.raises(InputError, match="empty"):
        formats.recognise(write(b""))


def with_sum(write, line):
    path = write("\n".join(peptide_lines()).encode(), "run.pdb")
    told = line.replace("HASH", sha256(path))
    path.with_name("run.pdb.sha256").write_text(told)
    return path


@pytest.mark.parametrize(
    "line",
    [
        "HASH  run.pdb\n",
        "HASH *run.pdb\n",
        "HASH",
        "HASH  ./made/run.pdb\n",
        "HASH  a.pdb\nHASH  run.pdb\n",
    ],
)
def test_a_file_with_its_checksum_beside_it_is_compared(write, line):
    path = with_sum(write, line)
    assert formats.recognise(path) == "pdb"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(InputError, match=r"run\.pdb: the file is not the one .* run\.pdb\.sha256"):
        formats.recognise(path)


@pytest.mark.parametrize(
    "line", ["", "HASH  other.pdb\n", "12ab  run.pdb\n", "HASHff  run.pdb", "HASH\nHASH"]
)
def test_a_checksum_that_says_nothing_of_the_file_is_refused(write, line):
    with pytest.raises(InputError, match=r"run\.pdb\.sha256: this holds no SHA-256 of run\.pdb"):
        formats.recognise(with_sum(write, line))


def test_no_changed_byte_of_a_trajectory_with_its_checksum_is_used(tmp_path):
    random = np.random.default_rng(0)
    topology, path = tmp_path / "a.pdb", tmp_path / "run.xtc"
    topology.write_text("\n".join([*peptide_lines(3), "END", ""]))
    still = load_structure(topology).positions.numpy() / 10
    with XTCTrajectoryFile(str(path), "w") as file:
        file.write((still + random.normal(0, 0.001, (4, *still.shape))).astype(np.float32))
    whole = path.read_bytes()
    path.with_name("run.xtc.sha256").write_text(f"{sha256(path)}  run.xtc\n")
    assert len(load_trajectory(topology, path)) == 4
    for place in random.integers(0, len(whole), 40):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(InputError, match="damaged or was changed"):
            load_trajectory(topology, path)
