"""Weights and checkpoints on disk: safetensors and JSON, checksummed, never a pickle.

A weights file is one ``.safetensors`` whose only metadata entry, ``undula``, is a JSON text with
the format number, a table of SHA-256, dtype and shape per tensor, the caller's metadata, and a
SHA-256 over all of that: a flipped bit anywhere in the file is found. A checkpoint is a folder
of such files with a manifest that is written last:

    folder/checkpoints/00001200/weights.safetensors     the module
                                average.safetensors     its moving average, if one is kept
                                optimizer.safetensors   the optimiser's tensors by name
                                state.json              step, configuration, history, best
                                manifest.json           format and SHA-256 of each file

Chance is a function of the seed and the step, so no random state has to be stored.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from undula import atomic
from undula.errors import InputError, MachineError, Notice, UndulaError, one_line

FORMAT = 1
"""Number of the layout described above; a reader refuses larger ones."""

_KEY = "undula"
_MANIFEST = "manifest.json"
_STATE = "state.json"
_MISFITS = (
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    MemoryError,
    UndulaError,
)
"""What a description that cannot be meant makes constructors raise."""


class NewerFormatError(InputError):
    """A file that a newer undula wrote; it is intact, so nothing may take its place."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """All that a training needs to go on.

    Attributes:
        step: Steps done.
        tensors: The weights files by name (``weights``, ``optimizer``, ``average``), each a
            dictionary of tensors.
        state: The rest, as JSON values.
    """

    step: int
    tensors: Mapping[str, Mapping[str, Tensor]]
    state: Mapping[str, Any] = field(default_factory=dict)


def save_weights(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> str:
    """Write tensors into one ``.safetensors`` file with a checksum for everything in it.

    Args:
        path: The file; it is complete under this name or not there.
        tensors: On any device; stored as they are, contiguous. Those that share memory are
            stored once each.
        metadata: JSON values, without NaN.

    Returns:
        The SHA-256 of the file; the same content always gives the same bytes.

    Raises:
        MachineError: The place is full, read-only or not allowed.
        InputError: A tensor holds a number that is not finite.
    """
    stored = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    for name, tensor in stored.items():
        _check_finite(path, name, tensor)
    body = {
        "format": FORMAT,
        "metadata": dict(metadata),
        "tensors": {name: _fingerprint(tensor) for name, tensor in stored.items()},
    }
    text = json.dumps({**body, "sha256": _json_sha256(body)}, sort_keys=True, allow_nan=False)
    return atomic.write(path, safetensors.torch.save(stored, metadata={_KEY: text}))


def load_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a weights file and verify every byte of it; nothing in it is executed.

    Args:
        path: A file that `save_weights` wrote.

    Returns:
        The tensors by name, on the CPU, and the metadata.

    Raises:
        InputError: The file is no safetensors file (a pickle or zip under any suffix is refused
            by its content), is cut, changed or lengthened, has no checksums, or holds a number
            that is not finite.
        NewerFormatError: A newer undula wrote it.
        MachineError: The file cannot be read.
    """
    data = _read(path)
    body = _metadata(path, data)
    try:
        tensors = safetensors.torch.load(data)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise InputError(f"{path} is damaged: {error}") from error
    table = body["tensors"]
    if table.keys() != tensors.keys():
        name = min(table.keys() ^ tensors.keys())
        raise InputError(f"{path} is damaged: tensor {name!r} is missing or was added")
    for name, tensor in tensors.items():
        if _fingerprint(tensor) != table[name]:
            raise InputError(f"{path} is damaged: tensor {name!r} does not match its SHA-256")
        _check_finite(path, name, tensor)
    return tensors, body["metadata"]


@contextmanager
def described_in(path: Path) -> Iterator[None]:
    """Let what is built from a file's description fail by one sentence that names the file.

    Checksums say that a file is as it was written, not that a model can be made of what it says:
    another program, or another version, may have written it.

    Raises:
        InputError: The body of the ``with`` raised what wrong keys, kinds, shapes or values raise.
    """
    try:
        yield
    except (NewerFormatError, MachineError):
        raise
    except KeyError as error:
        raise InputError(f"{path} is damaged: it lacks {one_line(error)}") from error
    except _MISFITS as error:
        if isinstance(error, InputError) and str(error).startswith(str(path.parent)):
            raise
        raise InputError(f"{path} is damaged: {one_line(error)}") from error


