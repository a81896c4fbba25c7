"""Runs a process to its end and leaves nothing behind: signals are handed on, and waited for.

The process has a group of its own, so that Ctrl+C in a terminal reaches it once, from here, and not a second
time from the terminal. A launcher that dies of a signal (accelerate with one process does) leaves its own
processes behind unasked: those get the signal from here then, and are waited for too.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from types import FrameType

import psutil

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1)
_SAME_REQUEST_SECONDS = 2.0  # `timeout` signals a process and its group, so that one request arrives twice
_GRACE_SECONDS = 600.0  # for processes that outlive their parent: a large checkpoint is written in it


def supervise(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Return the exit code of a process; 128 + n if signal n ended it, or arrived here and it failed.

    Reading from a terminal gives the process an end of file, since the terminal is the caller's.
    """
    forwarder = _Forwarder()
    previous = {number: signal.signal(number, forwarder.receive) for number in _SIGNALS}
    try:
        process = subprocess.Popen(
            arguments,
            env=environment,
            stdin=subprocess.DEVNULL if os.isatty(0) else None,
            process_group=0,
        )
        forwarder.begin(psutil.Process(process.pid))
        code = process.wait()
        forwarder.finish()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if code != 0 and forwarder.first is not None:
        return 128 + forwarder.first
    return 128 - code if code < 0 else code


class _Forwarder:
    """Hands signals on to a process, and to its children once it has left them."""

    def __init__(self) -> None:
        self.first: int | None = None
        self._received: list[int] = []
        self._last = (0, -_SAME_REQUEST_SECONDS)
        self._targets: list[psutil.Process] = []
        self._children: dict[int, psutil.Process] = {}

    def receive(self, number: int, _frame: FrameType | None) -> None:
        """Handle a signal."""
        now = time.monotonic()
        if number == self._last[0] and now - self._last[1] < _SAME_REQUEST_SECONDS:
            return
        self._last = number, now
        self.first = self.first or number
        self._received.append(number)
        self._send(number)

    def begin(self, process: psutil.Process) -> None:
        """Hand on what arrives from now on, and what arrived while the process was started."""
        self._targets = [process]
        for number in self._received:
            self._send(number)

    def finish(self) -> None:
        """Return when the children that the process left are gone; it is gone already."""
        self._targets = [child for child in self._children.values() if _is_alive(child)]
        for number in self._received[-1:]:
            self._send(number)
        deadline = time.monotonic() + _GRACE_SECONDS
        while left := [child for child in self._children.values() if _is_alive(child)]:
            if time.monotonic() > deadline:
                for child in left:
                    sys.stderr.write(f"process {child.pid} has not ended in {_GRACE_SECONDS:g} s; killed\n")
                    child.kill()
            time.sleep(0.05)

    def _send(self, number: int) -> None:
        for target in self._targets:
            try:
                self._children |= {child.pid: child for child in target.children()}
                target.send_signal(number)
            except psutil.NoSuchProcess:  # it ended meanwhile
                continue


def _is_alive(process: psutil.Process) -> bool:
    """Return whether a process runs; one that ended can stay as a zombie where nobody asks for its code."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
