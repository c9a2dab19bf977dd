"""Files from the network: resumed where they were cut, checked, and whole under their name."""

from __future__ import annotations

import fcntl
import http.client
import os
import re
import shutil
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import undula
from undula import atomic
from undula.errors import InputError, MachineError, UsageError
from undula.io.datasets import check_names

_HEAD = 512
_PIECE = 1 << 18
_LONGEST_PAUSE_S = 60.0
_WORTH_ANOTHER_TRY = (408, 425, 429, 500, 502, 503, 504)


@dataclass(frozen=True, kw_only=True)
class DownloadConfig:
    """How patient a download is.

    Attributes:
        timeout_s: How long a server may be silent, s.
        attempts: How often one call connects, the first time included.
        pause_s: Before the second attempt, s; twice as long before each further one. A server
            that asks for a longer pause gets it, up to a minute.
        largest: Bytes beyond which a file is refused.
    """

    timeout_s: float = 20.0
    attempts: int = 5
    pause_s: float = 1.0
    largest: int = 64 * 2**30

    def __post_init__(self) -> None:
        for name in ("timeout_s", "attempts", "largest"):
            if not getattr(self, name) > 0:
                raise UsageError(f"{name} should be positive, not {getattr(self, name)}")
        if not self.pause_s >= 0:
            raise UsageError(f"pause_s should not be negative, but is {self.pause_s}")


@dataclass(frozen=True, kw_only=True)
class Download:
    """A file that came whole.

    Attributes:
        url: Where it was asked for.
        path: Where it lies.
        sha256: Of its content, in hexadecimal.
        size: Bytes.
    """

    url: str
    path: Path
    sha256: str
    size: int


class NotOnServerError(InputError):
    """The server answers, and has nothing of that name."""


class _CutError(Exception):
    """An attempt failed in a way that another may not; the message says how."""

    def __init__(self, message: str, pause_s: float = 0.0) -> None:
        super().__init__(message)
        self.pause_s = pause_s


def download(
    url: str,
    path: Path,
    *,
    begins: bytes = b"",
    sha256: str | None = None,
    config: DownloadConfig | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Download:
    """Bring a file from a web server; go on where an earlier call was cut.

    What has come lies in ``PATH.part``, beside ``PATH.part.json``, which says of which version of
    which file it is a part. It is only continued if the server still has that version. The file
    gets its name when all of it is there and its hash, if one was given, is right. A web page
    where a file was asked for, as the login page of a hotel's network, is refused.

    Args:
        url: http or https. A redirection from https to http is not followed.
        path: Where the file should lie; a file that lies there already is only checked.
        begins: The bytes with which such a file begins, such as ``PK`` for a zip archive.
        sha256: The hash it should have, where one is known.
        config: Patience.
        say: Called with a line now and then.

    Returns:
        Where the file lies, and its hash.

    Raises:
        UsageError: The address is none of the web.
        NotOnServerError: The server has no such file.
        InputError: The file is of another kind, too large, or has another hash than promised.
        MachineError: No answer, a web page, no space, or another process brings the same file.
    """
    config = config or DownloadConfig()
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).netloc:
        raise UsageError(f"{url} is no web address: it should begin with https:// or http://")
    if sha256 is not None and not re.fullmatch("[0-9a-fA-F]{64}", sha256):
        raise UsageError(f"{sha256} is no SHA-256: it should have 64 hexadecimal digits")
    part = path.with_name(path.name + ".part")
    record = path.with_name(path.name + ".part.json")
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with _held(part) as file:
                _receive(url, file, record, begins, config, say)
                _check_hash(part, sha256, url, (part, record))
                atomic.publish(part, path)
            record.unlink(missing_ok=True)
        except OSError as error:
            raise MachineError(f"cannot write {path}: {error.strerror or error}") from error
    return Download(
        url=url, path=path, sha256=_check_hash(path, sha256, path), size=path.stat().st_size
    )


