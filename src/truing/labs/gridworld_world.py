"""The grid's options, the world they make, and the learner in it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import gymnasium
from pydantic import Field, model_validator

import truing.envs  # noqa: F401  (registers the environment)
from truing.config import Frozen, Rate, Share
from truing.methods import q_learning

Index = Annotated[int, Field(ge=0)]


class Options(Frozen):
    """What ``--set`` may change."""

    exercise: Literal["main", "walls", "exploration", "reinforce", "penalty", "random", "slip"] = Field("main", description="which question is asked")
    size: Annotated[int, Field(ge=2, le=12)] | None = Field(None, description="rows and columns; null = 4, and 6 in the exercise walls")
    walls: tuple[tuple[Index, Index], ...] | None = Field(
        None, description="cells nobody can enter, as [[row, column], ...]; null = none, and a winding way in the exercise walls"
    )
    slip: Share | None = Field(None, description="probability that the action is replaced by a random one; null = 0, and 0.2 in the exercise slip")
    alpha: Rate = Field(0.1, description="step size")
    discount: Share = Field(0.99, description="gamma")
    epsilon: Share = Field(0.1, description="share of random actions while learning")
    temperature: Annotated[float, Field(gt=0)] = Field(0.1, description="of softmax exploration, in the exercise exploration")
    policy_alpha: Annotated[float, Field(gt=0)] = Field(1.0, description="step size of REINFORCE, in the exercise reinforce")
    episodes: Annotated[int, Field(ge=20)] = Field(500, description="how long each agent learns")
    step_reward: Annotated[float, Field(le=0)] = Field(
        -0.01, description="paid at each step but the one into the goal, which pays 1; in the exercise penalty, against ten times as much"
    )

    @model_validator(mode="after")
    def _makes_sense(self) -> Options:
        if self.exercise == "exploration" and self.epsilon == 0:
            raise ValueError("epsilon=0 never explores; the exercise exploration compares ways to explore, so use an epsilon above 0")
        if self.exercise == "penalty" and self.step_reward == 0:
            raise ValueError("step_reward=0 times ten is 0 again; the exercise penalty needs a step_reward below 0")
        if self.exercise == "slip" and self.chance == 0:
            raise ValueError("slip=0 leaves nothing to chance; the exercise slip needs a slip above 0")
        return self

    @property
    def side(self) -> int:
        return self.size or (6 if self.exercise == "walls" else 4)

    @property
    def chance(self) -> float:
        return self.slip if self.slip is not None else 0.2 if self.exercise == "slip" else 0.0

    @property
    def late(self) -> int:
        """How many of the last episodes are averaged."""
        return min(100, self.episodes // 2)

    @property
    def blocks(self) -> tuple[tuple[int, int], ...]:
        if self.walls is not None or self.exercise != "walls":
            return self.walls or ()
        n = self.side  # every other column is a wall, open at the bottom, then at the top, and so on
        return tuple((row, column) for i, column in enumerate(range(1, n - 1, 2)) for row in range(n) if row != (n - 1 if i % 2 == 0 else 0))


def world(options: Options, **changes: Any) -> Any:
    """The registered environment, without the checker's overhead."""
    settings = dict(rows=options.side, columns=options.side, walls=options.blocks, step_reward=options.step_reward, slip=options.chance)
    return gymnasium.make("truing/GridWorld-v0", disable_env_checker=True, **(settings | changes))


def train(options: Options, env: Any, seed: int, **changes: Any) -> q_learning.TabularRun:
    settings = dict(episodes=options.episodes, alpha=options.alpha, discount=options.discount, epsilon=options.epsilon, seed=seed)
    return q_learning.learn(env, **(settings | changes))
