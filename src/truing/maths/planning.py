"""Planning: exact values of a finite Markov decision process whose transitions are known. NumPy only.

Value iteration, policy iteration and the linear solve answer the same question by different roads, so each checks the others.
"""

from __future__ import annotations

from itertools import count
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
_SUM = 2.0**-30  # how far the sum of a row's probabilities may be from 1: about 1e-9


class Mdp(NamedTuple):
    """A finite Markov decision process of S states and A actions.

    The value of a terminal state is 0 and nothing follows it: its rows of transitions and rewards are never read.
    """

    transitions: Array
    """P(s' | s, a), ``[S, A, S]``."""
    rewards: Array
    """The expected reward of action a in state s, ``[S, A]``."""
    terminal: NDArray[np.bool_]
    """``[S]``."""


def check(mdp: Mdp) -> Mdp:
    """The same process, its rows of terminal states set to 0, so that their value comes out as 0.

    Raises ValueError, naming state and action, when shapes differ, a probability is negative or NaN, a row of a non-terminal
    state does not sum to 1 within 2^-30, or a reward is NaN or infinite.

    >>> check(Mdp(np.array([[[0.5, 0.6]], [[0.0, 1.0]]]), np.zeros((2, 1)), np.array([False, True])))
    Traceback (most recent call last):
    ...
    ValueError: Mdp: the probabilities of transitions[state 0, action 0] sum to 1.1; each row must sum to 1
    """
    transitions, rewards, terminal = np.asarray(mdp.transitions, np.float64), np.asarray(mdp.rewards, np.float64), np.asarray(mdp.terminal)
    states = rewards.shape[:1]
    if rewards.ndim != 2 or not rewards.size or transitions.shape != rewards.shape + states or terminal.shape != states:
        shapes = f"transitions {transitions.shape}, rewards {rewards.shape}, terminal {terminal.shape}"
        raise ValueError(f"Mdp: {shapes}; S states and A actions need [S, A, S], [S, A] and [S]")
    if terminal.dtype != np.bool_:
        raise ValueError(f"Mdp: terminal holds {terminal.dtype}; it says True or False of each state")
    alive = ~terminal[:, None]
    _rows("Mdp: the probabilities of transitions", transitions, alive)
    if (wrong := alive & ~np.isfinite(rewards)).any():
        raise ValueError(f"Mdp: rewards[{_place(wrong)}] is {rewards[wrong][0]}; every reward must be finite")
    return Mdp(np.where(alive[..., None], transitions, 0.0), np.where(alive, rewards, 0.0), terminal)


def action_values(mdp: Mdp, values: ArrayLike, discount: float) -> Array:
    """One-step look-ahead ``[S, A]``: ``Q(s, a) = r(s, a) + discount * sum_s' P(s' | s, a) V(s')``, and 0 in terminal states.

    Args:
        values: V ``[S]``; those of terminal states count as 0.
        discount: gamma in [0, 1].

    Raises ValueError for a malformed process (see `check`), discount outside [0, 1], or values of another shape or not finite.
    Source: Sutton and Barto, 2nd ed., equation 4.6.

    >>> mdp = Mdp(np.array([[[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]] * 3), np.array([[1.0, 2.0]] * 3), np.array([False, False, True]))
    >>> action_values(mdp, [8.0, 4.0, 9.0], 0.5)  # 1 + 0.5 * 4 by the first action; the second ends with its reward of 2
    array([[3., 2.],
           [3., 2.],
           [0., 0.]])
    """
    mdp = check(mdp)
    _discount(discount)
    values = np.asarray(values, np.float64)
    if values.shape != mdp.terminal.shape or not np.isfinite(values).all():
        raise ValueError(f"action_values: values {values.shape} must be one finite number for each of the {len(mdp.terminal)} states")
    return _backup(mdp, np.where(mdp.terminal, 0.0, values), discount)


