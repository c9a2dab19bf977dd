"""ATLAS: simulations of 1,390 single-chain proteins, three replicas of 100 ns each.

Vander Meersche et al., Nucleic Acids Research 52 (2024) D384. The database offers, for each
protein, a zip archive of its structure and the three trajectories without water, about 10,000
frames 10 ps apart and superposed. As far as we know the data come under CC-BY-NC 4.0 (naming the
authors, no commercial use), and what is made from them, such as a data set or weights, may fall
under it too. Terms can change and this file cannot know: read those on the database's pages.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from undula import atomic
from undula.data.prepare import check_free, prepare, write_record
from undula.data.prepare_config import PrepareConfig
from undula.errors import InputError, UsageError
from undula.io.archives import archive_members, extract
from undula.io.datasets import Dataset
from undula.io.downloads import DownloadConfig, NotOnServerError, download, verify_fetched

BASE_URL = "https://www.dsimb.inserm.fr/ATLAS/api/ATLAS/protein/{name}"
"""Where one protein's archive is; ``{name}`` stands for its name."""
URL_VARIABLE = "UNDULA_ATLAS_URL"
"""The environment variable that replaces `BASE_URL`: a mirror, or a folder behind a web server."""
TERMS = {
    "source": "ATLAS, https://www.dsimb.inserm.fr/ATLAS",
    "licence": "CC-BY-NC-4.0, as far as undula knows; read the terms on the database's pages",
    "cite": "Vander Meersche, Cretin, Gheeraert, Gelly, Galochkina: ATLAS: protein flexibility "
    "description from atomistic molecular dynamics simulations. Nucleic Acids Research 52 (2024) "
    "D384-D392, doi 10.1093/nar/gkad1084",
}
"""What is recorded beside the data."""
RECORD = "atlas.json"
"""In a folder of data sets: which there are, and the terms."""
PREPARE_CONFIG = PrepareConfig(stride=300)
"""Every 300th frame, as in the paper: 33 or 34 a replica, 100 or 102 a protein."""

_NAME = re.compile(r"[0-9][a-z0-9]{3}_[A-Za-z0-9]{1,4}")
_REPLICA = r"(?:_prod)?_R([1-9])(?:_fit)?\.xtc"


@dataclass(frozen=True, kw_only=True)
class Protein:
    """One protein's files.

    Attributes:
        name: PDB code and chain, such as ``1k5n_A``.
        topology: The PDB file that names the atoms.
        replicas: Number of the replica → its XTC file; each began with other velocities.
    """

    name: str
    topology: Path
    replicas: Mapping[int, Path]


@dataclass(frozen=True, kw_only=True)
class PreparedAtlas:
    """What `prepare_atlas` made.

    Attributes:
        datasets: Name → data set.
        skipped: Name → why there is none.
    """

    datasets: Mapping[str, Dataset]
    skipped: Mapping[str, str]


def check_name(name: str) -> str:
    """Return the name of a protein if it can be one.

    Raises:
        UsageError: It is no PDB code in lower case, underscore, chain.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} is no ATLAS name; they are a PDB code in lower case and a chain, as 1k5n_A"
        )
    return name


def fetch(
    name: str,
    out: Path,
    *,
    base_url: str | None = None,
    sha256: str | None = None,
    config: DownloadConfig | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Path:
    """Bring one protein from the database: its structure and its three replicas.

    In ``OUT/NAME`` lie afterwards ``NAME.pdb``, ``NAME_R1.xtc`` to ``NAME_R3.xtc`` and, written
    last, ``NAME.json`` with address, hashes, licence and citation. An archive of about 600 MB
    comes first, and is removed when it is unpacked. A call that was cut goes on; one that was
    complete checks the files and returns. The database publishes no hashes: unless you know one,
    the archive's own check sums must do.

    Args:
        name: Such as ``1k5n_A``.
        out: The folder in which the protein's folder is made.
        base_url: Address with ``{name}``; by default `URL_VARIABLE`'s, else `BASE_URL`.
        sha256: Hash of the archive, if known.
        config: Patience of the download.
        say: Called with a line for each step.

    Returns:
        The protein's folder.

    Raises:
        UsageError: No possible name, an address without ``{name}``, or a folder of another origin.
        InputError: The database has no such protein; the archive is damaged, unsafe or lacks a
            file; or a file here has changed since it came.
        MachineError: Network or disk stand in the way.
    """
    check_name(name)
    address = base_url or os.environ.get(URL_VARIABLE) or BASE_URL
    if "{name}" not in address:
        raise UsageError(f"the address {address} should have {{name}} where the name belongs")
    folder, archive = out / name, out / f"{name}.zip"
    if (folder / f"{name}.json").exists():
        verify_fetched(folder)
        archive.unlink(missing_ok=True)
        say(f"{folder} is complete")
        return folder
    if folder.exists() and not (archive.exists() and folder.is_dir()):
        raise UsageError(f"{folder} exists and was not made by a fetch; choose another with --out")
    url = address.replace("{name}", name)
    try:
        came = download(url, archive, begins=b"PK", sha256=sha256, config=config, say=say)
    except NotOnServerError as error:
        raise InputError(f"ATLAS has no {name}: {error}") from error
    say(f"{name}: {came.size / 1e6:.1f} MB, SHA-256 {came.sha256}")
    try:
        wanted = _wanted(name, archive)
        hashes = extract(archive, {member: folder / file for member, file in wanted.items()})
    except InputError as error:
        archive.unlink()
        raise InputError(f"{error}; it was removed") from error
    atomic.write_json(
        folder / f"{name}.json",
        {
            **TERMS,
            "name": name,
            "archive": {"url": url, "sha256": came.sha256, "size": came.size},
            "files": {wanted[member]: digest for member, digest in hashes.items()},
        },
    )
    archive.unlink()
    return folder


def proteins(folder: Path) -> dict[str, Protein]:
    """Find the proteins in a folder, or in its folders, by the layout of the database.

    Files are ``NAME.pdb`` and ``NAME_R1.xtc`` or, as in some archives, ``NAME_prod_R1_fit.xtc``.

    Returns:
        Name → files, sorted; a protein may have no replicas.

    Raises:
        InputError: No folder, no protein, or one of them twice.
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}")
    found: dict[str, Protein] = {}
    for topology in sorted([*folder.glob("*.pdb"), *folder.glob("*/*.pdb")]):
        name = topology.stem
        if not _NAME.fullmatch(name):
            continue
        if name in found:
            raise InputError(f"{name} is in {folder} twice: {found[name].topology} and {topology}")
        files = sorted(path.name for path in topology.parent.glob(f"{name}_*.xtc"))
        replicas = {k: topology.parent / v for k, v in _replicas(name, files, folder).items()}
        found[name] = Protein(name=name, topology=topology, replicas=replicas)
    if not found:
        raise InputError(f"{folder} holds no protein of ATLAS: NAME.pdb with NAME_R1.xtc and so on")
    return dict(sorted(found.items()))


