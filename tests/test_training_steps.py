"""What RECAP's trainings and pi0-train share: guards, snapshots, stops, and the comparison at resume."""

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_checkpoint import tiny_policy
from test_episodes import make_episode, publish
from test_recap_training import REWARD, chains, labelled

from pi0.ript import interruption
from pi0.ript.checkpoint import ChangedSettingsError, SnapshotError, contents, snapshot
from pi0.ript.checkpoint.files import published
from pi0.ript.data.settings import DatasetSettings, MixtureSettings
from pi0.ript.distributed import World
from pi0.ript.labels.calibration import heldout_calibration, heldout_episodes
from pi0.ript.monitoring import NonFiniteLossError
from pi0.ript.recap import RecapConfig
from pi0.ript.recap.objectives import policy_objective, value_objective
from pi0.ript.recap.snapshot_plan import SnapshotPlan
from pi0.ript.scripts import train as train_command
from pi0.ript.supervised import SupervisedSettings, trainer
from pi0.ript.supervised.settings import ModelSettings
from pi0.ript.supervised.trainer import Training
from pi0.ript.training.objectives import FlowLearner
from pi0.ript.training.settings import Optimizer, PolicyTraining, Scheduler, ValueTraining
from pi0.ript.training.steps import Steps
from pi0.value import ValueFunction
from pi0.value_config import expert_value_config
from train_ript_pi0_final import fit

NUM_STEPS = 5
WATCHED: list[dict[str, torch.Tensor]] = []
"""Weights before each optimizer step that was tried."""


# Two products -----------------------------------------------------------------------------------------------


def recap(place: Path, change: Callable[[Any], object] = lambda _: None, **settings: Any) -> list[dict]:
    """Train a policy as a stage does, in a directory of its own."""
    sources, advantages = labelled()
    policy = tiny_policy(indicator="embedding")
    policy.model.freeze("vision")
    change(policy)
    plan = SnapshotPlan(place, settings.pop("save_minutes", RecapConfig().save_minutes))
    training = PolicyTraining(**{"steps": NUM_STEPS, "batch_size": 8, **settings})
    parts = policy_objective(policy, sources, advantages, [a > 0 for a in advantages], training)
    return fit(*parts, training, (4,), plan, World())


def pi0_train(place: Path, change: Callable[[Any], object] = lambda _: None, **settings: Any) -> list[dict]:
    """Train a policy with pi0-train."""
    root = place.parent / "demonstrations"
    if not root.exists():
        publish(root, {i: make_episode(i, length=3 + i) for i in range(3)})
    make_parts = trainer.make_parts

    def changed_parts(*arguments: Any) -> Any:
        parts = make_parts(*arguments)
        change(parts.objective.model)
        return parts

    config = SupervisedSettings(
        policy=ModelSettings(chunk_size=4, freeze="vision"),
        dataset_mixture=MixtureSettings(datasets=[DatasetSettings(root=str(root))], num_workers=0),
        batch_size=4,
        steps=settings.pop("steps", NUM_STEPS),
        log_freq=100,
        save_minutes=settings.pop("save_minutes", 10.0),
        device="cpu",
        output_dir=str(place.parent),
        exp_name=place.name,
        optimizer=Optimizer(learning_rate=settings.pop("learning_rate", 1e-3)),
        scheduler=Scheduler(decay_lr=0.0),
        **settings,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "make_parts", changed_parts)
        patch.setattr(trainer, "write_report", lambda _: None)
        training = Training(config, World())
        patch.setattr(training, "_report", lambda: None)  # which takes the rows
        try:
            training.run()
        finally:
            training.close()
    return training.steps.rows


@pytest.fixture(params=[recap, pi0_train], ids=["recap", "pi0-train"])
def train(request: pytest.FixtureRequest) -> Callable[..., list[dict]]:
    return request.param


