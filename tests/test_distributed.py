"""Two processes give what one gives: shares, gradients, collections; and a lost peer is named."""

import os
import pickle
import subprocess
import sys
from itertools import count, islice
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from conftest import CAMERA, TASKS, toy_policy

from pi0.ript.distributed import (
    World,
    cleanup_distributed,
    get_model_from_ddp,
    setup_distributed,
)
from pi0.ript.loss import AdvantageLoss
from pi0.ript.peers import ALONE, gather_shares, share
from pi0.ript.windows import batches

NUM_WINDOWS = 7  # in steps of 5 and 2: shares of 3 and 2, then 1 and 1


def window_batch(indices: np.ndarray) -> dict:
    """Some of seven windows, as `Windows.batch` returns them."""
    g = torch.Generator().manual_seed(3)
    everything = {
        CAMERA: torch.randint(0, 256, (NUM_WINDOWS, 48, 64, 3), dtype=torch.uint8, generator=g),
        "observation.state": torch.randn(NUM_WINDOWS, 4, generator=g),
        "action": torch.randn(NUM_WINDOWS, 8, 3, generator=g),
        "action_is_pad": torch.zeros(NUM_WINDOWS, 8, dtype=torch.bool),
        "advantage": torch.tensor([1.0, -1.0, 0.5, 1.0, -0.5, 1.0, 1.0]),
        "window": torch.arange(NUM_WINDOWS),
    }
    tasks = (TASKS * NUM_WINDOWS)[:NUM_WINDOWS]
    return {k: v[torch.from_numpy(indices)] for k, v in everything.items()} | {
        "task": [tasks[i] for i in indices.tolist()]
    }


def improve(world: World, order: np.ndarray) -> dict:
    """Two optimizer steps as the ladder's loop takes them, on all windows; return what came of it."""
    torch.manual_seed(0)
    learner = world.wrap(AdvantageLoss(toy_policy(indicator="embedding"), 0.1))
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.1)
    losses, gradients = [], []
    for number, step in enumerate(batches(order, 5)):
        total = torch.zeros(())
        for micro_batch in world.micro_batches(learner, step, 2):
            loss = learner(window_batch(micro_batch), seed=(0, number)) / len(step)
            world.backward(loss)
            total += loss.detach()
        gradients.append([p.grad.clone() for p in learner.parameters()])
        optimizer.step()
        optimizer.zero_grad()
        losses.append(world.sum(total))
    model = get_model_from_ddp(learner)
    assert isinstance(model, AdvantageLoss)
    world.require_equal(model)
    return {"losses": losses, "gradients": gradients, "parameters": [p.detach() for p in model.parameters()]}


