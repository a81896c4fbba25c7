"""What grows as work grows, and how: the cost of an item at 1, 10 and 100 times the work.

    python benchmarks/scaling.py                     all; about five minutes on 2 cores
    python benchmarks/scaling.py --only windows iterations

Each figure is measured in a process of its own, most three times: seconds of an item, and what the memory of
that process rises by while it works. Linear or better means that an item of the largest work costs at most
1.3 times one of the smallest (by the best of the rounds; small works have costs of their own, so it is often
less). Toy sizes all through; what grows is the number, not the size of an item.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from figures import Figures, add_figures_option, number
from tqdm import tqdm

ROOT = Path(__file__).parent.parent
MOST_COST = 1.3
"""Cost of an item at the largest work, over that at the smallest."""
MOST_MIB = 64.0
"""By which memory may be more at the largest work, where it must not grow with items."""
REPORT_SECONDS, REPORT_MB = 10.0, 5.0
"""Most that the report of 10,000 iterations may take."""
LENGTH = 50
"""Frames of an episode in memory."""


class Stopwatch:
    """Seconds of what `running` surrounds, and by how much memory rose meanwhile."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.mib = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Measure what is done inside."""
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
        before = psutil.Process().memory_info().rss
        start = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - start
        lines = Path("/proc/self/status").read_text().splitlines()
        peak = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
        self.mib = max(self.mib, (peak - before) / 2**20)


# What is measured: each does the work of `size` items in a directory ----------------------------------------


