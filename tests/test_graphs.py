"""Sampling by CUDA graphs: shapes, memory and captures, with a recorder in place of CUDA's."""

import copy

import pytest
import torch
from conftest import CAMERA, toy_policy
from torch import Tensor

from pi0.graphs import Compute, GraphedSampler

PROMPTS = ["push", "push the button", "push the red button that is left of the open drawer"]


class HostRecorder:
    """Repeats the computation into one result, as a graph does; the first run is the capture."""

    def __call__(self, compute: Compute) -> Compute:
        result = compute()

        def replay() -> Tensor:
            return result.copy_(compute())

        return replay


def observations(prompts: list[str], seed: int = 0) -> dict:
    generator = torch.Generator().manual_seed(seed)
    return {
        CAMERA: torch.rand(len(prompts), 3, 64, 64, generator=generator),
        "observation.state": torch.randn(len(prompts), 4, generator=generator),
        "task": prompts,
    }


def noise(size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, 8, 8, generator=torch.Generator().manual_seed(seed))


def graphed(policy, **options) -> GraphedSampler:
    policy._graphed = GraphedSampler(policy.model, HostRecorder(), **options)
    return policy._graphed


@pytest.mark.parametrize(
    ("config", "guidance"),
    [
        ({}, 1.0),
        ({"pi05": True}, 1.0),
        ({"indicator": "embedding"}, 1.0),
        ({"indicator": "embedding"}, 2.0),
        ({"indicator": "text"}, 2.0),
        ({"indicator": "text"}, 0.0),
    ],
)
def test_replay_equals_the_eager_sampler(config, guidance):
    eager = toy_policy(tasks=PROMPTS, **config)
    policy = copy.deepcopy(eager)
    sampler = graphed(policy)
    for prompts in (PROMPTS[:1], PROMPTS[1:2], PROMPTS):
        for seed in (0, 1):  # the second time other content in the same memory
            batch, draws = observations(prompts, seed), noise(len(prompts), seed)
            expected = eager.sample_actions(batch, noise=draws, guidance=guidance)
            actions = policy.sample_actions(batch, noise=draws, guidance=guidance)
            torch.testing.assert_close(actions, expected, rtol=1e-5, atol=1e-5)
    assert sampler.num_captures < 6


def test_prompts_of_a_bucket_share_a_capture_and_other_shapes_take_their_own():
    policy = toy_policy(tasks=PROMPTS)
    sampler = graphed(policy, prompt_bucket=16)
    for prompt in PROMPTS[:2]:
        policy.sample_actions(observations([prompt]))
    assert sampler.num_captures == 1
    policy.sample_actions(observations([PROMPTS[0]]), num_steps=3)
    policy.sample_actions(observations(PROMPTS[:2]))
    assert sampler.num_captures == 3
    policy.sample_actions(observations([PROMPTS[0]], seed=2))
    assert sampler.num_captures == 3


def test_the_shape_used_longest_ago_gives_way():
    policy = toy_policy(tasks=PROMPTS)
    sampler = graphed(policy, max_captures=2)
    for size in (1, 2, 1, 3, 1, 2):  # 3 takes the place of 2, since 1 was used after it
        policy.sample_actions(observations(PROMPTS[:1] * size))
    assert sampler.num_captures == 4
    assert len(sampler._captures) == 2


def test_weights_changed_in_place_are_followed_and_moved_ones_are_captured_again():
    policy = toy_policy(tasks=PROMPTS)
    eager = copy.deepcopy(policy)
    sampler = graphed(policy)
    batch, draws = observations(PROMPTS[:1]), noise(1)
    before = policy.sample_actions(batch, noise=draws)
    for each in (policy, eager):
        with torch.no_grad():
            each.model.action_out_proj.weight.mul_(2.0)
    doubled = policy.sample_actions(batch, noise=draws)
    assert sampler.num_captures == 1
    assert not torch.allclose(doubled, before)
    torch.testing.assert_close(doubled, eager.sample_actions(batch, noise=draws), rtol=1e-5, atol=1e-5)
    moved = policy.model.action_out_proj
    moved.weight = torch.nn.Parameter(moved.weight.detach().clone())
    policy.sample_actions(batch, noise=draws)
    assert sampler.num_captures == 2


def test_results_are_not_overwritten_by_the_next_call_and_inputs_are_not_kept():
    policy = toy_policy(tasks=PROMPTS)
    graphed(policy)
    draws = noise(1)
    first = policy.sample_actions(observations(PROMPTS[:1]), noise=draws)
    kept = first.clone()
    policy.sample_actions(observations(PROMPTS[:1], seed=5), noise=noise(1, 5))
    assert torch.equal(first, kept)
    assert torch.equal(draws, noise(1))


def test_noise_of_another_shape_is_refused_also_beside_a_capture_that_it_would_fit():
    policy = toy_policy(tasks=PROMPTS)
    sampler = graphed(policy)
    policy.sample_actions(observations(PROMPTS[:2]), noise=noise(2))
    with pytest.raises(ValueError, match=r"noise: expected \(2, 8, 8\), found \(1, 8, 8\)"):
        policy.sample_actions(observations(PROMPTS[:2]), noise=noise(1))
    assert sampler.num_captures == 1


def test_a_prefix_at_hand_is_used_without_a_capture():
    policy = toy_policy(tasks=PROMPTS)
    sampler = graphed(policy)
    batch, draws = observations(PROMPTS[:1]), noise(1)
    actions = policy.sample_actions(batch, noise=draws, prefix=policy.prefix(batch))
    assert sampler.num_captures == 0
    torch.testing.assert_close(actions, policy.sample_actions(batch, noise=draws), rtol=1e-5, atol=1e-5)


def test_a_copy_captures_for_its_own_model():
    policy = toy_policy(tasks=PROMPTS)
    graphed(policy)
    policy.sample_actions(observations(PROMPTS[:1]))
    other = copy.deepcopy(policy)
    assert other._graphed is not None
    assert not other._graphed._captures
    assert other._graphed.model is other.model


def test_on_a_cpu_nothing_is_captured():
    policy = toy_policy()
    assert policy.use_graphs() is policy
    assert policy._graphed is None
    with pytest.raises(ValueError, match="max_captures: expected 1 or more, found 0"):
        GraphedSampler(policy.model, max_captures=0)
