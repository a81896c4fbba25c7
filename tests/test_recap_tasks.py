"""Two tasks and the text indicator: each task has its threshold, and its guidance by validation states."""

import json
import signal
from unittest import mock

import numpy as np
import pytest
import recap_runs
from compare_runs import step
from conftest import opened

from pi0.ript.envs.metaworld import MetaWorldSimulation
from pi0.ript.guidance import choose_guidance, in_short, recorded_guidance
from pi0.ript.labels.frames import read_labelled_frames
from pi0.ript.results import read_evaluation
from pi0.ript.run_logging import close_run_logging

TASKS = ["metaworld/button-press-v3", "metaworld/plate-slide-v3"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Directory and stages of a round in which an episode succeeds by chance."""
    place = tmp_path_factory.mktemp("tasks")
    handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    with mock.patch.object(MetaWorldSimulation, "step", step):
        stages = recap_runs.run(
            place,
            *("task.task_names=[button-press-v3,plate-slide-v3]", "policy.indicator=text", "rounds=1"),
            *("filtered_rounds=1", "baselines=false", "rollouts.num_states=6", "rollouts.pool_size=8"),
            *("validation.rollouts_per_task=8", "validation.guidances=[0]", "eval.n_video=0"),
        )
    yield place / "demo", stages
    close_run_logging()
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.sim
def test_each_task_has_a_threshold_among_its_own_successes(run):
    directory, stages = run
    rollouts = opened(directory / "round-1/rollouts/dataset")
    succeeded = np.repeat(rollouts.successes(), rollouts.lengths)
    assert 0 < succeeded.mean() < 1
    labels = read_labelled_frames(directory / "round-1/advantages/frames.npz")["rollouts-1"]
    epsilon = stages["round-1/advantages"]["figures"]["epsilon"]
    tasks, positive = np.array(rollouts.frame_tasks()), labels.positive(epsilon)
    assert not positive[~succeeded].any()
    for task in TASKS:
        ranked = succeeded & (tasks == task)
        assert ranked.any(), "no success of a task, so that this test says nothing"
        assert positive[ranked].mean() == pytest.approx(0.6, abs=0.51 / ranked.sum())
        np.testing.assert_array_equal(positive[ranked], labels.advantages[ranked] > epsilon[task])
    assert epsilon[TASKS[0]] != epsilon[TASKS[1]]


@pytest.mark.sim
def test_each_task_acts_with_the_guidance_that_did_best_on_its_validation_states(run):
    directory, stages = run
    files = {3.0: "validation", 0.0: "validation-guidance-0"}
    tried = {g: read_evaluation(directory / f"round-1/{x}/evaluation.json") for g, x in files.items()}
    chosen = in_short(choose_guidance(tried, 3.0))
    assert isinstance(chosen, dict), "otherwise this test says nothing"
    settings = stages["round-1/evaluation"]["settings"]
    assert (settings["guidance"] or settings["eval"]["cfg_guidance_scale"]) == chosen
    published = json.loads((directory / "results.json").read_text())
    expected = chosen if published["published"] == "round 1" else 1.0
    assert published["guidance"] == recorded_guidance(directory / "policy") == expected


@pytest.mark.sim
def test_filtered_imitation_learns_from_the_same_rollouts_of_the_first_round(run):
    _, stages = run
    made_from = stages["baseline-filtered/round-1/policy"]["inputs"]
    assert {role: one["stage"] for role, one in made_from.items()} == {
        "sft": "sft",
        "data": "round-1/rollouts",
    }
