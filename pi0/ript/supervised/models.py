"""What pi0-train trains: a checkpoint's policy or value function, or a small new one sized by the data."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from pi0 import FeatureConfig, PI0Policy
from pi0.normalize import Statistics
from pi0.pretrained import describe, resolve
from pi0.registry import get_config
from pi0.ript.config import ConfigError
from pi0.ript.data.frame_set import FrameSet
from pi0.ript.data.normalised import doubts, faults, normalised_dimensions, widened
from pi0.ript.data.reader import open_set
from pi0.ript.data.settings import MixtureSettings, mixture_weights
from pi0.ript.data.statistics import mixture_statistics
from pi0.ript.data.training_data import TrainingData, open_sets, split_rows
from pi0.ript.starting_policy import TOY, make_policy
from pi0.ript.supervised.settings import ModelSettings, NormalizationMapping, SupervisedSettings
from pi0.ript.training.fitted_features import with_widths_of, without_absent_cameras
from pi0.ript.training.objectives import Model
from pi0.ript.training.starting_value import starting_value
from pi0.ript.warm_start import sized_toy_policy
from pi0.trainable import frozen_names
from pi0.value import ValueFunction
from pi0.value_config import separate_value_config

_LARGEST_TOY_IMAGE = 64
_VALUE_STREAM = 1  # keeps a value function's first weights apart from those of a policy of the same seed


@dataclass(frozen=True)
class DataSummary:
    """What a new model is sized by; images are not read."""

    mixture: MixtureSettings

    @cached_property
    def sets(self) -> list[FrameSet]:
        """The data sets, without cameras."""
        return open_sets(self.mixture, cameras=())

    @property
    def training_rows(self) -> list[Int64[np.ndarray, " _"]]:
        """The frames of each set that are trained on."""
        return split_rows(self.mixture, self.sets)[0]

    def statistics(self, relative_actions: Sequence[bool] = (), chunk_size: int = 1) -> Statistics:
        """Return the statistics of what is trained on; other widths in another set are an error."""
        widths = {frames.name: (frames.states.shape[1], frames.actions.shape[1]) for frames in self.sets}
        if len(set(widths.values())) > 1:
            raise ConfigError(
                "dataset_mixture: expected the same widths of state and action in all data sets, found "
                f"{widths}"
            )
        return mixture_statistics(
            self.sets,
            self.training_rows,
            mixture_weights(self.mixture),
            relative_actions=relative_actions,
            chunk_size=chunk_size,
            settings=self.mixture,
        )

    @property
    def instructions(self) -> set[str]:
        """The instructions of all data sets."""
        return {task for frames in self.sets for task in frames.instructions}

    @cached_property
    def cameras(self) -> dict[str, int]:
        """Shorter side of the images by the policy's name of the camera, of the first set."""
        frames = open_set(self.mixture.datasets[0])
        if not frames.images:
            raise ConfigError(f"{frames.name}: expected a camera among its columns, found none")
        return {camera: min(frames.image_sizes(camera)[0]) for camera in frames.images}

    def toy_policy(self, seed: int, **changes: Any) -> PI0Policy:
        """Return an untrained toy policy for the data; `changes` are fields of its configuration."""
        chunk_size = changes.get("chunk_size", 8)
        size = self.mixture.image_size or min(self.cameras.values())
        return sized_toy_policy(
            self.instructions,
            tuple(self.cameras),
            min(size, _LARGEST_TOY_IMAGE) // 4 * 4,
            self.statistics(),
            seed,
            **{"chunk_size": chunk_size, "n_action_steps": chunk_size, **changes},
        )


def policy_to_train(
    config: SupervisedSettings, data: DataSummary, takes_indicator: bool, device: str
) -> PI0Policy:
    """Return the policy to train; a setting that its checkpoint contradicts is a ConfigError.

    With `takes_indicator` it has an indicator of the advantage, which changes nothing before it is trained.
    """
    settings, path = config.policy, config.policy_path
    mode, changes, replaced = "none", {}, {}
    if path != TOY:
        directory = resolve(Path(path).expanduser())
        named = get_config(settings.config) if settings.config else None
        checkpoint = describe(directory, named, None, None, settings.extra_delta_transform)
        for name in ("max_state_dim", "max_action_dim"):
            _require_equal(name, getattr(settings, name), getattr(checkpoint.config, name))
        mode, path = checkpoint.config.indicator, str(directory)
        chunk_size = settings.chunk_size or checkpoint.config.chunk_size
        if settings.n_action_steps is None:
            changes["n_action_steps"] = min(checkpoint.config.n_action_steps, chunk_size)
        mappings = [dataset.data_features_name_mapping for dataset in data.mixture.datasets]
        replaced["features"] = without_absent_cameras(checkpoint.features, mappings)
        if settings.statistics == "data" and not settings.statistics_path:
            replaced["features"] = features = with_widths_of(replaced["features"], data.sets[0])
            replaced["statistics"] = data.statistics(features.relative_actions, chunk_size)
    if takes_indicator:
        changes["indicator"] = settings.indicator or ("embedding" if mode == "none" else mode)
    toy = partial(data.toy_policy, config.seed)
    policy = make_policy(path, settings, toy, config.seed, device, changes=changes, **replaced)
    require_normalization(settings.normalization_mapping, policy.features)
    return policy


