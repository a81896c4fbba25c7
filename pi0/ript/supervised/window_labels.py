"""What training needs to know of frames besides their content: returns, indicators of the advantage, weights.

Axes: m frame on disk of all data sets, one set after the other, as a batch's `window` numbers them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from pi0.ript.data.frame_set import FrameSet
from pi0.ript.data.records import EpisodeDataError
from pi0.ript.data.settings import DatasetSettings
from pi0.ript.labels.advantages import (
    LINEAGE_PATH,
    MissingAdvantage,
    fill_missing,
    from_json,
    positive_frames,
    read_advantages,
    read_lineage,
)
from pi0.ript.labels.indicators import awr_weights, indicators
from pi0.ript.labels.settings import RewardConfig
from pi0.ript.labels.sources import AdvantageMode, Source
from pi0.ript.supervised.settings import ModelSettings


def advantage_modes(datasets: Sequence[DatasetSettings], policy: ModelSettings) -> list[AdvantageMode]:
    """Return how each data set's advantage is used: as it says itself, or as the run says."""
    return [cast("AdvantageMode", dataset.advantage or policy.advantage) for dataset in datasets]


def window_returns(
    sets: Sequence[FrameSet], reward: RewardConfig
) -> tuple[Float64[np.ndarray, " m"], RewardConfig]:
    """Return the return of every frame, and the reward with its normaliser.

    Raises:
        ValueError: An episode has no success label (`EpisodeDataError`), or is too long for the normaliser.
    """
    sources = [Source(frames.name, frames) for frames in sets]
    fits = reward.resolve(max(int(frames.lengths.max()) for frames in sets))
    return np.concatenate([source.returns(fits) for source in sources]), fits


@dataclass(frozen=True)
class PolicyLabels:
    """What a policy's training needs to know of every frame."""

    indicator: Int64[np.ndarray, " m"] | None = None
    weight: Float32[np.ndarray, " m"] | None = None
    """Weight of the loss of each frame; None: all weigh the same."""
    usable: list[Bool[np.ndarray, " _"]] | None = None
    """The frames of each data set that may be drawn: not those that are dropped for want of an advantage.

    None: all of them.
    """
    num_dropped: int = 0
    """How many of the frames that the settings ask for are dropped."""


def policy_labels(
    sets: Sequence[FrameSet], datasets: Sequence[DatasetSettings], policy: ModelSettings
) -> PolicyLabels:
    """Return the labels of every frame.

    Where the advantage counts, a frame is positive if a person corrected there, or its advantage is above the
    threshold and, if that was ranked among successes, its episode succeeded. Weights follow the advantage.

    Raises:
        EpisodeDataError: Advantages or a threshold are missing.
    """
    parts, advantages = [], []
    _require_one_value_function(sets, datasets, policy)
    for frames, mode in zip(sets, advantage_modes(datasets, policy), strict=True):
        source = Source(frames.name, frames, mode)
        is_asked_for = mode == "use" or policy.use_awr
        of_frames = np.zeros(source.num_frames)
        if is_asked_for:
            choice = cast("MissingAdvantage", policy.missing_advantage)
            used = frames.rows(frames.selected)
            stored = read_advantages(frames.name, frames)
            stored[frames.is_corrected & np.isnan(stored)] = np.inf  # positive without one
            of_frames = fill_missing(stored, choice, frames.name, used)
        positive = np.ones(source.num_frames, bool)
        if mode == "use":
            epsilon = _thresholds(frames, source, policy)
            only_successes = read_lineage(frames.name).get("ranked") == "successes"
            positive = positive_frames(
                frames, of_frames, source.frame_tasks(), epsilon, only_successes=only_successes
            )
        parts.append(indicators(source, positive))
        advantages.append(of_frames)
    weight = None
    if policy.use_awr:
        weight = awr_weights(np.concatenate(advantages), policy.awr_beta, policy.awr_max_weight)
    usable = [~np.isnan(of_frames) for of_frames in advantages]
    used = [mask[x.rows(x.selected)] for mask, x in zip(usable, sets, strict=True)]
    dropped = sum(int((~mask).sum()) for mask in used)
    return PolicyLabels(np.concatenate(parts), weight, usable, dropped)


def _require_one_value_function(
    sets: Sequence[FrameSet], datasets: Sequence[DatasetSettings], policy: ModelSettings
) -> None:
    """Raise EpisodeDataError if advantages of a robot that are used are of several value functions."""
    modes = advantage_modes(datasets, policy)
    for tag in dict.fromkeys(dataset.embodiment_tag for dataset in datasets):
        used = [
            frames.name
            for frames, mode, dataset in zip(sets, modes, datasets, strict=True)
            if dataset.embodiment_tag == tag and (mode == "use" or policy.use_awr)
        ]
        makers = {name: value for name in used if (value := read_lineage(name).get("value")) is not None}
        if len(set(makers.values())) > 1:
            said = ", ".join(f"{name}: {value[:8]}" for name, value in makers.items())
            raise EpisodeDataError(
                f"advantages: expected those of one value function, found several ({said}); label all data "
                "sets with one pi0-advantage command"
            )


def _thresholds(frames: FrameSet, source: Source, policy: ModelSettings) -> dict[str, float]:
    """Return epsilon by task: the one that was set, or those that were chosen with the advantages."""
    tasks = dict.fromkeys(source.frame_tasks())
    if policy.advantage_threshold is not None:
        return dict.fromkeys(tasks, policy.advantage_threshold)
    lineage = read_lineage(frames.name)
    if "epsilon" not in lineage:
        raise EpisodeDataError(
            f"policy.advantage_threshold: {Path(frames.name) / LINEAGE_PATH} names no threshold; give one, "
            "or compute the advantages with pi0-advantage"
        )
    return from_json(lineage["epsilon"])
