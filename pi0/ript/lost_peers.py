"""Which process is missing when the others wait for it in vain, and whether all are at the same exchange."""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch.distributed as dist

_PATIENCE_S = 3.0  # those who wait for the same process notice it at about the same time
_FUNCTIONS = 3  # that tell one exchange from another
_PASSED_OVER = {
    *(__name__, "pi0.ript.distributed", "pi0.ript.peers", "contextlib"),
    "jaxtyping._decorator",  # where shapes are checked
}
"""Modules that say nothing of what is exchanged."""


class PeerLostError(RuntimeError):
    """Another process of the run ended or stopped answering."""

    explains_itself = True


class OutOfStepError(RuntimeError):
    """The processes are at different exchanges, so what they exchange is not what each takes it for."""

    explains_itself = True


@dataclass(frozen=True)
class RollCall:
    """Finds out, through torchrun's store, which processes still answer; alone there is nobody to call."""

    rank: int = 0
    size: int = 1
    store: Any = field(default=None, repr=False)

    @contextlib.contextmanager
    def clear_errors(self) -> Iterator[None]:
        """Say in one line what a broken connection means: which process is missing, and at what.

        Raises:
            PeerLostError: The block raised an error of the connection.
        """
        try:
            yield
        except RuntimeError as error:
            if not _is_connection(error):
                raise
            reason = str(error).strip().splitlines()[0]
            missing = self.missing()
            who = f"rank {', '.join(map(str, missing))}" if missing else "another process of the run"
            raise PeerLostError(
                f"rank {self.rank}: {who} ended or stopped answering, noticed in {place()} ({reason}); its "
                "own messages, above or in its log file, say why"
            ) from None

    def missing(self) -> list[int]:
        """Return the processes that do not say within seconds that they miss one, too."""
        if self.store is None:
            return []
        present = {self.rank}
        # In a thread: a store whose process is stopped does not answer, either.
        thread = threading.Thread(target=self._call, args=(present,), daemon=True)
        thread.start()
        thread.join(_PATIENCE_S + 1)
        return sorted(set(range(self.size)) - present)

    def _call(self, present: set[int]) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        with contextlib.suppress(RuntimeError):  # the store ended with its process
            self.store.set(_key(self.rank), "here")
            while len(present) < self.size and time.monotonic() < deadline:
                others = set(range(self.size)) - present
                present |= {rank for rank in others if self.store.check([_key(rank)])}
                time.sleep(0.05)


def require_in_step(places: Sequence[str]) -> None:
    """Raise OutOfStepError unless all processes, by rank, are at the same place of the program."""
    if len(set(places)) > 1:
        where = ", ".join(f"rank {rank} in {name}" for rank, name in enumerate(places))
        raise OutOfStepError(
            f"the processes are out of step: {where}; one has left out an exchange that the others made; "
            "look for code that only some of them run (an `if` on the rank, a loop of their own length)"
        )


def place() -> str:
    """Return where in the program this process exchanges something: the innermost functions and lines."""
    names: list[str] = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and len(names) < _FUNCTIONS:
        if frame.f_globals.get("__name__", "") not in _PASSED_OVER:
            file = frame.f_code.co_filename.rpartition(os.sep)[2]
            names.append(f"{frame.f_code.co_name} ({file}:{frame.f_lineno})")
        frame = frame.f_back
    return " < ".join(names)


def _key(rank: int) -> str:
    return f"pi0/misses-another/{rank}"


def _is_connection(error: RuntimeError) -> bool:
    words = ("gloo", "nccl", "connection", "timed out", "timeout", "peer")
    return isinstance(error, dist.DistBackendError | dist.DistNetworkError) or any(
        word in str(error).lower() for word in words
    )
