"""Does reinforcement learning improve the toy policy? Trains once per seed and prints held-out success.

    python benchmarks/learning.py --rung 8 --seeds 3
    python benchmarks/learning.py --recap --seeds 3
    python benchmarks/learning.py --recap --config configs/demo_three_tasks.yaml --seeds 1
    python benchmarks/learning.py --compare recap,ript,filtered,awr,sft --task demo --seeds 3 --runs 2
    python benchmarks/learning.py --ablation
    python benchmarks/learning.py --compare recap --change loss,smooth

Each seed has its own demonstrations, warm start (nothing is cached, so that the time includes both) and
rollouts. The held-out states are not those on which any setting was chosen. `--compare` has
several methods start from one SFT policy and keeps what is finished: see compare.py. `--ablation` compares
RECAP with itself, one part changed at a time, in two rounds on two seeds: see compare_ablation.py.
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
sys.path.insert(0, str(ROOT))  # --compare trains with the `fit` of the final script

from compare import add_arguments, compare_methods  # noqa: E402

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


def run_recap(config: Path, seed: int, directory: Path, rest: list[str]) -> dict[str, Any]:
    """Return the results of RECAP on one seed, with its wall and CPU time."""
    command = [
        sys.executable, str(ROOT / "train_ript_pi0_final.py"), "--config_path", str(config),
        f"seed={seed}", f"output_dir={directory}", f"exp_name=seed{seed}",
        f"eval.first_state={FIRST_EVAL_STATE}", "eval.rollouts_per_task=200", *rest,
    ]  # fmt: skip
    start, cpu = time.monotonic(), _children_cpu()
    subprocess.run(command, cwd=ROOT, check=True)
    results = json.loads((directory / f"seed{seed}" / "results.json").read_text())
    return {**results, "seed": seed, "wall_s": time.monotonic() - start, "cpu_s": _children_cpu() - cpu}


def report_recap(results: list[dict[str, Any]]) -> str:
    """Return a line per seed, policy and task: success, what it gained on SFT, and steps to success."""
    lines = [
        "seed  policy      task                        success               since SFT, points      steps"
    ]
    for r in results:
        for name, found in r["policies"].items():
            gain = found["since_sft"]
            low, high = (100 * x for x in gain["interval"])
            since = "" if name == "SFT" else f"{100 * gain['difference']:+5.1f} [{low:+.1f}, {high:+.1f}]"
            lines.append(f"{r['seed']:4}  {name:10}  {'all':26}  {_judged(found['evaluation'], since)}")
            tasks = found["evaluation"]["tasks"]
            if len(tasks) > 1:
                lines += [f"{'':18}{task:26}  {_judged(one, '')}" for task, one in tasks.items()]
        lines.append(f"{r['seed']:4}  {r['wall_s']:.0f} s of wall time, {r['cpu_s']:.0f} s of CPU")
    first, last = ([list(r["policies"].values())[i] for r in results] for i in (0, -1))
    worst = min(one["since_sft"]["difference"] for one in last)
    steps = [
        1 - new["evaluation"]["mean_steps_to_success"] / old["evaluation"]["mean_steps_to_success"]
        for old, new in zip(first, last, strict=True)
    ]
    lines.append(f"last policy: least gain {100 * worst:+.1f} points, least saving of steps {min(steps):.0%}")
    return "\n".join(lines)


def _judged(evaluation: dict[str, Any], since: str) -> str:
    steps = evaluation["mean_steps_to_success"]
    return f"{_rate(evaluation):20}  {since:21}  {'none' if steps is None else f'{steps:.1f}'}"


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
    parser.add_argument("--recap", action="store_true", help="RECAP, in place of a rung")
    parser.add_argument("--config", type=Path, default=ROOT / "configs/demo.yaml", help="of RECAP")
    parser.add_argument("--seeds", type=int, help="seeds 0, 1, ... (default: 3, of an ablation 2)")
    parser.add_argument("--json", type=Path, help="also write all results there")
    add_arguments(parser)
    options, rest = parser.parse_known_args()
    is_ablation = options.ablation or options.change
    options.seeds = options.seeds or (2 if is_ablation else 3)
    if options.compare or is_ablation:
        compare_methods(options, rest)
        return
    with tempfile.TemporaryDirectory() as directory:
        place, seeds = Path(directory), range(options.seeds)
        if options.recap:
            results = [run_recap(options.config, seed, place, rest) for seed in seeds]
        else:
            results = [run(options.rung, seed, place, rest) for seed in seeds]
    print(report_recap(results) if options.recap else report(results))
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
