"""Runs rung 13 in two processes for long, and says whether anything grows that must not.

    python tools/soak.py --seconds 1200 --output soak.json
    python tools/soak.py --seconds 300 task.num_workers=2       more settings of the run

The command is requirement 001's: `timeout SECONDS torchrun --nproc_per_node=2 13_train_production_ready.py
--config_path ...`, with so many iterations that the time ends it. Every few seconds are read, of all its
processes: memory (PSS, so that shared pages count once), open files, processes, threads; and shared memory
and temporary files, which the run has in a directory of its own.

A quarter of the time is warm-up. The rest is cut into ten parts, and a line is fitted to their medians. A
figure has grown if the line rises with p < 0.01 (t-test, one-sided), and by more than 1 % of its level and by
more than one file, process, or MiB in that time. The exit code is 1 then, or if the run did not stop as it
should: exit code 124 of `timeout`, and "stopped" in run_status.json. Writes a picture beside the JSON.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from pins import ROOT, Machine
from process_tree import ProcessTree
from tqdm import tqdm

SETTINGS = [
    *("training.num_train_steps=1000000", "training.save_interval=5", "task.num_workers=1"),
    *("eval.rollouts_per_task=2", "eval.n_video=0", "logging.wandb_mode=disabled"),
]
UNITS = {
    "memory": "MiB", "open files": "", "processes": "", "threads": "", "shared memory": "MiB",
    "temporary files": "", "temporary data": "MiB",
}  # fmt: skip
"""What is read, with its unit."""
_WARM_UP, _NUM_PARTS = 0.25, 10
_LEAST_SECONDS = 300
_CRITICAL_T = 2.896  # one-sided 1 % with 8 degrees of freedom
_LEAST_SHARE, _LEAST = 0.01, 1.0
_MIB = 2.0**20


def figures(tree: ProcessTree, temporary: Path) -> dict[str, float]:
    """Return what all processes hold now."""
    sums = dict.fromkeys(UNITS, 0.0)
    for process in tree.members():
        try:
            sums["memory"] += process.memory_full_info().pss / _MIB
            sums["open files"] += process.num_fds()
            sums["threads"] += process.num_threads()
            sums["processes"] += 1
        except psutil.NoSuchProcess:
            continue
    sums["shared memory"] = sum(_size(file) for file in Path("/dev/shm").rglob("*")) / _MIB
    files = [file for file in temporary.rglob("*") if file.is_file()]
    sums["temporary files"], sums["temporary data"] = len(files), sum(map(_size, files)) / _MIB
    return sums


def _size(file: Path) -> int:
    try:
        return file.stat().st_size if file.is_file() else 0
    except OSError:  # gone meanwhile
        return 0


def growth(seconds: np.ndarray, values: np.ndarray) -> dict[str, Any]:
    """Return the level of a figure after the warm-up, its slope an hour, and whether it has grown."""
    is_warm = seconds >= _WARM_UP * seconds[-1]
    times = [part.mean() for part in np.array_split(seconds[is_warm], _NUM_PARTS)]
    levels = [np.median(part) for part in np.array_split(values[is_warm], _NUM_PARTS)]
    x, y = np.array(times) - np.mean(times), np.array(levels)
    slope = float((x * y).sum() / (x * x).sum())
    rest = y - y.mean() - slope * x
    error = float(np.sqrt((rest**2).sum() / (_NUM_PARTS - 2) / (x * x).sum()))
    risen = slope * float(seconds[-1] - seconds[is_warm][0])
    is_certain = slope > _CRITICAL_T * error
    return {
        "level": float(y.mean()),
        "slope_per_hour": slope * 3600,
        "slope_error_per_hour": error * 3600,
        "has_grown": bool(is_certain and risen > max(_LEAST, _LEAST_SHARE * y.mean())),
    }


def run(arguments: argparse.Namespace, work: Path) -> tuple[list[dict[str, float]], int, str]:
    """Run the command to its end; return what was read, its exit code, and the state that it wrote."""
    temporary, machine = work / "tmp", Machine(ROOT, work)
    temporary.mkdir()
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    words = ["timeout", str(arguments.seconds), *launcher, "13_train_production_ready.py"]
    words += [f"--config_path={arguments.config_path}", f"--output_dir={work}", "--exp_name=run"]
    words += [f"--warm_start_dir={work / 'cache'}", *SETTINGS, *arguments.settings]
    environment = {**machine.environment(), "TMPDIR": str(temporary)}
    tree, begun = ProcessTree(words, ROOT, environment, work / "output.txt"), time.monotonic()
    rows: list[dict[str, float]] = []
    with tqdm(total=arguments.seconds, unit="s") as bar:
        while tree.root.poll() is None:
            time.sleep(arguments.every)
            now = figures(tree, temporary)
            rows.append({"seconds": time.monotonic() - begun, **now})
            bar.update(min(arguments.seconds, int(rows[-1]["seconds"])) - bar.n)
            bar.set_postfix_str(f"{now['memory']:.0f} MiB, {now['open files']:.0f} files")
    if not tree.wait(60.0):
        sys.stderr.write("soak: processes stay after the end\n")
        tree.kill(tree.members())
    status = work / "run/run_status.json"
    state = json.loads(status.read_text())["state"] if status.exists() else "none"
    if tree.root.returncode != 124:
        sys.stderr.write((work / "output.txt").read_text()[-3000:])
    while rows and rows[-1]["processes"] < rows[len(rows) // 2]["processes"]:
        rows.pop()  # the end itself
    return rows, int(tree.root.returncode), state


def draw(rows: list[dict[str, float]], file: Path) -> None:
    """Draw each figure over time."""
    import matplotlib.pyplot as plt

    picture, axes = plt.subplots(len(UNITS), sharex=True, figsize=(8, 12), layout="constrained")
    minutes = [row["seconds"] / 60 for row in rows]
    for axis, (name, unit) in zip(axes, UNITS.items(), strict=True):
        axis.plot(minutes, [row[name] for row in rows], linewidth=1)
        axis.axvline(_WARM_UP * minutes[-1], color="grey", linestyle=":")
        axis.set_ylabel(f"{name}\n({unit})" if unit else name)
        axis.set_ylim(bottom=0)
    axes[0].set_title("What all processes of the run hold (left of the dotted line: warm-up)")
    axes[-1].set_xlabel("minutes")
    picture.savefig(file, dpi=100)


def main() -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--seconds", type=int, default=1200)
    parser.add_argument("--every", type=float, default=3.0, help="seconds between two readings")
    parser.add_argument("--config-path", default="pi0/ript/config/minimal_test.yaml")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    parser.add_argument("settings", nargs="*", help="KEY=VALUE of the run")
    options = parser.parse_args()
    if options.seconds < _LEAST_SECONDS:
        parser.error(
            f"--seconds: expected {_LEAST_SECONDS} or more, found {options.seconds}; the start alone "
            "takes half a minute, and a quarter of the time is the warm-up"
        )
    with tempfile.TemporaryDirectory() as temporary:
        rows, code, state = run(options, Path(temporary))
        metrics = Path(temporary) / "run/metrics.jsonl"
        iterations = len(metrics.read_text().splitlines()) if metrics.exists() else 0
    if len(rows) < 2 * _NUM_PARTS:
        raise SystemExit(f"soak: error: {len(rows)} readings; the run ended early, or took no time")
    seconds = np.array([row["seconds"] for row in rows])
    judged = {name: growth(seconds, np.array([row[name] for row in rows])) for name in UNITS}
    print(
        f"{seconds[-1]:.0f} s, {iterations} rows of metrics, {len(rows)} readings, exit code {code}, {state}"
    )
    for name, found in judged.items():
        slope, error = found["slope_per_hour"], found["slope_error_per_hour"]
        told = f"{found['level']:.6g} {UNITS[name]}".strip() + f", {slope:+.3g} +- {error:.2g} an hour"
        print(f"{name}: {told}{': WRONG: it grows' if found['has_grown'] else ''}")
    is_right = code == 124 and state == "stopped" and not any(x["has_grown"] for x in judged.values())
    if options.output:
        result = {"cpus": os.cpu_count(), "iterations": iterations, "exit_code": code, "state": state}
        options.output.write_text(json.dumps({**result, "figures": judged, "rows": rows}) + "\n")
        draw(rows, options.output.with_suffix(".png"))
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
