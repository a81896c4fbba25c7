"""Requests of many clients -> batches for one policy, in the order in which they came."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from pi0.ript.serving.limits import ServingLimits
from pi0.ript.serving.metrics import ServingMetrics
from pi0.ript.serving.observations import ServedRequest

_log = logging.getLogger(__name__)

type Answer = dict[str, Any]
type Infer = Callable[[Sequence[ServedRequest]], list[Answer | Exception]]


class BusyError(RuntimeError):
    """As many requests wait as may."""


class StoppingError(RuntimeError):
    """The server is about to end and accepts nothing more."""


@dataclass(eq=False)
class _Waiting:
    request: ServedRequest
    answer: asyncio.Future[Answer]
    since: float = field(default_factory=time.monotonic)


class Batcher:
    """Hands requests to `infer` in a thread of its own, so that the event loop stays free for pings.

    A request whose asker was cancelled before its turn is dropped.
    """

    def __init__(self, infer: Infer, limits: ServingLimits, metrics: ServingMetrics) -> None:
        """Infer by `infer`, which returns for each request its answer or what is wrong with it."""
        self.infer, self.limits, self.metrics = infer, limits, metrics
        self._queue: deque[_Waiting] = deque()
        self._changed = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "inference")
        self._begun: float | None = None
        self._in_work: list[_Waiting] = []
        self._stopping = False
        self._task = asyncio.create_task(self._run())

    @property
    def seconds_in_work(self) -> float:
        """How long the policy has been at the present batch; 0 while it has none."""
        return 0.0 if self._begun is None else time.monotonic() - self._begun

    @property
    def is_working(self) -> bool:
        """Whether the policy is at a batch."""
        return self._begun is not None

    async def ask(self, request: ServedRequest, since: float | None = None) -> Answer:
        """Return the answer; `since`, of `time.monotonic`, is when the request came (None: now).

        Raises:
            BusyError: `max_queue` requests wait already.
            StoppingError: The server ends.
            ValueError: The policy refuses the observation.
            TimeoutError: No answer within `timeout_s`.
            Exception: What inference raised.
        """
        if self._stopping:
            raise StoppingError("the server is about to end; ask again when it is back")
        if len(self._queue) >= self.limits.max_queue:
            raise BusyError(f"{len(self._queue)} requests wait already; ask again later")
        waiting = _Waiting(request, asyncio.get_running_loop().create_future())
        if since is not None:
            waiting.since = since
        left = waiting.since + self.limits.timeout_s - time.monotonic()
        self._queue.append(waiting)
        self._tell()
        try:
            async with asyncio.timeout(left):
                return await waiting.answer
        except TimeoutError as error:
            raise TimeoutError(f"no actions within {self.limits.timeout_s:g} s") from error
        finally:
            if waiting in self._queue:
                self._queue.remove(waiting)
                self._tell()

    async def stop(self) -> None:
        """Answer what was accepted, within `grace_s`; refuse the rest by name, and all that comes later."""
        self._stopping = True
        end = time.monotonic() + self.limits.grace_s
        while (self._queue or self._in_work) and time.monotonic() < end:
            await asyncio.sleep(0.01)
        self._task.cancel()
        for waiting in [*self._in_work, *self._queue]:
            if not waiting.answer.done():
                waiting.answer.set_exception(StoppingError("the server ends before this request's turn"))
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _tell(self) -> None:
        self.metrics.waiting.set(len(self._queue))
        self._changed.set()

    async def _run(self) -> None:
        while True:
            while not self._queue:
                self._changed.clear()
                await self._changed.wait()
            await self._fill()
            batch = self._take()
            if not batch:
                continue
            self._in_work, self._begun = batch, time.monotonic()
            answers = await asyncio.get_running_loop().run_in_executor(
                self._thread, self._infer_each, [one.request for one in batch]
            )
            self._begun = None
            self.metrics.batch_size.observe(len(batch))
            for waiting, answer in zip(batch, answers, strict=True):
                if waiting.answer.done():  # its client left, or its time was over
                    continue
                if isinstance(answer, Exception):
                    waiting.answer.set_exception(answer)
                else:
                    waiting.answer.set_result(answer)
            self._in_work = []

    async def _fill(self) -> None:
        """Wait until a batch is full or its oldest request has waited `max_wait_ms`."""
        until = self._queue[0].since + self.limits.max_wait_ms / 1000
        while 0 < len(self._queue) < self.limits.max_batch and (left := until - time.monotonic()) > 0:
            self._changed.clear()
            try:
                async with asyncio.timeout(left):
                    await self._changed.wait()
            except TimeoutError:
                return

    def _take(self) -> list[_Waiting]:
        """Take up to `max_batch` requests of the oldest one's form off the queue."""
        if not self._queue:
            return []
        form = self._queue[0].request.form
        batch = [one for one in self._queue if one.request.form == form][: self.limits.max_batch]
        for waiting in batch:
            self._queue.remove(waiting)
        self.metrics.waiting.set(len(self._queue))
        return batch

    def _infer_each(self, requests: list[ServedRequest]) -> list[Answer | Exception]:
        """Infer together; if that fails, each alone, so that one client's error is not another's."""
        try:
            return self.infer(requests)
        except Exception as error:  # noqa: BLE001  raised again by `ask`, for the request that it is of
            if len(requests) == 1:
                return [error]
            if not isinstance(error, ValueError):  # that is one client's, who is told
                _log.warning("a batch of %d failed, each is tried alone", len(requests), exc_info=True)
        return [answer for request in requests for answer in self._infer_each([request])]
