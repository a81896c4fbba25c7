"""RECAP from a base model on LIBERO's physics, in parts: the process of each is killed, the next goes on.

    python benchmarks/real_recap.py DIRECTORY STAGE [KEY=VALUE ...]

The configuration is configs/recap_libero.yaml; its policy takes the demonstrations' statistics. The base is a
stand-in for lerobot/pi0_base (three cameras, 32 wide, no statistics); the demonstrations have the form of
LIBERO's and more tasks than are trained. Episodes last two chunks, and a coin says which succeed.
"""

import json
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from memory_peak import Peak
from stand_in import weight_bytes, write_base

from pi0 import Pi0Config
from pi0.ript.envs import make_suite
from pi0.ript.episode import Rollout
from pi0.ript.labels.frames import read_labelled_frames
from pi0.ript.recap import model_budget
from pi0.ript.recap.stages import Stages

ROOT = Path(__file__).parent.parent
SUITE, TRAINED, OTHERS = "libero_10", 8, (0, 3)
"""The task of configs/recap_libero.yaml, and tasks that only the demonstrations have."""
ENDS = ("value", "round-1/advantages", "round-2/value", "")
"""The process of a part is killed when this stage is to begin; empty: it runs to the end."""
_TOOK = "took-until-{}.json"
_IMAGE, _WRIST = "observation.images.image", "observation.images.image2"
_MAPPING = {
    "observation.images.base_0_rgb": _IMAGE,
    "observation.images.left_wrist_0_rgb": _WRIST,
    "observation.images.right_wrist_0_rgb": None,
}
_CHUNK = 4
SETTINGS = {
    "device": "cpu",
    "task.num_parallel_envs": 1,
    "task.num_workers": 0,
    "task.max_episode_length": 2 * _CHUNK,
    "task.camera_names": "[base_0_rgb,left_wrist_0_rgb]",
    "policy.n_action_steps": _CHUNK,
    "demonstrations.data_features_name_mapping": json.dumps(_MAPPING),
    **{f"{fit}.steps": 1 for fit in ("sft", "value.pretraining", "value.finetuning", "finetuning.training")},
    **{f"{fit}.batch_size": 1 for fit in ("sft", "value.pretraining", "value.finetuning")},
    "sft.warmup_steps": 0,
    "finetuning.training.warmup_steps": 0,
    "finetuning.training.batch_size": 1,
    "rollouts.num_states": 1,
    "rollouts.per_state": 2,
    "rollouts.pool_size": 3,
    "validation.rollouts_per_task": 0,
    "eval.rollouts_per_task": 1,
    "eval.n_video": 0,
    # A coin's outcomes have nothing to do with the frames, so nothing can be known of them.
    "gates.min_concordance": 0,
    "logging.use_wandb": "false",
}


def instructions() -> list[str]:
    """Return what the tasks of the demonstrations say, the trained one first."""
    tasks = make_suite("libero", suite=SUITE).tasks()
    return [tasks[number].instruction for number in (TRAINED, *OTHERS)]


def write_demonstrations(root: Path) -> None:
    """Write two short episodes of each task as LIBERO's demonstrations are published: without labels."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    image = {"dtype": "image", "shape": (256, 256, 3), "names": ["height", "width", "channel"]}
    features = {
        _IMAGE: image,
        _WRIST: image,
        "observation.state": {"dtype": "float32", "shape": (8,), "names": None},
        "action": {"dtype": "float32", "shape": (7,), "names": None},
    }
    data = LeRobotDataset.create("local/libero", fps=20, features=features, root=root, use_videos=False)
    rng = np.random.default_rng(0)
    for task in instructions() * 2:
        for _ in range(4):
            pixels = rng.integers(0, 256, (2, 256, 256, 3), dtype=np.uint8)
            state, action = rng.normal(size=8), rng.uniform(-1, 1, 7)
            frame = {_IMAGE: pixels[0], _WRIST: pixels[1]}
            frame |= {"observation.state": state.astype(np.float32), "action": action.astype(np.float32)}
            data.add_frame({**frame, "task": task})
        data.save_episode()
    data.finalize()


def prepare(directory: Path, config: Pi0Config, weights: Path | None = None) -> None:
    """Write base and demonstrations, unless they are there; `weights`: a file of the base's."""
    if not (directory / "base").exists():
        write_base(directory / "base", config, instructions(), weights)
    if not (directory / "demonstrations").exists():
        write_demonstrations(directory / "demonstrations")


