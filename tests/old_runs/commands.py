"""Run commands one after the other in this process, without the shape checks of the tests.

    python tests/old_runs/commands.py COMMANDS.json OUTCOMES.json

COMMANDS.json is a list of [directory to be in, words of the command]; the first word is a script of the
ladder, or a console command as pyproject.toml names it. OUTCOMES.json gets of each its exit code, what it
printed, and the message that it ended with.
"""

import contextlib
import importlib
import io
import json
import os
import runpy
import sys
import tomllib
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def start(words: list[str]) -> None:
    """Run a command until it ends by itself or with an exception."""
    sys.argv = list(words)
    if words[0].endswith(".py"):
        sys.argv[0] = str(ROOT / words[0])
        runpy.run_path(sys.argv[0], run_name="__main__")
        return
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module, function = scripts[words[0]].split(":")
    launcher = importlib.import_module(module)
    if hasattr(launcher, "COMMANDS"):  # it would start a process, which imports everything again
        runpy.run_module(launcher.COMMANDS[function].script, run_name="__main__", alter_sys=True)
    else:
        sys.exit(getattr(launcher, function)())


def outcome(words: list[str]) -> dict[str, Any]:
    """Return exit code, output and last message of a command."""
    said, complained = io.StringIO(), io.StringIO()
    message: str | None = None
    code: Any = 0
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(complained):
        try:
            start(words)
        except SystemExit as ended:
            code = ended.code or 0
        except Exception as error:  # noqa: BLE001 - as the interpreter would end with it
            message, code = "".join(traceback.format_exception_only(error)).strip(), 1
    if isinstance(code, str):
        message, code = code.strip(), 1
    return {"code": code, "output": said.getvalue() + complained.getvalue(), "message": message}


def main(commands: Path, outcomes: Path) -> None:
    """Run all commands, and write what became of them."""
    made = []
    for directory, words in json.loads(commands.read_text()):
        os.chdir(directory)
        made.append(outcome(words))
    outcomes.write_text(json.dumps(made))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
