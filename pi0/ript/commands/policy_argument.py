"""The checkpoint that a command takes: its arguments, and the policy that they name."""

import argparse
import re
from pathlib import Path

from pi0 import PI0Policy
from pi0.embodiment import EmbodimentError
from pi0.pretrained import HUB_NAME
from pi0.registry import load_plugins
from pi0.ript.starting_policy import require_device, require_robot
from pi0.trainable import inference_dtypes


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


def load_policy(options: argparse.Namespace, *, only_acts: bool = False) -> PI0Policy:
    """Return the policy in evaluation mode; what is wrong with an argument is a ValueError.

    A policy that `only_acts` has its large weights in the dtype of its computation.
    """
    device = require_device(options.device)
    load_plugins(options.plugins)
    path = Path(options.checkpoint).expanduser()
    if not path.is_dir() and not re.fullmatch(HUB_NAME, options.checkpoint):
        raise ValueError(f"CHECKPOINT: no directory at {options.checkpoint!r}")
    where = path if path.is_dir() else options.checkpoint
    try:
        require_robot(where, options.embodiment)
    except EmbodimentError as error:
        raise ValueError(f"--{error}") from error
    return PI0Policy.from_pretrained(
        where,
        embodiment=options.embodiment,
        dtypes=(lambda model: inference_dtypes(model, model.dtype)) if only_acts else None,
        device=device,
    )
