"""A signal to whomever: all processes save, leave at one step, and --resume comes to the same end."""

import json
import os
import re
import signal
import time

import pytest

from faults import drills
from faults.drills import forked
from pi0.ript.checkpoint.files import published, verify

PHASES = {"rollout": "kept:1", "update": "update:3", "save": "save:2", "after": "after:1"}
HANDLED = ("--signals-to-handle=SIGTERM,SIGINT,SIGUSR1",)


def require_one_step(said: str) -> None:
    """Assert that the run says once, for all of its processes, where it stopped."""
    assert len(re.findall(r"stopped at iteration \d+, optimizer step \d+; continue with --resume", said)) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "event"), [*(("SIGTERM", event) for event in PHASES), ("SIGUSR1", "update")]
)
def test_torchrun_is_signalled(place, pair, goes_on, number, event):
    name = f"launcher-{number}-{event}"
    process = drills.torchrun(place, name, fault=f"launcher-{number}@0:{PHASES[event]}", options=HANDLED)
    assert process.wait(drills.PATIENCE_S) != 0
    said = drills.log_of(place, name).read_text()
    require_one_step(said)
    assert "Traceback" not in said.split("torch/distributed")[0], said[-3000:]
    assert not drills.members(place, name), "no process is left behind"
    assert verify(published(place / name)[-1])
    kept = finished_episodes(place / name)
    outcome, again = goes_on(name)
    assert outcome == pair
    assert kept or event != "rollout", "episodes that are finished are not run again"
    assert "resume: continuing from" in again or event == "rollout"


def finished_episodes(run_dir) -> set[str]:
    return {path.name for path in run_dir.glob("episodes/*/iteration-*/*.npz")}


@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_one_rank_is_signalled(place, pair, goes_on, rank):
    name = f"one-signalled-{rank}"
    ended = forked(place, name, fault=f"SIGUSR1@{rank}:update:3")
    assert [one.code for one in ended] == [128 + signal.SIGUSR1] * 2
    require_one_step(ended[0].said)
    assert goes_on(name)[0] == pair


def test_a_second_signal_in_the_save_leaves_at_once_and_the_checkpoint_before_is_valid(place, alone, goes_on):
    name = "twice-in-a-save"
    (ended,) = forked(place, name, size=1, fault="twice-SIGTERM@0:write:2")
    assert ended.code == 128 + signal.SIGTERM
    assert "leaving at once, the checkpoint before stays as it is" in ended.said
    assert [path.name for path in published(place / name)] == ["checkpoint-1"]
    assert goes_on(name, size=1)[0] == alone


@pytest.mark.slow
def test_a_signal_in_a_save_waits_for_it(place, alone, goes_on):
    name = "once-in-a-save"
    (ended,) = forked(place, name, size=1, fault="SIGTERM@0:write:1")
    assert ended.code == 128 + signal.SIGTERM
    require_one_step(ended.said)
    assert verify(place / name / "checkpoint-1")
    assert goes_on(name, size=1)[0] == alone


@pytest.mark.slow
def test_ctrl_c_twice_leaves_at_once(place, alone, goes_on):
    name = "ctrl-c"
    (ended,) = forked(place, name, size=1, fault="twice-SIGINT@0:rollout:4")
    assert ended.code == 128 + signal.SIGINT
    assert "SIGINT again: leaving at once" in ended.said
    assert goes_on(name, size=1)[0] == alone


@pytest.mark.slow
def test_a_signal_to_the_group_reaches_environment_workers_and_they_go_on(place, alone, goes_on):
    """SLURM and `timeout` signal all processes of a job; workers must not end before the run has saved."""
    name = "group-signalled"
    (ended,) = forked(place, name, "task.num_workers=1", size=1, fault="all-SIGTERM@0:rollout:4")
    assert ended.code == 128 + signal.SIGTERM
    require_one_step(ended.said)
    assert "run again" not in ended.said, "no episode was interrupted"
    assert goes_on(name, size=1)[0] == alone


@pytest.mark.slow
def test_a_launcher_that_kills_before_the_save_ends_leaves_the_checkpoint_before(place, pair, goes_on):
    """torchrun kills after TORCH_ELASTIC_SHUTDOWN_TIMEOUT; here that is 1 s and the save takes longer."""
    name = "short-grace"
    process = drills.torchrun(
        place,
        name,
        fault="launcher-SIGTERM@0:write:2",
        options=HANDLED,
        TORCH_ELASTIC_SHUTDOWN_TIMEOUT="1",
        SLOW_WRITE_S="30",
    )
    begun = time.monotonic()
    assert process.wait(drills.PATIENCE_S) != 0
    assert time.monotonic() - begun < drills.PATIENCE_S
    assert not drills.members(place, name)
    assert [path.name for path in published(place / name)] == ["checkpoint-1"]
    assert (place / name / ".checkpoint-2.partial").exists(), "it was killed in the middle"
    assert goes_on(name)[0] == pair


@pytest.mark.slow
@pytest.mark.parametrize("event", ["rollout", "update"])
def test_torchrun_starts_a_lost_process_again_and_the_run_goes_on(place, pair, event):
    """--max-restarts=1: inside one launch, and without --resume."""
    name = f"restarted-{event}"
    fault = f"SIGKILL@1:{event}:{ {'rollout': 4, 'update': 5}[event] }"
    process = drills.torchrun(
        place,
        name,
        fault=fault,
        options=("--max-restarts=1", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", *HANDLED),
        TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1",  # or the new processes find the old ones' addresses
        FAULT_ONCE=str(place / f"{name}.once"),
    )
    said = drills.log_of(place, name)
    assert process.wait(drills.PATIENCE_S) == 0, said.read_text()[-3000:]
    assert "begun by this launch of torchrun, which goes on with it" in said.read_text()
    import drifting

    assert drifting.outcome(place / name) == pair
    assert json.loads((place / name / "launch.json").read_text())
    assert not list(place.glob(f"{name}.[0-9]")), "nothing was moved aside"
    assert os.path.exists(place / f"{name}.once"), "the process was killed"  # noqa: PTH110