def verify_fetched(folder: Path) -> dict[str, Any]:
    """Compare a folder that was fetched with its record, ``NAME.json``; return the record.

    Raises:
        InputError: The record is missing or damaged, or a file is missing or has changed.
    """
    record = folder / f"{folder.resolve().name}.json"
    described = atomic.read_json(record)
    files = described.get("files")
    if not isinstance(files, dict) or not files:
        raise InputError(f"{record} names no files")
    check_names(folder, files)
    for file, promised in files.items():
        path = folder / file
        if not path.is_file():
            raise InputError(f"{path} is missing")
        if atomic.sha256(path) != promised:
            raise InputError(f"{path} has changed since it was fetched")
    return described


def _check_hash(
    path: Path, promised: str | None, what: object, useless: tuple[Path, ...] = ()
) -> str:
    found = atomic.sha256(path)
    if promised is not None and found != promised.lower():
        for file in useless:
            file.unlink(missing_ok=True)
        raise InputError(f"{what} has the SHA-256 {found}, not {promised.lower()} as promised")
    return found


@contextmanager
def _held(part: Path) -> Iterator[IO[bytes]]:
    """Open the partial file for this process alone; the lock ends with the process."""
    with part.open("ab+", buffering=0) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise MachineError(f"another process is writing {part}") from error
        try:
            yield file
        finally:
            if part.exists() and part.stat().st_size == 0:
                part.unlink()


def _receive(
    url: str,
    file: IO[bytes],
    record: Path,
    begins: bytes,
    config: DownloadConfig,
    say: Callable[[str], None],
) -> None:
    """Attempt until the file is whole or the attempts are spent."""
    pause, reason = config.pause_s, ""
    for attempt in range(config.attempts):
        try:
            return _attempt(url, file, record, begins, config, say)
        except _CutError as error:
            reason = str(error)
            say(f"{reason}; attempt {attempt + 1} of {config.attempts}")
            if attempt + 1 < config.attempts:
                time.sleep(min(max(pause, error.pause_s), _LONGEST_PAUSE_S))
                pause *= 2
    kept = os.fstat(file.fileno()).st_size
    rest = f"; {kept} bytes are kept, and the same command goes on from there" if kept else ""
    raise MachineError(f"{url}: {reason}; gave up after {config.attempts} attempts{rest}")


