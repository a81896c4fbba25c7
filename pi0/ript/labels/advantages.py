"""Advantages of all frames, the threshold that makes a chosen share of them positive, and their file.

An advantage is compared as `A > epsilon`. What has no advantage is NaN: neither positive nor negative.

Axes: t frame of an episode, e episode, n frame of all episodes.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float64, Int64

from pi0.ript.data.frame_set import FrameSet
from pi0.ript.data.records import EpisodeDataError
from pi0.ript.files import FORMAT, read_versioned_json, write_json, write_text
from pi0.ript.labels.returns import Outcome, n_step_rewards, reaches_end
from pi0.ript.labels.settings import RewardConfig, Scope

ADVANTAGES_PATH = Path("meta/advantages.json")
LINEAGE_PATH = Path("meta/advantages_lineage.json")
MissingAdvantage = Literal["error", "positive", "negative", "drop"]
_ALL = slice(None)
_DECIMALS = 6  # of the file format; computed advantages have no more, so that the file holds what was used


def compute_advantages(
    values: Float64[np.ndarray, " n"],
    lengths: Sequence[int],
    ends: Sequence[Outcome],
    config: RewardConfig,
) -> Float64[np.ndarray, " n"]:
    """Return `A_t = r_t + ... + r_(t+N-1) + V(t+N) - V(t)` of every frame, rounded to 6 decimals.

    V is 0 beyond the end, where the rewards already hold the whole return. `values` are those of all frames,
    one episode after the other.
    """
    if len(values) != sum(lengths):
        raise ValueError(f"values: expected one for each of {sum(lengths)} frames, found {len(values)}")
    parts, first = [], 0
    for length, end in zip(lengths, ends, strict=True):
        v = values[first : first + length]
        later = np.roll(v, -config.N_steps_look_ahead) if config.N_steps_look_ahead < length else v
        later = np.where(reaches_end(length, config.N_steps_look_ahead), 0.0, later)
        parts.append(n_step_rewards(length, end, config) + later - v)
        first += length
    return np.round(np.concatenate(parts), _DECIMALS)


def smoothed(
    advantages: Float64[np.ndarray, " n"], lengths: Sequence[int], decay: float
) -> Float64[np.ndarray, " n"]:
    """Return a mean of the advantages of each frame and of those after it in its episode.

    The k-th after it has the weight `decay^k`. A frame without advantage leaves those before it without.
    """
    means = np.empty_like(advantages)
    for end, length in zip(np.cumsum(lengths).tolist(), lengths, strict=True):
        total = weight = 0.0
        for t in range(end - 1, end - 1 - length, -1):
            total, weight = advantages[t] + decay * total, 1.0 + decay * weight
            means[t] = total / weight
    return np.round(means, _DECIMALS)


def threshold(advantages: Float64[np.ndarray, " n"], positive_fraction: float) -> float:
    """Return epsilon, between two neighbouring advantages, such that `A > epsilon` for the share asked for.

    Exact to one frame: round(share * n) frames are positive. Where equal advantages straddle that place, all
    of them get one label, whichever brings the share nearer (negative if both are as near). Frames without
    advantage (NaN) do not count.

    Raises:
        ValueError: The share is not in [0, 1], or no frame has an advantage.
    """
    require_share(positive_fraction)
    ranked = np.sort(advantages[np.isfinite(advantages)])[::-1]
    n = len(ranked)
    if n == 0:
        raise ValueError("advantages: no frame has one, so there is no threshold; label the data first")
    k = round(positive_fraction * n)
    if 0 < k < n and ranked[k - 1] == ranked[k]:
        above, through = int((ranked > ranked[k]).sum()), int((ranked >= ranked[k]).sum())
        k = above if k - above <= through - k else through
    if k == 0:
        return float(np.nextafter(ranked[0], np.inf))
    if k == n:
        return float(np.nextafter(ranked[-1], -np.inf))
    low, high = float(ranked[k]), float(ranked[k - 1])
    middle = low + (high - low) / 2
    return middle if middle < high else low


def require_share(positive_fraction: float) -> None:
    """Raise ValueError unless the share of positive frames that is asked for is one."""
    if not 0.0 <= positive_fraction <= 1.0:
        raise ValueError(f"positive_fraction: expected a share in [0, 1], found {positive_fraction}")


def thresholds(
    advantages: Float64[np.ndarray, " n"],
    tasks: Sequence[str],
    positive_fraction: float,
    scope: Scope = "global",
) -> dict[str, float]:
    """Return epsilon for each task: one for all, or each its own, so that hard tasks have positives too."""
    if len(tasks) != len(advantages):
        raise ValueError(f"tasks: expected one for each of {len(advantages)} frames, found {len(tasks)}")
    known = sorted(set(tasks))
    if scope == "global":
        return dict.fromkeys(known, threshold(advantages, positive_fraction))
    numbers = {task: number for number, task in enumerate(known)}
    task_of = np.array([numbers[task] for task in tasks], np.int64)
    by_task = advantages[np.argsort(task_of, kind="stable")]  # sorted once, however many tasks there are
    ends = np.cumsum(np.bincount(task_of, minlength=len(known)))
    return {
        task: threshold(of_task, positive_fraction)
        for task, of_task in zip(known, np.split(by_task, ends[:-1]), strict=True)
    }


def is_positive(
    advantages: Float64[np.ndarray, " n"], tasks: Sequence[str], epsilon: Mapping[str, float]
) -> Bool[np.ndarray, " n"]:
    """Return which frames are better than their task's epsilon; False where there is no advantage."""
    return advantages > frame_limits(tasks, epsilon)


