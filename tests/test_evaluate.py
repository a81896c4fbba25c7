"""Evaluation: intervals against published figures, paired comparison, episodes on held-out states."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from conftest import METAWORLD, metaworld_policy
from scipy.stats import binomtest, norm

from pi0.ript.evaluate import (
    EpisodeResult,
    Evaluation,
    compare,
    episode_seed,
    evaluate,
    mcnemar_p_value,
    paired_difference_interval,
    wilson_interval,
)
from pi0.ript.rollout import GuidedPolicy, rollout
from pi0.ript.success_table import success_rows, success_text

BUTTON, PLATE = METAWORLD
Z95 = norm.ppf(0.975)


def evaluation(outcomes: str, tasks: str | None = None) -> Evaluation:
    """One episode per letter, + for success, on states named by their position."""
    tasks = tasks or "a" * len(outcomes)
    return Evaluation(
        0,
        tuple(
            EpisodeResult(f"suite/{task}", f"state {i}", outcome == "+", 10 * (i + 1))
            for i, (outcome, task) in enumerate(zip(outcomes, tasks, strict=True))
        ),
    )


# Intervals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("k", "n", "expected"),
    [
        (81, 263, (0.2553, 0.3662)),
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
    ],
)
def test_wilson_published(k, n, expected):
    """Newcombe, Statistics in Medicine 17 (1998) 857-872, table I, method 3."""
    assert wilson_interval(k, n) == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize("n", [1, 7, 50])
def test_wilson_against_scipy(n):
    for k in range(n + 1):
        expected = binomtest(k, n).proportion_ci(0.95, "wilson")
        low, high = wilson_interval(k, n, Z95)
        assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-12)
        assert 0 <= low <= k / n <= high <= 1


@pytest.mark.parametrize(("k", "n"), [(0, 0), (3, 2), (-1, 2)])
def test_wilson_refuses_impossible_counts(k, n):
    with pytest.raises(ValueError, match="expected 0 <= num_successes <= num_episodes >= 1, found"):
        wilson_interval(k, n)


def test_paired_interval_published():
    """Fagerland, Lydersen and Laake, Statistics in Medicine 33 (2014) 2850-2875: data of Bentur et al."""
    assert paired_difference_interval(1, 1, 7, 12) == pytest.approx((-0.507, -0.026), abs=5e-4)


def test_paired_interval_is_symmetric():
    for counts in [(5, 7, 1, 3), (0, 4, 4, 0), (9, 1, 0, 0), (0, 3, 0, 9)]:
        both, won, lost, neither = counts
        low, high = paired_difference_interval(*counts)
        assert -1 <= low <= (won - lost) / sum(counts) <= high <= 1
        assert paired_difference_interval(both, lost, won, neither) == pytest.approx((-high, -low))
        assert paired_difference_interval(neither, won, lost, both) == pytest.approx((low, high))


def test_pairing_narrows_the_interval():
    agreeing, opposed = paired_difference_interval(20, 10, 0, 20), paired_difference_interval(5, 25, 15, 5)
    assert agreeing[1] - agreeing[0] < opposed[1] - opposed[0]
    assert agreeing[0] > 0 > opposed[0]


def test_paired_interval_covers():
    """95 of 100 intervals should hold the true difference; 1000 draws are within 2 points of that."""
    rng = np.random.default_rng(0)
    p = np.array([0.3, 0.3, 0.1, 0.3])  # both, won, lost, neither
    intervals = [paired_difference_interval(*map(int, draw)) for draw in rng.multinomial(50, p, 1000)]
    assert np.mean([low <= 0.2 <= high for low, high in intervals]) == pytest.approx(0.95, abs=0.02)


def test_mcnemar_against_scipy():
    for won in range(12):
        for lost in range(12):
            expected = binomtest(won, won + lost).pvalue if won + lost else 1.0
            assert mcnemar_p_value(won, lost) == pytest.approx(expected)


# Comparison ---------------------------------------------------------------------------------------------


def test_figures():
    some = evaluation("+--+-", "aabbb")
    assert (some.num_successes, some.num_episodes, some.success_rate) == (2, 5, 0.4)
    assert some.interval == wilson_interval(2, 5)
    assert some.mean_steps_to_success == 25
    assert evaluation("--").mean_steps_to_success is None
    tasks = some.by_task()
    assert {task: (e.num_successes, e.num_episodes) for task, e in tasks.items()} == {
        "suite/a": (1, 2),
        "suite/b": (1, 3),
    }
    read = json.loads(json.dumps(some.to_dict()))
    assert read["tasks"]["suite/b"]["success_rate"] == pytest.approx(1 / 3)
    assert [EpisodeResult(**e) for e in read["episodes"]] == list(some.episodes)


def test_comparison_pairs_by_state():
    before, after = evaluation("+-+--+"), evaluation("++++--")
    shuffled = replace(after, episodes=after.episodes[::-1])
    for other in (after, shuffled):
        comparison = compare(before, other)
        assert (comparison.num_episodes, comparison.num_won, comparison.num_lost) == (6, 2, 1)
        assert comparison.difference == pytest.approx(1 / 6)
        assert comparison.interval == paired_difference_interval(2, 2, 1, 1)
        assert comparison.p_value == 1.0
    assert json.loads(json.dumps(asdict(comparison)))["num_won"] == 2


def test_comparison_needs_the_same_states():
    with pytest.raises(ValueError, match="same initial states, found 1 only before and 0 only after"):
        compare(evaluation("+-+"), evaluation("++"))


# The table of success


def test_a_table_compares_with_the_first_policy_task_by_task_and_in_all():
    policies = {"before": evaluation("+--+", "aabb"), "after": evaluation("++-+", "aabb")}
    header, *rows = success_rows(policies)
    assert header == ("task", "policy", "success [95%]", "points over before [95%]", "won-lost", "p", "steps")
    names = [(task, policy) for task in ("suite/a", "suite/b", "all") for policy in policies]
    assert [row[:2] for row in rows] == names
    assert rows[0][2:] == ("1/2 50.0% [9.5, 90.5]", "", "", "", "10.0")
    assert rows[3][3:6] == ("+0.0 [-57.3, +57.3]", "0-0", "1")
    assert rows[4][2:] == ("2/4 50.0% [15.0, 85.0]", "", "", "", "25.0")
    assert rows[5][2:] == ("3/4 75.0% [30.1, 95.4]", "+25.0 [-32.0, +65.5]", "1-0", "1", "23.3")


def test_a_table_leaves_out_what_says_nothing():
    one_task, two_tasks = evaluation("+-"), evaluation("++", "ab")
    assert success_rows({"policy": one_task})[0] == ("task", "success [95%]", "steps")
    assert [row[0] for row in success_rows({"policy": two_tasks})] == ["task", "suite/a", "suite/b", "all"]
    assert [row[0] for row in success_rows({"x": one_task, "y": one_task})] == ["policy", "x", "y"]


def test_a_policy_that_met_other_states_is_not_compared():
    others = replace(evaluation("+-"), episodes=(EpisodeResult("suite/a", "elsewhere", True, 3),))
    *_, row = success_rows({"x": evaluation("+-"), "y": others})
    assert row == ("y", "1/1 100.0% [20.7, 100.0]", "other states", "", "", "3.0")
    none = replace(others, episodes=(EpisodeResult("suite/a", "elsewhere", False, 3),))
    assert success_rows({"x": none})[1][-1] == "none"


def test_the_text_of_a_table_is_aligned():
    policies = {"a long name": evaluation("+--+", "aabb"), "b": evaluation("++-+", "aabb")}
    head, rule, *lines, legend = success_text(policies).splitlines()
    assert set(rule) == {"-"}
    start = head.index("success")
    counts = ["1/2", "2/2", "1/2", "1/2", "2/4", "3/4"]
    assert [line[start - 2 : start + 3] for line in lines] == [f"  {count}" for count in counts]
    assert "exact McNemar" in legend
    assert "McNemar" not in success_text({"b": policies["b"]})


# Episodes -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def states(metaworld):
    return [s for task in METAWORLD for s in metaworld.initial_states(task, "heldout", range(2))]


@pytest.fixture(scope="module")
def policy():
    return GuidedPolicy(metaworld_policy())


def noting(finished: list):
    """`rollout`, which also puts the episodes into a list."""

    def run(*arguments, **options):
        episodes = rollout(*arguments, **options)
        finished.extend(episodes)
        return episodes

    return run


def test_evaluate_runs_each_state_with_its_own_noise(metaworld, policy, states):
    finished = []
    evaluation = evaluate(metaworld, policy, states, seed=3, run=noting(finished))
    assert [e.state for e in evaluation.episodes] == [s.hash for s in states]
    assert [e.task for e in evaluation.episodes] == [s.task for s in states]
    assert {e.num_steps for e in evaluation.episodes} == {20}
    assert len({r.seed for r in finished}) == 4
    by_state = {r.initial_state: r for r in finished}
    alone = []
    evaluate(metaworld, policy, [states[2]], seed=3, run=noting(alone))
    np.testing.assert_array_equal(alone[0].actions, by_state[states[2]].actions)
    other = rollout(metaworld, policy, [states[2]], [episode_seed(4, states[2])])[0]
    assert not np.array_equal(other.actions, alone[0].actions)


def test_evaluate_keeps_images_of_the_recorded_episodes_only(metaworld, policy, states):
    finished = []
    plain = evaluate(metaworld, policy, states)
    evaluation = evaluate(metaworld, policy, states, num_recorded=1, run=noting(finished))
    assert evaluation == plain
    assert plain.recorded == ()
    assert [r.initial_state for r in evaluation.recorded] == [states[0], states[2]]
    assert [len(r.images["front"]) for r in evaluation.recorded] == [10, 10]
    assert len(finished) == 4
    assert [len(r.images) for r in finished] == [1, 1, 0, 0]


def test_evaluate_refuses_no_states_and_repeated_ones(metaworld, policy, states):
    with pytest.raises(ValueError, match="states: expected at least one initial state"):
        evaluate(metaworld, policy, [])
    with pytest.raises(ValueError, match=r"found number 1 of 'metaworld/button-press-v3' 2 times"):
        evaluate(metaworld, policy, [*states, states[1]])
