"""Slots, chunks and workers, on an environment that only counts."""

import os
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
from counting_env import DIE, DIVERGE, HANG, RAISE, SLOW, SLOW_S, CountingSimulation, CountingSuite

from pi0.ript.envs import BatchedEnv
from pi0.ript.envs.process import WorkerError


def chunk(n, first=1.0, second=0.0):
    return np.tile(np.float32([[first, second]]), (n, 1))


@pytest.fixture
def make():
    envs = []

    def build(**options):
        suite = CountingSuite(dies_in=str(options.pop("dies_in", "")))
        envs.append(BatchedEnv(suite, **options))
        return envs[-1]

    yield build
    for env in envs:
        env.close()


def start(env, slots, task="up"):
    states = env.initial_states(task, "train", range(len(slots)))
    return env.reset(dict(zip(slots, states, strict=True)))


@pytest.mark.parametrize("num_workers", [0, 1, 2, 3])
def test_results_do_not_depend_on_workers(make, num_workers):
    env = make(num_slots=3, num_workers=num_workers)
    assert [s.index for s in env.initial_states("up", "train", range(7))] == list(range(7))
    first = start(env, [2, 0, 1])
    assert list(first) == [2, 0, 1]
    assert [o.state[0] for o in first.values()] == pytest.approx([0.0, 0.1, 0.2])
    results = env.step_chunk({1: chunk(2), 2: chunk(3, 0.5)})
    assert list(results) == [1, 2]
    assert results[1].observation.state[0] == pytest.approx(2.2)
    assert results[2].observation.state[0] == pytest.approx(1.5)
    assert env.step_chunk({0: chunk(1)})[0].observation.state[0] == pytest.approx(1.1)


def test_a_state_is_made_once(make, monkeypatch):
    made, initial_state = [], CountingSimulation.initial_state

    def counted(self, split, index):
        made.append((split, index))
        return initial_state(self, split, index)

    monkeypatch.setattr(CountingSimulation, "initial_state", counted)
    env = make()
    first = env.initial_states("up", "train", [3, 1, 3])
    again = env.initial_states("up", "train", [1, 2, 3])
    assert [state.index for state in first + again] == [3, 1, 3, 1, 2, 3]
    assert env.initial_states("up", "heldout", [1])[0].split == "heldout"
    assert sorted(made) == [("heldout", 1), ("train", 1), ("train", 2), ("train", 3)]


def test_chunk_stops_at_success(make):
    env = make()
    start(env, [0])
    result = env.step_chunk({0: chunk(5, 4.0)})[0]
    assert (result.executed, result.step, result.success, result.truncated) == (3, 3, True, False)
    assert result.done
    assert result.states[:, 0].tolist() == [0.0, 4.0, 8.0]
    with pytest.raises(ValueError, match="slot 0: no episode is running; reset it first"):
        env.step_chunk({0: chunk(1)})


def test_deadline_truncates_and_is_no_success(make):
    env = make()
    start(env, [0])
    assert not env.step_chunk({0: chunk(4)})[0].done
    result = env.step_chunk({0: chunk(4)})[0]
    assert (result.executed, result.step, result.success, result.truncated) == (2, 6, False, True)


def test_success_on_the_last_step_is_no_truncation(make):
    env = make(max_steps=3)
    start(env, [0])
    result = env.step_chunk({0: chunk(3, 3.4)})[0]
    assert (result.step, result.success, result.truncated) == (3, True, False)


def test_renders_only_what_is_asked_for(make):
    env = make()
    assert start(env, [0])[0].images["front"].max() == 1
    plain = env.step_chunk({0: chunk(2)})[0]
    assert plain.observation.images["front"].max() == 2
    assert plain.frames == ()
    dense = env.step_chunk({0: chunk(3)}, render_every=2)[0]
    assert [frame.offset for frame in dense.frames] == [2]
    assert dense.frames[0].observation.state[0] == pytest.approx(dense.states[2, 0])
    assert dense.observation.images["front"].max() == 4


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (np.float32([[1, 0], [np.nan, 0]]), "slot 0: action 1 of the chunk is not finite"),
        (np.float32([[1, np.inf]]), "not finite"),
        (np.zeros((2, 3)), r"slot 0: actions must be \(n >= 1, 2\), found \(2, 3\)"),
        (np.zeros(2), "found"),
        (np.zeros((0, 2)), "found"),
    ],
)
def test_bad_actions_move_nothing(make, actions, message):
    env = make(num_slots=2)
    start(env, [0, 1])
    with pytest.raises(ValueError, match=message):
        env.step_chunk({1: chunk(1), 0: actions})
    assert env.step_chunk({1: chunk(1)})[1].step == 1


