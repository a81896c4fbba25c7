"""What `scaling.py` measures: each function does the work of `size` items in a directory, at toy sizes."""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

ROOT = Path(__file__).parent.parent
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

    shrunk = ["baselines=false", "rollouts.pool_size=24", f"output_dir={directory}", "exp_name=run"]
    machine = Machine(ROOT, directory)
    machine.script("train_ript_pi0_final.py", *RECAP, *shrunk, "rounds=1")
    start = time.perf_counter()  # demonstrations, SFT and the first round are not counted
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
