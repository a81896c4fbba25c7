"""Optimizer, learning rate, and the moving average of the weights."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from pi0.ript.checkpoint.snapshot import changed_weights, copy_tensors, trained_parameters
from pi0.ript.training.settings import Optimizer, Scheduler, Training
from pi0.trainable import require_float32


def make_optimizer(model: nn.Module, settings: Training | Optimizer) -> torch.optim.AdamW:
    """Return AdamW over what is trained; an embedded indicator can have a learning rate of its own."""
    trained = trained_parameters(model)
    require_float32(trained)
    indicator = {name: p for name, p in trained.items() if "indicator_embedding" in name}
    others = [p for name, p in trained.items() if name not in indicator]
    rate = settings.learning_rate
    indicator_rate = rate if settings.indicator_learning_rate is None else settings.indicator_learning_rate
    groups = [
        {"params": others, "base_lr": rate, "weight_decay": settings.weight_decay},
        {"params": list(indicator.values()), "base_lr": indicator_rate, "weight_decay": 0.0},
    ]
    first, second = settings.betas
    return torch.optim.AdamW(groups, lr=rate, betas=(first, second), eps=settings.eps)


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Give each group of `make_optimizer` its own learning rate times a factor."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


def linear_schedule(step: int, settings: Training) -> float:
    """Return the factor on the learning rate in an optimizer step, from 0 on.

    It rises over `warmup_steps`, is level, and falls to 0 over the last `decay_fraction` of all steps.
    """
    decay_steps = settings.decay_fraction * settings.steps
    falling = (settings.steps - step) / decay_steps if decay_steps > 0 else 1.0
    return min(1.0, (step + 1) / max(settings.warmup_steps, 1), falling)


def cosine_schedule(step: int, steps: int, optimizer: Optimizer, scheduler: Scheduler) -> float:
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
    least = scheduler.decay_lr / optimizer.learning_rate
    return least + (1.0 - least) * 0.5 * (1.0 + math.cos(math.pi * progress))


class WeightAverage:
    """An exponential moving average of the trained parameters, which begins at their first values."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._move: Any = get_ema_multi_avg_fn(decay)
        self._model, self._trained = model, trained_parameters(model)
        self.average = {name: p.detach().clone() for name, p in self._trained.items()}

    def update(self) -> None:
        """Move the average towards the present values."""
        now = [p.detach() for p in self._trained.values()]
        self._move(list(self.average.values()), now, 1)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Give the model the average meanwhile, on all processes."""
        kept = {name: p.detach().clone() for name, p in self._trained.items()}
        with changed_weights(self._model):
            copy_tensors(self._trained, self.average)
        try:
            yield
        except BaseException:  # on this process perhaps alone: nothing is gathered again for what has failed
            self._model.train()
            copy_tensors(self._trained, kept)
            raise
        with changed_weights(self._model):
            copy_tensors(self._trained, kept)
