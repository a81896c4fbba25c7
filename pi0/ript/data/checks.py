"""What must hold between the tables of a data set, so that every frame is what it says it is.

An episode with a fault is not looked at again: a missing frame would also show in its length, its times and
its video. Axes: n frame of the set, e episode.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64, Shaped

from pi0.features import ACTION, STATE
from pi0.ript.data.columns import UNKNOWN
from pi0.ript.data.tables import FETCH_AGAIN, Fault, FrameTable

LEAVE_OUT = "correct it, or leave the episode out (excluded_episodes)"
_LARGEST_JITTER = 0.99  # of a frame, between the earliest and the latest of an episode


@dataclass(frozen=True)
class Tables:
    """All tables of a data set."""

    info: Mapping[str, Any]
    """meta/info.json."""
    tasks: Mapping[int, str]
    """Instructions by task_index."""
    rows: Mapping[int, Mapping[str, Any]]
    """Of meta/episodes, by episode_index."""
    frames: FrameTable
    names: Mapping[str, str]
    """Columns of `STATE` and `ACTION`."""


def episode_faults(
    rows: Sequence[Mapping[str, Any]], frames: FrameTable, only: Collection[int] | None
) -> list[Fault]:
    """Return the episodes that only one of meta/episodes and data/ has, or that one has twice."""
    described = Counter(row["episode_index"] for row in rows if only is None or row["episode_index"] in only)
    there = set(frames.episodes.tolist())
    where, remedy = "meta/episodes: episode_index", FETCH_AGAIN
    faults = [Fault(where, f"expected one row, found {count}", "keep the row that is right", (number,))
              for number, count in described.items() if count > 1]  # fmt: skip
    faults += [Fault(where, "expected frames in data/, found none", remedy, (number,))
               for number in sorted(described.keys() - there)]  # fmt: skip
    faults += [Fault(where, "expected a row for its frames in data/, found none", remedy, (number,))
               for number in sorted(there - described.keys())]  # fmt: skip
    return faults


def table_faults(tables: Tables, bad: set[int]) -> list[Fault]:
    """Return what does not hold in the episodes that are not `bad`, to which those with a fault are added."""
    checks: list[Callable[[Tables], Iterator[Fault]]] = [
        *(_frame_numbers, _index_collides, _index_rises, _lengths, _bounds, _task_numbers, _task_names),
        *(_timestamps, _finite, _success),
    ]
    faults = []
    for check in checks:
        new = [fault for fault in check(tables) if bad.isdisjoint(fault.episodes)]
        bad.update(episode for fault in new for episode in fault.episodes)
        faults += new
    return faults


def total_faults(tables: Tables) -> Iterator[Fault]:
    """Yield what meta/info.json counts otherwise; of use where nothing else is wrong."""
    frames = tables.frames
    for key, count in (("total_frames", len(frames.row)), ("total_episodes", len(frames.episodes))):
        if tables.info.get(key) != count:
            what = f"expected {count} as in data/, found {tables.info.get(key)!r}"
            yield Fault(f"meta/info.json: {key}", what, FETCH_AGAIN)


# Frames -----------------------------------------------------------------------------------------------------


def _episodes_with(frames: FrameTable, wrong: Bool[np.ndarray, " n"]) -> Iterator[tuple[int, int, int]]:
    """Yield the number, the first frame and the first wrong frame of each episode that has one."""
    first_wrong = np.flatnonzero(wrong)
    owner = np.searchsorted(frames.starts, first_wrong, side="right") - 1
    owner, at = np.unique(owner, return_index=True)
    for number, start, frame in zip(
        frames.episodes[owner], frames.starts[owner], first_wrong[at], strict=True
    ):
        yield int(number), int(start), int(frame)


def _by_frame(frames: FrameTable, values: Shaped[np.ndarray, " e"]) -> Shaped[np.ndarray, " n"]:
    return np.repeat(values, frames.lengths)


def _frame_numbers(tables: Tables) -> Iterator[Fault]:
    frames, numbers = tables.frames, tables.frames.columns["frame_index"]
    expected: np.ndarray = np.arange(len(numbers)) - _by_frame(frames, frames.starts)
    for episode, start, frame in _episodes_with(frames, numbers != expected):
        is_repeated = frame > start and numbers[frame] == numbers[frame - 1]
        what = f"{numbers[frame]} twice" if is_repeated else f"no {expected[frame]}"
        remedy = "a frame is missing or repeated: leave the episode out (excluded_episodes), or make it again"
        yield Fault("data: frame_index", f"expected 0, 1, 2 ..., found {what}", remedy, (episode,))


def _index_collides(tables: Tables) -> Iterator[Fault]:
    frames, index = tables.frames, tables.frames.columns["index"]
    order = np.argsort(index, kind="stable")
    again = order[1:][np.diff(index[order]) == 0]
    before = order[:-1][np.diff(index[order]) == 0]
    episodes = frames.columns["episode_index"]
    seen: set[tuple[int, ...]] = set()
    for a, b in zip(before.tolist(), again.tolist(), strict=True):
        pair = tuple(sorted({int(episodes[a]), int(episodes[b])}))
        if pair not in seen:
            seen.add(pair)
            what = f"expected a number of its own for every frame, found {index[a]} twice"
            yield Fault("data: index", what, "number the frames of the set anew", pair)


def _index_rises(tables: Tables) -> Iterator[Fault]:
    frames, index = tables.frames, tables.frames.columns["index"]
    wrong = np.diff(index, prepend=index[0] - 1) != 1
    wrong[frames.starts] = False
    for episode, start, frame in _episodes_with(frames, wrong):
        what = f"expected {index[frame - 1] + 1} in frame {frame - start}, found {index[frame]}"
        yield Fault("data: index", what, "number the frames in their order", (episode,))


def _timestamps(tables: Tables) -> Iterator[Fault]:
    frames, fps = tables.frames, float(tables.info["fps"])
    late = frames.timestamps * fps - frames.columns["frame_index"]  # in frames, but for the episode's offset
    for episode, start, frame in _episodes_with(frames, ~np.isfinite(late)):
        what = f"expected seconds, found {frames.timestamps[frame]} in frame {frame - start}"
        yield Fault("data: timestamp", what, LEAVE_OUT, (episode,))
    low = np.minimum.reduceat(late, frames.starts)
    spread = np.maximum.reduceat(late, frames.starts) - low
    for e in np.flatnonzero(spread > _LARGEST_JITTER).tolist():
        rows = slice(frames.starts[e], frames.starts[e] + frames.lengths[e])
        frame = int(np.abs(late[rows] - np.median(late[rows])).argmax())
        what = (
            f"expected frames every {1 / fps:.6g} s (fps {fps:g}) within half a frame, found frame {frame} "
            f"{(late[rows][frame] - np.median(late[rows])) / fps:+.6g} s off"
        )
        remedy = "correct fps or the times, or leave the episode out (excluded_episodes)"
        yield Fault("data: timestamp", what, remedy, (int(frames.episodes[e]),))


def _finite(tables: Tables) -> Iterator[Fault]:
    frames = tables.frames
    for key, values in ((STATE, frames.states), (ACTION, frames.actions)):
        for episode, start, frame in _episodes_with(frames, (~np.isfinite(values)).sum(axis=1) > 0):
            found = values[frame][~np.isfinite(values[frame])][0]
            what = f"expected finite numbers, found {found} in frame {frame - start}"
            yield Fault(f"data: {tables.names[key]}", what, LEAVE_OUT, (episode,))


# meta/episodes ----------------------------------------------------------------------------------------------


def _described(tables: Tables, key: str) -> Iterator[tuple[int, int, Any]]:
    """Yield place, number and value of the episodes that meta/episodes describes by a key."""
    for place, number in enumerate(tables.frames.episodes.tolist()):
        value = tables.rows.get(number, {}).get(key)
        if value is not None:
            yield place, number, value


def _lengths(tables: Tables) -> Iterator[Fault]:
    for place, number, length in _described(tables, "length"):
        if length != tables.frames.lengths[place]:
            what = f"expected {tables.frames.lengths[place]} as there are frames, found {length}"
            yield Fault("meta/episodes: length", what, LEAVE_OUT, (number,))


def _bounds(tables: Tables) -> Iterator[Fault]:
    """Yield the episodes whose bounds are neither in numbers of frames (`index`) nor in places of frames."""
    frames = tables.frames
    stored = {
        number: (first, tables.rows[number]["dataset_to_index"])
        for _, number, first in _described(tables, "dataset_from_index")
        if tables.rows[number].get("dataset_to_index") is not None
    }
    expected = [
        {number: (int(first), int(first + length))
         for number, first, length in zip(frames.episodes.tolist(), firsts, frames.lengths, strict=True)}
        for firsts in (frames.columns["index"][frames.starts], frames.starts)
    ]  # fmt: skip
    wrong = [[number for number, bounds in stored.items() if bounds != by[number]] for by in expected]
    best = min((0, 1), key=lambda convention: len(wrong[convention]))
    for number in wrong[best]:
        (first, end), found = expected[best][number], stored[number]
        what = f"expected frames {first} to {end - 1}, found {found[0]} to {found[1]} (exclusive)"
        yield Fault("meta/episodes: dataset_from_index, dataset_to_index", what, LEAVE_OUT, (number,))


def _task_pairs(tables: Tables) -> list[tuple[int, int]]:
    """Return every (episode, task_index) that the frames have."""
    columns = tables.frames.columns
    pairs = np.stack([columns["episode_index"], columns["task_index"]], axis=1)
    return [(int(episode), int(task)) for episode, task in np.unique(pairs, axis=0)]


def _task_numbers(tables: Tables) -> Iterator[Fault]:
    for episode, task in _task_pairs(tables):
        if task not in tables.tasks:
            known = f"one of {min(tables.tasks)} to {max(tables.tasks)}" if tables.tasks else "a task"
            what = f"expected {known} of meta/tasks.parquet, found {task}"
            yield Fault(
                "data: task_index", what, "add the task's instruction to meta/tasks.parquet", (episode,)
            )


def _task_names(tables: Tables) -> Iterator[Fault]:
    for episode, task in _task_pairs(tables):
        named = tables.rows.get(episode, {}).get("tasks")
        named = [named] if isinstance(named, str) else named
        text = tables.tasks.get(task)
        if named is not None and text not in named:
            what = f"expected {text!r} as its frames say, found {named}"
            yield Fault("meta/episodes: tasks", what, LEAVE_OUT, (episode,))


def _success(tables: Tables) -> Iterator[Fault]:
    frame_labels = success_labels(tables.frames)
    for place, number, label in _described(tables, "success"):
        if label not in (0, 1):
            what = f"expected 0, 1, true or false, found {label!r}"
            yield Fault("meta/episodes: success", what, LEAVE_OUT, (number,))
        elif frame_labels[place] not in (UNKNOWN, int(label)):
            what = f"expected {bool(frame_labels[place])} as its frames say, found {label}"
            yield Fault("meta/episodes: success", what, LEAVE_OUT, (number,))


def success_labels(frames: FrameTable) -> Int64[np.ndarray, " e"]:
    """Return what the frames say of each episode: 1 if any says yes, else 0 if any says no, else UNKNOWN."""
    return np.maximum.reduceat(frames.success.astype(np.int64), frames.starts)
