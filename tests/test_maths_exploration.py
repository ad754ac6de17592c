"""Exploration rules against arithmetic in comments, closed forms and their limits."""

from __future__ import annotations

import doctest
import math
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import softmax

from truing.maths import exploration
from truing.maths.exploration import boltzmann, epsilon_greedy, upper_confidence

rows = arrays(np.float64, (3, 4), elements=st.floats(-50, 50))


def test_docstrings_hold() -> None:
    found = doctest.testmod(exploration)
    assert found.attempted >= 3 and found.failed == 0


# -- epsilon-greedy --------------------------------------------------------------------------------------------------------
def test_epsilon_greedy_explores_over_all_actions_the_best_included() -> None:
    # 1 - 0.1 + 0.1 / 10 = 0.91: the most that epsilon = 0.1 can ever choose the best of ten arms
    p = epsilon_greedy(np.arange(10.0), 0.1)
    assert p[9] == pytest.approx(0.91)
    assert p[:9] == pytest.approx(np.full(9, 0.01))


def test_epsilon_greedy_at_its_ends() -> None:
    assert epsilon_greedy([0.0, -1.0, 0.0], 0).tolist() == [0.5, 0.0, 0.5]  # ties share
    assert epsilon_greedy([0.0, 5.0], 1).tolist() == [0.5, 0.5]


def test_epsilon_greedy_takes_each_row_by_itself() -> None:
    # [2, 3, 2]: two problems of three rows; axis -1 is the actions
    q = np.array([[[0.0, 1.0], [2.0, 1.0], [3.0, 3.0]], [[9.0, 1.0], [0.0, 1.0], [0.0, 1.0]]])
    p = epsilon_greedy(q, 0.2)
    assert p == pytest.approx(np.array([[[0.1, 0.9], [0.9, 0.1], [0.5, 0.5]], [[0.9, 0.1], [0.1, 0.9], [0.1, 0.9]]]))


@given(rows, st.floats(0, 1))
def test_epsilon_greedy_is_a_distribution(q: np.ndarray, epsilon: float) -> None:
    p = epsilon_greedy(q, epsilon)
    assert p.sum(-1) == pytest.approx(np.ones(3))
    assert (p >= epsilon / 4 - 1e-12).all()
    assert (p[np.arange(3), q.argmax(-1)] == p.max(-1)).all()


@pytest.mark.parametrize("epsilon", [-0.1, 1.1, math.nan])
def test_epsilon_outside_its_range_is_refused(epsilon: float) -> None:
    with pytest.raises(ValueError, match=rf"epsilon={epsilon} lies outside \[0, 1\]"):
        epsilon_greedy([0.0, 1.0], epsilon)


def test_epsilon_greedy_refuses_nan() -> None:
    with pytest.raises(ValueError, match="q holds NaN"):
        epsilon_greedy([[0.0, 1.0], [0.0, math.nan]], 0.1)


# -- Boltzmann -------------------------------------------------------------------------------------------------------------
def test_boltzmann_odds() -> None:
    # exp(2 ln 3 / 2) : exp(0) = 3 : 1 at temperature 2
    assert boltzmann([2 * math.log(3), 0.0], 2.0) == pytest.approx([0.75, 0.25])


@given(rows, st.floats(0.05, 20), st.floats(-30, 30))
def test_boltzmann_equals_scipy_and_ignores_a_shift(h: np.ndarray, temperature: float, shift: float) -> None:
    p = boltzmann(h, temperature)
    assert p == pytest.approx(softmax(h / temperature, axis=-1), abs=1e-12)
    assert boltzmann(h + shift, temperature) == pytest.approx(p, abs=1e-9)


def test_boltzmann_takes_each_row_by_itself() -> None:
    h = np.log(np.array([[[1.0, 3.0], [1.0, 1.0], [4.0, 1.0]]]))
    assert boltzmann(h, 1.0) == pytest.approx(np.array([[[0.25, 0.75], [0.5, 0.5], [0.8, 0.2]]]))


def test_boltzmann_limits() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # neither overflow nor 0 / 0 on the way
        assert boltzmann([1e300, 1.0, 1e300], 1e-9) == pytest.approx([0.5, 0.0, 0.5])  # greedy, ties shared
        assert boltzmann([1e4, 0.0], math.inf) == pytest.approx([0.5, 0.5])
        assert boltzmann([-math.inf, 0.0], 1.0).tolist() == [0.0, 1.0]  # never


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_boltzmann_refuses_a_temperature_that_is_not_above_0(temperature: float) -> None:
    with pytest.raises(ValueError, match=f"temperature={temperature} must be above 0"):
        boltzmann([0.0, 1.0], temperature)


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_boltzmann_refuses_preferences_that_give_no_distribution(wrong: float) -> None:
    with pytest.raises(ValueError, match="NaN or infinite"):
        boltzmann([[0.0, 1.0], [wrong, 0.0]], 1.0)
    with pytest.raises(ValueError, match="NaN or infinite"):
        boltzmann([-math.inf, -math.inf], 1.0)


# -- upper confidence ------------------------------------------------------------------------------------------------------
def test_upper_confidence_by_hand() -> None:
    # ln(e^9) = 9: 0 + 2 * sqrt(9 / 1) = 6, 1 + 2 * sqrt(9 / 9) = 3, 5 + 2 * sqrt(9 / 36) = 6
    assert upper_confidence([0.0, 1.0, 5.0], [1, 9, 36], step=math.e**9, c=2.0) == pytest.approx([6.0, 3.0, 6.0])
    assert upper_confidence([[1.0, 2.0]], [[3, 4]], step=100, c=0.0).tolist() == [[1.0, 2.0]]


def test_an_untried_action_comes_first() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no division by the count of 0
        assert upper_confidence([9.0, 0.0], [5, 0], step=1, c=1.0).tolist() == [9.0, math.inf]  # ln 1 = 0


@pytest.mark.parametrize(
    ("q", "counts", "step", "c", "words"),
    [
        ([0.0, 1.0], [1, 2, 3], 1, 1.0, r"q \(2,\) and counts \(3,\)"),
        ([0.0, 1.0], [1, -2], 1, 1.0, "a count is -2.0"),
        ([0.0, 1.0], [1, 2], 0.5, 1.0, "step=0.5 must be 1 or more"),
        ([0.0, 1.0], [1, 2], 1, -1.0, "c=-1.0 0 or more"),
    ],
)
def test_upper_confidence_refuses(q: list[float], counts: list[int], step: float, c: float, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        upper_confidence(q, counts, step, c)
