"""Starts a command's script: with this Python, under torchrun, or under accelerate.

    pi0-train --nproc-per-node 2 --config_path configs/sft_pi0_config.json
    python -m pi0.ript.commands.launch train --nproc-per-node 2 --config_path ...
    torchrun --standalone --nproc-per-node=2 pi0/ript/scripts/train.py --config_path ...

All three run the same; docs/commands.md says how to add a command. The script is found without importing it,
so that nothing heavy is loaded twice, and what is wrong with its words is told before anything is started.
"""

import argparse
import contextlib
import importlib
import importlib.util
import io
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import yaml

from pi0.ript.commands.arguments import complain, whole_number
from pi0.ript.commands.supervise import supervise


@dataclass(frozen=True)
class Command:
    """A console command, `pi0-<name>`."""

    script: str
    """Module that is run as a script."""
    is_parallel: bool
    """Can several processes run it together?"""
    check: str | None = None
    """module:function, called with the script's words before any process is started: it ends this one at
    --help and at what is wrong at first sight, and loads no torch. None: the script's own process does."""


COMMANDS = {
    "train": Command(
        "pi0.ript.scripts.train",
        is_parallel=True,
        check="pi0.ript.supervised.command_line:check_train_command",
    ),
    "recap": Command("train_ript_pi0_final", is_parallel=True, check="pi0.ript.recap:check_recap_command"),
    "eval": Command(
        "pi0.ript.commands.evaluate", is_parallel=True, check="pi0.ript.commands.evaluate:check_eval_command"
    ),
    "doctor": Command("pi0.ript.commands.doctor", is_parallel=False),
    "label": Command("pi0.ript.commands.label", is_parallel=False),
    "advantage": Command("pi0.ript.commands.advantage", is_parallel=False),
    "dataset-viz": Command("pi0.ript.commands.dataset_viz", is_parallel=False),
    "export": Command("pi0.ript.commands.export", is_parallel=False),
}
"""A new command takes a line here and one in pyproject.toml."""

_HELP = ("-h", "--help")
_ONE_PROCESS = ("MULTI_CPU", "NO", False)
"""Kinds of which accelerate starts several processes only through MPI; YAML reads an unquoted NO as False."""
_ROOT = Path(__file__).resolve().parents[3]


