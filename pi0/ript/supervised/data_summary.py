"""What a new model is sized by: widths, statistics, instructions and cameras of the data sets."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Int64

from pi0 import FeatureConfig, PI0Policy
from pi0.embodiment import Embodiment
from pi0.features import ACTION, STATE
from pi0.normalize import Statistics
from pi0.ript.config import ConfigError
from pi0.ript.data.frame_set import FrameSet
from pi0.ript.data.reader import open_set
from pi0.ript.data.settings import MixtureSettings, Tag, mixture_weights, sets_by_robot
from pi0.ript.data.statistics import mixture_statistics
from pi0.ript.data.training_data import open_sets, split_rows
from pi0.ript.supervised.embodiments import require_alike
from pi0.ript.training.fitted_features import with_widths_of, without_absent_cameras
from pi0.ript.warm_start import sized_toy_policy, with_floors

_LARGEST_TOY_IMAGE = 64


@dataclass(frozen=True)
class DataSummary:
    """What a new model is sized by; images are not read."""

    mixture: MixtureSettings
    opened: list[FrameSet] | None = None
    """Its data sets, without cameras; None: they are opened when they are needed."""

    @cached_property
    def sets(self) -> list[FrameSet]:
        """The data sets, without cameras."""
        return open_sets(self.mixture, cameras=()) if self.opened is None else self.opened

    @cached_property
    def robots(self) -> "dict[Tag, DataSummary]":
        """The part of each robot, which has one width; a ConfigError if its data sets are not alike."""
        return {tag: self._part(tag, numbers) for tag, numbers in sets_by_robot(self.mixture).items()}

    def _part(self, tag: Tag, numbers: Sequence[int]) -> "DataSummary":
        weights, sets = self.mixture.weights, [self.sets[number] for number in numbers]
        require_alike(sets, tag)
        part = replace(
            self.mixture,
            datasets=[self.mixture.datasets[number] for number in numbers],
            weights=weights and [weights[number] for number in numbers],
        )
        return DataSummary(part, sets)

    @property
    def mappings(self) -> list[dict[str, str | None]]:
        """What each data set calls the cameras and numbers of the policy; null: it lacks one."""
        return [dataset.data_features_name_mapping for dataset in self.mixture.datasets]

    def fitted(self, features: FeatureConfig) -> FeatureConfig:
        """Return a policy's conventions with the data's widths, and without cameras that all sets lack."""
        return with_widths_of(without_absent_cameras(features, self.mappings), self.sets[0])

    @property
    def training_rows(self) -> list[Int64[np.ndarray, " _"]]:
        """The frames of each set that are trained on."""
        return split_rows(self.mixture, self.sets)[0]

    def statistics(self, relative_actions: Sequence[bool] = (), chunk_size: int = 1) -> Statistics:
        """Return the statistics of what is trained on; other widths in another set are an error."""
        require_alike(self.sets, None)
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
        """Shorter side of the images by the policy's name of the camera, of each robot's first set."""
        sides: dict[str, int] = {}
        for numbers in sets_by_robot(self.mixture).values():
            frames = open_set(self.mixture.datasets[numbers[0]])
            if not frames.images:
                raise ConfigError(f"{frames.name}: expected a camera among its columns, found none")
            for camera in frames.images:
                sides.setdefault(camera, min(frames.image_sizes(camera)[0]))
        return sides

    def toy_policy(self, seed: int, **changes: Any) -> PI0Policy:
        """Return an untrained toy policy for the data; `changes` are fields of its configuration."""
        chunk_size = changes.get("chunk_size", 8)
        size = self.mixture.image_size or min(self.cameras.values())
        numbers = [part.statistics() for part in self.robots.values()]
        widest = {
            name: max(len(statistics[feature]["mean"]) for statistics in numbers)
            for name, feature in (("max_state_dim", STATE), ("max_action_dim", ACTION))
        }
        policy = sized_toy_policy(
            self.instructions,
            tuple(self.cameras),
            min(size, _LARGEST_TOY_IMAGE) // 4 * 4,
            numbers[0],
            seed,
            **{"chunk_size": chunk_size, "n_action_steps": chunk_size, **widest, **changes},
        )
        if None not in self.robots:
            parts = zip(self.robots.items(), numbers, strict=True)
            policy.use_embodiments(
                {
                    tag: Embodiment(part.fitted(policy.features), with_floors(own))
                    for (tag, part), own in parts
                }
            )
        return policy
