"""A command with all processes that it starts: where its main process is, and how it is killed.

Every process of the tree gets a `sitecustomize` that writes the main thread's stack to a file at SIGUSR2. So
a stack can be read from outside, at any moment, and nothing of the product is changed for it.
"""

import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

_HOOK = """\
import faulthandler, os, signal
signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # when Python takes the handler below down
_stacks = open(os.path.join(os.environ["PI0_STACKS"], str(os.getpid())), "w")
faulthandler.register(signal.SIGUSR2, file=_stacks, all_threads=False)
"""
_FRAME = re.compile(r'File "(?P<file>[^"]+)", line \d+ in (?P<function>\S+)')
_ANSWER_S, _QUIET_S = 0.5, 0.004
_POLL_S = 0.2  # a look at all processes costs milliseconds
Frame = tuple[str, str]
"""File and function."""


class ProcessTree:
    """A command that runs, with the processes that it started."""

    def __init__(self, words: Sequence[str], directory: Path, environment: Mapping[str, str], log: Path):
        """Start it in a directory; what it says is appended to the log."""
        self._stacks = Path(tempfile.mkdtemp(prefix="stacks-"))
        (self._stacks / "sitecustomize.py").write_text(_HOOK)
        paths = os.pathsep.join(filter(None, [str(self._stacks), environment.get("PYTHONPATH")]))
        with log.open("a") as file:
            self.root = subprocess.Popen(
                words,
                cwd=directory,
                env={**environment, "PYTHONPATH": paths, "PI0_STACKS": str(self._stacks)},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._seen: dict[int, psutil.Process] = {}
        self.members()

    def members(self) -> list[psutil.Process]:
        """Return the processes that are alive, also those whose parents are gone."""
        # Whoever is left when the command is gone may still start others.
        parents = [psutil.Process(self.root.pid)] if self.root.poll() is None else [*self._seen.values()]
        for process in parents:
            try:
                self._seen |= {child.pid: child for child in [process, *process.children(recursive=True)]}
            except psutil.NoSuchProcess:
                continue
        self._seen = {pid: process for pid, process in self._seen.items() if _is_alive(process)}
        return list(self._seen.values())

    def main(self) -> psutil.Process:
        """Return the process that the work begins in: the command, or what it only looks after.

        The pi0-* commands look after a process that has a group of its own, as torchrun's ranks have, too.
        """
        for child in self.members():
            is_apart = _parent(child) == self.root.pid and _group(child) == child.pid
            if is_apart and "RANK" not in _environment(child):
                return child
        return psutil.Process(self.root.pid)

    def ranks(self) -> list[psutil.Process]:
        """Return the training processes by rank: torchrun's children, or the main process."""
        main = self.main()
        children = [x for x in self.members() if _parent(x) == main.pid and "RANK" in _environment(x)]
        return sorted(children, key=lambda x: int(_environment(x)["RANK"])) or [main]

    def stack(self, process: psutil.Process) -> list[Frame]:
        """Return the main thread's frames, innermost first; none of a process that has just started."""
        file = self._stacks / str(process.pid)
        if not file.exists():
            return []
        before = file.stat().st_size
        process.send_signal(signal.SIGUSR2)
        size, deadline = before, time.monotonic() + _ANSWER_S
        while time.monotonic() < deadline:
            time.sleep(_QUIET_S)
            now = file.stat().st_size
            if now == size > before:
                break
            size = now
        return [(x["file"], x["function"]) for x in _FRAME.finditer(file.read_text()[before:])]

    def kill(self, processes: Sequence[psutil.Process]) -> None:
        """Kill processes (SIGKILL) at once."""
        for process in processes:
            if _is_alive(process):
                process.kill()

    def wait(self, timeout_s: float, also: Callable[[], bool] | None = None, poll_s: float = _POLL_S) -> bool:
        """Return whether all processes are gone before the time is over, or before `also` is true."""
        deadline = time.monotonic() + timeout_s
        while self.members():
            if time.monotonic() > deadline or (also is not None and also()):
                return False
            time.sleep(poll_s)
        self.root.wait()
        return True


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _parent(process: psutil.Process) -> int | None:
    try:
        return process.ppid()
    except psutil.NoSuchProcess:
        return None


def _group(process: psutil.Process) -> int | None:
    try:
        return os.getpgid(process.pid)
    except ProcessLookupError:
        return None


def _environment(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return {}
