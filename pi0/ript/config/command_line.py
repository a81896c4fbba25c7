"""The command line of the scripts: a YAML file, a profile, and a new value for any key."""

import argparse
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from itertools import batched, takewhile
from pathlib import Path
from typing import Any

from pi0.errors import say_errors_in_one_line
from pi0.registry import load_plugins
from pi0.ript.config.loading import (
    PROFILES,
    engine,
    load_config_from_yaml,
    mixed_precision,
    say,
    say_device,
    use_local_storage,
)
from pi0.ript.config.schema import ConfigError, TrainConfig
from pi0.ript.config.validation import check_config
from pi0.ript.config.yaml_files import CONFIGS, read_yaml
from pi0.ript.envs.base import did_you_mean

_EXIT_CODES = """exit codes: 0 done; 1 stopped by an error; 2 unusable configuration; 130, 143, 138 stopped by
SIGINT, SIGTERM, SIGUSR1"""


@dataclass(frozen=True)
class Algorithm:
    """What a configuration file can be for: its settings, and their checks."""

    schema: type
    check: Callable[[Any], None]
    """Raises a ConfigError that tells what is wrong at first sight."""
    example: str
    """A configuration that is quick to run."""


RIPT = Algorithm(TrainConfig, check_config, "pi0/ript/config/debug_train_pi0.yaml")


def parse_config(
    argv: Sequence[str] | None = None,
    *,
    resumes: bool = False,
    algorithms: Mapping[str, Algorithm] | None = None,
) -> Any:
    """Return the checked configuration that the command line asks for: a `TrainConfig`.

    A file whose key `algorithm` names one of `algorithms` has that one's settings instead.

    A script that has no checkpoints to resume from says so with `resumes`; asking it to is an error then.

    Overrides are written `algo.lr=2e-5`, `--algo.lr=2e-5`, `--algo.lr 2e-5` or `--override algo.lr=2e-5`.
    What is wrong is written to stderr, all of it, and ends the process with exit code 2.
    """
    known = {"ript": RIPT, **(algorithms or {})}
    parser = _parser(known)
    say_errors_in_one_line(parser.prog)
    arguments, rest = parser.parse_known_args(argv)
    try:
        chosen, config = _read(arguments, rest, known, parser.prog, resumes)
        _load_plugins(config)
        config.policy.dtype = mixed_precision(config.policy.dtype)
        config.distributed.strategy = engine(config.distributed.strategy)
        chosen.check(config)
        from pi0.ript.config.loadable import validate_policy  # torch comes with it

        validate_policy(config)
        use_local_storage(config.storage.local)
        say("✓ 配置验证通过 / configuration valid")
        say_device(config.device, config.distributed.backend)
    except ConfigError as error:
        sys.stderr.write(f"{parser.prog}: error: {error}\n")
        sys.exit(2)
    return config


def check_command_line(
    argv: Sequence[str], prog: str, *, algorithms: Mapping[str, Algorithm] | None = None
) -> None:
    """End the process where `parse_config` will, with the same message: at --help, and at what is wrong.

    Loads no torch, so that a launcher can ask before it starts processes. What a plugin adds is known to
    those that import it: where there are some, values are left to them, and only keys and types are checked.

    Args:
        argv: The command line of a script that resumes.
        prog: What messages call it.
        algorithms: As in `parse_config`.
    """
    known = {"ript": RIPT, **(algorithms or {})}
    arguments, rest = _parser(known, prog).parse_known_args(argv)
    try:
        chosen, config = _read(arguments, rest, known, prog, resumes=True)
        if not config.plugins:
            chosen.check(config)
    except ConfigError as error:
        sys.stderr.write(f"{prog}: error: {error}\n")
        sys.exit(2)


def _read(
    arguments: argparse.Namespace,
    rest: Sequence[str],
    known: Mapping[str, Algorithm],
    script: str,
    resumes: bool,
) -> tuple[Algorithm, Any]:
    """Return what the file is for, and its configuration with the new values of the command line."""
    if arguments.config_path is None:
        example = list(known.values())[-1].example
        raise ConfigError(f"expected a YAML file, for example: --config_path {example}")
    chosen = _algorithm(arguments.config_path, known)
    overrides = [*arguments.override, *key_value_pairs(rest)]
    if arguments.resume is not None and "=" in arguments.resume:  # `--resume algo.lr=2e-5`
        overrides.append(arguments.resume)
        arguments.resume = "auto"
    if arguments.resume is not None:
        overrides += _resume(arguments.resume, chosen, script, resumes)
    if arguments.plugins:
        overrides.append(f"plugins=[{','.join(arguments.plugins)}]")
    config = load_config_from_yaml(arguments.config_path, overrides, arguments.profile, schema=chosen.schema)
    say(f"✓ 配置文件加载成功 / configuration loaded: {arguments.config_path}")
    if not resumes and getattr(config, "resume", None) is not None:
        if config.resume != "auto" or any(key.startswith("resume=") for key in overrides):
            raise ConfigError(_no_checkpoints(script))
        # A file serves several rungs: it may say how those go on that can.
        say(f"resume: the file's auto has no effect, {script} keeps no checkpoints")
        config.resume = None
    return chosen, config


