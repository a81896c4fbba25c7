"""SIGTERM while pi0-train validates was noticed only after the whole validation and one more step
(goodfire-ai/spd#741): torchrun and SLURM kill after 30 s, without a checkpoint."""

import contextlib
import signal
import subprocess
import sys
import time

from harness import WORK, check, end, environment, make, train_arguments

CODE = """
import sys, time
from pi0.ript.supervised.trainer import Training
# Each batch of the validation takes 2 s, as it does at the real size; there are 20 of them.
inner = Training._validate
def slow(self):
    batches = self.parts.data.validation
    class Slow:
        num_frames = batches.num_frames
        def __iter__(self):
            for batch in batches:
                for _ in range(20):
                    print("validating", flush=True)
                    time.sleep(2)
                    yield batch
        def __len__(self): return 20
    object.__setattr__(self.parts.data, "validation", Slow())
    try:
        return inner(self)
    finally:
        object.__setattr__(self.parts.data, "validation", batches)
Training._validate = slow
from pi0.ript.scripts.train import main
sys.exit(main(sys.argv[1:]))
"""
data, log = make(count=8, size=16), WORK / "log"
validated = ["val_freq=2", "dataset_mixture.val_split_ratio=0.2"]
words = train_arguments(data, "val", "steps=1000", "save_freq=500", *validated)
process = subprocess.Popen(
    [sys.executable, "-c", CODE, *words],
    stdout=log.open("w"),
    stderr=subprocess.STDOUT,
    env=environment(),
)
deadline = time.monotonic() + 90
while process.poll() is None and "validating" not in log.read_text(errors="replace"):
    if time.monotonic() > deadline:
        break
    time.sleep(0.1)
time.sleep(1)
begin = time.monotonic()
process.send_signal(signal.SIGTERM)
with contextlib.suppress(subprocess.TimeoutExpired):
    process.wait(30)
seconds = time.monotonic() - begin
saved = sorted(path.name for path in (WORK / "val/run").glob("checkpoint-*") if "best" not in path.name)
check(
    process.poll() == 143 and bool(saved),
    f"SIGTERM in a validation of 40 s: exit {process.poll()} after {seconds:.0f} s, checkpoints {saved} "
    "(expected: 143 and a checkpoint within torchrun's 30 s)",
)
print((log.read_text(errors="replace").strip().splitlines() or [""])[-1][-200:])
if process.poll() is None:
    process.kill()
    process.wait()
end()
