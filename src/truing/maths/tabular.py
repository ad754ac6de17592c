"""Learning from tables: one TD error, three answers to "what is the next state worth?". Plain arithmetic and NumPy.

The errors check nothing, because a loop calls them at every step; whoever reads the options checks them once. Each takes
one transition (integers and floats) or many (arrays ``[N]``), where the result is ``[N]`` too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from truing.maths.advantages import td_error
from truing.maths.exploration import boltzmann

Array = NDArray[np.float64]
Number = Any  # a float, or an array [N] of them
Index = Any  # an int, or an array [N] of them


def toward(estimate: Number, target: Number, step_size: Number) -> Number:
    """Move an estimate a step toward a target: ``estimate + step_size * (target - estimate)``.

    With step_size = 1 / n, n counting the targets seen, the estimate is their mean; a constant one forgets old targets
    as (1 - step_size)^age.

    Source: Sutton and Barto, 2nd ed., equation 2.3.

    >>> toward(2.0, 6.0, 0.25)  # a quarter of the way from 2 to 6
    3.0
    """
    return estimate + step_size * (target - estimate)


def q_learning_error(q: Array, state: Index, action: Index, reward: Number, next_state: Index, discount: Number) -> Number:
    """TD error of Q-learning: ``r + discount * max_a Q(s', a) - Q(s, a)``: the next state is worth its best action.

    Args:
        q: action values ``[S, A]``.
        discount: gamma, and 0 where the transition *terminated*; a truncated one keeps gamma.

    Source: Watkins 1989; Sutton and Barto, 2nd ed., equation 6.8.

    >>> q = np.array([[1.0, 2.0], [3.0, 5.0]])
    >>> float(q_learning_error(q, 0, 1, 1.0, 1, 0.5))  # 1 + 0.5 * 5 - 2
    1.5
    """
    return td_error(reward, q[state, action], next_value=q[next_state].max(-1), discount=discount)


def sarsa_error(q: Array, state: Index, action: Index, reward: Number, next_state: Index, next_action: Index, discount: Number) -> Number:
    """TD error of Sarsa: ``r + discount * Q(s', a') - Q(s, a)``: the next state is worth the action taken there.

    Args:
        q: action values ``[S, A]``.
        next_action: a', the action chosen in s'; any valid one where discount is 0.
        discount: gamma, and 0 where the transition *terminated*; a truncated one keeps gamma.

    Source: Rummery and Niranjan 1994; Sutton and Barto, 2nd ed., equation 6.7.

    >>> q = np.array([[1.0, 2.0], [3.0, 5.0]])
    >>> float(sarsa_error(q, 0, 1, 1.0, 1, 0, 0.5))  # 1 + 0.5 * 3 - 2
    0.5
    """
    return td_error(reward, q[state, action], next_value=q[next_state, next_action], discount=discount)


def expected_sarsa_error(q: Array, state: Index, action: Index, reward: Number, next_state: Index, probabilities: Array, discount: Number) -> Number:
    """TD error of expected Sarsa: ``r + discount * sum_a pi(a|s') Q(s', a) - Q(s, a)``: the next state is worth its mean.

    Args:
        q: action values ``[S, A]``.
        probabilities: pi(. | s'), ``[A]``, or ``[N, A]`` for many transitions. Greedy ones give `q_learning_error`.
        discount: gamma, and 0 where the transition *terminated*; a truncated one keeps gamma.

    Source: van Seijen et al. 2009; Sutton and Barto, 2nd ed., equation 6.9.

    >>> q = np.array([[1.0, 2.0], [3.0, 5.0]])
    >>> float(expected_sarsa_error(q, 0, 1, 1.0, 1, np.array([0.75, 0.25]), 0.5))  # 1 + 0.5 * (0.75 * 3 + 0.25 * 5) - 2
    0.75
    """
    return td_error(reward, q[state, action], next_value=(probabilities * q[next_state]).sum(-1), discount=discount)


def gradient_bandit(preferences: ArrayLike, action: Index, reward: Number, baseline: Number, step_size: float) -> Array:
    """New preferences of a softmax bandit: ``H(b) + step_size * (r - baseline) * ([b = action] - pi(b))``, pi = softmax(H).

    This is one step of REINFORCE with a baseline: the bracket is the gradient of log pi(action) with respect to H(b).

    Args:
        preferences: H ``[..., A]``; leading axes are independent problems.
        action: the action taken ``[...]``.
        reward: r ``[...]``.
        baseline: what the reward is compared with ``[...]``, for example the mean reward so far; 0 for none.
        step_size: alpha.

    Source: Sutton and Barto, 2nd ed., equation 2.12.

    >>> gradient_bandit([0.0, 0.0], action=1, reward=3.0, baseline=1.0, step_size=0.5).tolist()  # 0.5 * 2 * (-1/2, 1 - 1/2)
    [-0.5, 0.5]
    """
    preferences = np.asarray(preferences, np.float64)
    taken = np.arange(preferences.shape[-1]) == np.asarray(action)[..., None]
    surprise = np.asarray(reward - baseline)[..., None]
    return np.asarray(preferences + step_size * surprise * (taken - boltzmann(preferences, 1.0)))
