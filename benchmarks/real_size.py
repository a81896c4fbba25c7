"""The real pi0 at its real size, on a CPU and with random weights: what it takes, each figure with its bound.

python benchmarks/real_size.py                  every check, one after the other (make test-real)
python benchmarks/real_size.py --only load      some of them
python benchmarks/real_size.py --keep DIR       the stand-in checkpoint is made there once and stays

Every check runs in a process of its own, because a peak of memory is a process's. Nothing here is timed.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from pi0 import FeatureConfig, Pi0Config, PI0Policy, PromptTokenizer, compute_statistics, lerobot_format
from pi0.lerobot_names import lerobot_sources, unused_shapes
from pi0.needs import sized_model, training_memory
from pi0.policy import Batch
from pi0.pretrained import OWN_CONFIG
from pi0.ript.starting_policy import PolicySettings, make_policy
from pi0.ript.training.optimization import make_optimizer
from pi0.ript.training.settings import Optimizer
from pi0.tensor_files import WEIGHTS, Deferred, write_tensor_file
from pi0.trainable import inference_dtypes

TASKS = ["put the bowl on the plate", "pick up the black bowl"]
CAMERAS = ("observation.images.image", "observation.images.image2")
LOADING_BOUND = 1.15
TRAINING_BOUND_GIB = 12.0
BUDGET_BOUND = 0.15

REAL = Pi0Config(dtype="bfloat16")
SHALLOW = replace(
    REAL,
    vlm=replace(REAL.vlm, depth=2),
    expert=replace(REAL.expert, depth=2),
    vision=replace(REAL.vision, depth=2),
    vocab_size=512,
)
"""Two layers of each stack at the real widths: what the tests of every day can afford."""


# A stand-in of the same form --------------------------------------------------------------------------------


def write_checkpoint(directory: Path, config: Pi0Config, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write a lerobot checkpoint with random weights, never in memory as a whole.

    As lerobot's bfloat16 mode has it, vision, projector, norms and heads are in float32, the rest is in
    `dtype`.
    """
    directory.mkdir(parents=True)
    shapes = unused_shapes(config)
    for source in lerobot_sources(config).values():
        shapes |= dict(zip(source.keys, source.shapes, strict=True))
    tensors = {
        f"model.{key}": Deferred(shape, kind, partial(_random, key, shape, kind))
        for key, shape in shapes.items()
        for kind in [dtype if _is_rounded(key) else torch.float32]
    }
    write_tensor_file(directory / WEIGHTS, tensors)
    PromptTokenizer.from_texts(TASKS).save(directory / "tokenizer")
    generator = torch.Generator().manual_seed(0)
    statistics = {
        "observation.state": compute_statistics(torch.randn(50, 8, generator=generator)),
        "action": compute_statistics(torch.randn(50, 7, generator=generator)),
    }
    features = FeatureConfig(image_keys=CAMERAS, state_dim=8, action_dim=7)
    lerobot_format.write(directory, config, features, statistics, str(directory / "tokenizer"))
    if config != REAL:  # lerobot's config.json cannot say its sizes
        own = {"config": config.to_dict(), "features": features.to_dict(), "tokenizer": "tokenizer"}
        (directory / OWN_CONFIG).write_text(json.dumps(own))


def _is_rounded(key: str) -> bool:
    stacks = ("language_model", "gemma_expert", "lm_head")
    return any(part in key for part in stacks) and "norm" not in key