def one_of_two(directory: Path) -> None:
    """What each process of the two does; results are written for the test to read."""
    world = setup_distributed("cpu", timeout_seconds=60, num_groups=4)
    found = {
        "size": world.size,
        "gathered": world.gather([world.rank] * (world.rank + 1)),
        "sum": world.sum(torch.tensor(world.rank + 1.5)),
        "main": world.on_main(lambda: (directory / "main").write_text("x") and f"from {world.rank}"),
        "portion": world.portion(count()),
        "shares": gather_shares([10 * i for i in share(range(3, 10), world, 3)], world, 3),
        "turns": list(world.turns(9)),
        "full": improve(world, np.array([6, 2, 0, 1, 5, 3, 4])),
        "one window": improve(world, np.array([6])),  # one process has nothing to do
    }
    made = directory / "made"
    found["first"] = world.first(lambda: made.exists() or (made.write_text("x") and False))
    model = torch.nn.Linear(1, 1)
    torch.nn.init.constant_(model.weight, float(world.rank))
    try:
        world.require_equal(model)
    except RuntimeError as error:
        found["drift"] = str(error)
    (directory / f"rank{world.rank}.pkl").write_bytes(pickle.dumps(found))
    if world.rank == 1:
        os._exit(3)  # dies without a word
    try:
        world.gather([])
    except RuntimeError as error:
        (directory / "lost").write_text(f"{type(error).__name__}: {error}")
    cleanup_distributed()


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The directory with the results of two processes."""
    directory = tmp_path_factory.mktemp("pair")
    code = f"import pathlib, test_distributed as t; t.one_of_two(pathlib.Path({str(directory)!r}))"
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, [Path(__file__).parent, Path(__file__).parent.parent])),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(20000 + os.getpid() % 20000),
        "OMP_NUM_THREADS": "1",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 3], errors
    return directory


@pytest.fixture(scope="module")
def ranks(pair):
    return [pickle.loads((pair / f"rank{rank}.pkl").read_bytes()) for rank in range(2)]


def test_what_the_processes_exchange(pair, ranks):
    for rank, found in enumerate(ranks):
        assert found["size"] == 2
        assert found["gathered"] == [[0], [1, 1]]
        assert found["sum"] == 4.0
        assert found["main"] == "from 0"
        assert list(islice(found["portion"], 3)) == [[0, 2, 4], [1, 3, 5]][rank]
        assert found["shares"] == [30, 40, 50, 60, 70, 80, 90]
        assert found["turns"] == sorted(found["turns"])
        assert found["first"] is bool(rank), "rank 0 makes it, rank 1 finds it"
        assert "parameters differ" in found["drift"]

    assert sorted(ranks[0]["turns"] + ranks[1]["turns"]) == list(range(9)), "each one has one process"


@pytest.mark.parametrize(("name", "order"), [("full", [6, 2, 0, 1, 5, 3, 4]), ("one window", [6])])
def test_gradients_are_those_of_one_process(ranks, name, order):
    alone = improve(World(), np.array(order))
    assert len(alone["losses"]) == len(batches(np.array(order), 5))
    for found in ranks:
        assert found[name]["losses"] == pytest.approx(alone["losses"], rel=1e-5)
        for ours, theirs in zip(found[name]["gradients"], alone["gradients"], strict=True):
            for a, b in zip(ours, theirs, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert max(g.abs().max() for g in alone["gradients"][0]) > 1e-2
    for a, b in zip(ranks[0][name]["parameters"], ranks[1][name]["parameters"], strict=True):
        assert torch.equal(a, b)


def test_a_lost_peer_is_one_clear_error(pair, ranks):
    message = (pair / "lost").read_text()
    assert message.startswith(
        "PeerLostError: rank 0: rank 1 ended or stopped answering, noticed in one_of_two"
    )
    assert "\n" not in message


def test_alone_is_the_identity():
    world = World()
    assert world.gather([1, 2]) == [[1, 2]]
    assert world.sum(torch.tensor(2.5)) == 2.5
    assert world.on_main(max, 1, 2) == world.first(max, 1, 2) == 2
    module = torch.nn.Linear(1, 1)
    assert world.wrap(module) is module is get_model_from_ddp(module)
    assert share(range(5), ALONE, 2) == range(5)
    assert list(islice(world.portion(count()), 3)) == [0, 1, 2]


def test_portions_go_on_together_where_all_of_them_ended():
    """After an odd number, the first process is no longer the one whose turn it is."""
    portions = [World(rank, 2).portion(count()) for rank in range(2)]
    assert [list(islice(portion, n)) for portion, n in zip(portions, (2, 1), strict=True)] == [[0, 2], [1]]
    for portion in portions:
        portion.move_past(3)
    assert [list(islice(portion, 2)) for portion in portions] == [[3, 5], [4, 6]]
    for portion in portions:
        portion.move_past(7)  # further than this process has read
    assert [next(portion) for portion in portions] == [10, 11]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_groups": 1}, "algo.data_batch_size: expected a group or more"),
        ({"device": "cuda"}, "device: expected a GPU for each of the 2 processes"),
        ({"device": "auto"}, "device: expected a GPU for each of the 2 processes"),
    ],
)
def test_more_processes_than_work_are_refused_before_they_connect(monkeypatch, change, message):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match=message):
        setup_distributed(**{"device": "cpu", "num_groups": 4, **change})


def test_processes_on_a_cpu_talk_through_gloo_even_where_nccl_is_asked_for(monkeypatch):
    joined = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **_: joined.append(backend))
    monkeypatch.setattr(dist, "new_group", lambda **_: None)
    monkeypatch.setattr(dist.distributed_c10d, "_get_default_store", lambda: None)
    setup_distributed("auto", "nccl")
    assert joined == ["gloo"]


def test_one_gpu_for_all_processes_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match=r"device: 'cuda:0' would put 2 processes on one GPU"):
        setup_distributed("cuda:0")
