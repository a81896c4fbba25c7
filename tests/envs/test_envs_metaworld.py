"""Meta-World: exact restore, images, splits."""

import numpy as np
import pytest

from pi0.ript.envs import (
    InitialState,
    InitialStateError,
    SimulationDivergedError,
    make_env,
    make_suite,
    require_disjoint,
)

DEFAULT_TASKS = ["button-press-v3", "drawer-open-v3", "plate-slide-v3"]


def actions(n, seed=0):
    rng = np.random.default_rng(seed)
    chunk = rng.uniform(-1, 1, (n, 4)).astype(np.float32)
    chunk[:, 1] = np.abs(chunk[:, 1])  # towards the object
    return chunk


def trajectory(simulation, chunk):
    """The full simulator state after each action."""
    states = []
    for action in chunk:
        simulation.step(action)
        states.append(simulation.snapshot())
    return np.array(states)


def check_exact_restore(task):
    suite = make_suite("metaworld")
    fresh, used = (suite.make(suite.select([task])[0]) for _ in range(2))
    trajectory(used, actions(15, seed=1))
    state = fresh.initial_state("train", 3)
    live = trajectory(fresh, actions(20))
    assert used.initial_state("train", 3) == state, "sampling depends on history"
    for simulation in (used, fresh, used):
        simulation.initial_state("heldout", 0)  # moves what a reset moves
        simulation.restore(state)
        np.testing.assert_array_equal(simulation.snapshot(), state.vector)
        np.testing.assert_array_equal(trajectory(simulation, actions(20)), live)
    assert len(np.unique(live[:, 1])) > 1, "nothing moved"


@pytest.mark.parametrize("task", DEFAULT_TASKS)
def test_restore_is_exact(task):
    check_exact_restore(task)


@pytest.mark.slow
@pytest.mark.parametrize("task", [t.name for t in make_suite("metaworld").tasks()])
def test_restore_is_exact_in_every_task(task):
    check_exact_restore(task)


@pytest.fixture(scope="module")
def env():
    with make_env("metaworld", DEFAULT_TASKS, num_slots=4) as env:
        yield env


@pytest.fixture(scope="module")
def states(env):
    return [env.initial_states(task, "train", [5])[0] for task in DEFAULT_TASKS]


def assert_same(a, b):
    assert a.images.keys() == b.images.keys()
    for key in a.images:
        np.testing.assert_array_equal(a.images[key], b.images[key])
    np.testing.assert_array_equal(a.state, b.state)


def test_slots_from_one_state_stay_identical(env, states):
    first = env.reset(dict.fromkeys(range(4), states[1]))
    results = env.step_chunk(dict.fromkeys(range(4), actions(12)))
    for slot in range(1, 4):
        assert_same(first[0], first[slot])
        assert_same(results[0].observation, results[slot].observation)
        np.testing.assert_array_equal(results[0].states, results[slot].states)


def test_workers_change_nothing(env, states):
    with make_env("metaworld", DEFAULT_TASKS, num_slots=3, num_workers=2) as remote:
        assert [remote.initial_states(t, "train", [5])[0] for t in DEFAULT_TASKS] == states
        here, there = (e.reset(dict(enumerate(states))) for e in (env, remote))
        chunks = {slot: actions(10, seed=slot) for slot in range(3)}
        a, b = (e.step_chunk(chunks, render_every=4) for e in (env, remote))
    for slot in range(3):
        assert_same(here[slot], there[slot])
        assert_same(a[slot].observation, b[slot].observation)
        assert len(a[slot].frames) == len(b[slot].frames) == 2
        for frame, other in zip(a[slot].frames, b[slot].frames, strict=True):
            assert_same(frame.observation, other.observation)


def test_chunk_equals_single_steps(env, states):
    chunk = actions(9)
    env.reset({0: states[0], 1: states[0]})
    whole = env.step_chunk({0: chunk}, render_every=1)[0]
    singles = [env.step_chunk({1: chunk[t : t + 1]})[1] for t in range(9)]
    assert_same(whole.observation, singles[-1].observation)
    assert [frame.offset for frame in whole.frames] == list(range(1, 9))
    for frame, single in zip(whole.frames, singles, strict=False):
        assert_same(frame.observation, single.observation)
    np.testing.assert_array_equal(whole.states, np.concatenate([s.states for s in singles]))
    assert (whole.step, singles[-1].step) == (9, 9)


