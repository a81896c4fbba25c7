"""The conventions of a checkpoint, changed to those of the data that it is trained on."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from pi0 import FeatureConfig
from pi0.ript.data.frame_set import FrameSet


def without_absent_cameras(
    features: FeatureConfig, mappings: Sequence[Mapping[str, str | None]]
) -> FeatureConfig:
    """Return them with the cameras absent that all data sets say they lack.

    `mappings` are the sets' `data_features_name_mapping`; null stands for a camera that a set lacks.
    """
    lacking = {key for key in features.image_keys if all(m.get(key, key) is None for m in mappings)}
    absent = lacking | set(features.absent_cameras)
    return replace(features, absent_cameras=tuple(key for key in features.image_keys if key in absent))


def with_widths_of(features: FeatureConfig, frames: FrameSet) -> FeatureConfig:
    """Return them with a data set's widths of state and action."""
    state, action = frames.states.shape[1], frames.actions.shape[1]
    return replace(
        features,
        state_dim=state,
        action_dim=action,
        relative_actions=features.relative_actions[: min(state, action)],
    )
