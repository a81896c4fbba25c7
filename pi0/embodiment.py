"""The robots that a policy acts as: cameras, widths, statistics, and raw units to the model's and back.

A policy has one robot without a name, or some by their tags; the id of a robot is its place among them.

Axis legend: b batch, h action horizon, a action dim, s state dim.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pi0.config import Pi0Config
from pi0.errors import UnusableError
from pi0.features import ACTION, STATE, FeatureConfig
from pi0.normalize import Normalizer, Statistics
from pi0.preprocess import checked_vector, padded
from pi0.tensor_files import CheckpointError, read_json

EMBODIMENT = "embodiment_id"
"""Batch key of the id of each sample's robot, in a batch of several robots."""
IDS, STATISTICS = "embodiment_id.json", "embodiment_statistics.json"
"""Files of a policy whose robots have tags: tag -> id, and tag -> statistics."""


class EmbodimentError(UnusableError):
    """A policy does not know the robot that it is asked to act as, or is not told which."""


@dataclass(frozen=True)
class Embodiment:
    """What a policy knows of a robot."""

    features: FeatureConfig
    statistics: Statistics


class Robot(nn.Module):
    """Raw units of one robot <-> model units."""

    def __init__(self, embodiment: Embodiment) -> None:
        super().__init__()
        self.features = says = embodiment.features
        self.statistics = {key: dict(value) for key, value in embodiment.statistics.items()}
        numbers, epsilon = embodiment.statistics, says.epsilon
        self.state_normalizer = Normalizer(STATE, says.state_dim, says.state_normalization, numbers, epsilon)
        self.action_normalizer = Normalizer(
            ACTION, says.action_dim, says.action_normalization, numbers, epsilon
        )

    def width(self, key: str) -> int:
        """Return the robot's numbers of a state or of an action."""
        return self.features.state_dim if key == STATE else self.features.action_dim

    def encode_actions(
        self, actions: Float[Tensor, "b h a"], state: Float[Tensor, "b s"]
    ) -> Float[Tensor, "b h a"]:
        """Return the actions relative to the state at the chunk's start, normalised."""
        return self.action_normalizer.encode(actions - self._offset(state, actions))

    def decode_actions(
        self, chunk: Float[Tensor, "b h padded_a"], state: Float[Tensor, "b s"]
    ) -> Float[Tensor, "b h a"]:
        """Return raw actions; the inverse of `encode_actions` at the same raw state."""
        actions = self.action_normalizer.decode(chunk[..., : self.features.action_dim])
        return actions + self._offset(state, actions)

    def _offset(self, state: Float[Tensor, "b s"], actions: Float[Tensor, "b h a"]) -> Float[Tensor, "b 1 a"]:
        relative = torch.tensor(self.features.relative_actions, dtype=actions.dtype, device=actions.device)
        return padded(state[:, : len(relative)] * relative, actions.shape[-1])[:, None]