def load_into(module: nn.Module, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Copy tensors into a module of the same architecture.

    Args:
        module: Receives the numbers, on its own device.
        tensors: What `load_weights` returned.
        source: The file they come from, for the message.

    Raises:
        InputError: A name, shape or dtype differs; the message names the first such tensor, and
            the module is unchanged.
    """
    expected = module.state_dict()
    for name in [*expected, *tensors]:
        if name not in tensors:
            raise InputError(f"{source} lacks tensor {name!r}: it holds another architecture")
        if name not in expected:
            raise InputError(
                f"{source} has a tensor {name!r} that this model lacks: it holds another "
                "architecture"
            )
        if _form(tensors[name]) != _form(expected[name]):
            raise InputError(
                f"{source} holds another architecture: tensor {name!r} is "
                f"{_form(tensors[name])} there and {_form(expected[name])} in this model"
            )
    module.load_state_dict(dict(tensors))


def check_dtypes(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Raise where a tensor has another dtype than the module's: torch would cast it in silence.

    Raises:
        ValueError: Naming the first such tensor.
    """
    for name, expected in module.state_dict().items():
        if name in tensors and tensors[name].dtype != expected.dtype:
            raise ValueError(f"tensor {name!r} is {tensors[name].dtype}, not {expected.dtype}")


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint under ``folder/checkpoints``; until its manifest is there it is none.

    Args:
        folder: The folder of the run.
        checkpoint: What to store.

    Returns:
        The folder of the checkpoint.

    Raises:
        MachineError: The place is full, read-only or not allowed; older checkpoints are intact.
    """
    place = checkpoint_place(folder, checkpoint.step)
    atomic.discard(place / _MANIFEST)
    files = {
        f"{name}.safetensors": save_weights(place / f"{name}.safetensors", tensors, {})
        for name, tensors in checkpoint.tensors.items()
    }
    files[_STATE] = atomic.write_json(place / _STATE, checkpoint.state)
    manifest = {"format": FORMAT, "step": checkpoint.step, "files": files}
    atomic.write_json(place / _MANIFEST, {**manifest, "sha256": _json_sha256(manifest)})
    return place


def load_checkpoint(place: Path) -> Checkpoint:
    """Read one checkpoint and verify all of it.

    Args:
        place: The folder of the checkpoint.

    Raises:
        InputError: A file is missing, damaged or of another run; the message names it.
        NewerFormatError: A newer undula wrote it.
        MachineError: A file cannot be read.
    """
    manifest = _read_json(place / _MANIFEST)
    _check_format(place / _MANIFEST, manifest)
    signature = manifest.pop("sha256", None)
    if signature != _json_sha256(manifest):
        raise InputError(f"{place / _MANIFEST} is damaged: it does not match its SHA-256")
    for name, expected in manifest["files"].items():
        if not re.fullmatch(r"[a-z]+\.(safetensors|json)", name):
            raise InputError(f"{place / _MANIFEST} is damaged: it names a file {name!r}")
        if hashlib.sha256(_read(place / name)).hexdigest() != expected:
            raise InputError(f"{place / name} is damaged: it does not match the manifest")
    return Checkpoint(
        step=manifest["step"],
        tensors={
            name.removesuffix(".safetensors"): load_weights(place / name)[0]
            for name in manifest["files"]
            if name != _STATE
        },
        state=_read_json(place / _STATE),
    )


def newest_checkpoint(folder: Path) -> tuple[Checkpoint | None, list[Notice]]:
    """Find the newest valid checkpoint of a run.

    Args:
        folder: The folder of the run; it need not exist.

    Returns:
        The checkpoint, or None where none was ever completed, and a notice for each newer one
        that was passed over because it is unfinished or damaged.

    Raises:
        InputError: There are complete checkpoints, but all are damaged.
        NewerFormatError: A newer undula wrote one of them.
    """
    notices: list[Notice] = []
    damaged: InputError | None = None
    for place in reversed(_places(folder)):
        if not (place / _MANIFEST).exists():
            text = "this checkpoint was not finished when the run was stopped and is not used"
            notices.append(Notice(code="checkpoint-unfinished", message=text, place=str(place)))
            continue
        try:
            return load_checkpoint(place), notices
        except NewerFormatError:
            raise
        except InputError as error:
            damaged = damaged or error
            text = f"this checkpoint is not used: {error}"
            notices.append(Notice(code="checkpoint-damaged", message=text, place=str(place)))
    if damaged is not None:
        raise InputError(
            f"no checkpoint in {folder} is intact ({damaged}); move the folder away to start anew"
        ) from damaged
    return None, notices


def prune_checkpoints(folder: Path, keep: Collection[int], *, newest: int = 2) -> None:
    """Remove all checkpoints but the newest ones and those of some steps.

    Args:
        folder: The folder of the run.
        keep: Steps to keep whatever their age.
        newest: How many of the newest to keep.
    """
    for place in _places(folder)[:-newest]:
        if int(place.name) not in keep:
            _remove(place)


def remove_checkpoints_after(folder: Path, step: int) -> None:
    """Remove the checkpoints of later steps, which a resumed run will write again."""
    for place in _places(folder):
        if int(place.name) > step:
            _remove(place)


def checkpoint_place(folder: Path, step: int) -> Path:
    """Return where the checkpoint of a step belongs."""
    return folder / "checkpoints" / f"{step:08d}"


def checkpoint_steps(folder: Path) -> list[int]:
    """Return the steps of which a run has checkpoints, finished or not, in ascending order."""
    return [int(place.name) for place in _places(folder)]


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: Sequence[str]) -> dict[str, Tensor]:
    """Return the optimiser's state as tensors called ``parameter/quantity``.

    Args:
        optimizer: One whose state is all tensors, such as Adam and its kin.
        names: Names of its parameters, in the order of its groups.
    """
    state = optimizer.state_dict()["state"]
    return {
        f"{names[index]}/{quantity}": value
        for index, quantities in state.items()
        for quantity, value in quantities.items()
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], names: Sequence[str]
) -> None:
    """Put back what `optimizer_tensors` returned.

    Args:
        optimizer: An optimiser over the same parameters.
        tensors: The tensors by name.
        names: Names of its parameters, in the order of its groups.

    Raises:
        InputError: They are those of other parameters.
    """
    index = {name: position for position, name in enumerate(names)}
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, _, quantity = key.rpartition("/")
        if name not in index:
            raise InputError(f"the optimiser's state has {key!r}, which is of another model")
        state.setdefault(index[name], {})[quantity] = value
    parameters = [one for group in optimizer.param_groups for one in group["params"]]
    quantities = {frozenset(one) for one in state.values()}
    if len(quantities) > 1:  # a parameter that has had no gradient yet has no state at all
        raise InputError("the optimiser's state lacks quantities of some parameters")
    for position, one in state.items():
        for quantity, value in one.items():
            if value.ndim and value.shape != parameters[position].shape:
                raise InputError(
                    f"the optimiser's state holds {names[position]}/{quantity} of another shape"
                )
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _metadata(path: Path, data: bytes) -> dict[str, Any]:
    """Read the checksums and metadata from a safetensors header, after a look at what it is."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > len(data) - 8 or data[8:9] != b"{":
        if data[:2] in (b"PK", b"\x1f\x8b") or data[:1] == b"\x80":
            raise InputError(
                f"{path} is a pickle or an archive, which undula never opens; "
                "weights are safetensors files"
            )
        raise InputError(f"{path} is no safetensors file, or is cut in its header")
    try:
        header = atomic.parsed_json(data[8 : 8 + length])
        body = atomic.parsed_json(header["__metadata__"][_KEY])
        signature = body.pop("sha256")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} has no readable undula checksums in its header: it is damaged, or was "
            "written by another program"
        ) from error
    _check_format(path, body)
    if signature != _json_sha256(body):
        raise InputError(f"{path} is damaged: its metadata does not match its SHA-256")
    if not all(isinstance(body.get(key), dict) for key in ("metadata", "tensors")):
        raise InputError(f"{path} is damaged: its header lacks the metadata or the tensor table")
    return body


