"""Settings of what is said of frames: the reward, and which of them count as positive.

Importing this loads no torch.
"""

from dataclasses import dataclass, replace
from typing import Annotated, Literal, get_args

from pi0.ript.ranges import Count, Expected, ProperShare, one_of, wrong_values

Scope = Literal["global", "per_task"]
NumberOfBins = Annotated[int, Expected("at least 2", lambda value: value >= 2)]
Penalty = Annotated[float | int, Expected("at most 0", lambda value: value <= 0)]
RewardNormalizer = Annotated[
    float | int | str,
    Expected("'auto' or a positive number", lambda x: x == "auto" if isinstance(x, str) else x > 0),
]
TruncatedAs = Annotated[str, one_of("failure", "unpenalised")]


@dataclass
class RewardConfig:
    """The reward."""

    number_of_bins: NumberOfBins = 201  # of the value function's distribution
    C_neg: Penalty = -1000.0  # added to the return of every frame of a failed episode
    reward_normalizer: RewardNormalizer = "auto"  # auto: the least that keeps every return in [-1, 0]
    N_steps_look_ahead: Count = 50  # steps of reward in an advantage
    truncated: TruncatedAs = "failure"  # what an episode is that only ran out of time: failure or unpenalised

    def __post_init__(self) -> None:
        """Check the values, which can also come from a reward.json."""
        if problems := [*wrong_values(self)]:
            raise ValueError("; ".join(problems))

    @property
    def normalizer(self) -> float:
        """Return the number; "auto" must have been resolved before."""
        if isinstance(self.reward_normalizer, str):
            raise ValueError("reward_normalizer: 'auto' needs episodes; call RewardConfig.resolve first")
        return float(self.reward_normalizer)

    def resolve(self, longest: int) -> "RewardConfig":
        """Return the configuration with a normaliser for episodes of up to `longest` frames.

        Raises:
            ValueError: The configured one would push returns below -1.
        """
        needed = longest - 1 - self.C_neg
        if self.reward_normalizer == "auto":
            return replace(self, reward_normalizer=max(needed, 1.0))
        if self.normalizer < needed:
            raise ValueError(
                f"reward_normalizer: expected at least {needed:g} (longest episode {longest} frames - 1, "
                f"plus |C_neg| {-self.C_neg:g}), found {self.normalizer:g}: returns would leave [-1, 0] and "
                "their bins; raise it, or set 'auto'"
            )
        return self


@dataclass
class Advantage:
    """How frames are labelled.

    A task without any ranked frame, such as one that never succeeded in a round, has no positive frame; the
    others keep theirs. Where no task has one the labels do not pass the gate of a round.
    """

    positive_fraction: ProperShare = 0.3  # share of the ranked frames that is positive
    scope: Annotated[str, one_of(*get_args(Scope))] = "per_task"  # one threshold per_task, or global
    # Frames that the threshold is found among; with successes, frames of failures are never positive.
    ranked: Annotated[str, one_of("rollouts", "all", "successes")] = (
        "rollouts"  # where the threshold is found: rollouts, all, or successes among rollouts
    )
    smoothing: ProperShare | None = None  # decay, a frame, of a mean over the next frames; null: no mean