def policy_evaluation(mdp: Mdp, policy: ArrayLike, discount: float) -> Array:
    """The exact value ``[S]`` of a policy, from ``(I - discount P_pi) V = r_pi`` over the non-terminal states.

    Args:
        policy: pi(a | s), ``[S, A]``; the rows of terminal states are not read.
        discount: gamma in [0, 1]. 1 is for policies that reach a terminal state from everywhere; others have no finite value.

    Raises ValueError for a malformed process or policy, discount outside [0, 1], or discount 1 where states never end.
    Source: Sutton and Barto, 2nd ed., equation 4.4.

    >>> mdp = Mdp(np.array([[[0.5, 0.5]]] * 2), np.array([[-1.0]] * 2), np.array([False, True]))
    >>> policy_evaluation(mdp, [[1.0], [1.0]], 1.0).tolist()  # V = -1 + V / 2: two steps on average
    [-2.0, 0.0]
    """
    mdp = check(mdp)
    _discount(discount)
    pi = np.asarray(policy, np.float64)
    if pi.shape != mdp.rewards.shape:
        shape = f"{pi.shape} must hold probabilities [S, A] = {mdp.rewards.shape}"
        raise ValueError(f"policy_evaluation: policy {shape}; for one action a state: np.eye(A)[actions]")
    alive = ~mdp.terminal
    _rows("policy_evaluation: the probabilities of policy", pi, alive)
    step = np.einsum("sa,sat->st", pi[alive], mdp.transitions[alive])
    if discount == 1:
        _ends(step, mdp.terminal)
    values = np.zeros(len(alive))
    inside = step[:, alive]
    values[alive] = np.linalg.solve(np.eye(len(inside)) - discount * inside, (pi * mdp.rewards)[alive].sum(1))
    return values


def value_iteration(mdp: Mdp, discount: float, tolerance: float = 1e-8) -> Array:
    """The optimal values ``[S]``, by ``V <- max_a Q(s, a)`` until none can be further than tolerance from the exact one.

    A sweep T shrinks distances by gamma, and rounding adds at most rho, so that ``|V' - V*| <= (gamma |V' - V| + rho) / (1 - gamma)``
    in the largest component; the sweeps stop when the right side is within tolerance.

    Args:
        discount: gamma in [0, 1); at 1 the bound says nothing, use `policy_iteration`.
        tolerance: the largest error of any value, in the unit of the rewards.

    The best policy is ``greedy(action_values(mdp, values, discount))``.
    Raises ValueError for a malformed process, discount outside [0, 1), or a tolerance that float64 cannot promise.
    Source: Sutton and Barto, 2nd ed., equation 4.10; the bound: Puterman 1994, theorem 6.3.1.

    >>> mdp = Mdp(np.array([[[1.0, 0.0], [0.0, 1.0]]] * 2), np.array([[1.0, 5.0]] * 2), np.array([False, True]))
    >>> value_iteration(mdp, 0.9).round(6).tolist()  # 1 for ever is worth 1 / (1 - 0.9) = 10, more than 5 once
    [10.0, 0.0]
    """
    mdp = check(mdp)
    _discount(discount)
    if discount == 1:
        raise ValueError("value_iteration: discount=1 gives no bound on the error; use policy_iteration, or a discount below 1")
    if not tolerance > 0:
        raise ValueError(f"value_iteration: tolerance={tolerance} must be above 0; 1e-8 is the default")
    # Each entry of a sweep is a sum of this many products; zeros add no rounding.
    terms = np.count_nonzero(mdp.transitions, -1).max() + 2
    largest, goal = np.abs(mdp.rewards).max(), tolerance * (1 - discount)
    values = np.zeros(len(mdp.terminal))
    for sweep in count(1):
        before, values = values, _backup(mdp, values, discount).max(1)
        change = np.abs(values - before).max()
        if sweep == 1:
            first = change
        rounding = terms * np.finfo(np.float64).eps * (largest + discount * np.abs(values).max())
        if discount * change + rounding <= goal:
            break
        if discount**sweep * first < rounding * (1 - discount):  # all exact changes still to come add up to less than the rounding
            error = (discount * change + rounding) / (1 - discount)
            raise ValueError(f"value_iteration: tolerance={tolerance} is finer than float64 can promise here; use {2 * error:.1g}, or policy_iteration")
    return values


