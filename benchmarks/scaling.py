"""What grows as work grows, and how: the cost of an item at 1, 10 and 100 times the work.

    python benchmarks/scaling.py                     all; about five minutes on 2 cores
    python benchmarks/scaling.py --only windows iterations

Each figure is measured in a process of its own, most three times: seconds of an item, and what the memory of
that process rises by while it works. Linear or better means that an item of the largest work costs at most
1.3 times one of the smallest (the median of the rounds over the best of the smallest; small works have costs
of their own, so it is often less). Toy sizes all through; what grows is the number, not the size of an item.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import scaling_cases as cases
from figures import Figures, add_figures_option, spread
from tqdm import tqdm

ROOT = Path(__file__).parent.parent
MOST_COST = 1.3
"""Cost of an item at the largest work, over that at the smallest."""
MOST_MIB = 64.0
"""By which memory may be more at the largest work, where it must not grow with items."""
REPORT_SECONDS, REPORT_MB = 10.0, 5.0
"""Most that the report of 10,000 iterations may take."""


@dataclass(frozen=True)
class Case:
    """One figure: what an item is, how many there are, and how many rounds are worth the time."""

    measure: Callable[[int, Path, cases.Stopwatch], None]
    sizes: tuple[int, ...]
    items: Callable[[int], float] = float
    rounds: int = 3
    memory: str | None = "total"
    """What must not grow: the "total", or what is kept of an "item"; None: other processes have it."""
    are_beside: bool = False
    """Whether the items are done at once, each by a process of its own, as far as there are cores."""

    def cost(self, size: int, seconds: float) -> float:
        """Return the seconds of a core that an item takes."""
        cores = min(size, psutil.cpu_count() or 1) if self.are_beside else 1
        return seconds * cores / self.items(size)


CASES = {
    "frames": Case(cases.frames, (500, 5000, 50000), rounds=1),
    "episodes": Case(cases.episodes, (10, 100, 1000), memory="item"),
    "tasks": Case(cases.tasks, (1, 10, 100), memory="item"),
    "windows": Case(cases.windows, (500, 5000, 50000), memory="item"),
    "iterations": Case(cases.iterations, (100, 1000, 10000), memory="item"),
    "checkpoints": Case(cases.checkpoints, (2, 20, 200), items=lambda _: 10.0, rounds=2),
    "rounds": Case(cases.rounds, (1, 10), rounds=1, memory=None),
    "workers": Case(cases.workers, (1, 2, 4), memory=None, are_beside=True),
    "ranks": Case(cases.ranks, (1, 2, 4), rounds=1, memory=None, are_beside=True),
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=CASES, help="some of the figures")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    add_figures_option(parser)
    options = parser.parse_args()
    if options.one:
        once(options.one[0], int(options.one[1]))
        return
    figures = Figures()
    for name in options.only or CASES:
        report(name, measured(name), figures)
    figures.write(options.figures)


def once(name: str, size: int) -> None:
    """Measure in this process and print seconds and MiB."""
    watch = cases.Stopwatch()
    with tempfile.TemporaryDirectory() as directory:
        CASES[name].measure(size, Path(directory), watch)
    print(json.dumps({"seconds": watch.seconds, "mib": watch.mib}))


def measured(name: str) -> dict[int, list[dict[str, float]]]:
    """Return what each process printed, by size."""
    case = CASES[name]
    found: dict[int, list[dict[str, float]]] = {size: [] for size in case.sizes}
    with tqdm(total=case.rounds * len(case.sizes), unit="process", desc=name) as bar:
        for _ in range(case.rounds):
            for size in case.sizes:
                command = [sys.executable, __file__, "--one", name, str(size)]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
                lines = [json.loads(x) for x in done.stdout.splitlines() if x.startswith("{")]
                found[size].append({key: value for line in lines for key, value in line.items()})
                bar.update()
    return found


def report(name: str, found: dict[int, list[dict[str, float]]], figures: Figures) -> None:
    """Print the cost of an item by size, and add the rows."""
    case, costs = CASES[name], {}
    for size, runs in found.items():
        costs[size] = [case.cost(size, run["seconds"]) for run in runs]
        memory = f", memory +{max(run['mib'] for run in runs):.1f} MiB" if case.memory else ""
        print(f"{name:12} {size:6}: {1e3 * min(costs[size]):9.3f} ms an item{memory}", flush=True)
    first, last = min(found), max(found)
    growth = [b / min(costs[first]) for b in costs[last]]
    what = f"{name}: an item's cost at {last} over that at {first}"
    limit = "1 (or less: fixed costs)"
    rows = [figures.add(what, "times", growth, limit=limit, at_most=MOST_COST)]
    mib = {size: min(run["mib"] for run in found[size]) for size in (first, last)}
    if case.memory == "total":
        words, more = f"{name}: memory at {last} over that at {first}", [mib[last] - mib[first]]
        rows.append(figures.add(words, "MiB more", more, limit="0", at_most=MOST_MIB))
    elif case.memory == "item":
        kib = [1024 * mib[last] / case.items(last)]
        rows.append(figures.add(f"{name}: memory of an item at {last}", "KiB", kib))
    if name == "iterations":
        for unit, key, scale, most in (("s", "seconds", 1, REPORT_SECONDS), ("MB", "bytes", 1e6, REPORT_MB)):
            values = [run[key] / scale for run in found[last]]
            rows.append(figures.add(f"report of {last} iterations", unit, values, at_most=most))
    for row in rows:
        if row.is_met is False:
            print(f"MISSED: {row.name}: {spread(row.judged)} {row.unit}", flush=True)


if __name__ == "__main__":
    main()
