"""The policy of the checkpoint that a command takes."""

import argparse

from pi0 import PI0Policy
from pi0.embodiment import EmbodimentError
from pi0.registry import load_plugins
from pi0.ript.commands.policy_argument import require_checkpoint
from pi0.ript.starting_policy import require_device, require_robot
from pi0.trainable import inference_dtypes


def load_policy(options: argparse.Namespace, *, only_acts: bool = False) -> PI0Policy:
    """Return the policy in evaluation mode; what is wrong with an argument is a ValueError.

    A policy that `only_acts` has its large weights in the dtype of its computation.
    """
    where = require_checkpoint(options)
    device = require_device(options.device)
    load_plugins(options.plugins)
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
