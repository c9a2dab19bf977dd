"""Every reader of undula with a whole input of its kind, and what counts as its answer."""

from __future__ import annotations

import gzip
import json
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import chdir, contextmanager
from dataclasses import dataclass, replace
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import gemmi
import mdtraj
import numpy as np
import safetensors.torch
import torch
from mdtraj.formats import TRRTrajectoryFile
from tests.data.fixed_point import swinging, write_fluid
from tests.fuzz.mutations import damaged, damaged_json, damaged_text, odd
from tests.motion.small_systems import argon, pairs, recorded, trained, vibrating, window
from tests.surface.mixtures import LOCAL, bound, stirred
from tests.toy_proteins import SMALL

from undula.cli.configured import read_motion_protocol, read_protocol
from undula.cli.main import main
from undula.cli.sweep import read_space
from undula.config import preset_file
from undula.data.bundled import villin
from undula.data.fluids import load_fluid
from undula.data.prepare import prepare
from undula.data.splits import load_split
from undula.data.velocities import load_velocities
from undula.errors import InputError, UsageError
from undula.io.archives import archive_members, extract
from undula.io.datasets import open_dataset
from undula.io.inspection import inspect
from undula.io.meshes import read_ply, write_ply
from undula.io.recordings import open_recordings
from undula.io.sequences import load_sequences
from undula.io.structures import load_structure
from undula.io.trajectories import load_trajectory, load_whole_structure
from undula.learn.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, save_weights
from undula.motion.forecast import MovingAtoms, forecast_atoms
from undula.motion.trained import TrainedMotion
from undula.surface.forecast import MovingSurface, forecast
from undula.surface.specialisation import ecod_groups
from undula.surface.trained_mixture import load_trained
from undula.types import Mesh

Damage = Callable[[bytes, np.random.Generator], bytes]


@dataclass(frozen=True, kw_only=True)
class Reader:
    """One way into undula.

    Attributes:
        make: Writes a whole input into a folder.
        read: Reads it and returns all numbers that would be used; a second folder may be written.
        damages: By suffix, how a file is damaged; all other files are left whole.
        cases: How many cases every run of the tests tries.
        exact: Whether what is read in spite of damage must be what was written.
    """

    make: Callable[[Path], None]
    read: Callable[[Path, Path], Any]
    damages: Mapping[str, Damage]
    cases: int
    exact: bool = False


def packed(content: bytes, chance: np.random.Generator) -> bytes:
    """Damage what gzip packed, or what is inside."""
    if chance.random() < 0.5:
        return damaged(content, chance)
    return gzip.compress(damaged_text(gzip.decompress(content), chance), mtime=0)


def arrays(content: bytes, chance: np.random.Generator) -> bytes:
    """Damage an .npz archive: its bytes, a member of it, or what a member holds."""
    way = chance.random()
    if way < 0.3:
        return damaged(content, chance)
    out = BytesIO()
    with zipfile.ZipFile(BytesIO(content)) as old, zipfile.ZipFile(out, "w") as new:
        names = old.namelist()
        victim = names[int(chance.integers(len(names)))]
        for name in names:
            inside = old.read(name)
            if name == victim and way < 0.4:
                continue
            if name == victim:
                inside = damaged(inside, chance) if way < 0.6 else _other_array(inside, chance)
            new.writestr(name, inside)
    return out.getvalue()


def _other_array(content: bytes, chance: np.random.Generator) -> bytes:
    """Return an array of another shape or kind, or with odd numbers."""
    value = np.load(BytesIO(content))
    way = int(chance.integers(8))
    if way == 0:
        value = value[..., :-1] if value.ndim else value[None]
    elif way == 1:
        value = value[None]
    elif way == 2:
        kinds = ("f2", "f8", "i8", "u1", "?", "c8", "U3", "i4", "f4")
        with np.errstate(all="ignore"):
            value = value.astype(kinds[int(chance.integers(len(kinds)))])
    elif way == 3:
        value = np.zeros((0, *value.shape[1:]), value.dtype)
    elif value.size:
        value = np.array(value)
        numbers = (np.nan, np.inf, 1e30, -1e300) if value.dtype.kind == "f" else (-1, 0, 127)
        with np.errstate(all="ignore"):
            value.reshape(-1)[int(chance.integers(value.size))] = numbers[
                int(chance.integers(len(numbers)))
            ]
    out = BytesIO()
    np.save(out, value)
    return out.getvalue()


