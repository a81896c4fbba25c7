"""A pi0 for LIBERO in small, as published checkpoints are laid out, and a LIBERO without a simulator."""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from pi0 import FeatureConfig, PI0Policy, PromptTokenizer, compute_statistics, toy_config
from pi0.pretrained import OWN_CONFIG
from pi0.registry import available, register_config
from pi0.ript.environments import FOUR_SUITES
from pi0.ript.envs import make_suite
from pi0.ript.envs.base import Simulation
from pi0.ript.envs.initial_state import InitialState

CAMERAS = tuple(f"observation.images.{name}" for name in ("image", "image2"))
NOBODYS = "observation.images.empty_camera_0"
"""The third camera of lerobot/pi0_libero_finetuned, which was always missing."""
PREFIX = "paligemma_with_expert."
STATISTICS = {
    "observation.state": compute_statistics(np.random.default_rng(0).normal(size=(40, 8))),
    "action": compute_statistics(np.random.default_rng(1).normal(size=(40, 7))),
}


def instructions() -> list[str]:
    return [task.instruction for suite in FOUR_SUITES for task in make_suite("libero", suite=suite).tasks()]


def small_pi0(features: dict | None = None, statistics: dict | None = None, **changes) -> PI0Policy:
    """A policy in small with the real chunk and the real widths of states and actions."""
    tokenizer = PromptTokenizer.from_texts(instructions())
    sizes = {"chunk_size": 50, "n_action_steps": 50, "max_state_dim": 32, "max_action_dim": 32}
    config = toy_config(tokenizer.vocab_size, **{**sizes, "tokenizer_max_length": 48, **changes})
    described = FeatureConfig(
        **{
            "image_keys": (*CAMERAS, NOBODYS),
            "absent_cameras": (NOBODYS,),
            "state_dim": 8,
            "action_dim": 7,
        }
        | (features or {})
    )
    widths = {"observation.state": described.state_dim, "action": described.action_dim}
    statistics = {
        name: {k: v[:1].expand(widths[name]) for k, v in of.items()} for name, of in STATISTICS.items()
    }
    return PI0Policy(config, described, tokenizer, statistics).eval()


def lerobot_directory(directory: Path, policy: PI0Policy) -> str:
    """Write a checkpoint as lerobot's `save_pretrained` does, in bfloat16, and return the name of its sizes.

    Its config.json cannot say these sizes, which take the place of the real ones by that name.
    """
    policy.save_pretrained(directory)
    (directory / OWN_CONFIG).unlink()
    weights = load_file(directory / "model.safetensors")
    save_file({name: x.to(torch.bfloat16) for name, x in weights.items()}, directory / "model.safetensors")
    file = directory / "policy_preprocessor.json"
    steps = json.loads(file.read_text())
    for step in steps["steps"]:
        if step["registry_name"] == "tokenizer_processor":
            step["config"]["tokenizer_name"] = str(directory / "tokenizer")
    file.write_text(json.dumps(steps))
    return _named(policy)


def openpi_directory(directory: Path, policy: PI0Policy, asset: str = "physical-intelligence/libero") -> str:
    """Write a checkpoint as openpi's converter to PyTorch does, and return the name of its sizes."""
    policy.save_pretrained(directory / "as-lerobot")
    weights = load_file(directory / "as-lerobot/model.safetensors")
    tensors = {key.removeprefix("model."): value for key, value in weights.items()}
    del tensors[f"{PREFIX}paligemma.model.language_model.embed_tokens.weight"]  # tied: the head is kept
    tensors[f"{PREFIX}paligemma.lm_head.weight"] = policy.model.vlm.embed.weight.detach().clone()
    save_file(tensors, directory / "model.safetensors")
    config = {"action_dim": 32, "action_horizon": 50, "paligemma_variant": "gemma_2b",
              "action_expert_variant": "gemma_300m", "precision": "float32"}  # fmt: skip
    (directory / "config.json").write_text(json.dumps(config))
    place = directory / "assets" / asset
    place.mkdir(parents=True)
    padded = {
        name: {k: np.pad(of[k].numpy(), (0, 32 - len(of[k]))).tolist() for k in ("mean", "std")}
        | {"q01": None, "q99": None}
        for name, of in (("state", STATISTICS["observation.state"]), ("actions", STATISTICS["action"]))
    }
    (place / "norm_stats.json").write_text(json.dumps({"norm_stats": padded}))
    return _named(policy)


def _named(policy: PI0Policy) -> str:
    if "pi0_in_small" not in available():
        register_config("pi0_in_small", policy.config)
    return "pi0_in_small"


class NoSimulator(Simulation):
    """A LIBERO task in which nothing moves: odd states succeed at step 12, even ones never."""

    def __init__(self, task, suite):
        super().__init__(task)
        self.task, self.steps, self.number = task, 0, 0

    @property
    def raw(self):
        return None

    def initial_state(self, split, index):
        return InitialState(self.task.id, np.array([float(index)]), split, index, "benchmark")

    def snapshot(self):
        return np.array([float(self.number)])

    def restore(self, state):
        self.steps, self.number = 0, state.index

    def step(self, action):
        assert action.shape == (7,)
        self.steps += 1
        return self.number % 2 == 1 and self.steps == 12

    def proprioception(self):
        return np.zeros(8, np.float32)

    def render(self):
        size = self.task.image_size
        return {camera: np.zeros((size, size, 3), np.uint8) for camera in self.task.cameras}

    def close(self):
        pass
