"""Small policies that the tests share, and how they open data sets."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pi0 import FeatureConfig, Pi0Config, PI0Policy, PromptTokenizer, compute_statistics, toy_config

# Tiny models gain nothing from threads, and threads that wait for a busy core cost a lot.
torch.set_num_threads(1)

TASKS = ["press the button", "open the drawer slowly"]
CAMERA = "observation.images.front"


def opened(root: Path | str, **settings):
    """A data set of the disk."""
    from pi0.ript.data.reader import open_set
    from pi0.ript.data.settings import DatasetSettings

    return open_set(DatasetSettings(root=str(root), **settings))


def toy_policy(features: dict | None = None, **config) -> PI0Policy:
    """A toy policy whose every parameter is random, so that nothing is zero by accident."""
    tokenizer = PromptTokenizer.from_texts(config.pop("tasks", TASKS))
    action_dim = (features or {}).get("action_dim", 3)
    vocab_size = config.pop("vocab_size", tokenizer.vocab_size)
    generator = torch.Generator().manual_seed(3)
    statistics = {
        "observation.state": compute_statistics(torch.randn(50, 4, generator=generator) * 2 + 1),
        "action": compute_statistics(torch.randn(50, action_dim, generator=generator) * 0.5 - 1),
    }
    policy = PI0Policy(
        toy_config(vocab_size, **{"tokenizer_max_length": 40, **config}),
        FeatureConfig(**{"image_keys": (CAMERA,), "state_dim": 4, "action_dim": 3, **(features or {})}),
        tokenizer,
        statistics,
    )
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "indicator" not in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return policy.eval()


def lerobot_state_dict(model, config, values=None) -> dict[str, torch.Tensor]:
    """The model's parameters, or values of their shapes, under lerobot's names."""
    from pi0.tensor_files import Deferred
    from pi0.weights import lerobot_tensors, merged_parameters

    here = merged_parameters(model)
    if values is not None:
        here = {name: Deferred.of(value) for name, value in values.items()}
    return {name: value.read() for name, value in lerobot_tensors(here, config).items()}


METAWORLD = {"button-press-v3": "Press a button", "plate-slide-v3": "Slide a plate into a cabinet"}


def metaworld_policy(features: dict | None = None, **config) -> PI0Policy:
    """A toy policy that can act in Meta-World, in two tasks with prompts of different lengths."""
    return toy_policy(
        {"state_dim": 4, "action_dim": 4, **(features or {})},
        **{"tasks": list(METAWORLD.values()), "indicator": "embedding", **config},
    )


@pytest.fixture(scope="session")
def metaworld():
    """Three slots in this process; an episode takes two chunks and a half."""
    from pi0.ript.envs import make_env

    with make_env("metaworld", METAWORLD, num_slots=3, max_steps=20) as env:
        yield env


@pytest.fixture(scope="session")
def warm_start_cache(tmp_path_factory):
    """Where runs find the toy policies and demonstrations that earlier ones made."""
    return tmp_path_factory.mktemp("warm_start")


@pytest.fixture
def batch() -> dict:
    """A raw training batch of two samples for `toy_policy`."""
    g = torch.Generator().manual_seed(0)
    return {
        CAMERA: torch.randint(0, 256, (2, 48, 64, 3), dtype=torch.uint8, generator=g),
        "observation.state": torch.randn(2, 4, generator=g),
        "action": torch.randn(2, 8, 3, generator=g),
        "task": list(TASKS),
    }


@pytest.fixture
def noise() -> torch.Tensor:
    """Noise for a batch of two, in the toy's padded width."""
    return torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(1))


def tiny_config(**changes) -> Pi0Config:
    """Our configuration of the peers' tiny size."""
    from ours import pi0_config
    from sizes import SIZES

    return replace(pi0_config(SIZES["tiny"]), **changes)