def an_array(content: bytes, chance: np.random.Generator) -> bytes:
    """Damage an .npy file: its bytes, or what it holds."""
    if chance.random() < 0.5:
        return damaged(content, chance)
    return _other_array(content, chance)


def signed_again(content: bytes, chance: np.random.Generator) -> bytes:
    """Damage weights: their bytes, or what they say, with checksums that are right again."""
    if chance.random() < 0.3:
        return damaged(content, chance)
    tensors = safetensors.torch.load(content)
    length = int.from_bytes(content[:8], "little")
    body = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["undula"])
    metadata = body["metadata"]
    if chance.random() < 0.75:
        metadata = odd(metadata, chance)
    else:
        tensors = _odd_tensors(tensors, chance)
    with tempfile.TemporaryDirectory() as folder:
        try:
            save_weights(
                Path(folder) / "a", tensors, metadata if isinstance(metadata, dict) else {}
            )
        except (ValueError, InputError):  # NaN in JSON or tensors is never written.
            return damaged(content, chance)
        return (Path(folder) / "a").read_bytes()


def _odd_tensors(
    tensors: dict[str, torch.Tensor], chance: np.random.Generator
) -> dict[str, torch.Tensor]:
    name = sorted(tensors)[int(chance.integers(len(tensors)))]
    value, way = tensors[name], int(chance.integers(6))
    others = {
        0: lambda: value[..., :0] if value.ndim else value[None],
        1: lambda: value[None],
        2: lambda: value.double() if value.dtype != torch.float64 else value.float(),
        3: lambda: torch.zeros_like(value),
        4: lambda: torch.full_like(value, -1e30 if value.is_floating_point() else -1),
    }
    rest = {key: one for key, one in tensors.items() if key != name}
    return rest if way == 5 else {**rest, name: others[way]()}


TEXT = {
    suffix: damaged_text for suffix in (".pdb", ".gro", ".cif", ".yaml", ".fasta", ".csv", ".txt")
}
BYTES = {suffix: damaged for suffix in (".xtc", ".trr", ".dcd", ".ply", ".zip")}
FOLDERS = {".json": damaged_json, ".npy": an_array, ".safetensors": signed_again}


@contextmanager
def in_use() -> Iterator[None]:
    """Let a refusal of what is served be no refusal of a file, which would name one."""
    try:
        yield
    except InputError as error:
        raise UsageError(str(error)) from error


@cache
def peptide() -> mdtraj.Trajectory:
    """Return six residues of villin with hydrogens in 12 frames."""
    topology, trajectory, _ = villin()
    frames = mdtraj.load(str(trajectory), top=str(topology))
    return frames.atom_slice(frames.topology.select("resid < 6"))[:12]


def heavy() -> mdtraj.Trajectory:
    """Return the same without hydrogens."""
    return peptide().atom_slice(peptide().topology.select("element != H"))


def _pdb(folder: Path) -> None:
    peptide()[0].save_pdb(str(folder / "a.pdb"))


def _gro(folder: Path) -> None:
    peptide()[:3].save_gro(str(folder / "a.gro"))


def _mmcif(folder: Path) -> None:
    _pdb(folder)
    gemmi.read_structure(str(folder / "a.pdb")).make_mmcif_document().write_file(
        str(folder / "a.cif")
    )
    (folder / "a.pdb").unlink()


