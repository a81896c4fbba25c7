"""A disk that is full, read-only, slow or gone: one line with the remedy, nothing left that takes room."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import drifting
import pytest
from test_episodes import make_episode, publish

from faults import drills
from faults.disks import can_mount, fill, filler, mount, on_a_disk, unfinished
from faults.drills import forked
from faults.test_killed import TRAINING, supervised
from pi0.errors import disk_remedy, say_errors_in_one_line
from pi0.ript.checkpoint.files import published

WRITERS = {
    "settings": ("pi0.ript.config", "save_config"),
    "an evaluation": ("pi0.ript.results", "write_evaluation"),
    "a finished episode": ("pi0.ript.checkpoint.journal", "EpisodeJournal.write"),
    "metrics": ("pi0.ript.run_logging", "append_row"),
    "random states": ("pi0.ript.checkpoint.snapshot", "rng_file"),
    "weights": ("pi0.ript.checkpoint.contents", "write_tensors"),
    "optimizer": ("pi0.ript.checkpoint.snapshot", "torch.save"),
    "policy of a checkpoint": ("pi0.policy", "PI0Policy.save_pretrained"),
    "manifest": ("pi0.ript.checkpoint.snapshot", "publish"),
    "results": ("pi0.ript.results", "write_results"),
}
"""What writes when the disk is full: module, and the function of it before which it is filled."""
FAST = ("weights", "results")


def before(module: str, name: str, count: int, happen) -> None:
    """Have something happen before the how manieth call of a function."""
    import importlib

    owner, names, calls = importlib.import_module(module), name.split("."), 0
    for part in names[:-1]:
        owner = getattr(owner, part)
    function = getattr(owner, names[-1])

    def watched(*arguments, **options):
        nonlocal calls
        calls += 1
        if calls == count:
            happen()
        return function(*arguments, **options)

    setattr(owner, names[-1], watched)


def fills_up(disk, place, writer):
    """Run until the disk is full, and again when it is not."""
    words = (f"policy_path={place}/start", f"warm_start_dir={place}/warm")
    count = 1 if writer in ("settings", "metrics", "results") else 2
    (first,) = forked(
        disk, "run", *words, size=1, prepare=lambda: before(*WRITERS[writer], count, lambda: fill(disk))
    )
    left, was_full = unfinished(disk), filler(disk).exists()
    filler(disk).unlink(missing_ok=True)
    (again,) = forked(disk, "run", "--resume", *words, size=1)
    outcome = drifting.outcome(disk / "run") if again.code == 0 else None
    return first, left, was_full, again, outcome


@can_mount
@pytest.mark.parametrize(
    "writer", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in WRITERS]
)
def test_the_disk_is_full_when_something_is_written(place, alone, writer):
    first, left, was_full, again, outcome = on_a_disk(
        place, f"full-{writer}".replace(" ", "-"), fills_up, place, writer
    )
    assert was_full, "the writer was reached"
    first.require_one_line("make room")
    assert not left, "what was not finished keeps no room"
    assert again.code == 0, again.said[-3000:]
    assert outcome == alone


def too_small(disk, place, kibibytes):
    mount("-o", f"remount,size={kibibytes}k", str(disk))
    words = (f"policy_path={place}/start", f"warm_start_dir={place}/warm")
    (first,) = forked(place, f"small-{kibibytes}", *words, f"output_dir={disk}", size=1)
    left = unfinished(disk)
    mount("-o", "remount,size=64m", str(disk))
    (again,) = forked(place, f"small-{kibibytes}", "--resume", *words, f"output_dir={disk}", size=1)
    return first, left, again, drifting.outcome(disk / f"small-{kibibytes}") if again.code == 0 else None


@can_mount
@pytest.mark.slow
@pytest.mark.parametrize("share", [0.02, 0.1, 0.25, 0.4, 0.6, 0.8, 0.95])
def test_a_disk_that_is_too_small_wherever_it_ends(place, alone, share):
    """Of the room that the run takes; by whichever file it hits."""
    used = sum(file.stat().st_blocks * 512 for file in (place / "alone").rglob("*"))
    kibibytes = int(used * share / 1024 / 4) * 4
    first, left, again, outcome = on_a_disk(place, f"small-{share}", too_small, place, kibibytes)
    first.require_one_line("make room")
    assert not left
    assert again.code == 0, again.said[-3000:]
    assert outcome == alone


def training_fills_up(disk, words, writer):
    (first,) = forked(
        disk, "run", *words, size=1, run=supervised, prepare=lambda: before(*writer, 1, lambda: fill(disk))
    )
    left, was_full = unfinished(disk), filler(disk).exists()
    filler(disk).unlink(missing_ok=True)
    (again,) = forked(disk, "run", *words, "--resume", size=1, run=supervised)
    return first, left, was_full, again


@can_mount
@pytest.mark.slow
@pytest.mark.parametrize(
    "writer",
    [
        ("pi0.ript.checkpoint.contents", "write_tensors"),
        pytest.param(("pi0.ript.supervised.trainer", "publish_model"), marks=pytest.mark.slow),
        pytest.param(("pi0.ript.run_logging", "append_row"), marks=pytest.mark.slow),
    ],
    ids=["checkpoint", "model", "metrics"],
)
def test_the_disk_is_full_in_pi0_train(place, monkeypatch, writer):
    monkeypatch.chdir(drills.ROOT)
    data = place / "full"
    if not data.exists():
        publish(data, {i: make_episode(i, length=3 + i, size=16) for i in range(4)})
    words = (
        *TRAINING,
        f"dataset_mixture.datasets=[{{root: {data}}}]",
        "steps=4",
        "dataset_mixture.num_workers=0",
    )
    first, left, was_full, again = on_a_disk(place, f"train-{writer[1]}", training_fills_up, words, writer)
    assert was_full
    first.require_one_line("make room")
    assert not left
    assert again.code == 0, again.said[-3000:]


def read_only(disk, place, event):
    words = (f"policy_path={place}/start", f"warm_start_dir={place}/warm")

    def close():
        mount("--bind", str(disk), str(disk))  # the log file is open for writing, which forbids more
        mount("-o", "remount,ro,bind", str(disk))

    (first,) = forked(
        place, f"ro-{event}", *words, f"output_dir={disk}", size=1,
        prepare=close
        if event == "start"
        else lambda: before("pi0.ript.checkpoint.snapshot", "begin", 2, close),
    )  # fmt: skip
    subprocess.run(["umount", str(disk)], check=True)
    kept = [path.name for path in published(disk / f"ro-{event}")]
    (again,) = forked(place, f"ro-{event}", "--resume", *words, f"output_dir={disk}", size=1)
    return first, kept, drifting.outcome(disk / f"ro-{event}") if again.code == 0 else again


@can_mount
@pytest.mark.parametrize("event", ["start", pytest.param("save", marks=pytest.mark.slow)])
def test_the_disk_becomes_read_only(place, alone, event):
    """Root may write where chmod forbids it, so that the file system forbids it here."""
    first, kept, outcome = on_a_disk(place, f"ro-{event}", read_only, place, event)
    first.require_one_line("Read-only file system")
    assert kept == ([] if event == "start" else ["checkpoint-1"])
    assert outcome == alone


def test_the_directory_of_the_run_vanishes(place, alone):
    def vanish():
        shutil.rmtree(place / "vanished")

    (ended,) = forked(
        place, "vanished", size=1, prepare=lambda: before("pi0.ript.run_logging", "append_row", 2, vanish)
    )
    ended.require_one_line("vanished")
    (ended,) = forked(
        place, "vanished", size=1, prepare=lambda: before("pi0.ript.monitoring", "take_step", 3, vanish)
    )
    ended.require_one_line("the run's directory was removed or replaced")
    (again,) = forked(place, "vanished", "--resume", size=1)
    assert again.code == 0, again.said[-3000:]
    assert drifting.outcome(place / "vanished") == alone


@pytest.mark.slow
def test_the_log_directory_vanishes_and_the_console_goes_on(place, alone):
    """Only the log file is removed: it is still written, to nowhere, and the run's results are there."""

    def vanish():
        (place / "no-log/train_rank0.log").unlink()

    (ended,) = forked(
        place, "no-log", size=1, prepare=lambda: before("pi0.ript.monitoring", "take_step", 2, vanish)
    )
    assert ended.code == 0, ended.said[-3000:]
    assert drifting.outcome(place / "no-log") == alone


