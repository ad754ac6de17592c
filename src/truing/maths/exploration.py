"""Exploration: how a table of action values becomes a choice. Each rule gives numbers over the actions; drawing from them is the caller's. NumPy only."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def epsilon_greedy(q: ArrayLike, epsilon: float) -> Array:
    """Probabilities that explore a share epsilon of the time: ``pi(a) = epsilon / A + (1 - epsilon) [a is best] / ties``.

    Exploration is uniform over *all* actions, the best one included, so the best is chosen with 1 - epsilon + epsilon / A.
    Equally good actions share the greedy part evenly.

    Args:
        q: action values ``[..., A]``; the result has the same shape.
        epsilon: the share in [0, 1]; 0 is greedy, 1 uniform.

    Raises ValueError when epsilon lies outside [0, 1] or q holds NaN.
    Source: Sutton and Barto, 2nd ed., section 2.2.

    >>> epsilon_greedy([1.0, 3.0, 3.0, 0.0], 0.2).round(6).tolist()  # 0.2 / 4 each, and 0.8 / 2 for either of the best
    [0.05, 0.45, 0.45, 0.05]
    """
    if not 0 <= epsilon <= 1:
        raise ValueError(f"epsilon_greedy: epsilon={epsilon} lies outside [0, 1]; it is the share of choices that explore")
    q = np.asarray(q, np.float64)
    best = q == q.max(-1, keepdims=True)
    ties = best.sum(-1, keepdims=True)
    if not ties.all():  # NaN equals nothing, itself included
        raise ValueError("epsilon_greedy: q holds NaN; mend the rewards or the step size that led there")
    return np.asarray(epsilon / q.shape[-1] + (1 - epsilon) * best / ties)


def boltzmann(preferences: ArrayLike, temperature: float) -> Array:
    """Softmax probabilities: ``pi(a) = exp(H(a) / tau) / sum_b exp(H(b) / tau)``.

    As tau goes to 0 the choice becomes greedy, as it grows uniform. Any finite preferences are safe: the largest exponent is 0.

    Args:
        preferences: action values or preferences ``[..., A]``; the result has the same shape.
        temperature: tau > 0, in the unit of the preferences.

    Raises ValueError when the temperature is not above 0 or a preference is NaN or +inf (-inf means never).
    Source: Sutton and Barto, 2nd ed., equation 2.11 (tau = 1).

    >>> boltzmann([0.0, np.log(3.0)], 1.0).round(6).tolist()  # odds of 1 to 3
    [0.25, 0.75]
    """
    if not temperature > 0:
        raise ValueError(f"boltzmann: temperature={temperature} must be above 0; a small one such as 0.01 is nearly greedy")
    preferences = np.asarray(preferences, np.float64)
    top = preferences.max(-1, keepdims=True)
    if not np.isfinite(top).all():
        raise ValueError("boltzmann: the largest preference of a row is NaN or infinite; mend the rewards or the step size that led there")
    with np.errstate(over="ignore"):  # an exponent that overflows does so to -inf, which is right
        weights = np.exp((preferences - top) / temperature)
    return np.asarray(weights / weights.sum(-1, keepdims=True))


def upper_confidence(q: ArrayLike, counts: ArrayLike, step: float, c: float) -> Array:
    """Optimistic scores: ``Q(a) + c sqrt(ln t / N(a))``, and +inf for an action never tried. The choice is the largest.

    Args:
        q: estimated values ``[..., A]``.
        counts: N(a), how often each was tried, ``[..., A]``.
        step: t, the number of the choice to be made, 1 or more.
        c: width of the confidence bound, 0 or more, in the unit of the rewards.

    Raises ValueError when shapes differ, a count is negative, step < 1 or c < 0.
    Source: Sutton and Barto, 2nd ed., equation 2.10; Auer, Cesa-Bianchi and Fischer 2002.

    >>> upper_confidence([1.0, 2.0, 0.0], [1, 4, 0], step=math.e**4, c=0.5)  # 1 + sqrt(4) / 2, 2 + sqrt(1) / 2, untried
    array([2. , 2.5, inf])
    """
    q, counts = np.asarray(q, np.float64), np.asarray(counts, np.float64)
    if q.shape != counts.shape:
        raise ValueError(f"upper_confidence: q {q.shape} and counts {counts.shape} differ in shape; both are [..., A]")
    if not (counts >= 0).all():
        raise ValueError(f"upper_confidence: a count is {counts.min()}; counts are numbers of tries, 0 or more")
    if not step >= 1 or not c >= 0:
        raise ValueError(f"upper_confidence: step={step} must be 1 or more (the first choice is step 1) and c={c} 0 or more")
    width = c * np.sqrt(math.log(step) / np.maximum(counts, 1))
    return np.where(counts > 0, q + width, np.inf)
