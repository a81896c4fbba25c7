"""Where the time of a training step and of a sample goes, ours beside the fair rival's: one minute.

    python benchmarks/step_profile.py

The rival is transformers' model on real cameras and tokens only ("trimmed"), at the mid size, batch 2, one
thread. Torch's profiler tells the CPU time of each operator; operators are put into three groups: matrix
products, attention (torch's fused kernel) and all the rest. The bound is what the ratio to the rival would be
if our rest cost nothing: products and attention are torch's own kernels, and the same arithmetic in both.
"""

import argparse
import re
from collections.abc import Callable

import torch
from contenders import build
from policy import silence_peers
from sizes import SIZES, make_inputs
from torch.profiler import ProfilerActivity, profile

GROUPS = {"matrix products": r"aten::(mm|addmm|bmm|baddbmm)$", "attention": r"aten::_scaled_dot_product.*"}
RIVAL = "transformers trimmed"


def group(operator: str) -> str:
    """Return the group of an operator."""
    return next((name for name, words in GROUPS.items() if re.match(words, operator)), "the rest")


def milliseconds(run: Callable[[], object], rounds: int) -> dict[str, float]:
    """Return the CPU time of a run by group, the mean over the rounds."""
    run()
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        for _ in range(rounds):
            run()
    found = dict.fromkeys((*GROUPS, "the rest"), 0.0)
    for event in recorded.key_averages():
        found[group(event.key)] += event.self_cpu_time_total / 1e3 / rounds
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    silence_peers()
    torch.set_num_threads(1)
    size = SIZES["mid"]
    contenders, inputs = build(size, "float32", "cpu"), make_inputs(size, 2, 2, 20)
    for what in ("train step", "sample"):
        found = {}
        for name in ("ours", RIVAL):
            contender = contenders[name]
            run = contender.train_step if what == "train step" else contender.actions
            found[name] = milliseconds(lambda run=run: run(inputs), options.rounds)
        print(f"\n{what}, ms of CPU{'':24}{'ours':>10}{RIVAL:>24}")
        for part in found["ours"]:
            ours, theirs = (found[name][part] for name in ("ours", RIVAL))
            print(f"  {part:38}{ours:10.0f}{theirs:24.0f}")
        totals = {name: sum(parts.values()) for name, parts in found.items()}
        kernels = totals["ours"] - found["ours"]["the rest"]
        print(f"  {'all':38}{totals['ours']:10.0f}{totals[RIVAL]:24.0f}")
        print(f"  our products and attention: {kernels / totals['ours']:.0%} of our time")
        print(f"  ratio {totals[RIVAL] / totals['ours']:.2f}, bound {totals[RIVAL] / kernels:.2f}")


if __name__ == "__main__":
    main()
