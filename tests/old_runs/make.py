"""Make the runs that a user of version 0.1.0 had, with its code: python tests/old_runs/make.py CHECKOUT.

CHECKOUT is one of commit 5e912df; the code beside this file is not used. Writes runs.tar.xz and expected.json
here. With the policy (0.1 M parameters) and the environment of tests/plugin_example it makes, in this order:

    start                    a random policy
    data/demonstrations      what it does, recorded with pi0-eval
    runs/value               pi0-train of a value function, stopped after step 3 of 4
    data/labelled            the demonstrations with labels, by pi0-advantage with a finished value function
    runs/policy              pi0-train of a policy on these labels, stopped after step 3 of 4
    runs/ript                rung 13, stopped inside the second of two iterations
    runs/recap               RECAP, stopped inside the last stage but one of two rounds: the policy's training
    configurations           every file of configs/ and of pi0/ript/config/

All paths in them are relative: whoever continues a run is in the directory with these. expected.json holds
what the same code made of each run when it continued it. A stop is a SIGTERM at a step that the code is
watched to make. Left out of the archive is what only informs: logs, plots, videos, the lock.
"""

import importlib
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from safetensors.numpy import load_file

HERE = Path(__file__).resolve().parent
ENVIRONMENT = {"type": "line", "episode_length": 8}
TRAINED = {
    "batch_size": 4,
    "steps": 4,
    "log_freq": 1,
    "save_freq": 2,
    "save_total_limit": 1,
    "val_freq": 4,
    "device": "cpu",
    "output_dir": "runs",
    "plugins": ["plugin_example"],
    "optimizer": {"lr": 1e-3},
    "logging": {"wandb_mode": "disabled"},
}
REWARD = {"C_neg": -10.0, "reward_normalizer": 20, "N_steps_look_ahead": 2, "number_of_bins": 21}
CONFIGS: dict[str, dict[str, Any]] = {
    "record": {
        "policy": {"type": "pi0", "pretrained_path": "start"},
        "env": ENVIRONMENT,
        "eval": {
            "n_episodes": 6,
            "states": "train",
            "num_workers": 0,
            "max_episodes_rendered": 0,
            "recording_root": "data/demonstrations",
        },
        "plugins": ["plugin_example"],
        "device": "cpu",
        "output_dir": "recorded",
    },
    "value": {
        **TRAINED,
        "exp_name": "value",
        "policy": {"type": "value", "policy_path": "start", "width": 16, "reward_config": REWARD},
        "dataset_mixture": {"datasets": [{"root": "data/demonstrations"}], "val_split_ratio": 0.34},
    },
    "policy": {
        **TRAINED,
        "exp_name": "policy",
        "policy": {"type": "pi0", "pretrained_path": "start", "advantage": "use", "freeze": "expert_only"},
        "dataset_mixture": {"datasets": [{"root": "data/labelled"}], "val_split_ratio": 0.34},
        "ema_decay": 0.5,
    },
    "ript": {
        "exp_name": "ript",
        "warm_start_dir": "cache",
        "policy_path": "start",
        "output_dir": "runs",
        "plugins": ["plugin_example"],
        "task": {"benchmark_name": "line", "num_parallel_envs": 4, "num_workers": 0, "max_episode_length": 8},
        "policy": {"freeze": "expert_only"},
        "algo": {
            "rloo_batch_size": 4,
            "data_batch_size": 2,
            "max_sampling_attempts": 6,
            "num_epochs": 1,
            "micro_batch_size": 2,
            "gradient_accumulation_steps": 1,
            "lr": 1e-4,
        },
        "dataset": {"num_init_states": 6, "window_stride": 4},
        "training": {"num_train_steps": 2, "keep_last": 1},
        "eval": {"rollouts_per_task": 4, "n_video": 0},
        "logging": {"wandb_mode": "disabled"},
    },
    "recap": {
        "algorithm": "recap",
        "exp_name": "recap",
        "policy_path": "start",
        "output_dir": "runs",
        "plugins": ["plugin_example"],
        "rounds": 2,
        "task": {"benchmark_name": "line", "num_parallel_envs": 4, "num_workers": 0, "max_episode_length": 8},
        "policy": {"freeze": "expert_only"},
        "demonstrations": {"root": "data/demonstrations"},
        "sft": {"steps": 2, "batch_size": 4},
        "value": {
            "width": 16,
            "pretraining": {"steps": 2, "batch_size": 4},
            "finetuning": {"steps": 2, "batch_size": 4},
        },
        "reward": {"C_neg": -10, "reward_normalizer": 20, "N_steps_look_ahead": 2, "number_of_bins": 21},
        "rollouts": {"num_states": 2, "per_state": 2, "pool_size": 6},
        "finetuning": {"start_from": "previous", "training": {"steps": 4, "batch_size": 4}},
        "gates": {"min_correlation": -1, "min_separation": 0, "max_fraction_error": 1},
        "eval": {"rollouts_per_task": 4, "n_video": 0},
        "logging": {"wandb_mode": "disabled"},
    },
}
COMMANDS = {
    "start": ["plugin_example", "start"],
    "record": ["pi0.ript.commands.evaluate", "--config_path=record.json"],
    "value": ["pi0.ript.scripts.train", "--config_path=value.json"],
    "policy": ["pi0.ript.scripts.train", "--config_path=policy.json"],
    "label": ["pi0.ript.commands.advantage", "--value=finished", "--policy=start", "--device=cpu"],
    "ript": ["13_train_production_ready.py", "--config_path=ript.yaml"],
    "recap": ["train_ript_pi0_final.py", "--config_path=recap.yaml"],
}
WATCHED = {
    "value": ("pi0.ript.supervised.trainer", "Training._step", 3),
    "policy": ("pi0.ript.supervised.trainer", "Training._step", 3),
    "ript": ("pi0.ript.monitoring", "take_step", 10),
    "recap": ("pi0.ript.recap.training_steps", "TrainingSteps.update", 14),
}
"""Where the code makes an optimizer step, and at which of them the run is asked to stop."""
RUNS = ("value", "policy", "ript", "recap")
NOT_KEPT = ("*.log", ".lock", "plots", "*.html", "*.mp4", "images", "wandb", "profiling", "*.1")


