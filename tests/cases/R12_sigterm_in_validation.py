"""SIGTERM while pi0-train validates was noticed only after the whole validation and one more step
(goodfire-ai/spd#741): torchrun and SLURM kill after 30 s, without a checkpoint."""

import os
import signal
import time

from harness import WORK, Started, check, end, make, train_arguments


def make_validation_slow() -> None:
    """Let each batch of the validation take 2 s, as it does at the real size; there are 20 of them."""
    from pi0.ript.supervised.trainer import Training

    validate = Training._validate

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

            def __len__(self):
                return 20

        object.__setattr__(self.parts.data, "validation", Slow())
        try:
            return validate(self)
        finally:
            object.__setattr__(self.parts.data, "validation", batches)

    Training._validate = slow


data, log = make(count=8, size=16), WORK / "log"
validated = ["val_freq=2", "dataset_mixture.val_split_ratio=0.2"]
words = train_arguments(data, "val", "steps=1000", "save_freq=500", *validated)
process = Started(words, log, make_validation_slow)
process.wait(90, until=lambda: log.exists() and "validating" in log.read_text(errors="replace"))
time.sleep(1)
begin = time.monotonic()
os.kill(process.pid, signal.SIGTERM)
code = process.wait(30)
seconds = time.monotonic() - begin
saved = sorted(path.name for path in (WORK / "val/run").glob("checkpoint-*") if "best" not in path.name)
check(
    code == 143 and bool(saved),
    f"SIGTERM in a validation of 40 s: exit {code} after {seconds:.0f} s, checkpoints {saved} (expected: 143 "
    "and a checkpoint within torchrun's 30 s)",
)
print((log.read_text(errors="replace").strip().splitlines() or [""])[-1][-200:])
process.kill()
end()
