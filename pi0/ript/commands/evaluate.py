"""`pi0-eval`: success of a policy on held-out states, alone or against another one on the same states."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from pi0.ript.config import ConfigError
from pi0.ript.config.command_line import key_value_pairs
from pi0.ript.environments import ENVIRONMENTS
from pi0.ript.policy_evaluation import EvalError, EvalSettings, evaluate_policy
from pi0.ript.supervised.rollout_file import read_rollout_settings

_EXAMPLES = """
examples:
  pi0-eval --policy toy --env metaworld
  pi0-eval --policy pi0/ript/output/ript/policy --env metaworld --episodes 50 --videos 4
  pi0-eval --policy base --compare improved --env libero_object --episodes 50 --guidance 2
  pi0-eval --policy checkpoints/pi0_libero --env libero_10 --tasks 0 8 --device cuda
  pi0-eval --policy improved --env metaworld --recording-root data/rollouts
  pi0-eval --nproc-per-node 2 --policy base --env libero_spatial
  pi0-eval --config_path=configs/rollout_config.json --policy.pretrained_path=outputs/train/sft_pi0

The states are held out: training never uses them (LIBERO: the benchmark's own 50 per task). Intervals are
95%: Wilson's for a rate, Newcombe's for the difference of two policies on the same states. One seed gives the
same episodes, whatever the number of processes.

exit codes: 0 done; 1 failed; 2 unusable arguments; 130 interrupted
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    try:
        evaluate_policy(_settings(parser, options, rest))
    except (EvalError, ConfigError) as error:
        if os.environ.get("RANK", "0") == "0":
            sys.stderr.write(f"{parser.prog}: error: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write(f"{parser.prog}: interrupted\n")
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    defaults = EvalSettings(policy="")
    parser = argparse.ArgumentParser(
        prog="pi0-eval",
        description="Evaluate a policy on held-out initial states: k/n per task and overall with intervals, "
        "evaluation.json, a video and report.html; with --compare a paired table and comparison.json.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )

    def add(name: str, help: str, **options: Any) -> None:  # noqa: A002 - argparse's name
        default = getattr(defaults, name.removeprefix("--").replace("-", "_"), None)
        if default is not None:
            help = f"{help} (default {default})"  # noqa: A001
        parser.add_argument(name, help=help, default=default, **options)

    parser.add_argument("--config_path", metavar="FILE", help="JSON or YAML with the sections policy, env "
        "and eval; then other options are keys of it, --key=value")  # fmt: skip
    parser.add_argument("--policy", help="checkpoint of lerobot or openpi: a directory or "
        "hub repository; or toy, which is trained here on demonstrations")  # fmt: skip
    parser.add_argument("--env", help=", ".join(ENVIRONMENTS))
    add("--compare", "another policy, on the same states; differences are its rate minus --policy's")
    add("--tasks", "names or numbers; default: the environment's own choice", nargs="+", metavar="TASK")
    add("--episodes", "held-out states of each task, an episode from each", type=int, metavar="N")
    add("--first-state", "number of the first of them", type=int, metavar="I")
    add("--states", "held-out states, or train: those whose rollouts may be trained on",
        choices=("heldout", "train"))  # fmt: skip
    add("--guidance", "towards a positive advantage: 1 indicator given, 0 withheld", type=float)
    add("--seed", "of the policy's noise", type=int)
    add("--videos", "episodes of each task in the video", type=int, metavar="N")
    add("--num-workers", "processes that simulate, for each process of the command", type=int, metavar="N")
    add("--env-option", "further setting of the environment, such as num_parallel_envs=4, "
        "max_episode_length=200 or camera_names=[image,image2]; may be repeated",
        action="append", metavar="KEY=VALUE")  # fmt: skip
    add("--extra-delta-transform", "for openpi's LIBERO checkpoints: pi0 yes, pi05 no",
        action=argparse.BooleanOptionalAction)  # fmt: skip
    add("--device", "cpu, cuda, cuda:1, ... or auto")
    add("--output", "directory; an earlier one is moved aside", type=Path, metavar="DIR")
    add("--recording-root", "keep the rollouts here as a LeRobotDataset v3 with success labels", type=Path,
        metavar="DIR")  # fmt: skip
    return parser


def _settings(
    parser: argparse.ArgumentParser, options: argparse.Namespace, rest: Sequence[str]
) -> EvalSettings:
    """Return the settings; what does not fit together is an EvalError or a ConfigError."""
    values = vars(options)
    file = values.pop("config_path")
    if file is not None:
        if given := [name for name, value in values.items() if value != parser.get_default(name)]:
            raise EvalError(
                f"--{given[0].replace('_', '-')}: with --config_path, options are keys of the file, such as "
                "--policy.pretrained_path=DIR or --eval.n_episodes=50"
            )
        return read_rollout_settings(file, key_value_pairs(rest))
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if missing := [name for name in ("policy", "env") if values[name] is None]:
        parser.error(f"the following arguments are required: {', '.join(f'--{name}' for name in missing)}")
    env_options = {}
    for text in values.pop("env_option") or []:
        key, equals, value = text.partition("=")
        if not equals or not key.isidentifier():
            raise EvalError(f"--env-option: expected KEY=VALUE, found {text!r}")
        env_options[key] = yaml.safe_load(value)
    if values["tasks"] is not None:
        values["tasks"] = [int(task) if task.isdecimal() else task for task in values["tasks"]]
    return EvalSettings(**values, env_options=env_options)


if __name__ == "__main__":
    sys.exit(main())
