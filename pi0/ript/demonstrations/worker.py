"""A worker process: records the attempts that it is told to, one line in, one line out.

First line in: the plan and the output as JSON; then one JSON list [task number, attempt] a line.
Answers: [success, length]. It ends when its input ends, so it never outlives its parent for longer
than one episode; what simulators print goes to its log.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict
from multiprocessing.connection import wait
from pathlib import Path

from pi0.ript.demonstrations.recorder import DemonstrationPlan, Recorder, open_writer

_ENVIRONMENT = {"MUJOCO_GL": "egl", "OMP_NUM_THREADS": "1", "LP_NUM_THREADS": "1"}
type Attempt = tuple[int, int]


class WorkerFailedError(RuntimeError):
    """A worker process ended early; the message holds the end of its log."""


class WorkerPool:
    """Worker processes that record attempts, each at most one at a time."""

    def __init__(self, plan: DemonstrationPlan, output: Path, logs: Path, count: int) -> None:
        """Start the processes.

        Args:
            plan: What to record.
            output: The data set's directory.
            logs: Where each process writes its log.
            count: How many processes.
        """
        self._workers: list[subprocess.Popen[str]] = []
        self._logs = [logs / f"worker-{i}.log" for i in range(count)]
        self._running: dict[int, Attempt] = {}
        paths = {"PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path)}
        for log in self._logs:
            with log.open("w") as stderr:
                worker = subprocess.Popen(
                    [sys.executable, "-m", __spec__.name],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=stderr,
                    text=True,
                    env=_ENVIRONMENT | os.environ | paths,
                )
            self._workers.append(worker)
            self._send(worker, {"plan": asdict(plan), "output": str(output)})

    @property
    def idle(self) -> list[int]:
        """Return the workers that have nothing to do."""
        return [w for w in range(len(self._workers)) if w not in self._running]

    @property
    def running(self) -> bool:
        """Return whether an attempt is under way."""
        return bool(self._running)

    def start(self, worker: int, attempt: Attempt) -> None:
        """Let an idle worker record an attempt."""
        self._running[worker] = attempt
        self._send(self._workers[worker], attempt)

    def finished(self) -> Iterable[tuple[Attempt, bool, int]]:
        """Wait until at least one attempt is done; yield attempt, success and length of each."""
        outputs = {_pipe(self._workers[w].stdout).fileno(): w for w in self._running}
        for output in wait(list(outputs)):
            assert isinstance(output, int)
            worker = outputs[output]
            line = _pipe(self._workers[worker].stdout).readline()
            if not line:
                code = self._workers[worker].wait()
                raise WorkerFailedError(
                    f"worker {worker} ended with exit code {code} while recording; its log ends:\n"
                    + "\n".join(self._logs[worker].read_text().splitlines()[-15:])
                )
            success, length = json.loads(line)
            yield self._running.pop(worker), success, length

    def _send(self, worker: subprocess.Popen[str], message: object) -> None:
        try:
            _pipe(worker.stdin).write(json.dumps(message) + "\n")
            _pipe(worker.stdin).flush()
        except BrokenPipeError:
            return  # noticed, with its log, when its answer is read

    def __enter__(self) -> "WorkerPool":
        """Return self; ends the processes at the end of the block."""
        return self

    def __exit__(self, *exception: object) -> None:
        """End the processes; an unfinished attempt is lost, finished ones are on disk."""
        for worker in self._workers:
            worker.kill()
            worker.wait()
            _pipe(worker.stdout).close()


def _pipe[Stream](stream: Stream | None) -> Stream:
    assert stream is not None
    return stream


def _serve() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    first = json.loads(sys.stdin.readline())
    plan = DemonstrationPlan(**first["plan"] | {"tasks": tuple(first["plan"]["tasks"])})
    recorder = Recorder(plan, open_writer(plan, Path(first["output"])))
    for line in sys.stdin:
        labels, length = recorder.record(*json.loads(line))
        answers.write(json.dumps([labels.success, length]) + "\n")
        answers.flush()
    recorder.close()


if __name__ == "__main__":
    _serve()