def frames(size: int, directory: Path, watch: Stopwatch) -> None:
    """Open a data set, then read each of its frames once in random order."""
    import numpy as np

    from pi0 import FeatureConfig
    from pi0.ript.data.records import CollectionInfo, Episode, EpisodeLabels
    from pi0.ript.data.settings import DatasetSettings, MixtureSettings
    from pi0.ript.data.training_data import make_training_data
    from pi0.ript.data.writer import EpisodeWriter

    length = 500
    writer = EpisodeWriter(directory / "set", CollectionInfo(20, "none", "image", {}))
    rng = np.random.default_rng(0)
    images = {"front": rng.integers(0, 256, (length, 16, 16, 3), dtype=np.uint8)}
    vectors = rng.random((length, 4), np.float32)
    for i in range(size // length):
        labels = EpisodeLabels(f"do thing {i % 2}", success=True)
        writer.add(i, Episode(images, vectors, vectors, labels))
    root = writer.finalize()
    features = FeatureConfig(image_keys=("observation.images.front",), state_dim=4, action_dim=4)
    sets = [DatasetSettings(root=str(root))]
    settings = MixtureSettings(datasets=sets, val_split_ratio=0.0, num_workers=0, cache_gib=0.001)
    with watch.running():
        data = make_training_data(settings, features, 8, 50)
        for _ in range(size // 50):
            next(data.train)


def labelled(num_episodes: int, num_tasks: int, watch: Stopwatch) -> None:
    """Label the frames of a data set in memory, given a value for each."""
    import numpy as np

    from pi0.ript.data.frame_set import FrameSet
    from pi0.ript.data.records import EpisodeLabels
    from pi0.ript.labels.labelling import label_frames
    from pi0.ript.labels.settings import Advantage, RewardConfig
    from pi0.ript.labels.sources import Role, Source

    names = tuple(f"do thing {task}" for task in range(num_tasks))
    task_of, count = np.arange(num_episodes) % num_tasks, num_episodes * LENGTH
    frame_set = FrameSet(
        name="rollouts",
        fps=20.0,
        states=np.zeros((count, 4), np.float32),
        actions=np.zeros((count, 4), np.float32),
        instructions=names,
        instruction_of=np.repeat(task_of, LENGTH),
        timestamps=np.tile(np.arange(LENGTH) / 20, num_episodes),
        episodes=np.arange(num_episodes),
        lengths=np.full(num_episodes, LENGTH),
        labels=tuple(EpisodeLabels(names[task], success=i % 3 != 0) for i, task in enumerate(task_of)),
        images={},
        selected=np.ones(num_episodes, bool),
        is_corrected=np.zeros(count, bool),
    )
    values = np.random.default_rng(0).uniform(-1, 0, count)
    with watch.running():
        source = Source("rollouts", frame_set, role=Role.ROLLOUTS)
        reward = RewardConfig(C_neg=-50.0, N_steps_look_ahead=10).resolve(LENGTH)
        label_frames([source], [values], reward, Advantage()).positive()


def episodes(size: int, directory: Path, watch: Stopwatch) -> None:
    """Label episodes of two tasks."""
    labelled(size, 2, watch)


def tasks(size: int, directory: Path, watch: Stopwatch) -> None:
    """Label ten episodes of each task."""
    labelled(10 * size, size, watch)


def windows(size: int, directory: Path, watch: Stopwatch) -> None:
    """Cut rollouts into windows and hand each one out in a batch."""
    import numpy as np

    from pi0.ript.windows import batches, concatenate, episode_windows

    rng = np.random.default_rng(0)
    images = {"front": rng.integers(0, 256, (LENGTH, 64, 64, 3), dtype=np.uint8)}
    vectors, observed = rng.random((LENGTH, 4), np.float32), np.arange(LENGTH)
    with watch.running():
        one = [images, vectors, vectors, observed, "do it", 8]
        whole = concatenate([episode_windows(*one) for _ in range(size // LENGTH)])
        for numbers in batches(rng.permutation(len(whole)), 32):
            whole.batch(numbers)


def iterations(size: int, directory: Path, watch: Stopwatch) -> None:
    """Write the report of so many iterations; its bytes are said on the way."""
    from pi0.ript.report import append_row, write_report

    row = {"rollout/success": 0.5, "train/loss": 0.1, "time/iteration_s": 2.0, "rollout/groups": 4}
    lines = [json.dumps({"step": step, **row}) for step in range(size - 1)]
    (directory / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    append_row(directory, row, size - 1)
    with watch.running():
        page = write_report(directory)
    print(json.dumps({"bytes": page.stat().st_size}))


def checkpoints(size: int, directory: Path, watch: Stopwatch) -> None:
    """Save ten checkpoints where so many are kept; an item is one of those ten."""
    import torch

    from pi0 import FeatureConfig, PI0Policy, PromptTokenizer, compute_statistics, toy_config
    from pi0.ript.checkpoint.state import save_checkpoint

    tokenizer = PromptTokenizer.from_texts(["do it"])
    statistics = {name: compute_statistics(torch.randn(9, 4)) for name in ("observation.state", "action")}
    features = FeatureConfig(image_keys=("observation.images.front",), state_dim=4, action_dim=4)
    policy = PI0Policy(toy_config(tokenizer.vocab_size), features, tokenizer, statistics)
    optimizer = torch.optim.AdamW(policy.parameters())

    def save(step: int) -> None:
        save_checkpoint(policy, optimizer, step, {}, directory, keep_last=size)

    for step in range(size):
        save(step)
    with watch.running():
        for step in range(size, size + 10):
            save(step)


def rounds(size: int, directory: Path, watch: Stopwatch) -> None:
    """Run RECAP in so many rounds, each of the same work."""
    sys.path.insert(0, str(ROOT / "tools"))
    from pins import RECAP, Machine

    shrunk = ["rounds=1", "baselines=false", f"output_dir={directory}", "exp_name=run"]
    machine = Machine(ROOT, directory)
    machine.script("train_ript_pi0_final.py", *RECAP, *shrunk)  # demonstrations, SFT and one round, not timed
    start = time.perf_counter()
    machine.script("train_ript_pi0_final.py", *RECAP, *shrunk, f"rounds={size + 1}")
    watch.seconds = time.perf_counter() - start


def workers(size: int, directory: Path, watch: Stopwatch) -> None:
    """Simulate with so many workers, each with two slots and the same number of steps."""
    import numpy as np

    from pi0.ript.envs import make_env

    name, chunk, count = "drawer-open-v3", 8, 40
    with make_env(
        "metaworld", [name], num_slots=2 * size, num_workers=size, max_steps=chunk * (count + 2)
    ) as env:
        state = env.initial_states(name, "train", range(1))[0]
        env.reset(dict.fromkeys(range(2 * size), state))
        action = np.zeros((chunk, env.task(name).action_dim), np.float32)
        env.step_chunk(dict.fromkeys(range(2 * size), action))
        with watch.running():
            for _ in range(count):
                env.step_chunk(dict.fromkeys(range(2 * size), action))


def ranks(size: int, directory: Path, watch: Stopwatch) -> None:
    """Train rung 10 in so many processes, each with the same number of rollouts and windows."""
    sys.path.insert(0, str(ROOT / "tools"))
    from pins import RIPT, Machine

    settings = [
        *(f"output_dir={directory}", f"warm_start_dir={ROOT / '.cache/scaling'}", "exp_name=run"),
        *("dataset.num_init_states=32", f"algo.data_batch_size={2 * size}", "training.num_train_steps=4"),
        *(f"algo.max_sampling_attempts={2 * size}", "algo.num_epochs=8", "task.num_parallel_envs=8"),
        *("algo.micro_batch_size=16", f"algo.gradient_accumulation_steps={size}"),
    ]
    script = "10_train_with_distributed.py"
    Machine(ROOT, directory).script(script, *RIPT, *settings, num_processes=size)
    metrics = json.loads((directory / "run/results.json").read_text())["metrics"]
    watch.seconds = sum(row["time/iteration_s"] for row in metrics)


@dataclass(frozen=True)
class Case:
    """One figure: what an item is, how many there are, and how many rounds are worth the time."""

    measure: Callable[[int, Path, Stopwatch], None]
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
    "frames": Case(frames, (500, 5000, 50000), rounds=1),
    "episodes": Case(episodes, (10, 100, 1000), memory="item"),
    "tasks": Case(tasks, (1, 10, 100), memory="item"),
    "windows": Case(windows, (500, 5000, 50000), memory="item"),
    "iterations": Case(iterations, (100, 1000, 10000), memory="item"),
    "checkpoints": Case(checkpoints, (2, 20, 200), items=lambda _: 10.0, rounds=2),
    "rounds": Case(rounds, (1, 10), rounds=1, memory=None),
    "workers": Case(workers, (1, 2, 4), memory=None, are_beside=True),
    "ranks": Case(ranks, (1, 2, 4), rounds=1, memory=None, are_beside=True),
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
    watch = Stopwatch()
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
    figures.add(what, "times", growth, limit="1 (or less: fixed costs)", at_most=MOST_COST)
    mib = {size: min(run["mib"] for run in found[size]) for size in (first, last)}
    if case.memory == "total":
        words = f"{name}: memory at {last} over that at {first}"
        figures.add(words, "MiB more", [mib[last] - mib[first]], limit="0", at_most=MOST_MIB)
    elif case.memory == "item":
        kib = [1024 * mib[last] / case.items(last)]
        figures.add(f"{name}: memory of an item at {last}", "KiB", kib)
    if name == "iterations":
        seconds = [run["seconds"] for run in found[last]]
        figures.add(f"report of {last} iterations", "s", seconds, at_most=REPORT_SECONDS)
        megabytes = [run["bytes"] / 1e6 for run in found[last]]
        figures.add(f"report of {last} iterations", "MB", megabytes, at_most=REPORT_MB)
    for row in figures.rows[-4:]:
        if row.name.startswith((f"{name}:", "report")) and row.is_met is False:
            print(f"MISSED: {row.name}: {number(row.judged[0])} {row.unit}", flush=True)


if __name__ == "__main__":
    main()
