"""What an algorithm says to the loop: who acts, what is kept of chunks, and what is learned from."""

from dataclasses import replace
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest
import torch
from plugin_example.__main__ import write_policy
from plugin_example.line import LineSuite

from pi0 import PI0Policy
from pi0.ript.advantage import LearningRule, leave_one_out, standardised
from pi0.ript.algorithms import ALGORITHMS
from pi0.ript.checkpoint.journal import EpisodeJournal
from pi0.ript.config import load_config_from_yaml
from pi0.ript.envs import BatchedEnv, make_env
from pi0.ript.episode import START, NotedChunks, at_chunk_starts
from pi0.ript.groups import collect_groups
from pi0.ript.loss import acting_policy, make_learner, register_algorithm
from pi0.ript.recording import remembering
from pi0.ript.rollout import FunctionPolicy, GuidedPolicy, rollout
from pi0.ript.windows import chunk_windows, rollout_windows

MINIMAL = Path(__file__).parent.parent / "pi0/ript/config/minimal_test.yaml"


class Pusher:
    """Pushes as its generator says, three steps at a time, and notes how hard."""

    def chunks(self, observations, tasks, generators, among):
        pushes = torch.stack([torch.rand(3, 1, generator=g) * 1.6 for g in generators]).numpy()
        return NotedChunks(
            pushes, {"push": pushes.mean((1, 2)), "seen": np.stack([o.state for o in observations])}
        )


@pytest.fixture(scope="module")
def line():
    assert LineSuite
    with make_env("line", num_slots=4, max_steps=8) as env:
        yield env


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    directory = tmp_path_factory.mktemp("policy")
    write_policy(directory)
    return PI0Policy.from_pretrained(directory, changes={"indicator": "embedding"})


def episodes(line: BatchedEnv, policy, count: int = 6, **options):
    states = line.initial_states("line/right", "train", range(count))
    return rollout(line, policy, states, list(range(count)), **options)


def test_what_a_policy_notes_is_kept_chunk_by_chunk(line):
    for episode in episodes(line, Pusher(), render_every=2):
        starts = episode.chunks[START]
        assert starts.tolist() == list(range(0, len(episode), 3))
        np.testing.assert_array_equal(episode.chunks["seen"], episode.states[starts])
        whole = [i for i, start in enumerate(starts) if start + 3 <= len(episode)]
        pushes = [episode.actions[starts[i] : starts[i] + 3].mean() for i in whole]
        np.testing.assert_allclose(episode.chunks["push"][whole], pushes, rtol=1e-6)


def test_a_policy_without_notes_leaves_none(line, policy):
    for acting in (GuidedPolicy(policy), FunctionPolicy(lambda o, *_: np.zeros((len(o), 3, 1), np.float32))):
        assert not any(episode.chunks for episode in episodes(line, acting))


def test_notes_outlive_the_journal_bit_for_bit(line, tmp_path):
    """Written and read back by what stands between a script and its rollouts."""
    journal = EpisodeJournal(tmp_path / "journal")
    run = remembering(journal, lambda: None)
    states = line.initial_states("line/right", "train", range(5))
    first = run(line, Pusher(), states, [1, 2, 3, 4, 5], render_every=2)
    again = run(line, FunctionPolicy(lambda *_: pytest.fail("they are there")), states, [1, 2, 3, 4, 5])
    for episode, other in zip(first, again, strict=True):
        assert episode.chunks.keys() == other.chunks.keys() == {START, "push", "seen"}
        for name, values in episode.chunks.items():
            assert values.dtype == other.chunks[name].dtype
            np.testing.assert_array_equal(values, other.chunks[name])


def test_windows_of_chunks_begin_where_the_policy_acted(line):
    rollouts = episodes(line, Pusher(), render_every=2)
    assert any(len(r.observed) > len(r.chunks[START]) for r in rollouts)
    windows = chunk_windows(rollouts, [1.0] * len(rollouts), 4)
    np.testing.assert_array_equal(windows.states, windows.chunks["seen"])
    assert len(windows) == sum(len(r.chunks["push"]) for r in rollouts)
    batch = windows.batch(np.array([4, 1]))
    np.testing.assert_array_equal(batch["chunk.push"], windows.chunks["push"][[4, 1]])
    np.testing.assert_array_equal(windows.select(np.array([2])).chunks["seen"], windows.states[[2]])
    everything = rollout_windows(rollouts, [1.0] * len(rollouts), 4)
    assert (len(everything) > len(windows), everything.chunks) == (True, {})


def test_chunks_that_nobody_noted_are_not_learned_from(line, policy):
    with pytest.raises(ValueError, match="rollout: expected notes on its chunks, found none; let the actor"):
        at_chunk_starts(episodes(line, GuidedPolicy(policy), 1)[0])


def test_standardised_advantages():
    rewards = np.array([[1.0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1]])
    found = standardised(rewards)
    np.testing.assert_allclose(found[0], [3**0.5, *[-(3**-0.5)] * 3], rtol=1e-5)
    np.testing.assert_allclose(found[1:], [[1, 1, -1, -1], [0, 0, 0, 0]], atol=1e-5)
    with pytest.raises(ValueError, match="group_size"):
        standardised(rewards[:, :1])


def test_a_plugin_says_who_acts_and_what_is_learned_from(line, policy, monkeypatch):
    monkeypatch.setitem(ALGORITHMS, "pushing", None)  # so that it is gone after the test
    del ALGORITHMS["pushing"]
    made = []

    def actor(policy, algo, iteration):
        made.append(iteration)
        return Pusher()

    def successes(rewards):
        return rewards.max(-1) > 0

    rule = LearningRule(advantages=standardised, is_kept=successes, by_chunk=True)
    register_algorithm("pushing", lambda policy, algo: torch.nn.Linear(1, 1), actor=actor, rule=rule)
    algo = replace(load_config_from_yaml(MINIMAL).algo, name="pushing")
    assert isinstance(make_learner(policy, algo), torch.nn.Linear)
    acting = algo.acting_policy(policy, 3)
    states = cycle(line.initial_states("line/right", "train", range(6)))
    options = {"num_groups": 3, "group_size": 4, "max_attempts": 12, "seed": (0,), "render_every": 2}
    collection = collect_groups(line, acting, states, **options)
    assert made == [3]
    assert [bool(group.rewards.max() > 0) for group in collection.tried].count(True) == len(collection.kept)
    windows = collection.windows(4)
    assert set(windows.chunks) == {START, "push", "seen"}
    expected = standardised(np.stack([group.rewards for group in collection.kept])).ravel()
    counts = [len(r.chunks["push"]) for group in collection.kept for r in group.rollouts]
    np.testing.assert_allclose(windows.advantages, np.repeat(expected, counts), rtol=1e-6)
    assert not any(r.chunks for g in collection.tried if not successes(g.rewards) for r in g.rollouts)
    last = collection.windows(4, max_per_episode=1)
    np.testing.assert_array_equal(last.states, windows.states[np.cumsum(counts) - 1])


def test_without_a_word_of_it_the_guided_policy_acts_and_ripts_rule_holds(policy):
    algo = replace(load_config_from_yaml(MINIMAL).algo, collection_cfg_scale=1.75)
    at_first, later = (acting_policy(policy, algo, iteration) for iteration in (0, 1))
    assert (at_first.actor.guidance, later.actor.guidance) == (1.0, 1.75)
    assert later.rule.advantages is leave_one_out
    assert not later.rule.by_chunk
