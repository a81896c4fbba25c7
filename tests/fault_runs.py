"""Runs commands with one fault each, as a user meets them, each in a process of its own.

    python tests/fault_runs.py DIRECTORY NAME ...

They are forked from this one, so that nothing is imported again. Writes DIRECTORY/faults.json: by name, the
exit code and what went to stderr. A process ends as the interpreter ends one, but does not take down all
modules, which takes seconds.
"""

import json
import os
import re
import runpy
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import drifting
import torch
from conftest import TASKS, toy_policy
from forked import end_process
from safetensors.torch import load_file, save_file
from test_episodes import make_episode, publish

import train_ript_pi0_final  # noqa: F401 - and with it all that the scripts import

ROOT = Path(__file__).parent.parent
MINIMAL, DEMO = ROOT / "pi0/ript/config/minimal_test.yaml", ROOT / "configs/demo.yaml"
RUNGS = {path.name.split("_")[0]: path for path in ROOT.glob("[0-9]*_train_*.py")} | {
    "final": ROOT / "train_ript_pi0_final.py",
    "installed": ROOT / "pi0/ript/scripts/train_ript_pi0.py",
}
COMMANDS = {
    "pi0-train": "pi0.ript.scripts.train",
    "pi0-eval": "pi0.ript.commands.evaluate",
    "pi0-advantage": "pi0.ript.commands.advantage",
    "pi0-label": "pi0.ript.commands.label",
    "pi0-export": "pi0.ript.commands.export",
    "pi0-serve": "pi0.ript.commands.serve",
    "pi0-dataset-viz": "pi0.ript.commands.dataset_viz",
    "pi0-stats": "pi0.ript.commands.stats",
    "pi0-demos": "pi0.ript.demonstrations.command",
}
TINY = drifting.SETTINGS[1:-1]
"""Of RIPT on the suite that only adds; rung 8 has no flag for some."""


@dataclass(frozen=True)
class Case:
    """A command with a fault, and how it has to end."""

    command: str
    """A rung, `recap`, or a console command."""
    fault: str
    words: tuple[str, ...]
    """Of its command line; {place} is the directory of the runs."""
    code: int
    said: str
    """A part of the one line."""
    signal: int | None = None
    """Sent to the whole group of processes once the run is under way."""


# What is wrong ----------------------------------------------------------------------------------------------


def prepare(place: Path) -> None:
    """Write what the commands are given: a checkpoint that is right, some that are not, and data sets."""
    drifting.prepare(place, tasks=[*TASKS, "do thing 0", "do thing 1"])
    start = place / "start"
    tensors = load_file(start / "model.safetensors")
    name = sorted(tensors)[0]
    for fault, changed in {
        "lacking": {key: value for key, value in tensors.items() if key != name},
        "misshapen": {**tensors, name: torch.zeros(3, 5)},
    }.items():
        shutil.copytree(start, place / fault)
        save_file(changed, place / fault / "model.safetensors")
    shutil.copytree(start, place / "damaged")
    (place / "damaged/model.safetensors").write_bytes(b"not weights")
    other = toy_policy({"image_keys": ("observation.images.front", "observation.images.wrist")})
    other.save_pretrained(place / "two_cameras")
    for name in ("data", "no_info", "no_frames"):
        publish(place / name, {i: make_episode(i, length=3 + i) for i in range(3)})
    (place / "no_info/meta/info.json").unlink()
    shutil.rmtree(place / "no_frames/data")
    (place / "value").mkdir()
    shutil.copy(start / "config.json", place / "value/config.json")


def rung(name: str, *more: str) -> tuple[str, ...]:
    """Return the words of a small run of a rung; `more` are settings."""
    given = (
        "task.benchmark_name=drifting",
        "task.num_workers=0",
        *TINY,
        "output_dir={place}/out",
        f"exp_name={name}",
        *more,
    )
    settings = {text.partition("=")[0]: text for text in given}
    if name != "8":
        return ("--config_path", str(MINIMAL), *settings.values())
    for key in ("task.max_episode_length", "task.num_parallel_envs"):  # without a flag
        del settings[key]
    return ("--device=cpu", *(f"--{text}" for text in settings.values()))


def recap(*more: str) -> tuple[str, ...]:
    """Return the words of a small run of RECAP on a data set that is there."""
    return (
        f"--config_path={DEMO}",
        *(
            "task.benchmark_name=drifting",
            "task.task_names=null",
            "task.image_size=null",
            "demonstrations.root={place}/data",
        ),
        *(
            "demonstrations.episodes=null",
            "demonstrations.operator=null",
            "demonstrations.quality.hesitation=null",
        ),
        *("demonstrations.num_workers=0", "task.num_workers=0", "output_dir={place}/out", "exp_name=recap"),
        *("sft.steps=6", "sft.batch_size=4", "policy.chunk_size=null", "policy_path={place}/start", *more),
    )


