"""Whoever is killed, and whenever: the others end soon with one line, and --resume comes to the same end."""

import os
import re
import signal
import time

import pytest
from test_episodes import make_episode, publish

from faults import drills
from faults.drills import forked
from pi0.ript.checkpoint.files import published

PHASES = {"rollout": 4, "update": 3, "save": 2, "after": 1}
"""The events of rung 13 at which a process is killed, and the how manieth of each."""
FAST = [("update", 1)]
ONE_RANK = [
    pytest.param(event, rank, marks=() if (event, rank) in FAST else pytest.mark.slow)
    for event in PHASES
    for rank in (0, 1)
]


@pytest.mark.parametrize(("event", "rank"), ONE_RANK)
def test_one_rank_is_killed(place, pair, goes_on, event, rank):
    name = f"killed-{event}-{rank}"
    begun = time.monotonic()
    ended = forked(place, name, fault=f"SIGKILL@{rank}:{event}:{PHASES[event]}")
    assert ended[rank].code == -signal.SIGKILL
    ended[1 - rank].require_one_line(f"rank {rank} ended or stopped answering")
    assert time.monotonic() - begun < 60, "the other one did not wait for its timeout"
    outcome, said = goes_on(name)
    assert outcome == pair
    if event == "after":
        assert "continuing from" in said, "no iteration is made again"


@pytest.mark.parametrize(
    "event",
    [pytest.param(event, marks=() if event == "publish" else pytest.mark.slow)
     for event in ("rollout", "update", "write", "publish")],
)  # fmt: skip
def test_all_are_killed_at_once(place, pair, goes_on, event):
    """As when a node loses its power."""
    name = f"all-killed-{event}"
    ended = forked(place, name, fault=f"all-SIGKILL@0:{'kept:1' if event == 'rollout' else f'{event}:2'}")
    assert [one.code for one in ended] == [-signal.SIGKILL] * 2
    before = [path.name for path in published(place / name)]
    kept = list((place / name).glob("episodes/*/iteration-*/*.npz"))
    if event in ("write", "publish"):
        assert before == ["checkpoint-1"], "the second was not finished"
        assert (place / name / ".checkpoint-2.partial").exists()
    assert kept or event != "rollout", "finished episodes are on the disk"
    outcome, _ = goes_on(name)
    assert outcome == pair


@pytest.mark.slow
def test_torchrun_is_killed(place, pair, goes_on):
    """Its processes find out, end, and free the run's directory."""
    name = "launcher-killed"
    process = drills.torchrun(place, name, fault="launcher-SIGKILL@0:update:3")
    assert process.wait(drills.PATIENCE_S) == -signal.SIGKILL
    deadline = time.monotonic() + 60
    while drills.members(place, name) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not drills.members(place, name), drills.log_of(place, name).read_text()[-3000:]
    assert goes_on(name)[0] == pair


def supervised(place, name, *words):
    from pi0.ript.scripts.train import main

    raise SystemExit(main([*words, f"output_dir={place}", f"exp_name={name}"]))


TRAINING = (
    *("--config_path=configs/sft_pi0_config.json", "dataset_mixture.weights=null", "device=cpu"),
    *("dataset_mixture.action_freq=null", "batch_size=4", "val_freq=0", "log_freq=1", "save_freq=2"),
    *("dataset_mixture.num_workers=1", "dataset_mixture.cache_gib=0"),
)


def test_a_process_that_reads_data_is_killed(place, monkeypatch):
    """One line, and --resume ends with the model of a run that was not disturbed."""
    monkeypatch.chdir(drills.ROOT)
    data = publish(place / "read", {i: make_episode(i, length=3 + i, size=16) for i in range(4)})
    words = (*TRAINING, f"dataset_mixture.datasets=[{{root: {data}}}]", "steps=8")

    def kill_the_reader():
        from pi0.ript.training.steps import Steps

        accept = Steps.accept

        def watched(self, *arguments):
            if self.step == 4:
                children = re.findall(r"\d+", open(f"/proc/self/task/{os.getpid()}/children").read())  # noqa: SIM115, PTH123
                os.kill(int(children[0]), signal.SIGKILL)
            return accept(self, *arguments)

        Steps.accept = watched

    (whole,) = forked(place, "read-whole", *words, size=1, run=supervised)
    assert whole.code == 0, whole.said[-3000:]
    (ended,) = forked(place, "read-killed", *words, size=1, run=supervised, prepare=kill_the_reader)
    ended.require_one_line("a process that reads data was lost", "--resume")
    (again,) = forked(place, "read-killed", *words, "--resume", size=1, run=supervised)
    assert again.code == 0, again.said[-3000:]
    models = [place / name / "model.safetensors" for name in ("read-whole", "read-killed")]
    assert models[0].read_bytes() == models[1].read_bytes()
