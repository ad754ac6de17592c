"""What the agents on Gymnasium tasks share: what training returns, and how a policy is tried out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import torch
from pydantic import Field

from truing.config import Positive
from truing.envs.vector import VectorSteps, make
from truing.errors import ConfigError
from truing.models.networks import Networks, build
from truing.rollout.scaling import Scaler
from truing.rollout.steps import Steps
from truing.seeds import generator, stream

Hidden = Annotated[tuple[Positive, ...], Field(min_length=1, description="sizes of the hidden layers, of policy and value alike")]


@dataclass(frozen=True)
class Trained:
    """A trained agent and its history.

    Attributes:
        steps, returns, lengths: of each training episode, in the order they ended; `steps` counts all environments'.
        log: one record an update or rollout, named as in the metrics table.
        best: networks of the best 100 training episodes in a row, where the method keeps them.
    """

    networks: Networks
    scaler: Scaler | None = None
    steps: list[int] = field(default_factory=list)
    returns: list[float] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    log: list[dict[str, float]] = field(default_factory=list)
    best: Networks | None = None

    def record(self, steps: Steps, numbers: dict[str, float]) -> None:
        """Add the episodes that ended in a rollout, and its numbers."""
        for taken, episode in steps.episodes:
            self.steps.append(taken)
            self.returns.append(episode.total)
            self.lengths.append(episode.length)
        self.log.append(numbers)


def begin(environment: str, count: int, seed: int, hidden: Sequence[int], activation: str) -> tuple[VectorSteps, Networks]:
    """The environments and fresh networks of one training, both functions of the seed."""
    environments = make(environment, count, seed)
    networks = build(
        environments.single_observation_space, environments.single_action_space,
        generator=generator(seed, "init"), hidden=tuple(hidden), activation=activation,
    )  # fmt: skip
    return environments, networks


@torch.no_grad()
def evaluate(
    trained: Trained, environment: str, episodes: int, *, seed: int, sample: bool = False, networks: Networks | None = None, max_steps: int = 100_000
) -> list[float]:
    """Undiscounted returns of whole episodes under the most likely actions, or under sampled ones.

    Each episode has an environment of its own, so short ones are not counted more often than long ones.
    Raises ConfigError when one has not ended after ``max_steps``: a policy may go in circles where nothing limits the time.
    """
    player, scaler = networks or trained.networks, trained.scaler
    envs = make(environment, episodes, stream(seed, "evaluation"))
    noise = generator(seed, "evaluation actions")
    found: dict[int, float] = {}
    now, steps = envs.reset(), 0
    while len(found) < episodes:
        seen = player.read(scaler.observations(now, learn=False) if scaler else now)
        action = (player.act(seen, player.actions.noise((episodes,), noise)) if sample else player.best(seen)).numpy()
        step = envs.step(envs.within_bounds(action))
        for episode in step.episodes:
            found.setdefault(episode.environment, episode.total)
        now, steps = step.observation, steps + 1
        if steps == max_steps and len(found) < episodes:
            raise ConfigError(f"{episodes - len(found)} of {episodes} episodes of {environment} go on after max_steps={max_steps}; give the environment a time limit, max_episode_steps")
    envs.close()
    return [found[i] for i in range(episodes)]
