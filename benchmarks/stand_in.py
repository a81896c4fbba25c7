"""A stand-in for a published pi0 checkpoint: its files, keys and shapes, with random weights."""

import json
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from pi0 import FeatureConfig, Pi0Config, PromptTokenizer, compute_statistics, lerobot_format
from pi0.checkpoint_names import WEIGHTS
from pi0.lerobot_names import EMBEDDING, LM_HEAD, lerobot_sources, unused_shapes
from pi0.normalize import Statistics
from pi0.policy import Batch
from pi0.pretrained import OWN_CONFIG
from pi0.tensor_files import Deferred, write_tensor_file

TASKS = ["put the bowl on the plate", "pick up the black bowl"]
CAMERAS = ("observation.images.image", "observation.images.image2")
BASE_CAMERAS = tuple(f"observation.images.{view}_rgb" for view in ("base_0", "left_wrist_0", "right_wrist_0"))

REAL = Pi0Config(dtype="bfloat16")
FEATURES = FeatureConfig(CAMERAS, state_dim=8, action_dim=7)


def of_depth(depth: int) -> Pi0Config:
    """Return the real widths with so many layers in each stack, and few words."""
    stacks = {name: replace(getattr(REAL, name), depth=depth) for name in ("vlm", "expert", "vision")}
    return replace(REAL, **stacks, vocab_size=512)


SHALLOW = of_depth(2)
"""Two layers of each stack at the real widths: what the tests of every day can afford."""


def write_checkpoint(directory: Path, config: Pi0Config, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write a lerobot checkpoint with random weights, never in memory as a whole.

    As lerobot's bfloat16 mode has it, vision, projector, norms and heads are in float32, the rest is in
    `dtype`.
    """
    directory.mkdir(parents=True)
    _write_weights(directory, config, dtype)
    _describe(directory, config, FEATURES, _statistics(), TASKS)


def write_published(directory: Path, config: Pi0Config, texts: Iterable[str], weights: Path | None) -> None:
    """Write what `write_checkpoint` does, of which the tokenizer reads other texts.

    `weights`: a file that it shares, None: random ones are written.
    """
    directory.mkdir(parents=True)
    if weights is None:
        _write_weights(directory, config, torch.bfloat16)
    else:
        (directory / WEIGHTS).hardlink_to(weights)
    _describe(directory, config, FEATURES, _statistics(), texts)


def write_base(directory: Path, config: Pi0Config, texts: Iterable[str], weights: Path | None) -> None:
    """Write a base model as lerobot/pi0_base is: three cameras, 32 wide, without statistics.

    `texts`: what its tokenizer can read; `weights`: a file that it shares, None: random ones are written.
    """
    directory.mkdir(parents=True)
    if weights is None:
        _write_weights(directory, config, torch.bfloat16)
    else:
        (directory / WEIGHTS).hardlink_to(weights)
    features = FeatureConfig(BASE_CAMERAS, state_dim=config.max_state_dim, action_dim=config.max_action_dim)
    _describe(directory, config, features, {}, texts)
    for name in (lerobot_format.PREPROCESSOR, lerobot_format.POSTPROCESSOR):
        processor = json.loads((directory / name).read_text())
        for step in processor["steps"]:
            if "state_file" in step:
                (directory / step.pop("state_file")).unlink()
        (directory / name).write_text(json.dumps(processor))


def _statistics() -> Statistics:
    generator = torch.Generator().manual_seed(0)
    return {
        "observation.state": compute_statistics(torch.randn(50, 8, generator=generator)),
        "action": compute_statistics(torch.randn(50, 7, generator=generator)),
    }


def _write_weights(directory: Path, config: Pi0Config, dtype: torch.dtype) -> None:
    shapes = unused_shapes(config)
    for source in lerobot_sources(config).values():
        shapes |= dict(zip(source.keys, source.shapes, strict=True))
    tensors = {
        f"model.{key}": Deferred(shape, kind, partial(_random, key, shape, kind))
        for key, shape in shapes.items()
        for kind in [dtype if is_rounded(key) else torch.float32]
    }
    write_tensor_file(directory / WEIGHTS, tensors)


def _describe(
    directory: Path, config: Pi0Config, features: FeatureConfig, statistics: Statistics, texts: Iterable[str]
) -> None:
    PromptTokenizer.from_texts(texts).save(directory / "tokenizer")
    lerobot_format.write(directory, config, features, statistics, str(directory / "tokenizer"))
    if config != REAL:  # lerobot's config.json cannot say its sizes
        own = {"config": config.to_dict(), "features": features.to_dict(), "tokenizer": "tokenizer"}
        (directory / OWN_CONFIG).write_text(json.dumps(own))


def is_rounded(key: str) -> bool:
    """Return whether lerobot's bfloat16 mode stores a tensor in bfloat16."""
    stacks = ("language_model", "gemma_expert", "lm_head")
    return any(part in key for part in stacks) and "norm" not in key


def _random(key: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    if "norm" in key:
        is_layer_norm_weight = "vision" in key and key.endswith("weight")
        return torch.full(shape, float(is_layer_norm_weight), dtype=dtype)
    # lerobot copies the language head over the embedding.
    generator = torch.Generator().manual_seed(sum(key.replace(LM_HEAD, EMBEDDING).encode()))
    # Drawing billions of numbers takes minutes: some are repeated, with a period that fits no row.
    size, period = torch.Size(shape).numel(), 2**20 + 7
    numbers = (torch.randn(min(size, period), generator=generator) * shape[-1] ** -0.5).to(dtype)
    return numbers.repeat(-(-size // period))[:size].view(shape)


def example(batch_size: int = 1, chunk_size: int = 50) -> Batch:
    """Return a raw training batch of pixel noise."""
    generator = torch.Generator().manual_seed(1)
    pixels = (batch_size, 224, 224, 3)
    return {
        **{key: torch.randint(0, 256, pixels, dtype=torch.uint8, generator=generator) for key in CAMERAS},
        "observation.state": torch.randn(batch_size, 8, generator=generator),
        "action": torch.randn(batch_size, chunk_size, 7, generator=generator),
        "task": TASKS[:1] * batch_size,
    }


def weight_bytes(directory: Path) -> int:
    """Return how many bytes the weights in a directory take, without what its processor has."""
    files = [file for file in directory.glob("*.safetensors") if "processor" not in file.name]
    return sum(file.stat().st_size for file in files)
