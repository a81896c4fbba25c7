"""Progress: bars on a terminal; in a pipe at most a line in 30 s, with rate, time left and figures."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path

import pytest
from tqdm import tqdm

from pi0.ript import progress
from pi0.ript.progress import ProgressLines, progress_bar
from pi0.ript.windows import with_progress

ROOT = Path(__file__).parent.parent
CLOCK = """
import importlib.util
spec = importlib.util.spec_from_file_location("progress", "pi0/ript/progress.py")  # without torch
progress = importlib.util.module_from_spec(spec)
spec.loader.exec_module(progress)
now = [0.0]
progress._clock, progress._TICK_S = lambda: now[0], 1e6
def items(count, seconds, **options):
    with progress.progress_bar(total=count, **options) as bar:
        for i in range(count):
            now[0] += seconds
            bar.set_postfix(success=f"{i + 1}/{count}", refresh=False)
            bar.update()
"""


@pytest.fixture(autouse=True)
def first_bar(monkeypatch):
    """No bar has written a line before the test."""
    monkeypatch.setattr(ProgressLines, "_last_line", None)


def stderr_of(code: str) -> str:
    """What a program on the faked clock writes to a pipe."""
    done = subprocess.run([sys.executable, "-c", CLOCK + code], cwd=ROOT, capture_output=True, check=True)
    assert done.stdout == b""
    return done.stderr.decode()


def test_a_pipe_gets_a_line_in_30_seconds_with_rate_time_left_and_figure():
    lines = stderr_of("items(12, 10, unit='episode', desc='rollouts')").splitlines()
    assert lines == [
        "rollouts: 3/12, 10.0 s/episode, 01:30 left, success=3/12",
        "rollouts: 6/12, 10.0 s/episode, 01:00 left, success=6/12",
        "rollouts: 9/12, 10.0 s/episode, 00:30 left, success=9/12",
        "rollouts: 12/12, 10.0 s/episode, 00:00 left, success=12/12",
        "rollouts: 12/12, 10.0 s/episode, in 02:00, success=12/12",
    ]


def test_fast_items_make_no_more_lines_and_slow_ones_no_fewer():
    fast = stderr_of("items(1000, 0.125, unit='frame', desc='images', leave=False)").splitlines()
    assert [line.split(",")[0] for line in fast] == [f"images: {n}/1000" for n in (240, 480, 720, 960, 1000)]
    assert all("8.00 frame/s" in line for line in fast)
    slow = stderr_of("items(3, 45, unit='save', desc='slow', leave=False)").splitlines()
    assert [line.split(",")[0] for line in slow] == ["slow: 1/3", "slow: 2/3", "slow: 3/3", "slow: 3/3"]


def test_short_work_says_nothing_or_its_end_and_many_pieces_of_it_are_not_silent():
    piece = "items(2, 7, unit='batch', desc='values', leave=False)\n"
    assert stderr_of(piece) == ""
    assert stderr_of("items(2, 7, unit='batch', desc='drawing')") == (
        "drawing: 2/2, 7.0 s/batch, in 00:14, success=2/2\n"
    )
    assert stderr_of(f"for _ in range(9):\n    {piece}").count(" left") == 3  # in 126 seconds


def test_the_innermost_of_nested_bars_speaks():
    text = stderr_of(
        "with progress.progress_bar(total=2, unit='epoch', desc='outer', leave=False) as outer:\n"
        "    with progress.progress_bar(total=8, unit='step', desc='inner', leave=False) as inner:\n"
        "        now[0] += 30\n"
        "        outer.refresh()\n"  # as its thread does
        "        inner.update()\n"
        "    now[0] += 30\n"
        "    outer.update()\n"
    )
    lines = text.splitlines()
    assert [line.split(",")[0] for line in lines] == ["inner: 1/8", "inner: 1/8", "outer: 1/2", "outer: 1/2"]


def test_a_resumed_bar_counts_its_rate_from_where_it_began():
    text = stderr_of(
        "bar = progress.progress_bar(total=10, initial=6, unit='step', desc='SFT')\n"
        "now[0] = 30\n"
        "bar.update(2)\n"
    )
    assert text.startswith("SFT: 8/10, 15.0 s/step, 00:30 left\n")


def test_a_line_comes_while_a_single_item_lasts(monkeypatch, capfd):
    monkeypatch.setattr(progress, "_INTERVAL_S", 0.05)
    monkeypatch.setattr(progress, "_TICK_S", 0.01)
    with progress_bar(total=2, unit="episode", desc="slow", leave=False):
        deadline, text = time.monotonic() + 60, ""
        while "slow: 0/2" not in text and time.monotonic() < deadline:
            time.sleep(0.01)
            text += capfd.readouterr().err
    assert re.match(r"slow: 0/2, 0.00 episode/s, for 00:0\d by now\n", text)


def test_nobody_speaks_of_a_bar_that_is_closed_or_silent(monkeypatch, capfd):
    monkeypatch.setattr(progress, "_INTERVAL_S", 0.0)
    with progress_bar(total=2, desc="rank 1", disable=True) as bar:
        bar.update()
    assert capfd.readouterr().err == ""
    with progress_bar(total=2, desc="rank 0", leave=False) as bar:
        bar.update()
    assert "rank 0: 1/2" in capfd.readouterr().err
    bar.refresh()
    assert capfd.readouterr().err == ""
    deadline = time.monotonic() + 60
    while "progress" in (names := [thread.name for thread in threading.enumerate()]):
        assert time.monotonic() < deadline, names
        time.sleep(0.01)


def test_a_terminal_gets_a_bar():
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    code = "items(3, 40, unit='episode', desc='rollouts')"
    process = subprocess.Popen([sys.executable, "-c", CLOCK + code], cwd=ROOT, stderr=slave)
    os.close(slave)
    text = b""
    while part := _read(master):
        text += part
    assert process.wait() == 0
    os.close(master)
    assert b"\r" in text
    assert b"100%" in text
    assert b"left" not in text


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 4096)
    except OSError:  # the other side is closed
        return b""


def test_optimizer_steps_are_shown_with_the_last_loss(monkeypatch, capfd):
    monkeypatch.setattr(progress, "_INTERVAL_S", 0.0)
    losses: list[float] = []
    for number in with_progress([10, 20], losses):
        losses.append(number / 100)
    lines = capfd.readouterr().err.splitlines()
    assert [(line.split(",")[0], line.split(", ")[-1]) for line in lines] == [
        ("improve: 1/2", "loss 0.100"),
        ("improve: 2/2", "loss 0.200"),
        ("improve: 2/2", "loss 0.200"),
    ]
    monkeypatch.setenv("RANK", "1")
    assert list(with_progress([10, 20], losses)) == [10, 20]
    assert capfd.readouterr().err == ""


def test_nothing_else_in_the_library_draws_a_bar():
    files = [file for file in (ROOT / "pi0").rglob("*.py") if file.name != "progress.py"]
    assert len(files) > 100
    assert not [file for file in files if re.search(r"\btqdm\b|rich\.progress", file.read_text())]
    assert issubclass(ProgressLines, tqdm)
