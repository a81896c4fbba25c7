"""`pi0-eval`: success of a policy on held-out states, alone or against another one on the same states."""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from typing import Any

import yaml

from pi0.registry import load_plugins
from pi0.ript.config import ConfigError, TrainConfig, load_config_from_yaml
from pi0.ript.config.command_line import describe_keys, key_value_pairs
from pi0.ript.config.loading import default_values, load_config
from pi0.ript.config.validation import attempt
from pi0.ript.environments import ENVIRONMENTS
from pi0.ript.policy_evaluation import EvaluationConfig, evaluate_policy
from pi0.ript.starting_policy import PolicySettings
from pi0.ript.supervised.settings import ModelSettings

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


_FLAGS = {
    "policy_path": "--policy",
    "compare": "--compare",
    "task.benchmark_name": "--env",
    "task.task_names": "--tasks",
    "task.num_workers": "--num-workers",
    "eval.rollouts_per_task": "--episodes",
    "eval.first_state": "--first-state",
    "eval.states": "--states",
    "eval.cfg_guidance_scale": "--guidance",
    "eval.n_video": "--videos",
    "eval.recording_root": "--recording-root",
    "policy.extra_delta_transform": "--extra-delta-transform",
    "seed": "--seed",
    "device": "--device",
    "output_dir": "--output",
}
"""The option that is short for a key."""
_DEFAULTS = {"eval.rollouts_per_task": 20, "output_dir": f"{TrainConfig.output_dir}/eval"}
"""Of options, where a file has others."""
_TRAINING = {
    f"policy.{key}": "of training"
    for key in default_values(ModelSettings).keys() - default_values(PolicySettings).keys() - {"type"}
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    is_file = options.config_path is not None
    try:
        config = _of_file(parser, options, rest) if is_file else _of_options(parser, options, rest)
        evaluate_policy(config)
    except ConfigError as error:
        if os.environ.get("RANK", "0") == "0":
            message = str(error) if is_file else _with_flags(str(error))
            sys.stderr.write(f"{parser.prog}: error: {message}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write(f"{parser.prog}: interrupted\n")
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    defaults = default_values(EvaluationConfig) | _DEFAULTS
    keys = {flag: key for key, flag in _FLAGS.items()}
    parser = argparse.ArgumentParser(
        prog="pi0-eval",
        description="Evaluate a policy on held-out initial states: k/n per task and overall with intervals, "
        "evaluation.json, a video and report.html; with --compare a paired table and comparison.json.",
        epilog=f"{_EXAMPLES}\nkeys of a file, with their defaults:\n{describe_keys(EvaluationConfig)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )

    def add(flag: str, meaning: str, **options: Any) -> None:
        default = defaults[keys[flag]]
        if default is not None and flag not in ("--policy", "--env"):
            meaning = f"{meaning} (default {default})"
        if not {"choices", "action"} & options.keys():
            options.setdefault("metavar", flag.removeprefix("--").upper())
        parser.add_argument(flag, dest=keys[flag], help=meaning, **options)

    parser.add_argument(
        "--config_path",
        metavar="FILE",
        help="JSON or YAML with the sections policy, task and eval; then other options are keys, --key=value",
    )
    add("--policy", "checkpoint of lerobot or openpi: a directory or hub repository; or toy, which is "
        "trained here on demonstrations")  # fmt: skip
    add("--env", ", ".join(ENVIRONMENTS))
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
    parser.add_argument("--env-option", action="append", default=[], metavar="KEY=VALUE",
        help="further setting of the environment, such as num_parallel_envs=4, max_episode_length=200 or "
        "camera_names=[image,image2]; may be repeated")  # fmt: skip
    add("--extra-delta-transform", "for openpi's LIBERO checkpoints: pi0 yes, pi05 no",
        action=argparse.BooleanOptionalAction)  # fmt: skip
    add("--device", "cpu, cuda, cuda:1, ... or auto")
    add("--output", "directory; an earlier one is moved aside", metavar="DIR")
    add("--recording-root", "keep the rollouts here as a LeRobotDataset v3 with success labels",
        metavar="DIR")  # fmt: skip
    return parser


def _of_file(
    parser: argparse.ArgumentParser, options: argparse.Namespace, rest: Sequence[str]
) -> EvaluationConfig:
    """Return what a file and new values for its keys ask for; what is wrong is a ConfigError."""
    values = vars(options)
    path = values.pop("config_path")
    if given := [key for key, value in values.items() if value != parser.get_default(key)]:
        raise ConfigError(
            f"{_FLAGS.get(given[0], '--env-option')}: with --config_path, options are keys of the file, such "
            "as --policy_path=DIR or --eval.rollouts_per_task=50"
        )
    overrides = key_value_pairs(rest)
    config = load_config_from_yaml(path, overrides, schema=EvaluationConfig, without_effect=_TRAINING)
    if wrong := attempt(lambda: load_plugins(config.plugins))[1]:
        raise ConfigError(*wrong)
    return config


def _of_options(
    parser: argparse.ArgumentParser, options: argparse.Namespace, rest: Sequence[str]
) -> EvaluationConfig:
    """Return what options ask for; what does not fit together is a ConfigError."""
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    values = {key: value for key, value in vars(options).items() if key in _FLAGS and value is not None}
    if missing := [_FLAGS[key] for key in ("policy_path", "task.benchmark_name") if key not in values]:
        parser.error(f"the following arguments are required: {', '.join(missing)}")
    if "task.task_names" in values:
        values["task.task_names"] = [int(x) if x.isdecimal() else x for x in values["task.task_names"]]
    others = {}
    for text in options.env_option:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise ConfigError(f"--env-option: expected KEY=VALUE, found {text!r}")
        key = f"task.{name}"
        if key in _FLAGS:
            raise ConfigError(f"--env-option: {name} has an option of its own, {_FLAGS[key]}")
        settings = values if key in default_values(EvaluationConfig) else others
        settings[key if settings is values else name] = yaml.safe_load(value)
    config = load_config([("command line", _DEFAULTS | values)], EvaluationConfig)
    config.options.update(others)
    return config


def _with_flags(message: str) -> str:
    """Return a message that speaks of options and not of the keys that they are short for."""
    for key, flag in _FLAGS.items():
        end = r"(?!\w)" if "." in key else "(?=[:=])"  # a single word may be meant as one
        message = re.sub(rf"(?<![\w.]){re.escape(key)}{end}", flag, message)
    return re.sub(r"\btask\.(\w+)", r"--env-option \1=...", message)


if __name__ == "__main__":
    sys.exit(main())