def run_part(directory: Path, stage: str, settings: Mapping[str, Any]) -> None:
    """Go on with the run in this process, which is killed when a stage is to begin; empty: none.

    What it took, and what its budget said, is written down before.
    """
    begin, finish, budget, peak = Stages._begin, Stages._finish, model_budget.model_budget, Peak()
    took: dict[str, Any] = {"snapshot": 0, "memory_until": {}}

    def write_down() -> None:
        took["memory"] = peak.gib(whole=True) * 2**30
        (directory / _TOOK.format(stage.replace("/", "-"))).write_text(json.dumps(took))

    def begun(stages: Stages, name: Any, *rest: Any) -> Path:
        if str(name) == stage:
            write_down()
            os.kill(os.getpid(), signal.SIGKILL)
        return begin(stages, name, *rest)

    def finished(stages: Stages, name: Any, work: Path, *rest: Any) -> Any:
        snapshots = [sum(f.stat().st_size for f in x.rglob("*.*")) for x in work.glob("checkpoint-*")]
        took["snapshot"] = max(took["snapshot"], *snapshots, 0)
        took["memory_until"][str(name)] = peak.gib(whole=True) * 2**30
        return finish(stages, name, work, *rest)

    def told(run: Any) -> model_budget.ModelBudget:
        made = budget(run)
        took["told"] = {**asdict(made), "policy": made.policy.peak, "memory": made.memory, "kept": made.kept}
        return made

    arguments = {
        **SETTINGS,
        "output_dir": directory,
        "policy_path": directory / "base",
        "demonstrations.root": directory / "demonstrations",
        **settings,
    }
    script = ROOT / "train_ript_pi0_final.py"
    command = [str(script), f"--config_path={ROOT / 'configs/recap_libero.yaml'}"]
    command += [f"{key}={value}" for key, value in arguments.items()]
    with (
        mock.patch.object(Stages, "_begin", begun),
        mock.patch.object(Stages, "_finish", finished),
        mock.patch("pi0.ript.recap.budget.model_budget", told),
        mock.patch.object(sys, "argv", command),
        mock.patch("pi0.ript.rollout.Rollout", _with_coin),
        mock.patch("torch.set_num_threads"),  # the script's one thread is for toys
    ):
        runpy.run_path(str(script), run_name="__main__")
    write_down()


def _with_coin(**fields: Any) -> Rollout:
    """Return an episode that succeeded or not by its noise: of two from one state one does."""
    return Rollout(**{**fields, "success": bool(fields["seed"] % 2)})


def figures(directory: Path, settings: Mapping[str, Any], ends: Sequence[str] = ENDS) -> dict[str, float]:
    """Run what is left of the parts; return what they took, and how far the budget was from it.

    Raises:
        RuntimeError: A part ended in another way than it should.
    """
    parts = []
    for stage in ends:
        took = directory / _TOOK.format(stage.replace("/", "-"))
        if not took.exists():
            command = [sys.executable, __file__, str(directory), stage]
            command += [f"{key}={value}" for key, value in settings.items()]
            code = subprocess.run(command, stdout=sys.stderr, check=False).returncode
            expected = -signal.SIGKILL if stage else 0
            if code != expected or not took.exists():
                until = stage or "its end"
                raise RuntimeError(f"RECAP until {until}: expected to end with {expected}, found {code}")
        parts.append(json.loads(took.read_text()))
    run_dir, told = directory / "recap_libero", parts[0]["told"]
    memory = max(part["memory"] for part in parts)
    for part in parts:
        told_of = ", ".join(f"{x / 2**30:.3g} until {name}" for name, x in part["memory_until"].items())
        sys.stderr.write(f"most memory of the part's process, GiB: {told_of}\n")
    used = {
        "memory": memory,
        "untrained": weight_bytes(run_dir / "untrained"),
        "policies": sum(weight_bytes(x) for x in [run_dir / "sft", *run_dir.glob("round-*/policy")]),
        "values": sum(weight_bytes(x) for x in [run_dir / "value", *run_dir.glob("round-*/value")]),
        "published": weight_bytes(run_dir / "policy"),
        "snapshot": 2 * max(part["snapshot"] for part in parts),
    }
    used["kept"] = sum(used[name] for name in ("untrained", "policies", "values", "published"))
    labels = [read_labelled_frames(file) for file in run_dir.glob("round-*/advantages/frames.npz")]
    labelled = sum(len(source.advantages) for sources in labels for source in sources.values())
    return {
        "most memory of a process, GiB": memory / 2**30,
        "models on the disk, GB": used["kept"] / 1e9,
        "frames labelled": labelled,
        **{f"the budget's error, {name}": abs(told[name] / value - 1) for name, value in used.items()},
    }


if __name__ == "__main__":
    place, until, *changes = sys.argv[1:]
    run_part(Path(place), until, dict(change.split("=", 1) for change in changes))
