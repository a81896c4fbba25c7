"""The tables of a data set as they are on disk: meta/ and the small columns of data/, never its images.

What cannot be read is a `Fault`; whether the tables agree with each other is for `checks.py`.

Axes: n frame of the set, e episode, g row group of a file, r row of a file, s state dim, a action dim.
"""

import json
import math
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Float32, Float64, Int8, Int64

from pi0.features import ACTION, STATE
from pi0.ript.data.columns import UNKNOWN, answers, numbers, one_number, whole_numbers
from pi0.ript.data.records import INTERVENTION

FETCH_AGAIN = "the copy is damaged or incomplete, fetch or make it again"
_NUMBERED = ("episode_index", "frame_index", "index", "task_index")
_ANSWERS = ("success", INTERVENTION)
_AS_NUMBERS = "write it as numbers, or leave the row out"
_REMEDIES = {
    "success": "write it as booleans, or give the column another name and label the set with pi0-label",
    INTERVENTION: "write it as booleans, or say that it is something else: {intervention: null} in "
    "data_features_name_mapping",
}
_EXAMPLES = 3  # episodes that a line names
UNREADABLE = (OSError, pa.ArrowException, ValueError, KeyError)


@dataclass(frozen=True)
class Fault:
    """One thing in a data set that is not as it must be."""

    where: str
    """File or folder below the set's root, and column: "meta/episodes: length"."""
    what: str
    """What was expected and what was found."""
    remedy: str
    episodes: tuple[int, ...] = ()
    """The episodes that cannot be believed because of it; (): none can."""


def fault_lines(root: Path, faults: Iterable[Fault]) -> list[str]:
    """Return a line for each fault; episodes with the same fault share one."""
    return [f"{root}: {text}; {remedy}" for text, remedy in told_faults(faults, _EXAMPLES)]


def told_faults(faults: Iterable[Fault], examples: int | None = None) -> list[tuple[str, str]]:
    """Return text and remedy of each fault; one that several episodes have names some of them as examples."""
    groups: dict[tuple[str, str], list[str]] = {}
    for fault in faults:
        whose = ", ".join(map(str, fault.episodes[:examples]))
        more = " ..." if len(fault.episodes) > len(fault.episodes[:examples]) else ""
        groups.setdefault((fault.where, fault.remedy), []).append(
            f"episode {whose}{more}: {fault.what}" if whose else fault.what
        )
    told = []
    for (where, remedy), each in groups.items():
        left_out = len(each) - len(each[:examples])
        named = [*each[:examples], *([f"and {left_out} more"] if left_out else [])]
        told.append((f"{where}: {'; '.join(named)}", remedy))
    return told


