"""What training needs to know of frames besides their content: returns, and indicators of the advantage.

Axes: m frame on disk of all data sets, one set after the other, as a batch's `window` numbers them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
from jaxtyping import Float64, Int64

from pi0.ript.data import DatasetSettings
from pi0.ript.data.frames import FrameSet
from pi0.ript.episodes import EpisodeDataError, load_labels
from pi0.ript.recap.advantages import ADVANTAGES_PATH, LINEAGE_PATH, read_advantages, read_lineage
from pi0.ript.recap.policy_training import indicators
from pi0.ript.recap.returns import RewardConfig
from pi0.ript.recap.sources import AdvantageMode, Source
from pi0.ript.supervised.settings import PolicySettings


def advantage_modes(datasets: Sequence[DatasetSettings], policy: PolicySettings) -> list[AdvantageMode]:
    """Return how each data set's advantage is used: as it says itself, or as the run says."""
    return [cast("AdvantageMode", dataset.advantage or policy.advantage) for dataset in datasets]


def window_returns(
    sets: Sequence[FrameSet], datasets: Sequence[DatasetSettings], reward: RewardConfig
) -> tuple[Float64[np.ndarray, " m"], RewardConfig]:
    """Return the return of every frame, and the reward with its normaliser.

    Raises:
        ValueError: An episode has no success label (`EpisodeDataError`), or is too long for the normaliser.
    """
    sources = [_source(frames, dataset) for frames, dataset in zip(sets, datasets, strict=True)]
    fits = reward.resolve(max(int(source.episodes.lengths.max()) for source in sources))
    return np.concatenate([source.returns(fits) for source in sources]), fits


def window_indicators(
    sets: Sequence[FrameSet], datasets: Sequence[DatasetSettings], policy: PolicySettings
) -> Int64[np.ndarray, " m"]:
    """Return the indicator of every frame.

    Raises:
        EpisodeDataError: Advantages or a threshold are missing.
    """
    modes, parts = advantage_modes(datasets, policy), []
    for frames, dataset, mode in zip(sets, datasets, modes, strict=True):
        source = _source(frames, dataset, mode)
        if mode != "use":
            nothing = np.full(source.num_frames, np.nan)
            parts.append(indicators(source, nothing, {}))
            continue
        advantages = _advantages(frames, source, policy)
        parts.append(indicators(source, advantages, _thresholds(frames, source, policy)))
    return np.concatenate(parts)


def _source(frames: FrameSet, dataset: DatasetSettings, mode: AdvantageMode | None = None) -> Source:
    """Return the labels of a data set; with a mode for a policy, which has no use for success."""
    is_success_known = dataset.assume_success or mode is not None
    return Source(frames.name, load_labels(frames.name, assume_success=is_success_known), mode or "ignore")


def _advantages(frames: FrameSet, source: Source, policy: PolicySettings) -> Float64[np.ndarray, " m"]:
    found = read_advantages(frames.name, source.episodes, missing="drop")
    used = frames.index[frames.rows(frames.selected)]
    count = int(np.isnan(found[used]).sum())
    if count and policy.missing_advantage == "error":
        raise EpisodeDataError(
            f"{Path(frames.name) / ADVANTAGES_PATH}: {count} of {len(used)} frames have no advantage; "
            "compute them for all frames (pi0-advantage), leave their episodes out, or set "
            "policy.missing_advantage"
        )
    fill = np.inf if policy.missing_advantage == "positive" else -np.inf
    return np.where(np.isnan(found), fill, found)


def _thresholds(frames: FrameSet, source: Source, policy: PolicySettings) -> dict[str, float]:
    """Return epsilon by task: the one that was set, or those that were chosen with the advantages."""
    tasks = dict.fromkeys(source.episode_tasks())
    if policy.advantage_threshold is not None:
        return dict.fromkeys(tasks, policy.advantage_threshold)
    lineage = read_lineage(frames.name)
    if "epsilon" not in lineage:
        raise EpisodeDataError(
            f"policy.advantage_threshold: {Path(frames.name) / LINEAGE_PATH} names no threshold; give one, "
            "or compute the advantages with pi0-advantage"
        )
    return {task: float(value) for task, value in lineage["epsilon"].items()}
