"""Signals ask once, insist twice; environment workers do not hear them."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from test_checkpoint import Thread, on_both

from pi0.ript import interruption
from pi0.ript.envs import BatchedEnv
from pi0.ript.interruption import (
    asked_to_stop,
    cleanup_on_exit,
    deaf_children,
    request_stop,
    setup_signal_handlers,
    stop_requested,
    until_stopped,
)

sys.path.append(str(Path(__file__).parent / "envs"))
from counting_env import CountingSuite


@pytest.fixture(autouse=True)
def handlers():
    before = {number: signal.getsignal(number) for number in interruption._SIGNALS}
    setup_signal_handlers()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", interruption._SIGNALS)
def test_a_signal_only_asks(number, capfd):
    assert stop_requested() == 0
    os.kill(os.getpid(), number)
    os.kill(os.getpid(), number)  # what `timeout` does
    assert stop_requested() == 128 + number
    assert capfd.readouterr().err.count("stopping with a checkpoint") == 1
    setup_signal_handlers()
    assert stop_requested() == 0


def test_the_first_request_counts(capfd):
    request_stop(signal.SIGKILL, "no room")
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop_requested() == 137
    assert "no room" in capfd.readouterr().err


def test_a_second_signal_leaves_at_once(monkeypatch):
    left = []
    monkeypatch.setattr(interruption, "_SAME_REQUEST_SECONDS", 0.0)
    monkeypatch.setattr(os, "_exit", left.append)
    os.kill(os.getpid(), signal.SIGINT)
    assert not left
    time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGTERM)
    assert left == [143]


def test_workers_go_on_when_their_group_is_signalled_and_end_with_their_parent():
    with BatchedEnv(CountingSuite(), num_slots=1, num_workers=1) as env:
        env.reset({0: env.initial_states("up", "train", [0])[0]})
        worker = env._workers[0].process.pid
        for number in interruption._SIGNALS:
            os.kill(worker, number)
        assert env.step_chunk({0: np.ones((2, 2))})[0].executed == 2
        assert env._workers[0].process.pid == worker
        env._workers[0].pipe.close()  # as when the parent is killed
        assert env._workers[0].process.wait(20) == 0
        env._workers = []


def _ignores(pid: int, number: int) -> bool:
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return bool(int(status["SigIgn"], 16) >> (number - 1) & 1)


def test_a_worker_is_deaf_from_its_first_moment():
    env = BatchedEnv(CountingSuite(), num_slots=1, num_workers=1)
    while not _ignores(env._workers[0].process.pid, signal.SIGTERM):  # the interpreter is not up yet
        time.sleep(0.01)
    os.kill(env._workers[0].process.pid, signal.SIGTERM)
    worker = env._workers[0].process.pid
    env.initial_states("up", "train", [0])
    assert env._workers[0].process.pid == worker
    env.close()
    env.close()  # twice does no harm


def test_processes_that_are_started_deaf_do_not_hear_a_signal_to_the_group():
    with deaf_children():
        deaf = subprocess.Popen(["sleep", "60"])
    hearing = subprocess.Popen(["sleep", "60"])
    for process in (deaf, hearing):
        process.send_signal(signal.SIGTERM)
    assert hearing.wait(20) == -signal.SIGTERM
    assert deaf.poll() is None
    deaf.kill()
    deaf.wait()
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop_requested() == 143, "this process hears again"


@pytest.mark.parametrize("asked", [None, 0, 1])
def test_all_processes_end_early_when_one_of_them_is_asked_to_stop(monkeypatch, asked):
    """One has three items, the other one; the request comes after two."""
    this, done = threading.local(), [[], []]

    def stop_after_two() -> int:
        this.asked += 1
        return 143 * (this.rank == asked and this.asked > 2)

    monkeypatch.setattr(interruption, "stop_requested", stop_after_two)

    def work(peers: Thread) -> int:
        this.rank, this.asked = peers.rank, 0
        for item in until_stopped(range(3 - 2 * peers.rank), peers):
            done[peers.rank].append(item)
        return asked_to_stop(peers)

    assert on_both(work) == ([0, 0] if asked is None else [143, 143])
    assert done == [[0, 1, 2] if asked is None else [0, 1], [0]]


def test_resources_are_closed_when_the_process_raises(tmp_path):
    code = f"""
from pathlib import Path
from pi0.ript.interruption import cleanup_on_exit
class Resource:
    def close(self): Path({str(tmp_path / "closed")!r}).touch()
cleanup_on_exit(Resource())
raise ValueError("on purpose")
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "on purpose" in ended.stderr
    assert (tmp_path / "closed").exists()
    assert callable(cleanup_on_exit)


def test_a_worker_whose_parent_is_killed_while_it_works_says_nothing(tmp_path):
    """SIGTERM to a rung without handlers: its workers used to print a traceback each."""
    (tmp_path / "slow_worker.py").write_text(
        "import pathlib, time\n"
        "from pi0.ript.envs.process import serve\n"
        "def answer(request):\n"
        f"    pathlib.Path({str(tmp_path / 'begun')!r}).touch()\n"
        "    time.sleep(1)\n"
        "def main():\n"
        "    serve(lambda setup: (answer, lambda: None))\n"
    )
    program = "import time; from pi0.ript.envs.process import Worker\n"
    program += "worker = Worker('slow_worker', None); worker.send('go'); time.sleep(60)"
    paths = os.pathsep.join([str(tmp_path), str(Path(__file__).parent.parent)])
    parent = subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": paths},
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (tmp_path / "begun").exists():
        assert parent.poll() is None
        time.sleep(0.02)
    parent.terminate()
    assert parent.communicate(timeout=60)[1] == "", "the worker has this stderr, and ends before it closes"