def train(*more: str) -> tuple[str, ...]:
    """Return the words of a small pi0-train."""
    return (
        "dataset_mixture.datasets=[{{root: {place}/data}}]",
        *("dataset_mixture.num_workers=0", "steps=6", "batch_size=4", "log_freq=1", "device=cpu"),
        *("output_dir={place}/out", "exp_name=train", "--overwrite", *more),
    )


def evaluation(policy: str, *more: str) -> tuple[str, ...]:
    """Return the words of a small pi0-eval."""
    options = ("--env=drifting", "--episodes=2", "--videos=0", "--num-workers=0", "--device=cpu")
    return (f"--policy={{place}}/{policy}", *options, "--output={place}/out/eval", *more)


_UNFIT = {"lacking": "lacking does not fit", "misshapen": "misshapen does not fit",
          "damaged": "damaged/model.safetensors"}  # fmt: skip
"""What is said of a checkpoint."""


def _of_rungs() -> Iterator[Case]:
    for name in RUNGS:
        code = 1 if name == "8" else 2  # of what is checked with the configuration, which it has none of
        for fault in ("lacking", "misshapen", "damaged"):
            words = rung(name, f"policy_path={{place}}/{fault}")
            yield Case(name, fault, words, 1, _UNFIT[fault])
        words = rung(name, "policy_path={place}/two_cameras")
        yield Case(name, "two cameras", words, 1, "cameras: the policy takes")
        words = rung(name, "policy_path={place}/nowhere")
        yield Case(name, "no checkpoint", words, code, "policy_path: nothing at")
        words = rung(name, "task.benchmark_name=driftin")
        yield Case(name, "no such environment", words, code, "did you mean 'drifting'")
        yield Case(name, "no such key", (*rung(name), "--algo.lrr=1"), 2, "algo.lrr")
        if name != "8":
            yield Case(name, "no file", ("--config_path={place}/none.yaml",), 2, "does not exist")
        words = rung(name, "policy_path={place}/start", "algo.lr=1e30", "training.num_train_steps=4")
        yield Case(name, "loss not finite", words, 1, "not finite")
        words = rung(name, "policy_path={place}/start", "task.num_workers=1", "training.num_train_steps=500")
        for number in (signal.SIGTERM, signal.SIGINT):
            code, said = {signal.SIGTERM: (-number, ""), signal.SIGINT: (130, "interrupted")}[number]
            if name in ("13", "final", "installed"):
                code, said = 128 + number, "stopping with a checkpoint"
            yield Case(name, number.name, words, code, said, number)


def _of_recap() -> Iterator[Case]:
    for fault, setting, code, said in (
        ("lacking", "policy_path={place}/lacking", 1, _UNFIT["lacking"]),
        ("two cameras", "policy_path={place}/two_cameras", 1, "cameras: the policy takes"),
        ("no checkpoint", "policy_path={place}/nowhere", 2, "policy_path: nothing at"),
        ("loss not finite", "sft.learning_rate=1e30", 1, "not finite"),
        ("no data set", "demonstrations.root={place}/nowhere", 2, "no LeRobotDataset"),
        ("no frames", "demonstrations.root={place}/no_frames", 1, "expected frames in"),
        ("no such key", "sft.step=1", 2, "did you mean 'sft.steps'"),
    ):
        yield Case("recap", fault, recap(setting), code, said)
    yield Case(
        "recap", "SIGTERM", recap("sft.steps=99999"), 143, "what is finished is on disk", signal.SIGTERM
    )


