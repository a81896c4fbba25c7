"""Advantages: closed forms of the leave-one-out baseline."""

import numpy as np
import pytest

from pi0.ript.advantage import is_informative, leave_one_out


def test_closed_form():
    rewards = np.array([[1.0, 0, 0, 0], [1, 1, 1, 0], [1, 1, 0, 0]])
    expected = np.array([[3, -1, -1, -1], [1, 1, 1, -3], [2, 2, -2, -2]]) / 3
    np.testing.assert_allclose(leave_one_out(rewards), expected)


def test_definition():
    rewards = np.random.default_rng(0).normal(size=(5, 7))
    for group, advantages in zip(rewards, leave_one_out(rewards), strict=True):
        expected = [r - np.delete(group, i).mean() for i, r in enumerate(group)]
        np.testing.assert_allclose(advantages, expected)


def test_groups_sum_to_zero_and_do_not_mix():
    rewards = np.random.default_rng(1).normal(size=(9, 4))
    together = leave_one_out(rewards)
    np.testing.assert_allclose(together.sum(1), 0, atol=1e-12)
    np.testing.assert_array_equal(together, np.concatenate([leave_one_out(group[None]) for group in rewards]))


def test_a_group_of_one_is_refused():
    with pytest.raises(ValueError, match=r"group_size: expected at least 2 rollouts .* found 1"):
        leave_one_out(np.ones((3, 1)))


def test_uniform_groups_are_not_informative():
    rewards = np.array([[0.0, 0, 0], [1, 1, 1], [0, 0, 1], [1, 0, 1]])
    assert is_informative(rewards).tolist() == [False, False, True, True]
    assert not leave_one_out(rewards)[:2].any()
