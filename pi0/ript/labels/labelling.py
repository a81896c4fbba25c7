"""The labels of a round: advantages of all sources, thresholds, and every figure of every frame on disk.

Axes: n frame of a source.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import numpy as np
from jaxtyping import Bool, Float64

from pi0.ript.files import plain
from pi0.ript.labels.advantages import Scope, coverage, is_positive, percentiles, thresholds, write_advantages
from pi0.ript.labels.returns import RewardConfig
from pi0.ript.labels.sources import Source
from pi0.ript.ranges import ProperShare, one_of


@dataclass
class Advantage:
    """How frames are labelled."""

    positive_fraction: ProperShare = 0.3  # share of the ranked frames that is positive
    scope: Annotated[str, one_of(*get_args(Scope))] = "per_task"  # one threshold per_task, or global
    ranked: Annotated[str, one_of("rollouts", "all")] = (
        "rollouts"  # frames among which the threshold is found: rollouts, or all
    )


@dataclass(frozen=True)
class LabelledSource:
    """A source with the value and the advantage of each of its frames."""

    source: Source
    values: Float64[np.ndarray, " n"]
    advantages: Float64[np.ndarray, " n"]
    is_ranked: bool
    """Whether the threshold is found among its frames."""


def write_labels(
    directory: Path,
    labelled: Sequence[LabelledSource],
    reward: RewardConfig,
    settings: Advantage,
    made_from: Mapping[str, Any],
) -> Mapping[str, Any]:
    """Write SOURCE/meta/advantages.json of each, thresholds.json and frames.npz; return figures.

    Percentiles and epsilon are printed.

    Raises:
        ValueError: No ranked frame is of the task of another frame.
    """
    epsilon = _thresholds([one for one in labelled if one.is_ranked], settings)
    everything = np.concatenate([one.advantages for one in labelled])
    found = "".join(f"\n  {task}: {value:.6f}" for task, value in epsilon.items())
    share = f"{settings.positive_fraction:.0%}"
    print(f"{percentiles(everything)}\nepsilon, which {share} of the ranked frames exceed:{found}")  # noqa: T201
    fraction = settings.positive_fraction
    lineage = {**made_from, "reward": plain(reward), "epsilon": epsilon, "positive_fraction": fraction}
    arrays: dict[str, Any] = {}
    positive = {}
    for one in labelled:
        name = one.source.name
        (directory / name / "meta").mkdir(parents=True, exist_ok=True)
        write_advantages(directory / name, one.source.episodes, one.advantages, lineage)
        positive[name] = _is_positive(one, epsilon)
        arrays[f"{name}/values"], arrays[f"{name}/advantages"] = one.values, one.advantages
        arrays[f"{name}/returns"] = one.source.returns(reward)
        arrays[f"{name}/lengths"] = one.source.episodes.lengths
        arrays[f"{name}/tasks"] = np.array(one.source.episode_tasks())
    np.savez_compressed(directory / "frames.npz", **arrays)
    (directory / "thresholds.json").write_text(json.dumps(epsilon, indent=2) + "\n")
    ranked = np.concatenate([positive[one.source.name] for one in labelled if one.is_ranked])
    return {
        "epsilon": epsilon,
        "coverage": coverage(everything),
        "positive_fraction": float(ranked.mean()),
        "target_fraction": fraction,
        "positive_share": {name: float(is_better.mean()) for name, is_better in positive.items()},
    }


def _is_positive(labelled: LabelledSource, epsilon: Mapping[str, float]) -> Bool[np.ndarray, " n"]:
    """Return which frames the policy will be told are positive."""
    source = labelled.source
    if source.advantage != "use":
        return np.full(source.num_frames, source.advantage == "on")
    return is_positive(labelled.advantages, source.frame_tasks(), epsilon)


def _thresholds(ranked: Sequence[LabelledSource], settings: Advantage) -> dict[str, float]:
    tasks = [task for one in ranked for task in one.source.frame_tasks()]
    advantages = np.concatenate([one.advantages for one in ranked])
    return thresholds(advantages, tasks, settings.positive_fraction, cast("Scope", settings.scope))
