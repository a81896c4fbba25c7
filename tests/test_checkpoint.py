"""Checkpoints are complete or not there, damage is found and named, and what was saved comes back exactly."""

import fcntl
import json
import os
import random
import resource
import shutil
import signal
import threading
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import toy_policy

from pi0 import PI0Policy
from pi0.config import GemmaConfig, SiglipConfig
from pi0.ript.checkpoint import (
    ChangedSettingsError,
    Progress,
    SnapshotError,
    find_checkpoint,
    load_checkpoint,
    open_run_directory,
    save_checkpoint,
)
from pi0.ript.checkpoint import files as checkpoint_files
from pi0.ript.checkpoint.files import published, verify
from pi0.ript.checkpoint.journal import EpisodeJournal
from pi0.ript.checkpoint.resuming import require_same_settings, settings_hash
from pi0.ript.config.schema import Algo, Logging, TrainConfig, TrainingSettings
from pi0.ript.envs import InitialState, Task
from pi0.ript.episode import Rollout
from pi0.ript.files import FORMAT
from pi0.ript.peers import Alone
from pi0.ript.policy_settings import PolicySettings
from pi0.ript.recap.stages import differences
from pi0.ript.results import RunInUseError, new_run_directory

CONFIG = {"algo": {"lr": 1e-3}, "training": {"num_train_steps": 4, "save_freq": 1}, "device": "cpu"}
PROGRESS = Progress(2, 3, [0.1, 1 / 3, 7e-9], [{"iteration": 0, "train/loss": None}, {"iteration": 1}], 1)
SAMPLER = {"position": 9, "skips": {"3": 2}}
FILES = ("checkpoint.json", "trainable.safetensors", "trainer.pt", "rng_rank0.pt", "progress.json")
FILES = (*FILES, "policy/model-00001-of-00001.safetensors", "policy/config.json")


def tiny_policy(**changes) -> PI0Policy:
    gemma = GemmaConfig(width=32, depth=1, mlp_dim=32, num_heads=2, head_dim=16)
    vision = SiglipConfig(width=32, depth=1, num_heads=2, mlp_dim=32, patch_size=8, image_size=8)
    return toy_policy(
        **{"vlm": gemma, "expert": gemma, "vision": vision, "num_inference_steps": 2, **changes}
    )


