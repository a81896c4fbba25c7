"""Processes that stop, leave, raise or lag: the others say who it is, or wait; none hangs."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import drifting
import pytest

from faults import drills
from faults.drills import forked
from pi0.ript.lost_peers import OutOfStepError, PeerLostError, RollCall, require_in_step

SOON = "distributed.timeout_seconds=8"


@pytest.mark.parametrize(("event", "rank"), [("update", 1), ("rollout", 1)])
@pytest.mark.slow
def test_a_rank_that_is_stopped_is_named(place, pair, goes_on, event, rank):
    """SIGSTOP, which is what a hang looks like to the others; after distributed.timeout_seconds."""
    name = f"stopped-{event}"
    begun = time.monotonic()
    ended = forked(place, name, SOON, fault=f"SIGSTOP@{rank}:{event}:3")
    ended[1 - rank].require_one_line(f"rank {rank} ended or stopped answering", "noticed in ")
    assert ended[rank].code == -signal.SIGKILL, "as torchrun ends it"
    assert time.monotonic() - begun < 90
    assert goes_on(name)[0] == pair


def test_a_rank_that_leaves_out_an_exchange_is_noticed_at_the_next(place):
    ended = forked(place, "skipped", SOON, fault="skip@1:gather:40")
    for one in ended:
        assert one.code == 1
        assert "the processes are out of step: rank 0 in " in one.said, one.said[-3000:]


def test_processes_at_different_places_are_named():
    require_in_step(["evaluate (evaluate.py)"] * 3)
    with pytest.raises(OutOfStepError, match=r"rank 0 in f \(a\.py\), rank 1 in g \(a\.py\)"):
        require_in_step(["f (a.py)", "g (a.py)"])


class Store(dict):
    """What torchrun keeps for its processes."""

    def set(self, key, value):
        self[key] = value

    def check(self, keys):
        return all(key in self for key in keys)


class Gone:
    def set(self, key, value):
        raise RuntimeError("connection reset by peer")


def test_who_does_not_answer_is_missing(monkeypatch):
    monkeypatch.setattr("pi0.ript.lost_peers._PATIENCE_S", 0.2)
    store = Store()
    assert RollCall(0, 3, store).missing() == [1, 2]
    assert RollCall(2, 3, store).missing() == [1]
    assert RollCall(1, 2, Gone()).missing() == [0]
    assert RollCall().missing() == []
    with (
        pytest.raises(PeerLostError, match=r"rank 2: rank 1 ended or stopped answering, noticed in test_who"),
        RollCall(2, 3, store).clear_errors(),
    ):
        raise RuntimeError("Connection closed by peer")
    with pytest.raises(RuntimeError, match=r"^mine$"), RollCall(2, 3, store).clear_errors():
        raise RuntimeError("mine")


@pytest.mark.parametrize("event", ["rollout", "update"])
@pytest.mark.slow
def test_a_rank_that_raises_shows_its_traceback_and_the_other_one_line(place, pair, goes_on, event):
    name = f"raises-{event}"
    ended = forked(place, name, fault=f"raise@1:{event}:3")
    assert ended[1].code == 1
    assert "UserError: a mistake of the user" in ended[1].said
    ended[0].require_one_line("rank 1 ended or stopped answering")
    assert goes_on(name)[0] == pair


def slowly(seconds):
    """Make rank 1 slower than rank 0."""

    def prepare():
        if os.environ["RANK"] == "1":
            step = drifting.DriftingSimulation.step

            def slow(self, action):
                time.sleep(seconds)
                return step(self, action)

            drifting.DriftingSimulation.step = slow

    return prepare


@pytest.mark.slow
def test_a_slow_rank_is_waited_for_and_told(place, pair):
    """Ten times slower and more: the result is the same, and the log has how long was waited."""
    ended = forked(place, "slow", prepare=slowly(0.01))
    assert [one.code for one in ended] == [0, 0], ended[0].said[-3000:]
    outcome = drifting.outcome(place / "slow")
    assert outcome == pair
    assert "processes waited up to" in ended[0].said


FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)


@pytest.mark.skipif(FAKETIME is None, reason="needs libfaketime (Debian: apt-get install libfaketime)")
@pytest.mark.slow
def test_a_clock_that_jumps_changes_nothing(place, alone):
    """An hour back, then two days ahead; the machine's own clock stays, libfaketime is in this run alone."""
    assert FAKETIME is not None
    clock = place / "clock"
    clock.write_text("+0\n")
    paths = os.pathsep.join(str(drills.ROOT / part) for part in ("", "tests"))
    fake = {
        "LD_PRELOAD": str(FAKETIME),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    words = [str(place), "jumps", "training.save_minutes=1"]
    ended = subprocess.run(
        [sys.executable, "-m", "faults.drills", *words],
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "FAULT": "jump@0:update:2"} | fake,
        capture_output=True,
        text=True,
        cwd=drills.ROOT,
        check=False,
    )
    assert ended.returncode == 0, (ended.stdout + ended.stderr)[-3000:]
    assert clock.read_text() == "+2d\n"
    assert drifting.outcome(place / "jumps") == alone
