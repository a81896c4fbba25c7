"""Starts each command with words that it can answer at once, in processes that refuse heavy imports.

    PYTHONPATH=tests/heavy_imports HEAVY_IMPORTS=FILE python tests/start_runs.py DIRECTORY

Each is forked from this process, which has imported what the commands need of other projects, so that only
this project's modules are imported again. Writes DIRECTORY/starts.json: by name, the exit code, what it
wrote, and the heavy imports of the process and of those that it started.
"""

import importlib
import json
import os
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).parent.parent
ENTRIES: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
_OF_OTHERS = (
    "numpy",
    "omegaconf",
    "yaml",
    "psutil",
    "pyarrow.parquet",
    "av",
    "cv2",
    "PIL.Image",
    "scipy",
    "rich",
)
_OF_OTHERS += ("huggingface_hub", "httpx", "jaxtyping", "tqdm", "matplotlib.figure")

_DEMO, _RIPT = "--config_path=configs/demo.yaml", "--config_path=pi0/ript/config/minimal_test.yaml"
_MIXTURE = "--dataset_mixture=configs/advantage_calc_config.json"


@dataclass(frozen=True)
class Start:
    """A command with words, and how it has to end."""

    command: str
    words: tuple[str, ...]
    code: int
    said: str
    """A part of what it writes."""


def _wrong(command: str, said: str, *words: str) -> Start:
    return Start(command, words, 2, said)


