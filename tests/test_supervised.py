"""Supervised training: runs on toys, their directories, resuming, labels, and what is refused."""

import json
import os
import re
import shutil
import signal
from collections.abc import Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path

import drifting
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import opened, toy_policy
from safetensors.torch import load_file
from test_episodes import make_episode, publish

from pi0 import Indicator, PI0Policy, registry
from pi0.embodiment import Embodiment
from pi0.ript import interruption
from pi0.ript.checkpoint import ChangedSettingsError, snapshot
from pi0.ript.checkpoint.files import published
from pi0.ript.commands import advantage
from pi0.ript.commands.stats import main as make_statistics
from pi0.ript.config import ConfigError
from pi0.ript.config.schema import EnvironmentSettings, EvalSettings
from pi0.ript.data.records import EpisodeDataError
from pi0.ript.data.settings import DatasetSettings, MixtureSettings
from pi0.ript.distributed import World
from pi0.ript.envs import BatchedEnv
from pi0.ript.labels.advantages import write_advantages
from pi0.ript.labels.settings import Advantage, RewardConfig
from pi0.ript.report import read_rows
from pi0.ript.results import RunInUseError
from pi0.ript.rollout import GuidedPolicy
from pi0.ript.supervised import SupervisedSettings, read_settings, trainer
from pi0.ript.supervised.models import DataSummary, policy_to_train, value_to_train
from pi0.ript.supervised.parts import make_parts, samples_per_step
from pi0.ript.supervised.settings import ModelSettings, NormalizationMapping
from pi0.ript.supervised.trainer import Training
from pi0.ript.supervised.window_labels import policy_labels, window_returns
from pi0.ript.training.optimization import WeightAverage, cosine_schedule
from pi0.ript.training.settings import Optimizer, Scheduler
from pi0.value import ValueFunction, bin_of

