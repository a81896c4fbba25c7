"""Does reinforcement learning improve the toy policy? Runs a rung once per seed and prints held-out success.

    python benchmarks/learning.py --rung 8 --seeds 3

Each seed has its own demonstrations, warm start (nothing is cached, so that the time includes both) and
rollouts. The held-out states are not those on which the rung's settings were chosen.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
SCRIPTS = {8: "8_train_with_epochs.py"}
FIRST_EVAL_STATE = 1000  # settings were chosen on states 0 to 399


def run(rung: int, seed: int, directory: Path, rest: list[str]) -> dict[str, Any]:
    """Return the results of one run, with its wall and CPU time."""
    name = f"seed{seed}"
    command = [
        sys.executable, str(ROOT / SCRIPTS[rung]), "--training.seed", str(seed),
        "--output_dir", str(directory), "--exp_name", name,
        "--warm_start_dir", str(directory / "warm_start"), "--eval.first_state", str(FIRST_EVAL_STATE),
        "--eval.rollouts_per_task", "200", *rest,
    ]  # fmt: skip
    start, cpu = time.monotonic(), _children_cpu()
    subprocess.run(command, cwd=ROOT, check=True)
    results = json.loads((directory / name / "results.json").read_text())
    return {**results, "seed": seed, "wall_s": time.monotonic() - start, "cpu_s": _children_cpu() - cpu}


def report(results: list[dict[str, Any]]) -> str:
    """Return a line per seed: success before and after, difference, and time."""
    lines = ["seed  warm start            after                 difference [95%]       wall s  CPU s"]
    for r in results:
        gain, interval = r["comparison"]["difference"], r["comparison"]["interval"]
        low, high = (100 * x for x in interval)
        lines.append(
            f"{r['seed']:4}  {_rate(r['before']):20}  {_rate(r['after']):20}  "
            f"{100 * gain:+5.1f} [{low:+.1f}, {high:+.1f}]  {r['wall_s']:10.0f} {r['cpu_s']:6.0f}"
        )
    worst = min(r["comparison"]["difference"] for r in results)
    slowest = max(r["wall_s"] for r in results)
    lines.append(
        f"least gain {100 * worst:+.1f} points (target: +20 on each seed), longest run {slowest:.0f} s "
        "(target: 360 s on 2 free cores)"
    )
    return "\n".join(lines)


def _rate(evaluation: dict[str, Any]) -> str:
    low, high = (100 * x for x in evaluation["interval"])
    return f"{evaluation['num_successes']}/{evaluation['num_episodes']} [{low:.0f}, {high:.0f}]%"


def _children_cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--rung", type=int, choices=sorted(SCRIPTS), default=8)
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0, 1, ...")
    parser.add_argument("--json", type=Path, help="also write all results there")
    options, rest = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as directory:
        results = [run(options.rung, seed, Path(directory), rest) for seed in range(options.seeds)]
    print(report(results))
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
