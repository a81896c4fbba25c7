"""Flow matching between noise (t = 1) and actions (t = 0): times, interpolation, targets, Euler steps.

Axis legend: k noise draws, b batch, h action horizon, a action dim.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
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
