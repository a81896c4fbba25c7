"""The stochastic sampler has the distribution of the flow, and its log density is that of its steps."""

from dataclasses import replace

import pytest
import torch
from conftest import toy_policy
from torch.distributions import Independent, Normal

from pi0 import Indicator
from pi0.flow import FlowNoise, euler, log_density, step_time, stochastic_euler, stochastic_step

MEANS = torch.tensor([[-1.5, 0.5], [1.0, -0.5]], dtype=torch.float64)
WEIGHTS = torch.tensor([0.3, 0.7], dtype=torch.float64)
SPREAD = 0.4


def mixture_velocity(x: torch.Tensor, t: float) -> torch.Tensor:
    """The velocity of the flow to a mixture of two Gaussians: the expected `noise - action` at x."""
    a = 1 - t
    variance = t**2 + a**2 * SPREAD**2
    away = x[:, None] - a * MEANS[:, None]  # n c 1 a
    shares = (WEIGHTS.log() - away.square().sum((-1, -2)) / (2 * variance)).softmax(1)
    noise, action = t / variance * away, MEANS[:, None] + a * SPREAD**2 / variance * away
    return (shares[..., None, None] * (noise - action)).sum(1)


def drawn(level: float, num_stochastic: int, num_steps: int, shape, batch: int = 2, seed: int = 0):
    generators = [torch.Generator().manual_seed(seed + i) for i in range(batch)]
    return FlowNoise.drawn(level, num_stochastic, num_steps, shape, generators)


# Distribution -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("level", "num_stochastic"), [(0.5, 300), (0.9, 300), (0.5, 60)])
def test_a_gaussian_mixture_keeps_its_means_and_covariances(level, num_stochastic):
    """Within four standard errors of a sample of 8000, whatever the noise and however many steps add it.

    In few steps it is not: the first ones are long for their noise. The very first makes a variance of 1 one
    of `1 + a^4 / 4`, of which the many after it leave little.
    """
    num_samples, num_steps = 8000, 300
    g = torch.Generator().manual_seed(1)
    x = torch.randn(num_samples, 1, 2, generator=g, dtype=torch.float64)
    is_stochastic = torch.zeros(num_steps, dtype=torch.bool)
    is_stochastic[torch.randperm(num_steps, generator=g)[:num_stochastic]] = True
    for i in range(num_steps):  # as `stochastic_euler`, which would keep the way of all of them
        v = mixture_velocity(x, 1 - i / num_steps)
        if not is_stochastic[i]:
            x = x - v / num_steps
            continue
        mean, std = stochastic_step(x, v, torch.full((num_samples,), i), num_steps, level)
        x = mean + std[:, None, None] * torch.randn(x.shape, generator=g, dtype=x.dtype)
    mean = WEIGHTS @ MEANS
    away = MEANS - mean
    covariance = SPREAD**2 * torch.eye(2) + torch.einsum("c,ci,cj->ij", WEIGHTS, away, away)
    samples = x[:, 0]
    errors = samples.std(0) / num_samples**0.5
    assert ((samples.mean(0) - mean).abs() < 4 * errors).all()
    centred = samples - mean
    products = centred[:, :, None] * centred[:, None]
    assert ((products.mean(0) - covariance).abs() < 4 * products.std(0) / num_samples**0.5).all()
    share = (samples[:, 0] > -0.25).double().mean()  # of the second mode, from which that is far away
    assert abs(share - 0.7) < 4 * (0.21 / num_samples) ** 0.5


def test_the_drift_is_the_score_that_the_density_has():
    """What is left of a mean when the deterministic step is taken away is `D s^2 / 2` times the score."""
    num_steps, i, level = 10, 4, 0.7
    t = 1 - i / num_steps
    x = torch.randn(5, 1, 2, dtype=torch.float64, requires_grad=True)
    variance = t**2 + (1 - t) ** 2 * SPREAD**2
    away = x[:, 0, None] - (1 - t) * MEANS
    log_p = (WEIGHTS.log() - away.square().sum(-1) / (2 * variance)).logsumexp(1)
    (score,) = torch.autograd.grad(log_p.sum(), x)
    v = mixture_velocity(x, t)
    mean, std = stochastic_step(x, v, torch.full((5,), i), num_steps, level)
    s = level * (t / (1 - t)) ** 0.5
    torch.testing.assert_close(mean, x - v / num_steps + s**2 / (2 * num_steps) * score)
    torch.testing.assert_close(std, torch.full_like(std, s / num_steps**0.5))


def test_at_the_start_the_schedule_is_that_of_flow_grpos_code():
    """Its denominator there is 1 - t of the next time."""
    x, v = torch.randn(2, 1, 2, 3).double()
    mean, std = stochastic_step(x, v, torch.tensor([0]), 4, 0.7)
    s = 0.7 * (1 / (1 - 0.75)) ** 0.5
    torch.testing.assert_close(std.item(), s * 0.5)
    torch.testing.assert_close(mean, x - v / 4 - s**2 / 8 * x)


# Way ----------------------------------------------------------------------------------------------------


def test_without_noise_it_is_euler_bit_for_bit():
    noise = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    added = drawn(0.0, 3, 7, (4, 5), 3)
    path = stochastic_euler(lambda x, i: (x - i).sin(), noise, 7, added)
    assert torch.equal(path.actions, euler(lambda x, i: (x - i).sin(), noise, 7))


