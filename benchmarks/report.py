"""Tables of the policy benchmark: figures, ratios, and whether the targets are met."""

import statistics
from typing import Any

from figures import Figures
from rich import box
from rich.console import Console
from rich.table import Table
from roofline import Gpu, cost
from sizes import Size

CASES = (
    "train step",
    "sample",
    "guided sample",
    "latency, batch 1",
    "expert-only train step",
    "peak memory",
)
PEERS = ("lerobot", "transformers", "transformers trimmed")

# Times faster than the peer at least; of its memory, the share at most. They hold for SETTING.
TARGETS = {
    "2 of 3": {
        "train step": {"lerobot": 3.3, "transformers": 1.7, "transformers trimmed": 1.15},
        "sample": {"lerobot": 3.3, "transformers": 1.9, "transformers trimmed": 1.5},
        "expert-only train step": {"lerobot": 4.0},
        "peak memory": {"lerobot": 0.33},
    },
    "3 of 3": {"train step": {"lerobot": 1.7}, "sample": {"lerobot": 2.0}},
}
SETTING = {
    "size": "mid",
    "batch": 2,
    "prompt_tokens": 20,
    "device": "cpu",
    "dtype": "float32",
    "threads": 1,
}
LATENCY_MS = 15.0  # real size, bfloat16, two cameras, batch 1
TRAIN_MFU = 0.45  # real size, bfloat16


def print_table(figures: dict[str, Any]) -> None:
    """Print one row per input shape and case: best (median), median ratio to each peer, targets."""
    arguments = figures["arguments"]
    is_aimed = all(arguments[key] == value for key, value in SETTING.items())
    scale, unit = (1e3, "ms") if arguments["device"] == "cuda" else (1.0, "s")
    rows = []
    for shape, cases in figures["seconds"].items():
        targets = TARGETS.get(shape, {}) if is_aimed else {}
        for case, seconds in cases.items():
            shown = {
                name: f"{min(s) * scale:.3g} ({statistics.median(s) * scale:.3g}) {unit}"
                for name, s in seconds.items()
            }
            ratios = {
                name: statistics.median(b / a for a, b in zip(seconds["ours"], s, strict=True))
                for name, s in seconds.items()
            }
            if case == "guided sample":
                case = f"guided sample ({1 / ratios['ours unguided']:.2f}x unguided)"
            goals = {peer: (">=", goal) for peer, goal in targets.get(case, {}).items()}
            rows.append([shape, case, *_cells(shown, ratios, goals)])
        peaks = figures["peak_bytes"].get(shape)
        if not peaks:
            continue
        shown = {name: f"{peak / 2**20:.0f} MiB" for name, peak in peaks.items()}
        ratios = {name: peaks["ours"] / peak for name, peak in peaks.items()}
        goals = {peer: ("<=", goal) for peer, goal in targets.get("peak memory", {}).items()}
        rows.append([shape, "peak memory of a train step", *_cells(shown, ratios, goals)])
    versus = [f"vs {peer}" for peer in PEERS]
    headings = ["real cameras", "case", "ours", *PEERS, *versus, "target", "met"]
    _print(_caption(arguments, figures["machine"]), headings, rows)


def as_figures(figures: dict[str, Any]) -> Figures:
    """Return the rows of all cases, for one page with those of other benchmarks."""
    rows = Figures()
    is_aimed = all(figures["arguments"][key] == value for key, value in SETTING.items())
    for shape, cases in figures["seconds"].items():
        targets = TARGETS.get(shape, {}) if is_aimed else {}
        for case, seconds in cases.items():
            for peer in (name for name in seconds if name != "ours"):
                goal = targets.get(case, {}).get(peer)
                name = f"{case}, {shape} cameras"
                rows.add(name, "s", seconds["ours"], rival=peer, theirs=seconds[peer], at_least=goal)
        peaks = figures["peak_bytes"].get(shape, {})
        for peer in (name for name in peaks if name != "ours"):
            ours, theirs = peaks["ours"] / 2**20, peaks[peer] / 2**20
            goal = targets.get("peak memory", {}).get(peer)
            options = {"rival": peer, "theirs": [theirs], "ratios": [ours / theirs], "at_most": goal}
            rows.add(f"peak memory of a train step, {shape} cameras", "MiB", [ours], **options)
    return rows


