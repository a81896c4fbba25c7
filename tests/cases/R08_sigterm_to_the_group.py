"""SIGTERM to the process group (SLURM, timeout, kill -- -PGID) killed the processes that read data before the
trainer had saved: no checkpoint, exit code 1 (KempnerForge#203). Without such processes it was right."""

import os
import signal
import subprocess
import sys
import time

from harness import WORK, check, end, environment, make, train_arguments

data = make(size=16)
for workers in (0, 2):
    output = f"w{workers}"
    run_dir, log = WORK / output / "run", WORK / f"{output}.log"
    endless = ["steps=100000", "save_freq=50000", f"dataset_mixture.num_workers={workers}"]
    words = train_arguments(data, output, *endless, "dataset_mixture.in_memory_gib=0")
    process = subprocess.Popen(
        [sys.executable, "-m", "pi0.ript.scripts.train", *words],
        stdout=log.open("w"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env=environment(),
    )
    metrics, deadline = run_dir / "metrics.jsonl", time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if metrics.exists() and metrics.read_text().count("\n") >= 4:
            break
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    saved = sorted(path.name for path in run_dir.glob("checkpoint-*"))
    said = log.read_text(errors="replace").splitlines()
    last = [line for line in said if line.strip() and "%|" not in line][-1]
    check(
        process.returncode == 143 and bool(saved),
        f"num_workers={workers}: exit {process.returncode}, checkpoints {saved}, {last[:110]!r} (expected: "
        "143 and a checkpoint)",
    )
end()
