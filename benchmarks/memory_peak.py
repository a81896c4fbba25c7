"""The most memory that a process holds."""

import threading
import time
from pathlib import Path


class Peak:
    """The most anonymous memory of this process, looked at all the time; pages of files do not count."""

    def __init__(self) -> None:
        """Begin now."""
        self.before = self._highest = anonymous()
        threading.Thread(target=self._watch, daemon=True).start()

    def gib(self, *, whole: bool = False) -> float:
        """Return it above what the process held at the beginning; `whole`: all of it."""
        self._highest = max(self._highest, anonymous())
        return (self._highest - (0 if whole else self.before)) / 2**20

    def _watch(self) -> None:
        while True:
            time.sleep(0.003)
            self._highest = max(self._highest, anonymous())


def anonymous() -> int:
    """Return the anonymous memory of this process now, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon:")).split()[1])
