"""What supervised training reads: data sets, how they are mixed, resampled, split and augmented.

Plain dataclasses that OmegaConf takes as structured configurations; names are OpenTau's where it has them.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Annotated

from pi0.ript.ranges import (
    SAME,
    Count,
    Expected,
    NotNegative,
    Positive,
    Share,
    Whole,
    one_of,
    wrong_values,
)

ADVANTAGE_MODES = ("on", "use", "ignore")
Mode = Annotated[str, one_of(*ADVANTAGE_MODES)]
Resampling = Annotated[str, one_of("nearest", "linear")]
SplitShare = Annotated[float, Expected("0 to below 1", lambda value: 0 <= value < 1)]
CropScale = Annotated[float, Expected("above 0 to 1", lambda value: 0 < value <= 1)]
Degrees = Annotated[float, Expected("0 to 180", lambda value: 0 <= value <= 180)]
HueRange = Annotated[float, Expected("0 to 0.5", lambda value: 0 <= value <= 0.5)]

Tag = str | None
"""Of a robot; None: it has no name, and is then the only one."""


@dataclass
class DatasetSettings:
    """One data set of a mixture, a LeRobotDataset v3."""

    repo_id: str | None = None  # name on the hub, or a directory
    root: str | None = None  # directory of the data set, or one that holds it under its repo_id
    revision: str | None = None  # branch, tag or commit on the hub; null: lerobot's default
    episodes: list[int] | None = None  # numbers of the episodes to use; null: all
    excluded_episodes: list[int] | None = None  # numbers of episodes to leave out, also of those in episodes
    weight: float | None = None  # share of the samples, relative to the other sets; null: its frames
    embodiment_tag: str | None = None  # its robot: sets of one tag share statistics; null: policy.embodiment
    advantage: Mode | None = None  # on: always positive; use: as labelled; ignore; null: what the run says
    assume_success: bool = False  # for labels: episodes without a success label count as successes
    val_split_ratio: SplitShare | None = None  # share of the episodes for validation; null: the mixture's
    # Policy's name -> column in this set, where they differ. A camera that the set lacks: null. The column
    # "intervention" is true where a person corrected the policy; null: the set's means something else.
    data_features_name_mapping: dict[str, str | None] = field(default_factory=dict)


@dataclass
class AugmentationSettings:
    """Random changes of training images; the ranges are openpi's."""

    enable: bool = False
    crop_scale: CropScale = 0.95  # side of the crop, which is scaled back to the whole image; 1: none
    rotation_degrees: Degrees = 5.0  # at most, either way
    brightness: Share = 0.3  # factors are drawn from 1 - x to 1 + x
    contrast: Share = 0.4
    saturation: Share = 0.5
    hue: HueRange = 0.0  # of the colour circle, either way; GR00T: 0.08
    # Cameras whose name contains one of these are neither cropped nor rotated (openpi spares wrist cameras).
    fixed_cameras: list[str] = field(default_factory=lambda: ["wrist"])


@dataclass
class MixtureSettings:
    """Data sets, and how samples are made of them."""

    datasets: list[DatasetSettings] = field(default_factory=list)
    weights: list[float] | None = None  # one per data set, in place of their own; null: as many as frames
    # Hz of the actions in a chunk; null: each set's own rate. Actions are picked or interpolated, so
    # displacements per step are not rescaled.
    action_freq: Positive | None = None
    vector_resample_strategy: Resampling = "nearest"  # of actions: nearest or linear
    # In OpenTau's files, and without effect here: a sample begins at a stored frame, so its images are exact.
    image_resample_strategy: Resampling = "nearest"
    allow_heldout: bool = field(default=False, metadata=SAME)  # take rollouts from held-out states, too
    val_split_ratio: SplitShare = 0.05  # share of each set's episodes; 0: no validation
    val_split_seed: Whole = 0  # apart from the run's seed, so that runs share their validation episodes
    image_size: Count | None = None  # letterbox images to this square when read; null: as stored
    cache_gib: NotNegative = field(default=1.0, metadata=SAME)  # of a machine, for decoded images
    num_workers: Whole = field(default=2, metadata=SAME)  # that read ahead; in memory 0 is faster
    prefetch_factor: Count = field(default=2, metadata=SAME)  # batches that each reads ahead
    augmentation: AugmentationSettings = field(default_factory=AugmentationSettings)


def check_mixture(settings: MixtureSettings) -> None:
    """Raise a ValueError that lists everything wrong with the values; files are not looked at."""
    problems = [*wrong_values(settings, "dataset_mixture."), *mixture_problems(settings)]
    if problems:
        raise ValueError("; ".join(problems))


def mixture_weights(settings: MixtureSettings) -> list[float] | None:
    """Return the weight of each data set, or None if each is drawn as often as it has frames."""
    own = [dataset.weight for dataset in settings.datasets if dataset.weight is not None]
    return settings.weights if settings.weights is not None else own or None


def mixture_problems(settings: MixtureSettings) -> Iterator[str]:
    """Yield what is wrong with values that are right each by itself."""
    if not settings.datasets:
        yield "dataset_mixture.datasets: expected at least one, found none"
    for number, dataset in enumerate(settings.datasets):
        if not dataset.repo_id and not dataset.root:
            what = "expected a hub name or a directory (or root: a directory), found neither"
            yield f"dataset_mixture.datasets[{number}].repo_id: {what}"
    tags = [dataset.embodiment_tag for dataset in settings.datasets]
    if None in tags and len(set(tags)) > 1:
        yield (
            f"embodiment_tag: expected in all data sets or in none, found {tags}; policy.embodiment is that "
            "of sets that name none"
        )
    if any(tag is not None and not tag.strip() for tag in tags):
        yield f"embodiment_tag: expected names of robots, found {tags}"
    own = [dataset.weight is not None for dataset in settings.datasets]
    if settings.weights is not None and any(own):
        yield "dataset_mixture.weights: given for the mixture and in its data sets; keep one of them"
    elif settings.weights is not None and len(settings.weights) != len(own):
        yield (
            f"dataset_mixture.weights: expected one per data set ({len(own)}), found {len(settings.weights)}"
        )
    elif any(own) and not all(own):
        yield f"weight: expected in all data sets or in none, found in {sum(own)} of {len(own)}"
    weights = mixture_weights(settings)
    if weights is not None and (not all(0 <= w < math.inf for w in weights) or not sum(weights) > 0):
        yield f"dataset_mixture.weights: expected numbers from 0, not all 0, found {list(weights)}"


def tagged(mixture: MixtureSettings, tag: Tag) -> MixtureSettings:
    """Return a mixture whose data sets are of a robot unless they name another."""
    datasets = [
        replace(dataset, embodiment_tag=dataset.embodiment_tag or tag) for dataset in mixture.datasets
    ]
    return replace(mixture, datasets=datasets)


def sets_by_robot(mixture: MixtureSettings) -> dict[Tag, list[int]]:
    """Return the numbers of each robot's data sets."""
    numbers: dict[Tag, list[int]] = {}
    for number, dataset in enumerate(mixture.datasets):
        numbers.setdefault(dataset.embodiment_tag, []).append(number)
    return numbers