class LaunchError(ValueError):
    """A script cannot be started as asked; the message says what to do."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `python -m pi0.ript.commands.launch COMMAND ...` and return its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    name = argv[0] if argv else "nothing"
    if name in COMMANDS:
        return run(name, argv[1:])
    usage = f"usage: python -m pi0.ript.commands.launch COMMAND ...; commands: {', '.join(COMMANDS)}\n"
    if name in _HELP:
        sys.stdout.write(usage)
        return 0
    sys.stderr.write(f"{usage}launch: error: expected one of these commands, found {name!r}\n")
    return 2


def run(name: str, argv: Sequence[str] | None = None) -> int:
    """Run a command with its arguments (None: this process's) and return its exit code.

    The code is the script's own, and 128 + n when signal n ended it or stopped the run (Ctrl+C: 130).
    torchrun and accelerate turn every other code of their processes into 1. Unusable arguments give 2.
    """
    argv = sys.argv[1:] if argv is None else argv
    if name == "recap" and any(word.partition("=")[0] == "--status" for word in argv):
        return _show_status(argv)
    if name == "recap" and "--plan" in argv:
        from pi0.ript.commands.plan import main as show_plan

        return show_plan(argv)
    try:
        arguments = launch_arguments(name, argv)
    except LaunchError as error:
        return complain(f"pi0-{name}", error)
    if (code := _code_of_check(COMMANDS[name], arguments)) is not None:
        return code
    print(f"Executing: {shlex.join(arguments)}", flush=True)  # noqa: T201
    return supervise(arguments, _environment())


def _show_status(argv: Sequence[str]) -> int:
    """Print what the runs in a directory are doing, `pi0-recap --status DIR`, and return the exit code."""
    from pi0.ript.run_status import status_lines

    words = [part for word in argv for part in word.split("=", 1)] if len(argv) == 1 else argv
    try:
        if len(words) != 2 or words[0] != "--status":
            raise LaunchError(f"--status: expected it alone with a directory, found {shlex.join(argv)!r}")
        for line in status_lines(Path(words[1])):
            print(line)  # noqa: T201
    except ValueError as error:
        return complain("pi0-recap", error)
    return 0


def launch_arguments(name: str, argv: Sequence[str]) -> list[str]:
    """Return the command line that runs a command; what is not the launcher's own goes on verbatim.

    Words after the first `--` all belong to the script. `--help` prints the launcher's own options and then
    asks the script for its.

    Raises:
        LaunchError: The options do not fit the command, or a file is missing.
    """
    command, argv = COMMANDS[name], list(argv)
    end = argv.index("--") if "--" in argv else len(argv)
    parser = _parser(name)
    options, rest = parser.parse_known_args(argv[:end])
    script = [str(script_path(command.script)), *rest, *argv[end + 1 :]]
    python, config, count = sys.executable, options.accelerate_config, options.nproc_per_node
    if any(word in _HELP for word in rest):
        if command.is_parallel:
            print(parser.format_help(), flush=True)  # noqa: T201
        return [python, *script]
    if not command.is_parallel and (config is not None or count > 1):
        raise LaunchError("runs in one process; leave out --accelerate-config and --nproc-per-node")
    if config is not None:
        _require_accelerate_config(config)
        return [python, "-m", "accelerate.commands.launch", "--quiet", "--config_file", config, *script]
    if count > 1:
        # torchrun would die of SIGUSR1, which asks for a checkpoint, and leave its processes behind.
        signals = "--signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}", signals]
        return [python, *torchrun, *script]
    return [python, *script]


def _code_of_check(command: Command, arguments: Sequence[str]) -> int | None:
    """Return the exit code of a script that need not be started for it, None if it is to be started.

    What a check that passes says is not shown, because the script says it again.
    """
    if command.check is None:
        return None
    module, function = command.check.split(":")
    words = arguments[arguments.index(str(script_path(command.script))) + 1 :]
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            getattr(importlib.import_module(module), function)(words)
    except SystemExit as end:
        sys.stdout.write(said.getvalue())
        return int(end.code or 0)
    return None


def script_path(module: str) -> Path:
    """Return the file of a module, which is not imported."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise LaunchError(f"its script, the module {module}, is missing; install pi0-ript again")
    return Path(spec.origin).resolve()


def _parser(name: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        f"pi0-{name}",
        usage=f"pi0-{name} [launcher options] [--] [options of the script]",
        add_help=False,  # the script has its own
        allow_abbrev=False,  # the script's options are not shortened names of these
    )
    group = parser.add_argument_group("launcher options")
    if name == "recap":
        told = "alone: print what all runs in DIR are doing, of any command, and end"
        group.add_argument("--status", metavar="DIR", help=told)
        group.add_argument("--plan", action="store_true", help="compute what a run takes; --plan --help")
    add = group.add_mutually_exclusive_group().add_argument
    add(
        "--accelerate-config",
        "--accelerate_config",
        metavar="FILE",
        help="run under `accelerate launch --config_file FILE`",
    )
    add(
        "--nproc-per-node",
        "--nproc_per_node",
        *("--num-gpus", "--num_gpus"),  # GR00T's name
        type=whole_number("a number of processes", 1),
        default=1,
        metavar="N",
        help="run N processes on this machine under torchrun; default: one, without torchrun",
    )
    return parser


def _require_accelerate_config(config: str) -> None:
    if not Path(config).is_file():
        raise LaunchError(
            f"--accelerate-config: no file {config!r}; make one with: accelerate config --config_file "
            f"{config}"
        )
    settings = yaml.safe_load(Path(config).read_text())
    if not isinstance(settings, dict):
        raise LaunchError(f"--accelerate-config: {config!r} is not a configuration of accelerate")
    count, kind = settings.get("num_processes") or 1, settings.get("distributed_type")
    if count > 1 and kind in _ONE_PROCESS and not settings.get("mpirun_config"):
        raise LaunchError(
            f"--accelerate-config: {config!r} asks for {count} processes with distributed_type {kind!r}, of "
            f"which accelerate starts one; use --nproc-per-node {count}, or distributed_type: MULTI_GPU"
        )


def _environment() -> dict[str, str]:
    """Return the script's environment: of several copies of this package, it imports the launcher's."""
    environment = dict(os.environ)
    if (_ROOT / "pyproject.toml").exists():  # a checkout, and not where all packages are
        paths = [str(_ROOT), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    return environment


def __getattr__(name: str) -> Callable[[], int]:
    """Return the function that a console script calls, one for each command."""
    if name in COMMANDS:
        return partial(run, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


if __name__ == "__main__":
    sys.exit(main())
