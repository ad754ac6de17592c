"""Bandits on one page: choose an arm, see its reward, learn. One code path for one problem and for thousands side by side.

Four agents differ in how estimates become a choice, and in what a reward changes; the rules themselves are `maths.exploration`
and `maths.tabular`. Sutton and Barto, 2nd ed., chapter 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field

from truing.config import Frozen, Rate, Share
from truing.errors import ConfigError
from truing.maths.exploration import boltzmann, epsilon_greedy, upper_confidence
from truing.maths.tabular import gradient_bandit, toward
from truing.seeds import stream

Array = NDArray[np.float64]
Above = Annotated[float, Field(gt=0)]


class Estimating(Frozen):
    """What the agents have that estimate each arm's value: ``Q <- Q + step (reward - Q)`` for the arm that was pulled."""

    alpha: Rate | None = Field(None, description="constant step size, which forgets old rewards; null = 1 / (pulls of the arm), the sample average")
    initial: float = Field(0.0, description="first estimate of every arm; far above any reward it is optimistic, and even a greedy agent tries everything")


class EpsilonGreedy(Estimating):
    """The best estimate; any arm at all, a share epsilon of the time (section 2.2). epsilon = 0 is greedy."""

    epsilon: Share = 0.1

    def probabilities(self, estimates: Array, counts: Array, step: int) -> Array:
        return epsilon_greedy(estimates, self.epsilon)


class Softmax(Estimating):
    """Arms in proportion to exp(estimate / temperature): bad arms are tried less than middling ones."""

    temperature: Above = 0.1

    def probabilities(self, estimates: Array, counts: Array, step: int) -> Array:
        return boltzmann(estimates, self.temperature)


class UCB(Estimating):
    """The largest upper confidence bound, ``Q + c sqrt(ln t / N)``; an arm never tried comes first (section 2.7)."""

    c: Annotated[float, Field(ge=0)] = 2.0

    def probabilities(self, estimates: Array, counts: Array, step: int) -> Array:
        return epsilon_greedy(upper_confidence(estimates, counts, step, self.c), 0.0)


class Gradient(Frozen):
    """A softmax over preferences, moved by policy gradient (section 2.8): one step of REINFORCE a pull. Its estimates are the preferences."""

    alpha: Above = 0.1
    baseline: bool = Field(True, description="compare a reward with the mean of those before it; without, with 0")

    def probabilities(self, estimates: Array, counts: Array, step: int) -> Array:
        return boltzmann(estimates, 1.0)


Agent = EpsilonGreedy | Softmax | UCB | Gradient


@dataclass(frozen=True)
class BanditRun:
    """What happened. ``N`` problems of ``k`` arms; a *share* is over the problems."""

    rewards: Array  # [steps], mean over the problems; [steps, N] with per_problem
    optimal: NDArray[Any]  # [steps], share of pulls of a best arm; [steps, N] of True and False with per_problem
    counts: Array  # [N, k], how often each arm was pulled
    estimates: Array  # [N, k], what the agent thinks at the end: values, or a gradient bandit's preferences


def testbed(problems: int, seed: int, *, arms: int = 10, centre: float = 0.0) -> Array:
    """True values ``[problems, arms]`` drawn from N(centre, 1): the k-armed testbed (section 2.3)."""
    for name, value in dict(problems=problems, arms=arms).items():
        if value < 1:
            raise ConfigError(f"{name}={value}: use 1 or more")
    return np.random.default_rng(stream(seed, "bandit.problems")).normal(centre, 1.0, (problems, arms))


def play(means: ArrayLike, agent: Agent, steps: int, seed: int, *, noise: float = 1.0, per_problem: bool = False) -> BanditRun:
    """One agent on N problems at once, each learned alone; a pull of arm a of problem n pays ``N(means[n, a], noise^2)``.

    Args:
        means: true values ``[N, k]``, or ``[k]`` for one problem.
        steps: pulls on each problem.
        seed: fixes every draw. Agents that share it meet the same luck: the noise of pull t of problem n is one number for all of
            them, so that differences between agents are less noisy than the agents.
        noise: standard deviation of a reward about its arm's mean.
        per_problem: keep rewards and optimal of each problem, ``[steps, N]``, for intervals over problems.

    Equal bests are chosen between at random. Raises ConfigError for means that are not finite numbers ``[N, k]``, steps < 1, noise < 0.
    """
    q = np.atleast_2d(np.asarray(means, np.float64))
    _check(q, steps, noise)
    (n, k), every = q.shape, np.arange(len(q))
    best: NDArray[np.bool_] = q == q.max(-1, keepdims=True)
    # One column an arm: what runs over the arms (max, sum) then adds long columns instead of many short rows, three times as fast.
    estimates, counts = np.full((k, n), getattr(agent, "initial", 0.0)).T, np.zeros((k, n)).T
    average = np.zeros(n)  # of all rewards so far
    shape = (steps, n) if per_problem else (steps,)
    rewards, optimal = np.empty(shape), np.empty(shape, bool if per_problem else float)
    choice, luck = (np.random.default_rng(stream(seed, f"bandit.{purpose}")) for purpose in ("choice", "noise"))

    for t in range(steps):
        pi = agent.probabilities(estimates, counts, t + 1)
        # the inverse of the cumulative distribution, at a uniform number; the last bound is 1 whatever rounding says
        arm = (pi.cumsum(-1)[:, :-1] <= choice.random((n, 1))).sum(-1)
        reward = q[every, arm] + noise * luck.standard_normal(n)
        hit = best[every, arm]
        rewards[t], optimal[t] = (reward, hit) if per_problem else (reward.mean(), hit.mean())
        counts[every, arm] += 1
        if isinstance(agent, Gradient):
            baseline = (average if t else reward) if agent.baseline else np.zeros(n)  # the first reward is its own baseline
            estimates = gradient_bandit(estimates, arm, reward, baseline, agent.alpha)
            average = toward(average, reward, 1 / (t + 1))
        else:
            size = agent.alpha or 1 / counts[every, arm]
            estimates[every, arm] = toward(estimates[every, arm], reward, size)
    return BanditRun(rewards, optimal, np.ascontiguousarray(counts), np.ascontiguousarray(estimates))


def _check(q: Array, steps: int, noise: float) -> None:
    if q.ndim != 2 or not q.size:
        raise ConfigError(f"means {q.shape}: give the true value of each arm, [k] for one problem or [N, k] for N")
    if not np.isfinite(q).all():
        where = tuple(int(i) for i in np.argwhere(~np.isfinite(q))[0])
        raise ConfigError(f"means[{where[0]}, {where[1]}] is {q[where]}; every true value must be a finite number")
    if steps < 1:
        raise ConfigError(f"steps={steps}: use 1 or more")
    if not (np.isfinite(noise) and noise >= 0):
        raise ConfigError(f"noise={noise}: it is a standard deviation; use a finite number, 0 or more")
