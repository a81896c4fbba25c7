"""What values a setting may have: written in the type of its field, checked for all settings at once.

`steps: Count = 200` is a whole number of at least 1, for the type checker an int. None is right everywhere.
"""

import math
import shlex
import shutil
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass, is_dataclass
from typing import Annotated, Any


@dataclass(frozen=True)
class Expected:
    """What the values of a field are."""

    text: str
    is_right: Callable[[Any], bool]


def one_of(*choices: Any) -> Expected:
    """Return the expectation of one of some values."""
    return Expected(f"one of {', '.join(map(str, choices))}", lambda value: value in choices)


Count = Annotated[int, Expected("at least 1", lambda value: value >= 1)]
Whole = Annotated[int, Expected("0 or more", lambda value: value >= 0)]
Positive = Annotated[float, Expected("a number above 0", lambda value: 0 < value < math.inf)]
NotNegative = Annotated[float, Expected("0 or more", lambda value: 0 <= value < math.inf)]
Share = Annotated[float, Expected("a share from 0 to 1", lambda value: 0 <= value <= 1)]
ProperShare = Annotated[float, Expected("a share between 0 and 1", lambda value: 0 < value < 1)]

SAME, ROUNDING, LONGER = ({"result": kind} for kind in ("same", "rounding", "longer"))
"""Metadata of a field: which result a run has that goes on with another value."""
Dtype = Annotated[str, one_of("float32", "bfloat16")]
Indicator = Annotated[str, one_of("embedding", "text")]
StatisticsOf = Annotated[str, one_of("checkpoint", "data")]
Command = Annotated[
    str, Expected("a command, quoted as for a shell, whose program is here", lambda value: _is_command(value))
]
ValueForm = Annotated[str, one_of("expert", "separate")]


def _is_command(text: str) -> bool:
    try:
        words = shlex.split(text)
    except ValueError:  # a quote that is not closed
        return False
    return bool(words) and shutil.which(words[0]) is not None


def wrong_values(config: Any, section: str = "") -> Iterator[str]:
    """Yield a line for each value of a configuration, a dataclass, that its field does not allow."""
    for name, hint in typing.get_type_hints(type(config), include_extras=True).items():
        key, value = f"{section}{name}", getattr(config, name)
        if is_dataclass(value):
            yield from wrong_values(value, f"{key}.")
        elif isinstance(value, list) and value and all(map(is_dataclass, value)):
            for number, entry in enumerate(value):
                yield from wrong_values(entry, f"{key}[{number}].")
        elif value is not None:
            wrong = [expected for expected in _expectations(hint) if not expected.is_right(value)]
            yield from (f"{key}: expected {expected.text}, found {value!r}" for expected in wrong)


def _expectations(hint: Any) -> list[Expected]:
    parts = [hint, *typing.get_args(hint)]  # of `Count | None` too
    return [x for part in parts for x in getattr(part, "__metadata__", ()) if isinstance(x, Expected)]
