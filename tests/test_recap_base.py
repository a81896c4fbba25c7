"""RECAP from a base model: without statistics, on demonstrations of more tasks than are trained."""

import json
import signal
from dataclasses import replace

import numpy as np
import pytest
import recap_runs
from conftest import METAWORLD, toy_policy
from test_episodes import INFO, publish

from pi0 import PI0Policy
from pi0.checkpoint_names import INDEX, WEIGHTS
from pi0.embodiment import Embodiment
from pi0.ript.config import load_config_from_yaml
from pi0.ript.config.schema import Distributed
from pi0.ript.data.records import Episode, EpisodeLabels
from pi0.ript.distributed import World
from pi0.ript.environments import get_environment
from pi0.ript.labels.frames import read_thresholds
from pi0.ript.recap import RecapConfig, cluster_plan, pace, rounds
from pi0.ript.recap import model_budget as budget_of_models
from pi0.ript.recap.budget import budget, time_left
from pi0.ript.recap.model_budget import model_budget
from pi0.ript.recap.pace import TimeLeft, UnderWay
from pi0.ript.recap.validation import validate_recap
from pi0.ript.run_logging import close_run_logging
from train_ript_pi0_final import fit

BASE = [
    *("policy.freeze=expert_only", "policy.statistics=data", "demonstrations.assume_success=true"),
    *("demonstrations.operator=null", "demonstrations.episodes=null", "baselines=false"),
    *("demonstrations.quality.hesitation=null", "sft.steps=2", "finetuning.training.steps=2"),
    *("validation.rollouts_per_task=0", "validation.guidances=null", "filtered_rounds=0"),
    "eval.n_video=0",
]


def demonstrations(directory):
    """Three episodes of each of two tasks."""
    (camera,) = get_environment("metaworld", task_names=list(METAWORLD)[:1]).suite().tasks()[0].cameras
    episodes = {}
    for number in range(6):
        rng, (task, instruction) = np.random.default_rng(number), list(METAWORLD.items())[number % 2]
        length = 12 + number
        labels = {"instruction": instruction, "success": True, "task_id": f"metaworld/{task}", "seed": number}
        labels |= {"initial_state_hash": f"{number:064x}", "source": "operator:test"}
        episodes[number] = Episode(
            images={camera: rng.integers(0, 256, (length, 32, 32, 3), dtype=np.uint8)},
            states=rng.normal(size=(length, 4)).astype(np.float32),
            actions=rng.normal(size=(length, 4)).astype(np.float32).clip(-1, 1),
            labels=EpisodeLabels(**labels),
        )
    return publish(directory, episodes, INFO), camera


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The run's directory, and what its budget said before."""
    directory = tmp_path_factory.mktemp("base")
    data, camera = demonstrations(directory / "data")
    features = {"image_keys": (f"observation.images.{camera}",), "state_dim": 8, "action_dim": 8}
    identity = {"state_normalization": "identity", "action_normalization": "identity"}
    base = toy_policy({**features, **identity}, tasks=list(METAWORLD.values()))
    base.use_embodiments({None: Embodiment(base.features, {})})
    base.save_pretrained(directory / "checkpoint")
    settings = json.loads((directory / "checkpoint/pi0_config.json").read_text())
    settings["features"] |= dict.fromkeys(identity, "mean_std")
    (directory / "checkpoint/pi0_config.json").write_text(json.dumps(settings))
    overrides = [*recap_runs.REQUIREMENT, *BASE, f"policy_path={directory / 'checkpoint'}"]
    overrides += [f"demonstrations.root={data}"]
    arguments = [*recap_runs.SHRUNK, *overrides, f"output_dir={directory}"]
    config = load_config_from_yaml(recap_runs.DEMO, arguments, schema=RecapConfig)
    validate_recap(config)
    run = rounds.start_run(config, directory / "demo", World(), fit)
    told = model_budget(run)
    run.close()
    handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    recap_runs.run(directory, *overrides)
    close_run_logging()
    for number, handler in handlers.items():
        signal.signal(number, handler)
    return directory / "demo", told, config


def test_the_run_ends_with_a_report_and_a_complete_policy(made):
    run_dir = made[0]
    assert "Advantages" in (run_dir / "report.html").read_text()
    policy = PI0Policy.from_pretrained(run_dir / "policy")
    assert (run_dir / "policy" / WEIGHTS).exists()
    assert (policy.features.state_dim, policy.features.action_dim) == (4, 4)
    assert set(policy.statistics) >= {"observation.state", "action"}


