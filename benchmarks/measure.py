"""Time of interleaved runs, and the peak memory of a train step in a process of its own."""

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from contenders import Contender, build
from sizes import SIZES, Inputs, make_inputs

Run = Callable[[], object]


def keep_freed_memory() -> None:
    """Let the C library (glibc) hold on to freed memory instead of returning it to the system.

    Else large buffers are mapped and zeroed anew by the system each time they are needed, which it
    counts as CPU time of this process.
    """
    m_trim_threshold, m_mmap_max = -1, -4  # malloc.h
    libc = ctypes.CDLL(None)
    if not (libc.mallopt(m_mmap_max, 0) and libc.mallopt(m_trim_threshold, 2**31 - 1)):
        raise RuntimeError("mallopt: the C library refused to keep freed memory")


def clock(device: str, threads: int) -> Callable[[Run], float]:
    """Return a function that measures one run in seconds.

    One CPU thread: CPU time of the process, because wall time counts what else the machine does.
    Several: wall time. A GPU: wall time until it is idle.
    """

    def seconds(run: Run) -> float:
        now = time.process_time if device == "cpu" and threads == 1 else time.perf_counter
        _synchronize(device)
        start = now()
        run()
        _synchronize(device)
        return now() - start

    return seconds


def _synchronize(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def interleaved(
    runs: dict[str, Run], rounds: int, seconds: Callable[[Run], float]
) -> Iterator[tuple[str, float | None]]:
    """Yield (name, seconds) of A B C A B C ..., after each has run once unmeasured (None)."""
    for name, run in runs.items():
        run()
        yield name, None
    for _ in range(rounds):
        for name, run in runs.items():
            yield name, seconds(run)


def peak_memory(name: str, arguments: argparse.Namespace, cameras_real: list[int]) -> list[int]:
    """Return the bytes that a contender's train steps need at most, its weights included.

    One figure for each number of real cameras, over two steps after one that is not counted, in a
    process of its own. On a GPU it is what PyTorch allocated; on a CPU the weights and the growth
    of the resident set over that of the built model and inputs.
    """
    # Blocks from 64 KiB on go back to the system when freed, so the resident set is what is in use.
    environment = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    request = vars(arguments) | {"name": name, "cameras_real": cameras_real}
    child = subprocess.run(
        [sys.executable, __file__, json.dumps(request, default=str)],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        check=True,
    )
    return json.loads(child.stdout.splitlines()[-1])


def _measure_peaks(request: dict[str, Any]) -> list[int]:
    torch.set_num_threads(request["threads"])
    device, size = request["device"], SIZES[request["size"]]
    contender = build(size, request["dtype"], device, [request["name"]])[request["name"]]
    gc.collect()  # of lerobot's policy, which gave its weights
    peaks = []
    for real in request["cameras_real"]:
        inputs = make_inputs(size, request["batch"], real, request["prompt_tokens"]).to(device)
        peaks.append(_peak(contender, inputs, device))
    return peaks


def _peak(contender: Contender, inputs: Inputs, device: str) -> int:
    contender.train_step(inputs)
    contender.model.zero_grad(set_to_none=True)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = 0
    else:
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
        before = _status("VmRSS")
    for _ in range(2):
        contender.train_step(inputs)
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return contender.num_bytes() + _status("VmHWM") - before


def _status(field: str) -> int:
    """Return a figure of this process in bytes, from Linux's proc file system."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


if __name__ == "__main__":
    print(json.dumps(_measure_peaks(json.loads(sys.argv[1]))))
