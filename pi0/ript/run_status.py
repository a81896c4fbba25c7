"""What a run is doing, in a small file for whoever watches many, and a command for what they must know.

`run_status.json` in the run's directory is rewritten every 15 s by a thread of rank 0. A run that was killed
cannot say so: its file stays as it was, and `read_status` tells it by the age of the file.
"""

import json
import os
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pi0.ript.files import write_json
from pi0.ript.progress import doing, innermost_bar

FILE = "run_status.json"
State = Literal["running", "stalled", "stopped", "failed", "finished"]
_BEAT_S = 15.0
_DEAD_S = 60.0  # a file that is older than this has nobody who refreshes it
_COMMAND_S = 60.0  # that a command may take


class RunStatus:
    """Keeps the file of one run up to date, from its making to `end`."""

    def __init__(self, directory: Path) -> None:
        """Write the file, and again every 15 s."""
        self.directory = directory
        self.on_event: str | None = None
        """Command that is started when the run stalls, fails or finishes."""
        self.stalled_after_s = 1800.0
        """Time without progress after which the run counts as stalled."""
        self._started, self._state = time.time(), "running"
        self._position: tuple[Any, ...] = ()
        self._moved = time.monotonic()
        self._ended, self._lock = threading.Event(), threading.Lock()
        self._can_write = True
        self.refresh()
        threading.Thread(target=self._beat, name="run status", daemon=True).start()

    def refresh(self) -> None:
        """Write the file; tell the event if the run has stalled since the last time."""
        with self._lock:
            if self._ended.is_set():
                return
            position = _position()
            key = (position["stage"], position["activity"], position["step"])
            if key != self._position:
                self._position, self._moved = key, time.monotonic()
            idle = time.monotonic() - self._moved
            state: State = "stalled" if idle >= self.stalled_after_s else "running"
            reason = f"no progress for {idle:.0f} s" if state == "stalled" else None
            is_new = state == "stalled" and self._state != "stalled"
            self._state = state
            self._write(state, reason, position)
        if is_new:
            self._tell(state, reason)

    def end(self, state: State, reason: str | None = None) -> None:
        """Write the last state of the run, and tell it; a second call does nothing."""
        with self._lock:
            if self._ended.is_set():
                return
            self._ended.set()
            self._write(state, reason, _position())
        if state != "stopped":
            self._tell(state, reason)

    def _beat(self) -> None:
        while not self._ended.wait(_BEAT_S):
            self.refresh()

    def _write(self, state: State, reason: str | None, position: Mapping[str, Any]) -> None:
        values = {
            "state": state,
            "reason": reason,
            **position,
            "last_checkpoint": _last_checkpoint(self.directory),
            "started": _iso(self._started),
            "updated": _iso(time.time()),
            "host": socket.gethostname(),
            "pid": os.getpid(),
        }
        try:
            write_json(self.directory / FILE, values)
            self._can_write = True
        except OSError as error:  # a full disk is for the checkpoint to report; watching must not end a run
            if self._can_write:
                print(f"{self.directory / FILE}: not written ({error})", file=sys.stderr)  # noqa: T201
            self._can_write = False

    def _tell(self, state: State, reason: str | None) -> None:
        """Start the command of the user; what fails is said, and the run goes on."""
        if not self.on_event:
            return
        environment = {
            **os.environ,
            "PI0_EVENT": state,
            "PI0_RUN": str(self.directory.resolve()),
            "PI0_REASON": reason or "",
        }
        try:
            subprocess.run(shlex.split(self.on_event), env=environment, timeout=_COMMAND_S, check=True)
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            print(f"on_event: {self.on_event!r} failed at {state!r} ({error})", file=sys.stderr)  # noqa: T201


def read_status(file: Path) -> dict[str, Any]:
    """Return the content of a run_status.json.

    A run that says it is running and has not refreshed its file for a minute is "lost".

    Raises:
        ValueError: The file is none.
    """
    try:
        values = json.loads(file.read_text())
        age = time.time() - datetime.fromisoformat(values["updated"]).timestamp()
        state = values["state"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file}: expected the status of a run, found something else ({error})") from error
    if state in ("running", "stalled") and age > _DEAD_S:
        reason = f"not refreshed for {age:.0f} s; process {values.get('pid')} on {values.get('host')}"
        values |= {"state": "lost", "reason": reason}
    return values


def status_lines(directory: Path) -> Iterator[str]:
    """Yield a line for each run in a directory or below it: where, state, position, time left.

    Raises:
        ValueError: There is no run, or the file of one is damaged.
    """
    files = sorted(directory.rglob(FILE))
    if not files:
        raise ValueError(f"{directory}: no {FILE} in it or below; expected the output_dir of runs")
    for file in files:
        values = read_status(file)
        step, total = values.get("step"), values.get("total")
        count = "" if step is None else f" {step}/{total}" if total else f" {step}"
        doing_now = " ".join(filter(None, (values.get("stage"), values.get("activity"))))
        left = values.get("seconds_left")
        parts = [
            values["state"],
            f"{doing_now}{count}".strip(),
            "" if values.get("rate_per_s") is None else f"{values['rate_per_s']:.3g}/s",
            "" if left is None else f"{left / 60:.0f} min left of it",
            values.get("last_checkpoint") and f"last checkpoint {values['last_checkpoint']}",
            values.get("reason"),
        ]
        yield f"{file.parent}: " + ", ".join(part for part in parts if part)


def _position() -> dict[str, Any]:
    """Return what this process is doing, by the bar that shows it."""
    bar = innermost_bar()
    figures = {} if bar is None else bar.format_dict
    count, total, elapsed = (figures.get(name) for name in ("n", "total", "elapsed"))
    done = (count or 0) - (figures.get("initial") or 0)
    rate = done / elapsed if elapsed and done > 0 else None
    return {
        "stage": doing.stage,
        "activity": (figures.get("prefix") or "").rstrip(": ") or None,
        "step": count,
        "total": total,
        "rate_per_s": rate,
        "seconds_left": (total - count) / rate if rate and total and count is not None else None,
    }


def _last_checkpoint(directory: Path) -> str | None:
    """Return the newest checkpoint of a run, or of the stage that it is in."""
    patterns = ("checkpoint-*", "*.partial/checkpoint-*", "*/*.partial/checkpoint-*")
    paths = [path for pattern in patterns for path in directory.glob(pattern) if path.is_dir()]
    times = {path: time for path in paths if (time := _modified(path)) is not None}
    return max(times, key=lambda path: times[path]).relative_to(directory).as_posix() if times else None


def _modified(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:  # replaced by a newer one meanwhile
        return None


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
