"""The policy that training starts from: a checkpoint's, or a small new one sized by the data sets."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from pi0 import FeatureConfig, PI0Policy
from pi0.normalize import Statistics
from pi0.openpi_format import read_statistics
from pi0.pretrained import Checkpoint, describe, resolve
from pi0.registry import get_config
from pi0.ript.config import ConfigError
from pi0.ript.data import MixtureSettings
from pi0.ript.data.frames import FrameSet, open_frames
from pi0.ript.data.settings import mixture_weights
from pi0.ript.data.statistics import mixture_statistics
from pi0.ript.data.training_data import split_rows
from pi0.ript.starting_policy import TOY
from pi0.ript.supervised.settings import NormalizationMapping, PolicySettings
from pi0.ript.warm_start import sized_toy_policy

_LARGEST_TOY_IMAGE = 64


@dataclass(frozen=True)
class DataSummary:
    """What a new model is sized by; images are not read."""

    mixture: MixtureSettings

    @cached_property
    def sets(self) -> list[FrameSet]:
        """The data sets, without cameras."""
        return [open_frames(dataset) for dataset in self.mixture.datasets]

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
        """Those of all sets."""
        return {task for frames in self.sets for task in frames.tasks}

    @property
    def cameras(self) -> dict[str, int]:
        """Shorter side of the images by the policy's name of the camera, of the first set."""
        info = json.loads((Path(self.sets[0].name) / "meta/info.json").read_text())
        mapping = self.mixture.datasets[0].data_features_name_mapping
        names: dict[str, str] = {column: name for name, column in mapping.items() if column is not None}
        found = {
            str(names.get(column, column)): min(sorted(feature["shape"])[1:])
            for column, feature in info["features"].items()
            if feature["dtype"] in ("image", "video")
        }
        if not found:
            raise ConfigError(f"{self.sets[0].name}: expected a camera among its columns, found none")
        return found


def new_policy(settings: PolicySettings, data: DataSummary, seed: int, **changes: Any) -> PI0Policy:
    """Return an untrained toy policy for the data."""
    size = data.mixture.image_size or min(data.cameras.values())
    sizes = {"chunk_size": settings.chunk_size or 8, "max_state_dim": settings.max_state_dim}
    sizes |= {"n_action_steps": settings.n_action_steps or sizes["chunk_size"]}
    sizes |= {
        "max_action_dim": settings.max_action_dim,
        "tokenizer_max_length": settings.tokenizer_max_length,
        "dtype": settings.dtype,
    }
    return sized_toy_policy(
        data.instructions,
        tuple(data.cameras),
        min(size, _LARGEST_TOY_IMAGE) // 4 * 4,
        data.statistics(),
        seed,
        **{key: value for key, value in sizes.items() if value is not None},
        **changes,
    )


def make_policy(
    settings: PolicySettings, data: DataSummary, seed: int, takes_indicator: bool, device: str
) -> PI0Policy:
    """Return the policy to train; a setting that its checkpoint contradicts is a ConfigError.

    With `takes_indicator` it has an indicator of the advantage, which changes nothing before it is trained.
    """
    if settings.pretrained_path in (None, TOY):
        indicator = (settings.indicator or "embedding") if takes_indicator else "none"
        policy = new_policy(settings, data, seed, indicator=indicator)
        if settings.gradient_checkpointing:
            raise ConfigError("policy.gradient_checkpointing: a toy has no need of it; leave it out")
    else:
        policy = _pretrained(settings, data, seed, takes_indicator, device)
    require_normalization(settings.normalization_mapping, policy.features)
    policy.model.freeze(settings.freeze)
    return policy.to(device)


def _pretrained(
    settings: PolicySettings, data: DataSummary, seed: int, takes_indicator: bool, device: str
) -> PI0Policy:
    directory = resolve(Path(str(settings.pretrained_path)).expanduser())
    config = get_config(settings.config) if settings.config else None
    found = describe(directory, config, None, None, settings.extra_delta_transform)
    _require_sizes(settings, found)
    features, statistics = None, None
    if settings.norm_stats_path:
        statistics = read_statistics(Path(settings.norm_stats_path).expanduser())
    elif settings.statistics == "data":
        features, statistics = _of_data(settings, found, data)
    changes: dict[str, Any] = {"indicator_dropout": 0.0}  # the settings have their own
    if takes_indicator:
        own = found.config.indicator
        changes["indicator"] = settings.indicator or ("embedding" if own == "none" else own)
    for name in ("chunk_size", "n_action_steps", "tokenizer_max_length", "dtype"):
        if getattr(settings, name) is not None:
            changes[name] = getattr(settings, name)
    chunk = changes.get("chunk_size", found.config.chunk_size)
    changes.setdefault("n_action_steps", min(found.config.n_action_steps, chunk))
    return PI0Policy.from_pretrained(
        directory,
        config=config,
        changes=changes | ({"gradient_checkpointing": True} if settings.gradient_checkpointing else {}),
        features=features,
        statistics=statistics,
        extra_delta_transform=None if features else settings.extra_delta_transform,
        device=device,
        seed=seed,
    )


def _of_data(
    settings: PolicySettings, found: Checkpoint, data: DataSummary
) -> tuple[FeatureConfig, Statistics]:
    """Return the checkpoint's conventions with the data's widths, and the data's statistics."""
    frames, features = data.sets[0], found.features
    state, action = frames.states.shape[1], frames.actions.shape[1]
    relative = features.relative_actions[: min(state, action)]
    # A camera that no data set has, as the settings say.
    mappings = [dataset.data_features_name_mapping for dataset in data.mixture.datasets]
    absent = [key for key in features.image_keys if all(m.get(key, key) is None for m in mappings)]
    features = replace(
        features,
        state_dim=state,
        action_dim=action,
        relative_actions=relative,
        absent_cameras=tuple(absent) or features.absent_cameras,
    )
    chunk_size = settings.chunk_size or found.config.chunk_size
    return features, data.statistics(relative, chunk_size)


def _require_sizes(settings: PolicySettings, found: Checkpoint) -> None:
    for name in ("max_state_dim", "max_action_dim"):
        asked, there = getattr(settings, name), getattr(found.config, name)
        if asked is not None and asked != there:
            raise ConfigError(
                f"policy.{name}: expected the checkpoint's {there}, found {asked}; leave it out"
            )


def require_normalization(mapping: NormalizationMapping, features: FeatureConfig) -> None:
    """Raise ConfigError if the settings expect another normalisation than the model's."""
    for name, feature in (("STATE", "state"), ("ACTION", "action")):
        asked, there = getattr(mapping, name), getattr(features, f"{feature}_normalization").upper()
        if asked is not None and asked != there:
            raise ConfigError(
                f"policy.normalization_mapping.{name}: expected the model's {there}, found {asked}; its "
                "weights mean nothing under another normalisation"
            )
