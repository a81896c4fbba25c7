"""The directory of a run, which one process at a time may write to."""

import fcntl
import os
import socket
from pathlib import Path
from typing import Any, TextIO

from pi0.ript.checkpoint.resuming import find_same_run
from pi0.ript.results import new_run_directory

_LOCK = ".lock"
_locks: dict[Path, TextIO] = {}


class RunInUseError(RuntimeError):
    """Another process is writing to the run's directory."""


def open_run_directory(config: Any) -> tuple[Path, Path | None]:
    """Return the run's directory, from now on this process's own, and the checkpoint to continue from.

    Without `config.resume`, or if no run with checkpoints left it, the directory is a new, empty one (what
    was there is moved aside), and the checkpoint None unless a path was given.

    Args:
        config: With `output_dir`, `exp_name` and `resume`.

    Raises:
        RunInUseError: A live process has the directory.
        SnapshotError: The checkpoint asked for, or every one of the run, is not valid.
        ChangedSettingsError: It was made with settings that would have another result.
    """
    path = Path(config.output_dir) / config.exp_name
    is_ours = (path / _LOCK).exists()  # another rung's run is moved aside, --resume or not
    if is_ours:
        lock_directory(path)
    if config.resume is None or not is_ours:
        new_run_directory(path)
    lock_directory(path)
    return path, find_same_run(path, config, config.resume)


def lock_directory(path: Path) -> None:
    """Make a directory this process's own until it ends; the kernel frees it, however that happens.

    Raises:
        RunInUseError: A live process has it.
    """
    path.mkdir(parents=True, exist_ok=True)
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
