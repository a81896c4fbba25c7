"""What kept prefixes bring: an expert-only training step that finds them, against one that computes them.

    python benchmarks/prefixes.py
    python benchmarks/prefixes.py --size big --batch 4

Random weights; two cameras at 256 pixels, as LIBERO's data sets have them. A step is all that a training does
with a raw batch: preprocessing, loss, gradients of the action expert, AdamW. The contenders take turns in one
process with one thread, and CPU time counts. Losses are compared first.
"""

import argparse
from functools import partial

import numpy as np
import torch
from measure import Run, clock, interleaved
from ours import pi0_config
from sizes import SIZES
from tqdm import tqdm

from pi0 import FeatureConfig, PI0Policy, PromptTokenizer
from pi0.prefix_cache import PLACES, PrefixCache

TARGET = 5.0
SAMPLES, PIXELS = 32, 256
CAMERAS = tuple(f"observation.images.{name}" for name in ("base_0_rgb", "left_wrist_0_rgb"))
TEXTS = ["put both moka pots on the stove", "pick up the milk and place it in the basket"]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="mid")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    policy, samples = make_policy(options.size), make_samples(options.size)
    caches: dict[str, PrefixCache | None] = {"computed": None}
    caches |= {place: PrefixCache(2**34, place) for place in PLACES if place != "device"}
    optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=1e-5)
    for cache in caches.values():
        policy.prefixes = cache
        for rows in np.arange(SAMPLES).reshape(-1, options.batch):
            policy.loss(taken(samples, rows))
    compare(policy, caches, taken(samples, np.arange(options.batch)))
    seconds: dict[str, list[float]] = {name: [] for name in caches}
    steps: dict[str, Run] = {
        name: partial(step, policy, cache, optimizer, samples, options.batch, np.random.default_rng(0))
        for name, cache in caches.items()
    }
    for name, value in tqdm(interleaved(steps, options.rounds, clock("cpu", 1)), unit="step", desc="steps"):
        if value is not None:
            seconds[name].append(value)
    size = next(cache.size for cache in caches.values() if cache is not None) / SAMPLES
    print(
        f"\n{options.size} size, batch {options.batch}: CPU seconds of an expert-only step (min, median, max)"
    )
    for name, values in seconds.items():
        print(f"{name:10}{min(values):10.3f}{np.median(values):10.3f}{max(values):10.3f}")
    gain = min(seconds["computed"]) / min(seconds["memory"])
    verdict = "reached" if gain >= TARGET else "MISSED"
    print(
        f"a sample takes {size / 1e6:.3g} MB; a step that finds them is {gain:.1f} times as fast; "
        f"target {TARGET:g}: {verdict}"
    )


def make_policy(size: str) -> PI0Policy:
    """Return a policy with random weights whose action expert is trained."""
    features = FeatureConfig(
        image_keys=CAMERAS,
        state_dim=8,
        action_dim=7,
        state_normalization="identity",
        action_normalization="identity",
    )
    policy = PI0Policy(pi0_config(SIZES[size]), features, PromptTokenizer.from_texts(TEXTS), None)
    policy.model.freeze("expert_only")
    return policy.train()


def make_samples(size: str) -> dict[str, torch.Tensor | list[str]]:
    """Return random samples."""
    g = torch.Generator().manual_seed(0)
    shape = (SAMPLES, PIXELS, PIXELS, 3)
    return {
        **{camera: torch.randint(0, 256, shape, dtype=torch.uint8, generator=g) for camera in CAMERAS},
        "observation.state": torch.randn(SAMPLES, 8, generator=g),
        "action": torch.randn(SAMPLES, SIZES[size].chunk_size, 7, generator=g),
        "task": [TEXTS[i % 2] for i in range(SAMPLES)],
    }


def taken(samples: dict, rows: np.ndarray) -> dict:
    """Return some of the samples as a batch."""
    return {k: [x[i] for i in rows] if isinstance(x, list) else x[rows] for k, x in samples.items()}


def step(
    policy: PI0Policy,
    cache: PrefixCache | None,
    optimizer: torch.optim.Optimizer,
    samples: dict,
    size: int,
    rng: np.random.Generator,
) -> None:
    """Make one optimizer step on samples drawn at random."""
    policy.prefixes = cache
    rows = rng.choice(SAMPLES, size, replace=False)
    policy.loss(taken(samples, rows)).backward()
    optimizer.step()
    optimizer.zero_grad()


def compare(policy: PI0Policy, caches: dict[str, PrefixCache | None], batch: dict) -> None:
    """Raise AssertionError unless all give one loss, up to rounding."""
    losses = []
    for cache in caches.values():
        policy.prefixes = cache
        losses.append(policy.loss(batch, generator=torch.Generator().manual_seed(1)).detach())
    for loss in losses:
        torch.testing.assert_close(loss, losses[0], rtol=1e-4, atol=1e-5)


if __name__ == "__main__":
    main()
