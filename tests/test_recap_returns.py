"""Returns in closed form, on a chain and on the upstream project's own vectors."""

from dataclasses import replace

import numpy as np
import pytest
from test_episodes import make_episode

from pi0.ript.data.frame_set import FrameSet
from pi0.ript.data.records import EpisodeDataError, EpisodeLabels
from pi0.ript.labels.returns import Outcome, frame_returns, n_step_rewards, outcomes, reaches_end, returns
from pi0.ript.labels.settings import RewardConfig

SUCCESS, FAILURE, TRUNCATED = Outcome.SUCCESS, Outcome.FAILURE, Outcome.TRUNCATED


def config(**changes) -> RewardConfig:
    return RewardConfig(**{"C_neg": -6.0, "reward_normalizer": 10.0, "N_steps_look_ahead": 2, **changes})


def test_a_chain_in_closed_form():
    assert returns(4, SUCCESS, config()).tolist() == [-0.3, -0.2, -0.1, 0.0]
    assert returns(4, FAILURE, config()).tolist() == [-0.9, -0.8, -0.7, -0.6]
    assert n_step_rewards(4, SUCCESS, config()).tolist() == [-0.2, -0.2, -0.1, 0.0]
    assert n_step_rewards(4, FAILURE, config()).tolist() == [-0.2, -0.2, -0.7, -0.6]
    assert reaches_end(4, 2).tolist() == [False, False, True, True]
    both = frame_returns([2, 1], [SUCCESS, FAILURE], config())
    assert both.tolist() == [-0.1, 0.0, -0.6]


def test_truncated_episodes_count_as_configured():
    as_failure, unpenalised = config(), config(truncated="unpenalised")
    for function in (returns, n_step_rewards):
        assert np.array_equal(function(5, TRUNCATED, as_failure), function(5, FAILURE, as_failure))
        assert np.array_equal(function(5, TRUNCATED, unpenalised), function(5, SUCCESS, unpenalised))
        assert np.array_equal(function(5, FAILURE, unpenalised), function(5, FAILURE, as_failure))


@pytest.mark.parametrize(
    ("outcome", "t", "expected"),
    [(SUCCESS, 200, -5 / 60), (SUCCESS, 390, -1 / 60), (FAILURE, 200, -5 / 60), (FAILURE, 390, -101 / 60)],
)
def test_vectors_of_the_upstream_project(outcome, t, expected):
    """OpenTau tests/policies/test_policies.py: test_return_for_advantage."""
    upstream = RewardConfig(C_neg=-1000.0, reward_normalizer=600, N_steps_look_ahead=50)
    assert n_step_rewards(401, outcome, upstream)[t] == pytest.approx(expected)


def test_returns_telescope():
    """The reward until the end, and what follows N steps, add up to the return."""
    chosen = config(reward_normalizer=100.0, N_steps_look_ahead=7)
    for outcome in (SUCCESS, FAILURE):
        g, r = returns(30, outcome, chosen), n_step_rewards(30, outcome, chosen)
        later = np.append(g[7:], np.zeros(7))
        np.testing.assert_allclose(r + later, g, atol=1e-12)


def test_the_normalizer_is_chosen_or_checked():
    auto = config(reward_normalizer="auto").resolve(longest=31)
    assert auto.normalizer == 36.0
    assert returns(31, FAILURE, auto)[0] == -1.0
    assert config(reward_normalizer=36).resolve(31).normalizer == 36.0
    with pytest.raises(ValueError, match=r"reward_normalizer: expected at least 36 .* found 35"):
        config(reward_normalizer=35).resolve(31)
    with pytest.raises(ValueError, match="call RewardConfig.resolve"):  # noqa: RUF043
        returns(3, SUCCESS, config(reward_normalizer="auto"))
    with pytest.raises(ValueError, match="expected at least 1400 "):
        RewardConfig(reward_normalizer=400).resolve(401)  # the upstream default, which crashes there


def test_returns_are_clamped():
    assert returns(31, FAILURE, config(reward_normalizer=10.0)).min() == -1.0
    assert RewardConfig(reward_normalizer="auto").resolve(1).normalizer == 1000.0
    assert returns(1, SUCCESS, config(C_neg=0.0, reward_normalizer="auto").resolve(1)).tolist() == [0.0]


def test_unlabelled_episodes_are_an_error_and_a_late_failure_is_truncated():
    def ended(*successes: bool | None) -> FrameSet:
        one = make_episode(1, length=4)
        labels = [EpisodeLabels("push", success, task_id="suite/push") for success in successes]
        made = [replace(one, labels=x) for x in labels]
        made[-1] = replace(make_episode(1, length=3), labels=labels[-1])
        return FrameSet.in_memory(made, 20)

    with pytest.raises(EpisodeDataError, match="found none for 1 of 3 episodes, the first is 1"):
        outcomes(ended(True, None, False))
    assert outcomes(ended(True, False, False), {"suite/push": 4}) == (SUCCESS, TRUNCATED, FAILURE)
    assert outcomes(ended(True, False, False)) == (SUCCESS, FAILURE, FAILURE)


@pytest.mark.parametrize(
    ("name", "value"),
    [("number_of_bins", 1), ("C_neg", 5.0), ("reward_normalizer", 0), ("N_steps_look_ahead", 0)],
)  # fmt: skip
def test_wrong_settings_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"{name}: expected"):
        RewardConfig(**{name: value})
