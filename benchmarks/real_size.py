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
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from memory_peak import Peak, anonymous
from stand_in import CAMERAS, REAL, example, weight_bytes, write_checkpoint
from torch import Tensor

from pi0 import PI0Policy, PromptTokenizer
from pi0.checkpoint_names import WEIGHTS
from pi0.needs import disk_needs, sized_model, training_memory
from pi0.ript.envs.libero_files import assets_folder
from pi0.ript.policy_settings import PolicySettings
from pi0.ript.starting_policy import make_policy
from pi0.ript.training.optimization import make_optimizer
from pi0.ript.training.settings import Optimizer
from pi0.trainable import inference_dtypes

LOADING_BOUND = 1.15
TRAINING_BOUND_GIB = 12.0
BUDGET_BOUND = 0.15
MACHINE_GIB = 24.0
DISK = ("untrained", "policies", "values", "published", "snapshot", "kept")
"""What the budget tells of a run's models."""
PARTS = ("weights", "gradients", "moments", "activations")
"""What it tells of a training's memory."""


# Memory -----------------------------------------------------------------------------------------------------


def size_gib(policy: PI0Policy) -> float:
    """Return what the parameters of a policy take."""
    return num_bytes(policy.parameters()) / 2**30


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
    """Take two optimizer steps with a batch of 1 and save a stage; return what memory and disk went to."""
    peak = Peak()
    settings = PolicySettings(config=config, freeze=freeze, dtype="bfloat16")
    policy = make_policy(str(directory), settings, _no_toy, 0)
    sized = sized_model(policy.config, directory)
    sized.freeze(freeze)
    needs, files = training_memory(sized, 1, len(CAMERAS)), disk_needs(sized)
    optimizer = make_optimizer(policy, Optimizer())
    policy.train()
    used: dict[str, float] = {"weights": num_bytes(policy.parameters())}
    for _ in range(2):
        before = anonymous()
        loss = policy.loss(example(chunk_size=policy.config.chunk_size))
        used["activations"] = 2**10 * (anonymous() - before)
        loss.backward()
        used["gradients"] = num_bytes(p.grad for p in policy.parameters() if p.grad is not None)
        optimizer.step()
        optimizer.zero_grad()
    averages = [x for state in optimizer.state.values() for x in state.values()]
    used["moments"] = num_bytes(x for x in averages if isinstance(x, Tensor))
    with tempfile.TemporaryDirectory(dir=directory.parent) as saved:
        stage, store = Path(saved) / "stage", Path(saved) / "untrained"
        policy.save_pretrained(stage, untrained=store)
        stored = {"trained": weight_bytes(stage), "untrained": weight_bytes(store)}
    most, told = peak.gib(whole=True), needs.peak / 2**30 + peak.before / 2**20
    return {
        "policy, GiB": size_gib(policy),
        "peak of the process, GiB": most,
        "the budget's error": abs(told / most - 1),
        "a stage on the disk, GB": stored["trained"] / 1e9,
        **{f"the budget's error, {part}": abs(getattr(needs, part) / used[part] - 1) for part in PARTS},
        **{f"the budget's error, {x} on the disk": abs(getattr(files, x) / stored[x] - 1) for x in stored},
    }


def num_bytes(tensors: Iterable[Tensor]) -> int:
    """Return what tensors take."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


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


def bf16_figures(directory: Path) -> dict[str, float]:
    """Return how far a sample in bfloat16 is from float32, beside lerobot's."""
    from real_exactness import sampling_figures
    from sizes import SIZES

    return sampling_figures(directory, SIZES["real"])


def gradient_figures(directory: Path) -> dict[str, float]:
    """Return how far a gradient in bfloat16 is from float32's."""
    import real_exactness

    return real_exactness.gradient_figures(directory)


def recap_figures(directory: Path) -> dict[str, float]:
    """Run two rounds of RECAP from a base model; return what they took, and how right the budget was."""
    import real_recap

    place = directory.with_name("recap")
    real_recap.prepare(place, REAL, directory / WEIGHTS)
    return real_recap.figures(place, {"policy.freeze": "expert_only"})


def published_figures(directory: Path) -> dict[str, float]:
    """Evaluate a directory of the form of published weights on LIBERO's four suites."""
    import real_published

    place = directory.with_name("published")
    real_published.prepare(place, REAL, directory / WEIGHTS)
    return real_published.figures(place)


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


TRAINING_BOUNDS = {
    "peak of the process, GiB": TRAINING_BOUND_GIB,
    "the budget's error": BUDGET_BOUND,
    **{f"the budget's error, {part}": BUDGET_BOUND for part in PARTS},
    **{f"the budget's error, {part} on the disk": BUDGET_BOUND for part in ("trained", "untrained")},
}
CHECKS = {
    "load": Check(load_figures, {"peak above it": LOADING_BOUND}),
    "train-expert": Check(partial(train_figures, freeze="expert_only"), TRAINING_BOUNDS),
    "counted": Check(counted_figures, {"their ratio": 0.66, "ratio of the calls": 0.5}),
    "bf16": Check(
        bf16_figures, {"their ratio, all 32 dimensions": 0.6, "their ratio, the 7 of a robot": 0.6}
    ),
    "gradient": Check(
        gradient_figures,
        {
            f"{part}: {figure}": bound
            for part in ("vision", "vlm", "expert", "heads")
            for figure, bound in (("angle, degrees", 1.0), ("norm, relative difference", 0.01))
        },
    ),
    "recap": Check(
        recap_figures,
        {
            "most memory of a process, GiB": MACHINE_GIB,
            "frames labelled": 40,
            **{f"the budget's error, {name}": BUDGET_BOUND for name in ("memory", *DISK)},
        },
    ),
    "published": Check(
        published_figures,
        {
            **{"exit code": 0, "suites missing": 0, "episodes missing": 0},
            "most memory by the plan's": 1 + BUDGET_BOUND,
        },
    ),
    "train-lora": Check(partial(train_figures, freeze="lora", config="pi0_lora"), TRAINING_BOUNDS),
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
    if {"recap", "published"} & set(options.only):
        try:
            assets_folder()  # they simulate, and come late
        except FileNotFoundError as error:
            parser.error(str(error))
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