STARTS = {
    **{f"{name} --help": Start(name, ("--help",), 0, "usage: " + name) for name in ENTRIES},
    "pi0-recap --plan --help": Start("pi0-recap", ("--plan", "--help"), 0, "usage: pi0-recap --plan"),
    **{
        f"{start.command} {' '.join(start.words)}": start
        for start in (
            # Keys, types, ranges, choices; alone and where several processes would be started.
            _wrong("pi0-train", "did you mean 'steps'", "--stepz=3"),
            _wrong("pi0-train", "steps: ", "--steps=many"),
            _wrong("pi0-train", "steps: expected ", "--steps=-1"),
            _wrong("pi0-train", "policy.advantage: expected ", "--policy.advantage=perhaps"),
            _wrong("pi0-train", "device: expected cpu", "--device=gpu"),
            _wrong("pi0-train", "did you mean 'steps'", "--nproc-per-node=2", "--stepz=3"),
            _wrong("pi0-train", "does not exist", "--config_path=none.json"),
            _wrong("pi0-recap", "did you mean 'sft.steps'", _DEMO, "sft.step=1"),
            _wrong("pi0-recap", "sft.steps: ", _DEMO, "sft.steps=many"),
            _wrong("pi0-recap", "sft.steps: expected ", _DEMO, "sft.steps=-1"),
            _wrong("pi0-recap", "on_stale: expected ", _DEMO, "on_stale=perhaps"),
            _wrong("pi0-recap", "did you mean 'metaworld'", _DEMO, "task.benchmark_name=metaword"),
            _wrong("pi0-recap", "button-press-v3", _DEMO, "task.task_names=[buton-press-v3]"),
            _wrong("pi0-recap", "demonstrations: unknown operator", _DEMO, "demonstrations.operator=slopy"),
            _wrong("pi0-recap", "did you mean 'sft.steps'", "--nproc-per-node=2", _DEMO, "sft.step=1"),
            _wrong("pi0-recap", "did you mean 'algo.lr'", _RIPT, "--algo.lrr=1"),
            _wrong("pi0-recap", "algo.lr: expected ", _RIPT, "--algo.lr=-1"),
            _wrong("pi0-recap", "unknown algorithm 'rippt'", _RIPT, "algo.name=rippt"),
            _wrong("pi0-recap", "device: expected cpu", _RIPT, "device=gpu"),
            _wrong("pi0-recap", "expected a YAML file"),
            _wrong("pi0-recap", "--gpu", "--plan", "--gpus=8", "--gpu=H1000", _DEMO),
            _wrong("pi0-recap", "nowhere", "--status", "nowhere"),
            _wrong("pi0-eval", "unrecognized arguments", "--policy=toy", "--env=metaworld", "--episode=3"),
            _wrong("pi0-eval", "did you mean 'metaworld'", "--policy=toy", "--env=metaword"),
            _wrong("pi0-eval", "--episodes: ", "--policy=toy", "--env=metaworld", "--episodes=many"),
            _wrong("pi0-eval", "--episodes: ", "--policy=toy", "--env=metaworld", "--episodes=-1"),
            _wrong("pi0-eval", "--states: ", "--policy=toy", "--env=libero", "--states=others"),
            _wrong("pi0-eval", "eval.", "--config_path=configs/rollout_config.json", "--eval.n_episode=3"),
            _wrong("pi0-eval", "metaworld", "--nproc-per-node=2", "--policy=toy", "--env=metaword"),
            _wrong("pi0-doctor", "invalid choice", "--env=metaword"),
            _wrong("pi0-advantage", "invalid choice", "--value=value", "--scope=some", "data"),
            _wrong("pi0-advantage", "invalid int", "--value=value", "--batch_size=many", "data"),
            _wrong("pi0-advantage", "share in [0, 1]", "--value=value", "--positive-fraction=2", "data"),
            _wrong("pi0-advantage", "device: expected cpu", "--value=value", "--device=gpu", "data"),
            _wrong("pi0-label", "unrecognized arguments", "data", "--csv=none.csv", "--colum=success"),
            _wrong("pi0-label", "--rule", "data", "--rule=state[7] ~ 3"),
            _wrong("pi0-export", "invalid choice", "policy", "--output=exported", "--format=onnx"),
            _wrong("pi0-export", "at least 1", "policy", "--output=exported", "--batch-size=0"),
            _wrong("pi0-export", "CHECKPOINT: no directory", "no where", "--output=exported"),
            _wrong("pi0-export", "device: expected cpu", "policy", "--output=exported", "--device=gpu"),
            _wrong("pi0-export", "--push-to-hub: expected OWNER/NAME", "policy", "--push-to-hub=mine"),
            _wrong("pi0-export", "--push-to-hub: expected OWNER/NAME", "policy", "--push-to-hub=me/a--b"),
            _wrong(
                "pi0-export",
                "--evaluation: expected a finished",
                *("policy", "--push-to-hub=me/a", "--evaluation=nowhere"),
            ),
            _wrong("pi0-serve", "0 to 65535", "policy", "--port=99999"),
            _wrong("pi0-serve", "max_batch", "policy", "--max-batch=0"),
            _wrong("pi0-serve", "CHECKPOINT: no directory", "no where"),
            _wrong("pi0-stats", "invalid choice", "data", "--output=x.json", "--relative-actions", "2"),
            _wrong("pi0-stats", "weights", "data", "--output=x.json", "--weights", "-1"),
            _wrong("pi0-stats", "--columns", "data", "--output=x.json", "--columns", "images=x"),
            _wrong("pi0-dataset-viz", "at least 1", "data", "--max-episodes=0"),
            _wrong("pi0-dataset-viz", "invalid int", "data", "--episodes=first"),
            _wrong("pi0-demos", "did you mean 'metaworld'", "--env=metaword", "--output=demos"),
            _wrong(
                "pi0-demos", "button-press-v3", "--env=metaworld", "--task=buton-press-v3", "--output=demos"
            ),
            _wrong(
                "pi0-demos", "did you mean 'sloppy'", "--env=libero", "--operator=slopy", "--output=demos"
            ),
            _wrong("pi0-demos", "from 0 to 1", "--env=metaworld", "--noise=2", "--output=demos"),
        )
    },
}


def run(start: Start) -> int:
    """Become the command, as its console script does; return its exit code."""
    module, function = ENTRIES[start.command].split(":")
    sys.argv = [start.command, *start.words]
    return getattr(importlib.import_module(module), function)()


def forked(run_it: Callable[[], int], directory: Path) -> dict:
    """Run something in a process of its own; return its exit code, what it wrote, and its heavy imports."""
    written, notes = directory / "written", Path(os.environ["HEAVY_IMPORTS"])
    for file in (written, notes):
        file.write_text("")
    pid = os.fork()
    if pid == 0:
        descriptor = os.open(written, os.O_WRONLY | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(descriptor, stream)
        _end(run_it)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return {"code": code, "said": written.read_text(), "heavy": notes.read_text()}


def _end(run_it: Callable[[], int]) -> NoReturn:
    try:
        code = run_it()
    except SystemExit as stop:
        code = stop.code or 0
    except BaseException as error:  # noqa: BLE001 - all of them end a process
        sys.excepthook(type(error), error, error.__traceback__)
        code = 1
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(int(code))


if __name__ == "__main__":
    for name in _OF_OTHERS:
        importlib.import_module(name)
    directory = Path(sys.argv[1])
    outcomes = {name: forked(partial(run, start), directory) for name, start in STARTS.items()}
    (directory / "starts.json").write_text(json.dumps(outcomes, indent=1))