PARTS = ("vlm", "expert")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Five episodes of 3 to 7 frames, 0 and 3 of them failures."""
    base = tmp_path_factory.mktemp("data")
    return str(publish(base / "demos", {i: make_episode(i, length=3 + i) for i in range(5)}))


@pytest.fixture(autouse=True)
def once():
    """Signal handlers are put back, nobody has asked to stop, and no suite of a test is known."""

    before = {number: signal.getsignal(number) for number in interruption._SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    interruption._request.code = 0
    drifting.uninstall()


def settings(root: str, output: Path, type: str = "pi0", **changes) -> SupervisedSettings:  # noqa: A002
    policy = changes.pop("policy", {})
    reward = RewardConfig(C_neg=-10.0, N_steps_look_ahead=2, number_of_bins=11)
    mixture = MixtureSettings(
        datasets=[DatasetSettings(root=root)],
        num_workers=0,
        val_split_ratio=0.2,
        **changes.pop("mixture", {}),
    )
    return SupervisedSettings(
        **{
            "policy": ModelSettings(**{"type": type, "chunk_size": 4, "reward_config": reward, **policy}),
            "dataset_mixture": mixture,
            "batch_size": 4,
            "steps": 6,
            "log_freq": 2,
            "save_freq": 2,
            "device": "cpu",
            "optimizer": Optimizer(learning_rate=1e-3),
            "scheduler": Scheduler(num_warmup_steps=2, decay_lr=0.0),
            "output_dir": str(output),
            "exp_name": type,
            **changes,
        }
    )


def run(config: SupervisedSettings) -> Path:
    return Training(config, World()).run()


def interrupt_after(training: Training, step: int) -> int:
    """Send the process a SIGTERM in an optimizer step; return the code that it leaves with."""
    accept = training.steps.accept

    def signal_and_accept(row: dict, norm: torch.Tensor) -> bool:
        if training.steps.step == step - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return accept(row, norm)

    training.steps.accept = signal_and_accept
    with pytest.raises(interruption.StoppedError) as stopped:
        training.run()
    training.close()
    return stopped.value.code


def rows(run_dir: Path) -> list[dict]:
    return [{k: v for k, v in row.items() if not k.startswith("memory")} for row in read_rows(run_dir)]


# The run's directory ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(root, tmp_path_factory) -> Path:
    """A run with everything on, never interrupted."""
    return run(replace(everything(root, tmp_path_factory.mktemp("whole")), profile_steps=1))


def everything(root: str, output: Path) -> SupervisedSettings:
    return settings(root, output, val_freq=3, ema_decay=0.5, save_total_limit=2, steps=7)


def test_a_run_leaves_its_settings_its_processor_its_checkpoints_and_the_model(root, whole):
    mixture = everything(root, whole).dataset_mixture
    names = {path.name for path in whole.iterdir()}
    assert {"experiment_cfg", "processor", "wandb_config.json", "profiling", "metrics.jsonl"} <= names
    assert {"train_rank0.log", "checkpoint-6", "checkpoint-7"} <= names
    assert "checkpoint-4" not in names  # save_total_limit
    conf = (whole / "experiment_cfg/conf.yaml").read_text()
    assert "max_steps: 7" in conf
    assert "save_steps: 2" in conf
    assert read_settings(str(whole / "experiment_cfg/config.yaml")) == replace(
        everything("", whole.parent), profile_steps=1, dataset_mixture=mixture
    )
    assert list((whole / "profiling").glob("trace_rank0*.json"))
    statistics = json.loads((whole / "processor/statistics.json").read_text())["statistics"]
    described = json.loads((whole / "processor/processor_config.json").read_text())
    policy = PI0Policy.from_pretrained(whole)
    assert described["features"]["image_keys"] == list(policy.features.image_keys)
    np.testing.assert_allclose(statistics["action"]["mean"], policy.statistics["action"]["mean"], rtol=1e-6)
    assert json.loads((whole / "wandb_config.json").read_text())["run_id"] is None
    for checkpoint in whole.glob("checkpoint-*"):
        assert (checkpoint / "experiment_cfg/config.yaml").exists()
        assert (checkpoint / "processor/statistics.json").exists()
        PI0Policy.from_pretrained(checkpoint)


def test_the_best_checkpoint_is_the_one_with_the_lowest_loss_on_held_out_episodes(whole):
    (best,) = whole.glob("checkpoint-*-best-val_loss_*")
    losses = {row["step"]: row["val_loss"] for row in rows(whole) if "val_loss" in row}
    assert losses.keys() == {3, 6, 7}
    step = min(losses, key=lambda s: losses[s])
    assert best.name == f"checkpoint-{step}-best-val_loss_{losses[step]:.4f}"


def test_rows_are_means_of_the_steps_since_the_last_and_the_rate_counts_optimizer_steps(whole):
    found = rows(whole)
    assert [row["step"] for row in found] == [2, 3, 4, 6, 7]
    config = everything("", Path())
    for row in found:
        factor = cosine_schedule(row["step"] - 1, 7, config.optimizer, config.scheduler)
        assert row["learning_rate"] == pytest.approx(1e-3 * factor)
        assert row["epoch"] == pytest.approx(row["step"] * 4 / 19)  # 25 frames, an episode of 6 held out


def test_the_model_is_the_moving_average(whole):
    average = load_file(whole / "checkpoint-7/average.safetensors")
    final = dict(PI0Policy.from_pretrained(whole).named_parameters())
    trained = load_file(whole / "checkpoint-7/trained.safetensors")
    assert all(torch.equal(final[name], tensor) for name, tensor in average.items())
    assert not all(torch.equal(final[name], tensor) for name, tensor in trained.items())


def test_a_moving_average():
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(model.weight, 1.0)
    average = WeightAverage(model, 0.75)
    torch.nn.init.constant_(model.weight, 5.0)
    average.update()
    with average.applied():
        assert model.weight.item() == 2.0
    assert model.weight.item() == 5.0


# Resuming ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [3, 5])
def test_a_run_stopped_by_a_signal_goes_on_as_if_nothing_had_happened(root, whole, tmp_path, step):
    training = Training(everything(root, tmp_path), World())
    assert interrupt_after(training, step) == 143
    assert (tmp_path / f"pi0/checkpoint-{step}").exists()
    run_dir = run(everything(root, tmp_path))
    assert rows(run_dir) == rows(whole)
    for name in ("trained", "average"):
        ours, theirs = (load_file(d / f"checkpoint-7/{name}.safetensors") for d in (run_dir, whole))
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert {p.name for p in run_dir.glob("*best*")} == {p.name for p in whole.glob("*best*")}
    assert (run_dir / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_a_stop_in_a_validation_is_answered_at_the_next_batch(root, whole, tmp_path):
    training = Training(everything(root, tmp_path), World())
    batches, seen = training.parts.data.validation, []

    class Many:
        num_frames = batches.num_frames

        def __iter__(self):
            for number in range(50):
                seen.append(number)
                if number == 1:
                    os.kill(os.getpid(), signal.SIGTERM)
                yield next(iter(batches))

    object.__setattr__(training.parts.data, "validation", Many())
    with pytest.raises(interruption.StoppedError) as stopped:
        training.run()
    training.close()
    assert stopped.value.code == 143
    assert seen == [0, 1]
    assert (tmp_path / "pi0/checkpoint-3").exists()
    run_dir = run(everything(root, tmp_path))
    assert rows(run_dir) == rows(whole)
    assert (run_dir / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_a_stop_in_an_evaluation_is_answered_at_the_next_chunk(root, tmp_path, monkeypatch):
    drifting.install()
    monkeypatch.setattr(drifting, "TASKS", ["do thing 0"])
    task = EnvironmentSettings("drifting", max_episode_length=20, num_workers=0)
    judged = EvalSettings(rollouts_per_task=4)
    config = settings(root, tmp_path, steps=4, eval_freq=3, save_freq=3, task=task, eval=judged)
    expected = rows(run(replace(config, exp_name="whole")))
    chunks, seen = GuidedPolicy.chunks, []

    def signal_and_act(*arguments):
        seen.append(arguments)
        if len(seen) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return chunks(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(GuidedPolicy, "chunks", signal_and_act)
        with pytest.raises(interruption.StoppedError) as stopped:
            run(config)
    assert stopped.value.code == 143
    assert len(seen) == 2
    assert (tmp_path / "pi0/checkpoint-3").exists()
    run_dir = run(config)
    assert rows(run_dir) == expected
    assert json.loads((run_dir / "evaluations/step-3.json").read_text())["num_episodes"] == 4


@pytest.mark.parametrize(
    ("place", "path", "left"),
    [
        ("cosine_schedule", trainer, []),  # in the first step: there is nothing to go on from
        ("publish", snapshot, ["checkpoint-2"]),  # while checkpoint-4 is written
    ],
    ids=["before a checkpoint", "while one is written"],
)
def test_a_killed_run_goes_on_from_what_is_whole(root, whole, tmp_path, monkeypatch, place, path, left):
    pid = os.fork()
    if not pid:
        try:
            do = getattr(path, place)

            def die(*arguments):
                if not left or arguments[1].name == "checkpoint-4":
                    os.kill(os.getpid(), signal.SIGKILL)
                return do(*arguments)

            monkeypatch.setattr(path, place, die)
            run(everything(root, tmp_path))
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert [one.name for one in published(tmp_path / "pi0")] == left
    run_dir = run(everything(root, tmp_path))
    assert rows(run_dir) == rows(whole)
    assert (run_dir / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert not list(run_dir.glob(".checkpoint*"))


def test_a_finished_run_started_again_stays_as_it_is(root, tmp_path):
    config = settings(root, tmp_path, val_freq=3, steps=3)
    before, files = rows(run(config)), (tmp_path / "pi0/model.safetensors").read_bytes()
    assert rows(run(config)) == before
    assert (tmp_path / "pi0/model.safetensors").read_bytes() == files


def test_changed_settings_are_refused_by_name_unless_they_change_nothing(root, tmp_path, capsys):
    config = settings(root, tmp_path, steps=2)
    run(config)
    changed = replace(config, optimizer=Optimizer(learning_rate=2e-3), seed=1)
    changed = replace(changed, policy=replace(config.policy, advantage="ignore"))
    with pytest.raises(ChangedSettingsError) as error:
        run(changed)
    for line in (
        "optimizer.learning_rate: 0.001 -> 0.002",
        "seed: 0 -> 1",
        "policy.advantage: 'on' -> 'ignore'",
    ):
        assert line in str(error.value)
    assert "--overwrite" in str(error.value)
    others = replace(config.dataset_mixture, datasets=[DatasetSettings(root=root, episodes=[0, 1])])
    with pytest.raises(ChangedSettingsError, match=r"datasets\.0\.episodes: None -> \[0, 1\]"):
        run(replace(config, dataset_mixture=others))
    run(replace(config, log_freq=1, save_freq=1, gradient_accumulation_steps=2))
    assert "equal up to rounding" in capsys.readouterr().out


def test_overwrite_moves_the_earlier_run_aside(root, tmp_path):
    run(settings(root, tmp_path, steps=2))
    run(settings(root, tmp_path, steps=3, overwrite=True))
    assert (tmp_path / "pi0.1/checkpoint-2").exists()
    assert (tmp_path / "pi0/checkpoint-3").exists()
    log = (tmp_path / "pi0/train_rank0.log").read_text()
    assert "indicator of the advantage: positive in" in log, "what the data say is in the log as well"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mixture": {"weights": [1.0, 1.0]}}, "expected one per data set"),
        ({"policy": {"advantage": "use"}}, "advantages.json"),
        ({"policy": {"normalization_mapping": NormalizationMapping(STATE="QUANTILES")}}, "STATE: expected"),
        ({"eval_freq": 1, "task": EnvironmentSettings("metaworld")}, "does not offer"),
        ({"root": "nowhere"}, "no LeRobotDataset"),
    ],
)
def test_what_cannot_be_trained_costs_nothing_of_the_run_that_is_there(root, tmp_path, change, message):
    (tmp_path / "pi0/experiment_cfg").mkdir(parents=True)
    file = tmp_path / "pi0/experiment_cfg/config.yaml"
    file.write_text("an earlier run")
    change = {"root": root, "overwrite": True, **change}
    with pytest.raises(ValueError, match=message):
        Training(settings(output=tmp_path, **change), World())
    assert file.read_text() == "an earlier run"
    assert [path.name for path in tmp_path.iterdir()] == ["pi0"]


def test_a_run_without_a_name_is_a_new_one_that_is_found_by_time_and_type(root, tmp_path):
    """Requirement 004 looks for outputs/train/TIME_TYPE/checkpoints/STEP, the newest of each."""
    unnamed = settings(root, tmp_path, exp_name=None, steps=4, save_total_limit=1)
    interrupt_after(first := Training(unnamed, World()), 3)
    other = Training(replace(unnamed, policy=replace(unnamed.policy, type="value")), World())
    other.run()
    names = [path.name for path in sorted(tmp_path.iterdir(), key=lambda path: path.stat().st_mtime_ns)]
    assert [name.rpartition("_")[2] for name in names] == ["pi0", "value"]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d_[a-z0-9]+", name) for name in names)
    assert [path.name for path in (first.run_dir / "checkpoints").iterdir()] == ["3"]
    assert run(replace(unnamed, resume=True)) == first.run_dir
    assert [path.name for path in (first.run_dir / "checkpoints").iterdir()] == ["4"]
    assert PI0Policy.from_pretrained(first.run_dir / "checkpoints/4").config.chunk_size == 4
    assert "exp_name: " + first.run_dir.name in (first.run_dir / "experiment_cfg/config.yaml").read_text()
    assert run(unnamed) != first.run_dir, "without --resume another run"
    with pytest.raises(ConfigError, match=r"resume: expected a run TIME_pi0 in .*, found none"):
        run(replace(unnamed, resume=True, output_dir=str(tmp_path / "empty")))


def test_a_name_may_be_a_path_below_the_output(root, tmp_path):
    assert (
        run(settings(root, tmp_path, exp_name="2025-11-29/00-38-59_pi0", steps=1)).parent.name == "2025-11-29"
    )


def recorded_from(root: str, place: Path, **origin) -> Path:
    """A copy of the data set that says this of the states that its episodes begin from."""
    copied = shutil.copytree(root, place)
    file = copied / "meta/collection.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "origin": origin}))
    return copied


@pytest.mark.parametrize(("kind", "said"), [("heldout", "held-out states"), ("validation", "validation st")])
def test_rollouts_from_states_to_judge_on_are_not_trained_on_unasked(root, tmp_path, kind, said):
    recorded = recorded_from(root, tmp_path / "recorded", states_of=kind)
    config = settings(str(recorded), tmp_path / "out", steps=1)
    with pytest.raises(EpisodeDataError, match=rf"recorded: .* {said}.*dataset_mixture.allow_held"):
        run(config)
    config.dataset_mixture.allow_heldout = True
    make_parts(config, World())


@pytest.mark.parametrize("type", ["pi0", "value"])
def test_a_recorded_set_that_cannot_say_its_states_is_told_once(root, tmp_path, type):  # noqa: A002
    """As pi0-eval left them before it wrote which states it began from."""
    old = recorded_from(root, tmp_path / "old", policy="sft", states=["0a"])
    mixed = settings(str(old), tmp_path / "out", type)
    mixed.dataset_mixture.datasets.append(DatasetSettings(root=root))
    doubts = [note for note in make_parts(mixed, World()).notes if "does not say which states" in note]
    assert len(doubts) == 1
    assert doubts[0].startswith(f"{old}: ")
    mixed.dataset_mixture.allow_heldout = True
    assert "does not say" not in str(make_parts(mixed, World()).notes)


def test_other_files_are_not_touched_and_a_directory_has_one_writer(root, tmp_path):
    (tmp_path / "pi0").mkdir()
    (tmp_path / "pi0/thesis.tex").write_text("years")
    with pytest.raises(ConfigError, match="found other files"):
        run(settings(root, tmp_path))
    first = trainer.open_run(settings(root, tmp_path, exp_name="other"))
    pid = os.fork()
    if not pid:
        try:
            trainer.open_run(settings(root, tmp_path, exp_name="other"))
        except RunInUseError:
            os._exit(3)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3
    assert first[1] is None


# Steps ------------------------------------------------------------------------------------------------------


def test_accumulation_changes_nothing_but_rounding(root, tmp_path):
    made = {}
    for parts in (1, 4):
        output = tmp_path / str(parts)
        made[parts] = run(settings(root, output, steps=3, gradient_accumulation_steps=parts))
    output = tmp_path / "loaded"
    derived = {"batch_size": None, "dataloader_batch_size": 2, "gradient_accumulation_steps": 2}
    loaded = run(settings(root, output, steps=3, **derived))
    assert "global_batch_size: 4" in (loaded / "experiment_cfg/conf.yaml").read_text()
    for row, same in zip(rows(made[1]), rows(loaded), strict=True):
        assert same == pytest.approx(row, rel=1e-3)
    for one, four in zip(rows(made[1]), rows(made[4]), strict=True):
        assert four == pytest.approx(one, rel=1e-3)


@pytest.mark.parametrize(
    ("batch_size", "loaded", "passes", "processes", "expected"),
    [
        (None, None, 1, 1, 32),
        (None, 5, 3, 1, 15),
        (None, 5, 3, 2, 30),
        (16, None, 4, 2, 16),
        (16, 2, 4, 2, 16),
        (16, 4, 4, 2, r"dataloader_batch_size: expected 2, .* 8 \(2 processes .*steps=4\), found 4"),
        (15, 5, 2, 1, "batch_size: expected a multiple of 2"),
    ],
)
def test_batch_sizes_agree(batch_size, loaded, passes, processes, expected):
    asked = SupervisedSettings(
        batch_size=batch_size, dataloader_batch_size=loaded, gradient_accumulation_steps=passes
    )
    if isinstance(expected, int):
        assert samples_per_step(asked, World(size=processes)) == expected
        return
    with pytest.raises(ConfigError, match=expected):
        samples_per_step(asked, World(size=processes))


def test_the_schedule_warms_up_then_follows_a_cosine():
    optimizer, scheduler = (
        Optimizer(learning_rate=1.0),
        Scheduler(num_warmup_steps=3, num_decay_steps=11, decay_lr=0.1),
    )
    found = [cosine_schedule(step, 100, optimizer, scheduler) for step in (0, 1, 2, 3, 7, 11, 50)]
    assert found == pytest.approx([0.25, 0.5, 0.75, 1.0, 0.55, 0.1, 0.1])
    constant = replace(scheduler, type="constant")
    assert cosine_schedule(50, 100, optimizer, constant) == 1.0


def test_success_in_simulation_is_a_best_metric(root, tmp_path, monkeypatch):
    rates = iter([0.25, 0.75, 0.5])

    class Found:
        def __init__(self) -> None:
            self.success_rate = next(rates)

    class Fake:
        def evaluate(self, policy: PI0Policy, path: Path) -> Found:
            assert not policy.training
            return Found()

        def close(self) -> None:
            pass

    monkeypatch.setattr(Training, "_simulation", lambda self: Fake())
    run_dir = run(settings(root, tmp_path, eval_freq=2))
    assert [row["success"] for row in rows(run_dir)] == [0.25, 0.75, 0.5]
    assert [p.name for p in run_dir.glob("*-best-*")] == ["checkpoint-4-best-success_0.7500"]


@pytest.mark.parametrize("ending", ["kill", "stop"])
def test_an_evaluation_goes_on_where_it_ended_and_runs_no_episode_twice(root, tmp_path, monkeypatch, ending):
    drifting.install()
    monkeypatch.setattr(drifting, "TASKS", ["do thing 0"])
    task = EnvironmentSettings("drifting", max_episode_length=20, num_parallel_envs=2, num_workers=0)
    judged = EvalSettings(rollouts_per_task=6, n_video=0)
    changes = {"save_freq": 2, "eval_freq": 3, "ema_decay": 0.5, "task": task, "eval": judged}
    config = settings(root, tmp_path, steps=4, **changes)
    whole = run(replace(config, exp_name="whole"))
    chunks, send, begun = GuidedPolicy.chunks, BatchedEnv.send, []

    def count(env: BatchedEnv, states: Mapping, *others) -> None:
        begun.extend(states)
        return send(env, states, *others)

    def act_or_end(*arguments):
        if len(begun) >= 4:
            if ending == "kill":
                raise KeyboardInterrupt
            os.kill(os.getpid(), signal.SIGTERM)
        return chunks(*arguments)

    monkeypatch.setattr(BatchedEnv, "send", count)
    with monkeypatch.context() as patch:
        patch.setattr(GuidedPolicy, "chunks", act_or_end)
        with pytest.raises(KeyboardInterrupt if ending == "kill" else interruption.StoppedError):
            run(config)
    there = len(list((tmp_path / "pi0/evaluations/step-3.episodes").rglob("*.npz")))
    assert there == 2
    assert (tmp_path / "pi0/checkpoint-3").exists() == (ending == "stop")
    begun.clear()
    run_dir = run(config)
    assert len(begun) == 6 - there + 6, "the rest after step 3, and all after step 4"
    assert rows(run_dir) == rows(whole)
    for name in ("evaluations/step-3.json", "model.safetensors", "checkpoint-4/average.safetensors"):
        assert (run_dir / name).read_bytes() == (whole / name).read_bytes(), name
    assert not list(run_dir.glob("evaluations/*.episodes"))


@pytest.mark.parametrize("freeze", ["vision", "expert_only", "lora", r"vlm\.embed|state_proj"])
def test_frozen_parameters_stay_to_the_byte(root, whole, tmp_path, monkeypatch, freeze):
    policy = {"freeze": freeze}
    if freeze == "lora":
        config = PI0Policy.from_pretrained(whole).config
        adapted = {name: replace(getattr(config, name), lora_rank=2, lora_alpha=4.0) for name in PARTS}
        monkeypatch.setattr(registry, "_CONFIGS", dict(registry._CONFIGS))
        registry.register_config("toy_lora", replace(config, **adapted))
        policy["config"] = "toy_lora"
    optimizer = Optimizer(learning_rate=1e-3, weight_decay=0.5)
    config = settings(root, tmp_path, steps=1, policy=policy, ema_decay=0.5, optimizer=optimizer)
    training = Training(replace(config, policy_path=str(whole)), World())
    model = training.parts.objective.model
    before = {name: p.detach().numpy().tobytes() for name, p in model.named_parameters()}
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    training.run()
    after = {name: p.detach().numpy().tobytes() for name, p in model.named_parameters()}
    changed = {name for name in after if after[name] != before[name]}
    assert frozen
    assert not changed & frozen
    assert "model.action_out_proj.weight" in changed
    if freeze == "lora":
        assert all("lora_" in name or ".vlm." not in name for name in changed)
        assert any("lora_b" in name for name in changed)
        return
    saved = PI0Policy.from_pretrained(training.run_dir)  # lerobot's layout, and back
    assert all(saved.get_parameter(name).numpy(force=True).tobytes() == before[name] for name in frozen)


# Starting from a checkpoint ---------------------------------------------------------------------------------


def trained_policy(path: str, policy: ModelSettings, data: DataSummary, takes_indicator=True) -> PI0Policy:
    config = SupervisedSettings(policy_path=path, policy=policy)
    return policy_to_train(config, data, takes_indicator, "cpu")


def test_a_checkpoint_keeps_its_statistics_and_refuses_another_normalisation(root, whole, tmp_path):
    episodes = {i: make_episode(i) for i in range(3)}
    rollouts = publish(
        tmp_path / "rollouts", {i: replace(e, actions=2 * e.actions + 1) for i, e in episodes.items()}
    )
    mixture = settings(root, tmp_path).dataset_mixture
    mixture.datasets.append(DatasetSettings(root=str(rollouts)))
    data = DataSummary(mixture)
    start = ModelSettings(n_action_steps=2)
    policy = trained_policy(str(whole), start, data)
    assert policy.config.n_action_steps == 2
    assert (data.statistics()["action"]["mean"] - policy.statistics["action"]["mean"]).abs().min() > 0.1
    torch.testing.assert_close(policy.statistics, PI0Policy.from_pretrained(whole).statistics)
    for changes, expected in (
        (
            {"normalization_mapping": NormalizationMapping(STATE="MIN_MAX")},
            "STATE: expected the model's MEAN_STD",
        ),
        ({"max_state_dim": 32}, "max_state_dim: expected the checkpoint's 4, found 32"),
    ):
        with pytest.raises(ConfigError, match=expected):
            trained_policy(str(whole), replace(start, **changes), data)


def test_a_base_model_takes_statistics_and_widths_of_the_data(root, tmp_path):
    narrow = DataSummary(settings(root, tmp_path).dataset_mixture)
    wide_enough = ModelSettings(max_state_dim=8, max_action_dim=8)
    base = trained_policy("toy", wide_enough, narrow, takes_indicator=False)
    base.save_pretrained(tmp_path / "base")
    wide = {i: make_episode(i) for i in range(2)}
    wide = {
        i: replace(e, states=np.tile(e.states, 2), actions=np.tile(e.actions, 2)) for i, e in wide.items()
    }
    data = DataSummary(settings(str(publish(tmp_path / "wide", wide)), tmp_path).dataset_mixture)
    policy = trained_policy(str(tmp_path / "base"), ModelSettings(statistics="data"), data)
    assert (policy.features.state_dim, policy.features.action_dim) == (8, 6)
    assert policy.config.indicator == "embedding"
    assert len(policy.statistics["action"]["mean"]) == 6


@pytest.mark.parametrize("statistics", ["checkpoint", "data"])
def test_a_camera_that_all_data_lack_is_absent_from_then_on(root, tmp_path, capsys, statistics):
    """The real Stage 1: a base of three cameras, fine-tuned and judged on data that have fewer."""
    present, wrist = "observation.images.base_0_rgb", "observation.images.right_wrist_0_rgb"
    tasks = ["do thing 0", "do thing 1"]
    base = toy_policy({"image_keys": (present, wrist)}, tasks=tasks, max_state_dim=8, max_action_dim=8)
    base.save_pretrained(tmp_path / "base")
    names = {present: "observation.images.front"}

    def trained(type: str, name: str, names: dict, **policy) -> Path:  # noqa: A002
        path = str(start) if type == "pi0" else "toy"
        config = settings(root, tmp_path, type, policy_path=path, policy=policy, exp_name=name, steps=1)
        config.dataset_mixture.datasets[0].data_features_name_mapping = names
        return run(config)

    start = tmp_path / "base"
    with pytest.raises(EpisodeDataError, match="null for a camera that it lacks"):
        trained("pi0", "refused", names, statistics=statistics)
    start = trained("pi0", "first", {**names, wrist: None}, statistics=statistics)
    assert PI0Policy.from_pretrained(start).features.absent_cameras == (wrist,)
    assert PI0Policy.from_pretrained(start).features.present_cameras == (present,)
    for number, further in enumerate((names, {**names, wrist: None})):
        trained("pi0", f"further{number}", further, statistics=statistics)
    value = trained("value", "value", {**names, wrist: None}, reads=str(start), width=16)
    labelled = shutil.copytree(root, tmp_path / "labelled")
    mixture = {"datasets": [{"root": str(labelled), "data_features_name_mapping": {**names, wrist: None}}]}
    (tmp_path / "mixture.json").write_text(json.dumps(mixture))
    words = [f"--value={value}", f"--policy={start}", f"--dataset_mixture={tmp_path / 'mixture.json'}"]
    assert advantage.main([*words, "--device=cpu"]) == 0, capsys.readouterr().err


def test_statistics_of_a_file_are_taken_and_refused_or_widened_where_they_do_not_fit(root, whole, tmp_path):
    path = tmp_path / "statistics.json"
    assert make_statistics([root, "--output", str(path)]) == 0
    content = json.loads(path.read_text())
    content["statistics"]["action"]["mean"][0] += 0.5
    path.write_text(json.dumps(content))

    def parts(**policy):
        taken = {"statistics_path": str(path), **policy}
        return trainer.make_parts(settings(root, tmp_path, policy_path=str(whole), policy=taken), World())

    model = parts().objective.model
    for feature, numbers in content["statistics"].items():
        for name, values in numbers.items():
            np.testing.assert_allclose(model.statistics[feature][name], values, rtol=1e-6)
    content["statistics"]["action"]["mean"][1] += 500
    path.write_text(json.dumps(content))
    with pytest.raises(
        ConfigError, match=r"action\[1\]: expected normalised.*policy\.outside_statistics=widen"
    ):
        parts()
    bounded = parts(outside_statistics="widen")
    assert any(re.match(r"action\[1\]: mean .* widened to mean", note) for note in bounded.notes)
    bounded.objective.model.save_pretrained(tmp_path / "policy")
    policy, batch = PI0Policy.from_pretrained(tmp_path / "policy"), next(bounded.data.train)
    target = policy.encode_actions(batch["action"], batch["observation.state"])
    assert 9 < target.abs().max() < 10.01
    content["made_from"]["relative_actions"] = [True]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"relative_actions=\[\], found \[True\]"):
        parts()


def test_a_value_function_does_not_learn_from_states_that_its_policy_blows_up(root, whole, tmp_path):
    policy = PI0Policy.from_pretrained(whole)
    other = policy.statistics["observation.state"]
    narrow = {**policy.statistics, "observation.state": {**other, "std": other["std"] / 1000}}
    policy.use_embodiments({None: Embodiment(policy.features, narrow)})
    policy.save_pretrained(tmp_path / "policy")
    config = settings(root, tmp_path, "value", policy={"reads": str(tmp_path / "policy"), "width": 16})
    with pytest.raises(ConfigError, match=r"observation.state\[0\]: expected(.|\n)*policy that it reads"):
        trainer.make_parts(config, World())


# Value functions --------------------------------------------------------------------------------------------


def test_a_value_function_learns_and_its_run_is_what_advantages_are_computed_from(
    root, tmp_path, monkeypatch
):
    from pi0.ript.labels.labelled_sets import label_datasets

    optimizer, scheduler = Optimizer(learning_rate=5e-3), Scheduler(type="constant")
    config = settings(
        root, tmp_path, "value", steps=50, save_freq=50, batch_size=19, log_freq=50, val_freq=50
    )
    run_dir = run(replace(config, optimizer=optimizer, scheduler=scheduler))
    (row,) = rows(run_dir)
    assert {"train_accuracy", "val_loss", "val_accuracy", "val_error"} <= row.keys()
    value = ValueFunction.from_pretrained(run_dir)
    data = trainer.make_parts(config, World())
    batch = next(data.data.train)
    loss = value.loss(batch, torch.from_numpy(data.objective.returns[batch["window"]].numpy()))
    assert loss.accuracy > 0.9
    reward = json.loads((run_dir / "reward.json").read_text())
    assert reward["reward_normalizer"] == 16.0  # 7 frames, less one, plus 10
    copied = Path(shutil.copytree(root, tmp_path / "copied"))
    labels = label_datasets(
        run_dir, None, [DatasetSettings(root=str(copied))], Advantage(0.4, "global", "all")
    )
    assert labels.figures()["positive_share"][str(copied)] == pytest.approx(0.4, abs=0.02)
    again = replace(config, exp_name="finetune", steps=2)
    tuned = run(replace(again, policy_path=str(run_dir)))
    ours, theirs = (load_file(d / "model.safetensors") for d in (tuned, run_dir))
    assert max((ours[name] - theirs[name]).abs().max() for name in theirs) < 0.02
    other_bins = replace(config.policy, reward_config=RewardConfig())
    wrong = replace(config, policy_path=str(run_dir), policy=other_bins)
    with pytest.raises(ConfigError, match="number_of_bins: expected the checkpoint's 11, found 201"):
        value_to_train(wrong, DataSummary(config.dataset_mixture), "cpu")


def test_a_value_expert_reads_a_policy_that_stays_as_it_is(root, whole, tmp_path):
    config = settings(root, tmp_path, "value", steps=2, policy={"reads": str(whole), "width": 16})
    run_dir = run(config)
    value = ValueFunction.from_pretrained(run_dir, PI0Policy.from_pretrained(whole))
    assert value.config.form == "expert"


def test_train_accuracy_is_the_share_of_all_samples_whatever_the_batches(root, tmp_path, monkeypatch):
    """Every frame has a return, so there is no label to leave out, as -100 marks in language models."""
    config = settings(root, tmp_path, "value", batch_size=25)
    parts = trainer.make_parts(config, World())
    objective, batch = parts.objective, next(parts.data.train)
    value, learner = objective.model.eval(), objective.learner()
    returns = objective.returns[batch["window"]]
    right = value(batch).argmax(-1) == bin_of(returns, 11)
    cuts = [(0, 25), (0, 4), (4, 25)]
    whole, *pieces = (
        objective.sums(learner, {k: v[i:j] for k, v in batch.items()}, (0,), is_training=True).detach()
        for i, j in cuts
    )
    assert whole[1].item() == pytest.approx(right.sum().item(), abs=1e-4)
    torch.testing.assert_close(pieces[0] + pieces[1], whole, rtol=1e-4, atol=1e-4)
    training = Training(replace(config, exp_name="one", steps=1), World())
    monkeypatch.setattr(training, "_report", lambda: None)
    training.run()
    assert training.steps.rows[0]["train_accuracy"] == pytest.approx(right.float().mean().item())


def test_values_are_not_learned_from_episodes_without_a_label_unless_assumed(root, tmp_path):
    path = Path(shutil.copytree(root, tmp_path / "unlabelled"))
    for file in [*(path / "data").rglob("*.parquet"), *(path / "meta/episodes").rglob("*.parquet")]:
        pq.write_table(pq.read_table(file).drop_columns("success"), file)
    mixture = settings(str(path), tmp_path).dataset_mixture
    sets, reward = DataSummary(mixture).sets, RewardConfig(C_neg=-10.0)
    with pytest.raises(EpisodeDataError, match="expected success labels"):
        window_returns(sets, reward)
    mixture.datasets[0].assume_success = True
    returns, _ = window_returns(DataSummary(mixture).sets, reward)
    np.testing.assert_allclose(returns[:3] * 16, [-2, -1, 0])


def test_returns_are_numbered_as_windows_are(root, tmp_path):
    mixture = settings(root, tmp_path).dataset_mixture
    sets = DataSummary(mixture).sets
    returns, reward = window_returns(sets, RewardConfig(C_neg=-10.0))
    assert reward.normalizer == 16.0
    failed = np.arange(-2, 1) - 10.0  # episode 0, of 3 frames
    np.testing.assert_allclose(returns[:3] * 16, failed)
    np.testing.assert_allclose(returns[3:7] * 16, np.arange(-3, 1))


# Advantages -------------------------------------------------------------------------------------------------


@pytest.fixture
def labelled(root, tmp_path) -> tuple[MixtureSettings, np.ndarray]:
    """The episodes with an advantage for each frame, thresholds of each task, and a second set without."""
    episodes = {i: make_episode(i, length=3 + i) for i in range(5)}
    path = publish(tmp_path / "labelled", episodes)
    advantages = np.round(np.random.default_rng(0).normal(size=25), 6)
    lineage = {"epsilon": {"suite/thing-0": 0.5, "suite/thing-1": -0.5}}
    write_advantages(path, opened(path), advantages, lineage)
    datasets = [DatasetSettings(root=root, advantage="on"), DatasetSettings(root=str(path))]
    return MixtureSettings(datasets=datasets, num_workers=0, val_split_ratio=0.0), advantages


def test_indicators_are_those_of_the_advantages(labelled):
    mixture, advantages = labelled
    sets = DataSummary(mixture).sets
    task = np.repeat([0, 1, 0, 1, 0], [3, 4, 5, 6, 7])
    for threshold, limits in ((None, np.where(task == 0, 0.5, -0.5)), (0.1, 0.1)):
        policy = ModelSettings(advantage="use", advantage_threshold=threshold)
        found = policy_labels(sets, mixture.datasets, policy).indicator
        assert (found[:25] == Indicator.POSITIVE).all()  # of the set that says so itself
        expected = np.where(advantages > limits, Indicator.POSITIVE, Indicator.NEGATIVE)
        assert np.array_equal(found[25:], expected)


def test_training_by_advantage_gives_each_window_its_own_indicator(labelled, tmp_path, monkeypatch):
    mixture, advantages = labelled
    config = settings("", tmp_path, steps=3, policy={"advantage": "use", "advantage_threshold": 0.0})
    training = Training(replace(config, dataset_mixture=mixture), World())
    given = []

    def see(_: torch.nn.Module, arguments: tuple) -> None:
        given.append((arguments[0]["window"].numpy(), arguments[1].numpy()))

    training.learner.register_forward_pre_hook(see)
    training.run()
    windows, found = (np.concatenate(parts) for parts in zip(*given, strict=True))
    assert (found == Indicator.NONE).any()  # withheld
    kept = found != Indicator.NONE
    everything = np.concatenate([np.ones(25), advantages])
    expected = np.where(everything[windows] > 0.0, Indicator.POSITIVE, Indicator.NEGATIVE)
    assert np.array_equal(found[kept], expected[kept])


def test_advantages_of_other_episodes_are_refused(labelled):
    mixture, _ = labelled
    path = Path(str(mixture.datasets[1].root)) / "meta/advantages.json"
    path.write_text(path.read_text().replace('": "', '": "1', 1))
    with pytest.raises(EpisodeDataError, match="stale"):
        policy_labels(DataSummary(mixture).sets, mixture.datasets, ModelSettings(advantage="use"))


def test_labels_of_two_value_functions_are_not_mixed(root, tmp_path):
    use = ModelSettings(advantage="use", advantage_threshold=0.0)
    places = [shutil.copytree(root, tmp_path / name) for name in ("one", "other")]
    mixture = MixtureSettings(datasets=[DatasetSettings(root=str(place)) for place in places])
    for values, message in (("aa", None), ("ab", "one: aaaaaaaa, .*other: bbbbbbbb")):
        for place, value in zip(places, values, strict=True):
            write_advantages(place, opened(place), np.zeros(25), {"value": 64 * value, "epsilon": {}})
        if message is None:
            policy_labels(DataSummary(mixture).sets, mixture.datasets, use)
            continue
        with pytest.raises(EpisodeDataError, match=message):
            policy_labels(DataSummary(mixture).sets, mixture.datasets, use)
    for dataset, tag in zip(mixture.datasets, ("arm", "hand"), strict=True):  # of a robot there is one
        dataset.embodiment_tag = tag
    policy_labels(DataSummary(mixture).sets, mixture.datasets, use)


@pytest.mark.parametrize("column", ["action", "success"])
def test_data_that_changed_after_they_were_labelled_are_refused(root, tmp_path, column):
    place = shutil.copytree(root, tmp_path / "data")
    write_advantages(place, opened(place), np.zeros(25), {"value": "a", "epsilon": {}})
    mixture = MixtureSettings(datasets=[DatasetSettings(root=str(place))])
    use = ModelSettings(advantage="use", advantage_threshold=0.0)
    policy_labels([opened(place)], mixture.datasets, use)
    frames = opened(place)
    if column == "action":
        frames.actions[3] += 1.0
    else:
        labels = tuple(replace(label, success=not label.success) for label in frames.labels)
        frames = replace(frames, labels=labels)
    with pytest.raises(EpisodeDataError, match=r"advantages\.json is stale: .*compute the advantages again"):
        policy_labels([frames], mixture.datasets, use)


def test_what_has_no_advantage_is_an_error_or_what_was_chosen(root, labelled, tmp_path):
    plain = settings(root, tmp_path).dataset_mixture
    with pytest.raises(EpisodeDataError, match=r"advantages\.json is missing; compute"):
        policy_labels(DataSummary(plain).sets, plain.datasets, ModelSettings(advantage="use"))
    path = Path(str(labelled[0].datasets[1].root))
    entries = json.loads((path / "meta/advantages.json").read_text())
    (path / "meta/advantages_lineage.json").unlink()  # as OpenTau's script writes: no lineage
    kept = dict(list(entries.items())[:20])
    (path / "meta/advantages.json").write_text(json.dumps(kept))
    mixture = MixtureSettings(datasets=[DatasetSettings(root=str(path))])
    use = ModelSettings(advantage="use", advantage_threshold=0.0)
    with pytest.raises(EpisodeDataError, match="5 of 25 frames have no advantage"):
        policy_labels(DataSummary(mixture).sets, mixture.datasets, use)
    for name, expected in (("positive", Indicator.POSITIVE), ("negative", Indicator.NEGATIVE)):
        found = policy_labels(
            DataSummary(mixture).sets, mixture.datasets, replace(use, missing_advantage=name)
        )
        assert (found.indicator[20:] == expected).all()
        assert found.usable is not None
        assert found.usable[0].all()
    mixture.datasets[0].episodes = [0, 1, 2]  # all of whose frames have one
    with pytest.raises(EpisodeDataError, match="names no threshold"):
        policy_labels(DataSummary(mixture).sets, mixture.datasets, replace(use, advantage_threshold=None))
    policy_labels(DataSummary(mixture).sets, mixture.datasets, use)


def test_frames_without_advantage_can_be_left_out(labelled, tmp_path):
    path = Path(str(labelled[0].datasets[1].root))
    advantages = np.where(np.arange(25) % 3 == 0, np.nan, labelled[1])
    write_advantages(path, opened(path), advantages, {})
    policy = {"advantage": "use", "advantage_threshold": 0.0, "missing_advantage": "drop"}
    config = settings(str(path), tmp_path, policy=policy, val_freq=2, batch_size=8)
    parts = trainer.make_parts(config, World())
    assert "advantages: 9 frames have none and are left out" in parts.notes
    assert parts.data.validation is not None
    held_out = [w for batch in parts.data.validation for w in batch["window"].tolist()]
    drawn = {w for batch in islice(parts.data.train, 12) for w in batch["window"].tolist()}
    assert drawn.isdisjoint(held_out)
    assert drawn | set(held_out) == {w for w in range(25) if w % 3}
    write_advantages(path, opened(path), np.full(25, np.nan), {})
    with pytest.raises(EpisodeDataError, match="none of 25 frames has an advantage"):
        trainer.make_parts(config, World())


def test_advantages_weigh_the_loss(labelled, tmp_path):
    mixture, advantages = labelled
    with pytest.raises(EpisodeDataError, match=r"demos.*advantages\.json is missing"):
        policy_labels(DataSummary(mixture).sets, mixture.datasets, ModelSettings(use_awr=True))
    root = str(mixture.datasets[1].root)
    sums = {}
    for use_awr in (False, True):
        policy = {"advantage": "ignore", "use_awr": use_awr, "awr_beta": 0.5, "awr_max_weight": 2.0}
        parts = trainer.make_parts(settings(root, tmp_path, policy=policy, batch_size=25), World())
        objective, learner, batch = parts.objective, parts.objective.learner(), next(parts.data.train)
        sums[use_awr] = objective.sums(learner, batch, (0,), is_training=True).item()
    weight = np.minimum(np.exp(advantages[batch["window"].numpy()] / 0.5), 2.0)
    losses = learner(batch, None, (0,)).detach().numpy()
    assert sums[False] == pytest.approx(losses.sum(), rel=1e-5)
    assert sums[True] == pytest.approx((weight * losses).sum(), rel=1e-5)
    assert abs(sums[True] - sums[False]) > 0.1


def test_without_a_split_all_episodes_are_trained_on_and_validation_needs_one(root, tmp_path):
    parts = trainer.make_parts(settings(root, tmp_path), World())
    assert parts.data.validation is None
    assert sum(map(len, parts.data.training_rows)) == 25
    one = settings(root, tmp_path, val_freq=2)
    one.dataset_mixture.datasets[0].episodes = [1]
    with pytest.raises(ConfigError, match="val_freq: expected episodes to validate on"):
        trainer.make_parts(one, World())
    with pytest.raises(ConfigError, match="batch_size: expected a multiple of 3"):
        Training(settings(root, tmp_path, batch_size=4, gradient_accumulation_steps=3), World())
