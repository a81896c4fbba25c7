"""Pins numbers: makes small runs with the public commands, and prints a hash of each result that must stay.

python tools/pins.py --output before.json       on the parent commit (some minutes on one core)
python tools/pins.py --compare before.json      after the change: exit code 1 and a line for each difference
python tools/pins.py --only ript recap          some runs, and those whose results they read

Pinned are the weights of every model (content by tensor, not the file's bytes), the recorded data sets
(content by column), and every row of metrics and every result in JSON, without times, memory, configuration
and format numbers. The same commit on the same machine gives the same hashes; another machine may round
differently. Runs: one process of rung 13; RECAP, two rounds, in one process and in two (recap-pair);
pi0-demos; pi0-train of a value function; pi0-advantage with it; pi0-train of a policy on these labels;
pi0-eval of that policy.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parent.parent
NOT_PINNED = (
    *("config", "seconds", "finished", "format"),
    *("value", "made_from", "source", "content_hash", "file_hash"),
)
"""Keys and columns that say how or from which files a result was made, and not what it is."""
DESCRIPTIONS = re.compile(
    r".*(config|settings|processor|info|stats|status|collection|recap_state|reward|made_from|launch)\.json"
)
"""JSON files that describe the others: settings, who started them, and lineage by hashes of whole files."""
RIPT = [
    *("--config_path=pi0/ript/config/minimal_test.yaml", "task.num_workers=0", "eval.n_video=0"),
    *("dataset.num_init_states=7", "eval.rollouts_per_task=2", "algo.rloo_batch_size=4"),
    *("algo.data_batch_size=1", "algo.max_sampling_attempts=4", "algo.num_epochs=1", "algo.lr=1e-4"),
    "logging.wandb_mode=disabled",
]
RECAP = [
    *("--config_path=configs/demo.yaml", "rounds=2", "baselines=true", "filtered_rounds=0"),
    "logging.wandb_mode=disabled",
    *("task.max_episode_length=60", "task.num_workers=0", "task.num_parallel_envs=4", "task.image_size=32"),
    *("demonstrations.episodes=3", "demonstrations.num_workers=0", "demonstrations.quality.hesitation=0"),
    *("sft.steps=80", "sft.batch_size=16", "value.pretraining.steps=3", "value.finetuning.steps=3"),
    *("value.pretraining.batch_size=8", "value.finetuning.batch_size=8", "value.width=16"),
    *("rollouts.num_states=2", "rollouts.per_state=2", "rollouts.pool_size=6", "rollouts.keep_rounds=2"),
    *("finetuning.training.steps=4", "finetuning.training.batch_size=8"),
    *("gates.min_concordance=0", "gates.max_fraction_error=1"),
    *("advantage.positive_fraction=0.3", "advantage.ranked=rollouts", "demonstrations.advantage=use"),
    *("finetuning.objective=indicator", "rollouts.guidance=3.0", "finetuning.start_from=previous"),
    *("validation.rollouts_per_task=0", "eval.rollouts_per_task=2", "eval.n_video=0"),
]
TRAIN = [
    *("batch_size=8", "gradient_accumulation_steps=2", "steps=6", "log_freq=1", "save_freq=3", "val_freq=3"),
    *("dataset_mixture.val_split_ratio=0.34", "device=cpu", "logging.wandb_mode=disabled", "exp_name=run"),
]


@dataclass(frozen=True)
class Machine:
    """How commands of a checkout are started, and where their results go."""

    checkout: Path
    directory: Path

    def command(self, name: str, *arguments: str) -> None:
        """Run a console command."""
        self.python(*self.command_words(name, *arguments))

    def command_words(self, name: str, *arguments: str) -> list[str]:
        """Return what Python is given to run a console command as its installed script does."""
        scripts = tomllib.loads((self.checkout / "pyproject.toml").read_text())["project"]["scripts"]
        module, function = scripts[name].split(":")
        return ["-c", f"import sys; from {module} import {function}; sys.exit({function}())", *arguments]

    def script(self, name: str, *arguments: str, num_processes: int = 1) -> None:
        """Run a script of the ladder."""
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={num_processes}"]
        self.python(*(launcher if num_processes > 1 else []), name, *arguments)

    def environment(self) -> dict[str, str]:
        """Return the environment of what runs in the checkout."""
        environment = os.environ | {"PYTHONPATH": str(self.checkout), "OMP_NUM_THREADS": "1"}
        environment.pop("PYTHONHASHSEED", None)
        return environment

    def python(self, *arguments: str) -> None:
        """Run Python in the checkout; where it fails, say what it said."""
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=self.checkout,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode:
            sys.stderr.write(done.stdout)
            raise SystemExit(f"pins: error: exit code {done.returncode} of: {' '.join(arguments)}")

    def config(self, name: str, data: str) -> str:
        """Return a copy of a configuration of pi0-train that reads a data set of these runs."""
        values = json.loads((self.checkout / "configs" / name).read_text())
        values["dataset_mixture"]["datasets"] = [{"repo_id": data, "root": str(self.directory / data)}]
        path = self.directory / f"{data}-{name}"
        path.write_text(json.dumps(values))
        return f"--config_path={path}"


# The runs ---------------------------------------------------------------------------------------------------


def ript(machine: Machine, place: Path) -> None:
    """Run two iterations of rung 13 on Meta-World."""
    outputs = [f"--output_dir={place}", f"--warm_start_dir={place / 'cache'}", "--exp_name=run"]
    machine.script("13_train_production_ready.py", *RIPT, *outputs)


def recap(machine: Machine, place: Path) -> None:
    """Run two rounds of RECAP and both rivals, with one process."""
    machine.script("train_ript_pi0_final.py", *RECAP, f"output_dir={place}", "exp_name=run")


def recap_pair(machine: Machine, place: Path) -> None:
    """Do the same with two processes."""
    outputs = [f"output_dir={place}", "exp_name=run"]
    machine.script("train_ript_pi0_final.py", *RECAP, *outputs, num_processes=2)


def demos(machine: Machine, place: Path) -> None:
    """Record three episodes of the sloppy operator, failures too."""
    what = ["--env=metaworld", "--task=button-press-v3", "--operator=sloppy", "--episodes=3", "--seed=1"]
    machine.command("pi0-demos", *what, "--image-size=32", "--workers=1", f"--output={place}")


def value(machine: Machine, place: Path) -> None:
    """Train a value function with pi0-train."""
    config = machine.config("value_pretrain_config.json", "demos")
    machine.command("pi0-train", config, *TRAIN, f"output_dir={place}")


def advantage(machine: Machine, place: Path) -> None:
    """Label the demonstrations with that value function."""
    shutil.copytree(machine.directory / "demos", place)
    machine.command("pi0-advantage", "--device=cpu", f"--value={machine.directory / 'value/run'}", str(place))


def policy(machine: Machine, place: Path) -> None:
    """Train a policy on these labels, with an average of its weights and an evaluation."""
    config = machine.config("sft_pi0_config.json", "advantage")
    task = ["env.type=metaworld", "env.task=button-press-v3", "env.episode_length=30", "env.image_size=32"]
    judged = ["eval_freq=6", "eval.n_episodes=2", "eval.num_workers=0", "eval.max_episodes_rendered=0"]
    what = ["policy.advantage=use", "ema_decay=0.9", f"output_dir={place}"]
    machine.command("pi0-train", config, *TRAIN, *task, *judged, *what)


def evaluation(machine: Machine, place: Path) -> None:
    """Evaluate rung 13's policy, which sometimes succeeds, and keep its rollouts."""
    what = [f"--policy={machine.directory / 'ript/run/policy'}", "--env=metaworld", "--episodes=4"]
    outputs = [f"--output={place}", f"--recording-root={place / 'recorded'}", "--videos=0"]
    machine.command("pi0-eval", *what, "--states=train", "--num-workers=0", "--device=cpu", *outputs)


