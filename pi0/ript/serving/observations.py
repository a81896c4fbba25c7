"""One client's message -> an observation of the policy, under the policy's own or openpi's names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pi0 import PI0Policy
from pi0.ript.serving.limits import ServingLimits
from pi0.ript.serving.wire import unpack

STATE, TASK = "observation.state", "task"
_OPENPI = {"observation/state": STATE, "prompt": TASK}  # openpi's names of LIBERO observations
_OPENPI_CAMERAS = ("observation/image", "observation/wrist_image")  # in the order of the policy's cameras


@dataclass(frozen=True, eq=False)
class ServedRequest:
    """An observation, and the noise (1, chunk_size, max_action_dim) from which its actions are made."""

    arrays: dict[str, np.ndarray]
    task: str
    noise: Tensor

    @property
    def form(self) -> tuple[Any, ...]:
        """Shapes and dtypes: requests of one form can be inferred together."""
        return tuple((name, array.shape, array.dtype.str) for name, array in sorted(self.arrays.items()))


def stack(requests: Sequence[ServedRequest]) -> tuple[dict[str, Any], Tensor]:
    """Return the policy's batch of requests of one form, and their noise (b, chunk_size, max_action_dim)."""
    arrays = {name: np.stack([one.arrays[name] for one in requests]) for name in requests[0].arrays}
    batch = arrays | {TASK: [one.task for one in requests]}
    return batch, torch.cat([one.noise for one in requests])


class ObservationReader:
    """Reads the observations of one policy's robot; what does not fit is refused by name."""

    def __init__(self, policy: PI0Policy, prompt: str | None, limits: ServingLimits) -> None:
        """Read for `policy`; `prompt` is the task of clients that name none."""
        self.prompt, self.limits = prompt, limits
        cameras = policy.features.present_cameras
        self.names = _OPENPI | dict(zip(_OPENPI_CAMERAS, cameras, strict=False))
        self.expected = {*cameras, STATE, TASK}

    def read(self, message: bytes) -> tuple[dict[str, np.ndarray], str]:
        """Return arrays by the policy's names, and the task.

        Raises:
            ValueError: The message is no observation of this policy; tells the field.
        """
        observation = unpack(message)
        if not isinstance(observation, Mapping):
            raise ValueError(f"expected an observation (a map of names), found {type(observation).__name__}")
        named: dict[str, Any] = {
            self.names.get(str(name), str(name)): value for name, value in observation.items()
        }
        if self.prompt is not None:
            named.setdefault(TASK, self.prompt)
        if set(named) != self.expected or len(named) < len(observation):
            found = sorted(str(name)[:80] for name in observation)[:20]
            raise ValueError(
                f"expected {sorted(self.expected)} (or openpi's names {sorted(self.names)}), found {found}"
            )
        task = named.pop(TASK)
        if not isinstance(task, str):
            raise ValueError(f"{TASK}: expected a string, found {type(task).__name__}")
        if len(task) > self.limits.max_prompt_characters:
            most = self.limits.max_prompt_characters
            raise ValueError(f"{TASK}: expected at most {most} characters, found {len(task)}")
        for name, value in named.items():
            self._require_array(name, value)
        return named, task

    def _require_array(self, name: str, value: object) -> None:
        if not isinstance(value, np.ndarray):
            raise ValueError(f"{name}: expected an array, found {type(value).__name__}")
        most = self.limits.max_image_side
        if 0 in value.shape or max(value.shape, default=1) > most:
            raise ValueError(f"{name}: expected 1 to {most} elements along each axis, found {value.shape}")
