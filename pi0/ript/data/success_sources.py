"""Where the success of episodes is said: a table, a column of the data set, a rule on the last state."""

import csv
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from pi0.ript.data.columns import UNKNOWN, answers, whole_numbers
from pi0.ript.data.frame_set import FrameSet
from pi0.ript.data.records import EpisodeDataError
from pi0.ript.data.tables import UNREADABLE, reason_of

CSV_COLUMNS = ("episode_index", "success")
_WORDS = {"0": False, "false": False, "1": True, "true": True}
_COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}
_RULE = re.compile(
    r"\s*(?:observation\.)?state\s*\[\s*(?P<dimension>[^\[\]]*[^\[\]\s])\s*\]"
    r"\s*(?P<comparison>[<>]=?)\s*(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*"
)


def successes_in_table(path: Path) -> dict[int, bool]:
    """Return the success of the episodes in a CSV file with the columns `CSV_COLUMNS`; others are not read.

    Raises:
        EpisodeDataError: It cannot be read, or a line is none of one episode with 0, 1, true or false.
    """
    labels: dict[int, bool] = {}
    try:
        with path.open(
            encoding="utf-8-sig", newline=""
        ) as file:  # Excel writes a mark before the first letter
            rows = csv.DictReader(file, skipinitialspace=True)
            header = rows.fieldnames or []
            if not set(CSV_COLUMNS) <= set(header):
                raise EpisodeDataError(
                    f"{path}: expected a first line with {','.join(CSV_COLUMNS)}, found {header}"
                )
            for row in rows:
                number, success = _labelled(row, f"{path}, line {rows.line_num}")
                if number in labels:
                    raise EpisodeDataError(
                        f"{path}, line {rows.line_num}: expected each episode once, found {number} again"
                    )
                labels[number] = success
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise EpisodeDataError(f"{path}: expected a CSV file, found {reason_of(error)}") from error
    return labels


def _labelled(row: Mapping[str, str | None], where: str) -> tuple[int, bool]:
    number, word = ((row[name] or "").strip() for name in CSV_COLUMNS)
    if not (number.isascii() and number.isdecimal()):
        raise EpisodeDataError(f"{where}: episode_index: expected a whole number, found {number!r}")
    if word.lower() not in _WORDS:
        raise EpisodeDataError(
            f"{where}: success: expected 0, 1, true or false, found {word!r}; leave out the line of an "
            "episode that nobody can judge"
        )
    return int(number), _WORDS[word.lower()]


def successes_in_column(root: Path, name: str) -> dict[int, bool]:
    """Return the success that a column of a data set says: of its frames, or of meta/episodes.

    An episode of which any frame says yes succeeded; what no frame says anything of is left out.

    Raises:
        EpisodeDataError: There is no such column, or it is not one of yes and no.
    """
    for folder in ("data", "meta/episodes"):
        paths = sorted((root / folder).glob("*/*.parquet"))
        parts = [part for path in paths if (part := _answers_of_episodes(path, name)) is not None]
        if parts:
            episodes, said = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
            numbers, place = np.unique(episodes, return_inverse=True)
            best = np.full(len(numbers), UNKNOWN)
            np.maximum.at(best, place, said)
            return {n: bool(x) for n, x in zip(numbers.tolist(), best.tolist(), strict=True) if x != UNKNOWN}
    raise EpisodeDataError(f"{root}: expected a column {name!r} in data/ or meta/episodes, found none")


def _answers_of_episodes(path: Path, name: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the episode of each row of a file and what a column says there; None without the column."""
    try:
        file = pq.ParquetFile(path)
        if name not in file.schema_arrow.names:
            return None
        table = file.read(["episode_index", name])
        return whole_numbers(table.column("episode_index")), answers(table.column(name))
    except UNREADABLE as error:
        raise EpisodeDataError(f"{path}: {name}: {reason_of(error)}; label by --csv or --rule") from error


@dataclass(frozen=True)
class Rule:
    """An episode succeeded if a dimension of its last state compares so with a number."""

    dimension: str
    """Its index, or the name that meta/info.json gives it."""
    comparison: str
    number: float

    @classmethod
    def parse(cls, text: str) -> "Rule":
        """Return the rule that a text like "state[7] > 0.04" says; nothing in it is run.

        Raises:
            EpisodeDataError: It says none.
        """
        found = _RULE.fullmatch(text)
        if found is None:
            raise EpisodeDataError(
                f"expected state[INDEX or NAME], one of {' '.join(_COMPARISONS)}, and a number, as "
                f"'state[7] > 0.04', found {text!r}"
            )
        return cls(found["dimension"], found["comparison"], float(found["number"]))

    def successes(self, frames: FrameSet, names: Sequence[str]) -> dict[int, bool]:
        """Return the success of each episode; the number is rounded as the states are, to float32.

        Args:
            frames: The data set.
            names: Of the dimensions of its states; empty where nobody knows.

        Raises:
            EpisodeDataError: There is no such dimension, or a last state is not finite.
        """
        last = frames.states[np.cumsum(frames.lengths) - 1, self._index(frames, names)]
        if not np.isfinite(last).all():
            number = int(frames.episodes[~np.isfinite(last)][0])
            raise EpisodeDataError(
                f"{frames.name}: --rule: expected finite states, found none at the end of {number}"
            )
        ended = _COMPARISONS[self.comparison](last, np.float32(self.number))
        return dict(zip(frames.episodes.tolist(), ended.tolist(), strict=True))

    def _index(self, frames: FrameSet, names: Sequence[str]) -> int:
        width = frames.states.shape[1]
        index = int(self.dimension) if self.dimension.isdecimal() else -1
        if names.count(self.dimension) == 1:
            index = names.index(self.dimension)
        if not 0 <= index < width:
            known = f" or a name among {', '.join(names)}" if names else "; its dimensions have no names"
            raise EpisodeDataError(
                f"{frames.name}: --rule: expected an index from 0 to {width - 1}{known}, "
                f"found {self.dimension!r}"
            )
        return index


def dimension_names(feature: Mapping[str, Any]) -> list[str]:
    """Return the names of a vector's dimensions in meta/info.json, which nests them in several ways."""
    names = list(_leaves(feature.get("names")))
    return names if len(names) == int(np.prod(feature.get("shape") or [0])) else []


def _leaves(names: Any) -> Iterator[str]:
    if isinstance(names, str):
        yield names
    elif isinstance(names, Mapping):
        for key, value in names.items():
            yield from [str(key)] if isinstance(value, int) else _leaves(value)
    elif isinstance(names, Sequence):
        for name in names:
            yield from _leaves(name)
