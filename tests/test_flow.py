"""Closed-form truths of the flow."""

import torch

from pi0.flow import euler, interpolate, sample_time, time_embedding


def test_time_has_the_quantiles_of_the_scaled_beta_distribution():
    time = sample_time((200_000,), generator=torch.Generator().manual_seed(0))
    levels = torch.tensor([0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99])
    expected = 0.999 * levels ** (2 / 3) + 0.001  # Beta(1.5, 1) has the distribution function x^1.5
    torch.testing.assert_close(time.quantile(levels), expected, atol=4e-3, rtol=0)
    assert abs(time.mean().item() - (0.999 * 0.6 + 0.001)) < 2e-3
    assert time.min() > 0.001
    assert time.max() <= 1.0


def test_time_matches_torchs_beta_distribution():
    torch.manual_seed(0)
    reference = torch.distributions.Beta(1.5, 1.0).sample((200_000,)) * 0.999 + 0.001
    time = sample_time((200_000,), generator=torch.Generator().manual_seed(1))
    levels = torch.linspace(0.01, 0.99, 25)
    torch.testing.assert_close(time.quantile(levels), reference.quantile(levels), atol=5e-3, rtol=0)


def test_ends_of_the_path_are_actions_and_noise():
    actions, noise = torch.randn(2, 2, 5, 3)
    x, velocity = interpolate(actions, noise, torch.tensor([0.0, 1.0]))
    assert torch.equal(x[0], actions[0])
    assert torch.equal(x[1], noise[1])
    assert torch.equal(velocity, noise - actions)


def test_euler_integrates_a_straight_path_exactly_and_leaves_the_noise_alone():
    actions, noise = torch.randn(2, 2, 5, 3).double()
    before = noise.clone()
    result = euler(lambda x, i: noise - actions, noise, 7)
    torch.testing.assert_close(result, actions)
    assert torch.equal(noise, before)


def test_euler_of_a_linear_field_is_the_product_of_its_steps():
    x = torch.ones(1, 1, 1).double()
    torch.testing.assert_close(euler(lambda x, i: x, x, 4), torch.full((1, 1, 1), 0.75**4).double())


def test_time_embedding_spans_the_periods():
    embedded = time_embedding(torch.tensor([0.0, 1.0]), 8, 4e-3, 4.0)
    assert torch.equal(embedded[0], torch.tensor([0.0] * 4 + [1.0] * 4))
    angle = 2 * torch.pi / 4.0  # the longest period, a quarter of a turn at t = 1
    torch.testing.assert_close(embedded[1, 3], torch.tensor(angle).sin())