def _attempt(
    url: str,
    file: IO[bytes],
    record: Path,
    begins: bytes,
    config: DownloadConfig,
    say: Callable[[str], None],
) -> None:
    have = os.fstat(file.fileno()).st_size
    known = _known_version(record, url) if have else {}
    if have and not known:
        have = _start_over(file)
    headers = {"User-Agent": f"undula/{undula.__version__}", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if known["validator"]:
            headers["If-Range"] = known["validator"]
    request = urllib.request.Request(url, headers=headers)
    with _network_troubles(url):
        try:
            with _opener().open(request, timeout=config.timeout_s) as response:
                total = _agreed_total(response, file, have, known)
                if response.status == 200:
                    have = _start_over(file)
                    head = response.read(_HEAD)
                    _check_kind(url, head, response.headers, begins)
                    _check_size(url, total, config, record.parent)
                    version = {"url": url, "validator": _validator(response.headers)}
                    atomic.write_json(record, {**version, "total": total})
                    _write(file, head)
                    have = len(head)
                _copy(url, response, file, have, total, config, say)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 416 and have and have == known["total"]:
                return
            if error.code == 416:
                _start_over(file)
                raise _CutError(f"{url} has changed since its first part came") from error
            raise _refusal(url, error) from error


def _known_version(record: Path, url: str) -> Mapping[str, Any]:
    """Return what is known of the file of which a part lies here, or nothing if it is useless."""
    if not record.is_file():
        return {}
    known = atomic.read_json(record)
    if known.get("url") != url or not (known.get("validator") or known.get("total")):
        return {}
    return known


def _agreed_total(
    response: http.client.HTTPResponse, file: IO[bytes], have: int, known: Mapping[str, Any]
) -> int | None:
    """Return the size of the whole file, having checked that a part continues the one here."""
    if response.status == 200:
        length = response.headers.get("Content-Length", "")
        return int(length) if length.isdecimal() else None
    span = re.fullmatch(
        r"bytes (\d+)-(\d+)/(\d+|\*)", response.headers.get("Content-Range", "").strip()
    )
    if response.status != 206 or not span or int(span[1]) != have:
        _start_over(file)
        raise _CutError(f"the server answered with status {response.status} and another part")
    total = None if span[3] == "*" else int(span[3])
    if known["total"] is not None and total != known["total"]:
        _start_over(file)
        raise _CutError("the file on the server has changed since its first part came")
    return total


def _copy(
    url: str,
    response: http.client.HTTPResponse,
    file: IO[bytes],
    have: int,
    total: int | None,
    config: DownloadConfig,
    say: Callable[[str], None],
) -> None:
    spoken = time.monotonic()
    while piece := response.read1(_PIECE):
        have += len(piece)
        if have > config.largest:
            _start_over(file)
            raise InputError(f"{url} is larger than {config.largest} bytes")
        _write(file, piece)
        if time.monotonic() - spoken > 5:
            spoken = time.monotonic()
            of = f" of {total / 1e6:.0f}" if total else ""
            say(f"{url}: {have / 1e6:.0f}{of} MB")
    if total is not None and have != total:
        raise _CutError(f"the connection ended after {have} of {total} bytes")
    if have == 0:
        raise _CutError("the server sent an empty file")


def _write(file: IO[bytes], data: bytes) -> None:
    try:
        while data:
            data = data[file.write(data) :]
    except OSError as error:
        raise MachineError(f"cannot write {file.name}: {error.strerror or error}") from error


def _start_over(file: IO[bytes]) -> int:
    file.truncate(0)
    return 0


def _check_kind(url: str, head: bytes, headers: Message, begins: bytes) -> None:
    start = head.lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")) or (
        headers.get_content_type() == "text/html" and not (begins and head.startswith(begins))
    ):
        raise MachineError(
            f"{url} answered with a web page instead of the file, perhaps the login page of this "
            "network; open the address in a browser to see it"
        )
    if head and not head.startswith(begins):
        raise InputError(
            f"{url} is not the kind of file that was asked for: it begins {head[:8]!r}"
        )


def _check_size(url: str, total: int | None, config: DownloadConfig, folder: Path) -> None:
    if total is None:
        return
    if total > config.largest:
        raise InputError(f"{url} has {total} bytes, more than {config.largest}")
    free = shutil.disk_usage(folder).free
    if total > free:
        raise MachineError(f"{url} has {total} bytes, but {folder} has room for {free}")


def _validator(headers: Message) -> str | None:
    """Return what tells this version of the file from others, in a form that If-Range allows."""
    tag = headers.get("ETag", "")
    return tag if tag.startswith('"') else headers.get("Last-Modified")


def _refusal(url: str, error: urllib.error.HTTPError) -> Exception:
    if error.code in (404, 410):
        return NotOnServerError(f"the server has no {url} (status {error.code})")
    if error.code in _WORTH_ANOTHER_TRY:
        asked = error.headers.get("Retry-After", "") if error.headers else ""
        return _CutError(
            f"the server answered with status {error.code}",
            float(asked) if asked.isdecimal() else 0.0,
        )
    return MachineError(f"{url}: the server refused with status {error.code} {error.reason}")


@contextmanager
def _network_troubles(url: str) -> Iterator[None]:
    """Turn what the network raises into a reason for another attempt, or for none."""
    try:
        yield
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise MachineError(f"{url}: its certificate is not valid: {error.reason}") from error
        raise _CutError(f"no answer ({error.reason})") from error
    except TimeoutError as error:
        raise _CutError("the server fell silent") from error
    except (OSError, http.client.HTTPException) as error:
        raise _CutError(f"the connection broke ({error or type(error).__name__})") from error


class SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follow redirections on the web, but not from https to http."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: Any,
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        """Return the next request, or raise a `MachineError` where it is not safe."""
        scheme = urlsplit(newurl).scheme
        if scheme not in ("http", "https") or (req.type == "https" and scheme != "https"):
            raise MachineError(f"{req.full_url} leads to {newurl}, which is not safe to follow")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(SafeRedirects)