def test_the_model_without_noise_samples_what_it_always_did(batch, noise):
    policy = toy_policy(indicator="embedding")
    observation = policy.preprocess(batch, Indicator.POSITIVE)
    path = policy.model.sample_path(observation, drawn(0.0, 2, 5, (8, 8)), noise=noise)
    assert torch.equal(path.actions, policy.model.sample(observation, noise=noise))
    noisy = policy.model.sample_path(observation, drawn(0.7, 2, 5, (8, 8)), noise=noise)
    assert not torch.allclose(noisy.actions, path.actions, atol=1e-2)


def test_steps_come_from_a_chunks_own_generator_and_the_others_are_deterministic():
    added, other = drawn(0.7, 2, 6, (4, 5), 9), drawn(0.7, 2, 6, (4, 5), 1, seed=3)
    assert torch.equal(added.steps[3], other.steps[0])
    assert torch.equal(added.draws[3], other.draws[0])
    assert (added.steps.diff(dim=1) > 0).all()
    assert added.steps.unique().tolist() == list(range(6)), "nine chunks, two steps of six each"
    noise = torch.randn(9, 4, 5, generator=torch.Generator().manual_seed(0))

    def velocity(x, i):
        return (x - i).sin()

    path = stochastic_euler(velocity, noise, 6, added)
    for b in range(9):
        x = noise[b : b + 1]
        for i in range(6):
            following = x - velocity(x, i) / 6
            if i in added.steps[b]:
                at = added.steps[b].tolist().index(i)
                torch.testing.assert_close(path.before[b : b + 1, at], x)
                mean, std = stochastic_step(x, velocity(x, i), torch.tensor([i]), 6, 0.7)
                torch.testing.assert_close((path.mean[b, at], path.std[b, at]), (mean[0], std[0]))
                following = mean + std * added.draws[b, at]
                torch.testing.assert_close(path.after[b : b + 1, at], following)
            x = following
        torch.testing.assert_close(path.actions[b : b + 1], x)


def test_more_stochastic_steps_than_steps_are_refused():
    with pytest.raises(ValueError, match=r"stochastic steps: expected 1 to 5, .* found 6"):
        drawn(0.7, 6, 5, (4, 5))
    with pytest.raises(ValueError, match="found 0"):
        drawn(0.7, 0, 5, (4, 5))


def test_step_times():
    torch.testing.assert_close(step_time(torch.arange(4), 4), torch.tensor([1.0, 0.75, 0.5, 0.25]))


# Density ------------------------------------------------------------------------------------------------


def test_log_densities_are_those_of_torchs_distributions():
    g = torch.Generator().manual_seed(0)
    x, mean = torch.randn(2, 3, 4, 5, 6, generator=g)
    std = torch.rand(3, 4, generator=g) + 0.1
    expected = Independent(Normal(mean, std[..., None, None].expand_as(mean)), 2).log_prob(x)
    torch.testing.assert_close(log_density(x, mean, std), expected)
    assert log_density(x.bfloat16(), mean.bfloat16(), std.bfloat16()).dtype == torch.float32


def test_its_gradient_in_the_models_parameters_is_that_of_finite_differences(batch, noise):
    """By way of the velocity, along a direction of all parameters, for the steps of a real path."""
    policy = toy_policy().double()
    model, observation = policy.model, policy.preprocess(batch)
    path = model.sample_path(observation, drawn(0.7, 3, 5, (8, 8)), noise=noise)
    parameters = [p for name, p in model.named_parameters() if name.startswith(("expert", "action_", "time"))]
    g = torch.Generator().manual_seed(0)
    direction = [torch.randn(p.shape, generator=g, dtype=p.dtype) for p in parameters]

    def log_prob():
        context = model.context(model.prefix(observation), observation).repeat(3)
        steps, x = path.steps.T.flatten(), path.before.transpose(0, 1).flatten(0, 1)
        v = model.velocity(context, x, model.time_features(step_time(steps, 5)))
        mean, std = stochastic_step(x, v, steps, 5, 0.7)
        return log_density(path.after.transpose(0, 1).flatten(0, 1)[..., :3], mean[..., :3], std).sum()

    gradients = torch.autograd.grad(log_prob(), parameters)
    expected = sum((a * b).sum() for a, b in zip(gradients, direction, strict=True)).item()
    sides = []
    for size in (1e-3, -2e-3):
        with torch.no_grad():
            for parameter, change in zip(parameters, direction, strict=True):
                parameter.add_(size * change)
            sides.append(log_prob().item())
    assert (sides[0] - sides[1]) / 2e-3 == pytest.approx(expected, rel=0.05)


def test_a_path_is_as_likely_as_its_normal_draws(batch, noise):
    """Its density is that of the draws, divided by the widths."""
    policy = toy_policy()
    added = drawn(0.7, 3, 5, (8, 8))
    path = policy.model.sample_path(policy.preprocess(batch), added, noise=noise)
    expected = Normal(0.0, 1.0).log_prob(added.draws).sum((-1, -2)) - 64 * path.std.log()
    torch.testing.assert_close(log_density(path.after, path.mean, path.std), expected, rtol=1e-4, atol=1e-3)
    silent = replace(added, level=0.0)
    assert not policy.model.sample_path(policy.preprocess(batch), silent, noise=noise).std.any()
