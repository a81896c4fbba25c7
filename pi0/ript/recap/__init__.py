"""RECAP: a value function labels data as better or worse than expected, and the policy learns the labels.

`loop` has the stages, in order: demonstrations, SFT and value function (`value_training`), then in every
round rollouts (`recording`), value, `advantages` of all frames, `gates`, and the policy (`policy_training`).
"""

from pi0.ript.config import Algorithm
from pi0.ript.recap.config import RecapConfig
from pi0.ript.recap.loop import Recap
from pi0.ript.recap.validation import validate_recap

RECAP = Algorithm(RecapConfig, validate_recap, "configs/demo.yaml")
"""What `parse_config` needs to know of it."""

__all__ = ["RECAP", "Recap", "RecapConfig"]
