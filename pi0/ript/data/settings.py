"""What supervised training reads: data sets, how they are mixed, resampled, split and augmented.

Plain dataclasses that OmegaConf takes as structured configurations; names are OpenTau's where it has them.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

ADVANTAGE_MODES = ("on", "use", "ignore")
RESAMPLE_STRATEGIES = ("nearest", "linear")


@dataclass
class DatasetSettings:
    """One data set of a mixture, a LeRobotDataset v3."""

    repo_id: str | None = None  # name on the hub, or a directory
    root: str | None = None  # directory of the data set, or one that holds it under its repo_id
    revision: str | None = None  # branch, tag or commit on the hub; null: lerobot's default
    episodes: list[int] | None = None  # numbers of the episodes to use; null: all
    excluded_episodes: list[int] | None = None  # numbers of episodes to leave out, also of those in episodes
    weight: float | None = None  # share of the samples, relative to the other sets; null: its frames
    advantage: str | None = None  # on: always positive; use: as labelled; ignore; null: what the run says
    allow_heldout: bool = False  # take a set of rollouts from held-out states, on which success is judged
    assume_success: bool = False  # for labels: episodes without a success label count as successes
    val_split_ratio: float | None = None  # share of the episodes for validation; null: the mixture's
    # Policy's name -> column in this set, where they differ. A camera that the set lacks: null.
    data_features_name_mapping: dict[str, str | None] = field(default_factory=dict)


@dataclass
class AugmentationSettings:
    """Random changes of training images; the ranges are openpi's."""

    enable: bool = False
    crop_scale: float = 0.95  # side of the crop, which is scaled back to the whole image; 1: none
    rotation_degrees: float = 5.0  # at most, either way
    brightness: float = 0.3  # factors are drawn from 1 - x to 1 + x
    contrast: float = 0.4
    saturation: float = 0.5
    hue: float = 0.0  # of the colour circle, either way; GR00T: 0.08
    # Cameras whose name contains one of these are neither cropped nor rotated (openpi spares wrist cameras).
    fixed_cameras: list[str] = field(default_factory=lambda: ["wrist"])


@dataclass
class MixtureSettings:
    """Data sets, and how samples are made of them."""

    datasets: list[DatasetSettings] = field(default_factory=list)
    weights: list[float] | None = None  # one per data set, in place of their own; null: as many as frames
    # Hz of the actions in a chunk; null: each set's own rate. Actions are picked or interpolated, so
    # displacements per step are not rescaled.
    action_freq: float | None = None
    vector_resample_strategy: str = "nearest"  # of actions: nearest or linear
    # In OpenTau's files, and without effect here: a sample begins at a stored frame, so its images are exact.
    image_resample_strategy: str = "nearest"
    val_split_ratio: float = 0.05  # share of each set's episodes; 0: no validation
    val_split_seed: int = 0  # apart from the run's seed, so that runs share their validation episodes
    image_size: int | None = None  # letterbox images to this square when read; null: as stored
    in_memory_gib: float = field(default=1.0, metadata={"result": "rounding"})  # sets up to it stay decoded
    num_workers: int = field(default=2, metadata={"result": "same"})  # that read ahead; in memory 0 is faster
    prefetch_factor: int = field(default=2, metadata={"result": "same"})  # batches that each reads ahead
    augmentation: AugmentationSettings = field(default_factory=AugmentationSettings)


def check_mixture(settings: MixtureSettings) -> None:
    """Raise a ValueError that lists everything wrong with the values; files are not looked at."""
    problems = [*_mixture_problems(settings), *_weight_problems(settings)]
    problems += _augmentation_problems(settings.augmentation)
    for number, dataset in enumerate(settings.datasets):
        problems += [f"datasets[{number}].{problem}" for problem in _dataset_problems(dataset)]
    if problems:
        raise ValueError("dataset_mixture: " + "; ".join(problems))


def mixture_weights(settings: MixtureSettings) -> list[float] | None:
    """Return the weight of each data set, or None if each is drawn as often as it has frames."""
    own = [dataset.weight for dataset in settings.datasets if dataset.weight is not None]
    return settings.weights if settings.weights is not None else own or None


def _mixture_problems(settings: MixtureSettings) -> Iterator[str]:
    if not settings.datasets:
        yield "datasets: expected at least one, found none"
    if settings.action_freq is not None and not 0 < settings.action_freq < math.inf:
        yield f"action_freq: expected a rate above 0 Hz or null, found {settings.action_freq}"
    for name in ("vector_resample_strategy", "image_resample_strategy"):
        if getattr(settings, name) not in RESAMPLE_STRATEGIES:
            yield f"{name}: expected one of {RESAMPLE_STRATEGIES}, found {getattr(settings, name)!r}"
    if not 0 <= settings.val_split_ratio < 1:
        yield f"val_split_ratio: expected 0 to below 1, found {settings.val_split_ratio}"
    for name, least in (("num_workers", 0), ("prefetch_factor", 1), ("in_memory_gib", 0)):
        if getattr(settings, name) < least:
            yield f"{name}: expected at least {least}, found {getattr(settings, name)}"


def _weight_problems(settings: MixtureSettings) -> Iterator[str]:
    own = [dataset.weight is not None for dataset in settings.datasets]
    if settings.weights is not None and any(own):
        yield "weights: given for the mixture and in its data sets; keep one of them"
    elif settings.weights is not None and len(settings.weights) != len(own):
        yield f"weights: expected one per data set ({len(own)}), found {len(settings.weights)}"
    elif any(own) and not all(own):
        yield f"weight: expected in all data sets or in none, found in {sum(own)} of {len(own)}"
    weights = mixture_weights(settings)
    if weights is not None and (not all(0 <= w < math.inf for w in weights) or not sum(weights) > 0):
        yield f"weights: expected numbers from 0, not all 0, found {list(weights)}"


def _dataset_problems(dataset: DatasetSettings) -> Iterator[str]:
    if not dataset.repo_id and not dataset.root:
        yield "repo_id: expected a hub name or a directory (or root: a directory), found neither"
    if dataset.advantage is not None and dataset.advantage not in ADVANTAGE_MODES:
        yield f"advantage: expected one of {ADVANTAGE_MODES} or null, found {dataset.advantage!r}"
    if dataset.val_split_ratio is not None and not 0 <= dataset.val_split_ratio < 1:
        yield f"val_split_ratio: expected 0 to below 1, found {dataset.val_split_ratio}"


def _augmentation_problems(augmentation: AugmentationSettings) -> Iterator[str]:
    if not 0 < augmentation.crop_scale <= 1:
        yield f"augmentation.crop_scale: expected above 0 to 1, found {augmentation.crop_scale}"
    for name, largest in {
        "rotation_degrees": 180,
        "brightness": 1,
        "contrast": 1,
        "saturation": 1,
        "hue": 0.5,
    }.items():
        if not 0 <= getattr(augmentation, name) <= largest:
            yield f"augmentation.{name}: expected 0 to {largest}, found {getattr(augmentation, name)}"
