"""Rollouts: an episode is a function of policy, initial state and noise seed, whatever goes on around it."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from conftest import METAWORLD, metaworld_policy

from pi0.ript.envs import (
    BatchedEnv,
    EnvObservation,
    InitialState,
    Simulation,
    SimulationDivergedError,
    Task,
    TaskSuite,
    make_env,
)
from pi0.ript.rollout import MAX_ATTEMPTS, EpisodeLostError, FunctionPolicy, GuidedPolicy, rollout

BUTTON, PLATE = METAWORLD


@dataclass
class Watched:
    """A policy before each of whose inferences something happens."""

    policy: GuidedPolicy
    happens: Callable[[list[EnvObservation]], None]

    def chunks(self, observations, *args):
        self.happens(observations)
        return self.policy.chunks(observations, *args)


@pytest.fixture(scope="module")
def policy():
    return GuidedPolicy(metaworld_policy())


@pytest.fixture(scope="module")
def episodes(metaworld):
    """States and seeds by episode: two tasks, some states twice with other noise."""
    button = metaworld.initial_states(BUTTON, "train", range(3))
    plate = metaworld.initial_states(PLATE, "train", range(2))
    return {i: (state, 100 + i) for i, state in enumerate([*button, *plate, button[0]])}


@pytest.fixture(scope="module")
def undisturbed(metaworld, policy, episodes):
    """Each episode run alone, in this process."""
    return {i: rollout(metaworld, policy, [state], [seed])[0] for i, (state, seed) in episodes.items()}


def run(env, policy, episodes, numbers, **options):
    states, seeds = zip(*(episodes[i] for i in numbers), strict=True)
    return dict(zip(numbers, rollout(env, policy, states, seeds, **options), strict=True))


def assert_equal(rollouts, expected):
    assert rollouts
    for i, episode in rollouts.items():
        other = expected[i]
        assert (episode.task, episode.seed, episode.success) == (other.task, other.seed, other.success)
        assert episode.initial_state == other.initial_state
        np.testing.assert_array_equal(episode.actions, other.actions, err_msg=f"episode {i}")
        np.testing.assert_array_equal(episode.states, other.states, err_msg=f"episode {i}")


# Groups -------------------------------------------------------------------------------------------------


def test_a_group_starts_from_one_simulator_state_and_differs_by_its_noise(metaworld, policy):
    state = metaworld.initial_states(BUTTON, "train", [5])[0]
    starts = []

    def look(observations):
        if not starts:
            slots = metaworld._local._episodes
            starts.extend(slots[i].simulation.snapshot() for i in range(3))

    group = rollout(metaworld, Watched(policy, look), [state] * 3, [0, 1, 2])
    for snapshot in starts:
        np.testing.assert_array_equal(snapshot, state.vector)
    assert len(starts) == 3
    for episode in group[1:]:
        np.testing.assert_array_equal(episode.states[0], group[0].states[0])
        np.testing.assert_array_equal(episode.images["front"][0], group[0].images["front"][0])
        assert np.abs(episode.actions[0] - group[0].actions[0]).max() > 1e-3
        assert not np.array_equal(episode.states[-1], group[0].states[-1])


def test_the_policy_sees_what_is_recorded(metaworld, policy, episodes):
    seen = []
    single = run(metaworld, Watched(policy, lambda o: seen.append(o[0])), episodes, [1])[1]
    assert single.observed.tolist() == [0, 8, 16]
    for i, observation in enumerate(seen):
        np.testing.assert_array_equal(observation.images["front"], single.images["front"][i])
        np.testing.assert_array_equal(observation.state, single.states[single.observed[i]])


# One seed, one trajectory -------------------------------------------------------------------------------


@pytest.mark.parametrize("numbers", [[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [2, 3], [4, 0, 5]], ids=str)
def test_order_and_number_of_the_others_do_not_matter(metaworld, policy, episodes, undisturbed, numbers):
    assert_equal(run(metaworld, policy, episodes, numbers), undisturbed)


def test_noise_makes_the_difference(undisturbed):
    assert undisturbed[0].initial_state == undisturbed[5].initial_state
    assert not np.array_equal(undisturbed[0].actions, undisturbed[5].actions)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_do_not_matter_even_when_they_die(policy, episodes, undisturbed, num_workers):
    calls, finished = [], []
    with make_env("metaworld", METAWORLD, num_slots=3, num_workers=num_workers, max_steps=20) as env:

        def kill(observations):
            calls.append(env._workers[-1].process.pid)
            if len(calls) == 2:
                env._workers[-1].process.kill()

        rollouts = run(env, Watched(policy, kill), episodes, range(6), on_finished=finished.append)
    assert len(set(calls)) == 2, "no worker was replaced"
    assert len(finished) == 6
    assert_equal(rollouts, undisturbed)


def test_images_do_not_matter(metaworld, policy, episodes, undisturbed):
    dense = run(metaworld, policy, episodes, [0, 3], render_every=3)
    assert_equal(dense, undisturbed)
    assert dense[0].observed.tolist() == [0, 3, 6, 8, 11, 14, 16, 19]
    assert len(dense[0].images["front"]) == 8
    np.testing.assert_array_equal(dense[0].images["front"][[0, 3, 6]], undisturbed[0].images["front"])
    blind = run(metaworld, policy, episodes, [0, 3], keep_images=False)
    assert_equal(blind, undisturbed)
    assert blind[0].images == {}
    assert blind[0].observed.size == 0


@pytest.mark.parametrize(
    ("config", "guidance"),
    [
        ({"indicator": "embedding"}, 1.5),
        ({"indicator": "text"}, 1.0),
        ({"indicator": "text"}, 1.5),
        ({"indicator": "none", "pi05": True}, 1.0),
    ],
    ids=str,
)
def test_the_prompts_of_the_others_do_not_matter(metaworld, config, guidance):
    policy = GuidedPolicy(metaworld_policy(**config), guidance)
    rng = np.random.default_rng(0)
    button, plate = metaworld.tasks.values()
    rows = [
        EnvObservation(
            {"front": rng.integers(0, 256, (64, 64, 3), np.uint8)}, rng.normal(size=4).astype("f4")
        )
        for _ in range(3)
    ]
    rows[2] = replace(rows[2], state=np.float32([-99, 99, -99, 99]))  # other digits in pi05's prompt

    def first(tasks, order):
        generators = [torch.Generator().manual_seed(i) for i in range(3)]
        return policy.chunks([rows[i] for i in order], tasks, generators, metaworld.tasks.values())[0]

    alone = first([button] * 3, [0, 0, 0])
    np.testing.assert_array_equal(first([button, plate, button], [0, 1, 2]), alone)
    np.testing.assert_array_equal(first([button, plate, plate], [0, 2, 2]), alone)
    assert not np.array_equal(first([plate] * 3, [0, 0, 0]), alone)


def test_acting_leaves_the_training_mode(metaworld, policy, episodes):
    policy.policy.train()
    run(metaworld, policy, episodes, [0])
    assert policy.policy.training
    policy.policy.eval()


# Logic, in an environment that only counts --------------------------------------------------------------


@dataclass(frozen=True)
class CountingSuite(TaskSuite):
    """The count grows by the action; success at 10, an interruption where a number is still left."""

    interruptions: list[int]

    def tasks(self):
        return (Task("counting", "up", "count", 12, 10.0, 1, 1, ("front",), 1),)

    def make(self, task):
        return CountingSimulation(task, self.interruptions)


class CountingSimulation(Simulation):
    def __init__(self, task, interruptions):
        super().__init__(task)
        self.count, self.interruptions = 0.0, interruptions

    raw = None

    def initial_state(self, split, index):
        return InitialState(self.task.id, np.array([float(index)]), split, index)

    def snapshot(self):
        return np.array([self.count])

    def restore(self, state):
        self.count = float(state.vector[0])

    def step(self, action):
        self.count += float(action[0])
        if self.interruptions and self.count == 8:
            self.interruptions.pop()
            raise SimulationDivergedError("on request")
        return bool(self.count >= 10)

    def proprioception(self):
        return np.float32([self.count])

    def render(self):
        return {"front": np.full((1, 1, 3), int(self.count) % 256, np.uint8)}

    def close(self):
        pass


class Steady:
    """Adds one, three steps at a time, and counts its inferences."""

    def __init__(self, step=1.0):
        self.step, self.sizes = step, []

    def chunks(self, observations, tasks, generators, among):
        self.sizes.append(len(observations))
        return np.full((len(observations), 3, 1), self.step, np.float32)


def count(interruptions=0, slots=2, policy=None, starts=(0, 7, 3), **options):
    suite = CountingSuite([0] * interruptions)
    with BatchedEnv(suite, num_slots=slots) as env:
        states = env.initial_states("up", "train", starts)
        return rollout(env, policy or Steady(), states, range(len(states)), **options)


def test_success_ends_an_episode_inside_a_chunk():
    policy = Steady()
    first, second, third = count(policy=policy)
    assert [len(r) for r in (first, second, third)] == [10, 3, 7]
    assert all(r.success for r in (first, second, third))
    assert first.states[:, 0].tolist() == list(range(10))
    assert first.observed.tolist() == [0, 3, 6, 9]
    assert first.images["front"][:, 0, 0, 0].tolist() == [0, 3, 6, 9]


def test_the_batch_is_always_that_of_a_half_and_a_free_slot_takes_the_next_episode_at_once():
    policy = Steady()
    episodes = count(slots=4, policy=policy, starts=(0, 7, 3, 5, 8))
    assert [len(episode) for episode in episodes] == [10, 3, 7, 5, 2]
    assert policy.sizes == [2] * 7, "four chunks of the first half's longest, three of the second's"


def test_one_half_is_simulated_while_the_policy_infers_for_the_other():
    with BatchedEnv(CountingSuite([]), num_slots=4, num_workers=1) as env:
        states = env.initial_states("up", "train", [0] * 8)
        under_way = []

        def chunks(observations, *others):
            under_way.append([*env._sent[0].beginning, *env._sent[0].moving] if env._sent else [])
            return Steady().chunks(observations, *others)

        rollout(env, FunctionPolicy(chunks), states, range(8))
    assert under_way == [[2, 3], [0, 1]] * 8, "four chunks of each of two episodes of each half"


def test_the_deadline_is_a_failure():
    (episode,) = count(policy=Steady(0.5), starts=[0])
    assert not episode.success
    assert len(episode) == 12


def test_an_interrupted_episode_counts_once():
    finished = []
    again = count(interruptions=MAX_ATTEMPTS - 1, on_finished=finished.append)
    assert sorted(map(len, finished)) == [3, 7, 10]
    for a, b in zip(again, count(), strict=True):
        np.testing.assert_array_equal(a.states, b.states)
        np.testing.assert_array_equal(a.actions, b.actions)
        np.testing.assert_array_equal(a.images["front"], b.images["front"])
        np.testing.assert_array_equal(a.observed, b.observed)


def test_an_episode_that_is_always_interrupted_is_an_error():
    reason = f"counting/up was interrupted {MAX_ATTEMPTS} times.*SimulationDivergedError: on request"
    with pytest.raises(EpisodeLostError, match=reason):
        count(interruptions=MAX_ATTEMPTS, slots=1, starts=[0])
    assert len(count(interruptions=MAX_ATTEMPTS - 1, slots=1, starts=[0])) == 1


def test_every_state_needs_a_seed():
    with BatchedEnv(CountingSuite([])) as env:
        states = env.initial_states("up", "train", [0, 1])
        with pytest.raises(ValueError, match="seeds: expected one per initial state, 2, found 1"):
            rollout(env, Steady(), states, [0])
        assert rollout(env, Steady(), [], []) == []
