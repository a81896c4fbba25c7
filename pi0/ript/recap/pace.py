"""How long a run still takes: told when that is first known, and again as it changes."""

import time
from collections.abc import Callable
from dataclasses import dataclass

_MEASURED_STEPS = 3  # after the first of a training, which is slower
_BETWEEN_LOOKS_S = 30.0
_CHANGE = 0.25  # of the time that is left
_WORTH_TELLING_S = 300.0
_clock = time.monotonic


@dataclass(frozen=True)
class UnderWay:
    """A training that is being made."""

    name: str
    """Of what is trained: the objective's."""
    steps: int
    """Behind it."""
    seconds_per_step: float


@dataclass(frozen=True)
class TimeLeft:
    """What is known of the rest of a run."""

    seconds: float
    unknown: tuple[str, ...]
    """What has not been made yet, so that its time is not among the seconds."""

    def __str__(self) -> str:
        """Return it in a line."""
        without = f", without the {' and the '.join(self.unknown)}: none was made yet" if self.unknown else ""
        return f"about {self.seconds / 3600:.1f} h are left at the speed so far{without}"


class Pace:
    """Watches the stages of a run, and says how much time is left once `watch` was told how to know."""

    def __init__(self) -> None:
        self._estimate: Callable[[UnderWay | None], TimeLeft] | None = None
        self._first: tuple[str, int, float] | None = None
        self._looked = self._told_at = 0.0
        self._told: TimeLeft | None = None

    def watch(self, estimate: Callable[[UnderWay | None], TimeLeft]) -> None:
        """Tell from now on; `estimate` returns what is left, given the training under way, if one is."""
        self._estimate = estimate

    def after_step(self, name: str, step: int) -> None:
        """Look at the time after a step of a training."""
        now = _clock()
        if self._first is None or self._first[0] != name or step <= self._first[1]:
            self._first, self._looked = (name, step, now), 0.0
            return
        measured = step - self._first[1]
        if measured >= _MEASURED_STEPS and now - self._looked >= _BETWEEN_LOOKS_S:
            self._looked = now
            self._look(UnderWay(name, step, (now - self._first[2]) / measured))

    def after_stage(self) -> None:
        """Look at the time after a stage."""
        self._first = None
        self._look(None)

    def _look(self, under_way: UnderWay | None) -> None:
        if self._estimate is None:
            return
        left, now = self._estimate(under_way), _clock()
        if left.seconds < _WORTH_TELLING_S:
            return
        if self._told is not None and self._told.unknown == left.unknown:
            expected = self._told.seconds - (now - self._told_at)
            if abs(left.seconds - expected) <= _CHANGE * max(expected, 0.0):
                return
        self._told, self._told_at = left, now
        print(left)  # noqa: T201
