"""A snapshot that is written beside the training, in a thread of each process; one at a time."""

import signal
from collections.abc import Callable
from threading import Thread

from pi0.ript.interruption import request_stop


class _Writing(Thread):
    """A write that has begun; the process does not end before it has."""

    def __init__(self, write: Callable[[], object]) -> None:
        super().__init__(name="checkpoint")
        self._write = write
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self._write()
        except BaseException as error:  # noqa: BLE001 - `wait` raises it where the training is
            self.error = error
            # The next step is the last: what it would learn might not be kept either.
            request_stop(signal.SIGTERM, "a checkpoint could not be written in the background: stopping")
        finally:
            del self._write  # and with it the copies


_under_way: list[_Writing] = []


def start(write: Callable[[], object]) -> None:
    """Begin a write and return at once; the one before has been waited for."""
    assert not _under_way
    _under_way.append(_Writing(write))
    _under_way[0].start()


def wait() -> None:
    """Return when nothing is being written any more; all processes that write together call this.

    Raises:
        SnapshotError: What was written could not be; it is raised here once.
    """
    while _under_way:
        writing = _under_way[0]
        writing.join()
        _under_way.clear()
        if writing.error is not None:
            raise writing.error