def prepare_atlas(
    folder: Path,
    out: Path,
    config: PrepareConfig = PREPARE_CONFIG,
    *,
    names: Sequence[str] | None = None,
    holdout_replica: int | None = None,
    strict: bool = False,
    memory_limit: int | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> PreparedAtlas:
    """Make one data set for each protein of a folder, its replicas apart; go on when one fails.

    `undula.data.prepare.prepare` does the work, and goes on where a call was killed. The paper
    saves every 300th of "30,000 timesteps"; those are three replicas one after another, which
    have no common time, so that each is a trajectory of its own here. ``OUT/atlas.json`` records
    licence and citation, what was made by this call and those before, and what it skipped and why.

    Args:
        folder: Of `fetch`, or any that has the database's files.
        out: The folder in which a folder for each protein is made.
        config: The rules.
        names: Which proteins; by default all.
        holdout_replica: The replica that training must not read.
        strict: Skip a protein that would get a notice.
        memory_limit: Of the process, bytes; by default what there is.
        say: Called with one line for each protein, and one for each step done.

    Returns:
        The data sets, and what was skipped.

    Raises:
        InputError: There are no proteins, or one of ``names`` is not there.
        UsageError: An earlier call had other rules.
        MachineError: The disk is full, memory too small or the like: the others would fail too.

    Source: MoE-DSR, Experiments, Dataset. Differs from it: replicas are kept apart.
    """
    found = proteins(folder)
    missing = sorted(set(names or ()) - found.keys())
    if missing:
        raise InputError(f"{folder} has no {missing[0]}")
    chosen = [found[name] for name in sorted(set(names or found))]
    check_free(out / RECORD)
    datasets, skipped = {}, {}
    for number, protein in enumerate(chosen, 1):
        say(f"{protein.name}: {number} of {len(chosen)}, {len(protein.replicas)} replicas")
        try:
            held = _held_out(protein, holdout_replica)
            trajectories = [path for _, path in sorted(protein.replicas.items())]
            datasets[protein.name] = prepare(
                protein.topology,
                trajectories,
                out / protein.name,
                config,
                holdout=held,
                strict=strict,
                memory_limit=memory_limit,
                say=say,
            )
        except InputError as error:
            skipped[protein.name] = str(error)
    made = {name: dataset.sha256 for name, dataset in datasets.items()}
    write_record(out / RECORD, TERMS, made, skipped)
    return PreparedAtlas(datasets=datasets, skipped=skipped)


def _wanted(name: str, archive: Path) -> dict[str, str]:
    """Return member of the archive → name of our file, complete or not at all."""
    members: dict[str, str] = {}
    for member in archive_members(archive):
        file = PurePosixPath(member).name
        if file in members and file.startswith(name):
            raise InputError(f"{archive} holds {file} twice")
        members[file] = member
    replicas = _replicas(name, sorted(members), archive)
    wanted = {f"{name}.pdb": f"{name}.pdb"} | {
        replicas.get(number, f"{name}_R{number}.xtc"): f"{name}_R{number}.xtc"
        for number in (1, 2, 3)
    }
    lacking = sorted(file for file in wanted if file not in members)
    if lacking:
        raise InputError(f"the archive of {name} has no {' and no '.join(lacking)}")
    return {members[file]: ours for file, ours in wanted.items()}


def _replicas(name: str, files: Sequence[str], place: Path) -> dict[int, str]:
    found: dict[int, str] = {}
    for file in files:
        match = re.fullmatch(re.escape(name) + _REPLICA, file)
        if match and int(match[1]) in found:
            raise InputError(f"{place} has replica {match[1]} of {name} twice: {file}")
        if match:
            found[int(match[1])] = file
    return found


def _held_out(protein: Protein, holdout_replica: int | None) -> list[Path]:
    """Return the trajectory to hold out, having checked that the files are all there."""
    place = protein.topology.parent
    for unfinished in (place / f"{protein.name}.zip", place.parent / f"{protein.name}.zip"):
        if unfinished.exists() or unfinished.with_name(unfinished.name + ".part").exists():
            raise InputError(f"{protein.name} is not complete: fetch it again to finish")
    if not protein.replicas:
        raise InputError(f"{place} has no trajectory of {protein.name}, as {protein.name}_R1.xtc")
    if holdout_replica is None:
        return []
    if holdout_replica not in protein.replicas:
        raise InputError(f"{place} has no replica {holdout_replica} of {protein.name}")
    return [protein.replicas[holdout_replica]]