def test_a_task_that_is_not_trained_has_no_threshold(made):
    epsilon = read_thresholds(made[0] / "round-2/advantages/thresholds.json")
    limits = {task.rpartition("/")[2]: limit for task, limit in epsilon.items()}
    assert np.isfinite(limits["button-press-v3"])
    assert len(limits) == 2
    assert sorted(limits.values())[-1] == np.inf


def test_the_disk_is_as_full_as_the_budget_said(made):
    run_dir, told, _ = made
    stages = [run_dir / stage for stage in ("sft", "round-1/policy", "round-2/policy")]
    assert all((stage / INDEX).exists() for stage in stages)
    assert len(list((run_dir / "untrained").iterdir())) == 1
    values = [run_dir / stage for stage in ("value", "round-1/value", "round-2/value")]

    def size(*directories):
        files = [file for place in directories for file in place.glob("*.safetensors")]
        return sum(file.stat().st_size for file in files if "processor" not in file.name)

    assert size(*stages) == pytest.approx(told.policies, rel=0.15)
    assert size(*values) == pytest.approx(told.values, rel=0.15)
    assert size(run_dir / "untrained") == pytest.approx(told.untrained, rel=0.15)
    assert size(run_dir / "policy") == pytest.approx(told.published, rel=0.15)
    everything = size(*stages, *values, run_dir / "untrained", run_dir / "policy")
    assert everything == pytest.approx(told.kept, rel=0.15)
    assert f"models on disk {told.kept / 1e9:.3g} GB" in str(told)


def test_the_disk_of_filtered_imitations_rounds_is_counted(made):
    run_dir, told, config = made
    run = rounds.start_run(replace(config, filtered_rounds=2), run_dir, World(), fit)
    one = told.policies / (1 + config.rounds)
    assert model_budget(run).policies == pytest.approx(told.policies + 2 * one)
    run.close()


def test_the_budget_of_processes_that_share_a_model_is_that_of_the_plan(made, monkeypatch):
    run_dir, _, config = made
    config = replace(config, distributed=Distributed(strategy="fsdp"))
    run = replace(rounds.start_run(config, run_dir, World(), fit), world=World(0, 2, is_sharded=True))
    told, (sized, cameras) = budget_of_models.model_budget(run), budget_of_models._sized(run)
    run.close()
    monkeypatch.setattr(cluster_plan, "get_config", lambda name: sized.config)
    config = replace(config, policy=replace(config.policy, config="that of the checkpoint"))
    model = cluster_plan.planned_model(config)
    planned = {
        strategy: cluster_plan.policy_memory(config, model, cameras, 2, strategy).peak
        for strategy in ("ddp", "fsdp")
    }
    assert told.policy.peak == planned["fsdp"] < planned["ddp"]
    assert f"to exchange {told.policy.exchanged / 1e9:.3g} GB" in str(told)


def test_the_time_that_is_left_is_known_from_the_stages_so_far(made):
    run_dir, _, config = made
    state = json.loads((run_dir / "recap_state.json").read_text())
    for record in state["stages"].values():
        record["seconds"] = 7200.0
    (run_dir / "recap_state.json").write_text(json.dumps(state))
    run = rounds.start_run(config, run_dir, World(), fit)
    run.stages.names = ["sft", "value"]
    said = str(time_left(run, budget(run)))
    # Of 6 policy updates 2 are made, of 9 of the value function 3; an hour for each update of the first.
    assert "about 8.0 h are left" in said
    assert "without the episodes to record and the episodes to judge: none was made yet" in said
    # In the third update of the next policy, all of which take half as long.
    left = time_left(run, budget(run), UnderWay("policy", 2, 1800.0))
    assert left.seconds == pytest.approx(3600 * (2 * (2 + 1) / 4 + 6 * 2 / 3))
    run.close()


def test_the_time_is_told_after_the_first_measured_steps_and_as_it_changes(monkeypatch, capsys):
    now, per_step = [0.0], [10.0]
    monkeypatch.setattr(pace, "_clock", lambda: now[0])
    watch = pace.Pace()
    watch.after_step("policy", 1)  # nobody has said how to know
    watch.watch(lambda training: TimeLeft((1000 - training.steps) * training.seconds_per_step, ("episodes",)))
    told = []
    for step in range(1, 301):
        now[0] += per_step[0] if step > 1 else 500.0  # the first is slow
        watch.after_step("policy", step)
        told += [(step, line) for line in capsys.readouterr().out.splitlines()]
        per_step[0] = 30.0 if step >= 100 else 10.0
    first, *others = told
    assert first == (4, "about 2.8 h are left at the speed so far, without the episodes: none was made yet")
    assert others, "three times slower, and nothing said"
    assert len(others) <= 5
    assert all(step > 100 for step, _ in others)
