"""Safetensors files, read and written tensor by tensor, so that no second copy of a model is in memory.

The weights of a model are one file, or several with an index that says which tensor is in which
(`model.safetensors.index.json`, as transformers writes it). The index of a run's checkpoint can also name a
file outside its directory: the weights that the run does not train, which it stores once.
"""

import hashlib
import json
import os
import struct
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from pi0.checkpoint_names import INDEX, WEIGHTS
from pi0.errors import UnusableError

_HASHES = "sha256"  # of the files that an index names outside its directory, in its metadata
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_BYTES_AT_ONCE = 2**26


class CheckpointError(UnusableError):
    """A checkpoint that does not fit: lists every missing, unexpected and mis-shaped key, and the file."""


@dataclass(frozen=True)
class Deferred:
    """A tensor that is made each time it is read; until then only its shape and dtype are known."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]

    @classmethod
    def of(cls, tensor: Tensor) -> "Deferred":
        """Return a tensor that is there already."""
        return cls(tuple(tensor.shape), tensor.dtype, lambda: tensor)

    @property
    def num_bytes(self) -> int:
        """Return its size."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def read_json(file: Path) -> dict[str, Any]:
    """Return a JSON object; what is not one is a CheckpointError with the file."""
    try:
        values = json.loads(file.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{file}: not valid JSON ({error})") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{file}: expected a JSON object, found {type(values).__name__}")
    return values


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file; anything else is a CheckpointError with the file."""
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise _unreadable(file, error) from error


def stored_tensors(file: Path) -> dict[str, Deferred]:
    """Return what is in a safetensors file, which must be whole; the content is read when it is needed."""
    try:
        with safe_open(file, framework="pt") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
            return {
                name: Deferred(tuple(part.get_shape()), _DTYPES[part.get_dtype()], partial(_read, file, name))
                for name, part in slices.items()
            }
    except (SafetensorError, OSError) as error:
        raise _unreadable(file, error) from error
    except KeyError as error:
        raise CheckpointError(f"{file}: expected tensors of {sorted(_DTYPES)}, found {error}") from error


def stored_weights(directory: Path) -> dict[str, Deferred]:
    """Return the weights of a model's directory: those of its one file, or of all that its index names.

    Raises:
        CheckpointError: A file is missing, not whole or another one, or has not what the index says.
    """
    if (directory / WEIGHTS).exists():
        return stored_tensors(directory / WEIGHTS)
    index = read_json(directory / INDEX)
    places, hashes = index.get("weight_map"), index.get("metadata", {}).get(_HASHES, {})
    if not isinstance(places, dict) or not all(isinstance(place, str) for place in places.values()):
        raise CheckpointError(
            f"{directory / INDEX}: expected weight_map, the file of each tensor by its name"
        )
    weights: dict[str, Deferred] = {}
    for place in sorted(set(places.values())):
        _require_file(directory, place, hashes.get(place))
        tensors = stored_tensors(directory / place)
        names = [name for name in places if places[name] == place]
        if lacking := sorted(set(names) - set(tensors)):
            raise CheckpointError(f"{directory / place}: expected {lacking[0]}, which {INDEX} says is in it")
        weights |= {name: tensors[name] for name in names}
    return weights


def _require_file(directory: Path, place: str, expected: str | None) -> None:
    """Raise CheckpointError unless a file of an index is there, and, outside its directory, the same."""
    file = directory / place
    if not file.is_file() and expected:
        raise CheckpointError(
            f"{directory}: what its run did not train is in {place}, seen from there, and is missing: copy "
            "the whole run, or have `pi0-export --format lerobot` write the policy where the run is"
        )
    if not file.is_file():
        raise CheckpointError(f"{directory / INDEX} names {place}, which is not there; copy all its files")
    if expected and _hash(file, file.stat().st_mtime_ns) != expected:
        raise CheckpointError(f"{file}: its content is not that which {directory / INDEX} refers to")


@cache
def _hash(file: Path, modified: int) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _read(file: Path, name: str) -> Tensor:
    # Opened for each tensor, because the pages of a file stay in memory as long as it is open.
    with safe_open(file, framework="pt") as opened:
        return opened.get_tensor(name)


def _unreadable(file: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{file}: not a readable safetensors file ({error})")


def write_weights(
    directory: Path,
    tensors: Mapping[str, Deferred],
    *,
    untrained: Collection[str] = (),
    store: Path | None = None,
    max_shard_size: int | None = None,
) -> None:
    """Write the weights of a model to its directory, in place of those that were there.

    Args:
        directory: It is there.
        tensors: All of them.
        untrained: Names of tensors that go to `store`.
        store: Where files are called after their content, so that each is written once; the index of
            `directory` refers to it by its relative path and its hash.
        max_shard_size: Bytes of one file, unless a single tensor has more; None: any number.
    """
    outside = {name: tensors[name] for name in untrained} if store is not None else {}
    parts = _shards({name: x for name, x in tensors.items() if name not in outside}, max_shard_size)
    if not outside and len(parts) == 1:
        write_tensor_file(directory / WEIGHTS, tensors)
        names = {WEIGHTS}
    else:
        files = {f"model-{i + 1:05}-of-{len(parts):05}.safetensors": part for i, part in enumerate(parts)}
        for name, part in files.items():
            write_tensor_file(directory / name, part)
        places, hashes = {key: name for name, part in files.items() for key in part}, {}
        if outside and store is not None:
            file, digest = _keep(store, outside)
            place = Path(os.path.relpath(file, directory)).as_posix()
            places |= dict.fromkeys(outside, place)
            hashes[place] = digest
        metadata = {"total_size": sum(x.num_bytes for x in tensors.values())}
        metadata |= {_HASHES: hashes} if hashes else {}
        text = json.dumps({"metadata": metadata, "weight_map": places}, indent=2)
        (directory / INDEX).write_text(text + "\n")
        names = {INDEX, *files}
    for old in {directory / WEIGHTS, directory / INDEX, *directory.glob("model-*-of-*.safetensors")}:
        if old.name not in names:
            old.unlink(missing_ok=True)


def _shards(tensors: Mapping[str, Deferred], max_size: int | None) -> list[dict[str, Deferred]]:
    parts, size = [dict[str, Deferred]()], 0
    for name, tensor in sorted(tensors.items()):
        if max_size is not None and parts[-1] and size + tensor.num_bytes > max_size:
            parts.append({})
            size = 0
        parts[-1][name] = tensor
        size += tensor.num_bytes
    return parts


def _keep(store: Path, tensors: Mapping[str, Deferred]) -> tuple[Path, str]:
    """Return the file of a store that has these tensors, written if it is not there, and its hash."""
    digest = hashlib.sha256()
    for part in serialized(tensors):
        digest.update(part)
        del part  # with the tensor that it is of
    file = store / f"{digest.hexdigest()}.safetensors"
    if not file.exists():
        store.mkdir(parents=True, exist_ok=True)
        write_tensor_file(file, tensors)
    return file, digest.hexdigest()


def write_tensor_file(file: Path, tensors: Mapping[str, Deferred]) -> None:
    """Write a safetensors file; a file that was there is replaced when the new one is on the disk."""
    partial_file = file.with_name(f"{file.name}.part")
    try:
        with partial_file.open("wb") as stream:
            stream.writelines(serialized(tensors))
            stream.flush()
            os.fsync(stream.fileno())
        partial_file.replace(file)
    except OSError as error:
        error.filename = error.filename or str(file)  # writing does not name it
        raise
    finally:
        partial_file.unlink(missing_ok=True)  # on a full disk it would keep the room


def serialized(tensors: Mapping[str, Deferred]) -> Iterator[bytes | memoryview]:
    """Yield the bytes of a safetensors file, some at a time; tensors are read one by one."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    # The larger elements first, as safetensors has it: then all tensors are aligned.
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    start = 0
    for name in names:
        tensor, end = tensors[name], start + tensors[name].num_bytes
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield struct.pack("<Q", len(text)) + text
    for name in names:
        yield from _pieces(tensors[name].read().detach())  # of which nothing is left when the next is read


def _pieces(value: Tensor) -> Iterator[memoryview]:
    for part in value.reshape(-1).split(_BYTES_AT_ONCE // value.element_size()):
        yield part.cpu().contiguous().view(torch.uint8).numpy().data
