"""Collects a data set of demonstrations: which attempts to run, and by which process."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from threading import Thread

import numpy as np

from pi0.ript.data.writer import EpisodeWriter
from pi0.ript.demonstrations.experts import require_expert
from pi0.ript.demonstrations.operators import Keep
from pi0.ript.demonstrations.recorder import DemonstrationPlan, Recorder, attempt_of, episode_number
from pi0.ript.demonstrations.worker import Attempt, WorkerPool
from pi0.ript.progress import progress_bar


class TooFewSuccessesError(RuntimeError):
    """The operator succeeds too rarely to fill the data set."""


@dataclass(frozen=True)
class TaskSummary:
    """What the attempts at one task gave."""

    task_id: str
    successes: int
    attempts: int
    kept: int
    mean_length: float
    """Mean length of the kept episodes, in policy steps."""


class Schedule:
    """Decides which attempts are needed; the same ones whatever the order in which they end.

    `keep="all"`: attempts 0 to episodes - 1 of every task. `keep="successes"`: attempts from 0 on
    until there are as many successes as episodes; never an attempt more than that.
    """

    def __init__(self, num_tasks: int, episodes: int, keep: Keep) -> None:
        self.num_tasks, self.episodes, self.keep = num_tasks, episodes, keep
        self.outcomes: list[dict[int, tuple[bool, int]]] = [{} for _ in range(num_tasks)]
        self._issued = [0] * num_tasks

    def next(self) -> Attempt | None:
        """Return an attempt that is needed whatever the running ones give; None: wait or end."""
        for task, outcomes in enumerate(self.outcomes):
            while self._issued[task] in outcomes:  # from an interrupted collection
                self._issued[task] += 1
            if self._wanted(task):
                self._issued[task] += 1
                return task, self._issued[task] - 1
        return None

    def done(self, attempt: Attempt, success: bool, length: int) -> None:
        """Take note of an attempt's outcome."""
        self.outcomes[attempt[0]][attempt[1]] = success, length

    @property
    def complete(self) -> bool:
        """Return whether nothing is missing."""
        return all(len(self.kept(task)) == self.episodes for task in range(self.num_tasks))

    def kept(self, task: int) -> list[int]:
        """Return the attempts at a task that the data set keeps, so far."""
        ordered = sorted(self.outcomes[task].items())
        good = [n for n, (success, _) in ordered if success or self.keep == "all"]
        return good[: self.episodes]

    @property
    def num_kept(self) -> int:
        """Return how many attempts the data set keeps, so far."""
        return sum(len(self.kept(task)) for task in range(self.num_tasks))

    def success(self) -> str:
        """Return how many of all attempts succeeded, as text."""
        results = [success for outcomes in self.outcomes for success, _ in outcomes.values()]
        return f"{sum(results)} of {len(results)} attempts succeeded"

    def _wanted(self, task: int) -> bool:
        outcomes, issued = self.outcomes[task], self._issued[task]
        if self.keep == "all":
            return issued < self.episodes
        finished = [success for n, (success, _) in outcomes.items() if n < issued]
        hoped_for = sum(finished) + issued - len(finished)
        if hoped_for < self.episodes and issued >= 20 + 4 * self.episodes:
            raise TooFewSuccessesError(
                f"only {sum(finished)} of {len(finished)} attempts succeeded, expected "
                f"{self.episodes}; keep all episodes, or choose another operator"
            )
        return hoped_for < self.episodes


def collect_demonstrations(
    plan: DemonstrationPlan,
    output: str | Path,
    episodes: int,
    *,
    keep: Keep | None = None,
    num_workers: int = 0,
    progress: Callable[[Schedule], None] = lambda schedule: None,
) -> list[TaskSummary]:
    """Write a data set of demonstrations, with a progress bar, and return what each task gave.

    Interrupted and called again, it continues. The data set is the same for any `num_workers`.

    Args:
        plan: What to record.
        output: The data set's directory; must not exist.
        episodes: Episodes per task to keep.
        keep: Which episodes; None: as the operator proposes.
        num_workers: Processes that record; 0 records in this process.
        progress: Called at the start and after every attempt.

    Raises:
        ValueError: A task, the operator, or the output cannot be used; nothing has run.
        TooFewSuccessesError: The operator succeeds too rarely.
    """
    tasks = plan.selected()
    for task in tasks:
        require_expert(task)
    if episodes < 1 or num_workers < 0:
        raise ValueError(f"expected episodes >= 1 and workers >= 0, found {episodes} and {num_workers}")
    output = Path(output)
    writer = EpisodeWriter(output, plan.info())
    schedule = Schedule(len(tasks), episodes, keep or plan.resolved_operator().keep)
    for number, (labels, length) in writer.finished().items():
        schedule.done(attempt_of(number), labels.is_success, length)
    options = {"initial": schedule.num_kept, "unit": "episode", "desc": "demonstrations"}
    with progress_bar(total=episodes * len(tasks), **options) as bar:

        def report(schedule: Schedule) -> None:
            bar.n = schedule.num_kept
            bar.set_postfix_str(schedule.success())
            progress(schedule)

        report(schedule)
        if num_workers and not schedule.complete:
            # Publishing imports lerobot, which takes many seconds; this process is idle meanwhile.
            Thread(target=import_module, args=("pi0.ript.data.publishing",), daemon=True).start()
            with WorkerPool(plan, output, writer.partial, num_workers) as pool:
                _run_in_pool(schedule, pool, report)
        else:
            recorder = Recorder(plan, writer)
            while (attempt := schedule.next()) is not None:
                labels, length = recorder.record(*attempt)
                schedule.done(attempt, labels.is_success, length)
                report(schedule)
            recorder.close()
        kept = [schedule.kept(number) for number in range(len(tasks))]
        writer.finalize([episode_number(t, n) for t, attempts in enumerate(kept) for n in attempts])
    return [_summary(task.id, schedule.outcomes[t], kept[t]) for t, task in enumerate(tasks)]


def _run_in_pool(schedule: Schedule, pool: WorkerPool, progress: Callable[[Schedule], None]) -> None:
    while True:
        for worker in pool.idle:
            attempt = schedule.next()
            if attempt is not None:
                pool.start(worker, attempt)
        if not pool.running:
            return
        for attempt, success, length in pool.finished():
            schedule.done(attempt, success, length)
            progress(schedule)


def _summary(task_id: str, outcomes: Mapping[int, tuple[bool, int]], kept: list[int]) -> TaskSummary:
    return TaskSummary(
        task_id=task_id,
        successes=sum(success for success, _ in outcomes.values()),
        attempts=len(outcomes),
        kept=len(kept),
        mean_length=float(np.mean([outcomes[n][1] for n in kept])),
    )