def positive_frames(
    frames: FrameSet,
    advantages: Float64[np.ndarray, " n"],
    tasks: Sequence[str],
    epsilon: Mapping[str, float],
    *,
    only_successes: bool,
) -> Bool[np.ndarray, " n"]:
    """Return which frames are positive: better than their task's epsilon, or corrected by a person.

    `only_successes`: a failure's frames are better only where they count so for want of an advantage
    (infinity, `fill_missing`), because epsilon was found among successes.
    """
    is_better = is_positive(advantages, tasks, epsilon)
    if only_successes:
        is_better &= np.repeat(frames.successes(), frames.lengths) | np.isposinf(advantages)
    return is_better | frames.is_corrected


def frame_limits(tasks: Sequence[str], epsilon: Mapping[str, float]) -> Float64[np.ndarray, " n"]:
    """Return the epsilon of each frame's task."""
    unknown = sorted(set(tasks) - epsilon.keys())
    if unknown:
        raise ValueError(f"epsilon: expected a threshold for {unknown}, found those of {sorted(epsilon)}")
    return np.array([epsilon[task] for task in tasks])


def to_json(epsilon: Mapping[str, float]) -> dict[str, float | None]:
    """Return thresholds as JSON can hold them: null for a task without one (infinity)."""
    return {task: value if np.isfinite(value) else None for task, value in epsilon.items()}


def from_json(epsilon: Mapping[str, float | None]) -> dict[str, float]:
    """Return what `to_json` was given."""
    return {task: np.inf if value is None else float(value) for task, value in epsilon.items()}


def coverage(advantages: Float64[np.ndarray, " n"]) -> float:
    """Return the share of frames that have an advantage."""
    return float(1.0 - np.isnan(advantages).mean())


def percentiles(advantages: Float64[np.ndarray, " n"]) -> str:
    """Return the percentiles as OpenTau's script prints them (requirement 004, sub-stage 3)."""
    ranks = range(0, 101, 5)
    values = np.percentile(advantages[np.isfinite(advantages)], ranks)
    lines = [f"  {rank:03d}th percentile: {value:.6f}" for rank, value in zip(ranks, values, strict=True)]
    return "\n".join(["Advantage percentiles for deciding epsilon threshold:", *lines])


# Files ------------------------------------------------------------------------------------------------------


def write_advantages(
    directory: str | Path,
    frames: FrameSet,
    advantages: Float64[np.ndarray, " n"],
    lineage: Mapping[str, Any],
) -> Path:
    """Write `meta/advantages.json` as OpenTau reads it, and beside it what it was made from; return its path.

    Missing advantages (NaN) are left out. `lineage` (value function, reward, epsilon ...) is plain JSON; the
    hashes of the episodes and of the file are added to it.
    """
    directory = Path(directory)
    keys = _keys(frames)
    if len(keys) != len(advantages):
        raise ValueError(f"advantages: expected one for each of {len(keys)} frames, found {len(advantages)}")
    if np.isinf(advantages).any():
        raise ValueError("advantages: expected finite numbers, or NaN for a missing one, found infinite ones")
    labelled = zip(keys, advantages.tolist(), strict=True)
    entries = {f"{number},{time}": f"{a:.{_DECIMALS}f}" for (number, time), a in labelled if a == a}
    text = json.dumps(entries, indent=4)
    hashes = _hashes(frames, text)
    hashes["success"] = [label.success for label in frames.labels]
    path = directory / ADVANTAGES_PATH
    # The lineage first: a file without its lineage would pass for one made elsewhere.
    write_json(directory / LINEAGE_PATH, {"format": FORMAT, **lineage, **hashes})
    write_text(path, text)
    return path