def test_scripted_expert_succeeds_and_success_is_not_truncation():
    from metaworld.policies import SawyerDrawerOpenV3Policy

    suite = make_suite("metaworld")
    simulation = suite.make(suite.select(["drawer-open-v3"])[0])
    simulation.reset(simulation.initial_state("heldout", 0))
    expert, chosen = SawyerDrawerOpenV3Policy(), []
    for _ in range(72):
        chosen.append(np.float32(expert.get_action(simulation.privileged_observation)))
        if simulation.step(chosen[-1]):
            break
    with make_env("metaworld", "drawer-open-v3", num_slots=2) as env:
        state = env.initial_states("drawer-open-v3", "heldout", [0])[0]
        env.reset({0: state, 1: state})
        extra = np.tile(chosen[-1], (5, 1))
        result = env.step_chunk({0: np.concatenate([chosen, extra])})[0]
        assert (result.success, result.truncated, result.executed) == (True, False, len(chosen))
        idle = env.step_chunk({1: np.zeros((80, 4))})[1]
        assert (idle.success, idle.truncated, idle.executed) == (False, True, 72)


def test_splits_are_disjoint(env):
    for task in DEFAULT_TASKS:
        train, heldout = (env.initial_states(task, s, range(5)) for s in ("train", "heldout"))
        require_disjoint(train, heldout)
        assert len(set(train + heldout)) == 10
    with pytest.raises(ValueError, match="index must be in"):
        env.initial_states("drawer-open-v3", "heldout", [1_000_000])


def test_image_is_upright_and_shows_object_and_hand(env, states):
    """The red button stands on the far side, which is up; the black hand begins at the near."""
    image = env.reset({0: states[0]})[0].images["front"].astype(int)
    assert image.shape == (64, 64, 3)
    red = (image[..., 0] > 120) & (image[..., 1] < 60) & (image[..., 2] < 60)
    yellow = (image[..., 0] > 150) & (image[..., 1] > 90) & (image[..., 2] < 60)
    black = image.max(axis=-1) < 25
    assert red.sum() > 15
    assert yellow.sum() > 50
    assert black[48:].sum() > 30
    row = lambda mask: np.nonzero(mask)[0].mean()  # noqa: E731
    assert row(yellow) < row(red) < row(black & (np.arange(64)[:, None] > 40))


def test_hand_moves_in_the_image_as_it_is_told(env, states):
    """The camera looks from opposite the robot's base: the hand's +y is up, +x is right."""

    def centre(slot_actions):
        env.reset({0: states[1]})
        image = env.step_chunk({0: slot_actions})[0].observation.images["front"].astype(int)
        return np.argwhere(image.max(axis=-1) < 25).mean(axis=0)

    still = centre(np.zeros((10, 4)))
    right = centre(np.tile([1.0, 0, 0, 0], (10, 1)))
    near = centre(np.tile([0, -1.0, 0, 0], (10, 1)))
    assert right[1] > still[1] + 2
    assert near[0] > still[0] + 2


def test_goal_is_drawn_where_nothing_else_shows_it():
    suite = make_suite("metaworld")
    simulation = suite.make(suite.select(["reach-v3"])[0])
    simulation.reset(simulation.initial_state("train", 0))
    image = simulation.render()["front"].astype(int)
    assert ((image[..., 1] > 150) & (image[..., 0] < 80)).sum() >= 3


def test_state_is_proprioception(env, states):
    observation = env.reset({0: states[0]})[0]
    simulation = env.simulation("button-press-v3")
    simulation.reset(states[0])
    assert observation.state.dtype == np.float32
    np.testing.assert_allclose(observation.state[:3], simulation.raw.get_endeff_pos(), atol=1e-6)
    assert 0 <= observation.state[3] <= 1


def test_foreign_state_and_wrong_version_are_refused(env, states):
    simulation = env.simulation("button-press-v3")
    with pytest.raises(InitialStateError, match="expected a state of task 'metaworld/button"):
        simulation.reset(states[1])
    short = InitialState("metaworld/button-press-v3", states[0].vector[:-1], "train", 0)
    with pytest.raises(InitialStateError, match="has 531 numbers, the simulation 532"):
        simulation.reset(short)


def test_instability_is_noticed(env, states):
    simulation = env.simulation("button-press-v3")
    simulation.reset(states[0])
    simulation.raw.data.qvel[:] = 1e12
    with pytest.raises(SimulationDivergedError, match="BADQ"):
        simulation.step(np.zeros(4, np.float32))
    simulation.reset(states[0])
    simulation.step(np.zeros(4, np.float32))


def test_policy_steps_follow_the_action_repeat():
    tasks = {r: make_suite("metaworld", action_repeat=r).select(["button-press-v3"])[0] for r in (1, 2)}
    assert (tasks[2].max_steps, tasks[2].hz) == (50, 40.0)
    assert (tasks[1].max_steps, tasks[1].hz) == (100, 80.0)


def test_render_options_change_pixels_but_not_the_layout():
    images = {}
    for quality in ("fast", "stock"):
        suite = make_suite("metaworld", render_quality=quality)
        simulation = suite.make(suite.select(["button-press-v3"])[0])
        simulation.reset(simulation.initial_state("train", 5))
        images[quality] = simulation.render()["front"].astype(int)
    difference = np.abs(images["fast"] - images["stock"]).mean()
    assert 0 < difference < 20  # the lights cast shadows, which "fast" leaves out
