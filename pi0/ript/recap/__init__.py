"""RECAP: a value function labels data as better or worse than expected, and the policy learns the labels.

`rounds` has the stages, in the order of the final script. What they make is in `artefacts`, where nothing is
trained, and in `trainings`; `stages` makes each once and says what it was made from.
"""

from pi0.ript.config import Algorithm
from pi0.ript.recap.config import RecapConfig
from pi0.ript.recap.validation import validate_recap

RECAP = Algorithm(RecapConfig, validate_recap, "configs/demo.yaml")
"""What `parse_config` needs to know of it."""

__all__ = ["RECAP", "RecapConfig"]
