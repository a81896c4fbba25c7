"""Rung 13 with GRPO: a run that is stopped and continued is the uninterrupted one; two processes are one."""

import json

import drifting
import numpy as np
import pytest
from forked import together
from test_production import _watch, handlers, interrupted_run, place, stop, whole

from pi0.ript.checkpoint.journal import EpisodeJournal

GRPO = ("algo.name=grpo", "algo.stochastic_steps=2", "algo.stochastic_among=2")
FIXTURES = handlers, place, whole  # `whole` is what comes of the `events` below


@pytest.fixture(scope="module")
def events(place):
    """What happens in an uninterrupted run, in order."""
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        _watch(patch, seen.append)
        drifting.run(place, "whole", *GRPO)
    return seen


@pytest.mark.parametrize(
    ("name", "at"),
    [
        ("step", lambda e: e.index("step") + 1),
        pytest.param("collection", lambda e: e.index("step") - 2, marks=pytest.mark.slow),
    ],
)
def test_a_continued_run_is_the_uninterrupted_one(place, events, whole, name, at, monkeypatch):
    """Stopped inside an iteration: its chunks come back from the journal with what was noted of them."""
    interrupted_run(place, name, at(events), stop, *GRPO)
    read, found = EpisodeJournal.read, []
    monkeypatch.setattr(EpisodeJournal, "read", lambda *args: found.append(read(*args)) or found[-1])
    drifting.run(place, name, "--resume", *GRPO)
    noted = [episode.chunks for episode in found if episode is not None and episode.chunks]
    assert noted
    assert all(set(notes) == {"start", "steps", "before", "after", "log_prob"} for notes in noted)
    assert drifting.outcome(place / name) == whole


@pytest.mark.slow
def test_two_processes_learn_as_one_does(tmp_path):
    """With both strategies; to the rounding of sums in another order."""
    drifting.install()
    try:
        drifting.prepare(tmp_path)
        more = (*GRPO, "algo.data_batch_size=4", "algo.max_sampling_attempts=8", "training.num_train_steps=1")
        losses = {}
        for name, size, strategy in (("one", 1, "ddp"), ("ddp", 2, "ddp"), ("fsdp", 2, "fsdp")):
            words = (*more, f"distributed.strategy={strategy}")
            together(size, tmp_path / "found", drifting.run, tmp_path, name, *words)
            results = json.loads((tmp_path / name / "results.json").read_text())
            losses[name] = [row["train/loss"] for row in results["metrics"]]
        assert losses["one"][0]
        for name in ("ddp", "fsdp"):
            assert np.allclose(losses[name], losses["one"], rtol=1e-3, atol=1e-5), losses
    finally:
        drifting.uninstall()