def _check_format(path: Path, body: Mapping[str, Any]) -> None:
    number = body.get("format")
    if not isinstance(number, int) or number < 1:
        raise InputError(f"{path} is damaged: it has no format number")
    if number > FORMAT:
        raise NewerFormatError(
            f"{path} was written by a newer undula (format {number}, this one reads up to "
            f"{FORMAT}); update undula"
        )


def _check_finite(path: Path, name: str, tensor: Tensor) -> None:
    if not bool(torch.isfinite(tensor).all()):
        raise InputError(f"{path}: tensor {name!r} holds a number that is not finite")


def _fingerprint(tensor: Tensor) -> dict[str, Any]:
    """Return SHA-256, dtype and shape of a contiguous tensor on the CPU."""
    content = tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
    return {
        "sha256": hashlib.sha256(content).hexdigest(),
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "shape": list(tensor.shape),
    }


def _form(tensor: Tensor) -> str:
    """Return dtype and shape in words."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    return f"{dtype} {' × '.join(map(str, tensor.shape)) or 'scalar'}"


def _json_sha256(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{path} does not exist") from error
    except OSError as error:
        raise MachineError(f"cannot read {path}: {error.strerror or error}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = atomic.parsed_json(_read(path))
    except ValueError as error:
        raise InputError(f"{path} is damaged: it is no JSON") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} is damaged: it is no JSON object")
    return value


def _places(folder: Path) -> list[Path]:
    """Return the checkpoint folders of a run, finished or not, oldest first."""
    places = (folder / "checkpoints").glob("*")
    numbered = [place for place in places if re.fullmatch(r"[0-9]{8,}", place.name)]
    return sorted(numbered, key=lambda place: int(place.name))


def _remove(place: Path) -> None:
    atomic.discard(place / _MANIFEST)
    try:
        shutil.rmtree(place)
    except OSError as error:
        raise MachineError(f"cannot remove {place}: {error.strerror or error}") from error