RUNS: dict[str, tuple[Callable[[Machine, Path], None], tuple[str, ...]]] = {
    "ript": (ript, ()),
    "recap": (recap, ()),
    "recap-pair": (recap_pair, ()),
    "demos": (demos, ()),
    "value": (value, ("demos",)),
    "advantage": (advantage, ("demos", "value")),
    "policy": (policy, ("advantage",)),
    "eval": (evaluation, ("ript",)),
}
"""Each run with those whose results it reads."""


# What they left ---------------------------------------------------------------------------------------------


def pins(place: Path) -> dict[str, str]:
    """Return the hash of each result below the directory of a run, by its path there."""
    hashes = {}
    for path in sorted(path for path in place.rglob("*") if path.is_file()):
        name = path.relative_to(place).as_posix()
        if "/checkpoint-" in f"/{name}" or name.startswith("cache/"):
            continue  # intermediate, and pinned by what follows from it
        if path.suffix == ".safetensors":
            hashes[name] = hash_tensors(path)
        elif path.suffix == ".parquet":
            hashes[name] = hash_columns(path)
        elif path.name.endswith(".jsonl"):
            hashes[name] = digest([results(json.loads(line)) for line in path.read_text().splitlines()])
        elif (
            path.suffix == ".json"
            and not DESCRIPTIONS.fullmatch(path.name)
            and path.parent.name != "tokenizer"
        ):
            hashes[name] = digest(results(json.loads(path.read_text())))
    return hashes


