"""How models are trained: optimizer, learning rate, steps and batches.

The comment behind a field is what `--help` says of it.
"""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from pi0.ript.ranges import Count, NotNegative, Positive, ProperShare, Share, Whole, one_of

OptimizerType = Annotated[str, one_of("adamw")]
Schedule = Annotated[str, one_of("cosine_decay_with_warmup", "constant")]


@dataclass
class Optimizer:
    """AdamW."""

    type: OptimizerType = "adamw"  # the only one
    learning_rate: Positive = 2.5e-5  # after the warm-up
    indicator_learning_rate: Positive | None = None  # of an indicator that is an embedding; null: the same
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    eps: Positive = 1e-8
    weight_decay: NotNegative = 1e-10
    grad_norm_clip: Positive = 1.0


@dataclass
class Scheduler:
    """The learning rate over the optimizer steps."""

    type: Schedule = "cosine_decay_with_warmup"  # or constant (after the warm-up)
    num_warmup_steps: Whole = 0
    num_decay_steps: Count | None = None  # step at which decay_lr is reached; null: the last
    decay_lr: NotNegative = 2.5e-6


@dataclass
class Fit:
    """Optimizer steps on random batches, as RECAP's stages make them."""

    steps: Count = 300
    batch_size: Count = 64  # windows or frames per optimizer step, of all processes together
    micro_batch_size: Count = 64  # of them per forward pass of a process
    learning_rate: Positive = 1e-3  # after the warm-up level, then down to 0
    weight_decay: NotNegative = 1e-4
    grad_norm_clip: Positive = 1.0
    betas: ClassVar[tuple[float, float]] = (0.9, 0.95)
    eps: ClassVar[float] = 1e-8


@dataclass
class PolicyTraining(Fit):
    """How the policy is fine-tuned."""

    steps: Count = 200
    warmup_steps: Whole = 20
    decay_fraction: Share = 0.3  # the last part of the steps, in which the learning rate falls
    indicator_learning_rate: Positive = 1e-2  # of an indicator that is an embedding: it starts at zero
    num_draws: Count = 2  # noise draws per window, which share the prefix
    indicator_dropout: Share = 0.3  # share of windows trained without indicator, as guidance needs
    use_awr: bool = False  # weigh each window by exp(A / beta) as well
    awr_beta: Positive = 1.0
    awr_max_weight: Positive = 10.0


@dataclass
class ValueTraining(Fit):
    """How a value function is trained."""

    weight_decay: NotNegative = 1e-3
    validation_fraction: ProperShare = 0.2  # of the episodes of each source, on which the values are judged
    warmup_steps: ClassVar[int] = 0
    decay_fraction: ClassVar[float] = 0.3
    indicator_learning_rate: ClassVar[None] = None


Training = PolicyTraining | ValueTraining
"""What the `fit` of RECAP is told."""
