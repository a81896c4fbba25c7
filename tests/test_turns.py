"""Work is shared by what it costs: who is done takes what nobody has begun, and the results are the same."""

import threading
import time
from collections import Counter
from typing import ClassVar

import numpy as np
import pytest
from drifting import DriftingSuite
from test_checkpoint import Thread, on_both

from pi0.ript.checkpoint.journal import EpisodeJournal
from pi0.ript.envs import BatchedEnv
from pi0.ript.evaluate import evaluate
from pi0.ript.groups import collect_groups
from pi0.ript.peers import ALONE, Turns, gather_turns, share
from pi0.ript.recording import _StoppedEarlyError, record_rollouts, remembering
from pi0.ript.rollout import FunctionPolicy, rollout


class Process(Thread):
    """One of two processes, as a thread, which can be slower than the other."""

    positions: ClassVar[Counter] = (
        Counter()
    )  # shared: of the first turns that were asked for, the second, ...
    lock = threading.Lock()

    def __init__(self, rank):
        super().__init__(rank)
        self.asked = 0

    def turns(self, count):
        self.asked += 1

        def take(size, which=self.asked):
            with self.lock:
                self.positions[which] += size
                return self.positions[which] - size

        return Turns(count, take)


def both(function) -> list:
    """Return what a function returns in each of two processes, in neither of which it may fail."""
    Process.positions.clear()
    results = on_both(lambda thread: ("done", function(Process(thread.rank))))
    assert all(results), "see the exception above"
    return [result for _, result in results]


@pytest.fixture
def env():
    """Make simulators, of which each process has its own."""
    return lambda: BatchedEnv(DriftingSuite(), num_slots=2)


class Noisy:
    """A policy that follows its noise; some of its episodes succeed."""

    def __init__(self, delay: float = 0.0) -> None:
        self.delay, self.batches = delay, set()

    def chunks(self, observations, tasks, generators, among):
        import torch

        time.sleep(self.delay)
        self.batches.add(len(observations))
        noise = torch.stack([torch.randn(8, 3, generator=g) for g in generators])
        return (4 * noise - 0.8).numpy().astype(np.float32)


def states_of(env, count, split="train"):
    return env.initial_states("far", split, range(count))


def test_every_number_is_taken_once_and_the_faster_one_takes_more():
    def work(peers):
        turns, results = peers.turns(20), []
        for number in turns:
            time.sleep(0.05 if peers.rank == 0 else 0.002)
            results.append(10 * number)
        return turns.taken, gather_turns(results, turns, peers)

    (slow, everything), (fast, _) = both(work)
    assert sorted([*slow, *fast]) == list(range(20))
    assert everything == [10 * number for number in range(20)]
    assert len(fast) > 2 * len(slow) > 0


def test_what_nobody_has_begun_can_be_left():
    turns = ALONE.turns(9)
    assert [next(turns), next(turns)] == [0, 1]
    turns.end()
    assert list(turns) == []
    assert turns.taken == [0, 1]


def test_a_collection_is_that_of_one_process_although_a_slow_one_does_less(env):
    def collect(peers, counts=None):
        finished, simulators = [], env()

        def run(*arguments, **options):
            episodes = rollout(*arguments, **options)
            finished.extend(episodes)
            return episodes

        policy = Noisy(0.02 if peers.size > 1 and peers.rank == 0 else 0.0)
        mine = share(states_of(simulators, 10), peers)
        collection = collect_groups(
            *(simulators, policy, iter(mine)),
            **{"num_groups": 10, "group_size": 2, "max_attempts": 10, "seed": (1, 2)},
            **{"render_every": 5, "peers": peers, "run": run},
        )
        assert policy.batches == {1}, "the shape of a batch is that of a half of the slots"
        return collection, len(finished)

    (first, few), (second, many) = both(collect)
    alone, all_of_them = collect(ALONE)
    assert few + many == all_of_them == 20
    assert many > few > 0
    assert 0 < len(alone.kept) < len(alone.tried)
    for group in first.tried:
        assert all(bool(r.images) == (group.rewards.sum() == 1) for r in group.rollouts)
    for collection in (first, second):
        assert [g.rewards.tolist() for g in collection.tried] == [g.rewards.tolist() for g in alone.tried]
        for group, expected in zip(collection.tried, alone.tried, strict=True):
            for a, b in zip(group.rollouts, expected.rollouts, strict=True):
                assert (a.seed, a.initial_state) == (b.seed, b.initial_state)
                np.testing.assert_array_equal(a.actions, b.actions)
                assert a.images.keys() == b.images.keys()
    assert alone.longest_wait is None
    assert "time/longest_wait" not in alone.metrics()
    assert first.metrics()["time/longest_wait"] == second.metrics()["time/longest_wait"] >= 0


def test_an_evaluation_is_that_of_one_process_and_says_how_long_was_waited(env, capsys):
    def judge(peers):
        simulators = env()
        policy = Noisy(0.05 if peers.size > 1 and peers.rank == 0 else 0.0)
        states = states_of(simulators, 9, "heldout")
        return evaluate(simulators, policy, states, num_recorded=2, peers=peers)

    first, second = both(judge)
    assert "evaluation: processes waited up to " in capsys.readouterr().out
    alone = judge(ALONE)
    assert "waited" not in capsys.readouterr().out
    assert first == second == alone
    assert [r.initial_state for r in first.recorded] == [r.initial_state for r in alone.recorded]


def test_recorded_episodes_are_each_in_the_store_once_and_found_again(env, tmp_path):
    states = states_of(env(), 7)

    def record(peers):
        record_rollouts(env(), Noisy(), states, range(7), EpisodeJournal(tmp_path), peers)

    both(record)
    assert len(EpisodeJournal(tmp_path).files()) == 7

    def none(*arguments, turns, **options):
        assert list(turns) == []
        return []

    again = remembering(EpisodeJournal(tmp_path), lambda: None, none)
    assert len(again(env(), Noisy(), states, range(7), keep_images=False)) == 7


def test_when_one_is_asked_to_stop_nobody_takes_what_is_left(env, tmp_path):
    turns = ALONE.turns(6)

    def stopped(*arguments, turns, **options):
        next(turns)
        raise _StoppedEarlyError

    run = remembering(EpisodeJournal(tmp_path), lambda: None, stopped)
    states = states_of(env(), 6)
    assert run(env(), FunctionPolicy(lambda *_: None), states, range(6), turns=turns) == []
    assert list(turns) == []
