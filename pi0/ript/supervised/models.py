"""What pi0-train trains: a checkpoint's policy or value function, or a small new one sized by the data."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pi0 import FeatureConfig, PI0Policy
from pi0.embodiment import Embodiment
from pi0.pretrained import Checkpoint, describe, resolve
from pi0.registry import get_config
from pi0.ript.config import ConfigError
from pi0.ript.data.normalised import doubts, faults, normalised_dimensions, widened
from pi0.ript.data.settings import Tag, sets_by_robot
from pi0.ript.data.training_data import TrainingData
from pi0.ript.policy_settings import TOY
from pi0.ript.starting_policy import make_policy
from pi0.ript.supervised.data_summary import DataSummary
from pi0.ript.supervised.embodiments import change_robot, name_robots, require_known, require_tag
from pi0.ript.supervised.settings import ModelSettings, NormalizationMapping, SupervisedSettings
from pi0.ript.training.fitted_features import without_absent_cameras
from pi0.ript.training.objectives import Model
from pi0.ript.training.starting_value import starting_value
from pi0.trainable import frozen_names
from pi0.value import ValueFunction
from pi0.value_config import separate_value_config

_VALUE_STREAM = 1  # keeps a value function's first weights apart from those of a policy of the same seed


def policy_to_train(
    config: SupervisedSettings, data: DataSummary, takes_indicator: bool, device: str
) -> PI0Policy:
    """Return the policy to train; a setting that its checkpoint contradicts is a ConfigError.

    With `takes_indicator` it has an indicator of the advantage, which changes nothing before it is trained.
    """
    settings, path = config.policy, config.policy_path
    mode, changes, replaced = "none", {}, {}
    robots: dict[Tag, Embodiment] = {}
    is_from_data = settings.statistics == "data" and not settings.statistics_path
    if path == TOY:
        require_tag([tag for tag in data.robots if tag is not None], settings.embodiment)
        is_from_data = True
    else:
        directory = resolve(Path(path).expanduser())
        named = get_config(settings.config) if settings.config else None
        checkpoint = describe(directory, named, None, None, settings.extra_delta_transform)
        for name in ("max_state_dim", "max_action_dim"):
            _require_equal(name, getattr(settings, name), getattr(checkpoint.config, name))
        mode, path = checkpoint.config.indicator, str(directory)
        chunk_size = settings.chunk_size or checkpoint.config.chunk_size
        if settings.n_action_steps is None:
            changes["n_action_steps"] = min(checkpoint.config.n_action_steps, chunk_size)
        require_known([*data.robots], checkpoint, settings.embodiment, is_from_data=is_from_data)
        robots = _robots(data, checkpoint, chunk_size if is_from_data else None)
        replaced = _in_place(robots, checkpoint, is_from_data=is_from_data)
    if takes_indicator:
        changes["indicator"] = settings.indicator or ("embedding" if mode == "none" else mode)
    toy = partial(data.toy_policy, config.seed)
    policy = make_policy(path, settings, toy, config.seed, device, changes=changes, **replaced)
    names = {tag: robot for tag, robot in robots.items() if tag is not None}
    if names := names or policy.embodiments.known():
        name_robots(policy, names, settings.embodiment, is_from_data=is_from_data)
    require_normalization(settings.normalization_mapping, policy.features)
    return policy


def _robots(data: DataSummary, checkpoint: Checkpoint, chunk_size: int | None) -> dict[Tag, Embodiment]:
    """Return what the policy is to know of each robot of the data.

    Their widths and statistics are those of the data if a chunk size is given, else the checkpoint's.
    """
    robots, parts = {}, data.robots
    if None in parts and checkpoint.embodiments:
        parts = {checkpoint.embodiment: parts[None]}
    for tag, part in parts.items():
        before = Embodiment(checkpoint.features, checkpoint.statistics)
        robot = before if tag is None else checkpoint.embodiments.get(tag, before)
        if chunk_size is None:
            robots[tag] = replace(robot, features=without_absent_cameras(robot.features, part.mappings))
        else:
            features = part.fitted(robot.features)
            robots[tag] = Embodiment(features, part.statistics(features.relative_actions, chunk_size))
    return robots


def _in_place(
    robots: Mapping[Tag, Embodiment], checkpoint: Checkpoint, *, is_from_data: bool
) -> dict[str, Any]:
    """Return what replaces a checkpoint's own when it is loaded: what is known of the first robot."""
    tag, first = next(iter(robots.items()))
    if checkpoint.embodiments:  # the robots are named when it is loaded
        return {"embodiment": tag if tag in checkpoint.embodiments else None}
    statistics = {"statistics": first.statistics} if is_from_data else {}
    return {"embodiment": None, "features": first.features, **statistics}


def value_to_train(config: SupervisedSettings, data: DataSummary, device: str) -> ValueFunction:
    """Return the value function to train; a setting that its checkpoint contradicts is a ConfigError."""
    settings, policy = config.policy, _read_policy(config.policy, data, device)
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


def _read_policy(settings: ModelSettings, data: DataSummary, device: str) -> PI0Policy | None:
    """Return the policy that a value function reads, None if there is none to read."""
    tags = list(sets_by_robot(data.mixture)) or [None]
    if len(tags) > 1:
        raise ConfigError(
            f"embodiment_tag: a value function is of one robot, found {', '.join(map(str, tags))}; train one "
            "for each"
        )
    if settings.reads is None:
        return None
    names = ("tokenizer_max_length", "dtype")
    changes = {name: value for name, value in settings.changes().items() if name in names}
    path = Path(settings.reads).expanduser()
    policy = PI0Policy.from_pretrained(path, changes=changes, embodiment=tags[0], device=device)
    return policy.requires_grad_(False)


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
    policy = model if isinstance(model, PI0Policy) else None
    notes, wrong = list[str](), list[str]()
    for tag, numbers in sets_by_robot(settings.dataset_mixture).items():
        robot = Embodiment(model.features, model.statistics)
        if policy is not None and tag is not None:
            robot = policy.embodiments.known()[tag]
        dimensions = normalised_dimensions(
            robot.features,
            robot.statistics,
            [data.sets[number] for number in numbers],
            [data.training_rows[number] for number in numbers],
            chunk_size=1 if policy is None else policy.config.chunk_size,
            settings=settings.dataset_mixture,
            has_actions=policy is not None,
        )
        doubtful = [] if settings.policy_path == TOY else doubts(dimensions, robot.features, robot.statistics)
        notes += [f"statistics: {line}" for line in doubtful]  # a toy's are the data's, with a least std
        outside = faults(dimensions, robot.features, robot.statistics)
        if outside and policy is not None and settings.policy.outside_statistics == "widen":
            wide, changes = widened(robot.statistics, robot.features, dimensions)
            notes += changes
            change_robot(policy, tag, replace(robot, statistics=wide))
        else:
            wrong += outside
    if not wrong:
        return tuple(notes)
    remedy = (
        "are they of another robot, of absolute actions for relative ones, or does a dimension hardly move? "
        "Take the data's own (policy.statistics=data), a file's (policy.statistics_path), or widen them "
        "(policy.outside_statistics=widen)"
        if policy is not None
        else "they are those of its checkpoint or of the policy that it reads; train on data like theirs"
    )
    raise ConfigError(*wrong[:-1], f"{wrong[-1]}; {remedy}")
