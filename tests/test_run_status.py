"""The file that says what a run is doing, the command for events, and the lines for many runs."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pi0.ript import run_status
from pi0.ript.commands import launch
from pi0.ript.progress import doing, progress_bar
from pi0.ript.run_status import FILE, RunStatus, read_status, status_lines

ROOT = Path(__file__).resolve().parent.parent
NOTE = """
import os
with open(os.environ["PI0_RUN"] + "/told", "a") as file:
    file.write(os.environ["PI0_EVENT"] + ": " + os.environ["PI0_REASON"] + chr(10))
"""
TELL = shlex.join([sys.executable, "-c", NOTE])

RUN = """
import os, sys, time
from types import SimpleNamespace
from pi0.ript.interruption import setup_signal_handlers, stop_requested
from pi0.ript.progress import progress_bar
from pi0.ript.run_logging import close_run_logging, init_wandb, setup_run_logging

directory, ending, command = sys.argv[1:]
setup_run_logging(directory, 0)
logging = SimpleNamespace(use_wandb=False, wandb_mode="disabled", on_event=command, stalled_after_s=100.0)
init_wandb(SimpleNamespace(logging=logging, exp_name="x"), directory, 0)
setup_signal_handlers()
for item in progress_bar(range(3), desc="steps"):
    if ending == "error":
        raise ValueError("the loss is lost")
    if ending == "exit":
        sys.exit("error: this cannot go on")
    if ending in ("stop", "kill"):
        print("ready", flush=True)
        while not stop_requested():
            time.sleep(0.01)
        sys.exit(stop_requested())
close_run_logging()
"""


@pytest.fixture(autouse=True)
def nothing_is_done():
    doing.stage = doing.stopping = None
    yield
    doing.stage = doing.stopping = None


def status(directory: Path) -> dict:
    return json.loads((directory / FILE).read_text())


def end_of_a_run(directory: Path, ending: str) -> tuple[int, dict, str]:
    """How a run in a process of its own ends: its exit code, its status, what its command was told."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", RUN, str(directory), ending, TELL]
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    if ending in ("stop", "kill"):
        assert process.stdout
        while process.stdout.readline() != "ready\n":
            pass
        process.send_signal(signal.SIGTERM if ending == "stop" else signal.SIGKILL)
    process.communicate(timeout=60)
    told = directory / "told"
    return process.returncode, status(directory), told.read_text() if told.exists() else ""


@pytest.mark.parametrize(
    ("ending", "code", "state", "reason"),
    [
        ("finish", 0, "finished", None),
        ("error", 1, "failed", "ValueError: the loss is lost"),
        ("exit", 1, "failed", "error: this cannot go on"),
        ("stop", 143, "stopped", "SIGTERM"),
    ],
)
def test_a_run_says_how_it_ended_and_tells_the_command(tmp_path, ending, code, state, reason):
    returned, values, told = end_of_a_run(tmp_path, ending)
    assert (returned, values["state"], values["reason"]) == (code, state, reason)
    assert told == ("" if state == "stopped" else f"{state}: {reason or ''}\n")


def test_a_killed_run_is_lost_once_nobody_refreshes_its_file(tmp_path, monkeypatch):
    code, values, told = end_of_a_run(tmp_path, "kill")
    assert (code, values["state"], told) == (-signal.SIGKILL, "running", "")
    assert read_status(tmp_path / FILE)["state"] == "running"
    later = time.time() + 100
    monkeypatch.setattr(time, "time", lambda: later)
    lost = read_status(tmp_path / FILE)
    assert lost["state"] == "lost"
    assert f"process {values['pid']} on {values['host']}" in lost["reason"]


def test_the_position_is_that_of_the_innermost_bar(tmp_path):
    run = RunStatus(tmp_path)
    doing.stage = "round-1/policy"
    (tmp_path / "round-1/policy.partial/checkpoint-40").mkdir(parents=True)
    with progress_bar(total=3, desc="epochs"), progress_bar(total=50, desc="steps") as inner:
        inner.update(10)
        run.refresh()
        values = status(tmp_path)
        assert (values["stage"], values["activity"]) == ("round-1/policy", "steps")
        assert (values["step"], values["total"]) == (10, 50)
        assert values["seconds_left"] == pytest.approx(40 / values["rate_per_s"])
        assert values["last_checkpoint"] == "round-1/policy.partial/checkpoint-40"
    run.refresh()
    assert status(tmp_path)["step"] is None
    run.end("finished")
    run.end("failed", "later")
    run.refresh()
    assert status(tmp_path)["state"] == "finished"


def test_a_run_without_progress_is_stalled_and_told_once_until_it_moves(tmp_path, monkeypatch):
    now = time.monotonic()
    monkeypatch.setattr(run_status.time, "monotonic", lambda: now)
    run = RunStatus(tmp_path)
    run.on_event, run.stalled_after_s = TELL, 100.0
    with progress_bar(total=5, desc="steps") as bar:
        run.refresh()
        for seconds in (99, 2, 1):
            now += seconds
            run.refresh()
        assert status(tmp_path)["reason"] == "no progress for 102 s"
        bar.update()
        run.refresh()
        assert status(tmp_path)["state"] == "running"
        now += 200
        run.refresh()
    run.end("finished")
    stalled = [line for line in (tmp_path / "told").read_text().splitlines() if line.startswith("stalled")]
    assert stalled == ["stalled: no progress for 101 s", "stalled: no progress for 200 s"]


def test_a_command_that_fails_is_said_and_a_shell_is_never_asked(tmp_path, capsys):
    for command in ("no-such-program", "false", f"echo x > {tmp_path}/shell", "unclosed '"):
        run = RunStatus(tmp_path)
        run.on_event = command
        run.end("finished")
    assert not (tmp_path / "shell").exists()
    said = capsys.readouterr().err
    for command in ("no-such-program", "false", "unclosed"):
        assert f"on_event: {command!r}"[:-2] in said.replace('"', "'")


def test_a_directory_that_cannot_be_written_is_said_once_and_ends_no_run(tmp_path, capsys):
    directory = tmp_path / "run"
    directory.mkdir()
    run = RunStatus(directory)
    (directory / FILE).unlink()
    directory.rmdir()
    run.refresh()
    run.refresh()
    assert capsys.readouterr().err.count("not written") == 1


def test_the_lines_of_many_runs(tmp_path, capsys):
    for name in ("a", "b/c"):
        (tmp_path / name).mkdir(parents=True)
        RunStatus(tmp_path / name).end(
            "failed" if name == "a" else "finished", "no room" if name == "a" else None
        )
    assert list(status_lines(tmp_path)) == [f"{tmp_path}/a: failed, no room", f"{tmp_path}/b/c: finished"]
    for words in (["--status", str(tmp_path)], [f"--status={tmp_path}"]):
        assert launch.run("recap", words) == 0
        assert capsys.readouterr().out.splitlines() == list(status_lines(tmp_path))
    (tmp_path / "a" / FILE).write_text("[]")
    (tmp_path / "empty").mkdir()
    for arguments, said in (
        (["--status", str(tmp_path)], f"{tmp_path}/a/{FILE}: expected the status of a run"),
        (["--status", str(tmp_path / "empty")], f"no {FILE} in it or below"),
        (["--status"], "--status: expected it alone with a directory"),
    ):
        assert launch.run("recap", arguments) == 2
        assert said in capsys.readouterr().err
