"""--help and what is wrong at first sight come without torch, lerobot, transformers and mujoco.

Looked at are the modules that are imported, in the process of the command and in all that it starts. Not
covered are the scripts of the ladder started as files (`python 13_...py`), whose headers import torch.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from start_runs import ENTRIES, ROOT, STARTS

GUARD = ROOT / "tests/heavy_imports"


def guarded(notes: Path, *words: str, **options) -> subprocess.CompletedProcess[str]:
    """Run Python where heavy imports are noted and refused."""
    paths = os.pathsep.join(map(str, (GUARD, ROOT)))
    environment = {**os.environ, "PYTHONPATH": paths, "HEAVY_IMPORTS": str(notes), "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=environment, text=True, timeout=300, **options
    )


@pytest.fixture(scope="module")
def starts(tmp_path_factory):
    directory = tmp_path_factory.mktemp("starts")
    guarded(directory / "notes", "-W", "ignore", "tests/start_runs.py", str(directory), check=True)
    return json.loads((directory / "starts.json").read_text())


@pytest.mark.parametrize("name", STARTS)
def test_a_command_answers_without_heavy_imports(starts, name):
    start, outcome = STARTS[name], starts[name]
    assert outcome["heavy"] == ""
    assert outcome["code"] == start.code, outcome["said"][-3000:]
    assert start.said in outcome["said"]
    assert "Traceback" not in outcome["said"]
    assert "Executing: " not in outcome["said"] or start.command == "pi0-doctor"


def test_every_command_has_words_that_it_refuses():
    assert {start.command for start in STARTS.values() if start.code == 2} == set(ENTRIES)


def test_heavy_imports_are_noticed_in_a_process_and_in_what_it_starts(tmp_path):
    notes = tmp_path / "notes"
    ask = "import importlib.util; assert importlib.util.find_spec('torch')"
    guarded(notes, "-c", ask, check=True)
    assert not notes.exists(), "to ask whether a package is there is no import"
    start = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {'import mujoco'!r}])"
    guarded(notes, "-c", f"{start}; import pi0.model", capture_output=True)
    lines = notes.read_text().splitlines()
    assert [line.partition(" ")[0] for line in lines] == ["mujoco", "torch"]
    assert "pi0/model.py" in lines[1]
