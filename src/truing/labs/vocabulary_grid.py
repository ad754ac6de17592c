"""PPO on a grid, by `methods.ppo_control.ppo`, and one episode recorded in terms that a language model has too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from torch import Tensor

from truing.envs.gridworld import GridWorld
from truing.envs.vector import make
from truing.maths.advantages import td_error
from truing.maths.returns import discounted_returns
from truing.methods.control import Trained, begin, evaluate
from truing.methods.ppo_control import PPOControl, ppo
from truing.methods.ppo_update import Bounds, Past, Present, Seen, estimate, objective
from truing.models.networks import Networks
from truing.rollout.steps import Collector, Steps

LIMIT = 50  # moves after which an episode is cut
WALKS = 32  # recorded
# what both runs are told alike
SHARED: dict[str, Any] = dict(epochs=4, minibatches=2, clip=0.2, value_clip=None, value_weight=0.5, entropy=0.0, lam=0.95)


class Run(NamedTuple):
    """What one training looked like: the mean return of each rollout's episodes, its log, and the policy tried before and after."""

    curve: list[float]
    log: list[dict[str, Any]]
    before: float
    after: float


@dataclass(frozen=True)
class Episode:
    """One episode, step by step: the same record of a walk and of a completion. Every list has one entry an action.

    Attributes:
        states, actions: as the policy meets them: a cell's index, or all token ids so far; a move, or a token id.
        chances: the policy's probabilities of every action in each state, ``[T, A]``.
        penalties: what of each reward is the KL penalty (0 on the grid).
        advantages: not whitened; ``targets`` is advantage + value.
        terminated: it ended by itself, at the goal or with the end-of-turn token.
        score: what it was worth to the task: the sum of rewards on the grid, the completion's score.
    """

    states: list[Any]
    actions: list[int]
    chances: np.ndarray
    logp: list[float]
    rewards: list[float]
    penalties: list[float]
    values: list[float]
    next_values: list[float]
    discount: list[float]
    carry: list[float]
    advantages: list[float]
    whitened: list[float]
    terminated: bool
    score: float

    def __len__(self) -> int:
        return len(self.actions)

    @property
    def targets(self) -> list[float]:
        return [a + v for a, v in zip(self.advantages, self.values, strict=True)]

    @property
    def td_errors(self) -> list[float]:
        return [td_error(*parts) for parts in zip(self.rewards, self.values, self.next_values, self.discount, strict=True)]

    @property
    def returns(self) -> list[float]:
        """The discounted return from each step on."""
        made: list[float] = discounted_returns(*(torch.tensor(x, dtype=torch.float64) for x in (self.rewards, self.next_values, self.discount, self.carry))).tolist()
        return made

    @property
    def telling(self) -> int:
        """The step of the least likely action: the one to look at."""
        return int(np.argmin(self.logp))


# -- training -----------------------------------------------------------------------------------------------------------


@cache
def environment(size: int) -> str:
    """The id of a grid of this size, which it registers."""
    name = f"truing-labs/Grid{size}-v0"
    gymnasium.register(name, entry_point="truing.envs.gridworld:GridWorld", kwargs={"rows": size, "columns": size}, max_episode_steps=LIMIT)
    return name


def settings(size: int, rollouts: int) -> PPOControl:
    count, length = 8, LIMIT + 14  # every environment ends an episode in every rollout
    return PPOControl(environment=environment(size), environments=count, length=length, total_steps=count * length * rollouts, discount=0.99, hidden=(32, 32), lr=1e-3, schedule="constant", **SHARED)


def train(size: int, rollouts: int, seed: int, *, tried: bool = True) -> tuple[Run, Networks]:
    """Train; and try the policy before and after on 100 episodes, with its own chances."""
    config = settings(size, rollouts)
    trained = ppo(config, seed)
    of_rollout = (np.array(trained.steps) - 1) // (config.environments * config.length)
    curve = [float(np.mean(np.array(trained.returns)[of_rollout == k])) for k in range(rollouts)]
    environments, fresh = begin(config.environment, 1, seed, config.hidden, "tanh")
    environments.close()
    before, after = (float(np.mean(evaluate(t, config.environment, 100, seed=seed, sample=True))) if tried else float("nan") for t in (Trained(fresh), trained))
    return Run(curve, trained.log, before, after), trained.networks


