"""Stopping a run from outside: signals only ask, the run stops where a checkpoint makes sense.

Ctrl+C, SIGTERM and SIGUSR1 are noticed before each chunk of actions and after each optimizer step. All
processes then agree to stop, write a checkpoint and leave with the code 128 + signal (130, 143, 138), which
schedulers read as "interrupted, may be started again". A second signal leaves at once.

Under torchrun the agent hands on SIGTERM and Ctrl+C, but dies of SIGUSR1 and leaves its workers alone, unless
told otherwise: `torchrun --signals-to-handle SIGTERM,SIGINT,SIGUSR1` (or TORCHELASTIC_SIGNALS_TO_HANDLE). It
kills workers that have not left 30 s later; TORCH_ELASTIC_SHUTDOWN_TIMEOUT gives large checkpoints more time.
The agent's own exit code is 1 then; its processes print that they stopped, and where.
"""

import atexit
import os
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Protocol, runtime_checkable

from pi0.ript.peers import ALONE, Peers
from pi0.ript.progress import doing

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_SAME_REQUEST_SECONDS = 2.0  # `timeout` signals a process and its group, so that one request arrives twice


class StoppedError(SystemExit):
    """The run was asked to stop, and what it needs to go on is on disk; the code is 128 + signal."""


@dataclass
class _Request:
    code: int = 0
    is_signalled: bool = False  # the code can also come from `request_stop`
    time: float = 0.0  # of the signal


_request = _Request()


def setup_signal_handlers() -> None:
    """Make SIGINT, SIGTERM and SIGUSR1 ask the run to stop; forget what was asked before."""
    _request.code, _request.is_signalled, doing.stopping = 0, False, None
    for number in _SIGNALS:
        signal.signal(number, _on_signal)


def stop_requested() -> int:
    """Return the exit code to leave with if this process was asked to stop, otherwise 0."""
    return _request.code


def asked_to_stop(peers: Peers) -> int:
    """Return the exit code that all processes leave with if one of them was asked to stop, otherwise 0."""
    return max(code for codes in peers.gather([stop_requested()]) for code in codes)


def until_stopped[T](items: Iterable[T], peers: Peers) -> Iterator[T]:
    """Yield this process's items, and end early, on all processes, when one of them is asked to stop.

    All processes call it alike, each with items of its own, in whatever number.
    """
    remaining = iter(items)
    while True:
        item = next(remaining, None)
        states = [state for (state,) in peers.gather([(stop_requested(), item is not None)])]
        if any(code for code, _ in states) or not any(has_item for _, has_item in states):
            return
        if item is not None:
            yield item


@contextmanager
def deaf_children() -> Iterator[None]:
    """Keep the signals that ask this process to stop from the processes that it starts meanwhile.

    A signal to the whole group would end them before this process has saved. They end with it.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # children are born with it
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_if_asked(peers: Peers = ALONE) -> None:
    """Raise StoppedError on all processes if one of them was asked to stop; all of them call this."""
    if code := asked_to_stop(peers):
        raise StoppedError(code)


def request_stop(number: signal.Signals, reason: str) -> None:
    """Ask the run to stop as the signal would; the first request counts."""
    _request.code = _request.code or 128 + number
    doing.stopping = doing.stopping or reason
    _say(reason)


def _on_signal(number: int, _frame: FrameType | None) -> None:
    name = signal.Signals(number).name
    if not _request.is_signalled:
        _request.is_signalled, _request.time = True, time.monotonic()
        _request.code = _request.code or 128 + number
        doing.stopping = doing.stopping or name
        _say(f"{name}: stopping with a checkpoint as soon as possible; a second signal leaves at once")
    elif time.monotonic() - _request.time > _SAME_REQUEST_SECONDS:
        _say(f"{name} again: leaving at once, the checkpoint before stays as it is")
        os._exit(128 + number)


def _say(text: str) -> None:
    """Write a line without Python's buffers: a handler may run in the middle of a print."""
    os.write(2, f"\n[rank {os.environ.get('RANK', '0')}] {text}\n".encode())


@runtime_checkable
class Closable(Protocol):
    """Something to be closed; twice does no harm."""

    def close(self) -> None:
        """Close."""
        ...


def cleanup_on_exit(*resources: Closable) -> None:
    """Close the resources when the process leaves, in whatever way but os._exit and kill -9."""
    for resource in resources:
        atexit.register(resource.close)