@pytest.fixture(autouse=True)
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Note the weights before each step; signal handlers are put back, and nobody has asked to stop."""
    WATCHED.clear()
    accept = Steps.accept

    def note_and_accept(self: Steps, row: dict, norm: torch.Tensor) -> bool:
        assert self._snapshots is not None
        parameters = self._snapshots.model.named_parameters()
        WATCHED.append({name: p.detach().clone() for name, p in parameters if p.requires_grad})
        return accept(self, row, norm)

    monkeypatch.setattr(Steps, "accept", note_and_accept)
    before = {number: signal.getsignal(number) for number in interruption._SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    interruption._request.code = 0


def poison(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """Put NaN into the actions of these steps' batches."""
    forward = FlowLearner.forward

    def poisoned(self: FlowLearner, batch: dict, indicator: Any, seed: tuple[int, ...]) -> torch.Tensor:
        factor = float("nan") if seed[-1] in steps else 1.0
        return forward(self, {**batch, "action": batch["action"] * factor}, indicator, seed)

    monkeypatch.setattr(FlowLearner, "forward", poisoned)


def weights(place: Path) -> dict[str, torch.Tensor]:
    """Return the trained weights of the newest snapshot."""
    return load_file(published(place)[-1] / snapshot.TRAINED)


def assert_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


# Steps that are not finite ----------------------------------------------------------------------------------


def test_a_step_that_is_not_finite_is_skipped_and_counted(train, tmp_path, monkeypatch, capsys):
    poison(monkeypatch, 1)
    rows = train(tmp_path / "run")
    assert [row["step"] for row in rows] == [0, 2, 3, 4]
    said = capsys.readouterr().out
    assert "the loss is nan, the norm of its gradient nan" in said
    assert "optimizer step 1: skipped on all processes" in said
    assert "action: NaN or infinity in frames [" in said
    assert_equal(WATCHED[1], WATCHED[2])
    assert not torch.equal(*(torch.cat([p.flatten() for p in w.values()]) for w in WATCHED[2:4]))


