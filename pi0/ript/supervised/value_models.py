"""The value function that training starts from: a checkpoint's, or a new one."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from pi0 import PI0Policy
from pi0.ript.config import ConfigError
from pi0.ript.starting_policy import TOY
from pi0.ript.supervised.models import DataSummary, new_policy, require_normalization
from pi0.ript.supervised.settings import PolicySettings
from pi0.ript.training.starting_value import starting_value
from pi0.trainable import frozen_names
from pi0.value import ValueFunction
from pi0.value_config import separate_value_config

_STREAM = 1  # keeps the first weights apart from those of a policy of the same seed


def make_value(settings: PolicySettings, data: DataSummary, seed: int, device: str) -> ValueFunction:
    """Return the value function to train; a setting that its checkpoint contradicts is a ConfigError."""
    policy = _read_policy(settings, device)
    if settings.pretrained_path in (None, TOY):
        value = _new_value(settings, policy, data, seed)
    else:
        value = ValueFunction.from_pretrained(Path(str(settings.pretrained_path)).expanduser(), policy)
        _require_value(settings, value)
    require_normalization(replace(settings.normalization_mapping, ACTION=None), value.features)
    frozen = frozen_names(value, settings.freeze or "none")
    for name, parameter in value.named_parameters():
        parameter.requires_grad_(name not in frozen)
    return value.to(device)


def _read_policy(settings: PolicySettings, device: str) -> PI0Policy | None:
    if settings.policy_path is None:
        return None
    changes = {
        name: getattr(settings, name)
        for name in ("tokenizer_max_length", "dtype")
        if getattr(settings, name) is not None
    }
    path = Path(settings.policy_path).expanduser()
    return PI0Policy.from_pretrained(path, changes=changes, device=device).requires_grad_(False)


def _new_value(
    settings: PolicySettings, policy: PI0Policy | None, data: DataSummary, seed: int
) -> ValueFunction:
    bins = settings.reward_config.number_of_bins
    seed = int(np.random.SeedSequence((seed, _STREAM)).generate_state(1)[0])
    if policy is None:  # a model of the toy's size, which reads images and prompts itself
        toy = new_policy(settings, data, 0)
        return ValueFunction(separate_value_config(toy, num_bins=bins), toy, seed=seed)
    return starting_value(policy, settings.form, settings.width, bins, seed)


def _require_value(settings: PolicySettings, value: ValueFunction) -> None:
    asked = {"reward_config.number_of_bins": settings.reward_config.number_of_bins}
    asked |= {"max_state_dim": settings.max_state_dim, "dtype": settings.dtype}
    found = {"reward_config.number_of_bins": value.config.num_bins}
    found |= {"max_state_dim": value.config.max_state_dim, "dtype": value.config.dtype}
    if value.reads is None:
        asked["tokenizer_max_length"] = settings.tokenizer_max_length
        found["tokenizer_max_length"] = value.config.tokenizer_max_length
    for name, there in found.items():
        if asked[name] is not None and asked[name] != there:
            raise ConfigError(
                f"policy.{name}: expected the checkpoint's {there}, found {asked[name]}; leave it out"
            )