def value_to_train(config: SupervisedSettings, data: DataSummary, device: str) -> ValueFunction:
    """Return the value function to train; a setting that its checkpoint contradicts is a ConfigError."""
    settings, policy = config.policy, _read_policy(config.policy, device)
    bins = settings.reward_config.number_of_bins
    seed = int(np.random.SeedSequence((config.seed, _VALUE_STREAM)).generate_state(1)[0])
    if config.policy_path != TOY:
        value = ValueFunction.from_pretrained(Path(config.policy_path).expanduser(), policy)
        _require_same_sizes(settings, value)
    elif policy is not None:
        value = starting_value(policy, settings.form, settings.width, bins, seed)
    else:  # a model of the toy's size, which reads images and prompts itself
        toy = data.toy_policy(0, **settings.changes())
        value = ValueFunction(separate_value_config(toy, num_bins=bins), toy, seed=seed)
    require_normalization(replace(settings.normalization_mapping, ACTION=None), value.features)
    frozen = frozen_names(value, settings.freeze or "none")
    for name, parameter in value.named_parameters():
        parameter.requires_grad_(name not in frozen)
    return value.to(device)


def _read_policy(settings: ModelSettings, device: str) -> PI0Policy | None:
    """Return the policy that a value function reads, None if there is none to read."""
    if settings.reads is None:
        return None
    names = ("tokenizer_max_length", "dtype")
    changes = {name: value for name, value in settings.changes().items() if name in names}
    path = Path(settings.reads).expanduser()
    return PI0Policy.from_pretrained(path, changes=changes, device=device).requires_grad_(False)


def _require_same_sizes(settings: ModelSettings, value: ValueFunction) -> None:
    sizes = value.config
    _require_equal("reward_config.number_of_bins", settings.reward_config.number_of_bins, sizes.num_bins)
    _require_equal("max_state_dim", settings.max_state_dim, sizes.max_state_dim)
    _require_equal("dtype", settings.dtype, sizes.dtype)
    if value.reads is None:
        _require_equal("tokenizer_max_length", settings.tokenizer_max_length, sizes.tokenizer_max_length)


def _require_equal(name: str, setting: Any, size: Any) -> None:
    if setting is not None and setting != size:
        raise ConfigError(f"policy.{name}: expected the checkpoint's {size}, found {setting}; leave it out")


def require_normalization(mapping: NormalizationMapping, features: FeatureConfig) -> None:
    """Raise ConfigError if the settings expect another normalisation than the model's."""
    for name, feature in (("STATE", "state"), ("ACTION", "action")):
        setting, actual = getattr(mapping, name), getattr(features, f"{feature}_normalization").upper()
        if setting is not None and setting != actual:
            raise ConfigError(
                f"policy.normalization_mapping.{name}: expected the model's {actual}, found {setting}; its "
                "weights mean nothing under another normalisation"
            )


def fit_statistics(model: Model, settings: SupervisedSettings, data: TrainingData) -> tuple[str, ...]:
    """Look at the normalised training data, and widen a policy's statistics if asked to.

    Returns what is to be said of them at the start.

    Raises:
        ConfigError: Values lie where no model can learn from them; a line for each dimension.
    """
    is_policy = isinstance(model, PI0Policy)
    features, statistics = model.features, model.statistics
    dimensions = normalised_dimensions(
        features,
        statistics,
        data.sets,
        data.training_rows,
        chunk_size=model.config.chunk_size if is_policy else 1,
        settings=settings.dataset_mixture,
        has_actions=is_policy,
    )
    lines = [] if settings.policy_path == TOY else doubts(dimensions, features, statistics)
    doubtful = [f"statistics: {line}" for line in lines]  # a toy's are the data's, with a least std
    wrong = faults(dimensions, features, statistics)
    if not wrong:
        return tuple(doubtful)
    if is_policy and settings.policy.outside_statistics == "widen":
        wide, changes = widened(statistics, features, dimensions)
        model.use_statistics(wide)
        model.to(model.device)
        return (*doubtful, *changes)
    remedy = (
        "are they of another robot, of absolute actions for relative ones, or does a dimension hardly move? "
        "Take the data's own (policy.statistics=data), a file's (policy.statistics_path), or widen them "
        "(policy.outside_statistics=widen)"
        if is_policy
        else "they are those of its checkpoint or of the policy that it reads; train on data like theirs"
    )
    raise ConfigError(*wrong[:-1], f"{wrong[-1]}; {remedy}")
