"""Worker processes: fresh interpreters that answer requests; one that dies or hangs is noticed.

A worker is started like `spawn` does it, with one difference: the caller's main script is not
imported again, so scripts need no main guard and a worker stays as small as what it does. It
ends when its pipe closes, so it never outlives its parent; signals are the parent's to handle.
"""

import os
import pickle
import signal
import subprocess
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any

from pi0.ript.envs.shared_bytes import SharedBytes

MOST_UNANSWERED = 2
"""Requests that a worker can have at a time; the arrays of each answer have memory of their own."""

_DEFAULT_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "LP_NUM_THREADS": "1"}
_START_SECONDS = 300.0  # a cold file system and a loaded machine
_OUT_OF_MEMORY = 137  # what the kernel's own kill looks like to a shell
_ENDINGS = {
    _OUT_OF_MEMORY: ": its memory ran out",
    -signal.SIGKILL: ": killed, as the kernel does where memory runs out",
}
_SIGNALS = "import signal as s; [s.signal(n, s.SIG_IGN) for n in (s.SIGINT, s.SIGTERM, s.SIGUSR1)]; "
_MAIN = _SIGNALS + "from {module} import main; main()"  # deaf before the imports, which take a second


class WorkerError(RuntimeError):
    """Code in a worker raised; the message holds the worker's traceback."""


class WorkerLostError(RuntimeError):
    """A worker died or did not answer in time; it has been killed."""


class Worker:
    """One worker process and the pipe to it; arrays of its answers come through shared memory."""

    def __init__(self, module: str, setup: object, log: Path | None = None) -> None:
        """Start the process; requests can be sent at once.

        Args:
            module: A module whose function `main` calls `serve`.
            setup: What the process is told first.
            log: A file to which its output is added; None: its output goes where this process's goes.
        """
        self.pipe, worker_end = Pipe()
        self._arrays = [SharedBytes() for _ in range(MOST_UNANSWERED)]
        shared = [worker_end.fileno(), *(part.file for part in self._arrays)]
        output = None if log is None else log.open("a")
        self.process = subprocess.Popen(
            [sys.executable, "-c", _MAIN.format(module=module), *map(str, shared)],
            pass_fds=shared,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=_DEFAULT_ENVIRONMENT | os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        worker_end.close()
        if output is not None:
            output.close()
        self._is_started, self._answered, self._unanswered = False, 0, 0
        self._send(setup)

    def send(self, message: object) -> None:
        """Send a request, at most `MOST_UNANSWERED`; a dead worker is noticed when its answer is read."""
        if self._unanswered == MOST_UNANSWERED:
            raise RuntimeError(f"a worker answers at most {MOST_UNANSWERED} requests at a time")
        self._unanswered += 1
        self._send(message)

    def _send(self, message: object) -> None:
        if self._unanswered <= 1:  # otherwise it begins with this one when the other is answered
            self._began_at = time.monotonic()
        with suppress(BrokenPipeError, ConnectionResetError):
            self.pipe.send_bytes(pickle.dumps(message))

    def seconds_left(self, timeout: float) -> float:
        """Return for how long the answer may still take; the first one may take as long as a start, too."""
        patience = timeout if self._is_started else timeout + _START_SECONDS
        return max(self._began_at + patience - time.monotonic(), 0.0)

    def receive(self, timeout: float) -> Any:
        """Return the answer to the oldest unanswered request.

        Args:
            timeout: Seconds since the worker could begin with it, see `seconds_left`.

        Raises:
            WorkerError: The worker's code raised.
            WorkerLostError: The worker died or hung, and is gone now.
        """
        if not wait([self.pipe], self.seconds_left(timeout)):
            self.kill()
            raise WorkerLostError(f"worker {self.process.pid} did not answer in {timeout:g} s")
        try:
            pickled, sizes = self.pipe.recv()
        except (EOFError, ConnectionResetError):
            self.kill()
            code = self.process.returncode
            raise WorkerLostError(
                f"worker {self.process.pid} died (exit code {code}{_ENDINGS.get(code, '')})"
            ) from None
        arrays = self._arrays[self._answered % MOST_UNANSWERED].read(sizes)
        ok, answer = pickle.loads(pickled, buffers=arrays)
        self._is_started, self._began_at = True, time.monotonic()
        self._answered += 1
        self._unanswered -= 1
        if not ok:
            raise WorkerError(answer)
        return answer

    def kill(self) -> None:
        """End the process at once."""
        self.process.kill()
        self.process.wait()
        self._close()

    def close(self) -> None:
        """Let the process close its simulators and end; kill it if it does not."""
        self._close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _close(self) -> None:
        self.pipe.close()
        for part in self._arrays:
            part.close()
        self._arrays = []


def serve(prepare: Callable[[Any], tuple[Callable[[Any], object], Callable[[], None]]]) -> None:
    """Run this process as a worker, until its pipe closes; its arguments: descriptors of that and of memory.

    Args:
        prepare: Given the setup, returns what answers a request and what is to be called at the end.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    pipe = Connection(int(sys.argv[1]))
    arrays = deque(SharedBytes(int(file)) for file in sys.argv[2:])
    close: Callable[[], object] = bool
    with suppress(EOFError, ConnectionError):  # the parent is gone, or has closed its end
        answer_to, close = prepare(pipe.recv())
        while True:
            request = pipe.recv()
            try:
                answer = _packed((True, answer_to(request)), arrays[0])
            except MemoryError:
                os._exit(_OUT_OF_MEMORY)  # what is left of this process is of no use
            except Exception:  # noqa: BLE001 - raised again in the parent, with this traceback
                answer = _packed((False, traceback.format_exc()), arrays[0])
            arrays.rotate(-1)
            pipe.send(answer)
    close()


def _packed(answer: object, arrays: SharedBytes) -> tuple[bytes, list[int]]:
    """Return an answer without the bytes of its arrays, and their sizes; those are in the memory then."""
    buffers: list[pickle.PickleBuffer] = []
    pickled = pickle.dumps(answer, protocol=5, buffer_callback=buffers.append)
    try:
        return pickled, arrays.write([buffer.raw() for buffer in buffers])
    except OSError:
        raise MemoryError from None