class Embodiments(nn.Module):
    """The robots of a policy, and as which of them it acts.

    A batch with `embodiment_id` has states and actions of the widest robot's width, zero behind each sample's
    own; every other batch is of the robot that the policy acts as.
    """

    def __init__(self, known: Mapping[Any, Embodiment], chosen: str | None, config: Pi0Config) -> None:
        """Take the robots.

        Args:
            known: By their tags, in the order of their ids; a single one can have None for a tag.
            chosen: As which the policy acts; None: as the only one, or as none yet.
            config: Of the model.

        Raises:
            EmbodimentError: The chosen one is not known.
            ValueError: A robot is wider than the model, or has other `image_keys` than the rest (absent
                cameras can be others).
        """
        super().__init__()
        self.tags = tuple(tag for tag in known if tag is not None)
        self.chosen = chosen_tag(self.tags, chosen)
        self.joint_features = joint_features([embodiment.features for embodiment in known.values()])
        """What a batch of several robots holds."""
        for name in ("state_dim", "action_dim"):
            width, widest = getattr(self.joint_features, name), getattr(config, f"max_{name}")
            if width > widest:
                raise ValueError(f"{name}: expected at most max_{name}={widest}, found {width}")
        self.robots = nn.ModuleList(Robot(embodiment) for embodiment in known.values())

    def __iter__(self) -> Iterator[Robot]:
        """Iterate over the robots, by their ids."""
        return cast("Iterator[Robot]", iter(self.robots))

    def known(self) -> dict[str, Embodiment]:
        """Return the robots that have tags, by these."""
        pairs = zip(self.tags, self, strict=False)
        return {tag: Embodiment(robot.features, robot.statistics) for tag, robot in pairs}

    @property
    def default(self) -> Robot:
        """The robot that was chosen, or else the first: the one that describes the policy to lerobot."""
        return list(self)[self.tags.index(self.chosen) if self.chosen else 0]

    @property
    def acting(self) -> Robot:
        """The robot that the policy acts as; an EmbodimentError if it has several and none was chosen."""
        require_chosen(self.tags, self.chosen)
        return self.default

    # Batches ------------------------------------------------------------------------------------------------

    def features_of(self, batch: Mapping[str, Any]) -> FeatureConfig:
        """Return what a batch must hold."""
        return self.joint_features if EMBODIMENT in batch else self.acting.features

    def vector(
        self, batch: Mapping[str, Any], key: str, device: torch.device, ndim: int = 2
    ) -> Float[Tensor, "b ..."]:
        """Return raw states or actions of a batch; errors as in `checked_vector`."""
        says = self.features_of(batch)
        return checked_vector(batch, key, says.state_dim if key == STATE else says.action_dim, device, ndim)

    def dims(self, batch: Mapping[str, Any], key: str, size: int) -> Int[Tensor, " b"]:
        """Return the width of each sample's own state or action, on the host."""
        dims = torch.empty(size, dtype=torch.long)
        for robot, rows in self._parts(batch, size):
            dims[rows] = robot.width(key)
        return dims

    def encode_state(
        self, batch: Mapping[str, Any], state: Float[Tensor, "b s"], width: int
    ) -> Float[Tensor, "b {width}"]:
        """Return raw states in model units, each by its robot's statistics, zero-padded."""
        encoded = state.new_zeros(len(state), width)
        for robot, rows in self._parts(batch, len(state)):
            dim = robot.features.state_dim
            encoded[rows, :dim] = robot.state_normalizer.encode(state[rows, :dim])
        return encoded

    def encode_actions(
        self,
        batch: Mapping[str, Any],
        actions: Float[Tensor, "b h a"],
        state: Float[Tensor, "b s"],
        width: int,
    ) -> Float[Tensor, "b h {width}"]:
        """Return raw actions in model units, each by its robot's statistics, zero-padded."""
        encoded = actions.new_zeros(*actions.shape[:2], width)
        for robot, rows in self._parts(batch, len(actions)):
            state_dim, dim = robot.features.state_dim, robot.features.action_dim
            own = robot.encode_actions(actions[rows, :, :dim], state[rows, :state_dim])
            encoded[rows, :, :dim] = own
        return encoded

    def counted(self, batch: Mapping[str, Any], losses: Float[Tensor, "b h a"]) -> Float[Tensor, "b h _"]:
        """Return the losses of the dimensions that count, as `FeatureConfig.loss_dims` says.

        In a batch of several robots these are each sample's own, with zeros behind them.
        """
        says = self.features_of(batch)
        if EMBODIMENT not in batch:
            return losses[..., : says.action_dim] if says.loss_dims == "real" else losses
        dims = self.dims(batch, ACTION, len(losses)).to(losses.device)
        losses = losses[..., : says.action_dim]
        return losses.where(torch.arange(says.action_dim, device=losses.device) < dims[:, None, None], 0.0)

    def mean(self, batch: Mapping[str, Any], counted: Float[Tensor, "b h a"]) -> Float[Tensor, "b h"]:
        """Return the mean over the dimensions that count."""
        if EMBODIMENT not in batch:
            return counted.mean(-1)
        return counted.sum(-1) / self.dims(batch, ACTION, len(counted)).to(counted.device)[:, None]

    def _parts(self, batch: Mapping[str, Any], size: int) -> list[tuple[Robot, Any]]:
        """Return the robots of a batch, each with the rows of its samples."""
        if EMBODIMENT not in batch:
            return [(self.acting, slice(None))]
        ids = torch.as_tensor(batch[EMBODIMENT]).cpu()
        if ids.shape != (size,) or not bool(((ids >= 0) & (ids < len(self.robots))).all()):
            raise ValueError(
                f"{EMBODIMENT}: expected {size} ids below {len(self.robots)}, one per sample, found "
                f"{ids.tolist()}"
            )
        return [
            (robot, (ids == number).nonzero()[:, 0])
            for number, robot in enumerate(self)
            if bool((ids == number).any())
        ]


