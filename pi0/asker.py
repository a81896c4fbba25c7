"""Who asks a policy for its next action: the batch of episodes that the actions in its queue are for."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch

from pi0.features import STATE, FeatureConfig
from pi0.preprocess import checked_vector, require_cameras, tasks


@dataclass(frozen=True)
class Asker:
    """What of a batch stays as it is from one step of its episodes to the next."""

    batch_size: int
    task: tuple[str, ...]
    episode_index: tuple[Any, ...] | None
    """None: the batch has none."""

    @classmethod
    def of(cls, batch: Mapping[str, Any], features: FeatureConfig, device: torch.device) -> "Asker":
        """Return who asks with a batch; one that a policy cannot act on is a ValueError."""
        size = len(checked_vector(batch, STATE, features.state_dim, device))
        require_cameras(batch, features)
        episode = batch.get("episode_index")
        numbers = None if episode is None else tuple(torch.as_tensor(episode).reshape(-1).tolist())
        return cls(size, tuple(tasks(batch, size)), numbers)

    def require_same(self, other: "Asker | None", num_queued: int) -> None:
        """Raise ValueError unless the queued actions are for who asks."""
        for name in (field.name for field in fields(self)):
            planned, found = getattr(other, name), getattr(self, name)
            if planned != found:
                raise ValueError(
                    f"{name}: expected {planned}, for which {num_queued} more actions are planned, found "
                    f"{found}; call reset() where an episode begins"
                )
