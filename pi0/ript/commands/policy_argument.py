"""The checkpoint that a command takes: its arguments, and what is wrong with them at first sight."""

import argparse
import re
from pathlib import Path

from pi0.checkpoint_names import HUB_NAME
from pi0.ript.policy_settings import require_device_name


def add_policy_arguments(parser: argparse.ArgumentParser) -> None:
    """Add CHECKPOINT, --embodiment, --device and --plugins."""
    add = parser.add_argument
    checkpoint = "directory with config.json and weights, such as the `policy` of a run, or a hub repository"
    add("checkpoint", metavar="CHECKPOINT", help=checkpoint)
    add_embodiment(parser)
    add("--device", default="auto", help="cpu, cuda, cuda:1, ... (default auto)")
    plugins = "import a package that registers the checkpoint's configuration"
    add("--plugins", metavar="PACKAGE", action="append", default=[], help=plugins)


def add_embodiment(parser: argparse.ArgumentParser) -> None:
    """Add --embodiment."""
    robot = "embodiment_tag of the robot that the policy acts as, if it knows several"
    parser.add_argument("--embodiment", metavar="TAG", help=robot)


def require_checkpoint(options: argparse.Namespace) -> str | Path:
    """Return where the checkpoint is, a directory or a hub repository; loads no torch.

    Raises:
        ValueError: Nothing can be there, or the device has no such name.
    """
    require_device_name(options.device)
    path = Path(options.checkpoint).expanduser()
    if not path.is_dir() and not re.fullmatch(HUB_NAME, options.checkpoint):
        raise ValueError(f"CHECKPOINT: no directory at {options.checkpoint!r}")
    return path if path.is_dir() else options.checkpoint
