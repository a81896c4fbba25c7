"""How long a command takes to answer: --help of every pi0-* command beside lerobot's, and a run that is done.

    python benchmarks/start.py

Seconds of whole processes, in turns. The run is the demo shrunk to a minute (a toy), started again when all
of it is there: what `make demo` does the second time, with fewer episodes to look at.
"""

import argparse
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

from figures import Figures, add_figures_option
from tqdm import tqdm

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))

from pins import RECAP, Machine  # noqa: E402

RIVALS = ("lerobot-train", "lerobot-eval")
"""Beside our own of the same name without its first word."""
DONE_S = 5.0


def commands() -> list[str]:
    """Return the names of our commands."""
    return [*tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]]


def seconds(command: list[str]) -> float:
    """Return what a process takes that must end well."""
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)
    return time.perf_counter() - start


def helped(rounds: int) -> dict[str, list[float]]:
    """Return the seconds of --help by command, in turns."""
    place = Path(sys.executable).parent
    taken: dict[str, list[float]] = {name: [] for name in (*commands(), *RIVALS)}
    for _ in tqdm(range(rounds), unit="round", desc="--help"):
        for name, values in taken.items():
            values.append(seconds([str(place / name), "--help"]))
    return taken


def answered(rounds: int) -> list[float]:
    """Return the seconds of a run that is done already, by round."""
    with tempfile.TemporaryDirectory() as directory:
        machine = Machine(ROOT, Path(directory))
        words = ["train_ript_pi0_final.py", *RECAP, f"output_dir={directory}", "exp_name=run"]
        machine.script(*words)
        taken = []
        for _ in tqdm(range(rounds), unit="round", desc="a run that is done"):
            start = time.perf_counter()
            machine.script(*words)
            taken.append(time.perf_counter() - start)
    return taken


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    add_figures_option(parser)
    options = parser.parse_args()
    figures, taken = Figures(), helped(options.rounds)
    for rival in RIVALS:
        ours = taken[f"pi0-{rival.removeprefix('lerobot-')}"]
        figures.add(
            f"pi0-{rival.removeprefix('lerobot-')} --help", "s", ours, rival=rival, theirs=taken[rival]
        )
    slowest = max(commands(), key=lambda name: sorted(taken[name])[options.rounds // 2])
    figures.add(f"slowest --help, {slowest}", "s", taken[slowest])
    figures.add("a run that is done", "s", answered(options.rounds), at_most=DONE_S)
    for name, values in taken.items():
        print(f"{name:18} --help {min(values):6.2f} s")
    print(f"a run that is done   {min(figures.rows[-1].ours):6.2f} s (target under {DONE_S:g} s)")
    figures.write(options.figures)


if __name__ == "__main__":
    main()