def read_advantages(directory: str | Path, frames: FrameSet) -> Float64[np.ndarray, " n"]:
    """Return the advantage of every frame of a data set, from a file of ours or of OpenTau; NaN: it has none.

    Raises:
        EpisodeDataError: No file, or one of other episodes.
    """
    path = Path(directory) / ADVANTAGES_PATH
    if not path.exists():
        raise EpisodeDataError(f"{path} is missing; compute the advantages of this data set first")
    text = path.read_text()
    _require_lineage(path, text, frames)
    keys = _keys(frames)
    known = set(keys)
    entries = {_parsed(path, key, known): float(value) for key, value in json.loads(text).items()}
    strange = entries.keys() - known
    if strange:
        raise EpisodeDataError(
            f"{path}: {len(strange)} of {len(entries)} entries are of no frame of this data set (the first: "
            f"{min(strange)}): it belongs to other episodes or another frame rate; compute advantages again"
        )
    return np.array([entries.get(key, np.nan) for key in keys])


def fill_missing(
    advantages: Float64[np.ndarray, " n"],
    choice: MissingAdvantage,
    name: str | Path,
    used: Int64[np.ndarray, " k"] | slice = _ALL,
) -> Float64[np.ndarray, " n"]:
    """Return advantages in which the missing ones (NaN) are what was chosen for them.

    Args:
        advantages: The advantages of all frames of a data set.
        choice: What a frame without advantage is: an error, always positive or negative, or dropped (NaN).
        name: The name of the data set, for the message.
        used: The frames that count.

    Raises:
        EpisodeDataError: One is missing and that is an error, or none is there and they are to be dropped.
    """
    values = advantages[used]
    count, path = int(np.isnan(values).sum()), Path(name) / ADVANTAGES_PATH
    if count == len(values) and choice == "drop":
        raise EpisodeDataError(
            f"{path}: none of {count} frames has an advantage, so that no frame is left; compute them "
            "(pi0-advantage), or leave the data set out"
        )
    if count and choice == "error":
        raise EpisodeDataError(
            f"{path}: {count} of {len(values)} frames have no advantage; compute them for all frames "
            "(pi0-advantage), leave their episodes out, or set policy.missing_advantage"
        )
    fill = {"positive": np.inf, "drop": np.nan}.get(choice, -np.inf)
    return np.where(np.isnan(advantages), fill, advantages)


def read_lineage(directory: str | Path) -> dict[str, Any]:
    """Return what the advantages of a data set were made from; empty for a file made elsewhere."""
    path = Path(directory) / LINEAGE_PATH
    return read_versioned_json(path) if path.exists() else {}


def _keys(frames: FrameSet) -> list[tuple[int, float]]:
    """Return OpenTau's key of each frame: the episode, and its float32 timestamp.

    Times of a clock are so large that frames would share one; those stay as the set stores them.
    """
    numbers = np.repeat(frames.episodes, frames.lengths).tolist()
    keys = list(zip(numbers, map(float, frames.timestamps.astype(np.float32)), strict=True))
    if len(set(keys)) == len(keys):
        return keys
    return list(zip(numbers, map(float, frames.timestamps), strict=True))


def _parsed(path: Path, key: str, known: Set[tuple[int, float]]) -> tuple[int, float]:
    """Return a key of a file as that of the frame that it is of, if there is one."""
    episode, _, timestamp = key.partition(",")
    try:
        stored = int(episode), float(timestamp)
        return stored if stored in known else (stored[0], float(np.float32(timestamp)))
    except ValueError as error:
        raise EpisodeDataError(f"{path}: expected keys 'episode,timestamp', found {key!r}") from error


def _hashes(frames: FrameSet, text: str) -> dict[str, Any]:
    """Return what the lineage says of the episodes, as they say and as they are, and of the file."""
    return {
        "content_hash": frames.collection.get("content_hash"),
        "frames_hash": frames.frames_hash(),
        "file_hash": hashlib.sha256(text.encode()).hexdigest(),
    }


def _require_lineage(path: Path, text: str, frames: FrameSet) -> None:
    lineage = read_lineage(path.parent.parent)
    stale = [
        f"{LINEAGE_PATH.name} says {name} {lineage[name]}, found {value}"
        for name, value in _hashes(frames, text).items()
        if lineage.get(name, value) != value  # version 0.1.0 says less
    ]
    then, now = lineage.get("success", []), [label.success for label in frames.labels]
    if changed := [n for n, (old, new) in enumerate(zip(then, now)) if new is not None and old != new]:  # noqa: B905
        stale.append(f"episodes {changed[:5]} had another success when they were labelled")
    if stale:
        raise EpisodeDataError(f"{path} is stale: {stale[0]}; compute the advantages again")
