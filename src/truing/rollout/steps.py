"""Collecting Gymnasium steps: rollouts of a fixed length from several environments, carried on from one to the next."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from truing.envs.vector import Episode, VectorSteps
from truing.errors import ConfigError
from truing.models.networks import Networks
from truing.rollout.scaling import Scaler
from truing.seeds import generator


@dataclass(frozen=True)
class Steps:
    """A rollout, environments first and time last: ``[N, T]`` (``[N, T, ...]`` for observations and actions).

    Attributes:
        logp, entropy, values: of the policy and value network that made it.
        next_values: V of the episode's own next state; where the episode was cut, of the observation it was cut at.
        discount: gamma, and 0 only where the episode terminated.
        carry: 0 at any end of an episode, else 1.
        episodes: those that ended, with the environment steps taken by all environments until then.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    logp: Tensor
    entropy: Tensor
    values: Tensor
    next_values: Tensor
    discount: Tensor
    carry: Tensor
    episodes: list[tuple[int, Episode]]

    def flat(self, name: str) -> Tensor:
        """One field with environments and time in one dimension, ``[N * T, ...]``."""
        return getattr(self, name).flatten(0, 1)


class Collector:
    """Steps environments with a policy; the next rollout goes on where the last one stopped."""

    def __init__(self, environments: VectorSteps, networks: Networks, *, discount: float, seed: int, scaler: Scaler | None = None) -> None:
        self.environments, self.networks, self.discount, self.seed, self.scaler = environments, networks, discount, seed, scaler
        self.taken = self.rollouts = 0
        self.now = self._seen(environments.reset(), learn=True)

    @torch.no_grad()
    def collect(self, length: int | None) -> Steps:
        """`length` steps in every environment; None goes on to the end of an episode, which takes a single environment."""
        networks, count = self.networks, self.environments.count
        if length is None and count > 1:
            raise ConfigError(f"{count} environments end their episodes at different times; collect whole episodes from one")
        noise = self._noise(generator(self.seed, "actions", self.rollouts))
        seen, actions, after = [], [], []
        steps: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        episodes: list[tuple[int, Episode]] = []
        while len(steps) != length and not (length is None and episodes):
            action = networks.act(self.now, next(noise))
            step = self.environments.step(self.environments.within_bounds(action.numpy()))
            self.taken += count
            seen.append(self.now)
            actions.append(action)
            if step.episodes:
                episodes += [(self.taken, e) for e in step.episodes]
                last = self._seen(step.next_observation[[e.environment for e in step.episodes]], learn=False)  # on the scale of its own time
                after += [(len(steps), e.environment, observation) for e, observation in zip(step.episodes, last, strict=True)]
            done = step.terminated | step.truncated
            steps.append((self.scaler.rewards(step.reward, done) if self.scaler else step.reward, step.terminated, done))
            self.now = self._seen(step.observation, learn=True)
        self.rollouts += 1

        rewards, over, ended = (torch.from_numpy(np.stack(x, 1)) for x in zip(*steps, strict=True))
        observations, chosen = torch.stack([*seen, self.now], 1), torch.stack(actions, 1)
        now = networks.look(observations[:, :-1], chosen)
        next_values = torch.cat([now.values[:, 1:], networks.values(observations[:, -1:])], 1)
        if after:  # an episode's own last observation, not the first of the next one
            own = networks.values(torch.stack([o for *_, o in after]))
            next_values[[e for _, e, _ in after], [t for t, *_ in after]] = own
        return Steps(
            observations[:, :-1], chosen, rewards.float(), now.logp, now.entropy, now.values, next_values, self.discount * (~over).float(), (~ended).float(), episodes,
        )  # fmt: skip

    def _noise(self, source: torch.Generator) -> Iterator[Tensor]:
        """Noise for one step after the other, drawn many steps at a time."""
        while True:
            yield from self.networks.actions.noise((64, self.environments.count), source).unbind(0)

    def _seen(self, observation: np.ndarray, *, learn: bool) -> Tensor:
        if self.scaler:
            observation = self.scaler.observations(observation, learn=learn)
        return self.networks.read(observation)