def _gz(folder: Path) -> None:
    _pdb(folder)
    (folder / "a.pdb.gz").write_bytes(gzip.compress((folder / "a.pdb").read_bytes(), mtime=0))
    (folder / "a.pdb").unlink()


def _models(folder: Path) -> None:
    heavy()[:4].save_pdb(str(folder / "a.pdb"))


def _structure(folder: Path, out: Path) -> Any:
    path = next(folder.iterdir())
    told = inspect(path)
    found = load_structure(path) if "surface" in told.families else load_whole_structure(path)
    return [found.positions, found.box, found.vdw_radii, told.as_dict()]


def _trajectory(suffix: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        heavy()[0].save_pdb(str(folder / "top.pdb"))
        if suffix == "trr":
            with TRRTrajectoryFile(str(folder / "run.trr"), "w") as file:
                count, zero = heavy().n_frames, np.zeros(heavy().n_frames, dtype=np.float32)
                box = np.tile(5 * np.eye(3, dtype=np.float32), (count, 1, 1))
                steps = np.arange(count, dtype=np.int32)
                times = 2 * steps.astype(np.float32)
                file._write(heavy().xyz, times, steps, box, zero, vel=0.1 * heavy().xyz)
        else:
            heavy().save(str(folder / f"run.{suffix}"))

    return make


def _frames(folder: Path, out: Path) -> Any:
    path = next(path for path in folder.iterdir() if path.stem == "run")
    read = load_trajectory(folder / "top.pdb", path)
    assert_right(read.positions.numpy(), 10 * heavy().xyz)
    return [read.positions, read.times_ps, read.box, read.velocities]


class TurnedError(Exception):
    """A frame was read in which atoms are wrong by 1 Å and more, but at possible places."""


def assert_right(found: np.ndarray, truth: np.ndarray) -> None:
    """Assert that every frame is one of the true ones, each atom nearer than a bond is long.

    Raises:
        TurnedError: An atom is off by 1 Å or more.
    """
    wrong = np.linalg.norm(found[:, None] - truth[None], axis=-1).max(axis=-1).min(axis=1)
    assert wrong.max() < 2.3, f"a frame is wrong by {wrong.max():.2f} Å"
    if wrong.max() >= 1.0:
        raise TurnedError(f"a frame is wrong by {wrong.max():.2f} Å")


def _read_models(folder: Path, out: Path) -> Any:
    read = load_trajectory(folder / "a.pdb", folder / "a.pdb")
    return [read.positions, read.times_ps, read.box]


def _fluid(folder: Path) -> None:
    write_fluid(folder / "a.npz", *swinging(12, 5, 0), potential_kj_mol=np.arange(12.0))


def _read_fluid(folder: Path, out: Path) -> Any:
    system, frames = load_fluid(folder / "a.npz")
    return [system.structure.positions, system.masses, frames.positions, frames.velocities,
            frames.box, frames.potential, frames.frame_ps]  # fmt: skip


def _velocities(folder: Path) -> None:
    velocity = np.random.default_rng(0).integers(-99, 99, (5, peptide().n_atoms, 3), np.int8)
    np.savez(
        folder / "a.npz", velocity=velocity, velocity_unit_nm_per_ps=np.float64(0.005),
        potential_kj_mol=np.arange(9.0),
    )  # fmt: skip


@cache
def _whole() -> Any:
    with tempfile.TemporaryDirectory() as folder:
        _pdb(Path(folder))
        return load_whole_structure(Path(folder) / "a.pdb")


def _read_velocities(folder: Path, out: Path) -> Any:
    return load_velocities(folder / "a.npz", _whole())


def _recordings(folder: Path) -> None:
    runs = [vibrating(2, 9, torch.Generator().manual_seed(k)) for k in range(2)]
    recorded(folder, pairs(2), runs, reference=torch.zeros(4, 3))


def _read_recordings(folder: Path, out: Path) -> Any:
    opened = open_recordings(folder)
    opened.verify()
    told = [opened.frame_ps, opened.reference, opened.system.masses, opened.system.charges]
    for one in opened.recordings:
        told += [*one.slice(0, len(one)), one.velocity(0), one.frame_ps, one.start_ps]
        told += [None if one.potential is None else np.array(one.potential)]
        told += [one.differenced_velocity(len(one) // 2)]
    return told


def _dataset(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as raw:
        heavy()[0].save_pdb(f"{raw}/a.pdb")
        heavy()[:3].save_xtc(f"{raw}/run.xtc")
        prepare(Path(f"{raw}/a.pdb"), [Path(f"{raw}/run.xtc")], folder, SMALL)


def _read_dataset(folder: Path, out: Path) -> Any:
    opened = open_dataset(folder, verify=True)
    told = [opened.structure.positions, opened.manifest["request"]["rules"]["probe"]]
    for one in opened.trajectories:
        told += [one.times_ps, np.array(one.positions), one.fixed, *one.pool_rows, one.holdout]
        for frame in range(len(one)):
            told += [one.surface(frame)[:5], one.pool(frame)[:5], one.fixed_distances(frame)]
    return told


def _checkpoint(folder: Path) -> None:
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(1, dtype=torch.float64)}
    optimizer = {"a/exp_avg": torch.zeros(2, 3), "a/step": torch.tensor(7.0)}
    state = {"configuration": {"model": {"width": 3}}, "position": {"step": 7, "best": 0.5}}
    checkpoint = Checkpoint(
        step=7, tensors={"weights": tensors, "optimizer": optimizer}, state=state
    )
    save_checkpoint(folder, checkpoint)


def _read_checkpoint(folder: Path, out: Path) -> Any:
    found = load_checkpoint(folder / "checkpoints" / "00000007")
    # safetensors returns tensors in any order.
    return [some[name] for some in found.tensors.values() for name in sorted(some)]


def _mixture(folder: Path) -> None:
    bound(stirred(LOCAL)).save(folder)


@cache
def _first() -> Any:
    with tempfile.TemporaryDirectory() as folder:
        heavy()[0].save_pdb(f"{folder}/a.pdb")
        return load_structure(f"{folder}/a.pdb")


def _read_mixture(folder: Path, out: Path) -> Any:
    model = load_trained(folder)
    sample = 0 if model.distributional else None
    with in_use():
        moving = forecast(_first(), [20.0], model, samples=2 if model.distributional else 0)
        values = moving.sdf(_first().positions[:9] + 1.0, 20.0, sample)
    return [model.notes, model.horizon_ps, values]


def _surface(folder: Path) -> None:
    for path in villin()[2].glob("*.safetensors"):
        (folder / path.name).write_bytes(path.read_bytes())


@cache
def _villin() -> Any:
    return load_structure(villin()[0])


def _read_surface(folder: Path, out: Path) -> Any:
    model = load_trained(folder)
    with in_use():
        moving = forecast(_villin(), [20.0], model)
        values = moving.sdf(_villin().positions[:9] + 1.0, 20.0)
    still = [one.values for one in model.averaged]
    return [model.notes, model.horizon_ps, values, *still, model.memory_ps]


@cache
def _argon_model() -> TrainedMotion:
    model = trained(argon(6))
    return replace(model, model=model.model.float())


def _motion(folder: Path) -> None:
    _argon_model().save(folder)


def _read_motion(folder: Path, out: Path) -> Any:
    model = TrainedMotion.load(folder)
    seen = window(argon(6))
    with in_use():
        moving = forecast_atoms(seen, [0.1, 1.2], model, samples=2)
    told = moving.expected
    return [model.horizon_ps, told.mean, told.spread, told.velocities, moving.samples]


def _atoms_result(folder: Path) -> None:
    forecast_atoms(window(argon(6)), [0.2, 0.8], _argon_model(), samples=2).save(folder)


def _read_atoms_result(folder: Path, out: Path) -> Any:
    moving = MovingAtoms.load(folder)
    rows = [moving.expected, *moving.trivial.values()]
    return [moving.now, moving.now_ps, moving.samples, moving.box, moving.frame_ps,
            *(part for row in rows for part in (row.mean, row.spread, row.velocities))]  # fmt: skip


def _surface_result(folder: Path) -> None:
    forecast(_first(), [5.0, 9.0], bound(stirred(LOCAL)), samples=2).save(folder)


def _read_surface_result(folder: Path, out: Path) -> Any:
    moving = MovingSurface.load(folder)
    with in_use():
        values = moving.sdf(moving.structure.positions[:9] + 1.0, moving.times_ps[-1])
    return [moving.times_ps, moving.spacing, moving.probe, values]


def _mesh(folder: Path) -> None:
    corners = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    faces = torch.tensor([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])
    mesh = Mesh(vertices=corners, faces=faces, scalars={"displacement": torch.arange(4.0)})
    write_ply(folder / "a.ply", mesh)


def _read_mesh(folder: Path, out: Path) -> Any:
    mesh = read_ply(folder / "a.ply")
    return [mesh.vertices, *mesh.scalars.values()]


def _split(folder: Path) -> None:
    parts = {"train": ["a", "b"], "validation": ["c"], "test": ["d"]}
    (folder / "a.json").write_text(json.dumps({"format": 1, "parts": parts, "seed": 0}))


def _sequences(folder: Path) -> None:
    (folder / "a.fasta").write_text(">one x\nACDEFGHIKL\nMNPQ\n>two\nAAAA*\n")
    (folder / "b.csv").write_text("name,seqres\nthree,ACD\nfour,GGG\n")


def _read_sequences(folder: Path, out: Path) -> Any:
    return load_sequences([folder / "a.fasta", folder / "b.csv"])


def _ecod(folder: Path) -> None:
    (folder / "a.txt").write_text(
        "# a\n#uid\tecod_id\tf_id\tpdb\tchain\n1\te1a\t1.1.2.3\t1vii\tA\n2\te2\t7.1\t2abc\tB\n"
    )


def _training(folder: Path) -> None:
    names = ("default", "paper", "grid", "dsr", "argon", "alanine")
    for name in names:
        text = f"data: [nowhere]\nout: nothing\n{preset_file(name).read_text()}"
        (folder / f"{name}.yaml").write_text(text)


def _read_training(folder: Path, out: Path) -> Any:
    # A configuration that can be meant gets as far as the data, which are not there.
    for path in sorted(folder.iterdir()):
        if path.read_bytes() != preset_of(path.stem):
            code, said = quietly(["train", str(path)], out)
            assert code in (2, 3), said
            assert not (out / "nothing").exists()
            raise InputError(said) if code == 3 and "nowhere" not in said else UsageError(said)


def preset_of(name: str) -> bytes:
    """Return the whole configuration of `_training`."""
    return f"data: [nowhere]\nout: nothing\n{preset_file(name).read_text()}".encode()


def quietly(words: list[str], place: Path) -> tuple[int, str]:
    """Run a command in a folder; return its code and what it said."""
    from contextlib import redirect_stderr, redirect_stdout
    from io import StringIO

    said = StringIO()
    with redirect_stderr(said), redirect_stdout(said), chdir(place):
        code = main(words)
    return code, said.getvalue().strip()


_PRESETS = preset_file("default").parent
_PROTOCOLS = (("protocols", "moe-dsr"), ("protocols", "domino"), ("spaces", "table-2"))


def _protocols(folder: Path) -> None:
    for kind, name in _PROTOCOLS:
        (folder / f"{name}.yaml").write_bytes((_PRESETS / kind / f"{name}.yaml").read_bytes())


def _read_protocols(folder: Path, out: Path) -> Any:
    readers = {"moe-dsr": read_protocol, "domino": read_motion_protocol}
    for kind, name in _PROTOCOLS:
        whole = (_PRESETS / kind / f"{name}.yaml").read_bytes()
        path = folder / f"{name}.yaml"
        if not path.exists() or path.read_bytes() != whole:
            readers.get(name, read_space)(str(path) if name in readers else path)


def _zip(folder: Path) -> None:
    with zipfile.ZipFile(folder / "a.zip", "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("1vii_A.pdb", b"ATOM of a protein\n" * 50)
        opened.writestr("deep/1vii_A_R1.xtc", bytes(range(256)) * 12)
        opened.writestr("README", b"")


def _read_zip(folder: Path, out: Path) -> Any:
    names = archive_members(folder / "a.zip")
    wanted = {name: out / str(number) for number, name in enumerate(names)}
    extract(folder / "a.zip", wanted)
    assert {path.name for path in out.rglob("*")} <= {path.name for path in wanted.values()}


READERS: dict[str, Reader] = {
    "pdb": Reader(make=_pdb, read=_structure, damages=TEXT, cases=120),
    "gro": Reader(make=_gro, read=_structure, damages=TEXT, cases=80),
    "mmcif": Reader(make=_mmcif, read=_structure, damages=TEXT, cases=80),
    "gzip": Reader(make=_gz, read=_structure, damages={".gz": packed}, cases=60),
    "models": Reader(make=_models, read=_read_models, damages=TEXT, cases=60),
    "xtc": Reader(make=_trajectory("xtc"), read=_frames, damages=BYTES, cases=80),
    "trr": Reader(make=_trajectory("trr"), read=_frames, damages=BYTES, cases=80),
    "dcd": Reader(make=_trajectory("dcd"), read=_frames, damages=BYTES, cases=80),
    "fluid": Reader(make=_fluid, read=_read_fluid, damages={".npz": arrays}, cases=120),
    "velocities": Reader(
        make=_velocities, read=_read_velocities, damages={".npz": arrays}, cases=80
    ),
    "recordings": Reader(
        make=_recordings, read=_read_recordings, damages=FOLDERS, cases=120, exact=True
    ),
    "dataset": Reader(make=_dataset, read=_read_dataset, damages=FOLDERS, cases=120, exact=True),
    "checkpoint": Reader(
        make=_checkpoint, read=_read_checkpoint, damages=FOLDERS, cases=80, exact=True
    ),
    "mixture weights": Reader(make=_mixture, read=_read_mixture, damages=FOLDERS, cases=40),
    "surface weights": Reader(make=_surface, read=_read_surface, damages=FOLDERS, cases=30),
    "motion weights": Reader(make=_motion, read=_read_motion, damages=FOLDERS, cases=40),
    "atoms forecast": Reader(
        make=_atoms_result, read=_read_atoms_result, damages=FOLDERS, cases=80
    ),
    "surface forecast": Reader(
        make=_surface_result, read=_read_surface_result, damages=FOLDERS, cases=40
    ),
    "mesh": Reader(make=_mesh, read=_read_mesh, damages=BYTES, cases=60),
    "split": Reader(
        make=_split, read=lambda f, _: load_split(f / "a.json"), damages=FOLDERS, cases=40
    ),
    "sequences": Reader(make=_sequences, read=_read_sequences, damages=TEXT, cases=40),
    "ecod": Reader(make=_ecod, read=lambda f, _: ecod_groups(f / "a.txt"), damages=TEXT, cases=40),
    "training": Reader(make=_training, read=_read_training, damages=TEXT, cases=40),
    "protocols": Reader(make=_protocols, read=_read_protocols, damages=TEXT, cases=30),
    "zip": Reader(make=_zip, read=_read_zip, damages=BYTES, cases=80),
}


def numbers_in(value: Any) -> Iterator[np.ndarray]:
    """Yield every number of nested values that a reader returned."""
    if isinstance(value, torch.Tensor):
        yield value.detach().cpu().numpy()
    elif isinstance(value, np.ndarray | float | int):
        yield np.asarray(value)
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from numbers_in(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from numbers_in(part)