def hash_tensors(path: Path) -> str:
    """Return a hash of the tensors of a safetensors file: names, types, shapes and bytes."""
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header.pop("__metadata__", None)
    hashed = hashlib.sha256()
    for name in sorted(header):
        first, last = (start + offset for offset in header[name]["data_offsets"])
        hashed.update(f"{name} {header[name]['dtype']} {header[name]['shape']}\n".encode())
        hashed.update(content[first:last])
    return hashed.hexdigest()


def hash_columns(path: Path) -> str:
    """Return a hash of the rows of a parquet file, by column."""
    table = pq.read_table(path)
    hashed = hashlib.sha256()
    for name in sorted(set(table.column_names) - set(NOT_PINNED)):
        hashed.update(f"{name} {table.column(name).to_pylist()!r}\n".encode())
    return hashed.hexdigest()


def results(values: Any) -> Any:
    """Return JSON values without those keys that say how and when the run was made."""
    if isinstance(values, list):
        return [results(value) for value in values]
    if not isinstance(values, dict):
        return values
    return {
        key: results(value)
        for key, value in values.items()
        if key not in NOT_PINNED and not key.startswith(("time/", "memory/"))
    }


def digest(values: Any) -> str:
    """Return a hash of JSON values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


# The command ------------------------------------------------------------------------------------------------


def needed(names: list[str]) -> list[str]:
    """Return the runs with those whose results they read, in the order in which they are made."""
    wanted: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        wanted.add(name)
        waiting += RUNS[name][1]
    return [name for name in RUNS if name in wanted]


def differences(before: dict[str, str], after: dict[str, str], names: list[str]) -> list[str]:
    """Return a line for each pin of these runs that is not in both, or not equal."""
    keys = [key for key in before | after if key.split("/")[0] in names]
    return [
        f"{key}: {before.get(key, 'nothing')[:12]} before, {after.get(key, 'nothing')[:12]} now"
        for key in keys
        if before.get(key) != after.get(key)
    ]


def measure(machine: Machine, names: list[str]) -> dict[str, str]:
    """Make the runs, print their pins as they come, and return them by name."""
    measured = {}
    for name in names:
        start = time.monotonic()
        RUNS[name][0](machine, machine.directory / name)
        made = {f"{name}/{key}": value for key, value in pins(machine.directory / name).items()}
        for key, value in made.items():
            print(key, value, flush=True)
        sys.stderr.write(f"pins: {name} took {time.monotonic() - start:.0f} s\n")
        measured |= made
    return measured


def main() -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--only", nargs="+", choices=RUNS, default=list(RUNS), metavar="NAME", help="runs")
    parser.add_argument("--directory", type=Path, help="where the runs go, and stay; default: temporary")
    parser.add_argument("--checkout", type=Path, default=ROOT, help="whose code runs; default: this one")
    parser.add_argument("--output", type=Path, help="JSON file to write the pins to")
    parser.add_argument("--compare", type=Path, help="JSON file with pins that must be the same")
    options = parser.parse_args()
    before = json.loads(options.compare.read_text()) if options.compare else None
    if options.directory and options.directory.exists() and any(options.directory.iterdir()):
        parser.error(f"--directory: expected an empty one, {options.directory} has files")
    names = needed(options.only)
    with tempfile.TemporaryDirectory() as temporary:
        directory = (options.directory or Path(temporary)).resolve()
        directory.mkdir(parents=True, exist_ok=True)
        measured = measure(Machine(options.checkout.resolve(), directory), names)
    if options.output:
        options.output.write_text(json.dumps(measured, indent=1) + "\n")
    if before is None:
        return 0
    lines = differences(before, measured, names)
    print("\n".join(lines) if lines else f"all {len(measured)} pins are the same")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
