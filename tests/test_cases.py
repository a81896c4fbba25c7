"""Faults that users met: each script in tests/cases ends with 0 where its fault is mended, and says why."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CASES = {
    path.stem: path
    for path in sorted((ROOT / "tests/cases").glob("*.py"))
    if path.stem not in ("harness", "case_sets")
}
OF_SETS = [name for name, path in CASES.items() if "from case_sets import" in path.read_text()]
"""Those that share the start of a process: tests/cases/case_sets.py."""


def run(*words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True,
                          timeout=900)  # fmt: skip


@pytest.fixture(scope="module")
def outcomes_of_sets(request):
    """Exit code and output of the cases that were chosen, by name."""
    chosen = {item.callspec.params["name"] for item in request.session.items if item.fspath == request.fspath}
    ended = run("tests/cases/case_sets.py", *(name for name in OF_SETS if name in chosen))
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


@pytest.mark.parametrize("name", OF_SETS)
def test_a_mended_fault_of_data_and_settings_stays_mended(name, outcomes_of_sets):
    code, said = outcomes_of_sets[name]
    assert code == 0, said[-3000:]


@pytest.mark.parametrize("name", [name for name in CASES if name not in OF_SETS])
def test_a_mended_fault_stays_mended(name):
    ended = run(str(CASES[name]))
    assert ended.returncode == 0, f"{ended.stdout}\n{ended.stderr}"[-3000:]
