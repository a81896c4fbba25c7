"""The command line of `pi0-train`: a JSON or YAML file, and a new value for any key."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace

from pi0.registry import load_plugins
from pi0.ript.config import ConfigError, load_config_from_yaml
from pi0.ript.config.command_line import describe_keys, key_value_pairs
from pi0.ript.config.loading import (
    engine,
    load_config,
    mixed_precision,
    parse_overrides,
    say_device,
    use_local_storage,
)
from pi0.ript.supervised.checks import check_settings, validate_settings
from pi0.ript.supervised.settings import SupervisedSettings

_EXAMPLES = """
examples:
  pi0-train --config_path=configs/sft_pi0_config.json
  pi0-train --config_path=configs/sft_pi0_config.json --policy.pretrained_path=lerobot/pi0 --steps=10000
  pi0-train --config_path=configs/value_pretrain_config.json --exp_name=value --val_freq=500
  pi0-train --nproc-per-node 2 --config_path=configs/pi0_finetune_config.json --policy.advantage_threshold=0.1

A run is a directory of outputs/train: exp_name, or its time and policy.type. The same command with --resume,
or with the same exp_name, goes on where it stopped. Keys are those below; OpenTau's and GR00T's names for
them (policy.pretrained_path, env.type, eval.n_episodes, max_steps, ...) are taken with a notice.

exit codes: 0 done; 1 failed; 2 unusable settings or data; 128 + n stopped by signal n, with a checkpoint
"""


def parse_settings(arguments: Sequence[str] | None = None) -> SupervisedSettings:
    """Return the checked settings that the command line asks for.

    What is wrong is written to stderr, all of it, and ends the process with exit code 2.
    """
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    try:
        settings = _read(options, rest)
        load_plugins(settings.plugins)
        settings.policy.dtype = mixed_precision(settings.policy.dtype)
        settings.distributed.strategy = engine(settings.distributed.strategy)
        validate_settings(settings)
        use_local_storage(settings.storage.local)
        say_device(settings.device, settings.distributed.backend)
    except ValueError as error:
        sys.stderr.write(f"{parser.prog}: error: {error}\n")
        sys.exit(2)
    return settings


def check_train_command(arguments: Sequence[str]) -> None:
    """End the process where `parse_settings` will, with the same message: at --help, and at what is wrong.

    More in `pi0.ript.config.command_line.check_command_line`.
    """
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    try:
        settings = _read(options, rest)
        if not settings.plugins:
            check_settings(settings)
    except ValueError as error:
        sys.stderr.write(f"{parser.prog}: error: {error}\n")
        sys.exit(2)


def _read(options: argparse.Namespace, rest: Sequence[str]) -> SupervisedSettings:
    if options.config_path is None and not rest:
        raise ConfigError("expected a file: --config_path=configs/sft_pi0_config.json; --help has examples")
    settings = read_settings(options.config_path, key_value_pairs(rest))
    return replace(settings, plugins=[*settings.plugins, *options.plugins])


def read_settings(path: str | None, overrides: Sequence[str] = ()) -> SupervisedSettings:
    """Return the settings of a file (None: defaults), with new values for some keys; not checked further."""
    if path is None:
        return load_config([("command line", parse_overrides(overrides))], SupervisedSettings)
    return load_config_from_yaml(path, overrides, schema=SupervisedSettings)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pi0-train",
        description="Train a pi0 policy or a value function on data sets: SFT, advantage-conditioned "
        "fine-tuning, value training.",
        usage="%(prog)s --config_path=FILE [--resume] [--overwrite] [--key=value ...]",
        epilog=f"{_EXAMPLES}\nkeys, with their defaults:\n{describe_keys(SupervisedSettings)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--config_path", metavar="FILE", help="JSON or YAML, such as configs/sft_pi0_config.json")
    plugins = "import a package that adds configurations or environments; may be repeated"
    add("--plugins", metavar="PACKAGE", action="append", default=[], help=plugins)
    return parser
