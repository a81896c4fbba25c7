"""Safetensors files, read and written tensor by tensor, so that no second copy of a model is in memory.

The weights of a model are one file, or several with an index that says which tensor is in which
(`model.safetensors.index.json`, as transformers writes it).
"""

import json
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

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


class CheckpointError(ValueError):
    """A checkpoint that does not fit: lists every missing, unexpected and mis-shaped key, and the file."""

    explains_itself = True


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
    except json.JSONDecodeError as error:
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
        CheckpointError: A file is missing or not whole, or has not what the index says.
    """
    if (directory / WEIGHTS).exists():
        return stored_tensors(directory / WEIGHTS)
    index = read_json(directory / INDEX)
    places = index.get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(place, str) for place in places.values()):
        raise CheckpointError(
            f"{directory / INDEX}: expected weight_map, the file of each tensor by its name"
        )
    weights: dict[str, Deferred] = {}
    for place in sorted(set(places.values())):
        if not (directory / place).is_file():
            raise CheckpointError(
                f"{directory / INDEX} names {place}, which is not there; copy all its files"
            )
        tensors = stored_tensors(directory / place)
        names = [name for name in places if places[name] == place]
        if lacking := sorted(set(names) - set(tensors)):
            raise CheckpointError(
                f"{directory / place}: expected {lacking[0]}, as {INDEX} says; it is not in it"
            )
        weights |= {name: tensors[name] for name in names}
    return weights


def _read(file: Path, name: str) -> Tensor:
    # Opened for each tensor, because the pages of a file stay in memory as long as it is open.
    with safe_open(file, framework="pt") as opened:
        return opened.get_tensor(name)


def _unreadable(file: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{file}: not a readable safetensors file ({error})")


def write_tensor_file(file: Path, tensors: Mapping[str, Deferred]) -> None:
    """Write a safetensors file; a file that was there is replaced when the new one is whole."""
    partial_file = file.with_name(f"{file.name}.part")
    with partial_file.open("wb") as stream:
        for part in serialized(tensors):
            stream.write(part)
    partial_file.replace(file)


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
        value = tensors[name].read().detach()
        for part in value.reshape(-1).split(_BYTES_AT_ONCE // value.element_size()):
            yield part.cpu().contiguous().view(torch.uint8).numpy().data
