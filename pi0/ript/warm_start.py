"""The policy that reinforcement learning starts from: a toy pi0 fine-tuned on demonstrations.

Both are cached under a hash of everything that they are made from, so a second run starts at once and a
changed setting never meets an old result.
"""

import hashlib
import os
import shutil
from collections.abc import Collection, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import pi0
from pi0 import FeatureConfig, PI0Policy, PromptTokenizer, compute_statistics, toy_config
from pi0.features import ACTION, STATE
from pi0.normalize import Statistics
from pi0.ript.data.cache import ImageCache
from pi0.ript.data.frame_set import FrameSet
from pi0.ript.data.reader import open_set
from pi0.ript.data.settings import DatasetSettings
from pi0.ript.data.windows import MixtureWindows
from pi0.ript.demonstrations import collect_demonstrations
from pi0.ript.environments import WarmStart
from pi0.ript.files import hash_values
from pi0.ript.progress import print_above, progress_bar

_CACHE_GIB = 1.0  # of decoded demonstrations


def warm_start(spec: WarmStart, cache: Path, **changes: Any) -> PI0Policy:
    """Return the policy of a warm start: made with a progress bar, or found in the cache.

    `changes` replace single fields of its configuration, as in `pi0.pretrained.load`.
    """
    data = cache / f"demonstrations-{hash_values([asdict(spec.demonstrations()), spec.episodes])}"
    if not data.exists():
        collect_demonstrations(spec.demonstrations(), data, spec.episodes, num_workers=spec.num_workers)
    frames = open_set(DatasetSettings(root=str(data)))
    settings = {k: v for k, v in asdict(spec).items() if k != "num_workers"}
    made_from = [settings, frames.collection["content_hash"], _code_hash()]
    directory = cache / f"policy-{hash_values(made_from)}"
    if not directory.exists():
        frames.keep_images(ImageCache(_CACHE_GIB))
        policy = train(toy_policy(frames, spec.chunk_size, spec.seed), frames, spec)
        partial = directory.with_suffix(f".{os.getpid()}.partial")
        policy.save_pretrained(partial)
        if directory.exists():  # another run was faster
            shutil.rmtree(partial)
        else:
            partial.rename(directory)
    print_above(f"warm start: {directory}")
    return PI0Policy.from_pretrained(directory, changes=changes)


def toy_policy(frames: FrameSet, chunk_size: int, seed: int, **changes: Any) -> PI0Policy:
    """Return an untrained toy policy for a data set; `changes` are fields of its configuration."""
    return sized_toy_policy(
        frames.instructions,
        tuple(frames.images),
        next(iter(frames.images.values())).shape[1],
        {STATE: compute_statistics(frames.states), ACTION: compute_statistics(frames.actions)},
        seed,
        **{"chunk_size": chunk_size, "n_action_steps": chunk_size, "indicator": "embedding", **changes},
    )


def sized_toy_policy(
    instructions: Collection[str],
    image_keys: tuple[str, ...],
    image_size: int,
    statistics: Statistics,
    seed: int,
    **changes: Any,
) -> PI0Policy:
    """Return an untrained toy policy for data of these sizes.

    Args:
        instructions: All that it will be given.
        image_keys: Batch keys of the cameras.
        image_size: Pixels of the square that it sees; a multiple of 4.
        statistics: Statistics of states and actions, whose widths are the policy's.
        seed: The seed of the weights.
        changes: Other values of its configuration.
    """
    tokenizer = PromptTokenizer.from_texts(set(instructions))
    state_dim, action_dim = (len(statistics[feature]["mean"]) for feature in (STATE, ACTION))
    config = toy_config(
        tokenizer.vocab_size, **{"max_state_dim": state_dim, "max_action_dim": action_dim, **changes}
    )
    vision = replace(config.vision, image_size=image_size, patch_size=image_size // 4)
    floored = with_floors(statistics)
    features = FeatureConfig(image_keys=image_keys, state_dim=state_dim, action_dim=action_dim)
    return PI0Policy(replace(config, vision=vision), features, tokenizer, floored, seed=seed)


def train(policy: PI0Policy, frames: FrameSet, spec: WarmStart) -> PI0Policy:
    """Minimise the flow-matching loss on windows at every step of the demonstrations; return the policy."""
    windows = MixtureWindows([frames], policy.features, policy.config.chunk_size)
    sampler = np.random.default_rng(spec.seed)
    generator = torch.Generator(policy.device).manual_seed(spec.seed)
    optimizer = torch.optim.AdamW(
        policy.parameters(), lr=spec.learning_rate, betas=(0.9, 0.95), weight_decay=1e-4
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        # Up over 50 steps, then level, down over the last 70%.
        lambda step: min(1.0, (step + 1) / 50, (spec.steps - step) / (0.7 * spec.steps)),
    )
    policy.train()
    with progress_bar(range(spec.steps), unit="step", desc="supervised fine-tuning") as bar:
        for _step in bar:
            batch = windows.batch(sampler.integers(frames.num_frames, size=spec.batch_size))
            loss = policy.loss(batch, num_draws=spec.num_draws, generator=generator)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            bar.set_postfix(loss=f"{loss.item():.3f}")
    return policy.eval()


def with_floors(statistics: Statistics) -> Statistics:
    """Return statistics of states and actions as a toy uses them."""
    return {STATE: _with_floor(statistics[STATE], 0.002), ACTION: _with_floor(statistics[ACTION], 0.05)}


def _with_floor(statistics: Mapping[str, Any], floor: float) -> dict[str, Any]:
    """Return the statistics with a least std: a dimension that hardly moves must not be blown up."""
    return {**statistics, "std": torch.as_tensor(statistics["std"]).clamp(min=floor)}


def _code_hash() -> str:
    """Return the hash of the source of policy and training: other code may give other weights."""
    files = [*sorted(Path(pi0.__file__).parent.glob("*.py")), Path(__file__)]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
