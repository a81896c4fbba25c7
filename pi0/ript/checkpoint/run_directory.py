"""The directory of a run, which one process at a time may write to."""

import fcntl
import os
import socket
from pathlib import Path
from typing import TextIO

from pi0.ript.results import new_run_directory

_LOCK = ".lock"
_locks: dict[Path, TextIO] = {}


class RunInUseError(RuntimeError):
    """Another process is writing to the run's directory."""


def open_run_directory(path: str | Path, resume: str | None = None) -> Path:
    """Make the run's directory this process's own and return it: an empty one, or with `resume` the old one.

    Raises:
        RunInUseError: A live process has it.
    """
    path = Path(path)
    if (path / _LOCK).exists():
        _lock(path)
    if resume is None:
        new_run_directory(path)
    path.mkdir(parents=True, exist_ok=True)
    _lock(path)
    return path


def _lock(path: Path) -> None:
    """Hold the directory's lock until this process ends; the kernel frees it, however that happens."""
    if path in _locks:
        _locks.pop(path).close()
    file = (path / _LOCK).open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        owner = file.read().strip()
        file.close()
        raise RunInUseError(
            f"{path} is being written by {owner}; wait for it, or choose another exp_name"
        ) from None
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    _locks[path] = file
