"""Checkpoints: a run that can be stopped anywhere, and continued as if nothing had happened."""

from pi0.ript.checkpoint.files import SnapshotError
from pi0.ript.checkpoint.launch import Launch, this_launch
from pi0.ript.checkpoint.resumable import Checkpoints, open_run_directory
from pi0.ript.checkpoint.resuming import ChangedSettingsError, find_checkpoint
from pi0.ript.checkpoint.state import Progress, load_checkpoint, save_checkpoint

__all__ = [
    "ChangedSettingsError",
    "Checkpoints",
    "Launch",
    "Progress",
    "SnapshotError",
    "find_checkpoint",
    "load_checkpoint",
    "open_run_directory",
    "save_checkpoint",
    "this_launch",
]
