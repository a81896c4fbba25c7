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
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any

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
    """One worker process and the pipe to it."""

    def __init__(self, module: str, setup: object, log: Path | None = None) -> None:
        """Start the process; requests can be sent at once.

        Args:
            module: A module whose function `main` calls `serve`.
            setup: What the process is told first.
            log: A file to which its output is added; None: its output goes where this process's goes.
        """
        self.pipe, worker_end = Pipe()
        output = None if log is None else log.open("a")
        self.process = subprocess.Popen(
            [sys.executable, "-c", _MAIN.format(module=module), str(worker_end.fileno())],
            pass_fds=[worker_end.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=_DEFAULT_ENVIRONMENT | os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        worker_end.close()
        if output is not None:
            output.close()
        self._is_started = False
        self.send(setup)

    def send(self, message: object) -> None:
        """Send a request; a dead worker is noticed when its answer is read."""
        self._sent_at = time.monotonic()
        try:
            self.pipe.send_bytes(pickle.dumps(message))
        except (BrokenPipeError, ConnectionResetError):
            return

    def seconds_left(self, timeout: float) -> float:
        """Return for how long the answer may still take; the first one may take as long as a start, too."""
        patience = timeout if self._is_started else timeout + _START_SECONDS
        return max(self._sent_at + patience - time.monotonic(), 0.0)

    def receive(self, timeout: float) -> Any:
        """Return the answer to the oldest unanswered request.

        Args:
            timeout: Seconds since the request was sent, see `seconds_left`.

        Raises:
            WorkerError: The worker's code raised.
            WorkerLostError: The worker died or hung, and is gone now.
        """
        if not wait([self.pipe], self.seconds_left(timeout)):
            self.kill()
            raise WorkerLostError(f"worker {self.process.pid} did not answer in {timeout:g} s")
        try:
            ok, answer = self.pipe.recv()
        except (EOFError, ConnectionResetError):
            self.kill()
            code = self.process.returncode
            raise WorkerLostError(
                f"worker {self.process.pid} died (exit code {code}{_ENDINGS.get(code, '')})"
            ) from None
        self._is_started = True
        if not ok:
            raise WorkerError(answer)
        return answer

    def kill(self) -> None:
        """End the process at once."""
        self.process.kill()
        self.process.wait()
        self.pipe.close()

    def close(self) -> None:
        """Let the process close its simulators and end; kill it if it does not."""
        self.pipe.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def serve(prepare: Callable[[Any], tuple[Callable[[Any], object], Callable[[], None]]]) -> None:
    """Run this process as a worker, until its pipe closes; its argument is the pipe's file descriptor.

    Args:
        prepare: Given the setup, returns what answers a request and what is to be called at the end.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    pipe = Connection(int(sys.argv[1]))
    close: Callable[[], object] = bool
    with suppress(EOFError, ConnectionError):  # the parent is gone, or has closed its end
        answer_to, close = prepare(pipe.recv())
        while True:
            request = pipe.recv()
            try:
                answer = (True, answer_to(request))
            except MemoryError:
                os._exit(_OUT_OF_MEMORY)  # what is left of this process is of no use
            except Exception:  # noqa: BLE001 - raised again in the parent, with this traceback
                answer = (False, traceback.format_exc())
            pipe.send(answer)
    close()