def trained(seed: int = 0, steps: int = 2) -> tuple[PI0Policy, torch.optim.Optimizer]:
    """A policy whose vision is frozen and an optimizer that have come some way."""
    policy = tiny_policy()
    policy.model.freeze("vision")
    optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=1e-3)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for p in optimizer.param_groups[0]["params"]:
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()
    return policy, optimizer


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run with two checkpoints."""
    directory = tmp_path_factory.mktemp("run")
    save_checkpoint(*trained(seed=1), 1, CONFIG, directory)
    save_checkpoint(*trained(), 2, CONFIG, directory, progress=PROGRESS, sampler_state=SAMPLER)
    return directory


@pytest.fixture
def run_dir(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "run")
    return tmp_path / "run"


class Sampler:
    def state_dict(self):
        return self.state

    def load_state_dict(self, state):
        self.state = state


def test_everything_comes_back_exactly(tmp_path):
    policy, optimizer = trained()
    torch.manual_seed(5), np.random.seed(6), random.seed(7)
    path = save_checkpoint(policy, optimizer, 2, CONFIG, tmp_path, progress=PROGRESS, sampler_state=SAMPLER)
    expected = torch.rand(3), np.random.rand(3), random.random()
    assert path == tmp_path / "checkpoint-2-3"
    other, its_optimizer = trained(seed=4, steps=1)
    sampler = Sampler()
    parameters = list(other.parameters())
    assert load_checkpoint(path, other, its_optimizer, sampler) == PROGRESS
    assert sampler.state == SAMPLER
    draws = torch.rand(3), np.random.rand(3), random.random()
    assert torch.equal(draws[0], expected[0])
    assert (draws[1] == expected[1]).all()
    assert draws[2] == expected[2]
    assert all(a is b for a, b in zip(other.parameters(), parameters, strict=True)), "in place"
    for a, b in zip(policy.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(optimizer.state.values(), its_optimizer.state.values(), strict=True):
        assert all(torch.equal(a[key], b[key]) for key in ("step", "exp_avg", "exp_avg_sq"))
    loaded = PI0Policy.from_pretrained(path / "policy")
    for name, value in policy.named_parameters():
        assert torch.equal(loaded.get_parameter(name), value), name


def damage(file: Path, kind: str) -> None:
    content = bytearray(file.read_bytes())
    if kind == "missing":
        file.unlink()
        return
    if kind == "truncated":
        del content[len(content) // 2 :]
    else:
        content[len(content) // 3] ^= 4
    file.write_bytes(content)


@pytest.mark.parametrize("kind", ["missing", "truncated", "one bit"])
@pytest.mark.parametrize("name", FILES)
def test_damage_is_named_and_the_checkpoint_before_is_used(run_dir, name, kind, capsys):
    newest = run_dir / "checkpoint-2-3"
    damage(newest / name, kind)
    with pytest.raises(SnapshotError, match=f"checkpoint-2-3: {name} "):
        find_checkpoint(run_dir, str(newest))
    policy, optimizer = trained(seed=3)
    before = [p.clone() for p in policy.parameters()]
    with pytest.raises(SnapshotError, match=name):
        load_checkpoint(newest, policy, optimizer)
    assert all(torch.equal(a, b) for a, b in zip(before, policy.parameters(), strict=True))
    assert find_checkpoint(run_dir, "auto") == run_dir / "checkpoint-1"
    assert f"not used: {newest}: {name} " in capsys.readouterr().out


def test_none_is_the_beginning_and_nothing_valid_an_error(run_dir, tmp_path, capsys):
    assert find_checkpoint(run_dir, None) is None
    (tmp_path / "empty").mkdir()
    assert find_checkpoint(tmp_path / "empty", "auto") is None
    assert "no checkpoint in" in capsys.readouterr().out
    for path in published(run_dir):
        damage(path / "trainer.pt", "one bit")
    with pytest.raises(SnapshotError, match="none of the 2 checkpoints"):
        find_checkpoint(run_dir, "auto")
    with pytest.raises(SnapshotError, match="expected 'auto' or the path of a checkpoint-N"):
        find_checkpoint(run_dir, "newest")


def test_unfinished_and_foreign_directories_are_no_checkpoints(run_dir):
    (run_dir / "checkpoint-best").mkdir()
    (run_dir / ".checkpoint-9.partial").mkdir()
    assert find_checkpoint(run_dir, "auto") == run_dir / "checkpoint-2-3"
    save_checkpoint(*trained(), 3, CONFIG, run_dir)
    assert not (run_dir / ".checkpoint-9.partial").exists()


def test_there_is_a_valid_checkpoint_at_every_instant(run_dir, monkeypatch):
    rename, rmtree = Path.rename, shutil.rmtree
    seen = []

    def valid(*args, call):
        names = []
        for path in published(run_dir):
            try:
                names.append(verify(path) and path.name)
            except SnapshotError:
                continue
        seen.append(names)
        return call(*args)

    monkeypatch.setattr(Path, "rename", lambda *a: valid(*a, call=rename))
    monkeypatch.setattr(shutil, "rmtree", lambda *a, **k: valid(*a, call=lambda p: rmtree(p, **k)))
    for step in (3, 4):
        save_checkpoint(*trained(), step, CONFIG, run_dir, keep_last=1)
    assert len(seen) >= 6
    assert all(seen)
    assert [path.name for path in published(run_dir)] == ["checkpoint-4"]


def dies_in(write: Callable[[], object]) -> None:
    """Run `write`, which ends with a SIGKILL of the process, in a child."""
    pid = os.fork()
    if not pid:
        try:
            write()
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def half_a_file(state: object, file: Path) -> None:
    file.write_bytes(b"PK\3\4 the beginning")
    die()


@pytest.mark.parametrize(
    ("place", "instead"),
    [
        ("torch.save", half_a_file),
        ("pi0.ript.checkpoint.files.hash_file", die),  # all files are there, the manifest is not
        ("pi0.ript.checkpoint.files._flush", die),  # the manifest is
        ("pathlib.Path.rename", die),  # everything is, but for its name
    ],
    ids=["half a file", "no manifest", "not flushed", "no name"],
)
def test_a_kill_while_saving_leaves_the_checkpoint_before(run_dir, place, instead):
    def write() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(place, instead)
            save_checkpoint(*trained(seed=5), 3, CONFIG, run_dir)

    dies_in(write)
    assert (run_dir / ".checkpoint-3.partial").exists(), "it died in the middle"
    newest = find_checkpoint(run_dir, "auto")
    assert newest == run_dir / "checkpoint-2-3"
    other, optimizer = trained(seed=4, steps=1)
    assert load_checkpoint(newest, other, optimizer) == PROGRESS
    assert all(torch.equal(a, b) for a, b in zip(trained()[0].parameters(), other.parameters(), strict=True))
    save_checkpoint(other, optimizer, 3, CONFIG, run_dir)
    assert find_checkpoint(run_dir, "auto") == run_dir / "checkpoint-3"
    assert not list(run_dir.glob(".checkpoint*"))


def test_the_last_are_kept_and_those_inside_an_iteration_only_while_newest(run_dir):
    save_checkpoint(*trained(), 2, CONFIG, run_dir, progress=Progress(2, 5))
    assert [path.name for path in published(run_dir)] == ["checkpoint-1", "checkpoint-2-5"]
    for step in (3, 4, 5):
        save_checkpoint(*trained(), step, CONFIG, run_dir, keep_last=3)
    assert [path.name for path in published(run_dir)] == ["checkpoint-3", "checkpoint-4", "checkpoint-5"]


@pytest.mark.parametrize("limit", [100, 9_000, 150_000], ids="{} bytes".format)
def test_a_full_disk_keeps_what_there_is(run_dir, limit):
    """A limit on the size of files stops one writer after the other."""
    sizes = sorted(file.stat().st_size for file in (run_dir / "checkpoint-1").rglob("*.*"))
    assert sizes[-1] > 150_000
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    policy, optimizer = trained()
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        with pytest.raises(SnapshotError, match=r"checkpoint-3 could not be written .*checkpoint-2-3"):
            save_checkpoint(policy, optimizer, 3, CONFIG, run_dir)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(run_dir.glob(".*"))
    assert [verify(path) and path.name for path in published(run_dir)] == ["checkpoint-1", "checkpoint-2-3"]


class Thread(Alone):
    """One of two processes, as a thread."""

    size = 2
    barrier = threading.Barrier(2)
    posted: dict = {}  # noqa: RUF012 - shared

    def __init__(self, rank):
        self.rank = rank

    def turns(self, count):
        raise AssertionError("shares out nothing")

    def gather(self, items):
        self.posted[self.rank] = items
        self.barrier.wait(30)
        posted = [self.posted[0], self.posted[1]]
        self.barrier.wait(30)
        return posted


def on_both(function) -> list:
    results = [None, None]

    def call(rank):
        try:
            results[rank] = function(Thread(rank))
        except SnapshotError as error:
            results[rank] = error

    threads = [threading.Thread(target=call, args=(rank,)) for rank in range(2)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    return results


def test_two_processes_write_one_checkpoint_and_fail_together(run_dir, monkeypatch, capsys):
    states = [trained(), trained()]

    def save(peers):
        return save_checkpoint(*states[peers.rank], 3, CONFIG, run_dir, peers=peers)

    path = on_both(save)[0]
    assert set(verify(path)["files"]) > {"rng_rank0.pt", "rng_rank1.pt"}
    load_checkpoint(path, *trained(seed=3))
    assert "processes 2 -> 1" in capsys.readouterr().out
    shutil.rmtree(path)
    write = torch.save

    def full_on_one(state, file):
        if file.name == "rng_rank1.pt":
            raise OSError(28, "No space left on device")
        write(state, file)

    monkeypatch.setattr(torch, "save", full_on_one)
    for error in on_both(save):
        assert "No space left" in str(error)
    assert not list(run_dir.glob(".*"))
    assert [path.name for path in published(run_dir)] == ["checkpoint-1"]


def test_another_model_is_refused_and_nothing_changes(saved):
    path = saved / "checkpoint-1"
    policy, _ = trained()
    policy.model.freeze("none")
    with pytest.raises(SnapshotError, match=r"another model: .* trained parameters differ, the first 'model"):
        load_checkpoint(path, policy)
    policy, _ = trained()
    with torch.no_grad():
        next(p for p in policy.parameters() if not p.requires_grad).add_(1e-3)
    with pytest.raises(SnapshotError, match="weights that are not trained differ"):
        load_checkpoint(path, policy)
    with pytest.raises(TypeError, match="expected a PI0Policy or a learner with one, found Linear"):
        load_checkpoint(path, torch.nn.Linear(1, 1))


def test_changed_settings_are_listed_unless_they_change_nothing(capsys):
    begun = TrainConfig(training=TrainingSettings(num_train_steps=4))
    saved, where = json.loads(json.dumps(asdict(begun))), Path("checkpoint-2")
    now = replace(begun, algo=Algo(lr=2e-3), training=TrainingSettings(save_freq=2), device="cuda")
    with pytest.raises(ChangedSettingsError) as raised:
        require_same_settings(saved, now, where)
    assert [line.strip() for line in str(raised.value).splitlines()[1:-1]] == [
        "algo.lr: 0.001 -> 0.002",
        "training.num_train_steps: 4 -> 3",
    ]
    assert "device: 'auto' -> 'cuda'" in capsys.readouterr().out
    more = replace(
        begun, training=TrainingSettings(num_train_steps=9, save_freq=2), logging=Logging(use_wandb=True)
    )
    require_same_settings(saved, more, where)
    assert settings_hash(more) == settings_hash(begun) != settings_hash(now)


def test_a_setting_that_a_run_did_not_know_has_its_default_there():
    saved, where = json.loads(json.dumps(asdict(TrainConfig()))), Path("checkpoint-2")
    del saved["algo"]["num_draws"], saved["eval"]
    require_same_settings(saved, TrainConfig(), where)
    with pytest.raises(ChangedSettingsError, match=r"algo\.num_draws: 2 -> 3"):
        require_same_settings(saved, TrainConfig(algo=Algo(num_draws=3)), where)
    saved["algo"]["num_wishes"] = 3
    with pytest.raises(ChangedSettingsError, match=r"algo\.num_wishes: 3 -> None"):
        require_same_settings(saved, TrainConfig(), where)


def test_a_setting_that_had_another_name_is_compared_under_its_present_one():
    now = TrainConfig(policy=PolicySettings(statistics_path="numbers.json"))
    saved, where = json.loads(json.dumps(asdict(now))), Path("checkpoint-2")
    saved["policy"]["norm_stats_path"] = saved["policy"].pop("statistics_path")
    require_same_settings(saved, now, where)
    with pytest.raises(ChangedSettingsError, match=r"policy\.statistics_path: 'numbers.json' -> None"):
        require_same_settings(saved, TrainConfig(), where)
    record = {"format": FORMAT, "settings": saved, "inputs": {}}
    assert differences(record, {**record, "settings": json.loads(json.dumps(asdict(now)))}) == []


def test_a_directory_has_one_writer(tmp_path):
    config = SimpleNamespace(output_dir=str(tmp_path), exp_name="run", resume=None)
    path, checkpoint = open_run_directory(config)
    assert (path, checkpoint) == (tmp_path / "run", None)
    (path / "kept").touch()
    config.resume = "auto"
    assert open_run_directory(config) == (path, None), "the same process may come back"
    assert (path / "kept").exists()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pi0.ript.results._locks", {})  # as another process
        with pytest.raises(RunInUseError, match=r"is being written by process .* on "):
            open_run_directory(config)
        with pytest.raises(RunInUseError, match=r"is being written by process .* on "):
            new_run_directory(path)  # as rungs 8 to 12 and pi0-eval do
    assert (path / "kept").exists(), "who is refused moves nothing aside"
    config.resume = None
    assert open_run_directory(config)[0] == path
    assert not (path / "kept").exists()
    assert (tmp_path / "run.1" / "kept").exists()
    with (path / ".lock").open() as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_resume_moves_the_run_of_another_rung_aside(tmp_path):
    """It left neither episodes nor checkpoints: nothing to continue, and nothing to write over."""
    new_run_directory(tmp_path / "run")
    (tmp_path / "run" / "results.json").write_text("{}")
    config = SimpleNamespace(output_dir=str(tmp_path), exp_name="run", resume="auto")
    assert open_run_directory(config) == (tmp_path / "run", None)
    assert not (tmp_path / "run" / "results.json").exists()
    assert (tmp_path / "run.1" / "results.json").read_text() == "{}"


# The journal ------------------------------------------------------------------------------------------------

TASK = Task("toy", "one", "do it", 9, 10.0, 2, 3, ("front",), 4)


def episode(with_images: bool = True) -> Rollout:
    rng = np.random.default_rng(0)
    state = InitialState(TASK.id, rng.normal(size=5), "train", 0)
    return Rollout(
        task=TASK,
        initial_state=state,
        seed=2**32 - 1,
        success=True,
        states=rng.normal(size=(7, 3)).astype("f4"),
        actions=rng.normal(size=(7, 2)).astype("f4"),
        observed=np.array([0, 4] if with_images else [], np.int64),
        images={"front": rng.integers(0, 256, (2, 4, 4, 3), np.uint8)} if with_images else {},
    )


@pytest.mark.parametrize("with_images", [True, False])
def test_an_episode_comes_back_bit_for_bit(tmp_path, with_images):
    journal, written = EpisodeJournal(tmp_path / "journal"), episode(with_images)
    assert journal.read(TASK, written.initial_state, written.seed) is None
    journal.write(written)
    read = journal.read(TASK, written.initial_state, written.seed, with_images)
    assert journal.read(TASK, written.initial_state, 0) is None
    assert_equal(read, written)
    assert len(journal.files()) == len(list((tmp_path / "journal").iterdir())) == 1


def assert_equal(actual: Rollout, expected: Rollout) -> None:
    assert (actual.task, actual.initial_state, actual.seed, actual.success) == (
        (expected.task, expected.initial_state, expected.seed, expected.success)
    )
    for name in ("states", "actions", "observed"):
        values, expected_values = getattr(actual, name), getattr(expected, name)
        assert values.dtype == expected_values.dtype
        np.testing.assert_array_equal(values, expected_values)
    assert actual.images.keys() == expected.images.keys()
    for camera, frames in expected.images.items():
        np.testing.assert_array_equal(actual.images[camera], frames)


def test_a_damaged_episode_is_said_and_run_again(tmp_path, capsys):
    """Every bit that matters is covered by a checksum; the others (dates in the archive) change nothing."""
    journal, written = EpisodeJournal(tmp_path), episode()
    journal.write(written)
    (file,) = journal.files()
    content = file.read_bytes()
    lost = 0
    for at in range(0, len(content), 7):
        file.write_bytes(content[:at] + bytes([content[at] ^ 16]) + content[at + 1 :])
        read = journal.read(TASK, written.initial_state, written.seed)
        if read is None:
            lost += 1
        else:
            assert_equal(read, written)
    assert capsys.readouterr().out.count("is damaged") == lost > len(content) / 7 / 3
    file.write_bytes(content[:-30])
    assert journal.read(TASK, written.initial_state, written.seed) is None


def test_an_episode_that_does_not_fit_on_the_disk_is_an_error_with_a_remedy(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_files.os, "fsync", full)
    journal = EpisodeJournal(tmp_path)
    with pytest.raises(SnapshotError, match=r"could not be written .*No space left.*--resume"):
        journal.write(episode())
    assert not list(tmp_path.iterdir())
