"""REINFORCE on a table of preferences: play an episode, then make its actions likelier in proportion to what followed them.

The policy is ``softmax(preferences[state])``. No values are learned and nothing is bootstrapped: the return that was
really received is the whole signal. The return and the loss are the functions that train a language model.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from truing.errors import ConfigError, NonFiniteError
from truing.maths.exploration import boltzmann
from truing.maths.policy import reinforce
from truing.maths.returns import discounted_returns
from truing.methods.q_learning import TabularRun, draw, sizes
from truing.seeds import stream


def learn(
    env: Any, *, episodes: int = 500, alpha: float = 0.5, discount: float = 0.99, baseline: bool = False, max_steps: int = 10_000, seed: int = 0
) -> TabularRun:
    """Learn preferences, which take the place of ``q`` in the result; the policy is their softmax at temperature 1.

    ``preferences += alpha * grad sum_t (G_t - b) log pi(a_t | s_t)``, G_t the discounted return from step t and b, with ``baseline``,
    the mean of all earlier episodes' G_0, 0 without. An episode longer than ``max_steps`` is cut short; what would have followed counts as 0.

    Raises ConfigError for arguments that cannot be meant, NonFiniteError for a reward that is NaN or infinite.
    Source: Williams 1992; Sutton and Barto, 2nd ed., section 13.3 (whose extra factor gamma^t is left out, as is usual).
    """
    if episodes < 1 or max_steps < 1:
        raise ConfigError(f"episodes={episodes}, max_steps={max_steps}: use 1 or more")
    if not (math.isfinite(alpha) and alpha > 0):
        raise ConfigError(f"alpha={alpha}: use a finite step size above 0")
    if not 0 <= discount <= 1:
        raise ConfigError(f"discount={discount} lies outside [0, 1]")
    preferences = torch.zeros(sizes(env), dtype=torch.float64, requires_grad=True)
    table = preferences.detach().numpy()  # the same memory
    returns, lengths, terminations = np.zeros(episodes), np.zeros(episodes, dtype=np.int64), np.zeros(episodes, dtype=bool)
    uniform = np.random.default_rng(stream(seed, "act")).random
    level = 0.0
    for episode in range(episodes):
        state, _ = env.reset(seed=stream(seed, "world") if episode == 0 else None)
        states: list[int] = []
        actions: list[int] = []
        rewards: list[float] = []
        over = False
        while not over:
            action = draw(boltzmann(table[state], 1.0), uniform())
            states.append(state)
            actions.append(action)
            state, reward, terminated, truncated, _ = env.step(action)
            rewards.append(reward)
            over = terminated or truncated or len(rewards) >= max_steps
        received = torch.tensor(rewards, dtype=torch.float64)
        if not torch.isfinite(received).all():
            raise NonFiniteError(f"episode {episode} has a reward that is NaN or infinite; mend the environment")
        inner = torch.ones_like(received)
        inner[-1] = 0  # nothing follows the last step
        follow_on = discounted_returns(received, torch.zeros_like(received), inner * discount, inner)
        logp = torch.log_softmax(preferences[states], -1)[range(len(actions)), actions]
        loss = reinforce(logp, follow_on - level if baseline else follow_on).sum()
        (gradient,) = torch.autograd.grad(loss, preferences)
        with torch.no_grad():
            preferences -= alpha * gradient
        level += (float(follow_on[0]) - level) / (episode + 1)
        returns[episode], lengths[episode], terminations[episode] = float(received.sum()), len(rewards), terminated
    return TabularRun(table.copy(), returns, lengths, terminations)
