"""A run that is stopped or killed anywhere and continued is the uninterrupted run, bit for bit."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import drifting
import pytest

from pi0.ript import monitoring, report
from pi0.ript.checkpoint import ChangedSettingsError, Checkpoints, SnapshotError
from pi0.ript.checkpoint.files import publish, published, verify
from pi0.ript.results import RunInUseError
from pi0.ript.rollout import GuidedPolicy


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Where the runs are, with the policy that they start from."""
    drifting.install()
    directory = tmp_path_factory.mktemp("runs")
    drifting.prepare(directory)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "write_report", lambda _: None)  # plots take longer than these runs
        yield directory
    drifting.uninstall()


@pytest.fixture(scope="module")
def events(place):
    """What happens in an uninterrupted run, in order; each is a point where it could have been stopped."""
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        _watch(patch, seen.append)
        drifting.run(place, "whole")
    return seen


@pytest.fixture(scope="module")
def whole(place, events):
    """The outcome of the uninterrupted run."""
    outcome = drifting.outcome(place / "whole")
    assert all(row["train/windows"] for row in outcome["rows"]), "nothing was learned"
    return outcome


@pytest.fixture(autouse=True)
def handlers():
    """The script's handlers end with the test."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def _watch(patch, happen):
    """Call `happen` with a name before every inference and optimizer step, and after every iteration."""
    chunks, take_step, save = GuidedPolicy.chunks, monitoring.take_step, Checkpoints.save

    def watched_chunks(self, *args):
        happen("chunk")
        return chunks(self, *args)

    def watched_step(*args):
        happen("step")
        return take_step(*args)

    def watched_save(self):
        happen("iteration")
        return save(self)

    patch.setattr(GuidedPolicy, "chunks", watched_chunks)
    patch.setattr(monitoring, "take_step", watched_step)
    patch.setattr(Checkpoints, "save", watched_save)


class Killed(BaseException):
    """The process is gone, without a chance to write anything."""


def stop(number: int) -> None:
    os.kill(os.getpid(), number)


def kill(_) -> None:
    raise Killed


def interrupted_run(place, name, at, how, *arguments):
    """Run until the event number `at`; return the events that happened."""
    seen = []

    def happen(event):
        seen.append(event)
        if len(seen) == at + 1:
            how(signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        _watch(patch, happen)
        with pytest.raises(SystemExit if how is stop else Killed) as raised:
            drifting.run(place, name, *arguments)
    if how is stop:
        assert raised.value.code == 143
    return seen


def nth(events, name, n):
    return [i for i, event in enumerate(events) if event == name][n]


POSITIONS = {
    "before": lambda e: nth(e, "chunk", 1),
    "first collection": lambda e: nth(e, "step", 0) - 2,
    "first step": lambda e: nth(e, "step", 0),
    "middle of the steps": lambda e: nth(e, "step", 2),
    "boundary": lambda e: nth(e, "iteration", 0),
    "second collection": lambda e: nth(e, "iteration", 0) + 2,
    "last step": lambda e: nth(e, "step", -1),
    "after": lambda e: len(e) - 1,
}


IN_DEFAULT_SUITE = [
    ("before", stop),
    ("first collection", kill),
    ("middle of the steps", stop),
    ("after", stop),
]
CASES = [
    pytest.param(position, how, marks=() if (position, how) in IN_DEFAULT_SUITE else pytest.mark.slow)
    for position in POSITIONS
    for how in (stop, kill)
]


@pytest.mark.parametrize(("position", "how"), CASES)
def test_a_continued_run_is_the_uninterrupted_one(place, events, whole, position, how):
    name = f"{how.__name__}-{position}".replace(" ", "-")
    at = POSITIONS[position](events)
    first = interrupted_run(place, name, at, how)
    again = []
    with pytest.MonkeyPatch.context() as patch:
        _watch(patch, again.append)
        drifting.run(place, name, "--resume")
    assert drifting.outcome(place / name) == whole
    if how is stop:
        repeated = (first + again).count("step") - events.count("step")
        assert repeated == 0, "no optimizer step is made twice"
    assert not list((place / name).glob(".checkpoint*")), "nothing is left over"


def test_a_stop_keeps_the_finished_episodes_of_its_collection(place, events, whole):
    name = "kept"
    interrupted_run(place, name, POSITIONS["first collection"](events), stop)
    assert list((place / name / "episodes").glob("*/iteration-0/*.npz"))
    drifting.run(place, name, "--resume")
    assert drifting.outcome(place / name) == whole


def test_every_position_in_one_run(place, events, whole):
    """Stopped every few events, again and again, it comes to the same end."""
    arguments, stops = [], 0
    while True:
        try:
            interrupted_run(place, "often", 5, stop, *arguments)
        except pytest.fail.Exception:  # it came to its end
            break
        arguments, stops = ["--resume"], stops + 1
    assert stops >= 4
    assert drifting.outcome(place / "often") == whole


@pytest.mark.slow
def test_fewer_checkpoints_change_nothing(place, events, whole):
    interrupted_run(place, "rarely", nth(events, "step", -2), kill, "training.save_freq=5")
    assert not published(place / "rarely")
    drifting.run(place, "rarely", "--resume", "training.save_freq=5")
    assert drifting.outcome(place / "rarely") == whole


def test_checkpoints_come_every_so_many_minutes_inside_an_iteration_too(place, events, whole):
    often = ["training.save_minutes=1e-9", "training.save_freq=5"]
    interrupted_run(place, "minutes", nth(events, "step", 2), kill, *often)
    assert published(place / "minutes")[-1].name == "checkpoint-0-2"
    drifting.run(place, "minutes", "--resume", "training.save_freq=5")
    assert drifting.outcome(place / "minutes") == whole


def test_a_corrupt_checkpoint_is_named_and_the_one_before_continued(place, events, whole, capsys):
    interrupted_run(place, "corrupt", nth(events, "step", -1), stop)
    before, newest = published(place / "corrupt")
    (newest / "trainer.pt").write_bytes((newest / "trainer.pt").read_bytes()[:-9])
    with pytest.raises(SnapshotError, match=r"trainer.pt has .* bytes, expected"):
        drifting.run(place, "corrupt", f"--resume={newest}")
    drifting.run(place, "corrupt", "--resume")
    printed = capsys.readouterr().out
    assert f"not used: {newest}: trainer.pt has" in printed
    assert f"resume: continuing from {before}" in printed
    assert drifting.outcome(place / "corrupt") == whole


@pytest.mark.slow
def test_a_lost_episode_of_an_iteration_under_way_makes_its_checkpoint_invalid(place, events, whole, capsys):
    interrupted_run(place, "lost", nth(events, "step", -1), stop)
    next((place / "lost/episodes").glob("*/iteration-1/*.npz")).unlink()
    drifting.run(place, "lost", "--resume")
    assert "iteration-1" in capsys.readouterr().out.split("not used: ")[1].splitlines()[0]
    assert drifting.outcome(place / "lost") == whole


@pytest.mark.slow
def test_a_checkpoint_continues_under_another_name(place, events, whole):
    interrupted_run(place, "here", nth(events, "step", -1), stop)
    drifting.run(place, "there", f"--resume={published(place / 'here')[-1]}")
    outcome = drifting.outcome(place / "there")
    del outcome["logged"]
    assert outcome == {k: v for k, v in whole.items() if k != "logged"}


def test_a_full_disk_keeps_what_there_is(place, events, whole, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pi0.ript.checkpoint.snapshot.publish", full)
    with pytest.raises(SnapshotError, match=r"could not be written .*No space left.*--resume"):
        drifting.run(place, "full")
    assert not published(place / "full")
    assert not list((place / "full").glob(".checkpoint*"))
    monkeypatch.setattr("pi0.ript.checkpoint.snapshot.publish", publish)
    drifting.run(place, "full", "--resume")
    assert drifting.outcome(place / "full") == whole


def test_a_finished_run_can_be_prolonged_but_not_changed(place, events, whole, capsys):
    drifting.run(place, "long", "training.num_train_steps=1")
    with pytest.raises(ChangedSettingsError, match=r"algo.lr: 0.0001 -> 0.0002"):
        drifting.run(place, "long", "--resume", "algo.lr=2e-4", "training.num_train_steps=2")
    drifting.run(place, "long", "--resume", "training.num_train_steps=2", "task.num_workers=0")
    assert drifting.outcome(place / "long") == whole
    drifting.run(place, "long", "--resume")  # past its end
    assert drifting.outcome(place / "long") == whole


def test_memory_above_the_limit_ends_the_run_with_a_checkpoint(place, events, whole, capfd):
    with pytest.raises(SystemExit) as raised:
        drifting.run(place, "large", "training.memory_limit_gb=0.1", "training.save_freq=5")
    assert raised.value.code == 137
    assert "more than memory_limit_gb=0.1" in capfd.readouterr().err
    assert verify(place / "large/checkpoint-1")["position"] == [1, 0]
    drifting.run(place, "large", "--resume", "training.memory_limit_gb=1000")
    assert drifting.outcome(place / "large") == whole


# Processes of their own -------------------------------------------------------------------------------------


def command(place: Path, name: str, *arguments: str) -> list[str]:
    return [str(drifting.ROOT / "tests/drifting.py"), str(place), name, *arguments]


def start(*words: str, **environment: str) -> subprocess.Popen:
    paths = os.pathsep.join([str(drifting.ROOT), str(drifting.ROOT / "tests")])
    return subprocess.Popen(
        [sys.executable, *words],
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=drifting.ROOT,
    )


def wait_for(file: Path, text: str, process: subprocess.Popen) -> None:
    for _ in range(1200):
        if file.exists() and text in file.read_text():
            return
        assert process.poll() is None, process.communicate()[0][-3000:]
        time.sleep(0.05)
    raise AssertionError(f"{text!r} did not appear in {file}")


@pytest.mark.slow
def test_timeout_ends_a_run_with_a_checkpoint_although_it_signals_twice(place, events, whole):
    """coreutils' timeout signals the process and then its group."""
    words = [*command(place, "timed"), "training.num_train_steps=200"]
    process = start(*words, SLOW="1")
    wait_for(place / "timed/train_rank0.log", "training started", process)
    with pytest.raises(RunInUseError, match=f"is being written by process {process.pid} on "):
        drifting.run(place, "timed")
    os.kill(process.pid, signal.SIGTERM)
    os.kill(process.pid, signal.SIGTERM)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 143, output[-3000:]
    assert published(place / "timed")
    assert "continue with --resume" in output
    assert verify(published(place / "timed")[-1])
