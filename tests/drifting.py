"""The smallest run of the thirteenth rung: a simulator that only adds, a random toy policy, the real script.

As a program it runs the script, for tests that need processes of their own.
"""

import os
import runpy
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from conftest import TASKS, toy_policy

from pi0.config import GemmaConfig, SiglipConfig
from pi0.ript import environments
from pi0.ript.checkpoint import snapshot, state
from pi0.ript.environments import Environment
from pi0.ript.envs import InitialState, Simulation, Task, TaskSuite, registry

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "13_train_production_ready.py"
SETTINGS = [
    *("task.benchmark_name=drifting", "task.max_episode_length=20", "task.num_parallel_envs=5"),
    *("algo.rloo_batch_size=3", "algo.data_batch_size=3", "algo.max_sampling_attempts=4"),
    *("algo.num_epochs=2", "algo.micro_batch_size=16", "algo.gradient_accumulation_steps=1", "algo.lr=1e-4"),
    *(
        "dataset.num_init_states=7",
        "eval.rollouts_per_task=5",
        "eval.n_video=0",
        "training.num_train_steps=2",
    ),
    "algo.enable_rollout_stats_tracking=true",
]


@dataclass(frozen=True)
class DriftingSuite(TaskSuite):
    """The sum of the actions drifts; success is reaching a threshold that depends on the initial state."""

    max_idle = 8

    def tasks(self):
        return (Task("drifting", "far", TASKS[0], 20, 10.0, 3, 4, ("front",), 8),)

    def make(self, task):
        return DriftingSimulation(task)


class DriftingSimulation(Simulation):
    def __init__(self, task):
        super().__init__(task)
        self.at = np.zeros(4)

    raw = None

    def initial_state(self, split, index):
        rng = np.random.default_rng((index, split == "train"))
        return InitialState(self.task.id, rng.normal(size=4), split, index)

    def snapshot(self):
        return self.at

    def restore(self, state):
        self.at = state.vector.copy()

    def step(self, action):
        if "SLOW" in os.environ:
            time.sleep(0.02)
        self.at[:3] += action
        return bool(self.at[0] < -19.0)

    def proprioception(self):
        return self.at.astype(np.float32)

    def render(self):
        level = int(10 * abs(self.at[0])) % 256
        return {"front": np.full((8, 8, 3), level, np.uint8)}

    def close(self):
        pass


def prepare(directory: Path, **changes) -> None:
    """Write what every run starts from."""
    tiny = GemmaConfig(width=32, depth=1, mlp_dim=32, num_heads=2, head_dim=16)
    policy = toy_policy(
        indicator="embedding",
        vlm=tiny,
        expert=tiny,
        vision=SiglipConfig(width=32, depth=1, num_heads=2, mlp_dim=32, patch_size=8, image_size=8),
        num_inference_steps=2,
        tokenizer_max_length=10,
        **changes,
    )
    policy.save_pretrained(directory / "start")


def run(directory: Path, name: str, *arguments: str) -> None:
    """Run the script on the suite; it must be known, see `install`."""
    settings = [
        *SETTINGS,
        f"policy_path={directory / 'start'}",
        f"output_dir={directory}",
        f"exp_name={name}",
    ]
    base = ROOT / "pi0/ript/config/minimal_test.yaml"
    before = sys.argv
    sys.argv = [str(SCRIPT), "--config_path", str(base), *settings, *arguments]
    try:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    finally:
        sys.argv = before


def install() -> None:
    """Make the suite known."""
    registry._SUITES.setdefault("drifting", DriftingSuite)
    environments.ENVIRONMENTS.setdefault("drifting", Environment("drifting", None, num_workers=0))


def uninstall() -> None:
    """Make the suite unknown again: other tests look at what comes with the package."""
    registry._SUITES.pop("drifting", None)
    environments.ENVIRONMENTS.pop("drifting", None)


def outcome(directory: Path) -> dict:
    """What a finished run has to show, without times."""
    import json

    results = json.loads((directory / "results.json").read_text())
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    newest = max(directory.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    trainer = torch.load(newest / snapshot.TRAINER, weights_only=True)
    return {
        "before": results["before"],
        "after": results["after"],
        "rows": [_timeless(row) for row in results["metrics"]],
        "logged": [_timeless(row) for row in rows],
        "weights": (newest / state._WEIGHTS).read_bytes(),
        "policy": (directory / "policy/model.safetensors").read_bytes(),
        "sampler": trainer["sampler"],
        "moments": [s["exp_avg_sq"].tolist() for s in trainer["optimizer"]["state"].values()],
    }


def _timeless(row: dict) -> dict:
    passing = ("time", "memory", "timestamp", "_")
    return {k: v for k, v in row.items() if not k.startswith(passing)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    install()
    run(Path(sys.argv[1]), *sys.argv[2:])
