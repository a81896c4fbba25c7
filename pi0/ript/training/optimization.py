"""Optimizer, learning rate, and the moving average of the weights."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from pi0.ript.training.settings import Optimizer, Scheduler


def make_optimizer(model: nn.Module, settings: Optimizer) -> torch.optim.AdamW:
    """Return AdamW over what is trained; an embedded indicator has a learning rate of its own."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    indicator = [p for name, p in named if "indicator_embedding" in name]
    others = [p for name, p in named if "indicator_embedding" not in name]
    groups = [
        {"params": others, "base_lr": settings.lr, "weight_decay": settings.weight_decay},
        {"params": indicator, "base_lr": settings.indicator_lr or settings.lr, "weight_decay": 0.0},
    ]
    first, second = settings.betas
    return torch.optim.AdamW(groups, lr=settings.lr, betas=(first, second), eps=settings.eps)


def learning_rate_factor(step: int, steps: int, optimizer: Optimizer, scheduler: Scheduler) -> float:
    """Return the factor on the learning rate in an optimizer step, from 0 on.

    It rises linearly over the warm-up; a cosine then leads to `decay_lr`, which is kept.
    """
    warmup = scheduler.num_warmup_steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if scheduler.type == "constant":
        return 1.0
    end = scheduler.num_decay_steps or steps
    progress = min(1.0, (step - warmup) / max(1, end - warmup))
    least = scheduler.decay_lr / optimizer.lr
    return least + (1.0 - least) * 0.5 * (1.0 + math.cos(math.pi * progress))


class WeightAverage:
    """An exponential moving average of the trained parameters, which begins at their first values."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._move: Any = get_ema_multi_avg_fn(decay)
        self._trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.average = {name: p.detach().clone() for name, p in self._trained.items()}

    def update(self) -> None:
        """Move the average towards the present values."""
        now = [p.detach() for p in self._trained.values()]
        self._move(list(self.average.values()), now, 1)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Give the model the average meanwhile."""
        kept = {name: p.detach().clone() for name, p in self._trained.items()}
        copy_parameters(self._trained, self.average)
        try:
            yield
        finally:
            copy_parameters(self._trained, kept)


def copy_parameters(parameters: Mapping[str, Any], values: Mapping[str, Tensor]) -> None:
    """Give parameters other values, by name."""
    with torch.no_grad():
        for name, value in values.items():
            parameters[name].copy_(value)