@pytest.mark.slow
def test_a_slow_disk_is_waited_for(place, pair):
    begun = time.monotonic()
    ended = forked(place, "slow-disk", prepare=slow_writes)
    assert [one.code for one in ended] == [0, 0], ended[0].said[-3000:]
    assert time.monotonic() - begun > 3
    assert drifting.outcome(place / "slow-disk") == pair


def slow_writes():
    before("pi0.ript.checkpoint.contents", "write_tensors", 2, lambda: time.sleep(3))


# Streams and shared memory ----------------------------------------------------------------------------------


def closed():
    for number in (0, 1, 2):
        os.close(number)
    sys.stdin = sys.stdout = sys.stderr = None


def broken():
    """The reader of a pipe leaves while training is going on."""
    reading, writing = os.pipe()
    os.close(reading)

    def leave():
        os.dup2(writing, 1)
        os.dup2(writing, 2)

    before("pi0.ript.monitoring", "take_step", 2, leave)


@pytest.mark.parametrize("prepare", [closed, broken])
def test_output_streams_are_closed_and_the_run_goes_on(place, alone, prepare):
    name = f"streams-{prepare.__name__}"
    (ended,) = forked(place, name, size=1, prepare=prepare)
    assert ended.code == 0, (place / name / "train_rank0.log").read_text()[-3000:]
    assert drifting.outcome(place / name) == alone
    assert "results, videos and policy" in (place / name / "train_rank0.log").read_text()


