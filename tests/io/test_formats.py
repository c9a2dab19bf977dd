import gzip

import pytest
from tests.io.alanines import peptide_lines

from undula.errors import InputError
from undula.io import formats

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
