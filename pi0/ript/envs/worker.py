"""Worker processes: fresh interpreters that simulate, hold no model and import no torch.

A worker is started like `spawn` does it, with one difference: the caller's main script is not
imported again, so scripts need no main guard and a worker stays as small as its simulator. It
ends when its pipe closes, so it never outlives its parent; signals are the parent's to handle.
"""

import os
import pickle
import signal
import subprocess
import sys
import time
import traceback
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any

from pi0.ript.envs.base import Task, TaskSuite
from pi0.ript.envs.slots import Slots

_DEFAULT_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "LP_NUM_THREADS": "1"}
_START_SECONDS = 300.0  # a cold file system and a loaded machine
_MAIN = (  # deaf before the imports, which take a second
    "import signal as s; [s.signal(n, s.SIG_IGN) for n in (s.SIGINT, s.SIGTERM, s.SIGUSR1)]; "
    "from pi0.ript.envs.worker import main; main()"
)


class WorkerError(RuntimeError):
    """Code in a worker raised; the message holds the worker's traceback."""


class WorkerLostError(RuntimeError):
    """A worker died or did not answer in time; it has been killed."""


class Worker:
    """One worker process and the pipe to it."""

    def __init__(self, suite: TaskSuite, tasks: dict[str, Task]) -> None:
        """Start the process; requests can be sent at once."""
        self._pipe, theirs = Pipe()
        self.process = subprocess.Popen(
            [sys.executable, "-c", _MAIN, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env=_DEFAULT_ENVIRONMENT | os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        theirs.close()
        self._ready = False
        self.send((suite, tasks))

    def send(self, message: object) -> None:
        """Send a request; a dead worker is noticed when its answer is read."""
        self._sent_at = time.monotonic()
        try:
            self._pipe.send_bytes(pickle.dumps(message))
        except (BrokenPipeError, ConnectionResetError):
            return

    def receive(self, timeout: float) -> Any:
        """Return the answer to the oldest unanswered request.

        Args:
            timeout: Seconds since the request was sent; starting up does not count.

        Raises:
            WorkerError: The worker's code raised.
            WorkerLostError: The worker died or hung, and is gone now.
        """
        if not self._ready:
            self._answer(_START_SECONDS)
            self._ready = True
            self._sent_at = time.monotonic()
        return self._answer(timeout)

    def _answer(self, timeout: float) -> Any:
        left = self._sent_at + timeout - time.monotonic()
        if not wait([self._pipe], max(left, 0.0)):
            self.kill()
            raise WorkerLostError(f"worker {self.process.pid} did not answer in {timeout:g} s")
        try:
            ok, answer = self._pipe.recv()
        except (EOFError, ConnectionResetError):
            self.kill()
            raise WorkerLostError(
                f"worker {self.process.pid} died (exit code {self.process.returncode})"
            ) from None
        if not ok:
            raise WorkerError(answer)
        return answer

    def kill(self) -> None:
        """End the process at once."""
        self.process.kill()
        self.process.wait()
        self._pipe.close()

    def close(self) -> None:
        """Let the process close its simulators and end; kill it if it does not."""
        self._pipe.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def _answer(slots: Slots, request: tuple[str, Any]) -> Any:
    """Return the answer to a request of `BatchedEnv`."""
    kind, body = request
    if kind == "initial_states":
        return slots.initial_states(body)
    if kind == "reset":
        return {slot: slots.reset(slot, state) for slot, state in body.items()}
    chunks, render_every = body
    return {slot: slots.step_chunk(slot, chunk, render_every) for slot, chunk in chunks.items()}


def _serve(pipe: Connection) -> None:
    """Answer requests until the pipe closes."""
    suite, tasks = pipe.recv()
    slots = Slots(suite, tasks)
    pipe.send((True, os.getpid()))
    while True:
        try:
            request = pipe.recv()
        except EOFError:
            slots.close()
            return
        try:
            answer = (True, _answer(slots, request))
        except Exception:  # noqa: BLE001 - raised again in the parent, with this traceback
            answer = (False, traceback.format_exc())
        pipe.send(answer)


def main() -> None:
    """Run this process as a worker; its argument is the file descriptor of the pipe."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    _serve(Connection(int(sys.argv[1])))
