"""Checkpoints written in the background: each of its step, one at a time, completely or not at all."""

import os
import pickle
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import together
from test_checkpoint import CONFIG, trained
from test_sharding import SETTINGS, Run, bytes_of, joined
from test_supervised import make_episode, publish, rows, run, settings

from pi0.ript import interruption
from pi0.ript.checkpoint import SnapshotError, background, find_checkpoint, load_checkpoint, save_checkpoint
from pi0.ript.checkpoint import snapshot as snapshots
from pi0.ript.checkpoint.files import MANIFEST, published, verify
from pi0.ript.checkpoint.parts import PARTS
from pi0.ript.config.schema import Distributed
from pi0.ript.distributed import World, setup_distributed
from pi0.ript.peers import Peers

ANY = {f"{PARTS}/.metadata", MANIFEST}
"""Files that name the directory or the moment of a write in parts."""


@pytest.fixture(autouse=True)
def nothing_asked() -> Iterator[None]:
    yield
    interruption._request.code = 0


@pytest.fixture
def peers() -> World:
    return setup_distributed("cpu", background_checkpoints=True)


@contextmanager
def held_back(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let no background write begin meanwhile; then finish the one that is under way."""
    gate, begin = threading.Event(), background.start
    monkeypatch.setattr(background, "start", lambda write: begin(lambda: (gate.wait(60), write())))
    try:
        yield
    finally:
        gate.set()
        background.wait()
        monkeypatch.setattr(background, "start", begin)


def step(policy: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for parameter in optimizer.param_groups[0]["params"]:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()


def test_it_is_of_its_step_although_the_training_has_gone_on(tmp_path, monkeypatch, peers):
    policy, optimizer = trained()
    torch.manual_seed(3), random.seed(4)
    states = {"skips": {"3": 2}, "positions": [torch.arange(3)]}
    waited = save_checkpoint(policy, optimizer, 2, CONFIG, tmp_path / "waited", sampler_state=states)
    random.seed(4)
    with held_back(monkeypatch):
        options = {"sampler_state": states, "peers": peers, "in_background": True}
        path = save_checkpoint(policy, optimizer, 2, CONFIG, tmp_path / "run", **options)
        assert not path.exists()
        step(policy, optimizer)
        states["skips"]["3"], states["positions"][0][0] = 9, 9
        torch.rand(1)
    assert bytes_of(path) == bytes_of(waited)
    other, its_optimizer = trained(seed=4)
    load_checkpoint(path, other, its_optimizer)
    moved = [not torch.equal(a, b) for a, b in zip(policy.parameters(), other.parameters(), strict=True)]
    assert any(moved), "the training has gone on"


def test_one_that_is_killed_before_it_is_on_the_disk_was_never_there(tmp_path, monkeypatch, peers):
    policy, optimizer = trained()
    save_checkpoint(policy, optimizer, 1, CONFIG, tmp_path)
    child = os.fork()
    if child == 0:
        monkeypatch.setattr(snapshots, "publish", lambda *_: os._exit(7))  # all files but the manifest
        save_checkpoint(policy, optimizer, 2, CONFIG, tmp_path, peers=peers, in_background=True, keep_last=1)
        background.wait()
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert (tmp_path / ".checkpoint-2.partial/trainer.pt").exists()
    assert find_checkpoint(tmp_path, "auto") == tmp_path / "checkpoint-1"
    save_checkpoint(policy, optimizer, 2, CONFIG, tmp_path, peers=peers, in_background=True)
    background.wait()
    assert verify(tmp_path / "checkpoint-2")
    assert not list(tmp_path.glob(".*"))


def test_one_that_fails_is_one_error_and_asks_the_run_to_stop(tmp_path, monkeypatch, peers, capfd):
    policy, optimizer = trained()
    save_checkpoint(policy, optimizer, 1, CONFIG, tmp_path)

    def full(*_) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(snapshots, "publish", full)
        save_checkpoint(policy, optimizer, 2, CONFIG, tmp_path, peers=peers, in_background=True, keep_last=1)
        background._under_way[0].join()
    assert interruption.stop_requested() == 143, "so that the next step is the last"
    assert capfd.readouterr().err.count("could not be written in the background: stopping") == 1
    with pytest.raises(
        SnapshotError, match=r"checkpoint-2 could not be written .*No space left.*checkpoint-1"
    ):
        save_checkpoint(policy, optimizer, 3, CONFIG, tmp_path, peers=peers)
    assert [path.name for path in tmp_path.iterdir() if "checkpoint" in path.name] == ["checkpoint-1"]
    background.wait()  # it is told once


def test_the_next_one_begins_when_it_is_finished(tmp_path, monkeypatch, peers):
    policy, optimizer = trained()
    order, publish = [], snapshots.publish

    def slow(directory: Path, path: Path, *rest) -> None:
        order.append(f"{path.name} began")
        threading.Event().wait(0.3)
        publish(directory, path, *rest)
        order.append(f"{path.name} ended")

    monkeypatch.setattr(snapshots, "publish", slow)
    after = []
    for number in (1, 2, 3):
        options = {"peers": peers, "in_background": number < 3, "keep_last": 1}
        save_checkpoint(
            policy, optimizer, number, CONFIG, tmp_path, after=lambda: after.append(len(order)), **options
        )
    assert order == [f"checkpoint-{n} {what}" for n in (1, 2, 3) for what in ("began", "ended")]
    assert after == [2, 4, 6], "what it makes superfluous goes when it is on the disk"
    assert [path.name for path in published(tmp_path)] == ["checkpoint-3"]


def test_a_run_of_pi0_train_leaves_what_it_would_have_left(tmp_path):
    root = str(publish(tmp_path / "demos", {i: make_episode(i, length=3 + i) for i in range(5)}))
    options = {"ema_decay": 0.9, "val_freq": 2, "save_total_limit": 9}
    for name in ("waited", "beside"):
        random.seed(1)
        distributed = Distributed(background_checkpoints=name == "beside")
        run(settings(root, tmp_path / name, distributed=distributed, **options))
    waited, beside = (bytes_of(tmp_path / name / "pi0") for name in ("waited", "beside"))
    assert waited.keys() == beside.keys()
    same = {name for name, content in waited.items() if content == beside[name]}
    for name in waited.keys() - same:
        assert name.endswith((MANIFEST, ".yaml", ".jsonl", ".log", ".html", ".json")), name
    assert {f"checkpoint-{n}/{file}" for n in (2, 4, 6) for file in ("trainer.pt", "rng_rank0.pt")} <= same
    losses = [[row["loss"] for row in rows(tmp_path / name / "pi0")] for name in ("waited", "beside")]
    assert losses[0] == losses[1]


# Processes that hold parts ----------------------------------------------------------------------------------


def one_of_two(place: Path) -> dict:
    """What each of two processes does."""
    world, monkeypatch = joined(background_checkpoints=True), pytest.MonkeyPatch()
    results = {}
    trained_run = Run(world)
    trained_run.improve(0)
    random.seed(1)
    waited = save_checkpoint(
        trained_run.policy, trained_run.optimizer, 1, SETTINGS, place / "waited", peers=world
    )
    random.seed(1)
    with held_back(monkeypatch):
        path = save_in_background(trained_run, 1, place / "run", world)
        results["is early"] = path.exists()
        results["rest"] = trained_run.improve(1, 2)
    results["files"] = [bytes_of(waited), bytes_of(path)] if world.rank == 0 else [{}, {}]
    results["tensors"] = [tensors(place_of, world) for place_of in (waited, path)]
    other = Run(world)
    load_checkpoint(path, other.policy, other.optimizer, peers=world)
    results["again"] = other.improve(1, 2)
    if world.rank == 0:
        monkeypatch.setattr(snapshots, "publish", full_disk)
    save_in_background(trained_run, 3, place / "run", world)
    trained_run.improve(3)
    with pytest.raises(SnapshotError) as error:
        background.wait()
    results["error"] = str(error.value)
    monkeypatch.undo()
    with held_back(monkeypatch):
        save_in_background(trained_run, 4, place / "run", world)
        (place / f"killed-{world.rank}.pkl").write_bytes(pickle.dumps(results))
        os._exit(0)


def save_in_background(trained_run: Run, number: int, place: Path, world: Peers) -> Path:
    policy, optimizer = trained_run.policy, trained_run.optimizer
    return save_checkpoint(policy, optimizer, number, SETTINGS, place, peers=world, in_background=True)


def full_disk(*_: object) -> None:
    raise OSError(28, "No space left on device")


def tensors(path: Path, world: World) -> list[torch.Tensor]:
    other = Run(world)
    load_checkpoint(path, other.policy, other.optimizer, peers=world)
    state = [value for values in other.optimizer.state.values() for value in values.values()]
    local = [value.to_local() if hasattr(value, "to_local") else value for value in state]
    return [*other.whole().values(), *local]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    place = tmp_path_factory.mktemp("background")
    with pytest.raises(FileNotFoundError):
        together(2, place / "pair", one_of_two, place)  # they are killed
    return place, [pickle.loads((place / f"killed-{rank}.pkl").read_bytes()) for rank in range(2)]


def test_parts_are_of_their_step_and_the_training_is_not_changed(pair):
    _, results = pair
    waited, beside = results[0]["files"]
    assert waited.keys() == beside.keys()
    assert {name for name in waited if waited[name] != beside[name]} <= ANY
    for own in results:
        assert not own["is early"]
        assert own["rest"] == own["again"], "it goes on from there as if nothing had happened"
        for a, b in zip(*own["tensors"], strict=True):
            assert torch.equal(a, b)


def test_an_error_of_one_process_is_raised_on_all_and_the_one_before_stays(pair):
    place, results = pair
    for own in results:
        assert "checkpoint-3 could not be written (OSError: [Errno 28] No space left" in own["error"]
    assert [path.name for path in published(place / "run")] == ["checkpoint-1"], "nor is one that was killed"
    assert verify(place / "run/checkpoint-1")


def test_one_process_goes_on_from_it(pair):
    place, results = pair
    world = World(is_sharded=True)
    alone = Run(world)
    load_checkpoint(place / "run/checkpoint-1", alone.policy, alone.optimizer, peers=world)
    assert np.allclose(alone.improve(1, 2), results[0]["rest"], rtol=1e-4)
