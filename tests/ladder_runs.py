"""Runs every rung and the reference trainer as `__main__`, one after the other, at toy size.

    python tests/ladder_runs.py DIRECTORY CACHE

In a process of its own, without the checks of shapes that the other tests run under: these runs are compared
with each other, and without the checks they take half the time.
"""

import runpy
import sys
from dataclasses import replace
from pathlib import Path

import ladder
import reference_trainer

from pi0.ript import environments
from pi0.ript.config import load_config_from_yaml

MINIMAL = ladder.ROOT / "pi0/ript/config/minimal_test.yaml"
SMALLER = [  # than the minimal configuration, which all rungs run here
    *("task.num_workers=0", "dataset.num_init_states=7", "eval.rollouts_per_task=2", "eval.n_video=0"),
    *("algo.rloo_batch_size=4", "algo.data_batch_size=1", "algo.max_sampling_attempts=4"),
    *("algo.num_epochs=1", "algo.lr=1e-4"),  # what a policy of one group can still do is not forgotten
]
PAIR = [  # for two processes; an odd number of attempts, and weights that stay what they are
    *SMALLER,
    *("algo.lr=1e-12", "algo.rloo_batch_size=2", "algo.data_batch_size=3", "algo.max_sampling_attempts=3"),
]


def commands(directory: Path, cache: Path) -> dict[str, list[str]]:
    """Return the command line of each run by its name: that of the rung's header, made smaller."""
    lines = {}
    for rung in ladder.RUNGS.values():
        header = rung.header("Run").split(rung.path.name)[1].split()
        if rung.name == "final":  # its own command is RECAP's
            header = [f"--config_path={MINIMAL}"]
        lines[rung.name] = [str(rung.path), *(as_flags() if rung.name == "8" else [*header, *SMALLER])]
    lines["alone"] = [str(ladder.RUNGS["10"].path), f"--config_path={MINIMAL}", *PAIR]
    paths = [f"--output_dir={directory}", f"--warm_start_dir={cache}"]
    return {name: [*line, *paths, f"--exp_name={name}"] for name, line in lines.items()}


def as_flags() -> list[str]:
    """Return the settings that rung 8 has as its flags; its command as it is takes minutes."""
    config = load_config_from_yaml(MINIMAL, SMALLER)
    first = runpy.run_path(str(ladder.RUNGS["8"].path))["AdvancedTrainingConfig"]()
    flags = ["--device", config.device, "--task.num_workers", str(config.task.num_workers)]
    for section in ("algo", "dataset", "training", "eval"):
        for key in vars(getattr(first, section)):
            flags += [f"--{section}.{key}", str(getattr(getattr(config, section), key))]
    return flags


def shrink_the_environment() -> None:
    """Give the environment of that name the settings for which rung 8 has no flags."""
    task = load_config_from_yaml(MINIMAL, SMALLER).task
    environments.ENVIRONMENTS["metaworld"] = replace(
        environments.ENVIRONMENTS["metaworld"],
        max_steps=task.max_episode_length,
        num_slots=task.num_parallel_envs,
        warm_start={k: v for k, v in vars(task.warm_start).items() if v is not None},
    )


if __name__ == "__main__":
    shrink_the_environment()
    directory, cache = map(Path, sys.argv[1:])
    for line in commands(directory, cache).values():
        sys.argv = line
        runpy.run_path(line[0], run_name="__main__")
    config = load_config_from_yaml(MINIMAL, [*SMALLER, f"warm_start_dir={cache}"])
    reference_trainer.train(config, directory / "reference")
