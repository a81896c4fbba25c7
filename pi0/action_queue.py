"""Actions that a policy has planned, and the batch that they were planned for."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from pi0.features import STATE, FeatureConfig
from pi0.preprocess import checked_vector, require_cameras, tasks


@dataclass(frozen=True)
class Asker:
    """What stays as it is from one step of an episode to the next."""

    batch_size: int
    task: tuple[str, ...]
    episode_index: tuple[Any, ...] | None
    """None: the batch has none."""


class ActionQueue:
    """Actions for the next steps of one batch of episodes. Axes: b batch, h step, a action dim."""

    def __init__(self) -> None:
        self._actions: deque[Float[Tensor, "b a"]] = deque()
        self._asker: Asker | None = None

    def __len__(self) -> int:
        """Return the number of steps for which there are actions."""
        return len(self._actions)

    def fill(self, asker: Asker, actions: Float[Tensor, "b h a"]) -> None:
        """Queue actions for who asked for them."""
        self._actions.extend(actions.unbind(1))
        self._asker = asker

    def next(self, asker: Asker) -> Float[Tensor, "b a"]:
        """Return the next action.

        Raises:
            ValueError: The queue was made for another batch.
        """
        for name in (x.name for x in fields(Asker)):
            planned, found = getattr(self._asker, name), getattr(asker, name)
            if planned != found:
                raise ValueError(
                    f"{name}: expected {planned}, for which {len(self)} more actions are planned, found "
                    f"{found}; call reset() where an episode begins"
                )
        return self._actions.popleft()


def asker(batch: Mapping[str, Any], features: FeatureConfig, device: torch.device) -> Asker:
    """Return who asks for actions with a batch; one that a policy cannot act on is a ValueError."""
    size = len(checked_vector(batch, STATE, features.state_dim, device))
    require_cameras(batch, features)
    episode = batch.get("episode_index")
    numbers = None if episode is None else tuple(torch.as_tensor(episode).reshape(-1).tolist())
    return Asker(size, tuple(tasks(batch, size)), numbers)
