"""Dataclasses from the plain values of a JSON file, every one of which is checked against its type."""

import math
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pi0.errors import UnusableError

_LARGEST = 2**40  # of a whole number: no size, width or rank comes near


def from_plain[T](kind: type[T], values: Any, place: str = "") -> T:
    """Return the dataclass whose `dataclasses.asdict` went to JSON; lists become tuples.

    Args:
        kind: The dataclass; its fields are numbers, text, truth values, literals, tuples, maps, other
            dataclasses, or None.
        values: What the file has.
        place: The name of these values in errors.

    Raises:
        UnusableError: A field is unknown, missing, or of another type; names it.
    """
    if not isinstance(values, Mapping):
        raise UnusableError(f"{place or kind.__name__}: expected fields and values, found {_said(values)}")
    hints = get_type_hints(kind)
    known = {field.name: field for field in fields(kind) if field.init}  # pyright: ignore[reportArgumentType]
    for name in values:
        if name not in known:
            raise UnusableError(f"{place}{name}: no field of {kind.__name__}, which has {sorted(known)}")
    for name, field in known.items():
        if name not in values and field.default is MISSING and field.default_factory is MISSING:
            raise UnusableError(f"{place}{name}: expected a value, found none")
    return kind(**{name: _checked(value, hints[name], f"{place}{name}") for name, value in values.items()})


def _checked(value: Any, hint: Any, place: str) -> Any:
    """Return a value as its type has it."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _checked_union(value, inner, place)
    if hint is Any:
        return value
    if is_dataclass(hint):
        return from_plain(hint, value, f"{place}.")  # pyright: ignore[reportArgumentType]
    if origin is Literal:
        is_right, result = value in inner, value
    elif origin is tuple:
        is_right = isinstance(value, list | tuple)
        result = (
            tuple(_checked(one, inner[0], f"{place}[{i}]") for i, one in enumerate(value)) if is_right else ()
        )
    elif hint is float:
        is_right = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        result = value
    elif hint is int:
        is_right = isinstance(value, int) and not isinstance(value, bool) and abs(value) < _LARGEST
        result = value
    else:
        is_right, result = isinstance(value, origin or hint), value
    if not is_right:
        expected = (
            " or ".join(map(repr, inner)) if origin is Literal else getattr(hint, "__name__", str(hint))
        )
        raise UnusableError(f"{place}: expected {expected}, found {_said(value)}")
    return result


def _checked_union(value: Any, members: tuple[Any, ...], place: str) -> Any:
    """Return a value as the first member that it fits has it."""
    if value is None and types.NoneType in members:
        return None
    problems: list[UnusableError] = []
    for member in members:
        if member is not types.NoneType:
            try:
                return _checked(value, member, place)
            except UnusableError as error:
                problems.append(error)
    raise problems[0]


def _said(value: Any) -> str:
    """Return a value as an error shows it."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
