"""What a run writes down as it goes: all that the console saw, metrics, phases in seconds, status, W&B.

A process logs one run at a time, from `setup_run_logging` to `close_run_logging` or to its exit.
"""

import atexit
import logging
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pi0.ript.console_log import LogFile, _TeeIO
from pi0.ript.progress import doing
from pi0.ript.report import append_row, read_rows
from pi0.ript.results import require_own_directory
from pi0.ript.run_status import RunStatus
from pi0.ript.wandb_run import WandbRun

_FIRST_REPORT_S = 30.0  # a run that ends sooner draws its plots once
_REPORT_SHARE = 0.05  # of the time may go into redrawing them


@dataclass
class _RunLog:
    directory: Path
    rank: int
    file: LogFile
    tees: dict[str, _TeeIO]
    consoles: dict[str, Any]
    report: Callable[[Path], object] | None
    next_report: float
    status: RunStatus | None
    wandb: WandbRun | None = None
    num_rows: int = 0


_run: _RunLog | None = None


def setup_run_logging(
    output_dir: str | Path, rank: int, report: Callable[[Path], object] | None = None
) -> Path:
    """Copy the console to OUTPUT_DIR/train_rank{RANK}.log from now on, and return that file.

    This includes tracebacks, warnings and what `logging` writes there. An existing file is continued; another
    run of this process ends first.

    Args:
        output_dir: The run's directory.
        rank: The rank of this process.
        report: Writes the page of the run in this directory; `log_metrics` calls it now and then.

    Raises:
        ValueError: The directory's metrics.jsonl is damaged.
    """
    global _run
    close_run_logging()
    directory = Path(output_dir)
    directory.mkdir(parents=True, exist_ok=True)
    if rank == 0:
        read_rows(directory)
    path = directory / f"train_rank{rank}.log"
    file = LogFile(path)
    consoles = {name: getattr(sys, name) for name in ("stdout", "stderr")}
    tees = {name: _TeeIO(console, file) for name, console in consoles.items()}
    next_report = time.monotonic() + _FIRST_REPORT_S
    status = RunStatus(directory) if rank == 0 else None
    _run = _RunLog(directory, rank, file, tees, consoles, report, next_report, status)
    for name in consoles:
        _replace_stream(name, consoles[name], tees[name])
    print(f"✓ 日志文件创建: {path} (log file created)")  # noqa: T201
    return path


def close_run_logging() -> None:
    """End the run as finished, W&B's run too, and the copying to the log file; without a run, do nothing."""
    global _run
    if _run is None:
        return
    if _run.status is not None:
        _run.status.end("finished")
    if _run.wandb is not None:
        _run.wandb.finish()
    for name, tee in _run.tees.items():
        _replace_stream(name, tee, _run.consoles[name])
        tee.finish()
    _run.file.close()
    _run = None


@atexit.register
def _close_at_exit() -> None:
    if _run is not None:
        _run.wandb = None  # it ends by itself, and knows of an uncaught exception
        if _run.status is not None:
            is_stop = doing.stopping is not None
            reason = doing.stopping or _run.tees["stderr"].last_line
            _run.status.end("stopped" if is_stop else "failed", reason)
    close_run_logging()


def _replace_stream(name: str, old: Any, new: Any) -> None:
    """Replace one of sys's streams, also in the handlers of `logging` that hold it."""
    if getattr(sys, name) is old:  # and not what somebody else put there since
        setattr(sys, name, new)
    for logger in [logging.root, *logging.root.manager.loggerDict.values()]:
        for handler in getattr(logger, "handlers", ()):
            if isinstance(handler, logging.StreamHandler) and handler.stream is old:
                handler.setStream(new)


def _current() -> _RunLog:
    if _run is None:
        raise RuntimeError("no run is being logged: call setup_run_logging(output_dir, rank) first")
    return _run


def init_wandb(config: Any, run_dir: str | Path, rank: int) -> None:
    """Start, or resume, the run in W&B that `log_metrics` also reports to; on rank 0 only.

    From here on `logging.on_event` is also told when the run stalls, fails or finishes.

    It never asks for anything and never stops the training: what fails or hangs is said once, and W&B is off.

    Args:
        config: A dataclass, recorded as a whole, with `exp_name` and `logging`: `use_wandb`, `wandb_project`,
            `wandb_entity`, `wandb_mode` (online, offline or disabled), `on_event` and `stalled_after_s`.
        run_dir: Keeps the run's id, by which it is resumed, in wandb_config.json.
        rank: The rank of this process.
    """
    run = _current()
    if rank > 0:
        return
    if run.status is not None:
        run.status.on_event = config.logging.on_event
        run.status.stalled_after_s = config.logging.stalled_after_s
    if config.logging.use_wandb and config.logging.wandb_mode != "disabled":
        run.wandb = WandbRun(Path(run_dir))
        run.wandb.start(config)
    else:
        print("W&B disabled")  # noqa: T201


def log_metrics(metrics: Mapping[str, Any], step: int) -> None:
    """Write a row to the run's metrics.jsonl and to W&B, and keep its page up to date; on rank 0 only.

    A step logged before is replaced, with all that came after it, so that a resumed run repeats none.

    Args:
        metrics: Numbers, or None, by name. One that is not finite is written as null and its value under
            "non_finite", so that the file stays JSON.
        step: The step of the run; it increases from call to call.

    Raises:
        RunGoneError: The run's directory was removed meanwhile.
    """
    run = _current()
    if run.rank > 0:
        return
    require_own_directory(run.directory)
    file = append_row(run.directory, metrics, step)
    if run.num_rows == 0:
        print(f"✓ 训练指标正常记录: {file} (metrics are recorded)")  # noqa: T201
    run.num_rows += 1
    if run.wandb is not None:
        run.wandb.log(metrics, step)
    start = time.monotonic()
    if run.report is not None and start > run.next_report:
        run.report(run.directory)
        end = time.monotonic()
        run.next_report = end + (end - start) / _REPORT_SHARE


class PhaseTimer:
    """Wall time by phase, since the timer was made or last split."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self._seconds: dict[str, float] = {}

    def split(self, phase: str) -> float:
        """Add the time since the last split to a phase, and return it in seconds."""
        now = time.monotonic()
        elapsed, self._last = now - self._last, now
        self._seconds[phase] = self._seconds.get(phase, 0.0) + elapsed
        return elapsed

    def metrics(self) -> dict[str, float]:
        """Return the seconds of each phase as "time/{phase}_s"."""
        return {f"time/{phase}_s": round(seconds, 3) for phase, seconds in self._seconds.items()}
