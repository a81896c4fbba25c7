"""Dataclasses from the values of JSON: types are checked, and what a plugin's fields may be is allowed."""

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from pi0.errors import UnusableError
from pi0.plain import from_plain


@dataclass(frozen=True)
class Inner:
    size: int


@dataclass(frozen=True)
class Outer:
    inner: Inner
    mode: Literal["a", "b"] = "a"
    rate: float = 0.5
    either: int | str | None = None
    anything: Any = None
    names: tuple[str, ...] = ()
    others: dict[str, Any] = field(default_factory=dict)


def test_values_come_as_their_types_have_them():
    values = {
        "inner": {"size": 3}, "mode": "b", "rate": 1, "either": "x", "anything": [1], "names": ["p", "q"],
        "others": {"k": None},
    }  # fmt: skip
    expected = Outer(Inner(3), "b", 1, "x", [1], ("p", "q"), {"k": None})
    assert from_plain(Outer, values) == expected
    assert from_plain(Outer, {"inner": {"size": 3}, "either": 4}).either == 4


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([], "Outer: expected fields and values, found \\[\\]"),
        ({}, "inner: expected a value, found none"),
        ({"inner": 3}, "expected fields and values, found 3"),
        ({"inner": {"size": "3"}}, "inner.size: expected int, found '3'"),
        ({"inner": {"size": True}}, "inner.size: expected int, found True"),
        ({"inner": {"size": 2**70}}, "inner.size: expected int"),
        ({"inner": {"size": 1}, "mode": "c"}, "mode: expected 'a' or 'b', found 'c'"),
        ({"inner": {"size": 1}, "rate": float("nan")}, "rate: expected float, found nan"),
        ({"inner": {"size": 1}, "either": [1]}, "either: expected int, found"),
        ({"inner": {"size": 1}, "names": ["a", 1]}, "names\\[1\\]: expected str, found 1"),
        ({"inner": {"size": 1}, "nmae": 1}, "nmae: no field of Outer"),
    ],
)
def test_what_does_not_fit_is_named(values, said):
    with pytest.raises(UnusableError, match=said):
        from_plain(Outer, values)
