"""Guards of a long run: memory, losses that are not finite, and a profiler for its first steps."""

import atexit
import gc
import math
import signal
from collections.abc import Callable
from pathlib import Path

import psutil
import torch
from jaxtyping import Float
from torch import Tensor

from pi0.ript.interruption import request_stop

_COLLECT_ABOVE = 0.9  # of the limit


class NonFiniteLossError(RuntimeError):
    """Several optimizer steps in a row had no finite loss or gradient."""

    explains_itself = True


def is_finite(loss: float, gradient_norm: float) -> bool:
    """Return whether an optimizer step may be made; what is not finite is printed.

    Args:
        loss: The loss of the whole step, summed over all processes, so that all decide alike.
        gradient_norm: The norm of the gradients, which all processes share.
    """
    if math.isfinite(loss) and math.isfinite(gradient_norm):
        return True
    print(f"the loss is {loss}, the norm of its gradient {gradient_norm}: no step is made")  # noqa: T201
    return False


def count_skipped(before: int, limit: int, where: str, give_up: Callable[[], str]) -> int:
    """Return how many optimizer steps in a row are skipped, with the present one.

    Args:
        before: Steps in a row that were skipped before it.
        limit: Steps in a row at which the run ends.
        where: The step, for the message.
        give_up: Called before the run ends; returns the remedy.

    Raises:
        NonFiniteLossError: That many are reached.
    """
    if before + 1 >= limit:
        raise NonFiniteLossError(
            f"{where}: its loss or gradient is not finite; that is number {before + 1} in a row "
            f"(max_nonfinite_steps={limit}). {give_up()}"
        )
    print(f"{where}: skipped on all processes")  # noqa: T201
    return before + 1


def monitor_memory(limit_gb: float | None = None) -> dict[str, float]:
    """Return the memory in use as metrics, in 10^9 bytes: host (with simulators), and GPU at its peak.

    Above nine tenths of the limit on the host's, garbage is collected. If it is still above the limit, the
    run is asked to stop (with a checkpoint, exit code 137), before the kernel ends it without one.
    """
    used = _resident_gb()
    if limit_gb and used > _COLLECT_ABOVE * limit_gb:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        used = _resident_gb()
        if used > limit_gb:
            request_stop(
                signal.SIGKILL,
                f"memory: this process and its simulators use {used:.2f} GB, the simulators "
                f"{used - _resident_gb(children=False):.2f} GB, more than memory_limit_gb={limit_gb:g}, "
                "after garbage collection: stopping with a checkpoint; raise the limit, or lower "
                "task.num_parallel_envs, algo.data_batch_size or algo.rloo_batch_size",
            )
    metrics = {"memory/rss_gb": round(used, 3)}
    if torch.cuda.is_available():
        metrics["memory/gpu_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 3)
    return metrics


def _resident_gb(children: bool = True) -> float:
    """Return the resident memory of this process and, if asked, of its child processes."""
    process = psutil.Process()
    total = process.memory_info().rss
    for child in process.children(recursive=True) if children else ():
        try:
            total += child.memory_info().rss
        except psutil.NoSuchProcess:  # it has just ended
            continue
    return total / 1e9


def take_step(optimizer: torch.optim.Optimizer, loss: float, gradient_norm: Float[Tensor, ""]) -> bool:
    """Make an optimizer step, or skip it if loss or gradient are not finite; return whether it was made.

    The gradients are used up either way.

    Args:
        optimizer: The optimizer of the parameters with these gradients.
        loss: The loss of the whole step, summed over all processes, so that all decide alike.
        gradient_norm: The norm of the gradients, which all processes share.
    """
    is_taken = is_finite(loss, gradient_norm.item())
    if is_taken:
        optimizer.step()
    optimizer.zero_grad()
    return is_taken


class ProfileWindow:
    """Profiles some optimizer steps from the first `step` on, then writes a trace; with 0 it does nothing."""

    def __init__(self, num_steps: int, run_dir: Path, rank: int = 0) -> None:
        """Do nothing yet; the trace will be RUN_DIR/profiling/trace_rank{RANK}.json."""
        self.path, self._left = run_dir / "profiling" / f"trace_rank{rank}.json", num_steps
        self._profiler: torch.profiler.profile | None = None

    def step(self) -> None:
        """Say that an optimizer step has ended."""
        if self._profiler is not None:
            self._left -= 1
            if self._left == 0:
                self.close()
        elif self._left > 0:
            self._profiler = torch.profiler.profile(acc_events=True)
            self._profiler.start()
            atexit.register(self.close)

    def close(self) -> None:
        """Write the trace of what was recorded, once."""
        if self._profiler is not None:
            profiler, self._profiler, self._left = self._profiler, None, 0
            profiler.stop()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            profiler.export_chrome_trace(str(self.path))
            print(f"profile of the first steps (chrome://tracing, perfetto): {self.path}")  # noqa: T201