def _algorithm(path: str, known: Mapping[str, Algorithm]) -> Algorithm:
    values = read_yaml(Path(path))
    if "dataset_mixture" in values:
        raise ConfigError(f"{path}: is a configuration of supervised training; use pi0-train")
    name = str(values.get("algorithm", "ript"))
    try:
        return known[did_you_mean("algorithm", name, known)]
    except ValueError as error:
        remedy = "; pi0-recap runs it" if name == "recap" else ""
        raise ConfigError(f"{path}: {error}{remedy}") from error


def _resume(value: str, chosen: Algorithm, script: str, resumes: bool) -> list[str]:
    """Return `--resume` as an override; an algorithm that always goes on where it stopped needs none."""
    if not resumes:
        raise ConfigError(_no_checkpoints(script))
    if "resume" in {field.name for field in fields(chosen.schema)}:
        return [f"resume={value}"]
    if value != "auto":
        raise ConfigError(f"--resume {value}: this run goes on by itself; leave the path out")
    return []


def _no_checkpoints(script: str) -> str:
    return f"resume: {script} keeps no checkpoints; leave it out, or use pi0/ript/scripts/train_ript_pi0.py"


def _parser(known: Mapping[str, Algorithm], prog: str | None = None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s --config_path FILE [--profile NAME] [--resume [PATH]] [key=value ...]",
    )
    algorithms = {name: known[name] for name in reversed(list(known))}  # what the script adds comes first
    examples = [f"  {parser.prog} --config_path {algorithm.example}" for algorithm in algorithms.values()]
    keys = [
        f"keys of {name}, with their defaults:\n{describe_keys(algorithm.schema)}"
        for name, algorithm in algorithms.items()
    ]
    parser.epilog = "\n\n".join(["\n".join(["examples:", *examples]), _EXIT_CODES, *keys])
    profiles = ", ".join(sorted(file.stem for file in PROFILES.glob("*.yaml")))
    configs = ", ".join(sorted(file.name for file in CONFIGS.glob("*.yaml")))
    add = parser.add_argument
    add("--config_path", metavar="FILE", help=f"YAML file; in pi0/ript/config: {configs}")
    add("--profile", metavar="NAME", help=f"{profiles}: a set of keys that replace the file's")
    add(
        "--resume", metavar="PATH", nargs="?", const="auto", help="continue; no PATH: newest valid checkpoint"
    )
    add(
        "--plugins",
        metavar="PACKAGE",
        action="append",
        help="import a package that adds environments, configurations or algorithms; may be repeated",
    )
    add(
        "--override",
        metavar="key=value",
        nargs="+",
        action="extend",
        default=[],
        help="the same as key=value",
    )
    return parser


def _load_plugins(config: Any) -> None:
    try:
        load_plugins(config.plugins)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def key_value_pairs(rest: Sequence[str]) -> list[str]:
    """Return the arguments that argparse does not know as "key=value".

    A flag alone is true. Several words behind one are names and values of a section, as GR00T writes them
    (`--color-jitter-params brightness 0.3 contrast 0.4`).
    """
    overrides, waiting = [], list(rest)
    while waiting:
        word = waiting.pop(0)
        if "=" in word:
            overrides.append(word)
            continue
        if not word.startswith("--"):
            raise ConfigError(f"expected key=value, found {word!r}; --help lists the keys")
        values = list(takewhile(lambda text: not text.startswith("--") and "=" not in text, waiting))
        del waiting[: len(values)]
        if len(values) < 2:
            overrides.append(f"{word}={values[0] if values else 'true'}")
        elif len(values) % 2:
            raise ConfigError(f"expected {word} VALUE, or names and values, found {values}")
        else:
            overrides += [f"{word}.{key}={value}" for key, value in batched(values, 2)]
    return overrides


def key_comments(schema: type) -> dict[str, str]:
    """Return the comments behind the fields of a dataclass, by name."""
    sources = "".join(inspect.getsource(base) for base in schema.__mro__[-2::-1])
    return dict(re.findall(r"^    (\w+):.*?  # (.*)$", sources, re.MULTILINE))


def describe_keys(schema: type = TrainConfig, prefix: str = "", defaults: Any = None) -> str:
    """Return a line per key: name, default (of `defaults`, if not the schema's), and its comment there."""
    defaults = schema() if defaults is None else defaults
    comments, lines = key_comments(schema), []
    for field, value in ((field, getattr(defaults, field.name)) for field in fields(schema)):
        if is_dataclass(value):
            doc = textwrap.shorten(type(value).__doc__ or "", 100)
            lines += [
                "",
                f"{prefix}{field.name}: {doc}",
                describe_keys(type(value), f"{prefix}{field.name}.", value),
            ]
        else:
            shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else value
            lines.append(f"  {f'{prefix}{field.name}={shown}':<44} {comments.get(field.name, '')}".rstrip())
    return "\n".join(lines)
