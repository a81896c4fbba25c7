"""A row of metrics costs the same after 1 000 rows as after 30 000: once the whole file was read for each.

Exit code 0: right; 1: wrong, with what is wrong. Run from the root of a checkout. Linux counts the bytes.
"""

import json
import sys
import tempfile
from pathlib import Path

from pi0.ript.report import append_row

ROW = {"gradient_norm": 2.0, "learning_rate": 1e-4, "epoch": 0.5, "memory/rss_gb": 1.2}


def moved_bytes() -> int:
    """Return the bytes that this process has read and written so far."""
    counts = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(counts["rchar"]) + int(counts["wchar"])


def bytes_of_a_row(directory: Path, num_rows: int) -> int:
    """Return the bytes that adding a row moves when there are as many as that."""
    rows = [{"step": step, "loss": 1 / step, **ROW} for step in range(1, num_rows + 1)]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    append_row(directory, {"loss": 1.0}, num_rows + 1)
    before = moved_bytes()
    for more in range(2, 5):
        append_row(directory, {"loss": 1.0, "gradient_norm": 2.0}, num_rows + more)
    return (moved_bytes() - before) // 3


with tempfile.TemporaryDirectory() as place:
    moved = {num_rows: bytes_of_a_row(Path(place), num_rows) for num_rows in (1000, 30_000)}
is_right = moved[30_000] < 3 * moved[1000] + 2000
what = f"{moved[1000]} after 1000 rows, {moved[30_000]} after 30 000 (expected: about the same)"
print(f"{'right' if is_right else 'WRONG'}  bytes a row: {what}")
sys.exit(not is_right)
