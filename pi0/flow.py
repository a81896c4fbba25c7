"""Flow matching between noise (t = 1) and actions (t = 0): times, interpolation, targets, Euler steps.

Steps are deterministic (`euler`) or add noise (`stochastic_euler`).

Axis legend: k noise draws or stochastic steps, b batch, h action horizon, a action dim.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


def sample_time(
    shape: tuple[int, ...],
    *,
    alpha: float = 1.5,
    scale: float = 0.999,
    offset: float = 0.001,
    device: torch.device | str | None = None,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "..."]:
    """Return training times `scale * Beta(alpha, 1) + offset`, by default in [0.001, 1).

    Beta(alpha, 1) has the distribution function x^alpha, so its inverse at a uniform number is exact and
    needs no rejection loop and no copy between devices (openpi pi0.py: compute_loss draws Beta(1.5, 1)).
    """
    uniform = torch.rand(shape, device=device, generator=generator)
    return scale * uniform.pow(1.0 / alpha) + offset


def interpolate(
    actions: Float[Tensor, "*n h a"], noise: Float[Tensor, "*n h a"], time: Float[Tensor, "*n"]
) -> tuple[Float[Tensor, "*n h a"], Float[Tensor, "*n h a"]]:
    """Return `x_t = t noise + (1 - t) actions` and the velocity `noise - actions` to be predicted there."""
    t = time[..., None, None]
    return t * noise + (1 - t) * actions, noise - actions


def time_embedding(
    time: Float[Tensor, "*n"], width: int, min_period: float, max_period: float
) -> Float[Tensor, "*n {width}"]:
    """Return the sine-cosine features of the flow time, periods geometric from min_period to max_period.

    Angles reach 1571 rad, so they are computed in float64 (openpi PyTorch and lerobot do so too).
    """
    fraction = torch.linspace(0.0, 1.0, width // 2, dtype=torch.float64, device=time.device)
    period = min_period * (max_period / min_period) ** fraction
    angle = time[..., None].double() * (2 * torch.pi / period)
    return torch.cat([angle.sin(), angle.cos()], dim=-1).to(time.dtype)


def euler(
    velocity: Callable[[Float[Tensor, "b h a"], int], Float[Tensor, "b h a"]],
    noise: Float[Tensor, "b h a"],
    num_steps: int,
) -> Float[Tensor, "b h a"]:
    """Return actions: `velocity(x, i)` integrated from t = 1 to 0 at times `1 - i / num_steps`.

    The noise argument is not changed.
    """
    x, count = noise, noise.new_tensor(num_steps)
    for i in range(num_steps):
        x = torch.addcdiv(x, velocity(x, i), count, value=-1)
    return x


# Stochastic sampling ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FlowNoise:
    """Where and how much noise a stochastic sampling adds: `stochastic_euler` is a function of it."""

    level: float
    """The factor a of the noise schedule `a sqrt(t / (1 - t))`; 0: none, which is `euler`."""
    steps: Int[Tensor, "b k"]
    """The numbers of the steps of each chunk that are stochastic, ascending; the others are deterministic."""
    draws: Float[Tensor, "b k h a"]
    """Standard normal, for those steps."""

    @classmethod
    def drawn(
        cls,
        level: float,
        num_stochastic: int,
        among: int,
        shape: tuple[int, int],
        generators: Sequence[torch.Generator],
        device: torch.device | str | None = None,
    ) -> "FlowNoise":
        """Return noise for a chunk of `shape` from each generator, which also says at which steps.

        These are `num_stochastic` of the first `among` steps. Where fewer than all steps are stochastic this
        is the mixed form (pi_RL, arXiv 2510.25889, Flow-SDE with hybrid ODE-SDE sampling; there one step is).

        Raises:
            ValueError: There are not so many steps.
        """
        if not 1 <= num_stochastic <= among:
            raise ValueError(
                f"stochastic steps: expected 1 to {among}, the steps they are drawn from, found "
                f"{num_stochastic}"
            )
        steps, draws = [], []
        for generator in generators:
            order = torch.randperm(among, generator=generator)
            steps.append(order[:num_stochastic].sort().values)
            draws.append(torch.randn((num_stochastic, *shape), generator=generator))
        return cls(level, torch.stack(steps).to(device), torch.stack(draws).to(device))


@dataclass(frozen=True)
class FlowPath:
    """What a stochastic sampling went through: its result, and x before and after each stochastic step."""

    actions: Float[Tensor, "b h a"]
    steps: Int[Tensor, "b k"]
    before: Float[Tensor, "b k h a"]
    after: Float[Tensor, "b k h a"]
    mean: Float[Tensor, "b k h a"]
    """Of `after`, given `before`."""
    std: Float[Tensor, "b k"]


def step_time(steps: Int[Tensor, "*n"], num_steps: int) -> Float[Tensor, "*n"]:
    """Return the flow times at which steps begin, in float32."""
    return 1.0 - steps.float() / num_steps


def stochastic_step(
    x: Float[Tensor, "n h a"],
    velocity: Float[Tensor, "n h a"],
    steps: Int[Tensor, " n"],
    num_steps: int,
    level: float,
) -> tuple[Float[Tensor, "n h a"], Float[Tensor, " n"]]:
    """Return mean and standard deviation of x after a stochastic Euler step.

    The stochastic differential equation has at every time the distribution of the flow's ordinary one
    (Flow-GRPO, arXiv 2505.05470: its update rule; Flow-SDE in pi_RL, arXiv 2510.25889). Here x is
    `t noise + (1 - t) actions` and v its velocity `noise - actions`, so `x + (1 - t) v` is the expected noise
    and minus its quotient by t the score. From t to t - D:

        mean = x - D v - D s^2 / (2 t) (x + (1 - t) v)        std = s sqrt(D)        s = a sqrt(t / (1 - t))

    At t = 1, where s has no bound, 1 - t is that of the next time, as in Flow-GRPO's code. With N steps of
    D = 1 / N, step i begins at t = 1 - i / N, and all of it is short: `D s^2 / (2 t) = a^2 / (2 max(i, 1))`.
    """
    past = steps.to(x.dtype)
    from_start = past.clamp(min=1.0)  # N (1 - t)
    share, one_less_t = level**2 / (2 * from_start), past / num_steps
    euler_mean = torch.addcdiv(x, velocity, x.new_tensor(num_steps), value=-1)
    noise = torch.addcmul(x, one_less_t[:, None, None], velocity)
    mean = torch.addcmul(euler_mean, share[:, None, None], noise, value=-1)
    return mean, level * ((num_steps - past) / (num_steps * from_start)).sqrt()


def stochastic_euler(
    velocity: Callable[[Float[Tensor, "b h a"], int], Float[Tensor, "b h a"]],
    noise: Float[Tensor, "b h a"],
    num_steps: int,
    added: FlowNoise,
) -> FlowPath:
    """Return the way of `velocity(x, i)` from t = 1 to 0, where some steps add noise; see `stochastic_step`.

    At noise level 0 its actions are those of `euler`, bit for bit. The noise arguments are not changed.
    """
    x, count, samples = noise, noise.new_tensor(num_steps), torch.arange(len(noise), device=noise.device)
    before, after, mean = (torch.empty_like(added.draws) for _ in range(3))
    std = torch.empty_like(added.draws[..., 0, 0])
    for i in range(num_steps):
        v = velocity(x, i)
        following = torch.addcdiv(x, v, count, value=-1)
        rows, places = (added.steps == i).nonzero(as_tuple=True)
        if len(rows):
            at = (rows, places)
            before[at] = x[rows]
            mean[at], std[at] = stochastic_step(x[rows], v[rows], added.steps[at], num_steps, added.level)
            after[at] = torch.addcmul(mean[at], std[at][:, None, None], added.draws[at])
            following = following.index_copy(0, samples[rows], after[at])
        x = following
    return FlowPath(x, added.steps, before, after, mean, std)


def log_density(
    x: Float[Tensor, "*n h a"], mean: Float[Tensor, "*n h a"], std: Float[Tensor, "*n"]
) -> Float[Tensor, "*n"]:
    """Return the log density of independent Gaussians at x, summed over h and a, in float32.

    Hand in the real action dimensions only: what fills them up to the model's width is nobody's action.
    """
    x, mean, std = x.float(), mean.float(), std.float()
    squares = ((x - mean) / std[..., None, None]).square().sum((-1, -2))
    return -0.5 * squares - x.shape[-1] * x.shape[-2] * (std.log() + 0.5 * math.log(2 * math.pi))