def policy_iteration(mdp: Mdp, discount: float) -> Array:
    """The optimal values ``[S]``, exact up to rounding: evaluate a policy, take the best action everywhere, repeat.

    Each round's values are at least the last round's in every state, and there are finitely many policies. The start is
    the uniform policy.

    Args:
        discount: gamma in [0, 1]. 1 needs a terminal state within reach of every state and a loss in going round for ever.

    The best policy is ``greedy(action_values(mdp, values, discount))``.
    Raises ValueError for a malformed process, discount outside [0, 1], or discount 1 where a policy met on the way never ends.
    Source: Howard 1960; Sutton and Barto, 2nd ed., section 4.3.

    >>> mdp = Mdp(np.array([[[1.0, 0.0], [0.0, 1.0]]] * 2), np.array([[-1.0, -5.0]] * 2), np.array([False, True]))
    >>> policy_iteration(mdp, 1.0).tolist()  # waiting costs 1 a step and leads nowhere; leaving costs 5 once
    [-5.0, 0.0]
    """
    mdp = check(mdp)
    states, actions = mdp.rewards.shape
    values = policy_evaluation(mdp, np.full((states, actions), 1 / actions), discount)
    while True:
        best = np.eye(actions)[_backup(mdp, values, discount).argmax(1)]
        better = policy_evaluation(mdp, best, discount)
        if better.sum() <= values.sum():
            return values
        values = better


def greedy(q: ArrayLike, tolerance: float = 1e-9) -> Array:
    """The greedy policy ``[..., A]``: actions within tolerance of the best share its probability evenly.

    The tolerance keeps ties that rounding has split, so that a drawn policy shows every best action.

    Args:
        q: action values ``[..., A]``.
        tolerance: 0 or more, in the unit of the rewards.

    Raises ValueError when q holds NaN or tolerance is negative.

    >>> greedy([[1.0, 2.0], [3.0, 3.0]]).tolist()
    [[0.0, 1.0], [0.5, 0.5]]
    """
    q = np.asarray(q, np.float64)
    if np.isnan(q).any() or not tolerance >= 0:
        raise ValueError(f"greedy: q must hold no NaN and tolerance={tolerance} be 0 or more")
    best = q >= q.max(-1, keepdims=True) - tolerance
    return np.asarray(best / best.sum(-1, keepdims=True))


def _backup(mdp: Mdp, values: Array, discount: float) -> Array:
    return np.asarray(mdp.rewards + discount * (mdp.transitions @ values))


def _discount(discount: float) -> None:
    if not 0 <= discount <= 1:
        raise ValueError(f"discount={discount} lies outside [0, 1]; 0.9 to 0.999 are usual")


def _rows(name: str, rows: Array, read: NDArray[np.bool_]) -> None:
    """Refuse the first row ``[..., n]`` that is read and is not a distribution."""
    if (wrong := read & ~(rows >= 0).all(-1)).any():
        raise ValueError(f"{name}[{_place(wrong)}] hold {rows[wrong][0].min():g}; none may be negative or NaN")
    if (wrong := read & ~(abs(rows.sum(-1) - 1) <= _SUM)).any():
        raise ValueError(f"{name}[{_place(wrong)}] sum to {rows[wrong][0].sum():g}; each row must sum to 1")


def _place(wrong: NDArray[np.bool_]) -> str:
    return ", ".join(f"{word} {index}" for word, index in zip(("state", "action"), np.argwhere(wrong)[0], strict=False))


def _ends(step: Array, terminal: NDArray[np.bool_]) -> None:
    """Refuse a policy under which some non-terminal state never ends. ``step`` is ``[non-terminal states, S]``."""
    ends = terminal.copy()
    while (new := (step[:, ends] > 0).any(1) & ~ends[~terminal]).any():
        ends[np.flatnonzero(~terminal)[new]] = True
    if not ends.all():
        stuck = np.flatnonzero(~ends)
        raise ValueError(f"discount=1: under this policy {len(stuck)} state(s), first state {stuck[0]}, never reach a terminal state; use a discount below 1")
