"""A command that cannot go on ends with its code and one line, without a traceback: commands and faults.

The table is in tests/fault_runs.py, which runs it.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fault_runs import CASES, FAST, ROOT

LATER = [name for name in CASES if name not in FAST]


def outcomes(directory: Path, names: list[str]) -> dict[str, dict]:
    paths = os.pathsep.join(str(ROOT / part) for part in ("", "tests", "tools"))
    subprocess.run(
        [sys.executable, "-W", "ignore", str(ROOT / "tests/fault_runs.py"), str(directory), *names],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        check=True,
    )
    return json.loads((directory / "faults.json").read_text())


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    return outcomes(tmp_path_factory.mktemp("quick"), FAST)


@pytest.fixture(scope="module")
def later(tmp_path_factory):
    return outcomes(tmp_path_factory.mktemp("later"), LATER)


def require_one_line(name: str, outcome: dict) -> None:
    case, said = CASES[name], outcome["stderr"]
    assert "Traceback" not in said, said[-3000:]
    assert outcome["code"] == case.code, said[-3000:]
    assert case.said in said, said[-3000:]
    assert said.count("error:") == (case.signal is None), said[-3000:]


@pytest.mark.parametrize("name", FAST)
def test_a_fault_is_one_line(quick, name):
    require_one_line(name, quick[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", LATER)
def test_every_fault_of_every_command_is_one_line(later, name):
    require_one_line(name, later[name])


def test_a_traceback_is_noticed():
    outcome = {
        "code": 1,
        "stderr": "Traceback (most recent call last):\nValueError: lacking/model.safetensors",
    }
    with pytest.raises(AssertionError):
        require_one_line("8: lacking", outcome)


def test_every_command_is_in_the_table():
    from pi0.ript.commands.launch import COMMANDS

    assert {f"pi0-{name}" for name in COMMANDS} - {"pi0-recap", "pi0-doctor"} <= {
        c.command for c in CASES.values()
    }
