"""What the cases share: a directory for what they make, a small data set, a small pi0-train, and the verdict.

A case is a script that shows one fault as a user met it. It ends with 0 if the product behaves as it should,
and with 1 if not, saying what is wrong. Run from the root of a checkout: python tests/cases/NAME.py
"""

import contextlib
import io
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.chdir(ROOT)
for name, value in {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "MUJOCO_GL": "egl"}.items():
    os.environ.setdefault(name, value)

WORK = Path(tempfile.mkdtemp(prefix="case-"))
"""Removed at the end."""
WRONG: list[str] = []


def make(name: str = "data", count: int = 4, size: int = 24) -> Path:
    """Write a data set of the tests' episodes, of 3, 4, 5, ... frames; every third is a failure."""
    from test_episodes import make_episode, publish

    return publish(WORK / name, {i: make_episode(i, length=3 + i, size=size) for i in range(count)})


def train_arguments(data: Path, output: str, *more: str) -> list[str]:
    """Return the words of a small pi0-train."""
    return [
        *("--config_path=configs/sft_pi0_config.json", f"dataset_mixture.datasets=[{{root: {data}}}]"),
        *("dataset_mixture.weights=null", "dataset_mixture.action_freq=null", "steps=4", "batch_size=4"),
        *("val_freq=0", "log_freq=1", "save_freq=2", f"output_dir={WORK / output}", "exp_name=run"),
        *("device=cpu", *more),
    ]


def train(data: Path, output: str, *more: str) -> tuple[object, str]:
    """Run pi0-train in this process; return its exit code, or the exception as text, and what it said."""
    from pi0.ript.scripts.train import main

    said, errors = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(errors):
            code: object = main(train_arguments(data, output, *more))
    except SystemExit as end:
        code = end.code
    except Exception as error:  # noqa: BLE001 - a traceback is an outcome
        code = f"traceback: {type(error).__name__}: {error}"
    return code, "\n".join(
        line for line in (said.getvalue() + errors.getvalue()).splitlines() if "%|" not in line
    )


class Started:
    """pi0-train in a process and a group of its own; forked, so that nothing is imported again."""

    def __init__(self, arguments: list[str], log: Path, prepare: Callable[[], None] = lambda: None) -> None:
        """Start it; what it says goes to `log`, and `prepare` runs there before it."""
        import lerobot.datasets.lerobot_dataset  # noqa: F401 - takes seconds

        from pi0.ript.scripts.train import main

        self.pid, self.code = os.fork(), None
        if self.pid == 0:
            os.setsid()
            file = os.open(log, os.O_WRONLY | os.O_CREAT)
            for stream in (1, 2):
                os.dup2(file, stream)
            prepare()
            sys.exit(main(arguments))

    def wait(self, seconds: float, until: Callable[[], bool] = lambda: False) -> int | None:
        """Return the exit code once it has ended, None after that time or as soon as `until` is true."""
        deadline = time.monotonic() + seconds
        while self.code is None and time.monotonic() < deadline and not until():
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
            time.sleep(0.05)
        return self.code

    def kill(self) -> None:
        """End it and its children if it has not ended."""
        if self.code is None:
            os.killpg(self.pid, signal.SIGKILL)
            self.wait(60)


def short(outcome: tuple[object, str]) -> str:
    """Return exit code and last line of an outcome."""
    code, said = outcome
    lines = [line.strip() for line in said.splitlines() if line.strip(" \t\x1b[A")]
    lines = [line for line in lines if "error: " in line] or (lines if code == 0 else [])
    return f"{code!r}: {lines[-1][:300]}" if lines else repr(code)


def check(is_right: bool, what: str) -> None:
    """Print whether something is as it should be, and remember if it is not."""
    print(("right  " if is_right else "WRONG  ") + what)
    if not is_right:
        WRONG.append(what)


def end() -> None:
    """Leave with the verdict."""
    shutil.rmtree(WORK, ignore_errors=True)
    print(f"{len(WRONG)} wrong" if WRONG else "all right")
    sys.stdout.flush()
    os._exit(1 if WRONG else 0)