def test_a_few_in_a_row_end_the_training_with_the_weights_before_them(train, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        poison(patch, 1, 2, 3)
        with pytest.raises(NonFiniteLossError) as error:
            train(tmp_path / "run")
    for part in (
        *(
            "optimizer step 3: its loss or gradient is not finite",
            "number 3 in a row (max_nonfinite_steps=3)",
        ),
        *("checkpoint-4", "look at the data of these steps"),
    ):
        assert part.lower() in str(error.value).lower()
    assert [path.name for path in published(tmp_path / "run")] == ["checkpoint-4"]
    assert_equal(weights(tmp_path / "run"), WATCHED[1])
    with monkeypatch.context() as patch:
        poison(patch, 4)
        with pytest.raises(NonFiniteLossError, match="number 4 in a row"):
            train(tmp_path / "run")
    assert_equal(weights(tmp_path / "run"), WATCHED[1])


def test_the_same_command_goes_on_behind_steps_that_are_not_finite(train, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        poison(patch, 0, 1, 2)
        with pytest.raises(NonFiniteLossError):
            train(tmp_path / "run")
    assert [row["step"] for row in train(tmp_path / "run")] == [3, 4]


def test_the_command_says_in_a_line_why_it_ended(tmp_path, monkeypatch, capsys):
    def end() -> None:
        raise NonFiniteLossError("pi0, optimizer step 3: the loss is nan")

    monkeypatch.setattr(train_command, "parse_settings", lambda _: SupervisedSettings())
    monkeypatch.setattr(trainer, "Training", lambda _: SimpleNamespace(run=end))
    assert train_command.main([]) == 1
    assert capsys.readouterr().err.strip() == "pi0-train: error: pi0, optimizer step 3: the loss is nan"


# Snapshots --------------------------------------------------------------------------------------------------


def written(monkeypatch: pytest.MonkeyPatch, seconds: float) -> list[str]:
    """Let each step take so many seconds; return a list that the names of snapshots will be added to."""
    now, names = [0.0], []
    write, draws = snapshot.publish, FlowLearner.forward

    def publish_and_note(partial: Path, path: Path, *arguments: Any) -> None:
        names.append(path.name)
        write(partial, path, *arguments)

    def forward(*arguments: Any) -> torch.Tensor:
        now[0] += seconds
        return draws(*arguments)

    monkeypatch.setattr(snapshot, "publish", publish_and_note)
    monkeypatch.setattr(FlowLearner, "forward", forward)
    monkeypatch.setattr(snapshot, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return names


def test_snapshots_come_every_so_many_minutes_and_after_the_last_step(train, tmp_path, monkeypatch):
    """RECAP wrote its whole state every minute."""
    names = written(monkeypatch, seconds=61.0)
    train(tmp_path / "run", steps=12)
    assert names == ["checkpoint-10", "checkpoint-12"]


def test_snapshots_come_every_so_many_steps_where_that_is_asked_for(tmp_path, monkeypatch):
    names = written(monkeypatch, seconds=61.0)
    pi0_train(tmp_path / "run", steps=8, save_freq=3, save_minutes=None)
    assert names == ["checkpoint-3", "checkpoint-6", "checkpoint-8"]


def test_a_snapshot_that_cannot_be_written_keeps_those_before(train, tmp_path, monkeypatch):
    written(monkeypatch, seconds=301.0)  # one is due after every second step
    write = contents.write_tensors

    def write_until_the_disk_is_full(file: Path, tensors: dict) -> None:
        if "checkpoint-4" in str(file):
            raise OSError(28, "No space left on device")
        write(file, tensors)

    monkeypatch.setattr(contents, "write_tensors", write_until_the_disk_is_full)
    with pytest.raises(SnapshotError, match=r"No space left.*make room, then start the same command again"):
        train(tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").glob("*checkpoint-*")] == ["checkpoint-2"]


@pytest.mark.parametrize("at", [0, 3])
def test_a_stop_leaves_after_its_step_and_the_training_goes_on_exactly(train, tmp_path, monkeypatch, at):
    whole = train(tmp_path / "whole")
    forward = FlowLearner.forward

    def signal_and_forward(self: FlowLearner, batch: dict, indicator: Any, seed: tuple[int, ...]) -> Any:
        if seed[-1] == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return forward(self, batch, indicator, seed)

    interruption.setup_signal_handlers()
    with monkeypatch.context() as patch:
        patch.setattr(FlowLearner, "forward", signal_and_forward)
        with pytest.raises(interruption.StoppedError) as stopped:
            train(tmp_path / "run")
    assert stopped.value.code == 143
    assert [path.name for path in published(tmp_path / "run")] == [f"checkpoint-{at + 1}"]
    interruption.setup_signal_handlers()
    assert train(tmp_path / "run") == whole
    assert_equal(weights(tmp_path / "run"), weights(tmp_path / "whole"))


def test_a_signal_while_a_snapshot_is_written_costs_no_other_step(train, tmp_path, monkeypatch):
    """Another step and another snapshot can take longer than torchrun or SLURM wait."""
    names = written(monkeypatch, seconds=301.0)
    publish_snapshot = snapshot.publish

    def publish_and_signal(*arguments: Any) -> None:
        publish_snapshot(*arguments)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(snapshot, "publish", publish_and_signal)
    interruption.setup_signal_handlers()
    with pytest.raises(interruption.StoppedError):
        train(tmp_path / "run")
    assert names == ["checkpoint-2"]


# The comparison at resume -----------------------------------------------------------------------------------


@pytest.fixture
def begun(train, tmp_path, monkeypatch) -> Path:
    """A training that stopped after its second step."""
    with monkeypatch.context() as patch:
        patch.setattr("pi0.ript.training.steps.asked_to_stop", lambda _: 143 * (len(WATCHED) == 2))
        with pytest.raises(interruption.StoppedError):
            train(tmp_path / "run")
    assert [path.name for path in published(tmp_path / "run")] == ["checkpoint-2"]
    return tmp_path / "run"


def test_other_weights_that_are_not_trained_are_refused_by_name(train, begun):
    def replace_the_eyes(policy: torch.nn.Module) -> None:
        with torch.no_grad():
            next(p for p in policy.parameters() if not p.requires_grad).add_(1e-3)

    names = {recap: "policy_path", pi0_train: r"policy_path or policy\.reads"}
    with pytest.raises(SnapshotError, match=f"not trained differ from those of the run; .*{names[train]}"):
        train(begun, replace_the_eyes)
    assert len(WATCHED) == 2, "before any step"


def test_other_settings_are_refused_by_name(train, begun):
    with pytest.raises(ChangedSettingsError, match=r"learning_rate: 0\.001 -> 0\.002"):
        train(begun, learning_rate=2e-3)
    assert len(train(begun, save_minutes=1.0)) == NUM_STEPS


def test_other_versions_and_processes_are_a_notice(train, begun, capsys):
    edit_manifest(begun, lambda facts: facts["versions"].update(torch="1.0"))
    edit_manifest(begun, lambda facts: facts.update(num_processes=3))
    assert len(train(begun)) == NUM_STEPS
    assert f"torch 1.0 -> {version('torch')}, processes 3 -> 1" in capsys.readouterr().out


def edit_manifest(run_dir: Path, change: Callable[[dict], None]) -> None:
    """Change what the newest snapshot says of its run."""
    import json

    from pi0.ript.checkpoint import files

    file = published(run_dir)[-1] / files.MANIFEST
    body = json.loads(file.read_text())
    del body["sha256"]
    change(body)
    file.write_text(json.dumps({"sha256": files._digest(body), **body}))


def test_a_snapshot_of_an_earlier_version_that_says_less_is_continued(train, begun):
    edit_manifest(begun, lambda facts: [facts.pop(name, None) for name in ("versions", "untrained", "data")])
    assert len(train(begun)) == NUM_STEPS


def test_other_data_are_refused_by_name(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("pi0.ript.training.steps.asked_to_stop", lambda _: 143 * (len(WATCHED) == 2))
        with pytest.raises(interruption.StoppedError):
            pi0_train(tmp_path / "run")
    episodes = {i: make_episode(i, length=3 + i) for i in range(3)}
    root = tmp_path / "demonstrations"
    root.rename(tmp_path / "before")
    publish(root, {i: replace(e, actions=2 * e.actions) for i, e in episodes.items()})
    with pytest.raises(SnapshotError, match=r"datasets\.0 \(.*demonstrations\): the data are others"):
        pi0_train(tmp_path / "run")


def judged_value(policy: Any, place: Path, num_steps: int = 3) -> tuple[list[dict], Any]:
    """Train a value function as a stage does, in a directory of its own, and judge it."""
    value = ValueFunction(expert_value_config(policy), policy, seed=1)
    source, training = chains(0, 6), ValueTraining(steps=num_steps, batch_size=8)
    heldout = [heldout_episodes(source, training.validation_fraction, (4,))]
    parts = value_objective(value, [source], REWARD, heldout)
    rows = fit(*parts, training, (4,), SnapshotPlan(place), World())
    return rows, heldout_calibration(value, [source], REWARD, heldout)


def test_another_policy_that_a_value_function_reads_is_refused(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("pi0.ript.training.steps.asked_to_stop", lambda _: 143 * (len(WATCHED) == 2))
        with pytest.raises(interruption.StoppedError):
            judged_value(tiny_policy(), tmp_path)
    other = tiny_policy()
    with torch.no_grad():
        next(other.parameters()).add_(1e-3)
    with pytest.raises(SnapshotError, match="not trained differ"):
        judged_value(other, tmp_path)


def test_a_stop_while_a_value_function_is_judged_loses_no_step(tmp_path, monkeypatch):
    policy, values = tiny_policy(), ValueFunction.values
    interruption.setup_signal_handlers()
    with monkeypatch.context() as patch:
        patch.setattr(ValueFunction, "values", lambda *a: os.kill(os.getpid(), signal.SIGTERM) or values(*a))
        with pytest.raises(interruption.StoppedError):
            judged_value(policy, tmp_path)
    assert len(WATCHED) == 3
    interruption.setup_signal_handlers()
    assert len(judged_value(policy, tmp_path)[0]) == 3
    assert len(WATCHED) == 3, "no step is made again"