def joint_features(robots: Sequence[FeatureConfig]) -> FeatureConfig:
    """Return the widest state and action of some robots, and the cameras that any of them has.

    Raises:
        ValueError: They do not have the same `image_keys`.
    """
    first = robots[0]
    if other := next((says.image_keys for says in robots if says.image_keys != first.image_keys), None):
        raise ValueError(
            f"image_keys: expected the same for all robots, found {first.image_keys} and {other}"
        )
    absent = set(first.absent_cameras).intersection(*(says.absent_cameras for says in robots))
    return replace(
        first,
        state_dim=max(says.state_dim for says in robots),
        action_dim=max(says.action_dim for says in robots),
        absent_cameras=tuple(key for key in first.image_keys if key in absent),
    )


def chosen_tag(tags: Sequence[str], asked: str | None) -> str | None:
    """Return the robot that is asked for, or else the only one; None: there are several, or none has a name.

    Raises:
        EmbodimentError: No robot has that tag.
    """
    if asked is not None and asked not in tags:
        expected = f"one of {', '.join(tags)}" if tags else "none, because the policy's robot has no tag"
        raise EmbodimentError(f"embodiment: expected {expected}, found {asked!r}")
    return asked if asked is not None or len(tags) != 1 else tags[0]


def require_chosen(tags: Sequence[str], chosen: str | None) -> None:
    """Raise EmbodimentError if there are several robots and none of them is chosen."""
    if tags and chosen is None:
        raise EmbodimentError(
            f"embodiment: expected one of {', '.join(tags)}, as which the policy is to act, found none; name "
            "one of them"
        )


# Files ------------------------------------------------------------------------------------------------------


def write_embodiments(directory: Path, embodiments: Embodiments) -> dict[str, Any]:
    """Write ids and statistics of the robots that have tags; return what the configuration is to say of them.

    Without tags nothing is said, and files that were there are removed.
    """
    for name in (IDS, STATISTICS):
        (directory / name).unlink(missing_ok=True)
    known = embodiments.known()
    if not known:
        return {}
    write_ids(directory, embodiments.tags)
    numbers = {tag: plain_statistics(robot.statistics) for tag, robot in known.items()}
    (directory / STATISTICS).write_text(json.dumps(numbers, indent=2) + "\n")
    features = {tag: robot.features.to_dict() for tag, robot in known.items()}
    return {"embodiments": features, "embodiment": embodiments.chosen}


def write_ids(directory: Path, tags: Sequence[str]) -> None:
    """Write the ids of robots."""
    ids = {tag: number for number, tag in enumerate(tags)}
    (directory / IDS).write_text(json.dumps(ids, indent=2) + "\n")


def plain_statistics(statistics: Statistics) -> dict[str, dict[str, Any]]:
    """Return statistics for JSON."""
    return {
        feature: {name: torch.as_tensor(value).double().tolist() for name, value in values.items()}
        for feature, values in statistics.items()
    }


def read_embodiments(directory: Path, described: Mapping[str, Any]) -> dict[str, Embodiment]:
    """Return the robots that have tags, in the order of their ids.

    Args:
        directory: The policy's.
        described: What its configuration says of each: the fields of its `FeatureConfig` by tag.

    Raises:
        CheckpointError: The files of ids, of statistics and of the configuration name other robots.
    """
    if not described:
        return {}
    missing = [name for name in (IDS, STATISTICS) if not (directory / name).is_file()]
    if missing:
        raise CheckpointError(f"{directory}: expected {' and '.join(missing)} of {', '.join(described)}")
    ids, numbers = read_json(directory / IDS), read_json(directory / STATISTICS)
    if not set(ids) == set(numbers) == set(described) or sorted(ids.values()) != list(range(len(ids))):
        raise CheckpointError(
            f"{directory}: expected ids from 0 on and statistics of {', '.join(described)}, found {IDS} with "
            f"{ids} and {STATISTICS} of {', '.join(numbers) or 'none'}"
        )
    return {
        tag: Embodiment(
            FeatureConfig.from_dict(described[tag]),
            {
                feature: {name: torch.tensor(value) for name, value in values.items()}
                for feature, values in numbers[tag].items()
            },
        )
        for tag in sorted(ids, key=ids.__getitem__)
    }
