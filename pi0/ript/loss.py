"""The objective of RIPT on a flow policy: imitate what was better than its group, keep the rest in mind."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pi0 import Indicator, PI0Policy


class AdvantageLoss(nn.Module):
    """`1[A > 0] L(positive) + alpha L(unconditional)` per window, summed over the batch.

    L is the flow-matching loss with the indicator positive or withheld. Both terms share the prefix, the
    noise and the flow times. Sums, because the caller knows how many windows an optimizer step has in all.
    """

    def __init__(self, policy: PI0Policy, uncond_weight: float, num_draws: int = 1) -> None:
        super().__init__()
        if policy.config.indicator != "embedding":
            raise ValueError(
                "indicator: expected 'embedding' (the two terms share a prefix), found "
                f"{policy.config.indicator!r}"
            )
        self.policy, self.uncond_weight, self.num_draws = policy, uncond_weight, num_draws

    def forward(
        self, batch: Mapping[str, Any], generator: torch.Generator | None = None
    ) -> Float[Tensor, ""]:
        """Return the summed loss of a batch with `advantage` (b,)."""
        policy = self.policy
        is_better = batch["advantage"].to(policy.device) > 0
        size, k = len(is_better), self.num_draws
        shape = (k, size, policy.config.chunk_size, policy.config.max_action_dim)
        draws = {
            "noise": torch.randn(shape, device=policy.device, generator=generator),
            "time": policy.model.sample_time((k, size), policy.device, generator),
            "prefix": policy.model.prefix(policy.preprocess(batch)),
            "reduction": "sample",
            "generator": generator,  # which indicators are withheld
        }
        unconditional = policy.loss(batch, indicator=Indicator.NONE, **draws)
        conditional = policy.loss(batch, indicator=Indicator.POSITIVE, **draws)
        return (is_better * conditional + self.uncond_weight * unconditional).sum()
