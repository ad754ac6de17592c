"""A random walk on which every number about an advantage is known exactly.

The textbook's random walk (Sutton and Barto, example 6.2, with any number of states): N states in a row, a step left or
right, +1 at the right end and -1 at the left one, gamma = 1. Under the policy that goes either way with probability one
half the values lie on a straight line, V(s) = 2 s / (N + 1) - 1, so the advantage of right is +2 / (N + 1), and of left
its negative, in every state.

The critic is imperfect: its value of each state is off by an independent N(0, critic_error^2). What a policy gradient
sees of an advantage is ``score * A``, the score being +1 for right and -1 for left: an offset that both actions share
cancels from its mean and stays in its variance. So the estimate of a state is ``score * GAE`` averaged over a batch of
trajectories, and its target is 2 / (N + 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from truing.maths.advantages import gae
from truing.maths.stats import Array
from truing.seeds import stream

BLOCK = 4000  # walks handled at once, for memory


class Moments(NamedTuple):
    """Squared bias and variance of one trajectory's estimate, mean over the states, at each lambda."""

    bias2: Array
    variance: Array

    def mse(self, batch: int) -> Array:
        return self.bias2 + self.variance / batch


def values(states: int) -> Array:
    """The exact value function, with the two ends, ``[N + 2]``; an end is worth 0: the reward came on the way in.

    >>> values(3).tolist()
    [0.0, -0.5, 0.0, 0.5, 0.0]
    """
    v = 2.0 * np.arange(states + 2) / (states + 1) - 1.0
    v[[0, -1]] = 0.0
    return v


def critic(states: int, error: float, seed: int) -> Array:
    """The value function of a critic: wrong by ``error`` times a standard normal pattern that is this seed's own."""
    v = values(states)
    v[1:-1] += error * np.random.default_rng(stream(seed, "gae critic")).standard_normal(states)
    return v


def exact(v: Array, lambdas: Sequence[float] | Array) -> Moments:
    """Bias and variance without sampling. With X the estimate from a state on, delta its first TD error,

    ``E[X] = E[delta] + lam P E[X]`` and ``E[X^2] = E[delta^2 + 2 lam delta E[X']] + lam^2 P E[X^2]``: two linear systems.
    """
    n = len(v) - 2
    inner = np.arange(1, n + 1)
    following = np.stack([inner - 1, inner + 1], 1)
    reward = np.where(following == n + 1, 1.0, np.where(following == 0, -1.0, 0.0))
    delta = reward + v[following] - v[inner, None]
    move = 0.5 * (np.eye(n, k=-1) + np.eye(n, k=1))
    bias2, variance = [], []
    for lam in lambdas:
        first = np.linalg.solve(np.eye(n) - lam * move, delta.mean(1))
        ahead = np.pad(first, 1)[following]
        second = np.linalg.solve(np.eye(n) - lam**2 * move, (delta**2 + 2 * lam * delta * ahead).mean(1))
        mean = delta + lam * ahead
        seen = (mean[:, 1] - mean[:, 0]) / 2
        square = (delta**2 + 2 * lam * delta * ahead + lam**2 * np.pad(second, 1)[following]).mean(1)
        bias2.append(np.mean((seen - 2 / (n + 1)) ** 2))
        variance.append(max(0.0, float(np.mean(square - seen**2))))  # at lambda 0 a rounding may fall below 0
    return Moments(np.array(bias2), np.array(variance))


def walk(states: int, trajectories: int, seed: int) -> list[np.ndarray]:
    """``trajectories`` walks from every state and with either first action, in blocks ``[walks, T + 1]`` of the states they are in.

    Order: trajectory, state, action (left, right). A walk that has ended stays where it is.
    """
    rng = np.random.default_rng(stream(seed, "gae walks"))
    together = max(1, BLOCK // (2 * states))
    return [_block(states, min(together, trajectories - done), rng) for done in range(0, trajectories, together)]


def _block(n: int, trajectories: int, rng: np.random.Generator) -> np.ndarray:
    at = np.tile(np.repeat(np.arange(1, n + 1), 2), trajectories)
    step = np.tile([-1, 1], n * trajectories)
    path = [at]
    while ((at > 0) & (at <= n)).any():
        at = np.where((at > 0) & (at <= n), at + step, at)
        path.append(at)
        step = rng.integers(0, 2, len(at)) * 2 - 1
    return np.stack(path, 1).astype(np.int8)


def estimates(walks: list[np.ndarray], v: Array, lam: float) -> Array:
    """``score * GAE`` of every walk's first step, ``[trajectories, states, 2]``, by ``truing.maths.advantages.gae``."""
    end, found = len(v) - 1, []
    for path in walks:
        state, following = path[:, :-1], path[:, 1:]
        alive = torch.from_numpy((following > 0) & (following < end)).double()  # 0 at an end, which terminates, and in the padding behind it
        reward = np.where(state == following, 0.0, (following == end) * 1.0 - (following == 0))
        first = gae(torch.from_numpy(reward), torch.from_numpy(v[state]), torch.from_numpy(v[following]), alive, alive, lam)[:, 0]
        found.append(first.numpy().reshape(-1, len(v) - 2, 2))
    return np.concatenate(found) * np.array([-1.0, 1.0])


def measured(found: Array) -> tuple[float, float]:
    """Squared bias and variance of ``estimates``, mean over the states; each is freed of the noise of the means it is made from."""
    n = found.shape[1]
    within = found.var(0, ddof=1).mean(1)
    noise = within / (2 * len(found))  # of the mean of both actions, and of half their difference
    left, right = found.mean(0).T
    bias2 = ((left + right) / 2 - 2 / (n + 1)) ** 2 - noise
    across = ((left - right) / 2) ** 2 - noise  # the offset that both actions share
    return float(bias2.mean()), float((within + across).mean())


def standard_score(sample: Array, expected: float) -> float:
    """How many standard errors the mean of ``[trajectories, states, 2]`` lies from what it should be."""
    gap = float(sample.mean() - expected)
    error = float(np.sqrt((sample.var(0, ddof=1) / len(sample)).sum())) / sample[0].size
    if error < 1e-12:  # lambda 0 with a fixed first step: nothing is random
        return 0.0 if abs(gap) < 1e-12 else float("inf")
    return gap / error
