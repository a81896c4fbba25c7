"""GRPO on a flow policy: chunks are sampled with noise, and likelier made where an episode went better.

A chunk of actions that some noisy steps led to has a density, which that of a deterministic sample has not.
See Flow-GRPO (arXiv 2505.05470) and pi_RL (arXiv 2510.25889, Flow-SDE), and docs/algorithms.md.

Axis legend: b batch, k stochastic steps of a chunk, h action horizon, a action dim (w: padded), e actions to
execute.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pi0 import Indicator, Pi0Model, PI0Policy
from pi0.errors import UnusableError
from pi0.features import STATE
from pi0.flow import FlowNoise, log_density, step_time, stochastic_step
from pi0.prefix import Prefix
from pi0.prefix_cache import trained_in_prefix
from pi0.ript.advantage import LearningRule, standardised
from pi0.ript.algorithms import LearningAlgorithm
from pi0.ript.episode import NotedChunks
from pi0.ript.rollout import GuidedPolicy

MAX_LOG_RATIO = 20.0  # where e^x is still a number that can be multiplied; far outside what is clipped


def acting_indicator(policy: PI0Policy) -> Indicator | None:
    """Return the indicator that a chunk is sampled with, in rollouts and in the loss: that of guidance 1."""
    return None if policy.config.indicator == "none" else Indicator.POSITIVE


class StochasticPolicy(GuidedPolicy):
    """A pi0 policy that adds noise in some steps of its sampling, and notes what its loss needs of them.

    Without guidance. Notes of a chunk: `steps` (k,) the numbers of its stochastic steps; `before` and `after`
    (k, h, w) x around each; `log_prob` () the log density of these steps when it acted, see `chunk_log_prob`.
    """

    def __init__(self, policy: PI0Policy, noise_level: float, stochastic_steps: int, among: int) -> None:
        """Add noise in `stochastic_steps` of the first `among` steps of each chunk."""
        super().__init__(policy)
        self.noise_level, self.stochastic_steps, self.among = noise_level, stochastic_steps, among

    def _sample(
        self,
        batch: Mapping[str, Any],
        noise: Float[Tensor, "b h padded_a"],
        pad_prompts: bool,
        generators: Sequence[torch.Generator],
    ) -> NotedChunks:
        policy, config = self.policy, self.policy.config
        shape = (config.chunk_size, config.max_action_dim)
        steps = (self.noise_level, self.stochastic_steps, self.among)
        added = FlowNoise.drawn(*steps, shape, generators, policy.device)
        observation = policy.preprocess(batch, acting_indicator(policy), pad_prompts=pad_prompts)
        path = policy.model.sample_path(observation, added, noise=noise)
        state = policy.embodiments.vector(batch, STATE, policy.device)
        policy.embodiments.acting.state_normalizer.tell_far_outside(state)
        log_prob = chunk_log_prob(path.after, path.mean, path.std, policy.features.action_dim)
        notes = {"steps": path.steps, "before": path.before, "after": path.after, "log_prob": log_prob}
        actions = policy.decode_actions(path.actions, state)
        return NotedChunks(self._executed(actions), {name: x.cpu().numpy() for name, x in notes.items()})


class PolicyGradientLoss(nn.Module):
    """`-min(r A, clip(r, 1 - c, 1 + c) A) + beta KL` per chunk, summed over the batch.

    A is the advantage of the chunk's episode and r its likelihood ratio, that of `chunk_log_prob` under the
    policy now and when it acted (Flow-GRPO: its objective; PPO's clipping, arXiv 1707.06347). KL is that to
    the starting policy along the same path, `|mean - mean_0|^2 / (2 std^2)` with the same mean and sum, since
    both have the same std.
    """

    def __init__(
        self, policy: PI0Policy, noise_level: float, clip_range: float, kl_weight: float = 0.0
    ) -> None:
        """Learn with a policy that acts as `StochasticPolicy`; with a `kl_weight`, a copy of it is kept.

        The embedding of the indicator stays as it is: it says what was better, and here nothing is told that.
        So withheld and positive stay what they were to each other, and with them guidance.
        """
        super().__init__()
        self.policy, self.noise_level = policy, noise_level
        self.clip_range, self.kl_weight = clip_range, kl_weight
        for name, parameter in policy.model.named_parameters():
            if name.startswith("indicator_embedding."):
                parameter.requires_grad_(False)
        self._start: tuple[Pi0Model, ...] = ()  # a tuple: it is neither trained nor saved with the learner
        if kl_weight > 0:
            self._start = (copy.deepcopy(policy.model).requires_grad_(False).eval(),)

    def forward(self, batch: Mapping[str, Any], seed: Sequence[int]) -> Float[Tensor, ""]:
        """Return the summed loss of a batch of chunks with `advantage` (b,) and their notes, `chunk.*`.

        Of `seed`, all but the last number say of which windows these are some; nothing is drawn.
        """
        policy, indicator = self.policy, acting_indicator(self.policy)
        prefix = None
        if policy.prefixes is not None:
            policy.prefixes.use_for(tuple(seed[:-1]))
            prefix = policy.prefixes.of(policy, batch, indicator)
        observation = policy.preprocess(batch, indicator, state_only=prefix is not None)
        if prefix is None:
            prefix = policy.model.prefix(observation)
        chunk = {
            name: batch[f"chunk.{name}"].to(policy.device)
            for name in ("steps", "before", "after", "log_prob")
        }
        mean, std = self._moments(policy.model, policy.model.context(prefix, observation), chunk)
        size = policy.features.action_dim
        log_prob = chunk_log_prob(chunk["after"], mean, std, size)
        advantage = batch["advantage"].to(policy.device)
        loss = -clipped_objective(log_prob - chunk["log_prob"], advantage, self.clip_range)
        if self._start:
            start = self._start_mean(observation, prefix, batch, chunk)
            squares = (mean - start)[..., :size].square().mean((-1, -2))
            loss = loss + self.kl_weight * (squares / (2 * std.square())).sum(1)
        return loss.sum()

    def _moments(
        self, model: Pi0Model, context: Prefix, chunk: Mapping[str, Tensor]
    ) -> tuple[Float[Tensor, "b k h w"], Float[Tensor, "b k"]]:
        """Return mean and standard deviation of x after each stochastic step, all steps in one pass."""
        num_steps, (b, k) = self.policy.config.num_inference_steps, chunk["steps"].shape
        steps, x = chunk["steps"].T.flatten(), chunk["before"].transpose(0, 1).flatten(0, 1)
        velocity = model.velocity(context.repeat(k), x, model.time_features(step_time(steps, num_steps)))
        mean, std = stochastic_step(x, velocity, steps, num_steps, self.noise_level)
        return mean.unflatten(0, (k, b)).transpose(0, 1), std.view(k, b).T

    @torch.no_grad()
    def _start_mean(
        self, observation: Any, prefix: Prefix, batch: Mapping[str, Any], chunk: Mapping[str, Tensor]
    ) -> Float[Tensor, "b k h w"]:
        """Return the means of the starting policy, whose prefix is its own where that is trained."""
        (start,) = self._start
        if trained_in_prefix(self.policy.model) is not None:
            prefix = start.prefix(self.policy.preprocess(batch, acting_indicator(self.policy)))
        return self._moments(start, start.context(prefix, observation), chunk)[0]


def chunk_log_prob(
    after: Float[Tensor, "b k h w"],
    mean: Float[Tensor, "b k h w"],
    std: Float[Tensor, "b k"],
    action_dim: int,
) -> Float[Tensor, " b"]:
    """Return the log density of what the stochastic steps of chunks came to.

    A sum over the steps of a mean over the horizon and the real action dimensions (Flow-GRPO takes that mean
    too), so that what is clipped does not depend on how long a chunk is.
    """
    density = log_density(after[..., :action_dim], mean[..., :action_dim], std).sum(1)
    return density / (after.shape[-2] * action_dim)


def clipped_objective(
    log_ratio: Float[Tensor, " b"], advantage: Float[Tensor, " b"], clip_range: float
) -> Float[Tensor, " b"]:
    """Return `min(r A, clip(r, 1 - c, 1 + c) A)`, of which nothing is learned beyond the clipping."""
    ratio = log_ratio.clamp(max=MAX_LOG_RATIO).exp()
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    return torch.minimum(ratio * advantage, clipped * advantage)


def _learner(policy: PI0Policy, algo: Any) -> PolicyGradientLoss:
    steps = policy.config.num_inference_steps
    if algo.stochastic_among > steps:
        raise UnusableError(
            f"algo.stochastic_among: expected at most the policy's {steps} inference steps, found "
            f"{algo.stochastic_among}; use algo.stochastic_among={steps} or fewer, and no more "
            "algo.stochastic_steps than that"
        )
    if algo.kl_weight > 0 and policy.model.later is not None:
        raise UnusableError(
            "algo.kl_weight: expected 0 where processes share the model's weights, because the starting "
            f"policy is kept as a copy, found {algo.kl_weight:g}; use distributed.strategy=ddp, or "
            "algo.kl_weight=0"
        )
    return PolicyGradientLoss(policy, algo.noise_level, algo.clip_range, algo.kl_weight)


def _actor(policy: PI0Policy, algo: Any, _iteration: int) -> StochasticPolicy:
    return StochasticPolicy(policy, algo.noise_level, algo.stochastic_steps, algo.stochastic_among)


GRPO = LearningAlgorithm(_learner, _actor, LearningRule(advantages=standardised, by_chunk=True))
"""Who acts adds noise; windows are chunks with a standardised advantage; the loss is a policy gradient's."""
