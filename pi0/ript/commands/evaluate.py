"""`pi0-eval`: success of a policy on held-out states, alone or against another one on the same states."""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from functools import reduce
from typing import Any

from pi0.errors import say_errors_in_one_line
from pi0.registry import load_plugins
from pi0.ript.commands.arguments import command_parser, complain
from pi0.ript.config import ConfigError, TrainConfig, load_config_from_yaml
from pi0.ript.config.command_line import describe_keys, key_comments, key_value_pairs
from pi0.ript.config.loading import default_values, load_config, mixed_precision, say
from pi0.ript.config.yaml_files import parse_yaml, read_yaml
from pi0.ript.environments import LIBERO_SUITES
from pi0.ript.evaluation_settings import EvaluationConfig, check_evaluation, parse_guidances
from pi0.ript.files import flatten
from pi0.ript.policy_settings import PolicySettings
from pi0.ript.published import published_file
from pi0.ript.supervised.settings import ModelSettings

_EXAMPLES = """
examples:
  pi0-eval --policy toy --env metaworld
  pi0-eval --policy pi0/ript/output/ript/policy --env metaworld --episodes 50 --videos 4
  pi0-eval --policy base --compare improved --env libero_object --episodes 50 --guidance 2
  pi0-eval --policy checkpoints/pi0_libero --env libero_10 --tasks 0 8 --device cuda
  pi0-eval --policy lerobot/pi0_libero_finetuned --suites all
  pi0-eval --config_path=configs/published/openpi_pi05_libero.yaml --policy_path=DIRECTORY
  pi0-eval --policy improved --env metaworld --guidance 1,2,3 --states validation
  pi0-eval --policy improved --env metaworld --recording-root data/rollouts
  pi0-eval --nproc-per-node 2 --policy base --env libero_spatial
  pi0-eval --config_path=configs/rollout_config.json --policy.pretrained_path=outputs/train/sft_pi0

The states are held out: training never uses them (LIBERO: the benchmark's own 50 per task). Intervals are
95%: Wilson's for a rate, Newcombe's for the difference of two policies on the same states. One seed gives the
same episodes, whatever the number of processes. Interrupted and started again, the command runs only those
that were not finished. Several guidances are tried on validation states (unless --states says others), which
are neither trained on nor reported, and the table says which one to take.

--suites evaluates LIBERO's suites as published (stock rendering, their images and deadlines) one after the
other; all: libero_spatial, libero_object, libero_goal and libero_10. First it tells a plan: memory and hours.
A policy that has a file in configs/published takes its settings from there, and what was published stands
beside what is found.

exit codes: 0 done; 1 failed; 2 unusable arguments; 130 interrupted
"""


