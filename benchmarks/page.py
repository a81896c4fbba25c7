"""All benchmarks of speed, one after the other, as one page: make benchmark.

    python benchmarks/page.py                       policy, rollout, data, serving, scaling, start: 30 minutes
    python benchmarks/page.py --only serving start

Writes outputs/benchmark.md: figure, ours, rival, ratio, limit, target, met or not, each as the median with
minimum and maximum. Needs two cores with nothing beside, and LIBERO_ASSETS (or LIBERO's assets in their
default place): without these the page has no rows of LIBERO, and says so. What has been measured stays in
outputs/benchmark/, one file a benchmark, and --only makes the page anew from it and from what is run now.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from figures import Figure, markdown, read_figures

from pi0.ript.envs.libero_files import MissingAssetsError, assets_folder

ROOT = Path(__file__).parent.parent
COMMANDS = {
    "policy": ["policy.py", "--rounds", "3"],
    "rollout": ["rollout.py", "--rounds", "5"],
    "data": ["data.py", "--frames", "8000", "--rounds", "3", "--batches", "25"],
    "serving": ["serving.py", "--requests", "30"],
    "scaling": ["scaling.py"],
    "start": ["start.py"],
}
TITLES = {
    "policy": "The policy: training and sampling at the mid size (random weights), one thread, CPU time",
    "rollout": "Simulation",
    "data": "Reading a video data set of two cameras",
    "serving": "Serving (toy and stand-in policies)",
    "scaling": "How the cost of an item grows (toy sizes)",
    "start": "Starting",
}


def has_libero() -> bool:
    """Return whether LIBERO's assets are here; a wrong LIBERO_ASSETS is an error."""
    try:
        assets_folder()
    except MissingAssetsError:
        if "LIBERO_ASSETS" in os.environ:
            raise
        return False
    return True


def command(name: str, rows: Path) -> list[str]:
    """Return what runs a benchmark; its rows go to the file."""
    script, *words = COMMANDS[name]
    lean = ["--skip-libero"] if name == "rollout" and not has_libero() else []
    return [sys.executable, f"benchmarks/{script}", *words, *lean, "--figures", str(rows)]


def commit() -> str:
    """Return which version this is."""
    words = ["git", "describe", "--always", "--dirty"]
    found = subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    return found.stdout.strip() or "an unknown commit"


def page(directory: Path) -> str:
    """Return the page of all rows that are there, each with when and of what they are."""
    runs = {name: run for name, run in read_runs(directory).items() if rows_of(directory, name).exists()}
    shown = {name: read_figures(rows_of(directory, name)) for name in COMMANDS if name in runs}
    rows: list[Figure] = [row for figures in shown.values() for row in figures]
    met = [row.is_met for row in rows if row.is_met is not None]
    lines = [
        "# Benchmarks",
        "",
        f"`make benchmark`: {psutil.cpu_count()} cores, torch {torch.__version__}. {sum(met)} of {len(met)} "
        "targets are met.",
        "",
        "Values are medians, with minimum and maximum of the rounds. A ratio is theirs over ours where both "
        "are times, and ours over theirs where both are rates or memory; the target is for the ratio, or, "
        "without a rival, for ours.",
    ]
    if "rollout" in shown and not any("LIBERO" in row.name for row in shown["rollout"]):
        lines += ["", "LIBERO's assets were not here, so it was left out."]
    for name, figures in shown.items():
        run = runs[name]
        made = f"`python benchmarks/{' '.join(COMMANDS[name])}`"
        lines += ["", f"## {TITLES[name]}", ""]
        lines += [f"{made}, {run['minutes']:.1f} minutes at {run['commit']}, {run['date']}"]
        lines += ["", markdown(figures)]
    return "\n".join(lines) + "\n"


def rows_of(directory: Path, name: str) -> Path:
    """Return the file of a benchmark's rows."""
    return directory / f"{name}.json"


def read_runs(directory: Path) -> dict[str, dict[str, Any]]:
    """Return when, at which version and for how long each benchmark ran."""
    path = directory / "runs.json"
    return json.loads(path.read_text()) if path.exists() else {}


def main() -> int:
    """Run the benchmarks and write the page; return 1 if one of them could not be run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=COMMANDS, help="some of the benchmarks")
    parser.add_argument("--output", type=Path, default=ROOT / "outputs", help="default: outputs")
    options = parser.parse_args()
    directory = options.output / "benchmark"
    directory.mkdir(parents=True, exist_ok=True)
    load = psutil.getloadavg()[0]
    if load > 0.5:
        print(f"load {load:.1f}: something else is running here, so times will say little", flush=True)
    failed: list[str] = []
    for name in options.only or COMMANDS:
        rows = rows_of(directory, name)
        print(f"\n{name}: {' '.join(command(name, rows)[1:])}", flush=True)
        start = time.monotonic()
        rows.unlink(missing_ok=True)
        done = subprocess.run(command(name, rows), cwd=ROOT, check=False)
        minutes = (time.monotonic() - start) / 60
        run = {"commit": commit(), "date": time.strftime("%Y-%m-%d"), "minutes": minutes}
        (directory / "runs.json").write_text(json.dumps(read_runs(directory) | {name: run}, indent=1) + "\n")
        if not rows.exists():
            failed.append(f"{name}: exit code {done.returncode}, no figures")
    path = options.output / "benchmark.md"
    path.write_text(page(directory))
    print(f"\n{path}")
    for line in failed:
        print(line)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
