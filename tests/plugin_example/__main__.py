"""Write a random policy of plain pi0 to start from: python -m plugin_example DIRECTORY."""

import sys

from pi0 import FeatureConfig, PI0Policy, PromptTokenizer
from pi0.ript.envs import make_suite
from plugin_example.model import PLAIN


def write_policy(directory, config=PLAIN):
    (task,) = make_suite("line").tasks()
    features = FeatureConfig(
        image_keys=tuple(f"observation.images.{camera}" for camera in task.cameras),
        state_dim=task.state_dim,
        action_dim=task.action_dim,
        state_normalization="identity",
        action_normalization="identity",
    )
    policy = PI0Policy(config, features, PromptTokenizer.from_texts([task.instruction]), None)
    policy.save_pretrained(directory)
    return policy


if __name__ == "__main__":
    write_policy(sys.argv[1])