def _of_commands() -> Iterator[Case]:
    of_data = {"pi0-dataset-viz": (), "pi0-stats": ("--output={place}/out/statistics.json",),
               "pi0-advantage": ("--value={place}/value",)}  # fmt: skip
    for name, more in of_data.items():
        for fault, said in (
            ("nowhere", "no LeRobotDataset"),
            ("no_frames", "expected frames in"),
            ("no_info", "meta/info.json"),
        ):
            yield Case(name, fault, (f"{{place}}/{fault}", *more), 2, said)
    of_policy = {"pi0-export": ("--output={place}/out/exported",), "pi0-serve": ("--port=0",)}
    for name, more in of_policy.items():
        for fault in ("lacking", "damaged"):
            yield Case(name, fault, (f"{{place}}/{fault}", *more), 2, _UNFIT[fault])
        yield Case(name, "no checkpoint", ("{place}/nowhere", *more), 2, "no directory at")
    for fault in ("lacking", "misshapen", "damaged"):
        said = _UNFIT[fault]
        yield Case("pi0-train", fault, train(f"policy_path={{place}}/{fault}"), 2, said)
        yield Case("pi0-eval", fault, evaluation(fault), 2, said)
    yield Case("pi0-eval", "no checkpoint", evaluation("nowhere"), 2, "--policy: nothing at")
    for name in ("pi0-train", "pi0-eval"):
        yield Case(name, "no file", ("--config_path={place}/none.json",), 2, "does not exist")
    value = "--value={place}/value"
    words = (value, "--dataset_mixture={place}/none.json")
    yield Case("pi0-advantage", "no file", words, 2, "does not exist")
    yield Case("pi0-advantage", "no value", (value, "{place}/data"), 2, "reward.json is missing")
    for fault, setting, code, said in (
        ("no checkpoint", "policy_path={place}/nowhere", 2, "policy_path: nothing at"),
        ("no such key", "stpes=3", 2, "did you mean 'steps'"),
        ("no data set", "dataset_mixture.datasets=[{{root: {place}/nowhere}}]", 2, "no LeRobotDataset"),
        ("no camera", "policy_path={place}/two_cameras", 2, "null for a camera that it lacks"),
        ("loss not finite", "optimizer.learning_rate=1e30", 1, "not finite"),
    ):
        yield Case("pi0-train", fault, train(setting), code, said)
    for number in (signal.SIGTERM, signal.SIGINT):
        words = train("steps=99999")
        yield Case("pi0-train", number.name, words, 128 + number, "stopping with a checkpoint", number)
    words = evaluation("start", "--episodes=5000", "--num-workers=1")
    yield Case("pi0-eval", "SIGINT", words, 130, "interrupted", signal.SIGINT)
    yield Case("pi0-label", "no data set", ("{place}/nowhere", "--csv={place}/none.csv"), 2, "nowhere")
    yield Case("pi0-label", "no file", ("{place}/data", "--csv={place}/none.csv"), 2, "none.csv")
    words = ("--env=metaworld", "--task=buton-press-v3", "--episodes=1", "--output={place}/out/demos")
    yield Case("pi0-demos", "no such task", words, 2, "did you mean 'button-press-v3'")


CASES = {
    f"{case.command}: {case.fault}": case for part in (_of_rungs, _of_recap, _of_commands) for case in part()
}
_AS_OTHERS = ("10", "11", "12", "installed")
"""Rungs whose code for it is that of the others."""
FAST = [x for x, case in CASES.items() if case.signal is None and case.command not in _AS_OTHERS]
FAST += ["8: SIGTERM", "9: SIGINT"]
"""The cases that are no slow test: half a second each, and these two."""


# Running ----------------------------------------------------------------------------------------------------


def start(case: Case, place: Path) -> None:
    """Become the command, in this process."""
    words = [word.format(place=place) for word in case.words]
    if case.command in COMMANDS:
        sys.argv = [case.command, *words]
        runpy.run_module(COMMANDS[case.command], run_name="__main__", alter_sys=True)
        return
    script = RUNGS["final" if case.command == "recap" else case.command]
    sys.argv = [str(script), *words]
    runpy.run_path(str(script), run_name="__main__")


def forked(case: Case, place: Path) -> dict:
    """Run a case; return its exit code and what it wrote to stderr."""
    errors, output = place / "stderr", place / "stdout"
    for file in (errors, output):
        file.write_text("")
    shutil.rmtree(place / "out", ignore_errors=True)
    pid = os.fork()
    if pid == 0:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
        for stream, file in ((1, output), (2, errors)):
            os.dup2(os.open(file, os.O_WRONLY), stream)
        end_process(partial(start, case, place))
    if case.signal is not None:
        _wait_for(r"(episode|step)/s", output, errors)
        os.killpg(pid, case.signal)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return {"code": code, "stderr": errors.read_text(errors="replace")}


def _wait_for(pattern: str, *files: Path) -> None:
    """Return when one of the files has such a text, which a progress bar writes."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if any(re.search(pattern, file.read_text(errors="replace")) for file in files):
            return
        time.sleep(0.05)


if __name__ == "__main__":
    directory, names = Path(sys.argv[1]), sys.argv[2:]
    drifting.install()
    prepare(directory)
    outcomes = {}
    for name in names:
        begun = time.monotonic()
        outcomes[name] = forked(CASES[name], directory)
        outcomes[name]["seconds"] = time.monotonic() - begun
        print(f"{outcomes[name]['seconds']:5.1f} s  {name}", flush=True)
    (directory / "faults.json").write_text(json.dumps(outcomes, indent=1))
