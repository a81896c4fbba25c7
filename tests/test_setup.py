"""The command by which set-up installs the packages; nothing is installed here."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "tools/setup.sh"
UV = """#!/bin/sh
echo "$@" >> "$(dirname "$0")/calls"
if [ "$1" = venv ]; then mkdir .venv; fi
"""
"""In place of uv: writes down what it is asked for."""


@pytest.fixture
def set_up(tmp_path):
    """Run the script of a checkout in a place of its own; return the process and what uv was asked for."""
    (tmp_path / "tools").mkdir()
    (tmp_path / "bin").mkdir()
    (tmp_path / "tools/setup.sh").write_text(SCRIPT.read_text())
    (tmp_path / "bin/uv").write_text(UV)
    (tmp_path / "bin/uv").chmod(0o755)

    def run(**variables: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
        environment = {name: value for name, value in os.environ.items() if name != "TORCH"}
        environment |= {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", **variables}
        command = ["sh", str(tmp_path / "tools/setup.sh")]
        process = subprocess.run(command, env=environment, capture_output=True, text=True)
        calls = tmp_path / "bin/calls"
        return process, calls.read_text().splitlines() if calls.exists() else []

    return run


@pytest.mark.parametrize(
    ("variables", "build"), [({}, ""), ({"TORCH": ""}, ""), ({"TORCH": "cpu"}, "--torch-backend=cpu ")]
)
def test_torch_is_what_the_index_serves_unless_the_cpus_build_is_asked_for(set_up, variables, build):
    process, calls = set_up(**variables)
    assert process.returncode == 0, process.stderr
    into = "--python .venv/bin/python --constraint constraints.txt"
    assert calls[-2:] == [
        "venv --quiet --python 3.12 --allow-existing .venv",
        f"pip install --quiet {into} {build}--editable .[dev]",
    ]
    assert ("CUDA" in process.stdout) == (not build)


def test_no_other_build_is_guessed(set_up):
    process, calls = set_up(TORCH="gpu")
    assert process.returncode == 1
    assert process.stderr.startswith("setup: TORCH: expected cpu, ")
    assert process.stderr.endswith("found gpu\n")
    assert not calls
