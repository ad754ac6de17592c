"""Errors of the tabular methods by hand, as special cases of each other, and as the policy gradient."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from truing.maths import tabular
from truing.maths.exploration import epsilon_greedy
from truing.maths.tabular import expected_sarsa_error, gradient_bandit, q_learning_error, sarsa_error, toward

Q = np.array([[1.0, 2.0, 0.5], [3.0, 5.0, 4.0], [-1.0, -2.0, -3.0]])
numbers = st.floats(-10, 10)
tables = arrays(np.float64, (5, 3), elements=numbers)


def test_docstrings_hold() -> None:
    found = doctest.testmod(tabular)
    assert found.failed == 0 and found.attempted >= 8


# -- estimates -------------------------------------------------------------------------------------------------------------
@given(st.lists(numbers, min_size=1, max_size=20))
def test_steps_of_one_over_n_make_the_mean(targets: list[float]) -> None:
    estimate = 123.0  # the first step of 1 forgets it
    for n, target in enumerate(targets, 1):
        estimate = toward(estimate, target, 1 / n)
    assert estimate == pytest.approx(np.mean(targets), abs=1e-9)


def test_a_constant_step_forgets_geometrically() -> None:
    # 0 -> 8 * 0.5 = 4 -> 4 + 0.5 * (0 - 4) = 2 -> 1
    estimates = [0.0]
    for target in (8.0, 0.0, 0.0):
        estimates.append(toward(estimates[-1], target, 0.5))
    assert estimates == [0.0, 4.0, 2.0, 1.0]
    assert toward(np.array([0.0, 10.0]), np.array([8.0, 0.0]), np.array([0.5, 0.1])).tolist() == [4.0, 9.0]


# -- errors ----------------------------------------------------------------------------------------------------------------
def test_errors_by_hand() -> None:
    # from (0, 1), worth 2, with reward -1 to state 1 at gamma 0.9
    assert float(q_learning_error(Q, 0, 1, -1.0, 1, 0.9)) == pytest.approx(-1 + 0.9 * 5 - 2)
    assert float(sarsa_error(Q, 0, 1, -1.0, 1, 2, 0.9)) == pytest.approx(-1 + 0.9 * 4 - 2)
    p = np.array([0.2, 0.5, 0.3])
    assert float(expected_sarsa_error(Q, 0, 1, -1.0, 1, p, 0.9)) == pytest.approx(-1 + 0.9 * (0.6 + 2.5 + 1.2) - 2)


def test_nothing_follows_a_terminated_transition() -> None:
    for error in (q_learning_error(Q, 0, 0, 7.0, 1, 0.0), sarsa_error(Q, 0, 0, 7.0, 1, 1, 0.0), expected_sarsa_error(Q, 0, 0, 7.0, 1, np.ones(3) / 3, 0.0)):
        assert float(error) == 7.0 - 1.0


def test_many_transitions_are_each_as_one() -> None:
    s, a, r, s2, a2, g = np.array([0, 2, 1]), np.array([1, 0, 2]), np.array([1.0, 2, 3]), np.array([1, 0, 2]), np.array([0, 0, 1]), np.array([0.9, 0.0, 0.5])
    p = np.array([[0.2, 0.3, 0.5], [1.0, 0, 0], [0.1, 0.1, 0.8]])
    rows = range(3)
    assert np.asarray(q_learning_error(Q, s, a, r, s2, g)) == pytest.approx([float(q_learning_error(Q, s[i], a[i], r[i], s2[i], g[i])) for i in rows])
    assert np.asarray(sarsa_error(Q, s, a, r, s2, a2, g)) == pytest.approx([float(sarsa_error(Q, s[i], a[i], r[i], s2[i], a2[i], g[i])) for i in rows])
    whole = np.asarray(expected_sarsa_error(Q, s, a, r, s2, p, g))
    assert whole == pytest.approx([float(expected_sarsa_error(Q, s[i], a[i], r[i], s2[i], p[i], g[i])) for i in rows])
    grid = np.asarray(expected_sarsa_error(Q, s.reshape(3, 1), a.reshape(3, 1), r.reshape(3, 1), s2.reshape(3, 1), p[:, None], g.reshape(3, 1)))
    assert grid[:, 0] == pytest.approx(whole)  # [3, 1] transitions: the actions are the last axis
    assert np.asarray(q_learning_error(Q, s[:, None], a[:, None], r[:, None], s2[:, None], g[:, None])).shape == (3, 1)


@given(tables, st.integers(0, 4), st.integers(0, 2), numbers, st.integers(0, 4), st.floats(0, 1), st.floats(0, 1))
def test_expected_sarsa_spans_the_other_two(q: np.ndarray, s: int, a: int, r: float, s2: int, g: float, epsilon: float) -> None:
    best = float(q_learning_error(q, s, a, r, s2, g))
    assert float(expected_sarsa_error(q, s, a, r, s2, epsilon_greedy(q[s2], 0.0), g)) == pytest.approx(best)
    each = [float(sarsa_error(q, s, a, r, s2, a2, g)) for a2 in range(3)]
    p = epsilon_greedy(q[s2], epsilon)
    assert float(expected_sarsa_error(q, s, a, r, s2, p, g)) == pytest.approx(p @ each, abs=1e-9)  # the mean over the next action
    assert best == pytest.approx(max(each))


# -- gradient bandit -------------------------------------------------------------------------------------------------------
@given(arrays(np.float64, (2, 4), elements=numbers), st.tuples(st.integers(0, 3), st.integers(0, 3)), st.tuples(numbers, numbers), numbers)
def test_gradient_bandit_is_one_step_of_reinforce(h: np.ndarray, actions: tuple[int, int], rewards: tuple[float, float], baseline: float) -> None:
    logits = torch.tensor(h, requires_grad=True)
    chosen = logits.log_softmax(-1)[torch.arange(2), torch.tensor(actions)]
    (chosen * (torch.tensor(rewards, dtype=torch.float64) - baseline)).sum().backward()
    new = gradient_bandit(h, np.array(actions), np.array(rewards), baseline, 0.4)
    assert new == pytest.approx(h + 0.4 * logits.grad.numpy(), abs=1e-9)
    alone = gradient_bandit(h[1], actions[1], rewards[1], baseline, 0.4)
    assert alone == pytest.approx(new[1])
    assert new.sum(-1) == pytest.approx(h.sum(-1), abs=1e-9)  # what one action gains the others lose


def test_gradient_bandit_takes_each_problem_by_itself() -> None:
    # [1, 2, 2]: uniform over two arms; alpha 1, reward - baseline = 4 and -2
    new = gradient_bandit(np.zeros((1, 2, 2)), np.array([[0, 0]]), np.array([[5.0, 0.0]]), np.array([[1.0, 2.0]]), 1.0)
    assert new.tolist() == [[[2.0, -2.0], [-1.0, 1.0]]]
