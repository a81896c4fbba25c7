"""The value function that training starts from.

It reads a policy's prefix, or is a model of its own that begins with the policy's vision and language.
"""

import torch

from pi0 import PI0Policy
from pi0.value import ValueFunction
from pi0.value_config import expert_value_config, separate_value_config

_COPIED = ("vision.", "vlm.")


def starting_value(policy: PI0Policy, form: str, width: int, num_bins: int, seed: int) -> ValueFunction:
    """Return an untrained value function for the observations of a policy, on the policy's device.

    Args:
        policy: The policy whose prefix it reads, or whose vision and language it begins with.
        form: "expert" reads the policy's prefix, and the policy must not change any more; "separate" is a
            model of the policy's size for itself.
        width: The width of a new expert.
        num_bins: The bins of the distribution that it predicts.
        seed: The seed of the weights that are new.
    """
    if form == "expert":
        config = expert_value_config(policy, width, num_bins=num_bins)
        return ValueFunction(config, policy, seed=seed).to(policy.device)
    value = ValueFunction(separate_value_config(policy, num_bins=num_bins), policy, seed=seed)
    learned = dict(policy.model.named_parameters())
    with torch.no_grad():
        for name, parameter in value.named_parameters():
            if name.startswith(_COPIED):
                parameter.copy_(learned[name])
    return value.to(policy.device)
