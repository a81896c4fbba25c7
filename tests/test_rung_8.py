"""The first rung runs end to end, gives the same numbers again, and says what is wrong with its settings."""

import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pi0.ript import environments
from pi0.ript.demonstrations.experts import require_expert
from pi0.ript.environments import WarmStart, get_environment
from pi0.ript.groups import Collection, InitialStateDataset, collect_groups, heldout_states
from pi0.ript.warm_start import warm_start

SCRIPT = Path(__file__).parent.parent / "8_train_with_epochs.py"
SMALL = [
    *("--training.num_train_steps", "2", "--algo.rloo_batch_size", "3", "--algo.data_batch_size", "2"),
    *("--algo.num_draws", "1", "--algo.max_sampling_attempts", "3", "--algo.num_epochs", "2"),
    *("--dataset.num_init_states", "5", "--eval.rollouts_per_task", "3", "--eval.n_video", "2"),
]


@pytest.fixture
def small_environment(monkeypatch):
    """The embedded environment with a warm start of seconds and a deadline that is half met."""
    small = replace(
        environments.ENVIRONMENTS["metaworld"],
        max_steps=60,
        num_slots=4,
        warm_start={"episodes": 3, "steps": 12, "num_workers": 0},
    )
    monkeypatch.setitem(environments.ENVIRONMENTS, "metaworld", small)
    return small


def run(output: Path, cache: Path, monkeypatch, *arguments: str) -> dict:
    paths = ("--output_dir", str(output.parent), "--exp_name", output.name, "--warm_start_dir", str(cache))
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *SMALL, *paths, *arguments])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    return json.loads((output / "results.json").read_text())


def test_it_runs_and_gives_the_same_numbers_whatever_the_workers(
    tmp_path, warm_start_cache, monkeypatch, small_environment, capsys
):
    first = run(tmp_path / "first", warm_start_cache, monkeypatch, "--task.num_workers", "0")
    again = run(tmp_path / "again", warm_start_cache, monkeypatch, "--task.num_workers", "1")
    printed = capsys.readouterr().out
    assert printed.count("iteration 1") == 2
    assert printed.count("points over before") == 2, "the table"
    assert len(first["metrics"]) == 2
    for one, other in zip(first["metrics"], again["metrics"], strict=True):
        del one["time/iteration_s"], other["time/iteration_s"]
        assert one == other
    assert (first["before"], first["after"]) == (again["before"], again["after"])
    assert first["before"]["num_episodes"] == 3
    for name in ("before.mp4", "after.mp4", "policy/model.safetensors"):
        assert (tmp_path / "first" / name).stat().st_size > 1000
    weights = "policy/model.safetensors"
    assert (tmp_path / "first" / weights).read_bytes() == (tmp_path / "again" / weights).read_bytes()


def test_the_warm_start_is_made_once_and_again_when_a_setting_changes(tmp_path, small_environment):
    spec = small_environment.warm_start_spec(seed=0)
    policy = warm_start(spec, tmp_path)
    made = {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    warm_start(spec, tmp_path)
    assert {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()} == made
    longer = warm_start(replace(spec, steps=13), tmp_path)
    new = {p.name for p in tmp_path.iterdir()} - set(made)
    assert len(new) == 1
    assert new.pop().startswith("policy-"), "the demonstrations are the same"
    assert not np.array_equal(
        longer.model.action_out_proj.weight.detach(), policy.model.action_out_proj.weight.detach()
    )


def test_training_and_held_out_states_are_disjoint_and_the_order_is_seeded():
    env = get_environment("metaworld", num_workers=0).make()
    dataset = InitialStateDataset(env, 5)
    heldout = heldout_states(env, 0, 6, train=dataset)
    assert len(heldout) == 6
    assert not {s.hash for s in dataset.states} & {s.hash for s in heldout}
    order = dataset.shuffled(0)
    first, second = [next(order) for _ in range(5)], [next(order) for _ in range(5)]
    assert set(first) == set(second) == set(dataset.states), "each state once, then again"
    again = dataset.shuffled(0)
    assert [next(again) for _ in range(10)] == first + second
    env.close()


class Unvarying:
    """A policy of one action, so that every group has one outcome."""

    def chunks(self, observations, tasks, generators, among):
        return np.zeros((len(observations), 8, 4), np.float32)


def test_uniform_groups_are_dropped_within_bounded_attempts_and_said_so(capsys):
    env = get_environment("metaworld", max_episode_length=9, num_parallel_envs=6, num_workers=0).make()
    states = InitialStateDataset(env, 3).shuffled(0)
    options = {"num_groups": 2, "max_attempts": 5, "seed": (0,)}
    collection = collect_groups(env, Unvarying(), states, group_size=2, **options)
    assert (len(collection.kept), len(collection.tried)) == (0, 5)
    assert collection.success_rate == 0.0
    assert len(collection.windows(8)) == 0
    assert "all 5 groups had one outcome (0%" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"group_size: expected at least 2 .* found 1"):
        collect_groups(env, Unvarying(), states, group_size=1, **options)
    env.close()


def test_windows_of_an_episode_can_be_limited_to_some_spread_back_from_its_end():
    env = get_environment("metaworld", max_episode_length=9, num_parallel_envs=6, num_workers=0).make()
    states = InitialStateDataset(env, 1).shuffled(0)
    options = {"num_groups": 1, "group_size": 2, "max_attempts": 1, "seed": (0,), "render_every": 2}
    tried = collect_groups(env, Unvarying(), states, **options).tried
    collection = Collection(kept=tried, tried=tried)  # as if one of its episodes had succeeded
    whole = collection.windows(8)
    assert len(whole) == 2 * 5, "steps 0, 2, 4, 6 and 8 of both"
    for most, numbers in ((9, range(10)), (1, (4, 9)), (2, (0, 4, 5, 9)), (3, (0, 2, 4, 5, 7, 9))):
        np.testing.assert_array_equal(collection.windows(8, most).states, whole.states[list(numbers)])
    env.close()


@pytest.mark.parametrize("name", environments.ENVIRONMENTS)
def test_the_known_environments_demonstrations_can_be_made(name):
    environment = get_environment(name)
    plan = environment.warm_start_spec(seed=0).demonstrations()
    for task in plan.selected():
        if name in ("metaworld", "libero"):
            require_expert(task)
        assert environment.max_steps is None or environment.max_steps <= task.max_steps
    operator = plan.resolved_operator()  # a quality that is no field of an operator is an error
    assert operator.hesitation > 0, "what reinforcement learning is to take away"


def test_unknown_names_come_with_a_suggestion(tmp_path):
    with pytest.raises(ValueError, match=r"unknown benchmark_name 'metawrld'; did you mean 'metaworld'"):
        get_environment("metawrld")
    with pytest.raises(ValueError, match=r"unknown task 'button-pres'; did you mean"):
        warm_start(WarmStart("metaworld", ("button-pres",), "hesitating"), tmp_path)