_FLAGS = {
    "policy_path": "--policy",
    "compare": "--compare",
    "task.benchmark_name": "--env",
    "suites": "--suites",
    "task.task_names": "--tasks",
    "task.num_workers": "--num-workers",
    "eval.rollouts_per_task": "--episodes",
    "eval.first_state": "--first-state",
    "eval.states": "--states",
    "eval.cfg_guidance_scale": "--guidance",
    "eval.n_video": "--videos",
    "eval.recording_root": "--recording-root",
    "policy.embodiment": "--embodiment",
    "policy.n_action_steps": "--n-action-steps",
    "policy.statistics_path": "--statistics",
    "policy.extra_delta_transform": "--extra-delta-transform",
    "seed": "--seed",
    "device": "--device",
    "output_dir": "--output",
}
"""The option that is short for a key."""
_DEFAULTS = {"eval.rollouts_per_task": 20, "output_dir": f"{TrainConfig.output_dir}/eval"}
"""Of options, where a file has others."""
_REQUIRED = ("policy_path", "task.benchmark_name")
_SEVERAL = {"--env": "ENV", "--suites": "SUITE", "--tasks": "TASK"}
"""Options of one word or more, with what a word is."""
_TRAINING = default_values(ModelSettings).keys() - default_values(PolicySettings).keys() - {"type"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = _parser()
    say_errors_in_one_line(parser.prog)  # a lost process, a full disk
    options, rest = parser.parse_known_args(arguments)
    try:
        load_plugins(options.plugins)
        config = _read(parser, options, rest)
        load_plugins(config.plugins)
        config.policy.dtype = mixed_precision(config.policy.dtype)
        check_evaluation(config)
        _evaluate(config)
    except ValueError as error:
        if os.environ.get("RANK", "0") == "0":
            complain(parser.prog, _in_own_words(options, error))
        return 2
    except KeyboardInterrupt:
        sys.stderr.write(f"{parser.prog}: interrupted; the same command goes on from the finished episodes\n")
        return 130
    return 0


def check_eval_command(arguments: Sequence[str]) -> None:
    """End the process where `main` will, with the same message: at --help, and at what is wrong.

    More in `pi0.ript.config.command_line.check_command_line`.
    """
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    try:
        config = _read(parser, options, rest)
        if not (options.plugins or config.plugins):
            check_evaluation(config)
    except ValueError as error:
        sys.exit(complain(parser.prog, _in_own_words(options, error)))


def _evaluate(config: EvaluationConfig) -> None:
    from pi0.ript.policy_evaluation import evaluate_policy  # torch comes with it
    from pi0.ript.results import RunInUseError

    try:
        evaluate_policy(config)
    except RunInUseError as error:
        raise ConfigError(str(error)) from error


def _read(
    parser: argparse.ArgumentParser, options: argparse.Namespace, rest: Sequence[str]
) -> EvaluationConfig:
    """Return what the command line asks for; what is wrong is a ConfigError."""
    options = argparse.Namespace(**vars(options))  # it is taken apart
    make = _of_options if options.config_path is None else _of_file
    return make(parser, options, rest)


def _in_own_words(options: argparse.Namespace, error: ValueError) -> str:
    """Return a message that speaks of options, unless a file says what is wanted."""
    return _with_flags(str(error)) if options.config_path is None else str(error)


def _parser() -> argparse.ArgumentParser:
    parser = command_parser(
        "pi0-eval",
        "Evaluate a policy on held-out initial states: k/n per task and overall with intervals, "
        "evaluation.json, a video and report.html; with --compare a paired table and comparison.json.",
        f"{_EXAMPLES}\nkeys of a file, with their defaults:\n{describe_keys(EvaluationConfig)}",
    )
    add, defaults = parser.add_argument, default_values(EvaluationConfig) | _DEFAULTS
    in_file = "JSON or YAML with the sections policy, task and eval; then other options are keys, --key=value"
    add("--config_path", metavar="FILE", help=in_file)
    for key, flag in _FLAGS.items():
        options: dict[str, Any] = {"metavar": flag.removeprefix("--").upper()}
        if flag in _SEVERAL:
            options = {"metavar": _SEVERAL[flag], "nargs": "+"}
        elif flag == "--extra-delta-transform":
            options = {"action": argparse.BooleanOptionalAction}
        default = "" if defaults[key] is None or key in _REQUIRED else f" (default {defaults[key]})"
        add(flag, dest=key, help=_meaning(key) + default, **options)
    more = "another key of the section task, or of a plugin's environment, such as num_parallel_envs=4"
    add("--env-option", metavar="KEY=VALUE", action="append", default=[], help=f"{more}; may be repeated")
    plugins = "import a package that adds configurations or environments; may be repeated"
    add("--plugins", metavar="PACKAGE", action="append", default=[], help=plugins)
    return parser


def _meaning(key: str) -> str:
    """Return the comment behind a key."""
    *sections, name = key.split(".")
    section = reduce(getattr, sections, EvaluationConfig())
    return key_comments(type(section))[name]


def _of_file(
    parser: argparse.ArgumentParser, options: argparse.Namespace, rest: Sequence[str]
) -> EvaluationConfig:
    """Return what a file and new values for its keys ask for; what is wrong is a ConfigError."""
    values = vars(options)
    path, plugins = values.pop("config_path"), values.pop("plugins")
    keys = [key for key, flag in _FLAGS.items() if flag == f"--{key}"]  # are both, and mean the same
    rest = [*rest, *(f"--{key}={_text(value)}" for key in keys if (value := values.pop(key)) is not None)]
    if changed := [key for key, value in values.items() if value != parser.get_default(key)]:
        key = changed[0] if changed[0] in _FLAGS else "task.KEY"
        flag = _FLAGS.get(changed[0], "--env-option")
        raise ConfigError(f"{flag}: with --config_path, options are keys of the file; write --{key}=VALUE")
    overrides, unused = key_value_pairs(rest), {"of training": [f"policy.{key}" for key in _TRAINING]}
    config = load_config_from_yaml(path, overrides, schema=EvaluationConfig, without_effect=unused)
    config.plugins = list(dict.fromkeys([*config.plugins, *plugins]))
    return config


def _text(value: str | list[str]) -> str:
    """Return the value of a key that an option's words are."""
    if isinstance(value, str):
        return value
    return value[0] if value[0].startswith("[") else f"[{','.join(value)}]"


def _of_options(
    parser: argparse.ArgumentParser, options: argparse.Namespace, rest: Sequence[str]
) -> EvaluationConfig:
    """Return what options ask for; what does not fit together is a ConfigError."""
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    values = {key: value for key, value in vars(options).items() if key in _FLAGS and value is not None}
    if "," in str(values.get("eval.cfg_guidance_scale", "")):
        values["guidances"] = _several(values.pop("eval.cfg_guidance_scale"))
    _choose_environment(values)
    numbers = {
        key for key, value in default_values(EvaluationConfig).items() if isinstance(value, int | float)
    }
    values |= {key: parse_yaml(values[key], _FLAGS[key]) for key in numbers & values.keys()}
    needed = [key for key in _REQUIRED if key != "task.benchmark_name" or "suites" not in values]
    if missing := [_FLAGS[key] for key in needed if key not in values]:
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
        settings[key if settings is values else name] = parse_yaml(value, "--env-option")
    config = load_config(
        [("command line", _DEFAULTS), *_published_settings(values), ("command line", values)],
        EvaluationConfig,
    )
    config.options.update(others)
    config.plugins = options.plugins
    return config


def _choose_environment(values: dict[str, Any]) -> None:
    """Turn the words of --env into one environment, or into the suites that they are."""
    names = values.pop("task.benchmark_name", None)
    if names is not None:
        key, value = ("task.benchmark_name", names[0]) if len(names) == 1 else ("suites", names)
        if key in values:
            raise ConfigError("--env: names suites too; leave out --env or --suites")
        values[key] = value


def _published_settings(values: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return the settings of a published policy's file, but for the suites, which the options choose.

    The file names the policy's revision, unless the options do.
    """
    names = values.get("suites") or [values["task.benchmark_name"]]
    file = published_file(values["policy_path"]) if {*names} <= {"all", *LIBERO_SUITES} else None
    if file is None:
        return []
    settings = flatten(read_yaml(file))
    if "@" not in values["policy_path"]:
        values["policy_path"] = settings["policy_path"]
    settings = {key: value for key, value in settings.items() if key not in ("suites", *values)}
    shown = ", ".join(f"{key}={value}" for key, value in settings.items() if key != "published")
    say(f"settings of {file.name}: {shown}")
    return [(file.name, settings)]


def _several(text: str) -> list[float]:
    try:
        return list(parse_guidances(text))
    except ValueError as error:
        raise ConfigError(f"--guidance: {error}") from error


def _with_flags(message: str) -> str:
    """Return a message that speaks of options and not of the keys that they are short for."""
    for key, flag in (_FLAGS | {"guidances": "--guidance"}).items():
        end = r"(?!\w)" if "." in key else "(?=[:=])"  # a single word may be meant as one
        message = re.sub(rf"(?<![\w.]){re.escape(key)}{end}", flag, message)
    return re.sub(r"\btask\.(\w+)", r"--env-option \1=...", message)


if __name__ == "__main__":
    sys.exit(main())
