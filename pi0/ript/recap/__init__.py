"""RECAP: a value function labels data as better or worse than expected, and the policy learns the labels.

`rounds` has the stages, in the order of the final script. What they make is in `artefacts`, where nothing is
trained, and in `trainings`; `stages` makes each once and says what it was made from.
"""

from collections.abc import Sequence

from pi0.ript.config import Algorithm
from pi0.ript.config.command_line import check_command_line
from pi0.ript.recap.config import RecapConfig
from pi0.ript.recap.validation import check_recap

RECAP = Algorithm(RecapConfig, check_recap, "configs/demo.yaml")
"""What `parse_config` needs to know of it."""

__all__ = ["RECAP", "RecapConfig", "check_recap_command"]


def check_recap_command(argv: Sequence[str]) -> None:
    """End the process at --help and at what is wrong at first sight, as the final script would."""
    check_command_line(argv, "pi0-recap", algorithms={"recap": RECAP})
