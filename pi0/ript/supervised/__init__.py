"""Supervised training on LeRobotDatasets: a pi0 policy (SFT, by advantage), or a value function.

`trainer` has the training itself; what is imported here loads no torch.
"""

from pi0.ript.supervised.command_line import parse_settings, read_settings
from pi0.ript.supervised.settings import SupervisedSettings

__all__ = ["SupervisedSettings", "parse_settings", "read_settings"]
