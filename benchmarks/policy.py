"""Speed and memory of pi0 against lerobot's and transformers' on the same weights and inputs.

    python benchmarks/policy.py
    python benchmarks/policy.py --device cuda --size real --dtype bfloat16 --batch 8

Each case runs its contenders interleaved in one process, after a proof that they compute the same
losses, actions and gradients. A train step is forward and backward, without the optimizer. Nothing
is compiled; attention is each one's default. Two input shapes: some cameras missing (LIBERO: 2 of 3
are real), and all cameras real. In bfloat16 the peers train bfloat16 weights and ours float32 ones;
TF32 is then allowed, as in lerobot's training script (its image encoder stays float32).
"""

import argparse
import json
import logging
import platform
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from contenders import Contender, build, check_agreement
from figures import add_figures_option
from measure import Run, clock, interleaved, keep_freed_memory, peak_memory
from report import CASES, as_figures, print_roofline, print_table
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from roofline import Gpu, gpu
from sizes import SIZES, Inputs, make_inputs

Seconds = dict[str, dict[str, dict[str, list[float]]]]  # shape, case, contender, rounds


def main() -> None:
    """Measure, print the table (on a GPU also the roofline) and write the raw figures."""
    args = parse_arguments()
    silence_peers()
    torch.set_num_threads(args.threads)
    if args.keep_freed_memory:
        keep_freed_memory()
    hardware = None
    if args.device == "cuda":
        torch.set_float32_matmul_precision("highest" if args.dtype == "float32" else "high")
        hardware = known_gpu(args)
    shapes = input_shapes(args)
    memory = measure_memory(args, shapes) if "peak memory" in args.cases else {}
    contenders = build(SIZES[args.size], args.dtype, args.device)
    errors = {t: check_agreement(contenders, x, args.dtype) for t, x in shapes.items()}
    seconds = measure_time(args, contenders, shapes)
    figures = {
        "arguments": vars(args),
        "machine": {
            "processor": torch.cuda.get_device_name()
            if hardware
            else platform.processor() or platform.machine(),
            "torch": torch.__version__,
        },
        "relative_errors": errors,
        "seconds": seconds,
        "peak_bytes": memory,
    }
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1, default=str))
    print_table(figures)
    as_figures(figures).write(args.figures)
    if hardware:
        print_roofline(figures, SIZES[args.size], hardware)


def parse_arguments() -> argparse.Namespace:
    """Return the command line, checked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--size", choices=SIZES, default="mid")
    add("--batch", type=int, default=2)
    add("--cameras-real", type=int, default=2, help="real cameras of the first input shape")
    add("--prompt-tokens", type=int, default=20, help="valid prompt tokens, padded to the maximum")
    add("--rounds", type=int, default=5)
    add("--cases", nargs="+", choices=CASES, help="default: all; latency on a GPU only")
    add("--threads", type=int, default=1, help="CPU threads; with 1, CPU time is measured")
    add(
        "--keep-freed-memory",
        action="store_true",
        help="spare all contenders the page faults of large buffers (a third of lerobot's CPU time "
        "in sampling, where malloc maps its attention scores anew each time); glibc only",
    )
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--dtype", choices=("float32", "bfloat16"), default="float32")
    add("--peak-tflops", type=float, help="dense bf16 rate, for a GPU that is not known")
    add("--bandwidth-tbs", type=float, help="memory bandwidth in TB/s, for a GPU that is not known")
    add("--json", type=Path, help="file for the raw figures")
    add_figures_option(parser)
    args = parser.parse_args()
    if min(args.rounds, args.batch, args.threads) < 1:
        parser.error("--rounds, --batch and --threads must be at least 1")
    if args.cases is None:
        args.cases = [c for c in CASES if args.device == "cuda" or not c.startswith("latency")]
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch finds no GPU; use --device cpu")
    return args


def known_gpu(args: argparse.Namespace) -> Gpu:
    """Return the figures of the GPU at hand; an unknown one needs them on the command line."""
    flops = args.peak_tflops * 1e12 if args.peak_tflops else None
    bandwidth = args.bandwidth_tbs * 1e12 if args.bandwidth_tbs else None
    return gpu(torch.cuda.get_device_name(), flops, bandwidth)


def silence_peers() -> None:
    """Drop the peers' notices below errors."""
    transformers.logging.set_verbosity_error()
    logging.getLogger().setLevel(logging.ERROR)


def input_shapes(args: argparse.Namespace) -> dict[str, Inputs]:
    """Return the inputs to measure by title; on a GPU each also as a single sample."""
    size = SIZES[args.size]
    shapes = {}
    for real in dict.fromkeys((args.cameras_real, size.cameras)):
        inputs = make_inputs(size, args.batch, real, args.prompt_tokens)
        shapes[f"{real} of {size.cameras}"] = inputs.to(args.device)
    return shapes


def measure_memory(args: argparse.Namespace, shapes: dict[str, Inputs]) -> dict[str, dict[str, int]]:
    """Return the peak bytes of a train step by shape and contender."""
    cameras_real = [int(inputs.image_mask[0].sum()) for inputs in shapes.values()]
    peaks: dict[str, dict[str, int]] = {title: {} for title in shapes}
    with progress() as bar:
        task = bar.add_task("peak memory", total=3)
        for name in ("ours", "lerobot", "transformers"):
            for title, peak in zip(shapes, peak_memory(name, args, cameras_real), strict=True):
                peaks[title][name] = peak
            bar.advance(task)
    return peaks


def measure_time(
    args: argparse.Namespace, contenders: dict[str, Contender], shapes: dict[str, Inputs]
) -> Seconds:
    """Return the seconds of every case on every shape; freezing comes last."""
    seconds: Seconds = {title: {} for title in shapes}
    measure = clock(args.device, args.threads)
    with progress() as bar:
        for case in [c for c in CASES if c in args.cases and c != "peak memory"]:
            for contender in contenders.values():
                contender.set_expert_only(case.startswith("expert-only"))
            for title, inputs in shapes.items():
                runs = case_runs(case, contenders, inputs)
                task = bar.add_task(f"{case}, {title} cameras", total=len(runs) * (args.rounds + 1))
                found = seconds[title][case] = {name: [] for name in runs}
                for name, taken in interleaved(runs, args.rounds, measure):
                    if taken is not None:
                        found[name].append(taken)
                    bar.advance(task)
    return seconds


def case_runs(case: str, contenders: dict[str, Contender], inputs: Inputs) -> dict[str, Run]:
    """Return what to time, by contender; guidance is compared with ours without it."""
    if case == "guided sample":
        ours = contenders["ours"]
        assert ours.guided_actions
        return {
            "ours": partial(ours.guided_actions, inputs),
            "ours unguided": partial(ours.actions, inputs),
        }
    if case == "sample":
        return {name: partial(c.actions, inputs) for name, c in contenders.items()}
    if case == "latency, batch 1":
        return {name: partial(c.actions, inputs.first()) for name, c in contenders.items()}
    return {name: partial(c.train_step, inputs) for name, c in contenders.items()}


def progress() -> Progress:
    """Return a progress display on standard error."""
    columns: list[Any] = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()]
    return Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True))


if __name__ == "__main__":
    main()