def test_states_and_slots_are_checked(make):
    env = make(tasks=["up"])
    foreign = CountingSuite().make(CountingSuite().tasks()[1]).initial_state("train", 0)
    with pytest.raises(ValueError, match="slot 0: state of task 'counting/down', which is not in"):
        env.reset({0: foreign})
    with pytest.raises(ValueError, match="expected 0 <= slot < 1"):
        env.reset({1: env.initial_states("up", "train", [0])[0]})
    with pytest.raises(ValueError, match="task 'counting/down' is not in use here"):
        env.initial_states("down", "train", [0])
    with pytest.raises(ValueError, match="num_workers between 0 and num_slots"):
        make(num_slots=1, num_workers=2)
    with pytest.raises(ValueError, match="unknown task 'upp'; did you mean 'up'"):
        make(tasks=["upp"])


@pytest.mark.parametrize(
    ("command", "reason", "timeout"),
    [(DIE, "exit code 3", 60.0), (HANG, "did not answer", 8.0)],  # long enough for a busy machine
    ids=["dies", "hangs"],
)
def test_lost_worker_is_replaced_and_its_episodes_count_once(make, command, reason, timeout):
    env = make(num_slots=4, num_workers=2, timeout=timeout)
    start(env, [0, 1, 2, 3])  # worker 0 has slots 0 and 2
    env.step_chunk({slot: chunk(1) for slot in range(4)})
    results = env.step_chunk({0: chunk(1, 1.0, command), 1: chunk(1)})
    assert reason in results[0].aborted
    assert (results[0].done, results[0].success, results[0].truncated) == (True, False, False)
    assert results[0].observation is None
    assert (results[0].executed, results[0].step) == (0, 1)
    assert results[1].aborted is None
    assert results[1].step == 2
    # slot 2 was not named in that call: its loss is reported by the next call that names it
    results = env.step_chunk({2: chunk(1), 3: chunk(1)})
    assert reason in results[2].aborted
    assert results[3].step == 2
    for slot in (0, 2):
        with pytest.raises(ValueError, match="no episode is running"):
            env.step_chunk({slot: chunk(1)})
    again = start(env, [0, 2])
    assert again[2].state[0] == pytest.approx(0.1)
    assert env.step_chunk({0: chunk(1), 2: chunk(1), 1: chunk(1)})[2].step == 1


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_two_parts_can_be_under_way_and_are_received_in_their_order(make, num_workers):
    env = make(num_slots=4, num_workers=num_workers)
    start(env, [0, 1, 2])
    fourth = dict(enumerate(env.initial_states("up", "train", range(4))))[3]
    env.send({}, {0: chunk(1), 1: chunk(2)})
    env.send({3: fourth}, {2: chunk(3)})
    first, second = env.receive(), env.receive()
    assert (list(first.observations), list(first.results)) == ([], [0, 1])
    assert first.results[1].observation.state[0] == pytest.approx(2.1)
    assert second.observations[3].state[0] == pytest.approx(0.3)
    assert second.results[2].observation.state[0] == pytest.approx(3.2)


def test_workers_simulate_while_nobody_waits(make):
    env = make(num_slots=2, num_workers=2)
    start(env, [0, 1])
    env.send({}, {0: chunk(1, 1.0, SLOW)})
    env.send({}, {1: chunk(1, 1.0, SLOW)})
    time.sleep(1.5 * SLOW_S)
    before = time.monotonic()
    assert [len(env.receive().results) for _ in range(2)] == [1, 1]
    assert time.monotonic() - before < 0.5 * SLOW_S, "both were done meanwhile"


