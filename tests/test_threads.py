"""Torch's threads: what the model can use, within the cores that are left by what runs beside."""

import pytest
import torch
from torch import nn

from pi0.ript import cores, threads
from pi0.ript.cores import usable_cores, whole_cores
from pi0.ript.threads import use_threads

SMALL, LARGE = nn.Linear(10, 10), nn.Linear(5000, 5000, device="meta")


@pytest.fixture
def chosen(monkeypatch):
    """What torch is told, on a machine of 16 cores."""
    numbers: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", numbers.append)
    monkeypatch.setattr(threads, "whole_cores", lambda: 16)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    return numbers


@pytest.mark.parametrize(
    ("processes", "beside", "room"),
    [(1, 0, 16), (2, 0, 8), (3, 0, 5), (1, 4, 12), (4, 2, 2), (4, 9, 1), (32, 0, 1)],
)
def test_a_large_model_takes_what_is_left_and_a_small_one_a_thread(
    chosen, monkeypatch, processes, beside, room
):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert use_threads(LARGE, beside=beside) == room
    assert use_threads(SMALL, beside=beside) == 1
    assert use_threads(SMALL, room, beside) == use_threads(LARGE, room, beside) == room, "as asked"
    assert chosen == [room, 1, room, room]
    with pytest.raises(ValueError, match=f"threads: expected at most {room} .* found {room + 1}; 0 takes"):
        use_threads(LARGE, room + 1, beside)


def test_without_torchrun_there_is_one_process(chosen):
    assert use_threads(LARGE) == 16


@pytest.fixture
def groups(monkeypatch, tmp_path):
    """Say which control group this process is in, and the limits of groups, on a machine of 8 cores."""
    monkeypatch.setattr(cores.os, "sched_getaffinity", lambda pid: range(8))
    monkeypatch.setattr(cores.sys, "platform", "linux")
    monkeypatch.setattr(cores, "_CGROUP", tmp_path / "groups")
    monkeypatch.setattr(cores, "_OWN_GROUP", tmp_path / "own")

    def say(own: str | None, **limits: str) -> None:
        if own is not None:
            (tmp_path / "own").write_text(f"1:cpuset:/old\n0::/{own}\n")
        for group, limit in limits.items():
            directory = tmp_path / "groups" / group.replace("_", "/").strip("/")
            directory.mkdir(parents=True, exist_ok=True)
            (directory / "cpu.max").write_text(f"{limit} 100000\n")

    return say


@pytest.mark.parametrize(
    ("own", "limits", "count"),
    [
        (None, {}, 8.0),
        ("", {"_": "max"}, 8.0),
        ("", {"_": "150000"}, 1.5),
        ("slice/job", {"slice_job": "max", "slice": "300000"}, 3.0),
        ("slice/job", {"slice_job": "50000", "slice": "300000"}, 0.5),
        ("other", {"slice": "300000", "other": "1200000"}, 8.0),
        ("../elsewhere", {"_": "200000"}, 2.0),
    ],
)
def test_cores_are_those_of_affinity_and_of_every_group_around(groups, own, limits, count):
    groups(own, **limits)
    assert usable_cores() == count
    assert whole_cores() == max(1, int(count))
