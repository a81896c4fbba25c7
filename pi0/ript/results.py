"""What a run leaves behind: its directory, evaluations with videos, and the results in one file."""

import atexit
import fcntl
import os
import shutil
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from pi0 import PI0Policy
from pi0.ript.debugging import note_run
from pi0.ript.evaluate import Evaluation, compare
from pi0.ript.files import FORMAT, read_versioned_json, unused_path, write_json
from pi0.ript.success_table import success_text
from pi0.ript.video import write_grid

_LOCK = ".lock"
_LEASE_S = 120.0  # NFS: 90 s
_locks: dict[Path, TextIO] = {}


class RunInUseError(RuntimeError):
    """Another process is writing to the run's directory."""

    explains_itself = True


class RunGoneError(RuntimeError):
    """The directory of a run is not the one that it began with."""

    explains_itself = True


def new_run_directory(path: str | Path) -> Path:
    """Make an empty directory and return it; what an earlier run left there moves to PATH.1, .2, ...

    From now on it is this process's own, see `lock_directory`.
    """
    path = Path(path)
    lock_directory(path)
    if any(file.name != _LOCK for file in path.iterdir()):
        older = unused_path(path)
        path.rename(older)
        print(f"the earlier run in {path} is now in {older}")  # noqa: T201
        lock_directory(path)
    return path


def lock_directory(path: Path) -> None:
    """Make a directory this process's own until it ends; the kernel frees it, however that happens.

    One that is still empty then is removed: a run that did not begin leaves none.

    Raises:
        RunInUseError: A live process has it.
    """
    path.mkdir(parents=True, exist_ok=True)
    if path in _locks:
        _locks.pop(path).close()
    file = (path / _LOCK).open("a+")
    if not _locked(file):
        file.seek(0)
        owner = file.read().strip()
        file.close()
        raise RunInUseError(
            f"{path} is being written by {owner}; wait for it, or choose another directory or exp_name"
        )
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    _locks[path] = file
    atexit.register(_remove_if_empty, path)
    note_run(path)


def require_own_directory(path: Path) -> None:
    """Raise RunGoneError if the directory that this process has locked was removed or replaced meanwhile."""
    file, lock = _locks.get(path), path / _LOCK
    if file is not None and not (lock.exists() and os.path.samestat(lock.stat(), os.fstat(file.fileno()))):
        raise RunGoneError(
            f"{path}: the run's directory was removed or replaced while the run was going on, with what was "
            "written there; put it back and continue the run, or start it again"
        )


def _locked(file: TextIO) -> bool:
    """Lock a file unless somebody else has it, and return whether it is locked.

    A file server keeps the lock of a machine that died for a while: a process that torchrun has started again
    waits for that.
    """
    is_restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    deadline = time.monotonic() + (_LEASE_S if is_restarted else 0)
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(1)
        else:
            return True


def _remove_if_empty(path: Path) -> None:
    if path.exists() and [file.name for file in path.iterdir()] == [_LOCK]:
        shutil.rmtree(path)


def one_line(row: Mapping[str, Any]) -> str:
    """Return a row of metrics as one line of text."""
    return "  ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items())


def write_evaluation(path: Path, evaluation: Evaluation) -> None:
    """Write PATH.json, and PATH.mp4 with the recorded episodes, if there are any."""
    write_json(path.with_name(f"{path.name}.json"), {"format": FORMAT, **evaluation.to_dict()})
    if evaluation.recorded:
        write_grid(path.with_name(f"{path.name}.mp4"), evaluation.recorded)


def read_evaluation(file: Path) -> Evaluation:
    """Return the evaluation that `write_evaluation` wrote, without recorded episodes."""
    return Evaluation.from_dict(read_versioned_json(file))


def write_results(
    run_dir: Path,
    config: Mapping[str, Any],
    metrics: Sequence[Mapping[str, Any]],
    before: Evaluation,
    after: Evaluation,
    policy: PI0Policy,
) -> None:
    """Write the improved policy, its evaluation and everything in figures (results.json); print the table."""
    policy.save_pretrained(run_dir / "policy")
    write_evaluation(run_dir / "after", after)
    results = {
        "format": FORMAT,
        "config": config,
        "metrics": metrics,
        "before": before.to_dict(),
        "after": after.to_dict(),
        "comparison": asdict(compare(before, after)),
    }
    write_json(run_dir / "results.json", results)
    table = success_text({"before": before, "after": after})
    print(f"{table}\nresults, videos and policy: {run_dir}")  # noqa: T201
