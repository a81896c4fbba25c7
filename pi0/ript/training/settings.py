"""How models are trained: optimizer, learning rate, steps and batches.

The comment behind a field is what `--help` says of it.
"""

import math
from dataclasses import dataclass, field
from typing import ClassVar


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
class Fit:
    """Optimizer steps on random batches, as RECAP's stages make them."""

    steps: int = 300
    batch_size: int = 64  # windows or frames per optimizer step, of all processes together
    micro_batch_size: int = 64  # of them per forward pass of a process
    learning_rate: float = 1e-3  # after the warm-up level, then down to 0
    weight_decay: float = 1e-4
    grad_norm_clip: float = 1.0

    def __post_init__(self) -> None:
        """Check the settings."""
        _require_counts(self, "steps", "batch_size", "micro_batch_size")
        _require_positive(self, "learning_rate", "grad_norm_clip")


@dataclass
class PolicyTraining(Fit):
    """How the policy is fine-tuned."""

    steps: int = 200
    warmup_steps: int = 20
    decay_fraction: float = 0.3  # the last part of the steps, in which the learning rate falls
    indicator_learning_rate: float = 1e-2  # of an indicator that is an embedding: it starts at zero
    num_draws: int = 2  # noise draws per window, which share the prefix
    indicator_dropout: float = 0.3  # share of windows trained without indicator, as guidance needs
    use_awr: bool = False  # weigh each window by exp(A / beta) as well
    awr_beta: float = 1.0
    awr_max_weight: float = 10.0

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        _require_counts(self, "num_draws")
        _require_positive(self, "indicator_learning_rate")
        if not (self.awr_beta > 0 and self.awr_max_weight > 0):
            raise ValueError(
                f"awr_beta, awr_max_weight: expected positive numbers, found {self.awr_beta}, "
                f"{self.awr_max_weight}"
            )
        for name in ("indicator_dropout", "decay_fraction"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name}: expected a share, found {getattr(self, name)}")


@dataclass
class ValueTraining(Fit):
    """How a value function is trained."""

    weight_decay: float = 1e-3
    validation_fraction: float = 0.2  # of the episodes of each source
    warmup_steps: ClassVar[int] = 0
    decay_fraction: ClassVar[float] = 0.3
    indicator_learning_rate: ClassVar[None] = None

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        if not 0.0 < self.validation_fraction < 1.0:
            raise ValueError(
                f"validation_fraction: expected a share between 0 and 1 (the values are judged on these "
                f"episodes), found {self.validation_fraction}"
            )


def _require_counts(settings: Fit, *names: str) -> None:
    for name in names:
        if getattr(settings, name) < 1:
            raise ValueError(f"{name}: expected at least 1, found {getattr(settings, name)}")


def _require_positive(settings: Fit, *names: str) -> None:
    for name in names:
        if not 0.0 < getattr(settings, name) < math.inf:
            raise ValueError(f"{name}: expected a number above 0, found {getattr(settings, name)}")
