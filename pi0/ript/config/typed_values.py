"""Values as a setting's type wants them: text as it was typed, numbers finite, whole where they must be."""

import math
import re
import typing
from collections.abc import Mapping
from dataclasses import is_dataclass
from pathlib import Path
from types import NoneType
from typing import Any

_NAMES = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    dict: "keys and values",
}
BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


class WrittenInt(int):
    """A whole number of a YAML file, and how it was typed: 012, 0x10, 1:30."""

    written: str


class WrittenFloat(float):
    """A number of a YAML file, and how it was typed: 1e5, .5, 12e4567."""

    written: str


class WrittenBool(int):
    """Yes or no in a YAML file, equal to True or False, and the word for it: on, off, true, no."""

    written: str

    def __repr__(self) -> str:
        """Return True or False."""
        return str(bool(self))

    __str__ = __repr__


class MisfitError(ValueError):
    """A value is of another type than its setting; the message is what was expected and found."""


def fitted(value: Any, hint: Any, key: str) -> Any:
    """Return a value as a type hint asks for it; `~` at the beginning of a text is the home directory.

    Texts with `${` stand for other settings and are left as they are.

    Raises:
        MisfitError: It is no such value; the message names the key.
    """
    kinds = _kinds(hint)
    if value is None and NoneType in (hint, *typing.get_args(hint)):
        return None
    if isinstance(value, str) and "${" in value:
        return value
    # A number that may be text is a number, a whole one stays whole; a text that may be a number is text.
    order = (int, float, str) if isinstance(value, int) else (float, int, str)
    if str in kinds and isinstance(value, str):
        order = (str, *order)
    for kind in sorted(kinds, key=lambda kind: order.index(kind) if kind in order else -1):
        if is_dataclass(kind) and isinstance(value, Mapping):
            hints = typing.get_type_hints(kind)
            return {name: fitted(x, hints[name], f"{key}.{name}") if name in hints else x
                    for name, x in value.items()}  # fmt: skip
        if typing.get_origin(kind) is list and isinstance(value, list):
            (inner,) = typing.get_args(kind)
            return [fitted(x, inner, f"{key}[{place}]") for place, x in enumerate(value)]
        if typing.get_origin(kind) is dict and isinstance(value, Mapping):
            _, inner = typing.get_args(kind)
            return {name: fitted(x, inner, f"{key}.{name}") for name, x in value.items()}
        found = _scalar(value, kind)
        if found is not None:
            return found
    raise MisfitError(f"{key}: expected {_named(kinds)}{_or_null(hint)}, found {_shown(value)}")


def _kinds(hint: Any) -> list[Any]:
    kinds = typing.get_args(hint) if typing.get_origin(hint) not in (list, dict) else ()
    return [kind for kind in (kinds or (hint,)) if kind is not NoneType]


def _scalar(value: Any, kind: Any) -> Any:
    """Return a value as a bool, number or text; None if it is none."""
    text = getattr(value, "written", value)
    if kind is bool:
        return (
            BOOLEANS.get(text.lower())
            if isinstance(text, str)
            else value
            if isinstance(value, bool)
            else None
        )
    if kind is str and isinstance(text, str):
        return str(Path(text).expanduser()) if text.startswith("~") else text
    if kind not in (int, float) or isinstance(value, bool | WrittenBool):
        return None
    try:
        number = float(text)
    except (TypeError, ValueError):
        return None
    if not math.isfinite(number) or (kind is int and number != int(number)):
        return None
    is_digits = isinstance(text, str) and re.fullmatch(r"[-+]?[\d_]+", text)
    return (int(text) if is_digits or isinstance(text, int) else int(number)) if kind is int else number


def _named(kinds: list[Any]) -> str:
    if typing.get_origin(kinds[0]) is list:
        inner = _kinds(typing.get_args(kinds[0])[0])
        return "a list" if is_dataclass(inner[0]) else f"a list of {_named(inner)}, such as [a,b],"
    if is_dataclass(kinds[0]):
        return _NAMES[dict]
    return " or ".join(_NAMES[typing.get_origin(kind) or kind] for kind in kinds)


def _or_null(hint: Any) -> str:
    return " or null" if NoneType in typing.get_args(hint) else ""


def _shown(value: Any) -> str:
    return "null" if value is None else getattr(value, "written", None) or repr(value)