def reason_of(error: BaseException) -> str:
    """Return what an exception says, as a part of one line."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    return " ".join(str(error).split())[:200] or type(error).__name__


# meta/ ------------------------------------------------------------------------------------------------------


def read_info(root: Path, faults: list[Fault]) -> dict[str, Any] | None:
    """Return meta/info.json, None if it cannot be used."""
    where = "meta/info.json"
    try:
        info = json.loads((root / where).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        faults.append(Fault(where, f"expected a JSON file, found {reason_of(error)}", FETCH_AGAIN))
        return None
    features = info.get("features") if isinstance(info, dict) else None
    if not isinstance(features, dict) or not all(isinstance(x, dict) for x in features.values()):
        faults.append(Fault(where, "expected a table of features, found none", FETCH_AGAIN))
        return None
    version, fps = str(info.get("codebase_version")), info.get("fps")
    if not version.startswith("v3."):
        remedy = "convert it: python -m lerobot.scripts.convert_dataset_v21_to_v30"
        faults.append(Fault(where, f"expected a LeRobotDataset v3.x, found {version}", remedy))
        return None
    if isinstance(fps, bool) or not isinstance(fps, int | float) or not 0 < fps < math.inf:
        remedy = "write the rate at which the frames were recorded"
        faults.append(Fault(f"{where}: fps", f"expected a number above 0, found {fps!r}", remedy))
        return None
    return info


def read_tasks(root: Path, faults: list[Fault]) -> dict[int, str] | None:
    """Return the instructions of meta/tasks.parquet by task_index, ascending; None if it cannot be used."""
    where = "meta/tasks.parquet"
    try:
        table = pq.ParquetFile(root / where).read()
        numbers = whole_numbers(table.column("task_index")).tolist()
        texts = _texts(table)
    except UNREADABLE as error:
        what = f"expected columns task_index and task, found {reason_of(error)}"
        faults.append(Fault(where, what, FETCH_AGAIN))
        return None
    tasks: dict[int, str] = {}
    for number, text in sorted(zip(numbers, texts, strict=True)):
        if tasks.setdefault(number, text) != text:
            what = f"expected one text for {number}, found {tasks[number]!r} and {text!r}"
            faults.append(Fault(f"{where}: task_index", what, "give every instruction a number of its own"))
            return None
    return tasks


def _texts(table: pa.Table) -> list[str]:
    """Return the instructions, whose column pandas names in several ways."""
    for name in ("task", "__index_level_0__", *table.column_names):
        if name in table.column_names and str(table.schema.field(name).type) in ("string", "large_string"):
            texts = table.column(name).to_pylist()
            if None in texts:
                raise ValueError(f"no text in row {texts.index(None)}")
            return texts
    raise ValueError(f"the columns {', '.join(table.column_names)}")


def read_episodes(root: Path, faults: list[Fault]) -> list[dict[str, Any]] | None:
    """Return the rows of meta/episodes by episode_index, without statistics; None if they cannot be used."""
    where = "meta/episodes"
    paths = sorted((root / where).glob("*/*.parquet"))
    if not paths:
        faults.append(Fault(where, "expected */*.parquet, found none", FETCH_AGAIN))
        return None
    rows: list[dict[str, Any]] = []
    for path in paths:
        try:
            file = pq.ParquetFile(path)
            names = [x for x in file.schema_arrow.names if not x.startswith("stats/")]
            table = file.read(names)
            numbers = whole_numbers(table.column("episode_index")).tolist() if len(table) else []
            # One name can be the beginning of another, whose column is read with it.
            found = table.select([x for x in table.column_names if not x.startswith("stats/")]).to_pylist()
        except UNREADABLE as error:
            place = str(path.relative_to(root))
            faults.append(
                Fault(place, f"expected a table of episodes, found {reason_of(error)}", FETCH_AGAIN)
            )
            return None
        rows += [row | {"episode_index": number} for row, number in zip(found, numbers, strict=True)]
    return sorted(rows, key=lambda row: row["episode_index"])


# data/ ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DataFile:
    """A file of data/."""

    path: Path
    group_ends: Int64[np.ndarray, " g"]
    """Row behind each of its row groups."""


@dataclass(frozen=True)
class FrameTable:
    """The frames of a set, sorted by episode and frame."""

    files: tuple[DataFile, ...]
    columns: Mapping[str, Int64[np.ndarray, " n"]]
    """episode_index, frame_index, index and task_index."""
    timestamps: Float64[np.ndarray, " n"]
    states: Float32[np.ndarray, "n s"]
    actions: Float32[np.ndarray, "n a"]
    success: Int8[np.ndarray, " n"]
    """As `columns.answers`."""
    is_corrected: Bool[np.ndarray, " n"]
    """Where a person acted in place of the policy."""
    file: Int64[np.ndarray, " n"]
    """Of each frame, in `files`."""
    row: Int64[np.ndarray, " n"]
    """Of each frame, in its file."""

    @property
    def starts(self) -> Int64[np.ndarray, " e"]:
        """Return the first frame of each episode."""
        numbers = self.columns["episode_index"]
        return np.flatnonzero(np.diff(numbers, prepend=numbers[0] - 1))

    @property
    def lengths(self) -> Int64[np.ndarray, " e"]:
        """Return the number of frames of each episode."""
        return np.diff(self.starts, append=len(self.row))

    @property
    def episodes(self) -> Int64[np.ndarray, " e"]:
        """Return the number of each episode, ascending."""
        return self.columns["episode_index"][self.starts]

    def rows_at(self, file: int, first: int, end: int) -> Int64[np.ndarray, " r"]:
        """Return which frames are in the rows of a file from `first` to before `end`; -1: none of the set."""
        there = np.full(end - first, -1, np.int64)
        frames = np.flatnonzero((self.file == file) & (self.row >= first) & (self.row < end))
        there[self.row[frames] - first] = frames
        return there


def read_frames(
    root: Path,
    names: Mapping[str, str],
    intervention: str | None,
    only: Collection[int] | None,
    faults: list[Fault],
) -> FrameTable | None:
    """Return the frames; None if they cannot be used.

    Args:
        root: The data set.
        names: Columns of `STATE` and `ACTION`.
        intervention: Column that says where a person acted; None: there is none.
        only: Episodes whose frames count; None: all.
        faults: Of what cannot be read, added to.
    """
    paths = sorted(root.glob("data/*/*.parquet"))
    num_faults = len(faults)
    parts = [part for path in paths if (part := _read_file(root, path, names, intervention, faults))]
    if len(faults) > num_faults:
        return None
    for key, name in names.items():
        widths = {columns[key].shape[1]: file.path for file, columns in parts}
        if len(widths) > 1:
            found = ", ".join(f"{width} in {path.relative_to(root)}" for width, path in widths.items())
            remedy = "merge only sets of the same robot"
            faults.append(Fault(f"data: {name}", f"expected one width, found {found}", remedy))
            return None
    table = (
        {key: np.concatenate([columns[key] for _, columns in parts]) for key in parts[0][1]} if parts else {}
    )
    kept = np.isin(table["episode_index"], list(only)) if parts and only is not None else slice(None)
    if not parts or not len(table["index"][kept]):
        faults.append(Fault("data", "expected frames in */*.parquet, found none", FETCH_AGAIN))
        return None
    lengths = [int(file.group_ends[-1]) for file, _ in parts]
    table["file"] = np.repeat(np.arange(len(parts)), lengths)
    table["row"] = np.concatenate([np.arange(length) for length in lengths])
    order = np.lexsort((table["frame_index"][kept], table["episode_index"][kept]))
    table = {key: values[kept][order] for key, values in table.items()}
    return FrameTable(
        files=tuple(file for file, _ in parts),
        columns={name: table[name] for name in _NUMBERED},
        timestamps=table["timestamp"],
        states=table[STATE],
        actions=table[ACTION],
        success=table["success"],
        is_corrected=table[INTERVENTION] == 1,
        file=table["file"],
        row=table["row"],
    )


def _read_file(
    root: Path, path: Path, names: Mapping[str, str], intervention: str | None, faults: list[Fault]
) -> tuple[DataFile, dict[str, np.ndarray]] | None:
    place = str(path.relative_to(root))
    wanted = {**{name: name for name in (*_NUMBERED, "timestamp")}, **names}
    if intervention is not None:
        wanted[INTERVENTION] = intervention
    try:
        file = pq.ParquetFile(path)
        present = file.schema_arrow.names
        if missing := [name for name in wanted.values() if name not in present]:
            raise KeyError(f"no column {', '.join(missing)} among {', '.join(present)}")
        if "success" in present:
            wanted["success"] = "success"
        table = file.read(list(dict.fromkeys(wanted.values())))
        if not len(table):
            return None
    except UNREADABLE as error:
        faults.append(Fault(place, f"expected a table of frames, found {reason_of(error)}", FETCH_AGAIN))
        return None
    columns = {key: np.full(len(table), UNKNOWN, np.int8) for key in _ANSWERS}
    for key, name in wanted.items():
        try:
            columns[key] = _cells(key, table.column(name))
        except ValueError as error:
            faults.append(Fault(f"{place}: {name}", str(error), _REMEDIES.get(key, _AS_NUMBERS)))
    groups = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
    return DataFile(path, np.cumsum(groups, dtype=np.int64)), columns


def _cells(key: str, column: pa.ChunkedArray) -> np.ndarray:
    """Return a column of the frames as what its key stands for; raise ValueError if it is something else."""
    if key in _NUMBERED:
        return whole_numbers(column)
    if key in _ANSWERS:
        return answers(column)
    if key == "timestamp":
        return one_number(column).astype(np.float64)
    with np.errstate(over="ignore"):  # what is too large is infinite, and found as such
        return numbers(column).astype(np.float32)


def column_names(root: Path) -> list[str]:
    """Return the columns of the first readable file of data/; none if there is none."""
    for path in sorted(root.glob("data/*/*.parquet")):
        with suppress(*UNREADABLE):
            return pq.ParquetFile(path).schema_arrow.names
    return []
