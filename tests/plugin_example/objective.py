"""An algorithm: imitate the windows of the better rollouts and nothing else."""

from torch import nn

from pi0 import Indicator
from pi0.ript.loss import window_draws


class SuccessLoss(nn.Module):
    def __init__(self, policy, num_draws):
        super().__init__()
        self.policy, self.num_draws = policy, num_draws

    def forward(self, batch, seed):
        """Return the summed loss of a batch; the caller divides by the number of windows."""
        noise, time = window_draws(self.policy, batch["window"].tolist(), seed, self.num_draws)
        losses = self.policy.loss(
            batch,
            indicator=Indicator.POSITIVE,
            reduction="sample",
            noise=noise.to(self.policy.device),
            time=time.to(self.policy.device),
        )
        return (losses * (batch["advantage"].to(losses.device) > 0)).sum()
