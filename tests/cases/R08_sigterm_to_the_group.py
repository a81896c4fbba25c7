"""SIGTERM to the process group (SLURM, timeout, kill -- -PGID) killed the processes that read data before the
trainer had saved: no checkpoint, exit code 1 (KempnerForge#203). Without such processes it was right."""

import os
import signal

from harness import WORK, Started, check, end, make, train_arguments

data = make(size=16)
for workers in (0, 2):
    output = f"w{workers}"
    run_dir, log = WORK / output / "run", WORK / f"{output}.log"
    endless = ["steps=100000", "save_freq=50000", f"dataset_mixture.num_workers={workers}"]
    process = Started(train_arguments(data, output, *endless, "dataset_mixture.in_memory_gib=0"), log)
    metrics = run_dir / "metrics.jsonl"
    process.wait(120, until=lambda rows=metrics: rows.exists() and rows.read_text().count("\n") >= 4)
    os.killpg(process.pid, signal.SIGTERM)
    code = process.wait(60)
    process.kill()
    saved = sorted(path.name for path in run_dir.glob("checkpoint-*"))
    said = log.read_text(errors="replace").splitlines()
    last = [line for line in said if line.strip() and "%|" not in line][-1]
    check(
        code == 143 and bool(saved),
        f"num_workers={workers}: exit {code}, checkpoints {saved}, {last[:110]!r} (expected: 143 and a "
        "checkpoint)",
    )
end()
