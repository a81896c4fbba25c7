"""Training windows: an observation, and the actions executed from that step on.

Axes: w window, n observed step, t environment step, h action horizon, s state dim, a action dim.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64, UInt8

from pi0.ript.episode import Rollout, at_chunk_starts
from pi0.ript.progress import progress_bar


@dataclass(frozen=True)
class Windows:
    """Windows of any number of episodes, in arrays."""

    images: Mapping[str, UInt8[np.ndarray, "w height width 3"]]
    states: Float32[np.ndarray, "w s"]
    """At the start of the window: what the policy acted on, and what its action targets are relative to."""
    actions: Float32[np.ndarray, "w h a"]
    """Raw, as executed; beyond the end of the episode the last one is repeated."""
    is_pad: Bool[np.ndarray, "w h"]
    """True beyond the end of the episode."""
    instructions: list[str]
    advantages: Float32[np.ndarray, " w"]
    chunks: Mapping[str, np.ndarray] = field(default_factory=dict)
    """What the policy that acted noted of each window's chunk, where windows are chunks; first axis w."""

    def __len__(self) -> int:
        """Return the number of windows."""
        return len(self.states)

    def batch(self, indices: Int64[np.ndarray, " b"]) -> dict[str, Any]:
        """Return some windows as a batch for `PI0Policy.loss`, with `advantage` and number (`window`).

        Notes on their chunks are `chunk.NAME`.
        """
        images = {f"observation.images.{c}": torch.from_numpy(x[indices]) for c, x in self.images.items()}
        return {
            **images,
            "observation.state": torch.from_numpy(self.states[indices]),
            "action": torch.from_numpy(self.actions[indices]),
            "action_is_pad": torch.from_numpy(self.is_pad[indices]),
            "task": [self.instructions[i] for i in indices.tolist()],
            "advantage": torch.from_numpy(self.advantages[indices]),
            "window": torch.from_numpy(indices),
            **{f"chunk.{name}": torch.from_numpy(x[indices]) for name, x in self.chunks.items()},
        }

    def select(self, indices: Int64[np.ndarray, " k"]) -> "Windows":
        """Return some of the windows."""
        return Windows(
            images={camera: x[indices] for camera, x in self.images.items()},
            states=self.states[indices],
            actions=self.actions[indices],
            is_pad=self.is_pad[indices],
            instructions=[self.instructions[i] for i in indices.tolist()],
            advantages=self.advantages[indices],
            chunks={name: x[indices] for name, x in self.chunks.items()},
        )


def batches(indices: Int64[np.ndarray, " w"], size: int) -> list[Int64[np.ndarray, " b"]]:
    """Return the indices in runs of `size`; the last one can be shorter."""
    return [indices[i : i + size] for i in range(0, len(indices), size)]


def shuffled_batches(
    num_windows: int, size: int, num_epochs: int, seed: Sequence[int]
) -> list[Int64[np.ndarray, " b"]]:
    """Return the optimizer steps of some passes over all windows, each pass in an order of its own."""
    orders = [np.random.default_rng((*seed, epoch)).permutation(num_windows) for epoch in range(num_epochs)]
    return [step for order in orders for step in batches(order, size)]


def with_progress[T](steps: Sequence[T], losses: Sequence[float]) -> Iterator[T]:
    """Yield the optimizer steps of an iteration, and show how far they are with the last of the losses.

    Of several processes that torchrun started, the first one shows it.
    """
    is_silent = os.environ.get("RANK", "0") != "0"
    with progress_bar(total=len(steps), unit="step", desc="improve", leave=False, disable=is_silent) as bar:
        for step in steps:
            yield step
            bar.set_postfix_str(f"loss {losses[-1]:.3f}" if losses else "", refresh=False)
            bar.update()


def concatenate(parts: Sequence[Windows]) -> Windows:
    """Return all windows in order."""
    return Windows(
        images={c: np.concatenate([p.images[c] for p in parts]) for c in parts[0].images},
        states=np.concatenate([p.states for p in parts]),
        actions=np.concatenate([p.actions for p in parts]),
        is_pad=np.concatenate([p.is_pad for p in parts]),
        instructions=[text for p in parts for text in p.instructions],
        advantages=np.concatenate([p.advantages for p in parts]),
        chunks={name: np.concatenate([p.chunks[name] for p in parts]) for name in parts[0].chunks},
    )


def episode_windows(
    images: Mapping[str, UInt8[np.ndarray, "n height width 3"]],
    states: Float32[np.ndarray, "t s"],
    actions: Float32[np.ndarray, "t a"],
    observed: Int64[np.ndarray, " n"],
    instruction: str,
    horizon: int,
    advantage: float = 0.0,
) -> Windows:
    """Return a window for every observed step of one episode, so that they cover it to its end."""
    steps = observed[:, None] + np.arange(horizon)
    last = len(actions) - 1
    return Windows(
        images=images,
        states=states[observed],
        actions=actions[np.minimum(steps, last)],
        is_pad=steps > last,
        instructions=[instruction] * len(observed),
        advantages=np.full(len(observed), advantage, np.float32),
    )


def rollout_windows(rollouts: Sequence[Rollout], advantages: Sequence[float], horizon: int) -> Windows:
    """Return the windows of rollouts; each has the advantage of its episode."""
    return concatenate(
        [
            episode_windows(r.images, r.states, r.actions, r.observed, r.task.instruction, horizon, advantage)
            for r, advantage in zip(rollouts, advantages, strict=True)
        ]
    )


def chunk_windows(rollouts: Sequence[Rollout], advantages: Sequence[float], horizon: int) -> Windows:
    """Return a window for every chunk of rollouts, at its start, with what the policy noted of it.

    Raises:
        ValueError: The policy that acted made no notes.
    """
    windows = rollout_windows([at_chunk_starts(r) for r in rollouts], advantages, horizon)
    notes = {name: np.concatenate([r.chunks[name] for r in rollouts]) for name in rollouts[0].chunks}
    return replace(windows, chunks=notes)
