"""Tabular prediction: what is a policy worth, learned from its episodes by TD(0) or by whole returns (Monte Carlo).

Episodes are collected once and padded; both learners then walk over the same ones, all runs at a time, so that what
differs between them is the target alone: ``r + gamma V(s')`` or the return that was really received.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from truing.errors import ConfigError, NonFiniteError
from truing.maths.advantages import td_error
from truing.maths.returns import discounted_returns
from truing.methods.q_learning import draw, sizes
from truing.seeds import stream

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Episodes:
    """Episodes of one policy, padded to the longest: ``[n, T]``, and ``[n]`` for what an episode has once."""

    states: NDArray[np.int64]  # [n, T], s_t
    rewards: Array  # [n, T], r_{t+1}; 0 in the padding
    next_states: NDArray[np.int64]  # [n, T], s_{t+1}
    lengths: NDArray[np.int64]  # [n]
    terminated: NDArray[np.bool_]  # [n], False where the episode was cut short

    @property
    def returns(self) -> Array:
        """The undiscounted sum of rewards, ``[n]``."""
        return np.asarray(self.rewards.sum(-1))

    @property
    def inside(self) -> NDArray[np.bool_]:
        """True at the steps that were taken, ``[n, T]``."""
        return np.arange(self.states.shape[1]) < self.lengths[:, None]

    def follow_on(self, discount: float) -> Array:
        """The discount of each step, ``[n, T]``: gamma, and 0 where the episode terminated and in the padding."""
        last = np.arange(self.states.shape[1]) == self.lengths[:, None] - 1
        return np.where(self.inside & ~(last & self.terminated[:, None]), discount, 0.0)


def follow(env: Any, policy: ArrayLike, *, episodes: int, seed: int = 0, max_steps: int = 10_000) -> Episodes:
    """Episodes of a fixed policy ``[S, A]`` (probabilities); one longer than ``max_steps`` is cut short.

    Raises ConfigError for a policy of another shape or whose rows are no probabilities, NonFiniteError for a bad reward.
    """
    table = np.asarray(policy, dtype=np.float64)
    if table.shape != sizes(env):
        raise ConfigError(f"follow: the policy is {table.shape} and the environment has {sizes(env)} states and actions; they must agree")
    if not (np.isfinite(table).all() and (table >= 0).all() and np.allclose(table.sum(-1), 1)):
        raise ConfigError("follow: each row of the policy must hold probabilities that sum to 1")
    if episodes < 1 or max_steps < 1:
        raise ConfigError(f"follow: episodes={episodes}, max_steps={max_steps}: use 1 or more")
    uniform = np.random.default_rng(stream(seed, "follow.act")).random
    tracks: list[list[tuple[int, float, int]]] = []
    ends = []
    for episode in range(episodes):
        state, _ = env.reset(seed=stream(seed, "follow.world") if episode == 0 else None)
        track: list[tuple[int, float, int]] = []
        over = False
        while not over:
            next_state, reward, terminated, truncated, _ = env.step(draw(table[state], uniform()))
            track.append((state, reward, next_state))
            state = next_state
            over = terminated or truncated or len(track) >= max_steps
        if not math.isfinite(sum(reward for _, reward, _ in track)):
            raise NonFiniteError(f"follow: episode {episode} has a reward that is NaN or infinite; mend the environment")
        tracks.append(track)
        ends.append(bool(terminated))
    return _padded(tracks, ends)


def _padded(tracks: list[list[tuple[int, float, int]]], ends: list[bool]) -> Episodes:
    lengths = np.array([len(track) for track in tracks])
    states, rewards, following = (np.zeros((len(tracks), lengths.max()), dtype=kind) for kind in (np.int64, np.float64, np.int64))
    for row, track in enumerate(tracks):
        states[row, : len(track)], rewards[row, : len(track)], following[row, : len(track)] = zip(*track, strict=True)
    return Episodes(states, rewards, following, lengths, np.array(ends))


def td_prediction(episodes: Episodes, *, runs: int, alpha: float, initial: ArrayLike, discount: float = 1.0) -> Array:
    """``V(s) += alpha (r + gamma V(s') - V(s))`` after every step.

    Args:
        episodes: ``runs`` equal shares of them, each a run of its own; in a run they are learned from in order.
        initial: the first estimate, ``[S]``; a terminal state's is never used.
        discount: gamma.

    Returns the estimates before the first and after each episode, ``[runs, n / runs + 1, S]``.
    Source: Sutton and Barto, 2nd ed., equation 6.2.
    """
    return _learn(episodes, runs, alpha, initial, episodes.follow_on(discount), None)


def monte_carlo_prediction(episodes: Episodes, *, runs: int, alpha: float, initial: ArrayLike, discount: float = 1.0) -> Array:
    """``V(s) += alpha (G - V(s))`` for every visit, when the episode is over; G is the discounted return from that visit.

    Arguments and result as in `td_prediction`. Raises ConfigError where an episode was cut short: its return is not known.
    Source: Sutton and Barto, 2nd ed., equation 6.1.
    """
    cut = int((~episodes.terminated).sum())
    if cut:
        raise ConfigError(f"monte_carlo_prediction: {cut} episode(s) were cut short, so their returns are unknown; raise max_steps, or use td_prediction")
    follow_on = episodes.follow_on(discount)
    rewards, discounts = torch.from_numpy(episodes.rewards), torch.from_numpy(follow_on)
    returns = discounted_returns(rewards, torch.zeros_like(rewards), discounts, (discounts > 0).to(rewards.dtype))
    return _learn(episodes, runs, alpha, initial, follow_on, returns.numpy())


def _learn(episodes: Episodes, runs: int, alpha: float, initial: ArrayLike, discounts: Array, targets: Array | None) -> Array:
    """Both learners; without targets they are the reward plus what the next state is thought to be worth."""
    total, longest = episodes.states.shape
    if runs < 1 or total % runs:
        raise ConfigError(f"runs={runs}: {total} episodes cannot be shared out evenly among them")
    if not 0 < alpha <= 1:
        raise ConfigError(f"alpha={alpha}: a step size lies in (0, 1]")
    share = (runs, total // runs, longest)
    states, following, rewards = episodes.states.reshape(share), episodes.next_states.reshape(share), episodes.rewards.reshape(share)
    steps, discounts = alpha * episodes.inside.reshape(share), discounts.reshape(share)
    aims = None if targets is None else targets.reshape(share)
    values = np.tile(np.asarray(initial, dtype=np.float64), (runs, 1))
    history, run = [values.copy()], np.arange(runs)
    for episode in range(share[1]):
        for t in range(int(episodes.lengths.reshape(runs, -1)[:, episode].max())):
            here = (run, states[:, episode, t])
            if aims is None:
                error = td_error(rewards[:, episode, t], values[here], values[run, following[:, episode, t]], discounts[:, episode, t])
            else:
                error = aims[:, episode, t] - values[here]
            values[here] += steps[:, episode, t] * error
        history.append(values.copy())
    return np.stack(history, 1)
