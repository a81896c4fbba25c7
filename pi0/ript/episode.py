"""A finished episode, and what a policy hands over to one: chunks of actions, with notes where it makes any.

Axes: t environment step, n observed step, c chunk, s state dim, a action dim, b batch,
e actions to execute.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from pi0.ript.envs import InitialState, Task

START = "start"
"""In `Rollout.chunks`: the step at which each chunk begins."""


@dataclass(frozen=True)
class Rollout:
    """One finished episode: what was executed, and what the policy could have seen on the way."""

    task: Task
    initial_state: InitialState
    seed: int
    success: bool
    states: Float32[np.ndarray, "t s"]
    """The state before each action."""
    actions: Float32[np.ndarray, "t a"]
    """The actions as given to the environment, in raw units, not clipped."""
    observed: Int64[np.ndarray, " n"]
    """Steps that have images: the start of each chunk, and every `render_every` steps inside."""
    images: Mapping[str, UInt8[np.ndarray, "n h w 3"]] = field(repr=False)
    """The images of each camera; empty when images were not kept."""
    chunks: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False)
    """What the policy noted of each chunk, first axis c, and its `START`; empty without notes."""

    def __len__(self) -> int:
        """Return the number of steps."""
        return len(self.actions)


@dataclass(frozen=True)
class NotedChunks:
    """Chunks of actions with what the policy that acts wants to be kept of them."""

    actions: Float32[np.ndarray, "b e a"]
    notes: Mapping[str, np.ndarray]
    """Arrays with first axis b; `START` is not a name for one."""


type Chunks = Float32[np.ndarray, "b e a"] | NotedChunks
"""What a policy returns to be executed."""


def with_notes(chunks: Chunks) -> NotedChunks:
    """Return chunks with their notes; actions alone have none."""
    return chunks if isinstance(chunks, NotedChunks) else NotedChunks(chunks, {})


def without_images(rollout: Rollout) -> Rollout:
    """Return a rollout as it is when images are not kept."""
    return replace(rollout, observed=rollout.observed[:0], images={})


def lean(rollout: Rollout) -> Rollout:
    """Return a rollout that nothing is learned from: without images and notes, which take the room."""
    return replace(rollout, images={}, chunks={})


def at_chunk_starts(rollout: Rollout) -> Rollout:
    """Return a rollout with the images that the policy acted on, one for each chunk, and no others.

    Raises:
        ValueError: The policy that acted made no notes, so that nothing says where the chunks begin.
    """
    if START not in rollout.chunks:
        raise ValueError(
            "rollout: expected notes on its chunks, found none; let the actor return `NotedChunks`, or learn "
            "from all windows (LearningRule(by_chunk=False))"
        )
    is_start = np.isin(rollout.observed, rollout.chunks[START])
    if is_start.all():
        return rollout
    images = {camera: frames[is_start] for camera, frames in rollout.images.items()}
    return replace(rollout, observed=rollout.observed[is_start], images=images)
