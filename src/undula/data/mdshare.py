"""Alanine dipeptide of mdshare: three simulations of 250 ns, 1 ps a frame, water removed.

AMBER ff-99SB-ILDN in 651 TIP3P waters at 300 K, by ACEMD; made by the Computational Molecular
Biology Group of Freie Universität Berlin and offered under CC-BY-4.0. DoMiNO's alanine dipeptide.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from undula import atomic
from undula.errors import InputError, UsageError
from undula.io.downloads import DownloadConfig, NotOnServerError, download, verify_fetched

BASE_URL = "http://ftp.imp.fu-berlin.de/pub/cmb-data/"
"""Where the files are. The server speaks no https: the MD5 of each file is known and checked."""
URL_VARIABLE = "UNDULA_MDSHARE_URL"
"""The environment variable that replaces `BASE_URL`: a mirror, or a folder on this machine."""
TERMS = {
    "source": "mdshare, Computational Molecular Biology Group, Freie Universität Berlin, "
    "https://markovmodel.github.io/mdshare/ALA2",
    "licence": "CC-BY-4.0, as far as undula knows; read the terms on the source's pages",
    "cite": "Nüske, Wu, Prinz, Wehmeyer, Clementi, Noé: Markov state models from short "
    "non-equilibrium simulations. Journal of Chemical Physics 146 (2017) 094104; Wehmeyer, Noé: "
    "Time-lagged autoencoders. Journal of Chemical Physics 148 (2018) 241703",
}
"""What is recorded beside the data."""


@dataclass(frozen=True, kw_only=True)
class PublishedFile:
    """A file as mdshare's catalogue promises it.

    Attributes:
        name: Ours, in the layout of the other trajectories.
        size: Bytes.
        md5: Of its content, in hexadecimal.
    """

    name: str
    size: int
    md5: str


FILES = {
    "alanine-dipeptide-nowater.pdb": PublishedFile(
        name="ala2.pdb", size=1_813, md5="728635667ed4937cf4a0e5b7c801d9ea"
    ),
    "alanine-dipeptide-0-250ns-nowater.xtc": PublishedFile(
        name="ala2_R1.xtc", size=42_909_936, md5="e82ba584d8e64491f30bd1d9dd019687"
    ),
    "alanine-dipeptide-1-250ns-nowater.xtc": PublishedFile(
        name="ala2_R2.xtc", size=42_911_308, md5="96b7686aa28a459d51a0d77c2dd0316e"
    ),
    "alanine-dipeptide-2-250ns-nowater.xtc": PublishedFile(
        name="ala2_R3.xtc", size=42_907_500, md5="6d3a8d9aecb3aa0e0a1ea9b195b7dfe0"
    ),
}
"""Name on the server → what it should be, by mdshare's catalogue."""


def fetch(
    out: Path,
    *,
    base: str | None = None,
    config: DownloadConfig | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Path:
    """Bring alanine dipeptide: its structure and three trajectories of 250,000 frames.

    In ``OUT/ala2`` lie afterwards ``ala2.pdb``, ``ala2_R1.xtc`` to ``ala2_R3.xtc`` and, written
    last, ``ala2.json`` with addresses, hashes, licence and citation; 129 MB. A call that was cut
    goes on; one that was complete checks the files and returns. The trajectories are as they were
    published: not superposed.

    Args:
        out: The folder in which ``ala2`` is made.
        base: Address or folder that has the files; by default `URL_VARIABLE`'s, else `BASE_URL`.
        config: Patience of the download.
        say: Called with a line for each step.

    Returns:
        The folder.

    Raises:
        UsageError: The base is neither an address nor a folder.
        InputError: A file is not there, or not the one that the catalogue promises.
        MachineError: Network or disk stand in the way.
    """
    place = base or os.environ.get(URL_VARIABLE) or BASE_URL
    folder = out / "ala2"
    record = folder / "ala2.json"
    if record.exists():
        verify_fetched(folder)
        say(f"{folder} is complete")
        return folder
    if "://" not in place and not Path(place).is_dir():
        raise UsageError(f"{place} is neither a web address nor a folder")
    hashes = {}
    for published, promised in FILES.items():
        path = folder / promised.name
        if "://" in place:
            _bring(f"{place.rstrip('/')}/{published}", path, promised, config, say)
        else:
            _copy(Path(place) / published, path, promised)
        hashes[promised.name] = atomic.sha256(path)
        say(f"{path}: {promised.size / 1e6:.1f} MB, SHA-256 {hashes[promised.name]}")
    origins = {promised.name: published for published, promised in FILES.items()}
    atomic.write_json(
        record, {**TERMS, "name": "ala2", "base": place, "origins": origins, "files": hashes}
    )
    return folder


def _bring(
    url: str,
    path: Path,
    promised: PublishedFile,
    config: DownloadConfig | None,
    say: Callable[[str], None],
) -> None:
    try:
        download(url, path, config=config, say=say)
    except NotOnServerError as error:
        raise InputError(f"{error}; another server: --base") from error
    if not _is(path.read_bytes(), promised):
        path.unlink()
        raise InputError(f"{url} is not the file of mdshare's catalogue; it was removed")


def _copy(source: Path, path: Path, promised: PublishedFile) -> None:
    try:
        content = source.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {source}: {error.strerror or error}") from error
    if not _is(content, promised):
        raise InputError(f"{source} is not the file of mdshare's catalogue")
    atomic.write(path, content)


def _is(content: bytes, promised: PublishedFile) -> bool:
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    return len(content) == promised.size and found == promised.md5
