"""The tools that kill a run again and again, and that watch a long one, judge rightly."""

import os
import sys
import time

import kill_loop
import numpy as np
import pytest
import soak
from process_tree import ProcessTree

SAVE = [("/x/pi0/ript/checkpoint/files.py", "publish"), ("/x/pi0/ript/checkpoint/resumable.py", "save")]
ROLLOUT = [("/x/pi0/model.py", "forward"), ("/x/pi0/ript/groups.py", "collect_groups")]


@pytest.mark.parametrize(
    ("stack", "phase"),
    [
        ([], "start"),
        ([("/x/lib/torch/__init__.py", "<module>"), ("/x/pi0/ript/groups.py", "<module>")], "start"),
        ([("/x/lib/files.py", "publish")], "start"),
        (SAVE, "save"),
        (ROLLOUT, "rollouts"),
        ([*ROLLOUT, ("/x/pi0/ript/evaluate.py", "evaluate")], "evaluation"),
        ([("/x/pi0/ript/checkpoint/resumable.py", "run"), *ROLLOUT], "rollouts"),
        ([("/x/lib/torch/optim/adamw.py", "step"), ("/x/pi0/ript/monitoring.py", "take_step")], "update"),
    ],
)
def test_a_phase_is_read_from_the_stack(stack, phase):
    assert kill_loop.phase_of(stack)[0] == phase


def test_the_files_that_tell_a_phase_are_there():
    for _, files, functions in kill_loop.PHASES:
        for file in files.split():
            paths = [
                path for path in (kill_loop.ROOT / "pi0").rglob("*.py") if str(path).endswith(f"/{file}")
            ]
            assert paths, file
        for function in functions.split():
            texts = [
                path.read_text()
                for file in files.split()
                for path in (kill_loop.ROOT / "pi0").rglob("*.py")
                if str(path).endswith(f"/{file}")
            ]
            assert any(f"def {function}" in text for text in texts), function


PROGRAM = """
import subprocess, sys, time
def sleeping():
    time.sleep(60)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
sleeping()
"""


def test_a_tree_of_processes_tells_its_stack_and_what_is_left_of_it(tmp_path):
    tree = ProcessTree([sys.executable, "-c", PROGRAM], tmp_path, dict(os.environ), tmp_path / "log")
    try:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            (main,) = tree.ranks()
            if len(tree.members()) == 2 and (stack := tree.stack(main)) and stack[0][1] == "sleeping":
                break
            time.sleep(0.05)
        assert [function for _, function in stack] == ["sleeping", "<module>"]
        tree.kill([main])
        assert not tree.wait(1.0), "the child is still there"
        assert len(tree.members()) == 1
    finally:
        tree.kill(tree.members())
    assert tree.wait(10.0)
    assert tree.root.returncode == -9


def series(rng, slope_per_hour=0.0, noise=5.0):
    """Return 20 minutes of readings every 3 s, with a warm-up that rises."""
    seconds = np.arange(3.0, 1200.0, 3.0)
    warm_up = -200.0 * np.exp(-seconds / 60.0)
    return seconds, 1000.0 + warm_up + slope_per_hour * seconds / 3600 + rng.normal(0.0, noise, len(seconds))


def test_what_only_varies_has_seldom_grown():
    rng = np.random.default_rng(0)
    alarms = [soak.growth(*series(rng, noise=60.0))["has_grown"] for _ in range(500)]
    assert np.mean(alarms) <= 0.02


def test_a_leak_is_found_and_its_slope_told():
    rng = np.random.default_rng(1)
    found = [soak.growth(*series(rng, slope_per_hour=120.0)) for _ in range(50)]
    assert all(figure["has_grown"] for figure in found)
    assert np.mean([figure["slope_per_hour"] for figure in found]) == pytest.approx(120.0, rel=0.1)


def test_a_rise_that_means_nothing_is_none():
    seconds = np.arange(3.0, 1200.0, 3.0)
    assert not soak.growth(seconds, 1000.0 + seconds / 1200.0)["has_grown"]