@pytest.mark.slow
def test_a_signal_writes_into_no_file_where_the_streams_are_closed(place, alone, goes_on):
    (ended,) = forked(place, "closed-signal", size=1, prepare=closed, fault="SIGTERM@0:update:2")
    assert ended.code == 128 + signal.SIGTERM
    assert goes_on("closed-signal", size=1)[0] == alone


def little_shared_memory(disk, words):
    mount("-t", "tmpfs", "-o", "size=64k", "none", "/dev/shm")
    (first,) = forked(disk, "run", *words, size=1, run=supervised)
    (again,) = forked(
        disk, "run", *words, "--resume", "dataset_mixture.num_workers=0", size=1, run=supervised
    )
    return first, again


@can_mount
@pytest.mark.slow
def test_shared_memory_is_small(place, monkeypatch):
    """As in a container with the default of 64 MB, where batches are larger than these."""
    monkeypatch.chdir(drills.ROOT)
    data = publish(place / "shm-data", {i: make_episode(i, length=12, size=96) for i in range(3)})
    words = (*TRAINING, f"dataset_mixture.datasets=[{{root: {data}}}]", "steps=4", "batch_size=16")
    first, again = on_a_disk(place, "shm", little_shared_memory, words)
    first.require_one_line("a process that reads data was lost", "dataset_mixture.num_workers=0")
    assert again.code == 0, again.said[-3000:]


# Errors -----------------------------------------------------------------------------------------------------


def test_errors_of_the_disk_have_a_remedy_and_others_their_traceback(tmp_path):
    assert "make room" in disk_remedy(OSError(28, "No space left on device"))
    assert "let this user write" in disk_remedy(PermissionError(13, "Permission denied", "/x"))
    assert "its directory is gone" in disk_remedy(FileNotFoundError(2, "No such file", "/nowhere/at/all"))
    assert disk_remedy(FileNotFoundError(2, "No such file", str(tmp_path / "absent"))) is None
    assert disk_remedy(ValueError("x")) is None
    before_hook = sys.excepthook
    try:
        say_errors_in_one_line("x")
        assert sys.excepthook is not before_hook
    finally:
        sys.excepthook = before_hook


def test_a_command_says_in_a_line_that_the_disk_is_full(tmp_path):
    code = (
        "import pi0.errors; pi0.errors.say_errors_in_one_line('x'); open('/dev/full', 'w', 1).write('y\\n')"
    )
    paths = os.pathsep.join([str(drills.ROOT)])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths}
    )
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert done.stderr.startswith("x: error: [Errno 28] No space left on device; make room")
    assert not Path("y").exists()