def run(checkout: Path, place: Path, name: str, *arguments: str, stops: bool = False) -> None:
    """Run a command in a process of its own; one that is asked to stop leaves with 143."""
    paths = os.pathsep.join([str(checkout), str(checkout / "tests")])
    words = [str(HERE / "make.py"), str(checkout), "--inside", name if stops else "", *COMMANDS[name]]
    done = subprocess.run(
        [sys.executable, *words, *arguments],
        cwd=place,
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    if done.returncode != (143 if stops else 0):
        raise SystemExit(f"{name}: exit code {done.returncode}")


def inside(checkout: Path, watched: str, command: str, arguments: list[str]) -> None:
    """Run a command of the checkout in this process, with a SIGTERM at a step if it is watched."""
    if watched:
        module, path, count = WATCHED[watched]
        _stop_at(module, path, count)
    if command.endswith(".py"):
        sys.argv = [str(checkout / command), *arguments]
        runpy.run_path(sys.argv[0], run_name="__main__")
    else:
        sys.argv = [command, *arguments]
        runpy.run_module(command, run_name="__main__", alter_sys=True)


def _stop_at(module: str, path: str, count: int) -> None:
    owner: Any = importlib.import_module(module)
    *outer, name = path.split(".")
    for part in outer:
        owner = getattr(owner, part)
    original: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def watched(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*args)

    setattr(owner, name, watched)


def outcome(run_dir: Path) -> dict[str, Any]:
    """Return what a finished run has come to: rows of metrics, and of each model its size and square sum."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    rows = [{k: v for k, v in row.items() if not k.startswith(("time/", "memory/"))} for row in lines]
    models = {}
    for file in sorted(run_dir.rglob("model.safetensors*")):
        name = file.parent.relative_to(run_dir).as_posix()
        if not name.startswith("checkpoint-"):
            with tempfile.TemporaryDirectory() as place:
                tensors = [
                    tensor.astype(float) for tensor in load_file(_complete(file, Path(place))).values()
                ]
            models[name] = [sum(t.size for t in tensors), sum(float((t**2).sum()) for t in tensors)]
    return {"rows": rows, "models": models}


def _complete(file: Path, place: Path) -> Path:
    """Return the file of all weights of a directory, which can refer to a file of its run."""
    if file.suffix == ".safetensors":
        return file
    from pi0.saving import copy_complete  # version 0.1.0 has neither this nor such directories

    copy_complete(file.parent, place / "complete")
    return place / "complete" / "model.safetensors"


def make(checkout: Path, place: Path) -> dict[str, Any]:
    """Make everything in a directory: kept/ as the archive has it, and the finished runs beside it.

    Returns their outcomes by name.
    """
    step = partial(run, checkout, place)
    for name, config in CONFIGS.items():
        suffix = "yaml" if name in ("ript", "recap") else "json"
        text = yaml.safe_dump(config) if suffix == "yaml" else json.dumps(config)
        (place / f"{name}.{suffix}").write_text(text)
    step("start")
    step("record")
    kept = place / "kept"
    (kept / "runs").mkdir(parents=True)
    for name in RUNS:
        step(name, stops=True)
        ignored = shutil.ignore_patterns(*NOT_KEPT)
        shutil.copytree(place / "runs" / name, kept / "runs" / name, ignore=ignored)
        step(name, *(["--resume"] if name == "ript" else []))
        if name == "value":
            shutil.copytree(place / "data/demonstrations", place / "data/labelled")
            (place / "runs/value").rename(place / "finished")
            step("label", "data/labelled")
            (place / "finished").rename(place / "runs/value")
    for name in ("start", "data"):
        shutil.copytree(place / name, kept / name)
    for source in ("configs", "pi0/ript/config"):
        only_files = shutil.ignore_patterns("*.py", "__pycache__")
        shutil.copytree(checkout / source, kept / "configurations" / Path(source).name, ignore=only_files)
    return {name: outcome(place / "runs" / name) for name in RUNS}


def main() -> None:
    """Make the runs, in a directory that may be given, and write them beside this file."""
    checkout = Path(sys.argv[1]).resolve()
    if sys.argv[2:3] == ["--inside"]:
        watched, command, *arguments = sys.argv[3:]
        inside(checkout, watched, command, arguments)
        return
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(sys.argv[2] if len(sys.argv) > 2 else temporary)
        place.mkdir(exist_ok=True)
        outcomes = make(checkout, place)
        with tarfile.open(HERE / "runs.tar.xz", "w:xz") as archive:
            for path in sorted((place / "kept").iterdir()):
                archive.add(path, path.name)
    (HERE / "expected.json").write_text(json.dumps(outcomes, indent=1) + "\n")


if __name__ == "__main__":
    main()
