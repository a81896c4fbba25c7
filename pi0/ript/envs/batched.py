"""The batched environment: slots, action chunks, worker processes that may die or hang."""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import batched
from typing import Any

import numpy as np

from pi0.errors import UnusableError
from pi0.ript.envs.base import Answers, ChunkResult, EnvObservation, Simulation, Task, TaskSuite
from pi0.ript.envs.initial_state import InitialState, Split
from pi0.ript.envs.process import Worker, WorkerError, WorkerLostError
from pi0.ript.envs.slots import Slots, aborted
from pi0.ript.progress import progress_bar

VALIDATION_FIRST = 500_000
"""Number of the first training state that nothing trains on."""
_MAX_LOSSES_IN_A_ROW = 3
type _StateKey = tuple[str, Split, int]


class WorkersLostError(RuntimeError):
    """Workers are lost as soon as they are replaced, so that it is no accident."""

    explains_itself = True


@dataclass
class _Sent:
    """What was sent and is not received yet."""

    beginning: tuple[int, ...]
    moving: tuple[int, ...]
    workers: Mapping[int, Worker]
    """The workers that were asked, by number; one of them may be replaced meanwhile."""
    answers: dict[int, Any] = field(default_factory=dict)


class BatchedEnv:
    """Many episodes at once, each in a numbered slot, of any of the given tasks.

    `reset` starts episodes from given initial states, `step_chunk` executes one chunk of actions
    per named slot. `send` and `receive` do both at once and let the caller compute meanwhile.
    Results depend on states and actions only, not on slots or `num_workers`.
    """

    def __init__(
        self,
        suite: TaskSuite,
        tasks: Iterable[str] | None = None,
        *,
        num_slots: int = 1,
        num_workers: int = 0,
        max_steps: int | None = None,
        timeout: float = 120.0,
    ) -> None:
        """Check that the tasks can run here, then start the workers.

        Args:
            suite: The family of tasks.
            tasks: Names of the tasks to use; None for all of the suite.
            num_slots: Episodes that can run at the same time.
            num_workers: Processes that simulate; 0 simulates in this process.
            max_steps: Deadline in policy steps; None for the suite's own.
            timeout: Seconds after which a worker that has not answered is replaced; its first answer may
                take longer, because it has to start.
        """
        if num_slots < 1 or not 0 <= num_workers <= num_slots:
            raise UnusableError(
                "expected num_slots >= 1 and num_workers between 0 and num_slots, found "
                f"num_slots={num_slots}, num_workers={num_workers}"
            )
        self.suite = suite
        self.num_slots = num_slots
        self.num_workers = num_workers
        self.timeout = timeout
        chosen = suite.select(tasks)
        if max_steps is not None:
            if max_steps < 1:
                raise UnusableError(f"max_steps: expected a positive number, found {max_steps}")
            chosen = tuple(replace(task, max_steps=max_steps) for task in chosen)
        self.tasks: dict[str, Task] = {task.id: task for task in chosen}
        """The tasks in use, by id, with the deadlines in force."""
        suite.check(chosen)
        self._states: dict[_StateKey, InitialState] = {}  # made once: RECAP asks for the same ones again
        self._task_of: dict[int, Task] = {}
        self._step_of: dict[int, int] = {}
        self._lost: dict[int, str] = {}
        self._losses_in_a_row = 0
        self._sent: deque[_Sent] = deque()
        self._local = None if num_workers else Slots(suite, self.tasks)
        self._workers = [self._start() for _ in range(num_workers)]

    @property
    def halves(self) -> tuple[range, ...]:
        """Return the slots of either half, the larger one first; of one alone where there is one slot."""
        middle = (self.num_slots + 1) // 2
        return tuple(half for half in (range(middle), range(middle, self.num_slots)) if half)

    def task(self, name: str) -> Task:
        """Return a task in use by "name" or "suite/name"."""
        task_id = self.suite.select([name])[0].id
        if task_id not in self.tasks:
            raise ValueError(f"task {task_id!r} is not in use here; in use: {sorted(self.tasks)}")
        return self.tasks[task_id]

    def simulation(self, name: str) -> Simulation:
        """Return a new in-process simulation of a task, for scripted experts and tests."""
        return self.suite.make(self.task(name))

    def initial_states(self, task: str, split: Split, indices: Iterable[int]) -> list[InitialState]:
        """Return the states of one split with the given numbers, in order.

        Validation states are for choices that must be made on neither training nor held-out states; they are
        the training states from `VALIDATION_FIRST` on, which nothing trains on.
        """
        numbers, first = list(indices), VALIDATION_FIRST if split == "validation" else 0
        if split == "train" and numbers and max(numbers) >= VALIDATION_FIRST:
            raise ValueError(f"training states are those below {VALIDATION_FIRST}, found {max(numbers)}")
        made_as: Split = "train" if split == "validation" else split
        wanted: list[_StateKey] = [(self.task(task).id, made_as, first + i) for i in numbers]
        missing = [key for key in dict.fromkeys(wanted) if key not in self._states]
        with progress_bar(total=len(missing), unit="state", desc=task, disable=len(missing) < 50) as bar:
            for part in batched(missing, 8 * max(self.num_workers, 1)):
                self._states |= zip(part, self._initial_states(list(part)), strict=True)
                bar.update(len(part))
        return [self._states[key] for key in wanted]

    def _initial_states(self, wanted: list[_StateKey]) -> list[InitialState]:
        if self._local is not None:
            return self._local.initial_states(wanted)
        n = self.num_workers
        parts = {w: wanted[w::n] for w in range(n) if wanted[w::n]}
        answers = self._ask_until_answered({w: ("initial_states", p) for w, p in parts.items()})
        states: list[Any] = [None] * len(wanted)
        for w, answer in answers.items():
            states[w::n] = answer
        return states

    def reset(self, states: Mapping[int, InitialState]) -> dict[int, EnvObservation]:
        """Start an episode in each named slot and return what the policy sees first.

        An unfinished episode of the slot is dropped. A worker that dies meanwhile is replaced and
        asked again.
        """
        observations: dict[int, EnvObservation] = {}
        while waiting := {slot: state for slot, state in states.items() if slot not in observations}:
            self.send(waiting, {})
            observations |= self.receive().observations
        return {slot: observations[slot] for slot in states}

    def step_chunk(
        self, actions: Mapping[int, np.ndarray], render_every: int | None = None
    ) -> dict[int, ChunkResult]:
        """Execute one chunk per named slot, each until success, deadline or its last action; see `send`."""
        self.send({}, actions, render_every)
        return dict(self.receive().results)

    def send(
        self,
        states: Mapping[int, InitialState],
        actions: Mapping[int, np.ndarray],
        render_every: int | None = None,
    ) -> None:
        """Start episodes in some slots and execute one chunk in others; workers do so in the background.

        When a worker dies or hangs, each episode that it ran is reported exactly once, as
        aborted, by what is received next for its slot. At most `MOST_UNANSWERED` times ahead of `receive`.

        Args:
            states: As for `reset`; an unfinished episode of the slot is dropped.
            actions: (n, a) per slot; taken as float32, what a dataset of them stores.
            render_every: Also return frames every so many policy steps inside the chunk.

        Raises:
            ValueError: A task is not in use, an action is not finite or has the wrong shape, or a
                slot has no running episode. Nothing has moved.
        """
        if render_every is not None and render_every < 1:
            raise ValueError(f"render_every must be positive or None, found {render_every}")
        for slot, state in states.items():
            self._require_slot(slot)
            if state.task not in self.tasks:
                raise ValueError(
                    f"slot {slot}: state of task {state.task!r}, which is not in use here; "
                    f"in use: {sorted(self.tasks)}"
                )
        chunks = {slot: self._checked(slot, chunk) for slot, chunk in actions.items()}
        for slot, state in states.items():
            self._lost.pop(slot, None)
            self._task_of[slot], self._step_of[slot] = self.tasks[state.task], 0
        live = {slot: chunk for slot, chunk in chunks.items() if slot not in self._lost}
        sent = _Sent(tuple(states), tuple(actions), {})
        if self._local is not None:
            sent.answers = self._local.turn(states, live, render_every)
        else:
            begin, move = self._by_worker(states), self._by_worker(live)
            sent.workers = {w: self._workers[w] for w in sorted({*begin, *move})}
            for w, worker in sent.workers.items():
                worker.send(("turn", (begin.get(w, {}), move.get(w, {}), render_every)))
        self._sent.append(sent)

    def receive(self) -> Answers:
        """Return what has come of the oldest `send` that was not received yet; waits for it."""
        sent = self._sent.popleft()
        for part in self._read(sent.workers).values():
            sent.answers |= part
        observations, results = {}, {}
        for slot in (*sent.beginning, *sent.moving):
            reason = self._lost.pop(slot, None)
            if reason is None and slot in sent.beginning:
                observations[slot] = sent.answers[slot]
                continue
            step = self._step_of[slot]
            result = sent.answers[slot] if reason is None else aborted(reason, step)
            self._step_of[slot] = result.step
            if result.done:
                self._forget(slot)
            results[slot] = result
        return Answers(observations, results)

    def drop_unreceived(self) -> None:
        """Wait for what was sent and forget it, so that others can use this environment."""
        while self._sent:
            self.receive()

    def close(self) -> None:
        """End workers and simulators."""
        if self._local is not None:
            self._local.close()
        for worker in self._workers:
            worker.close()
        self._workers = []

    def __enter__(self) -> "BatchedEnv":
        """Return self; closes at the end of the block."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close."""
        self.close()

    def _require_slot(self, slot: int) -> None:
        if not 0 <= slot < self.num_slots:
            raise ValueError(f"slot {slot}: expected 0 <= slot < {self.num_slots}")

    def _checked(self, slot: int, chunk: Any) -> np.ndarray:
        """Return the chunk as float32, or raise before anything moves."""
        self._require_slot(slot)
        if slot not in self._task_of:
            raise ValueError(f"slot {slot}: no episode is running; reset it first")
        chunk = np.asarray(chunk, dtype=np.float32)
        a = self._task_of[slot].action_dim
        if chunk.ndim != 2 or chunk.shape[0] < 1 or chunk.shape[1] != a:
            raise ValueError(f"slot {slot}: actions must be (n >= 1, {a}), found {chunk.shape}")
        if not np.isfinite(chunk).all():
            t = int(np.argwhere(~np.isfinite(chunk))[0, 0])
            raise UnusableError(
                f"slot {slot}: action {t} of the chunk is not finite: {chunk[t]}; if a loss was not finite "
                "before, lower the learning rate (algo.lr), otherwise take another checkpoint"
            )
        return chunk

    def _forget(self, slot: int) -> None:
        self._task_of.pop(slot, None)
        self._step_of.pop(slot, None)

    def _by_worker(self, values: Mapping[int, Any]) -> dict[int, dict[int, Any]]:
        """Split a mapping by slot into the workers that own the slots."""
        parts: dict[int, dict[int, Any]] = {}
        for slot, value in values.items():
            parts.setdefault(slot % self.num_workers, {})[slot] = value
        return parts

    def _ask_until_answered(self, requests: dict[int, Any]) -> dict[int, Any]:
        """Ask, and ask again the workers that were replaced; for requests that can be repeated."""
        answers: dict[int, Any] = {}
        while missing := [w for w in requests if w not in answers]:
            for w in missing:
                self._workers[w].send(requests[w])
            answers |= self._read({w: self._workers[w] for w in missing})
        return answers

    def _read(self, asked: Mapping[int, Worker]) -> dict[int, Any]:
        """Return the answers of the workers that have one; the others were lost and are replaced."""
        answers: dict[int, Any] = {}
        failure = raised = None
        for w, worker in asked.items():
            if worker is not self._workers[w]:
                continue
            try:
                answers[w] = worker.receive(self.timeout)
                self._losses_in_a_row = 0
            except WorkerLostError as error:
                failure = error
                self._replace(w, str(error))
            except WorkerError as error:
                raised = error
        if raised is not None:  # only now, so that no answer stays unread
            raise raised
        if failure is not None and self._losses_in_a_row >= _MAX_LOSSES_IN_A_ROW:
            raise WorkersLostError(
                f"{self._losses_in_a_row} environment workers were lost in a row, the last: {failure}; see "
                "their messages above. If memory ran out, lower task.num_parallel_envs; num_workers=0 shows "
                "an error of the simulator"
            )
        return answers

    def _replace(self, w: int, reason: str) -> None:
        """Start a new worker and note that the old one's episodes are lost."""
        self._losses_in_a_row += 1
        for slot in self._task_of:
            if slot % self.num_workers == w:
                self._lost[slot] = reason
        self._workers[w] = self._start()

    def _start(self) -> Worker:
        return Worker("pi0.ript.envs.worker", (self.suite, self.tasks))
