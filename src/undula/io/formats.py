"""Which format a file has, told by its content and never by its suffix, and its unpacked text.

Text formats may be packed with gzip. Unpacking streams and stops at `TEXT_LIMIT`, so that a
compression bomb costs no more memory than a large structure. Formats that undula does not read
are known by name, so that the refusal can say what the file is.
"""

from __future__ import annotations

import gzip
import os
import re
import stat
import struct
import zlib
from pathlib import Path
from typing import BinaryIO, cast

from undula.atomic import sha256
from undula.errors import InputError, MachineError

STRUCTURE_FORMATS = ("pdb", "mmcif", "gro")
TRAJECTORY_FORMATS = ("xtc", "trr", "dcd")
TEXT_LIMIT = 256 * 2**20
"""Bytes of text that are read at most, after unpacking."""

SUM_SUFFIX = ".sha256"
SUM_LIMIT = 65536
"""Bytes of a file of checksums that are read."""

_HEAD = 65536
_SUM = re.compile(r"([0-9a-fA-F]{64})(?:\s+\*?(\S.*))?")
_GZIP = b"\x1f\x8b"
_BINARY = (
    (struct.pack(">i", 1995), "xtc"),
    (struct.pack(">i", 1993), "trr"),
    (struct.pack(">i", 2023), "an XTC file of more than 2³¹ bytes a frame (magic 2023)"),
    (b"CDF\x01", "an AMBER NetCDF trajectory"),
    (b"CDF\x02", "an AMBER NetCDF trajectory"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x93NUMPY", "a numpy array"),
    (b"BZh", "a bzip2 archive"),
    (b"\xfd7zXZ", "an xz archive"),
    (b"\x28\xb5\x2f\xfd", "a zstandard archive"),
    (b"PK\x03\x04", "a zip archive"),
    (b"%PDF", "a PDF document"),
    (b"\x89PNG", "a PNG picture"),
    (b"\x80\x02", "a Python pickle, which is never opened"),
    (b"\x80\x03", "a Python pickle, which is never opened"),
    (b"\x80\x04", "a Python pickle, which is never opened"),
    (b"\x80\x05", "a Python pickle, which is never opened"),
    (b"\xff\xfe", "text in UTF-16"),
    (b"\xfe\xff", "text in UTF-16"),
)
_TEXT = (
    (r"\s*<(!doctype html|html|head|body)", "an HTML page"),
    (r"\s*<", "XML"),
    (r"\s*[{\[]", "JSON"),
    (r"(.*\n){0,20}\s*ITEM: ", "a LAMMPS dump"),
    (r"LAMMPS ", "a LAMMPS data file"),
    (r"\s*PSF\b", "a PSF topology"),
    (r"%VERSION", "an AMBER topology"),
    (r"\s*(#.*\n\s*)*@<TRIPOS>", "a MOL2 file"),
    (r"\s*>", "a FASTA file"),
    (r"(.*\n){3}.*V[23]000", "an SDF file"),
    (r"\s*\d+\s*\n.*\n\s*[A-Za-z]{1,2}\d*\s+[-+.\d]", "an XYZ file"),
)
_PDB_RECORD = re.compile(
    r"^(ATOM  |HETATM|MODEL |HEADER|TITLE |CRYST1|REMARK|COMPND|SEQRES|EXPDTA|AUTHOR"
    r"|OBSLTE|SPLIT |CAVEAT|SOURCE|KEYWDS|NUMMDL|MDLTYP|REVDAT|SPRSDE|JRNL  |DBREF|USER  "
    r"|ORIGX\d|SCALE\d|MTRIX\d|ANISOU|CONECT)",
    re.MULTILINE,
)
_GRO = re.compile(r".*\n\s*\d+\s*\n([ \d]{5}.{10}[ \d*]{5}.*\d\.\d|(\s*\d+\.\d+){3})")


def size_of(path: Path) -> int:
    """Return the size of a regular, readable file in bytes.

    Raises:
        InputError: There is no such file, or it is a folder or a device.
        MachineError: It may not be read.
    """
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such file") from error
    except OSError as error:
        raise MachineError(f"cannot read {path}: {error.strerror or error}") from error
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
        raise InputError(f"{path}: this is {kind}, expected a structure or a trajectory")
    if not os.access(path, os.R_OK):
        raise MachineError(f"cannot read {path}: permission denied")
    return status.st_size


def check_sum(path: Path) -> None:
    """Compare a file with the SHA-256 beside it, in ``NAME.sha256``, where there is one.

    Most formats of trajectories have no checksums, and what damage leaves may look like motion. A
    file that ``sha256sum run.xtc > run.xtc.sha256`` made where the simulation ran tells them apart.

    Args:
        path: Any file; without such a file beside it nothing is compared.

    Raises:
        InputError: The file has another SHA-256, or the one beside it holds none for this name.
    """
    beside = path.with_name(path.name + SUM_SUFFIX)
    if not beside.is_file():
        return
    lines = _read(beside, SUM_LIMIT, whole=False).decode("utf-8", "replace").splitlines()
    found = [_SUM.fullmatch(line.strip()) for line in lines]
    named = [one for one in found if one and Path(one[2] or path.name).name == path.name]
    if len(named) != 1:
        raise InputError(f"{beside}: this holds no SHA-256 of {path.name}")
    if named[0][1].lower() != sha256(path):
        raise InputError(
            f"{path}: the file is not the one whose SHA-256 is in {beside.name}; it is damaged or "
            "was changed"
        )


def recognise(path: Path) -> str:
    """Tell the format of a file by its content.

    Args:
        path: Any file; ``.gz`` is looked into.

    Returns:
        One of `STRUCTURE_FORMATS` or `TRAJECTORY_FORMATS`.

    Raises:
        InputError: The file is missing, empty, damaged, not what the checksum beside it says (see
            `check_sum`), or of a format that undula does not read; the message names the format
            where it is known.
    """
    if size_of(path) == 0:
        raise InputError(f"{path}: the file is empty, there are no atoms and no frames")
    check_sum(path)
    head = _read(path, _HEAD, whole=False)
    binary = _binary_format(head)
    packed = _is_packed(path)
    if binary in TRAJECTORY_FORMATS and packed:
        raise InputError(f"{path}: this is a packed trajectory ({binary.upper()}), unpack it first")
    found = binary or _text_format(head)
    if found in STRUCTURE_FORMATS or found in TRAJECTORY_FORMATS:
        return found
    if found:
        inside = "holds" if packed else "is"
        raise InputError(
            f"{path}: this {inside} {found}; undula reads PDB, mmCIF, GRO, XTC, TRR and DCD"
        )
    raise InputError(
        f"{path}: the content is of no known format (PDB, mmCIF, GRO, XTC, TRR or DCD)"
    )


def read_text(path: Path) -> bytes:
    """Return the whole content of a text file, unpacked and without a byte-order mark.

    Raises:
        InputError: The gzip data is cut or damaged, or the text is longer than `TEXT_LIMIT`.
    """
    return _read(path, TEXT_LIMIT, whole=True)


def _is_packed(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == _GZIP


def _read(path: Path, limit: int, *, whole: bool) -> bytes:
    chunks: list[bytes] = []
    total = 0
    with path.open("rb") as raw:
        packed = raw.read(2) == _GZIP
        raw.seek(0)
        file = cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if packed else raw
        try:
            while total <= limit and (chunk := file.read(min(2**20, limit + 1 - total))):
                chunks.append(chunk)
                total += len(chunk)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise InputError(f"{path}: the gzip data is cut or damaged") from error
    if total > limit and whole:
        raise InputError(
            f"{path}: more than {limit // 2**20} MiB of text; store a long trajectory as XTC"
        )
    content = b"".join(chunks)[:limit]
    return content.removeprefix(b"\xef\xbb\xbf")


def _binary_format(head: bytes) -> str | None:
    for magic, name in _BINARY:
        if head.startswith(magic):
            return name
    if head[4:8] in (b"CORD", b"VELD") or head[8:12] in (b"CORD", b"VELD"):
        return "dcd"
    if head.startswith(_GZIP):
        return "data packed twice"
    return "binary data of no known format" if b"\x00" in head else None


def _text_format(head: bytes) -> str | None:
    text = head.decode("latin-1").replace("\r\n", "\n")
    if re.match(r"(\s|#.*\n)*(data_|loop_)", text, re.IGNORECASE):
        return "mmcif"
    for pattern, name in _TEXT:
        if re.match(pattern, text, re.IGNORECASE):
            return name
    if _PDB_RECORD.search(text):
        return "pdb"
    if _GRO.match(text):
        return "gro"
    control = sum(character < " " and character not in "\t\n\r\f" for character in text)
    return "binary data of no known format" if control > len(text) // 50 else None
