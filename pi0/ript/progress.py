"""Progress of long work: a bar on a terminal, a line now and then in a file or a pipe."""

import sys
import threading
import time
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from tqdm import tqdm

_INTERVAL_S = 30.0  # between two lines, whichever bars they are of
_TICK_S = 1.0  # between two looks whether a line is due
_clock = time.monotonic
_bars: "weakref.WeakSet[tqdm]" = weakref.WeakSet()


@dataclass
class Doing:
    """What this process is at, for those who watch it."""

    stage: str | None = None
    """The stage of a run that has stages."""
    stopping: str | None = None
    """Who asked it to stop, if anybody did."""


doing = Doing()


def progress_bar(items: Iterable[Any] | None = None, **options: Any) -> tqdm:
    """Return tqdm's bar if stderr is a terminal, otherwise one that writes lines to it; see `ProgressLines`.

    Args:
        items: What to go through; without, `update` says what is done.
        options: Of tqdm: `total`, `initial`, `unit`, `desc`, `disable`, `delay`, and `leave`, which is False
            for what nobody wants to read of once it is over.
    """
    kind = tqdm if sys.stderr.isatty() else ProgressLines
    bar = kind(items, **options)
    if not bar.disable:
        _bars.add(bar)
    return bar


def innermost_bar() -> tqdm | None:
    """Return the bar of the innermost work that is under way."""
    bars = [bar for bar in list(_bars) if not bar.disable]  # tqdm disables a bar that is closed
    return max(bars, key=lambda bar: abs(bar.pos), default=None)


def print_above(text: str) -> None:
    """Print a line to stdout, above a bar that is being drawn."""
    tqdm.write(text)


class ProgressLines(tqdm):
    """A bar that says in lines how far it is: at most one in 30 s, of all bars together, and one at the end.

    A line has the rate, the time left, and the figures of `set_postfix`. Where bars are nested, the innermost
    speaks. A thread looks at the clock, so that lines come while a single item takes long. With
    `leave=False` there is no line at the end, unless there was one before.
    """

    monitor_interval = 0  # tqdm's own thread is for bars that are drawn
    _last_line: float | None = None  # when any bar wrote one, or the first bar began
    _open: ClassVar["weakref.WeakSet[ProgressLines]"] = weakref.WeakSet()

    def __init__(self, items: Iterable[Any] | None = None, **options: Any) -> None:
        self._begun, self._has_spoken, self._closed = _clock(), False, threading.Event()
        if ProgressLines._last_line is None:
            ProgressLines._last_line = self._begun
        # With gui=True tqdm counts and draws nothing.
        super().__init__(items, **options, gui=True, mininterval=0, miniters=1)
        if not self.disable:
            ProgressLines._open.add(self)
            watch = (weakref.ref(self), self._closed)
            threading.Thread(target=_keep_speaking, args=watch, name="progress", daemon=True).start()

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Write a line if it is time for one, and for this bar to speak; return whether it was written."""
        assert ProgressLines._last_line is not None
        is_due = _clock() - ProgressLines._last_line >= _INTERVAL_S
        if is_due and self._is_innermost():
            ProgressLines._last_line, self._has_spoken = _clock(), True
            self._write(self._left())
            return True
        return False

    def reset(self, total: float | None = None) -> None:
        """Begin again, as tqdm does."""
        self._begun = _clock()
        super().reset(total)

    def close(self) -> None:
        """Write the last line."""
        if not getattr(self, "disable", True):
            self._closed.set()
            ProgressLines._open.discard(self)
            if self.leave or self._has_spoken:
                ProgressLines._last_line = _clock()
                self._write(f"in {self.format_interval(_clock() - self._begun)}")
        super().close()

    def clear(self, nolock: bool = False) -> None:
        """Do nothing: no bar was drawn."""

    def _is_innermost(self) -> bool:
        return all(abs(bar.pos) <= abs(self.pos) for bar in list(ProgressLines._open))

    def _rate(self) -> float:
        """Return items per second since the beginning, 0 if there are none yet."""
        seconds = _clock() - self._begun
        return (self.n - self.initial) / seconds if seconds > 0 else 0.0

    def _left(self) -> str:
        rate = self._rate()
        if not self.total or rate <= 0:
            return f"for {self.format_interval(_clock() - self._begun)} by now"
        return f"{self.format_interval(max(0, self.total - self.n) / rate)} left"

    def _write(self, duration: str) -> None:
        rate = self._rate()
        speed = f"{rate:.2f} {self.unit}/s" if rate >= 1 or rate <= 0 else f"{1 / rate:.1f} s/{self.unit}"
        count = f"{self.n}/{self.total}" if self.total else f"{self.n} {self.unit}"
        what = f"{self.desc}: " if self.desc else ""
        parts = [f"{what}{count}", speed, duration, self.postfix]
        self.fp.write(", ".join(part for part in parts if part) + "\n")
        self.fp.flush()


def _keep_speaking(reference: "weakref.ref[ProgressLines]", closed: threading.Event) -> None:
    """Let a bar speak when it is time, until it is closed or gone."""
    while not closed.wait(_TICK_S):
        bar = reference()
        if bar is None:
            return
        bar.refresh()
        del bar
