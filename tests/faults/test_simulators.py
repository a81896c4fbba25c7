"""Simulators that die, hang, have no memory, or show what is none: the episode is run again, and counted."""

import resource
import signal
import sys
from pathlib import Path

import drifting
import numpy as np
import pytest

from faults.drills import forked
from pi0.ript.envs import BatchedEnv, SimulationDivergedError
from pi0.ript.envs.process import Worker, WorkerLostError
from pi0.ript.rollout import EpisodeLostError, FunctionPolicy, rollout

sys.path.append(str(Path(__file__).parent.parent / "envs"))
from counting_env import CountingSimulation, CountingSuite


def hurry():
    """Let a worker have 5 s to answer, once it has started."""
    start = BatchedEnv.__init__

    def soon(self, *arguments, **options):
        start(self, *arguments, **options)
        self.timeout = 5.0

    BatchedEnv.__init__ = soon


@pytest.mark.parametrize(
    ("number", "event", "said"),
    [
        ("SIGKILL", "rollout", "exit code -9: killed, as the kernel does"),
        pytest.param("SIGKILL", "after", "exit code -9: killed", marks=pytest.mark.slow),
        pytest.param("SIGSTOP", "rollout", "did not answer in 5 s", marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_a_worker_is_lost_and_the_run_is_as_without_it(place, alone, number, event, said):
    name = f"worker-{number}-{event}"
    fault = f"worker-{number}@0:{event}:2"
    (ended,) = forked(place, name, "task.num_workers=1", size=1, fault=fault, prepare=hurry)
    assert ended.code == 0, ended.said[-3000:]
    notices = [line for line in ended.said.splitlines() if "an episode is run again, " in line]
    assert notices, "it is told"
    assert all(said in line for line in notices)
    assert drifting.outcome(place / name) == alone


class Blind(CountingSimulation):
    """Shows at its third step what is no observation, as often as it is told to."""

    wrong, times = "", 0

    def _is_wrong(self):
        if self.steps != 3 or Blind.times <= 0:
            return False
        Blind.times -= 1
        return True

    def proprioception(self):
        state = super().proprioception()
        if Blind.wrong == "NaN" and self._is_wrong():
            return state * np.float32(np.nan)
        return state[:2] if Blind.wrong == "shape" and self._is_wrong() else state

    def render(self):
        images = super().render()
        if Blind.wrong == "image" and self._is_wrong():
            return {"front": np.zeros((3, 2, 3), np.uint8)}
        return {"side": images["front"]} if Blind.wrong == "camera" and self._is_wrong() else images


class BlindSuite(CountingSuite):
    def make(self, task):
        return Blind(task, "")


ACT = FunctionPolicy(lambda observations, *_: np.ones((len(observations), 3, 2), np.float32))


def episodes(wrong: str, times: int):
    Blind.wrong, Blind.times = wrong, times
    with BatchedEnv(BlindSuite(), ["up"], num_slots=2) as env:
        states = env.initial_states("up", "train", range(3))
        return rollout(env, ACT, states, [0, 1, 2], keep_images=False)


@pytest.mark.parametrize("wrong", ["NaN", "shape", "image", "camera"])
def test_an_observation_that_is_none_costs_its_episode_another_attempt(wrong, capsys):
    expected = episodes("", 0)
    actual = episodes(wrong, 2)
    said = capsys.readouterr().out
    assert [one.success for one in actual] == [one.success for one in expected]
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(one.states, other.states)
    assert "an episode is run again, 1 so far in this rollout: SimulationDivergedError: counting/up" in said
    assert "2 so far" in said


@pytest.mark.parametrize("wrong", ["NaN", "shape"])
def test_one_that_always_is_ends_the_run_in_one_line(wrong):
    with pytest.raises(EpisodeLostError, match=r"interrupted 3 times, .*counting/up: expected a state of 3"):
        episodes(wrong, 99)
    assert EpisodeLostError.explains_itself


def test_an_experts_simulation_says_so_too():
    Blind.wrong, Blind.times = "NaN", 99
    with BatchedEnv(BlindSuite(), ["up"], num_slots=1) as env:
        simulation = env.simulation("up")
        simulation.reset(env.initial_states("up", "train", [0])[0])
        for _ in range(3):
            simulation.step(np.ones(2))
        with pytest.raises(SimulationDivergedError, match="3 finite numbers"):
            simulation.observe()


def test_a_worker_that_hangs_in_reset_is_replaced_and_asked_again():
    with BatchedEnv(CountingSuite(), num_slots=1, num_workers=1, timeout=5.0) as env:
        (state,) = env.initial_states("up", "train", [3])
        stopped = env._workers[0].process
        stopped.send_signal(signal.SIGSTOP)
        observation = env.reset({0: state})[0]
        assert observation.state[0] == np.float32(0.3)
        assert env._workers[0].process.pid != stopped.pid
        assert stopped.returncode == -signal.SIGKILL


def test_a_worker_without_memory_is_replaced_and_the_message_says_memory(tmp_path, monkeypatch):
    """RLIMIT_AS in the worker, which asks for more."""
    (tmp_path / "hungry.py").write_text(
        "import resource\n"
        "from pi0.ript.envs.process import serve\n"
        "def answer(size):\n"
        "    resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))\n"
        "    return len(bytearray(size))\n"
        "def main():\n"
        "    serve(lambda setup: (answer, lambda: None))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    worker = Worker("hungry", None)
    worker.send(100)
    assert worker.receive(60.0) == 100
    worker.send(2**32)
    with pytest.raises(WorkerLostError, match=r"exit code 137: its memory ran out"):
        worker.receive(60.0)
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY, "of the worker alone"
