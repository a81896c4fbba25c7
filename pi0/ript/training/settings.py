"""How models are trained: optimizer, learning rate, steps and batches.

The comment behind a field is what `--help` says of it.
"""

import math
from dataclasses import dataclass, field


@dataclass
class Optimizer:
    """AdamW."""

    type: str = "adamw"  # the only one
    lr: float = 2.5e-5  # after the warm-up
    indicator_lr: float | None = None  # of an indicator that is an embedding; null: lr
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    eps: float = 1e-8
    weight_decay: float = 1e-10
    grad_clip_norm: float = 1.0


@dataclass
class Scheduler:
    """The learning rate over the optimizer steps."""

    type: str = "cosine_decay_with_warmup"  # or constant (after the warm-up)
    num_warmup_steps: int = 0
    num_decay_steps: int | None = None  # step at which decay_lr is reached; null: the last
    decay_lr: float = 2.5e-6


@dataclass
class PolicyTraining:
    """How the policy is fine-tuned."""

    steps: int = 200
    batch_size: int = 64  # windows per optimizer step, of all processes together
    micro_batch_size: int = 64  # windows per forward pass of a process
    learning_rate: float = 1e-3  # after a warm-up level, then down to 0
    warmup_steps: int = 20
    decay_fraction: float = 0.3  # the last part of the steps, in which the learning rate falls
    indicator_learning_rate: float = 1e-2  # of an indicator that is an embedding: it starts at zero
    weight_decay: float = 1e-4
    grad_norm_clip: float = 1.0
    num_draws: int = 2  # noise draws per window, which share the prefix
    indicator_dropout: float = 0.3  # share of windows trained without indicator, as guidance needs
    use_awr: bool = False  # weigh each window by exp(A / beta) as well
    awr_beta: float = 1.0
    awr_max_weight: float = 10.0

    def __post_init__(self) -> None:
        """Check the settings."""
        for name in ("steps", "batch_size", "micro_batch_size", "num_draws"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, found {getattr(self, name)}")
        for name in ("learning_rate", "indicator_learning_rate", "grad_norm_clip"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}: expected a number above 0, found {getattr(self, name)}")
        for name in ("indicator_dropout", "decay_fraction"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name}: expected a share, found {getattr(self, name)}")
        if not (self.awr_beta > 0 and self.awr_max_weight > 0):
            raise ValueError(
                f"awr_beta, awr_max_weight: expected positive numbers, found {self.awr_beta}, "
                f"{self.awr_max_weight}"
            )


@dataclass
class ValueTraining:
    """How a value function is trained."""

    steps: int = 300
    batch_size: int = 64  # frames per optimizer step, of all processes together
    micro_batch_size: int = 64  # frames per forward pass of a process
    learning_rate: float = 1e-3  # level, then down to 0 over the last 30%
    weight_decay: float = 1e-3
    grad_norm_clip: float = 1.0
    validation_fraction: float = 0.2  # of the episodes of each source

    def __post_init__(self) -> None:
        """Check the settings."""
        for name in ("steps", "batch_size", "micro_batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, found {getattr(self, name)}")
        for name in ("learning_rate", "grad_norm_clip"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}: expected a number above 0, found {getattr(self, name)}")
        if not 0.0 < self.validation_fraction < 1.0:
            raise ValueError(
                f"validation_fraction: expected a share between 0 and 1 (the values are judged on these "
                f"episodes), found {self.validation_fraction}"
            )
