"""`pi0-demos`: records demonstrations with a scripted expert, as a LeRobotDataset v3."""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pi0.errors import say_errors_in_one_line
from pi0.ript.data.encoding import default_storage
from pi0.ript.data.writer import EpisodeWriter
from pi0.ript.demonstrations.collect import TaskSummary, TooFewSuccessesError, collect_demonstrations
from pi0.ript.demonstrations.experts import require_expert, tasks_with_expert
from pi0.ript.demonstrations.operators import OPERATORS, Operator, get_operator
from pi0.ript.demonstrations.recorder import DemonstrationPlan
from pi0.ript.demonstrations.worker import WorkerFailedError
from pi0.ript.envs import Task, TaskSuite, make_suite
from pi0.ript.files import path_argument

DEFAULT_TASKS = ("button-press-v3", "drawer-open-v3", "plate-slide-v3")
"""Of Meta-World, which has 50."""

_DEFAULT_IMAGE_SIZE = {"metaworld": 64, "libero": 224}
_QUALITY = {
    "noise": "standard deviation of the noise on actions",
    "hesitation": "share of the time spent hesitating",
    "misled": "share of the episodes with a mistake",
}
_EXAMPLES = """
examples:
  pi0-demos --env metaworld --task drawer-open-v3 --episodes 50 --output demos/drawer
  pi0-demos --env metaworld --operator hesitating --episodes 25 --output demos/slow --workers 2
  pi0-demos --env metaworld --task plate-slide-v3 --operator sloppy --episodes 60 --output demos/mix
  pi0-demos --env libero --suite libero_object --task 0 --episodes 20 --output demos/soup
  pi0-demos --env libero --suite libero_goal --operator sloppy --episodes 20 --output demos/goal

An interrupted command continues when it is run again. Training on the result:
lerobot's LeRobotDataset(repo_id, root=DIR), or pi0.ript.data.reader.open_set.

exit codes: 0 done; 1 failed while recording; 2 unusable arguments; 130 interrupted
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    options = _parser().parse_args(arguments)
    say_errors_in_one_line("pi0-demos")  # a full disk
    try:
        plan, tasks = _resolve(options)
        operator = plan.resolved_operator()
        EpisodeWriter(options.output, plan.info())
    except (ValueError, OSError) as error:
        print(f"pi0-demos: error: {error}", file=sys.stderr)
        return 2
    keep = options.keep or operator.keep
    workers = min(options.workers, options.episodes * len(tasks))
    _print_budget(options, plan, tasks, operator, workers)
    start = time.monotonic()
    try:
        summaries = collect_demonstrations(
            plan, options.output, options.episodes, keep=keep, num_workers=workers
        )
    except KeyboardInterrupt:
        print("pi0-demos: interrupted; run the same command to continue", file=sys.stderr)
        return 130
    except (TooFewSuccessesError, WorkerFailedError) as error:
        print(f"pi0-demos: failed: {error}", file=sys.stderr)
        return 1
    _print_summary(summaries, options.output, time.monotonic() - start)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pi0-demos",
        description="Record demonstrations with a scripted expert that sees simulator state. "
        "Writes a LeRobotDataset v3 with success labels; needs no download of data.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--env", required=True, help="metaworld or libero")
    add("--suite", help="LIBERO suite: libero_object (default), libero_spatial, libero_goal")
    tasks = f"default: metaworld {', '.join(DEFAULT_TASKS)}; libero every task that has an expert"
    add("--task", action="append", help=f"name or number; may be repeated; {tasks}")
    add("--episodes", type=int, default=50, help="episodes per task to keep (default %(default)s)")
    operators = f"{', '.join(OPERATORS)}: hesitating is slow, sloppy fails in about half of the episodes"
    add("--operator", default="competent", help=f"{operators} (default %(default)s)")
    for name, meaning in _QUALITY.items():
        add(f"--{name}", type=_share, metavar="X", help=f"{meaning}; default: the operator's own")
    add("--output", type=path_argument, required=True, help="directory of the data set; must not exist")
    add("--workers", type=int, default=_usable_cores(), help="processes (default %(default)s)")
    add("--seed", type=int, default=0, help="of initial states and operator (default %(default)s)")
    add("--image-size", type=int, help="pixels (default 64 metaworld, 224 libero)")
    storage = "image: PNG, exact (default up to 128 pixels); video: H.264, a tenth of the size"
    add("--storage", choices=("image", "video"), help=storage)
    add("--keep", choices=("all", "successes"), help="default: successes; sloppy: all")
    return parser


def _resolve(options: argparse.Namespace) -> tuple[DemonstrationPlan, list[Task]]:
    """Return what the arguments mean, or raise ValueError before anything is written."""
    suite_options: dict[str, Any] = {}
    operator = get_operator(options.operator).name
    if options.episodes < 1 or options.workers < 0 or options.seed < 0:
        raise ValueError(
            "expected --episodes >= 1, --workers >= 0 and --seed >= 0, found "
            f"{options.episodes}, {options.workers} and {options.seed}"
        )
    if options.env == "libero":
        size = options.image_size or _DEFAULT_IMAGE_SIZE["libero"]
        suite_options = {"suite": options.suite or "libero_object", "render_quality": "fast"}
        suite_options |= {"image_size": size, "render_size": 256 if size > 128 else size}
    elif options.suite is not None:
        raise ValueError(f"--suite belongs to --env libero, found --env {options.env}")
    elif options.image_size is not None:
        suite_options = {"image_size": options.image_size}
    suite = make_suite(options.env, **suite_options)
    tasks = _select(suite, options)
    for task in tasks:
        require_expert(task)
    suite.check(tasks)
    if options.output.is_file():
        raise ValueError(f"--output: expected a new directory, found the file {options.output}")
    changed = {name: getattr(options, name) for name in _QUALITY}
    plan = DemonstrationPlan(
        env=options.env,
        tasks=tuple(task.name for task in tasks),
        operator=operator,
        quality={name: value for name, value in changed.items() if value is not None},
        seed=options.seed,
        storage=options.storage or default_storage(tasks[0].image_size),
        options=suite_options,
    )
    return plan, tasks


def _select(suite: TaskSuite, options: argparse.Namespace) -> list[Task]:
    if options.task is None:
        if options.env == "metaworld":
            return list(suite.select(DEFAULT_TASKS))
        able = tasks_with_expert(suite.tasks())
        if not able:
            require_expert(suite.tasks()[0])
        return list(able)
    tasks = list(suite.select([int(name) if name.isdecimal() else name for name in options.task]))
    if len(set(tasks)) != len(tasks):
        raise ValueError(f"--task: a task is named twice in {', '.join(task.name for task in tasks)}")
    return tasks


def _print_budget(
    options: argparse.Namespace, plan: DemonstrationPlan, tasks: list[Task], operator: Operator, workers: int
) -> None:
    """Print about how long it will take and how much disk."""
    task = tasks[0]
    libero = plan.env == "libero"
    steps, slowness = (110 if libero else 40), 1.6 if operator.hesitation else 1.0
    frames = options.episodes * len(tasks) * steps * slowness
    milliseconds = 32.0 if libero else 4.5
    pixels = task.image_size**2 * len(task.cameras)
    size = frames * pixels * (1.4 if plan.storage == "image" else 0.14)
    seconds = frames * milliseconds / 1000 / max(workers, 1) + 15
    print(
        f"{options.episodes} demonstrations of each of {len(tasks)} tasks by a {operator.name} "
        f"operator, {task.image_size} px, {len(task.cameras)} camera(s), {task.hz:g} Hz\n"
        f"budget: about {_duration(seconds)} with {workers} worker(s), {size / 2**20:.0f} MB of "
        f"disk, {max(workers, 1) * (0.8 if libero else 0.2):.1f} GB of memory; "
        f"images as {'PNG' if plan.storage == 'image' else 'H.264 video'}",
    )


def _print_summary(summaries: list[TaskSummary], output: Path, seconds: float) -> None:
    width = max(len(summary.task_id) for summary in summaries)
    print(f"\n{'task':<{width}}  success   kept  mean length")
    for summary in summaries:
        rate, length = f"{summary.successes}/{summary.attempts}", f"{summary.mean_length:.1f}"
        print(f"{summary.task_id:<{width}}  {rate:>7}  {summary.kept:>5}  {length:>11}")
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    print(f"\n{output}: {size / 2**20:.1f} MB in {_duration(seconds)}")


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _share(text: str) -> float:
    value = float(text)
    if not 0.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, found {text}")
    return value


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


if __name__ == "__main__":
    sys.exit(main())