def world(size: int) -> GridWorld:
    return GridWorld(size, size)


# -- recording ----------------------------------------------------------------------------------------------------------


def walks(size: int, networks: Networks, seed: int, count: int = WALKS) -> list[Steps]:
    """Whole episodes, one after another, each ``[1, T]``."""
    with make(environment(size), 1, seed) as environments:
        collector = Collector(environments, networks, discount=settings(size, 1).discount, seed=seed)
        return [collector.collect(None) for _ in range(count)]


def episodes(taken: Sequence[Steps], networks: Networks) -> list[Episode]:
    """Walks as episodes; advantages are whitened over all of them, as over a rollout."""
    steps = end_to_end(taken)
    made = _estimate(steps)
    with torch.no_grad():
        chances = networks(steps.observations)[0].softmax(-1)[0].numpy()
    found, first = [], 0
    for walk in taken:
        here = slice(first, first + walk.rewards.shape[1])
        first = here.stop
        cut = lambda x, here=here: x[0, here].tolist()  # noqa: E731
        rewards = cut(steps.rewards)
        found.append(
            Episode(
                cut(steps.observations), cut(steps.actions), chances[here], cut(steps.logp), rewards, [0.0] * len(rewards), cut(steps.values), cut(steps.next_values),
                cut(steps.discount), cut(steps.carry), cut(made.targets - steps.values), cut(made.advantages), bool(walk.discount[0, -1] == 0), sum(rewards),
            )
        )  # fmt: skip
    return found


def _estimate(steps: Steps) -> Any:
    counted = torch.ones_like(steps.rewards, dtype=torch.bool)
    return estimate(steps.rewards, steps.values, steps.next_values, steps.discount, steps.carry, SHARED["lam"], counted)


# -- one rollout, two layouts -------------------------------------------------------------------------------------------


def end_to_end(taken: Sequence[Steps]) -> Steps:
    """Walks laid end to end in one row, as a collector lays them."""
    names = ("observations", "actions", "rewards", "logp", "entropy", "values", "next_values", "discount", "carry")
    return Steps(**{name: torch.cat([getattr(w, name) for w in taken], 1) for name in names}, episodes=[])


def loss_as_moves(taken: Sequence[Steps], now: Networks, bounds: Bounds) -> Tensor:
    """PPO's loss on these walks under the weights of `now`, from the grid's own tensors."""
    steps = end_to_end(taken)
    made = _estimate(steps)
    past = Past(steps.flat("logp"), steps.flat("values"), made.advantages.flatten(), made.targets.flatten())
    return objective(Present(*now.look(steps.flat("observations"), steps.flat("actions"))), past, steps.rewards.numel(), bounds, _seen())


def loss_as_tokens(taken: Sequence[Steps], now: Networks, bounds: Bounds, discount: float = 0.99) -> Tensor:
    """The same from a language model's tensors: each walk is a completion, a row ``[B, T]`` padded on the right.

    As in `methods.ppo.look`, next values are a shift, and the discount is 0 at a row's last action. So these must be walks that terminated.
    """
    lengths = torch.tensor([w.rewards.shape[1] for w in taken])
    time = torch.arange(int(lengths.max()))
    pad = lambda name: torch.cat([torch.nn.functional.pad(getattr(w, name), (0, len(time) - w.rewards.shape[1])) for w in taken])  # noqa: E731
    trained, alive = time < lengths[:, None], time < lengths[:, None] - 1
    logp, values = pad("logp"), pad("values")
    next_values = torch.cat([values[:, 1:], torch.zeros(len(taken), 1)], 1)
    made = estimate(pad("rewards"), values, next_values, discount * alive, alive.float(), SHARED["lam"], trained)
    past = Past(logp, values, made.advantages, made.targets)[trained]
    return objective(Present(*now.look(pad("observations")[trained], pad("actions")[trained])), past, int(trained.sum()), bounds, _seen())


def _seen() -> Seen:
    seen = Seen()
    seen.begin()
    return seen
