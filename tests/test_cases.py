"""Faults that users met: each script in tests/cases ends with 0 where its fault is mended, and says why."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CASES = sorted(
    path for path in (ROOT / "tests/cases").glob("*.py") if path.stem not in ("harness", "case_sets")
)


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.stem)
def test_a_mended_fault_stays_mended(case):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(case)]
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, f"{ended.stdout}\n{ended.stderr}"[-3000:]
