"""Zip archives from others: only the wanted members, only where we say, never too much."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from undula import atomic
from undula.errors import InputError, MachineError, UsageError, one_line

_PIECE = 1 << 20
_SMALL = 1 << 20
_END = struct.Struct("<4s4H2LH")
_END_64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR_64 = 20
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    NotImplementedError,
    OverflowError,
    ValueError,
    struct.error,
)
"""What zipfile raises for damaged archives."""


@dataclass(frozen=True, kw_only=True)
class ArchiveLimits:
    """What an archive may hold.

    Attributes:
        total: Bytes of all wanted members together, unpacked.
        ratio: How many times larger a member may become; of XTC files it is about 1, of PDB
            files about 5, of zip bombs 1000. Members below 1 MiB are not asked.
        directory: Bytes of the archive's own table of contents.
    """

    total: int = 64 * 2**30
    ratio: float = 100.0
    directory: int = 8 * 2**20

    def __post_init__(self) -> None:
        for name in ("total", "ratio", "directory"):
            if not getattr(self, name) > 0:
                raise UsageError(f"{name} should be positive, not {getattr(self, name)}")


def archive_members(archive: Path, limits: ArchiveLimits | None = None) -> tuple[str, ...]:
    """Return the names of the files in a zip archive, folders left out.

    Raises:
        InputError: It is no zip archive, damaged, encrypted, or unsafe: a member outside the
            archive's folder, a link or device, two of one name, too long a table of contents.
    """
    with _opened(archive, limits or ArchiveLimits()) as opened:
        return tuple(_checked(archive, opened))


def extract(
    archive: Path, wanted: Mapping[str, Path], limits: ArchiveLimits | None = None
) -> dict[str, str]:
    """Unpack some members of a zip archive, each to a path of the caller's choice.

    Names in the archive never decide where something is written. An archive with a member that
    tries to, wanted or not, is refused as a whole. What is unpacked is counted, not believed.

    Args:
        archive: The zip file.
        wanted: Member name → where it should lie.
        limits: Beyond which the archive is refused before anything is written.

    Returns:
        Member name → SHA-256 of its content.

    Raises:
        InputError: As `archive_members`; or a member is missing, too large, or damaged.
        MachineError: No space, or no permission.
    """
    limits = limits or ArchiveLimits()
    with _opened(archive, limits) as opened:
        members = _checked(archive, opened)
        missing = sorted(wanted.keys() - members.keys())
        if missing:
            raise InputError(f"{archive} has no {missing[0]}; it holds {_few(members)}")
        _check_amount(archive, [members[name] for name in wanted], limits)
        return {
            name: _unpack(archive, opened, members[name], path) for name, path in wanted.items()
        }


def read_members(archive: Path, limits: ArchiveLimits | None = None) -> list[tuple[str, bytes]]:
    """Unpack all members of a zip archive into memory.

    Args:
        archive: The zip file.
        limits: Beyond which the archive is refused before anything is unpacked.

    Returns:
        Name and content of each file, in their order.

    Raises:
        InputError: As `archive_members`; or a member is too large or damaged.
    """
    limits = limits or ArchiveLimits()
    with _opened(archive, limits) as opened:
        members = _checked(archive, opened)
        _check_amount(archive, list(members.values()), limits)
        return [(name, _content(archive, opened, one)) for name, one in members.items()]


def _content(archive: Path, opened: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    return b"".join(_pieces(archive, opened, member))


@contextmanager
def _opened(archive: Path, limits: ArchiveLimits) -> Iterator[zipfile.ZipFile]:
    try:
        with archive.open("rb") as file:
            size = _directory_size(file)
            if size > limits.directory:
                raise InputError(
                    f"{archive}: its table of contents has {size} bytes, more than "
                    f"{limits.directory}"
                )
            with zipfile.ZipFile(file) as opened:
                yield opened
    except _DAMAGE as error:
        raise InputError(f"{archive} is not a whole zip archive: {one_line(error)}") from error
    except FileNotFoundError as error:
        raise InputError(f"{archive} is missing") from error


def _directory_size(file: IO[bytes]) -> int:
    """Return how many bytes the table of contents claims, before it is read into memory."""
    length = file.seek(0, os.SEEK_END)
    file.seek(max(0, length - _END.size - 0xFFFF - _LOCATOR_64 - _END_64.size))
    tail = file.read()
    file.seek(0)
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) - at < _END.size:
        raise zipfile.BadZipFile("it has no table of contents")
    size = int(_END.unpack_from(tail, at)[5])
    large = at - _LOCATOR_64 - _END_64.size
    if large >= 0 and tail[large : large + 4] == b"PK\x06\x06":
        size = max(0 if size == 0xFFFFFFFF else size, int(_END_64.unpack_from(tail, large)[8]))
    return size


def _checked(archive: Path, opened: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    members: dict[str, zipfile.ZipInfo] = {}
    for member in opened.infolist():
        name = member.orig_filename
        parts = name.split("/")
        if (
            name.startswith("/")
            or ".." in parts
            or ":" in parts[0]
            or "\\" in name
            or not name.isprintable()
        ):
            raise InputError(f"{archive} is unsafe: the name of its member {name[:60]!r}")
        kind = stat.S_IFMT(member.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise InputError(f"{archive} is unsafe: its member {name[:60]!r} is a link or a device")
        if member.flag_bits & 1:
            raise InputError(f"{archive}: its member {name[:60]!r} is encrypted")
        if member.compress_type not in _METHODS:
            raise InputError(
                f"{archive}: its member {name[:60]!r} is packed in another way than by deflate"
            )
        if name in members:
            raise InputError(f"{archive} holds {name[:60]!r} twice")
        if not member.is_dir():
            members[name] = member
    return members


def _check_amount(archive: Path, members: list[zipfile.ZipInfo], limits: ArchiveLimits) -> None:
    for member in members:
        if member.file_size > max(_SMALL, limits.ratio * member.compress_size):
            raise InputError(
                f"{archive} is unsafe: {member.filename} would grow from {member.compress_size} to "
                f"{member.file_size} bytes"
            )
    total = sum(member.file_size for member in members)
    packed = sum(member.compress_size for member in members)
    if total > limits.total:
        raise InputError(f"{archive} would unpack to {total} bytes, more than {limits.total}")
    if packed > archive.stat().st_size:
        raise InputError(f"{archive} is unsafe: its members overlap")


def _unpack(archive: Path, opened: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> str:
    digest = hashlib.sha256()
    with atomic.replacing(path) as temporary:
        free = shutil.disk_usage(path.parent).free
        if member.file_size > free:
            raise MachineError(
                f"{path} will have {member.file_size} bytes, but there is room for {free}"
            )
        with temporary.open("wb") as target:
            for piece in _pieces(archive, opened, member):
                digest.update(piece)
                target.write(piece)
    return digest.hexdigest()


def _pieces(archive: Path, opened: zipfile.ZipFile, member: zipfile.ZipInfo) -> Iterator[bytes]:
    """Unpack a member piece by piece, as many bytes as it promises."""
    rest = member.file_size
    try:
        with opened.open(member) as source:
            while piece := source.read(_PIECE):
                rest -= len(piece)
                yield piece
    except OSError as error:
        # The table of contents leads to a place that is none.
        raise InputError(f"{archive} is not a whole zip archive: {one_line(error)}") from error
    if rest:
        raise InputError(f"{archive}: its member {member.filename} is cut")


def _few(names: Mapping[str, zipfile.ZipInfo]) -> str:
    first = ", ".join(list(names)[:6]) or "nothing"
    return f"{first}, and {len(names) - 6} more" if len(names) > 6 else first