def _random(key: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    if "norm" in key:
        is_layer_norm_weight = "vision" in key and key.endswith("weight")
        return torch.full(shape, float(is_layer_norm_weight), dtype=dtype)
    generator = torch.Generator().manual_seed(sum(key.encode()))
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


# Memory -----------------------------------------------------------------------------------------------------


class Peak:
    """The most anonymous memory of this process, looked at all the time; pages of files do not count."""

    def __init__(self) -> None:
        """Begin now."""
        self.before = self._highest = _anonymous()
        threading.Thread(target=self._watch, daemon=True).start()

    def gib(self, *, whole: bool = False) -> float:
        """Return it above what the process held at the beginning; `whole`: all of it."""
        self._highest = max(self._highest, _anonymous())
        return (self._highest - (0 if whole else self.before)) / 2**20

    def _watch(self) -> None:
        while True:
            time.sleep(0.003)
            self._highest = max(self._highest, _anonymous())


def _anonymous() -> int:
    """Return the anonymous memory of this process, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon:")).split()[1])


def size_gib(policy: PI0Policy) -> float:
    """Return what the parameters of a policy take."""
    return sum(p.numel() * p.element_size() for p in policy.parameters()) / 2**30


def load_figures(directory: Path) -> dict[str, float]:
    """Load the checkpoint as an evaluation in bfloat16 does; return what that took."""
    PromptTokenizer.from_pretrained(directory / "tokenizer")  # what it imports is not the policy's
    peak = Peak()
    policy = PI0Policy.from_pretrained(
        directory,
        changes={"dtype": "bfloat16"},
        dtypes=lambda model: inference_dtypes(model, model.dtype),
    )
    return {"policy, GiB": size_gib(policy), "peak above it": peak.gib() / size_gib(policy)}


def train_figures(directory: Path, freeze: str, config: str | None = None) -> dict[str, float]:
    """Take two optimizer steps with a batch of 1 and save the result; return the most memory held."""
    peak = Peak()
    settings = PolicySettings(config=config, freeze=freeze, dtype="bfloat16")
    policy = make_policy(str(directory), settings, _no_toy, 0)
    sized = sized_model(policy.config, directory)
    sized.freeze(freeze)
    told = training_memory(sized, 1, len(CAMERAS)).peak / 2**30 + peak.before / 2**20
    optimizer = make_optimizer(policy, Optimizer())
    policy.train()
    for _ in range(2):
        policy.loss(example(chunk_size=policy.config.chunk_size)).backward()
        optimizer.step()
        optimizer.zero_grad()
    with tempfile.TemporaryDirectory(dir=directory.parent) as saved:
        policy.save_pretrained(saved)
    most = peak.gib(whole=True)
    figures = {"policy, GiB": size_gib(policy), "peak of the process, GiB": most}
    return {**figures, "the budget's error": abs(told / most - 1)}


def counted_figures(directory: Path) -> dict[str, float]:
    """Count what sampling takes, beside lerobot's; the checkpoint is not needed."""
    from counted import lerobots_calls, lerobots_teraflops, our_calls, our_teraflops
    from sizes import SIZES

    ours, lerobots = our_teraflops(SIZES["real"]), lerobots_teraflops(SIZES["real"])
    calls, lerobots_step = our_calls(SIZES["mid"]), lerobots_calls(SIZES["mid"])
    return {
        "a sample, TFLOP": ours,
        "lerobot's, TFLOP": lerobots,
        "their ratio": ours / lerobots,
        "a denoising step at the mid size, operator calls": calls,
        "lerobot's, operator calls": lerobots_step,
        "ratio of the calls": calls / lerobots_step,
    }


def fsdp_figures(directory: Path) -> dict[str, float]:
    """Take a step in two processes that hold half of the policy each; return what they take."""
    from real_size_fsdp import real_figures  # it imports this module

    return real_figures(directory)


def _no_toy(**changes: object) -> PI0Policy:
    raise AssertionError(changes)


# The checks -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Check:
    """A check: what it measures, and the most that each figure may be; a figure without a bound is told."""

    measure: Callable[[Path], dict[str, float]]
    bounds: dict[str, float]


CHECKS = {
    "load": Check(load_figures, {"peak above it": LOADING_BOUND}),
    "train-expert": Check(
        partial(train_figures, freeze="expert_only"),
        {"peak of the process, GiB": TRAINING_BOUND_GIB, "the budget's error": BUDGET_BOUND},
    ),
    "counted": Check(counted_figures, {"their ratio": 0.66, "ratio of the calls": 0.5}),
    "train-lora": Check(
        partial(train_figures, freeze="lora", config="pi0_lora"),
        {"peak of the process, GiB": TRAINING_BOUND_GIB, "the budget's error": BUDGET_BOUND},
    ),
    "fsdp": Check(fsdp_figures, {"all together, GiB": 24.0}),
}


def main() -> int:
    """Run the checks; return 1 if a figure is above its bound."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=CHECKS, default=list(CHECKS))
    parser.add_argument("--keep", type=Path, help="directory of the stand-in checkpoint")
    parser.add_argument("--measure", choices=CHECKS, help=argparse.SUPPRESS)  # in a process of its own
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(CHECKS[options.measure].measure(options.keep)))
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        directory = options.keep or Path(temporary) / "checkpoint"
        if not directory.exists():
            write_checkpoint(directory, REAL)
        is_right = [run(name, directory) for name in options.only]
    return 0 if all(is_right) else 1


def run(name: str, directory: Path) -> bool:
    """Run a check in another process and print its figures; return whether all are within their bounds."""
    command = [sys.executable, __file__, "--measure", name, "--keep", str(directory)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        print(f"{name}: WRONG: ended with {done.returncode}")
        return False
    is_right = True
    for figure, value in json.loads(done.stdout.splitlines()[-1]).items():
        bound = CHECKS[name].bounds.get(figure)
        is_within = bound is None or value <= bound
        is_right &= is_within
        limit = "" if bound is None else f", at most {bound:g}: {'right' if is_within else 'WRONG'}"
        print(f"{name}: {figure} {value:.3g}{limit}", flush=True)
    return is_right


if __name__ == "__main__":
    sys.exit(main())