def test_a_worker_that_dies_with_two_parts_under_way_loses_each_episode_once(make):
    env = make(num_slots=4, num_workers=1)
    start(env, [0, 1, 2, 3])
    (state,) = env.initial_states("up", "train", [5])
    env.send({}, {0: chunk(1, 1.0, DIE), 1: chunk(1)})
    env.send({}, {2: chunk(1), 3: chunk(1)})
    first = env.receive()
    assert all("exit code 3" in first.results[slot].aborted for slot in (0, 1))
    env.send({0: state}, {})  # to the new worker, before the other part is received
    second, third = env.receive(), env.receive()
    assert all("exit code 3" in second.results[slot].aborted for slot in (2, 3))
    assert third.observations[0].state[0] == pytest.approx(0.5)


def test_what_nobody_receives_is_dropped_before_others_use_it(make):
    env = make(num_slots=2, num_workers=1)
    start(env, [0, 1])
    env.send({}, {0: chunk(1)})
    env.drop_unreceived()
    assert env.step_chunk({1: chunk(1)})[1].observation.state[0] == pytest.approx(1.1)
    assert env.step_chunk({0: chunk(1)})[0].observation.state[0] == pytest.approx(2.0)


def test_a_third_part_is_refused(make):
    env = make(num_slots=3, num_workers=1)
    start(env, [0, 1, 2])
    env.send({}, {0: chunk(1)})
    env.send({}, {1: chunk(1)})
    with pytest.raises(RuntimeError, match="at most 2 requests at a time"):
        env.send({}, {2: chunk(1)})


def test_reset_of_a_lost_slot_drops_its_episode(make):
    env = make(num_slots=2, num_workers=1)
    start(env, [0, 1])
    assert env.step_chunk({0: chunk(1, 1.0, DIE)})[0].aborted
    start(env, [1])
    assert env.step_chunk({1: chunk(1)})[1].aborted is None


def test_worker_that_dies_in_reset_is_asked_again(make, tmp_path):
    bomb = tmp_path / "bomb"
    bomb.touch()
    env = make(num_slots=2, num_workers=2, dies_in=bomb)
    first = start(env, [0, 1])
    assert not bomb.exists()
    assert [o.state[0] for o in first.values()] == pytest.approx([0.0, 0.1])


def test_worker_that_always_dies_is_an_error(make, tmp_path):
    env = make(num_slots=1, num_workers=1, dies_in=tmp_path)
    with pytest.raises(RuntimeError, match=r"3 environment workers were lost in a row.*exit code 4"):
        start(env, [0])


def test_error_in_a_worker_is_raised_with_its_traceback(make):
    env = make(num_slots=2, num_workers=2)
    start(env, [0, 1])
    with pytest.raises(WorkerError, match="KeyError: 'the simulator is broken'"):
        env.step_chunk({0: chunk(1, 1.0, RAISE), 1: chunk(1)})
    assert env.step_chunk({1: chunk(1)})[1].aborted is None


@pytest.mark.parametrize("num_workers", [0, 1])
def test_diverged_simulation_aborts_its_episode(make, num_workers):
    env = make(num_slots=1, num_workers=num_workers)
    start(env, [0])
    result = env.step_chunk({0: chunk(1, 1.0, DIVERGE)})[0]
    assert "SimulationDivergedError: NaN" in result.aborted


def test_idle_simulations_are_bounded(make):
    env = make(num_slots=1)
    for task in ("up", "down", "up", "down"):
        start(env, [0], task)
    assert len(env._local._idle) == 1


def test_workers_import_no_torch_and_end_with_their_parent(tmp_path):
    script = tmp_path / "no_main_guard.py"
    script.write_text(
        textwrap.dedent("""
        import os, sys
        from counting_env import CountingSuite
        from pi0.ript.envs import BatchedEnv

        env = BatchedEnv(CountingSuite(), num_slots=1, num_workers=1)
        env.reset({0: env.initial_states("up", "train", [0])[0]})
        pid = env._workers[0].process.pid
        maps = open(f"/proc/{pid}/maps").read() if os.path.exists("/proc") else ""
        print(pid, "torch" in maps, flush=True)
        os._exit(0)  # without closing anything
        """)
    )
    done = subprocess.run(
        [sys.executable, script],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    pid, torch_loaded = done.stdout.split()
    assert torch_loaded == "False"
    with pytest.raises(ProcessLookupError):
        wait_for_exit(int(pid))


def wait_for_exit(pid):
    for _ in range(100):
        os.kill(pid, 0)
        time.sleep(0.1)
