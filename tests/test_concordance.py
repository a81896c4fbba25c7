"""A value function is judged at equal times, against chance, and with the uncertainty of few episodes."""

import numpy as np
import pytest

from pi0.ript.labels.calibration import calibration
from pi0.ript.labels.concordance import concordance
from pi0.ript.labels.returns import Outcome, returns
from pi0.ript.labels.settings import RewardConfig
from pi0.ript.recap.config import Gates
from pi0.ript.recap.gates import GateError, LabelFigures, Verdict, check_gates, judge_value

SUCCESS, FAILURE = Outcome.SUCCESS, Outcome.FAILURE
LABELS = LabelFigures(coverage=1.0, positive_fraction=0.6, target_fraction=0.6)
REWARD = RewardConfig(C_neg=-50.0).resolve(50)


def episodes(rng: np.random.Generator, count: int, failures: int) -> list[np.ndarray]:
    """Returns of the frames: failures run into the deadline of 50 steps, successes take 28 to 45."""
    lengths = [50] * failures + rng.integers(28, 46, count - failures).tolist()
    return [returns(n, FAILURE if i < failures else SUCCESS, REWARD) for i, n in enumerate(lengths)]


def judged(values: list[np.ndarray], targets: list[np.ndarray]) -> Verdict:
    lengths = [len(x) for x in targets]
    found = calibration(np.concatenate(values), np.concatenate(targets), lengths, ["task"] * len(lengths))
    return judge_value(found, Gates())


def test_in_closed_form():
    targets = [np.array([-0.3, -0.2, -0.1]), np.array([-0.9, -0.8])]
    assert concordance(targets, targets, ["a", "a"]).concordance == 1.0
    assert concordance([-x for x in targets], targets, ["a", "a"]).concordance == 0.0
    # Above at the first of two common times, below at the second; the third frame has no counterpart.
    crossing = [np.array([-0.3, -0.9, 0.0]), np.array([-0.5, -0.5])]
    assert concordance(crossing, targets, ["a", "a"]).concordance == 0.5
    assert concordance(targets, targets, ["a", "b"]).concordance is None, "tasks are not compared"
    assert concordance([targets[0]] * 2, [targets[0]] * 2, ["a", "a"]).concordance is None


def test_a_comparison_counts_as_much_as_the_returns_differ():
    targets = [np.array([-0.1]), np.array([-0.2]), np.array([-1.0])]
    values = [np.array([-0.2]), np.array([-0.1]), np.array([-0.9])]  # the two best are swapped
    assert concordance(values, targets, ["a"] * 3).concordance == pytest.approx(1 - 0.1 / (0.1 + 0.9 + 0.8))


@pytest.mark.parametrize("count", [1, 2, 4, 8, 20, 60])
@pytest.mark.parametrize("kind", ["frames", "episodes", "walks"])
def test_chance_passes_in_at_most_five_percent_of_draws(count, kind):
    rng, passed, draws = np.random.default_rng((count, len(kind))), 0, 100
    for _ in range(draws):
        targets = episodes(rng, count, failures=count // 2)
        values = {
            "frames": lambda x: rng.uniform(-1, 0, len(x)),
            "episodes": lambda x: np.arange(len(x)) / 50 - 1 + 0.1 * rng.normal(),
            "walks": lambda x: np.cumsum(rng.normal(size=len(x))) / 50 - 0.5,
        }[kind]
        passed += judged([values(x) for x in targets], targets) is Verdict.PASSES
    # At a chance of 4 %, more than 10 of 100 come in 0.2 % of test runs.
    assert passed <= 10


@pytest.mark.parametrize("failures", [2, 10, 18])
def test_values_that_follow_the_return_pass(failures):
    rng, passed, correlations = np.random.default_rng(failures), 0, []
    for _ in range(40):
        targets = episodes(rng, 20, failures)
        frames = np.concatenate(targets)
        scale = frames.std() * np.sqrt(1 / 0.7**2 - 1)
        values = [x + scale * rng.normal(size=len(x)) for x in targets]
        correlations.append(np.corrcoef(np.concatenate(values), frames)[0, 1])
        passed += judged(values, targets) is Verdict.PASSES
    assert np.mean(correlations) == pytest.approx(0.7, abs=0.03)
    assert passed >= 36


def test_what_knows_the_time_alone_does_not_pass():
    rng = np.random.default_rng(0)
    targets = episodes(rng, 40, failures=1)
    clock = [np.arange(len(x)) / 50 - 1 for x in targets]
    found = calibration(np.concatenate(clock), np.concatenate(targets), [*map(len, targets)], ["task"] * 40)
    assert found.correlation is not None
    assert found.correlation > 0.5, "it looks good where times are not told apart"
    assert found.order is not None
    assert found.order.concordance == 0.5
    assert judge_value(found, Gates()) is Verdict.FAILS


def test_a_fast_policy_with_three_failures_of_59_goes_on():
    """In the middle of a failure more is done than in the middle of a brisk success."""
    rng = np.random.default_rng(1)
    targets = episodes(rng, 59, failures=3)
    noise = 0.05
    values = [np.clip(x + noise * rng.normal(size=len(x)), -1, 0) for x in targets]
    assert judged(values, targets) is Verdict.PASSES
    ignorant = [np.arange(len(x)) / 50 - 1 + noise * rng.normal(size=len(x)) for x in targets]
    found = calibration(np.concatenate(ignorant), np.concatenate(targets), [*map(len, targets)], ["a"] * 59)
    with pytest.raises(GateError, match=r"value function: (fails|undecided)"):
        check_gates(found, LABELS, Gates())
    line = check_gates(found, LABELS, Gates(), is_improving=True)[0]
    assert "the run goes on: the policy is improving" in line


def test_too_few_episodes_are_undecided_and_the_user_decides():
    targets = episodes(np.random.default_rng(0), 3, failures=1)
    found = calibration(np.concatenate(targets), np.concatenate(targets), [*map(len, targets)], ["a"] * 3)
    assert judge_value(found, Gates()) is Verdict.UNDECIDED
    with pytest.raises(GateError, match=r"undecided: concordance 1\.000 on 3 held-out episodes"):
        check_gates(found, LABELS, Gates())
    assert "gates.undecided=go" in check_gates(found, LABELS, Gates(undecided="go"))[0]
    assert judge_value(found, Gates(min_concordance=0.0)) is Verdict.PASSES
