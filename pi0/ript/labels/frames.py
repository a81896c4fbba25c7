"""What a value function says of the frames of all sources, as a round's `frames.npz` holds it.

Axes: n frame of a source, one episode after the other; e episode.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float64, Int64

from pi0.ript.data.records import EpisodeDataError
from pi0.ript.envs.initial_state import UNREADABLE
from pi0.ript.labels.advantages import frame_limits, from_json
from pi0.ript.labels.sources import Source

FRAMES_FILE = "frames.npz"
THRESHOLDS_FILE = "thresholds.json"


@dataclass(frozen=True)
class LabelledFrames:
    """The frames of one source."""

    advantages: Float64[np.ndarray, " n"]
    """NaN where there is none."""
    lengths: Int64[np.ndarray, " e"]
    values: Float64[np.ndarray, " n"] | None = None
    returns: Float64[np.ndarray, " n"] | None = None
    tasks: tuple[str, ...] | None = None
    """Task of each frame; None where nobody wrote it down."""
    labels: Bool[np.ndarray, " n"] | None = None
    """Which frames are positive; None: those above the threshold."""

    def limits(self, epsilon: Mapping[str, float]) -> Float64[np.ndarray, " n"] | None:
        """Return the threshold of each frame; None if there is none, or it cannot be told without tasks."""
        if not epsilon or (self.tasks is None and len(set(epsilon.values())) > 1):
            return None
        if self.tasks is None:
            return np.full(len(self.advantages), next(iter(epsilon.values())))
        return frame_limits(self.tasks, epsilon)

    def positive(self, epsilon: Mapping[str, float]) -> Bool[np.ndarray, " n"] | None:
        """Return which frames are positive; None if that was not written down, nor `limits` can be told."""
        limits = self.limits(epsilon)
        if self.labels is not None or limits is None:
            return self.labels
        return self.advantages > limits

    def episode(self, index: int) -> "LabelledFrames":
        """Return one episode."""
        first = int(self.lengths[:index].sum())
        rows = slice(first, first + int(self.lengths[index]))
        return LabelledFrames(
            self.advantages[rows],
            self.lengths[index : index + 1],
            None if self.values is None else self.values[rows],
            None if self.returns is None else self.returns[rows],
            None if self.tasks is None else self.tasks[rows],
            None if self.labels is None else self.labels[rows],
        )


def read_labelled_frames(path: Path) -> dict[str, LabelledFrames]:
    """Return the frames of each source of a `frames.npz`, in the file's order.

    The file holds the arrays `SOURCE/values`, `SOURCE/returns`, `SOURCE/advantages`, `SOURCE/lengths` and
    perhaps `SOURCE/positive` and `SOURCE/tasks`, of each episode or, where one has several, of each frame.

    Raises:
        EpisodeDataError: An array is missing, has another length than its episodes, or is no array.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file.items())
    except UNREADABLE as error:
        raise EpisodeDataError(f"{path}: expected arrays in NumPy's npz format, found {error}") from error
    names = dict.fromkeys(key.rpartition("/")[0] for key in arrays)
    return {name: _source(path, name, arrays) for name in names}


def read_thresholds(path: Path) -> dict[str, float]:
    """Return epsilon by task id; empty where there is no file."""
    if not path.exists():
        return {}
    return from_json(json.loads(path.read_text()))


def read_positive(directory: Path, sources: Sequence[Source]) -> list[Bool[np.ndarray, " n"]]:
    """Return which frames of each source are positive, as a round's labels in a directory say.

    Where they do not say of which task a frame is, the data set does.

    Raises:
        EpisodeDataError: There are neither labels nor thresholds for a source.
    """
    epsilon = read_thresholds(directory / THRESHOLDS_FILE)
    frames, positive = read_labelled_frames(directory / FRAMES_FILE), []
    for source in sources:
        labelled, chosen = frames.get(source.name), None
        if labelled is not None:
            chosen = labelled.positive(epsilon)
        if labelled is not None and chosen is None:
            chosen = replace(labelled, tasks=tuple(source.frame_tasks())).positive(epsilon)
        if chosen is None:
            raise EpisodeDataError(
                f"{directory}: expected labels or thresholds for the frames of {source.name}, found none; "
                "remove the directory, and the run makes it again"
            )
        positive.append(chosen)
    return positive


def _source(path: Path, name: str, arrays: Mapping[str, np.ndarray]) -> LabelledFrames:
    required = ("values", "returns", "advantages", "lengths")
    missing = [f"{name}/{kind}" for kind in required if f"{name}/{kind}" not in arrays]
    if missing:
        raise EpisodeDataError(f"{path}: expected arrays {missing} beside those of {name!r}, found none")
    lengths = arrays[f"{name}/lengths"].astype(np.int64)
    columns = {kind: arrays[f"{name}/{kind}"].astype(np.float64) for kind in required[:3]}
    tasks, labels = arrays.get(f"{name}/tasks"), arrays.get(f"{name}/positive")
    if labels is not None:
        columns["positive"] = labels.astype(bool)
    for kind, column in columns.items():
        if column.shape != (lengths.sum(),):
            raise EpisodeDataError(
                f"{path}: {name}/{kind}: expected one number for each of the {lengths.sum()} frames of "
                f"{name}/lengths, found shape {column.shape}; compute the advantages again"
            )
    if tasks is not None and tasks.shape == lengths.shape:
        tasks = np.repeat(tasks, lengths)
    if tasks is not None and tasks.shape != (lengths.sum(),):
        raise EpisodeDataError(
            f"{path}: {name}/tasks: expected one for each of {len(lengths)} episodes or each of their "
            f"frames, found {tasks.shape}"
        )
    return LabelledFrames(
        columns["advantages"],
        lengths,
        columns["values"],
        columns["returns"],
        None if tasks is None else tuple(map(str, tasks.tolist())),
        columns.get("positive"),
    )
