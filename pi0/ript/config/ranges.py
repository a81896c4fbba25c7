"""What values the keys of a configuration may have."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from pi0.ript.files import flatten


@dataclass(frozen=True)
class Ranges:
    """Dotted keys by what is expected of them; None is right everywhere."""

    counts: tuple[str, ...] = ()
    positive: tuple[str, ...] = ()
    not_negative: tuple[str, ...] = ()
    choices: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def problems(self, config: Any) -> Iterator[str]:
        """Yield what is wrong with a configuration, a dataclass."""
        values = flatten(asdict(config))
        for keys, is_right, expected in (
            (self.counts, lambda value: 1 <= value < math.inf, "at least 1"),
            (self.positive, lambda value: 0 < value < math.inf, "a number above 0"),
            (self.not_negative, lambda value: 0 <= value < math.inf, "0 or more"),
        ):
            for key in keys:
                if values[key] is not None and not is_right(values[key]):
                    yield f"{key}: expected {expected}, found {values[key]}"
        for key, known in self.choices.items():
            if values[key] is not None and values[key] not in known:
                yield f"{key}: expected one of {', '.join(map(str, known))}, found {values[key]!r}"
