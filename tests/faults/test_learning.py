"""Numbers that are none, groups that teach nothing: the step is left out on all processes, and counted."""

import os

import drifting
import numpy as np
import pytest

from faults.drills import forked
from pi0.ript import loss


def rows(place, name):
    return drifting.outcome(place / name)["rows"]


def on_both_ranks():
    """Make the second loss of each process NaN."""
    forward, calls = loss.AdvantageLoss.forward, 0

    def poisoned(*arguments, **options):
        nonlocal calls
        calls += 1
        return forward(*arguments, **options) * (float("nan") if calls == 2 else 1.0)

    loss.AdvantageLoss.forward = poisoned


LATER = ("nan@1:loss:2", "both", "nan-gradient@1:loss:2")


@pytest.mark.parametrize(
    "fault", ["nan@0:loss:2", *(pytest.param(fault, marks=pytest.mark.slow) for fault in LATER)]
)
def test_a_step_that_is_not_finite_on_any_rank_is_left_out_on_all(place, pair, fault):
    """What the processes hold is compared bit for bit after every iteration."""
    name = f"nan-{fault}".replace(":", "-").replace("@", "-")
    given = {"prepare": on_both_ranks} if fault == "both" else {"fault": fault}
    ended = forked(place, name, **given)
    assert [one.code for one in ended] == [0, 0], ended[0].said[-3000:]
    for one in ended:
        assert one.said.count("optimizer step 1: skipped on all processes") == 1, one.said[-3000:]
        assert "no step is made" in one.said
    first, expected = rows(place, name)[0], pair["rows"][0]
    assert np.isfinite(first["train/loss"])
    assert first["rollout/success"] == expected["rollout/success"], "what came before is the same"
    assert first["train/loss"] != expected["train/loss"], "the mean is of the other steps"


def ever(outcome, ranks=(0, 1)):
    """Let all episodes of some ranks succeed at once, or none."""

    def prepare():
        step = drifting.DriftingSimulation.step

        def fixed(self, action):
            step(self, action)
            return outcome

        if int(os.environ.get("RANK", "0")) in ranks:
            drifting.DriftingSimulation.step = fixed

    return prepare


@pytest.mark.parametrize("outcome", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_where_all_episodes_have_one_outcome_no_step_is_made_and_it_is_said(place, outcome):
    """Two processes, a bounded number of states, and weights as they were."""
    name = f"ever-{outcome}"
    ended = forked(place, name, prepare=ever(outcome))
    assert [one.code for one in ended] == [0, 0], ended[0].said[-3000:]
    share = "100%" if outcome else "0%"
    assert ended[0].said.count(f"all 4 groups had one outcome ({share} of the rollouts succeeded)") == 2
    for row in rows(place, name):
        assert (row["rollout/groups"], row["rollout/attempts"], row["train/windows"]) == (0, 4, 0)
        assert row["train/loss"] is None
    weights = [place / path / "model.safetensors" for path in ("start", f"{name}/policy")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


@pytest.mark.slow
def test_where_one_rank_alone_has_one_outcome_both_go_on_together(place):
    """Groups are shared out episode by episode, so what they hold is compared after every iteration."""
    ended = forked(place, "ever-on-one", prepare=ever(False, ranks=(1,)))
    assert [one.code for one in ended] == [0, 0], ended[0].said[-3000:]
    assert all(row["rollout/attempts"] <= 4 for row in rows(place, "ever-on-one"))
