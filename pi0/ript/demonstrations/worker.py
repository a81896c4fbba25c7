"""Worker processes that record demonstrations, each one attempt at a time."""

import sys
from collections.abc import Callable, Iterator
from multiprocessing.connection import wait
from pathlib import Path

from pi0.ript.data.writer import EpisodeWriter
from pi0.ript.demonstrations.recorder import DemonstrationPlan, Recorder
from pi0.ript.envs.process import Worker, WorkerError, WorkerLostError, serve

type Attempt = tuple[int, int]

ATTEMPT_SECONDS = 600.0
"""After which a worker that has not finished an attempt is replaced: a slow machine, the first simulator."""

_MAX_LOSSES_IN_A_ROW = 3


class WorkerFailedError(RuntimeError):
    """Attempts could not be recorded; the message holds the worker's traceback, or the end of its log."""


class WorkerPool:
    """Worker processes that record attempts; one that dies or hangs is replaced, and its attempt repeated."""

    def __init__(self, plan: DemonstrationPlan, output: Path, logs: Path, count: int) -> None:
        """Start the processes.

        Args:
            plan: What to record.
            output: The data set's directory.
            logs: Where each process writes its log.
            count: How many processes.
        """
        self._setup = plan, output
        self._logs = [logs / f"worker-{i}.log" for i in range(count)]
        self._running: dict[int, Attempt] = {}
        self._losses_in_a_row = 0
        for log in self._logs:
            log.unlink(missing_ok=True)
        self._workers = [self._worker(log) for log in self._logs]

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
        self._workers[worker].send(attempt)

    def finished(self) -> Iterator[tuple[Attempt, bool, int]]:
        """Wait until a worker answers or is late; yield attempt, success and length of what is done.

        Raises:
            WorkerFailedError: A worker's code raised, or workers were lost several times in a row.
        """
        pipes = {self._workers[w].pipe: w for w in self._running}
        patience = {w: self._workers[w].seconds_left(ATTEMPT_SECONDS) for w in self._running}
        answered = [w for pipe, w in pipes.items() if pipe in wait(list(pipes), min(patience.values()))]
        for w in answered or [min(patience, key=patience.__getitem__)]:
            try:
                success, length = self._workers[w].receive(ATTEMPT_SECONDS)
            except WorkerError as error:
                raise WorkerFailedError(f"recording attempt {self._running[w]} failed:\n{error}") from None
            except WorkerLostError as error:
                self._replace(w, error)
            else:
                self._losses_in_a_row = 0
                yield self._running.pop(w), success, length

    def _replace(self, w: int, lost: WorkerLostError) -> None:
        """Replace a worker and let the new one repeat its attempt."""
        self._losses_in_a_row += 1
        if self._losses_in_a_row >= _MAX_LOSSES_IN_A_ROW:
            raise WorkerFailedError(
                f"{self._losses_in_a_row} workers were lost in a row, the last: {lost}; its log ends:\n"
                + "\n".join(self._logs[w].read_text().splitlines()[-15:])
            )
        sys.stderr.write(f"{lost}: attempt {self._running[w]} is repeated\n")
        self._workers[w] = self._worker(self._logs[w])
        self.start(w, self._running[w])

    def _worker(self, log: Path) -> Worker:
        return Worker("pi0.ript.demonstrations.worker", self._setup, log)

    def __enter__(self) -> "WorkerPool":
        """Return self; ends the processes at the end of the block."""
        return self

    def __exit__(self, *exception: object) -> None:
        """End the processes; an unfinished attempt is lost, finished ones are on disk."""
        for worker in self._workers:
            worker.kill()


def main() -> None:
    """Run this process as a worker."""
    serve(_prepare)


def _prepare(
    setup: tuple[DemonstrationPlan, Path],
) -> tuple[Callable[[Attempt], tuple[bool, int]], Callable[[], None]]:
    plan, output = setup
    recorder = Recorder(plan, EpisodeWriter(output, plan.info()))

    def record(attempt: Attempt) -> tuple[bool, int]:
        labels, length = recorder.record(*attempt)
        return labels.is_success, length

    return record, recorder.close