def _cells(shown: dict[str, str], ratios: dict[str, float], goals: dict[str, tuple[str, float]]) -> list[str]:
    marks = {
        peer: ratios[peer] >= goal if sign == ">=" else ratios[peer] <= goal
        for peer, (sign, goal) in goals.items()
    }
    return [
        *(shown.get(name, "") for name in ("ours", *PEERS)),
        *(f"{ratios[peer]:.2f}x" if peer in ratios else "" for peer in PEERS),
        ", ".join(f"{sign} {goal:g}x {peer}" for peer, (sign, goal) in goals.items()),
        ", ".join("pass" if is_met else "MISS" for is_met in marks.values()),
    ]


def _caption(arguments: dict[str, Any], machine: dict[str, str]) -> str:
    uses_cpu_time = arguments["device"] == "cpu" and arguments["threads"] == 1
    keys = ("size", "dtype", "batch", "prompt_tokens", "threads", "rounds")
    setting = ", ".join(f"{key.replace('_', ' ')} {arguments[key]}" for key in keys)
    if arguments["keep_freed_memory"]:
        setting += ", freed memory kept"
    return (
        f"{setting}; {'CPU' if uses_cpu_time else 'wall'} time, minimum (median); "
        f"{machine['processor']}, torch {machine['torch']}"
    )


def print_roofline(figures: dict[str, Any], size: Size, gpu: Gpu) -> None:
    """Print time, rate and share of the peak arithmetic beside the least time the GPU needs."""
    arguments = figures["arguments"]
    is_aimed = arguments["size"] == "real" and arguments["dtype"] == "bfloat16"
    rows = []
    for shape, cases in figures["seconds"].items():
        counted = cost(size, int(shape.split()[0]), arguments["prompt_tokens"])
        for case in ("train step", "sample", "latency, batch 1"):
            if case not in cases:
                continue
            batch = 1 if case == "latency, batch 1" else arguments["batch"]
            is_train = case == "train step"
            flops = batch * (counted.train_flops() if is_train else counted.sample_flops())
            least = (counted.train_seconds if is_train else counted.sample_seconds)(gpu, batch)
            for name, values in cases[case].items():
                seconds = min(values)
                mfu = flops / seconds / gpu.flops
                target, is_met = "", True
                if is_aimed and name == "ours" and is_train:
                    target, is_met = f"MFU >= {TRAIN_MFU:.0%}", mfu >= TRAIN_MFU
                if is_aimed and name == "ours" and case.startswith("latency") and shape[0] == "2":
                    target, is_met = f"<= {LATENCY_MS:g} ms", seconds * 1e3 <= LATENCY_MS
                mark = ("pass" if is_met else "MISS") if target else ""
                milliseconds = [f"{seconds * 1e3:.2f}", f"{least * 1e3:.2f}"]
                rates = [f"{batch / seconds:.1f}", f"{mfu:.1%}"]
                rows.append([shape, case, name, *milliseconds, *rates, target, mark])
    headings = ["real cameras", "case", "", "ms", "least ms", "samples/s", "MFU", "target", "met"]
    rate = f"{gpu.flops / 1e12:g} bfloat16 TFLOP/s, {gpu.bandwidth / 1e12:g} TB/s"
    _print(f"roofline: {rate}; MFU counts real cameras and tokens only", headings, rows)


def _print(caption: str, headings: list[str], rows: list[list[str]]) -> None:
    table = Table(box=box.MARKDOWN)
    for heading in headings:
        table.add_column(heading, no_wrap=True)
    for row in rows:
        table.add_row(*row)
    print(f"\n{caption}")
    Console(width=300).print(table)
