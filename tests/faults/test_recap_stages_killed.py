"""RECAP: killed stages come to the same files, damaged data are named, useless figures stop the run."""

import json
import os
import signal
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import TASKS
from test_concordance import LABELS, episodes
from test_episodes import INFO, make_episode, publish
from test_machines import SHORT

from faults.drills import forked
from pi0.ript.data.records import EpisodeDataError
from pi0.ript.data.writer import EpisodeWriter
from pi0.ript.labels.calibration import calibration
from pi0.ript.recap.gates import GateError, Gates, check_gates
from pi0.ript.recap.stages import STATE

KILLED = ("value", "round-1/rollouts", "round-1/value", "round-1/advantages", "round-1/policy")
"""In the middle: of its optimizer steps, of its episodes, or when it has made its files."""


def recap(place, name, *words):
    import runpy

    import fault_runs

    words = [word.format(place=place) for word in (*fault_runs.recap(*SHORT), *words)]
    words = [word for word in words if not word.startswith(("output_dir=", "exp_name="))]
    sys.argv = [str(fault_runs.RUNGS["final"]), *words, f"output_dir={place}", f"exp_name={name}"]
    runpy.run_path(sys.argv[0], run_name="__main__")


def die_in(stage):
    """Kill this process in the middle of a stage."""

    def prepare():
        from pi0.ript.data.writer import EpisodeWriter
        from pi0.ript.progress import doing
        from pi0.ript.recap.stages import Stages
        from pi0.ript.training.steps import Steps

        seen = Counter()

        def dying(owner, name, count):
            function = getattr(owner, name)

            def watched(*arguments, **options):
                is_there = doing.stage == stage or (name == "_finish" and str(arguments[1]) == stage)
                seen[name] += is_there
                if is_there and seen[name] == count:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*arguments, **options)

            setattr(owner, name, watched)

        dying(Steps, "accept", 2)
        dying(EpisodeWriter, "add", 3)
        dying(Stages, "_finish", 1)

    return prepare


@pytest.fixture(scope="module")
def data(place):
    """Demonstrations of the suite that only adds."""
    recorded = {i: make_episode(i, length=12 + i, size=8) for i in range(3)}
    labels = {"instruction": TASKS[0], "task_id": "drifting/far"}
    recorded = {i: replace(e, labels=replace(e.labels, **labels)) for i, e in recorded.items()}
    return publish(place / "recap-data", recorded)


def hashes(place, name):
    stages = json.loads((place / name / STATE).read_text())["stages"]
    return {stage: record["output"]["hash"] for stage, record in stages.items()}


@pytest.fixture(scope="module")
def whole(place, data):
    (ended,) = forked(place, "recap", f"demonstrations.root={data}", size=1, run=recap)
    assert ended.code == 0, ended.said[-3000:]
    return hashes(place, "recap")


@pytest.fixture(scope="module")
def killed(place, data):
    """What was finished when each stage was killed, and the hashes at the end."""
    finished = {}
    for stage in KILLED:
        (ended,) = forked(
            place, "recap-killed", f"demonstrations.root={data}", size=1, run=recap, prepare=die_in(stage)
        )
        assert ended.code == -signal.SIGKILL, ended.said[-3000:]
        assert (place / "recap-killed" / f"{stage}.partial").exists(), "it died in the middle"
        finished[stage] = set(hashes(place, "recap-killed"))
    (ended,) = forked(place, "recap-killed", f"demonstrations.root={data}", size=1, run=recap)
    assert ended.code == 0, ended.said[-3000:]
    return finished, hashes(place, "recap-killed")


@pytest.mark.slow
@pytest.mark.parametrize("stage", KILLED)
def test_a_stage_that_is_killed_comes_to_the_same_files(whole, killed, stage):
    finished, final = killed
    assert stage not in finished[stage]
    assert final[stage] == whole[stage]
    assert final == whole


# Data -------------------------------------------------------------------------------------------------------


def flip(file: Path, at: float) -> None:
    content = bytearray(file.read_bytes())
    content[int(len(content) * at)] ^= 8
    file.write_bytes(content)


def test_an_episode_that_is_damaged_before_it_is_published_is_named(tmp_path):
    """Recorded, not yet a part of the data set: cut short, or with a bit that has changed."""
    writer = EpisodeWriter(tmp_path / "set", INFO)
    for number in range(2):
        writer.add(number, make_episode(number, length=3))
    file = tmp_path / "set.partial/episode-000000001.parquet"
    whole = file.read_bytes()
    file.write_bytes(whole[:-40])
    with pytest.raises(EpisodeDataError, match=r"episode-000000001\.parquet is damaged .*; remove it"):
        EpisodeWriter(tmp_path / "set", INFO).finalize()
    file.write_bytes(whole)
    expected, noticed = EpisodeWriter(tmp_path / "set", INFO).read(1), 0
    assert expected is not None
    for at in np.linspace(0.001, 0.999, 200):
        file.write_bytes(whole)
        flip(file, at)
        try:
            actual = EpisodeWriter(tmp_path / "set", INFO).read(1)
        except EpisodeDataError:
            noticed += 1
        else:
            assert actual is not None
            assert actual.content_hash() == expected.content_hash(), "a bit that nothing is read from"
    assert noticed > 50
    file.unlink()
    writer.add(1, make_episode(1, length=3))
    assert writer.finalize() == tmp_path / "set"


# Figures ----------------------------------------------------------------------------------------------------


def test_a_value_function_that_says_the_same_of_everything_stops_the_run():
    targets = episodes(np.random.default_rng(0), 40, failures=10)
    constant = np.full(sum(map(len, targets)), -0.5)
    figures = calibration(constant, np.concatenate(targets), [*map(len, targets)], ["task"] * 40)
    with pytest.raises(GateError, match=r"value function: (fails|undecided)") as raised:
        check_gates(figures, LABELS, Gates())
    assert "\n  try: " in str(raised.value)


def test_labels_that_are_all_positive_stop_the_run():
    targets = episodes(np.random.default_rng(0), 40, failures=10)
    exact = np.concatenate(targets)
    figures = calibration(exact, exact, [*map(len, targets)], ["task"] * 40)
    assert check_gates(figures, LABELS, Gates())
    with pytest.raises(GateError, match=r"positive fraction: 1\.000, 0\.6 within 0\.05"):
        check_gates(figures, replace(LABELS, positive_fraction=1.0), Gates())
