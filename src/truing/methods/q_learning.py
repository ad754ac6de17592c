"""Tabular control by temporal differences: Q-learning, SARSA and expected SARSA on one page; the rule is a setting.

One loop serves the three: act, look, measure the error ``reward + discount * next value - q[state, action]``, take a
step towards it. They differ in the next value alone: the best action's, the chosen action's, or the policy's average.
Where the episode terminated nothing follows, so the discount of that step is 0; where it was cut short (truncated) the
world goes on, so the next value counts.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from truing.config import suggestion
from truing.errors import ConfigError, NonFiniteError
from truing.maths.exploration import boltzmann, epsilon_greedy
from truing.maths.tabular import expected_sarsa_error, q_learning_error, sarsa_error
from truing.seeds import stream

Array = NDArray[np.float64]
Rule = Literal["q_learning", "sarsa", "expected_sarsa"]


@dataclass(frozen=True)
class TabularRun:
    """What was learned, and how it went while learning. ``S`` states, ``A`` actions."""

    q: Array  # [S, A], the estimate of the discounted return
    returns: Array  # [episodes], the undiscounted sum of rewards
    lengths: NDArray[np.int64]  # [episodes], steps
    terminated: NDArray[np.bool_]  # [episodes], False where the episode was cut short


def sizes(env: Any) -> tuple[int, int]:
    """Number of states and of actions. Raises ConfigError unless both spaces are Discrete and count from 0."""
    found = []
    for name in ("observation_space", "action_space"):
        space = getattr(env, name)
        if not hasattr(space, "n") or int(getattr(space, "start", 0)) != 0:
            raise ConfigError(f"a table needs {name} Discrete(n) counted from 0, not {space}; give every state a number, or use a method with a network")
        found.append(int(space.n))
    return found[0], found[1]


def draw(probabilities: Array, uniform: float) -> int:
    """The action whose stretch of the cumulative probabilities holds ``uniform`` in [0, 1).

    >>> draw(np.array([0.25, 0.0, 0.75]), 0.25)
    2
    """
    edges = list(accumulate(probabilities.tolist()))
    return bisect_right(edges, uniform * edges[-1])


def learn(
    env: Any,
    *,
    rule: Rule = "q_learning",
    episodes: int = 500,
    alpha: float = 0.1,
    decay: float = 0.0,
    discount: float = 0.99,
    epsilon: float | None = None,
    temperature: float | None = None,
    initial_q: float = 0.0,
    max_steps: int = 10_000,
    seed: int = 0,
    after: Callable[[int, Array], None] | None = None,
) -> TabularRun:
    """Learn action values by acting.

    Args:
        env: a Gymnasium environment whose observations and actions are Discrete.
        rule: whose value follows: ``q_learning`` the best action's, ``sarsa`` the next action's, ``expected_sarsa`` the policy's mean.
        alpha: step size in (0, 1].
        decay: the n-th visit of a pair steps by ``alpha / n**decay``. 0 keeps alpha, which never settles where chance acts; in
            (1/2, 1] the values converge (Even-Dar and Mansour 2003), for example 0.7 with alpha 1.
        discount: gamma in [0, 1].
        epsilon: explore epsilon-greedily, over all actions. 0.1 when neither this nor temperature is given.
        temperature: explore by the softmax of ``q / temperature`` instead.
        initial_q: where every estimate starts; above what can be earned it explores by itself.
        max_steps: an episode longer than this is cut short, as the environment's own time limit would.
        seed: the run is a function of it and of the other arguments.
        after: called with the episode's number and the table after each episode, to watch it.

    Raises ConfigError for arguments that cannot be meant, NonFiniteError for a reward that is NaN or infinite.
    Source: Sutton and Barto, 2nd ed., sections 6.4 to 6.6.
    """
    explore = _exploration(epsilon, temperature)
    _check(rule, episodes, alpha, decay, discount, initial_q, max_steps)
    q = np.full(sizes(env), float(initial_q))
    visits = np.zeros(q.shape, dtype=np.int64)
    returns, lengths, terminations = np.zeros(episodes), np.zeros(episodes, dtype=np.int64), np.zeros(episodes, dtype=bool)
    uniform = np.random.default_rng(stream(seed, "act")).random

    for episode in range(episodes):
        state, _ = env.reset(seed=stream(seed, "world") if episode == 0 else None)
        action = draw(explore(q[state]), uniform())
        total, step, over = 0.0, 0, False
        while not over:
            next_state, reward, terminated, truncated, _ = env.step(action)
            step += 1
            carry = 0.0 if terminated else discount
            if rule == "q_learning":
                error = q_learning_error(q, state, action, reward, next_state, carry)
            elif rule == "expected_sarsa":
                error = expected_sarsa_error(q, state, action, reward, next_state, explore(q[next_state]), carry)
            else:
                next_action = draw(explore(q[next_state]), uniform())
                error = sarsa_error(q, state, action, reward, next_state, next_action, carry)
            if not math.isfinite(error):
                raise NonFiniteError(
                    f"episode {episode}, step {step}: the reward is {reward} and the error {error}; mend the environment, or lower alpha={alpha}"
                )
            visits[state, action] += 1
            q[state, action] += (alpha / visits[state, action] ** decay if decay else alpha) * error
            if rule != "sarsa":
                next_action = draw(explore(q[next_state]), uniform())  # by what was just learned; SARSA is bound to its choice
            total += reward
            state, action = next_state, next_action
            over = terminated or truncated or step >= max_steps
        returns[episode], lengths[episode], terminations[episode] = total, step, terminated
        if after is not None:
            after(episode, q)
    return TabularRun(q, returns, lengths, terminations)


def _exploration(epsilon: float | None, temperature: float | None) -> Callable[[Array], Array]:
    if epsilon is not None and temperature is not None:
        raise ConfigError(f"epsilon={epsilon} and temperature={temperature} are two ways to explore; give one")
    if temperature is not None:
        if not (math.isfinite(temperature) and temperature > 0):
            raise ConfigError(f"temperature={temperature}: use a number above 0; near 0 is greedy")
        return partial(boltzmann, temperature=temperature)
    epsilon = 0.1 if epsilon is None else epsilon
    if not 0 <= epsilon <= 1:
        raise ConfigError(f"epsilon={epsilon} is a probability; use a number from 0 to 1")
    return partial(epsilon_greedy, epsilon=epsilon)


def _check(rule: str, episodes: int, alpha: float, decay: float, discount: float, initial_q: float, max_steps: int) -> None:
    if rule not in get_args(Rule):
        raise ConfigError(f"rule={rule!r} does not exist{suggestion(rule, get_args(Rule))}")
    if not 0 < alpha <= 1:
        raise ConfigError(f"alpha={alpha}: a step size lies in (0, 1]; 0.1 to 0.5 is usual")
    if not 0 <= decay <= 1:
        raise ConfigError(f"decay={decay}: use 0 for a constant step size, or a power in (0.5, 1] for one that converges")
    if not 0 <= discount <= 1:
        raise ConfigError(f"discount={discount} lies outside [0, 1]; values would grow without bound")
    if not math.isfinite(initial_q):
        raise ConfigError(f"initial_q={initial_q}: use a finite number")
    for name, value in dict(episodes=episodes, max_steps=max_steps).items():
        if value < 1:
            raise ConfigError(f"{name}={value}: use 1 or more")
