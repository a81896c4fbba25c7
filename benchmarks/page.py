"""All benchmarks of speed, one after the other, as one page: make benchmark.

    python benchmarks/page.py                       policy, rollout, data, serving, scaling, start: 30 minutes
    python benchmarks/page.py --only serving start

Writes outputs/benchmark.md: figure, ours, rival, ratio, limit, target, met or not, each as the median with
minimum and maximum. Needs two cores with nothing beside, and LIBERO_ASSETS (or LIBERO's assets in their
default place): without these the page has no rows of LIBERO, and says so. What has been measured stays in
outputs/benchmark/, one file a benchmark, and --only makes the page anew from it and from what is run now.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

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


def page(places: dict[str, Path], minutes: dict[str, float]) -> str:
    """Return the page of all rows that are there."""
    shown = {name: read_figures(path) for name, path in places.items() if path.exists()}
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False
    ).stdout.strip()
    rows: list[Figure] = [row for figures in shown.values() for row in figures]
    met = [row.is_met for row in rows if row.is_met is not None]
    times = ", ".join(f"{name} {taken:.1f}" for name, taken in minutes.items())
    lines = [
        "# Benchmarks",
        "",
        f"`make benchmark` at {commit or 'an unknown commit'}: {psutil.cpu_count()} cores, torch "
        f"{torch.__version__}, {time.strftime('%Y-%m-%d')}. {sum(met)} of {len(met)} targets are met. "
        f"Minutes: {times}.",
        "",
        "Values are medians, with minimum and maximum of the rounds. A ratio is theirs over ours where both "
        "are times, and ours over theirs where both are rates or memory; the target is for the ratio, or, "
        "without a rival, for ours.",
    ]
    if "rollout" in shown and not any("LIBERO" in row.name for row in shown["rollout"]):
        lines += ["", "LIBERO's assets were not here, so it was left out."]
    for name, figures in shown.items():
        lines += [
            "",
            f"## {TITLES[name]}",
            "",
            f"`{' '.join(['python', f'benchmarks/{COMMANDS[name][0]}'])}`",
        ]
        lines += ["", markdown(figures)]
    return "\n".join(lines) + "\n"


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
    places = {name: directory / f"{name}.json" for name in COMMANDS}
    failed, minutes = [], {}
    for name in options.only or COMMANDS:
        print(f"\n{name}: {' '.join(command(name, places[name])[1:])}", flush=True)
        start = time.monotonic()
        places[name].unlink(missing_ok=True)
        done = subprocess.run(command(name, places[name]), cwd=ROOT, check=False)
        minutes[name] = (time.monotonic() - start) / 60
        if not places[name].exists():
            failed.append(f"{name}: exit code {done.returncode}, no figures")
    path = options.output / "benchmark.md"
    path.write_text(page(places, minutes))
    print(f"\n{path}")
    for line in failed:
        print(line)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
