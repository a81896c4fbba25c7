"""A run in Weights & Biases that never stops the training."""

import json
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pi0.ript.files import write_json

_START_S, _LOG_S, _FINISH_S = 90.0, 30.0, 90.0  # what W&B gets to answer
_GRACE_S = 10.0  # more, where it keeps the limit itself


class WandbRun:
    """A run in W&B, resumed where the run's directory knows its id.

    The first call that fails, or does not answer in time, is reported once and is the last.
    """

    def __init__(self, run_dir: Path):
        self._run_dir = run_dir
        self._file = run_dir / "wandb_config.json"
        self._state: dict[str, Any] = {}
        self._run: Any = None

    def start(self, config: Any) -> None:
        """Start the run and say where it is; see `init_wandb`."""
        settings = config.logging
        target = {"project": settings.wandb_project, "entity": settings.wandb_entity}
        online = settings.wandb_mode == "online"

        def start() -> Any:
            import wandb  # takes seconds

            saved = json.loads(self._file.read_text()) if self._file.exists() else {}
            # A run id means nothing in another project.
            self._state = saved if target.items() <= saved.items() else {**target, "last_step": -1}
            return wandb.init(
                **target,
                name=config.exp_name,
                id=self._state.get("run_id"),
                resume="allow" if online else None,
                mode=settings.wandb_mode,
                dir=self._run_dir,
                config=asdict(config),
                # The log file has the console. Without a limit, a lost network would keep the program alive.
                settings=wandb.Settings(init_timeout=_START_S, finish_timeout=_FINISH_S, console="off"),
            )

        with _nobody_to_ask():
            self._run = run = self._call("init", start, _START_S + _GRACE_S)
        if run is None:
            return
        self._state["run_id"] = run.id
        self._save()
        where = run.url if online else f"send it later: wandb sync {Path(run.dir).parent}"
        print(f"✓ WandB初始化成功 / W&B ready: {settings.wandb_mode}, run {run.id}, {where}")  # noqa: T201

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        """Log a row, unless it was logged before the run was resumed."""
        if self._run is None or step <= self._state["last_step"]:
            return
        row = {key: value for key, value in metrics.items() if value is not None}
        run = self._run
        self._call("log", lambda: run.log(row, step=step, commit=True), _LOG_S)
        if self._run is not None:
            self._state["last_step"] = step
            self._save()

    def finish(self) -> None:
        """End the run and wait, for a limited time, until it is sent."""
        if self._run is not None:
            self._call("finish", self._run.finish, _FINISH_S + _GRACE_S)
            self._run = None

    def _call(self, what: str, function: Callable[[], Any], limit: float) -> Any:
        """Return what W&B answers; when it fails or takes longer than the limit, None, and W&B is off."""
        answer: list[Any] = []
        reason: list[str] = []

        def call() -> None:
            try:
                answer.append(function())
            except (OSError, RuntimeError, ValueError, ImportError, *_wandb_errors()) as error:
                reason.append(f"{type(error).__name__}: {error}")

        thread = threading.Thread(target=call, name=f"wandb-{what}", daemon=True)
        thread.start()
        thread.join(limit)
        if answer:
            return answer[0]
        self._run = None
        late = f"no answer within {limit:.0f} s" if thread.is_alive() else "see the traceback above"
        why = reason[0] if reason else late
        print(  # noqa: T201
            f"warning: W&B is off, training goes on, its metrics are in metrics.jsonl ({what}: {why}). "
            "Where W&B cannot be reached: logging.wandb_mode=offline; where it lacks a key: `wandb login`",
            file=sys.stderr,
        )
        return None

    def _save(self) -> None:
        write_json(self._file, self._state)


def _wandb_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions of W&B itself, once it is imported."""
    error = getattr(sys.modules.get("wandb"), "Error", None)
    return () if error is None else (error,)


@contextmanager
def _nobody_to_ask() -> Iterator[None]:
    """Keep W&B from prompting: it asks for a key where standard input is a terminal."""
    stdin = sys.stdin
    with Path(os.devnull).open() as sys.stdin:
        try:
            yield
        finally:
            sys.stdin = stdin
