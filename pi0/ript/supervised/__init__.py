"""Supervised training on LeRobotDatasets: a pi0 policy (SFT, by advantage), or a value function."""

from pi0.ript.supervised.command_line import parse_settings, read_settings
from pi0.ript.supervised.settings import SupervisedSettings
from pi0.ript.supervised.trainer import Training

__all__ = ["SupervisedSettings", "Training", "parse_settings", "read_settings"]
