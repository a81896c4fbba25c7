"""Bytes of openpi's client protocol: MessagePack, with arrays as openpi's msgpack_numpy writes them.

The subset of the format that observations and actions need: nil, booleans, integers, floats, text, bytes,
arrays and maps. Extension types are refused, as is every length that the message does not have.
"""

import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

_MAX_DEPTH = 16
_MAX_ITEMS = 10_000  # values in a message: an observation has tens; the bytes of an array are one
_ARRAY, _SCALAR = b"__ndarray__", b"__npgeneric__"
_KINDS = "biuf"  # of array elements: no objects, no records, nothing that could run code

# First byte -> format of the number that follows; the second table: number of items or bytes of what follows.
_NUMBERS = dict(
    zip([*range(0xCA, 0xD4)], [">f", ">d", ">B", ">H", ">I", ">Q", ">b", ">h", ">i", ">q"], strict=True)
)
_LENGTHS = {
    **{0xC4: (">B", "bin"), 0xC5: (">H", "bin"), 0xC6: (">I", "bin")},
    **{0xD9: (">B", "str"), 0xDA: (">H", "str"), 0xDB: (">I", "str")},
    **{0xDC: (">H", "array"), 0xDD: (">I", "array"), 0xDE: (">H", "map"), 0xDF: (">I", "map")},
}


class WireError(ValueError):
    """Bytes that are no message of the protocol, or a value that it cannot express."""


def pack(value: Any) -> bytes:
    """Return the message of a value: None, bool, int, float, str, bytes, sequences, mappings and arrays."""
    if isinstance(value, np.ndarray):
        _require_numbers(value.dtype)
        data = np.ascontiguousarray(value).tobytes()
        fields = {_ARRAY: True, b"data": data, b"dtype": value.dtype.str, b"shape": value.shape}
        return pack(fields)
    if isinstance(value, np.generic):
        _require_numbers(value.dtype)
        return pack({_SCALAR: True, b"data": value.item(), b"dtype": value.dtype.str})
    if value is None or isinstance(value, bool):
        return {None: b"\xc0", False: b"\xc2", True: b"\xc3"}[value]
    if isinstance(value, int):
        return _pack_int(value)
    if isinstance(value, float):
        return struct.pack(">Bd", 0xCB, value)
    if isinstance(value, str):
        text = value.encode()
        return _head(len(text), 0xA0, 32, (0xD9, 0xDA, 0xDB)) + text
    if isinstance(value, bytes):
        return _head(len(value), 0, 0, (0xC4, 0xC5, 0xC6)) + value
    if isinstance(value, list | tuple):
        return _head(len(value), 0x90, 16, (None, 0xDC, 0xDD)) + b"".join(map(pack, value))
    if isinstance(value, Mapping):
        items = b"".join(pack(key) + pack(item) for key, item in value.items())
        return _head(len(value), 0x80, 16, (None, 0xDE, 0xDF)) + items
    raise WireError(f"expected numbers, text, bytes, arrays, lists or dicts, found {type(value).__name__}")


def unpack(message: bytes) -> Any:
    """Return the value of a message; arrays are read-only views of it. Anything else is a WireError."""
    reader = _Reader(message)
    value = reader.value(0)
    if reader.at != len(message):
        raise WireError(f"expected one value, found {len(message) - reader.at} bytes behind it")
    return value


def _pack_int(value: int) -> bytes:
    if -32 <= value < 128:
        return struct.pack(">b", value)
    for head, form in [*_NUMBERS.items()][2:6] if value >= 0 else [*_NUMBERS.items()][6:]:
        bits = 8 * struct.calcsize(form)
        if -(1 << (bits - 1)) <= value < 1 << bits:
            return bytes([head]) + struct.pack(form, value)
    raise WireError(f"expected an integer of at most 64 bits, found {value}")


def _head(length: int, small: int, limit: int, heads: tuple[int | None, int, int]) -> bytes:
    if length < limit:
        return bytes([small | length])
    for head, form, bits in zip(heads, (">B", ">H", ">I"), (8, 16, 32), strict=True):
        if head is not None and length < 1 << bits:
            return bytes([head]) + struct.pack(form, length)
    raise WireError(f"expected less than 2^32 bytes or items, found {length}")


class _Reader:
    def __init__(self, message: bytes) -> None:
        self.message, self.at, self.items = message, 0, 0

    def take(self, count: int) -> bytes:
        if count > len(self.message) - self.at:
            raise WireError(f"the message ends at byte {len(self.message)}, inside a value")
        self.at += count
        return self.message[self.at - count : self.at]

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def value(self, depth: int) -> Any:
        if depth > _MAX_DEPTH:
            raise WireError(f"expected at most {_MAX_DEPTH} levels, found more")
        self.items += 1
        if self.items > _MAX_ITEMS:
            raise WireError(f"expected at most {_MAX_ITEMS} values, found more")
        first = self.take(1)[0]
        if first < 0x80 or first >= 0xE0:
            return first if first < 0x80 else first - 256
        if first < 0xC0:
            kind = "map" if first < 0x90 else "array" if first < 0xA0 else "str"
            return self.sized(kind, first & (0x1F if kind == "str" else 0x0F), depth)
        if first in (0xC0, 0xC2, 0xC3):
            return {0xC0: None, 0xC2: False, 0xC3: True}[first]
        if first in _NUMBERS:
            return self.number(_NUMBERS[first])
        if first not in _LENGTHS:
            raise WireError(f"byte {self.at - 1}: type {first:#04x} is not part of the protocol")
        form, kind = _LENGTHS[first]
        return self.sized(kind, self.number(form), depth)

    def sized(self, kind: str, length: int, depth: int) -> Any:
        if kind == "bin":
            return self.take(length)
        if kind == "str":
            try:
                return self.take(length).decode()
            except UnicodeDecodeError as error:
                raise WireError(f"text that is not UTF-8 before byte {self.at}") from error
        if length > len(self.message) - self.at:  # every item takes a byte or more
            raise WireError(f"the message ends at byte {len(self.message)}, inside a value")
        if kind == "array":
            return [self.value(depth + 1) for _ in range(length)]
        fields: dict[str | bytes, Any] = {}
        for _ in range(length):
            key = self.value(depth + 1)
            if not isinstance(key, str | bytes):
                raise WireError(f"expected text as the key of a map, found {type(key).__name__}")
            fields[key] = self.value(depth + 1)
        return _array(fields) if _ARRAY in fields or _SCALAR in fields else fields


def _array(fields: dict[str | bytes, Any]) -> Any:
    try:
        dtype = np.dtype(fields[b"dtype"])
        _require_numbers(dtype)
        if _SCALAR in fields:
            return dtype.type(fields[b"data"])
        return np.frombuffer(fields[b"data"], dtype).reshape([int(n) for n in fields[b"shape"]])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise WireError(f"an array that is none: {str(error)[:200]}") from error


def _require_numbers(dtype: np.dtype) -> None:
    if dtype.kind not in _KINDS:
        raise WireError(f"expected arrays of numbers, found {dtype}")
