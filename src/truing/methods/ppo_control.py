"""PPO on any Gymnasium task, on one page. The estimate, the loss and the update are those of the language model.

Source: Schulman et al. 2017 (arXiv 1707.06347); details as numbered by Huang et al. 2022, "The 37 implementation details of PPO".
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from truing.config import Frozen, Positive, Rate, Share
from truing.errors import ConfigError
from truing.learn.update import Learner
from truing.maths import stats
from truing.methods.control import Hidden, Trained, begin
from truing.methods.ppo_update import Bounds, Past, Present, Seen, estimate, minibatches, objective, summary
from truing.models.networks import Networks
from truing.rollout.scaling import Scaler
from truing.rollout.steps import Collector


class PPOControl(Frozen):
    """Settings of PPO on a Gymnasium task; the defaults suit small tasks with finitely many actions."""

    environment: str = Field("CartPole-v1", description="a Gymnasium id; `module:id` imports the module first")
    total_steps: Positive = Field(100_000, description="environment steps, all environments together; rounded up to whole rollouts")
    environments: Positive = 4
    length: Positive = Field(128, description="steps a rollout, in each environment")
    epochs: Positive = 4
    minibatches: Positive = 4
    lr: Rate = 2.5e-4
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    clip: Share = 0.2
    clip_to_zero: bool = Field(False, description="let the clip shrink to 0 linearly over the training")
    dual_clip: Annotated[float, Field(gt=1)] | None = Field(None, description="bounds the loss of a negative advantage by this times its size")
    value_clip: Annotated[float, Field(gt=0)] | None = None
    value_weight: Annotated[float, Field(ge=0)] = 0.5
    entropy: Annotated[float, Field(ge=0)] = 0.01
    discount: Share = 0.99
    lam: Share = 0.95
    grad_clip: Annotated[float, Field(gt=0)] = 0.5
    scale: bool = Field(False, description="scale observations and rewards by running moments")
    hidden: Hidden = (64, 64)

    @model_validator(mode="after")
    def _divides(self) -> PPOControl:
        if self.environments * self.length % self.minibatches:
            raise ValueError(f"environments x length = {self.environments * self.length} steps cannot be cut into minibatches={self.minibatches} equal parts")
        return self


def ppo(config: PPOControl, seed: int) -> Trained:
    """Train on ``config.environment``. Raises ConfigError for an environment that does not exist, ModelError for spaces it cannot learn."""
    environments, networks = begin(config.environment, config.environments, seed, config.hidden, "tanh")
    if config.scale and networks.states:
        raise ConfigError(f"scale=True: the observations of {config.environment} are numbers of states, which have no scale; use scale=False")
    scaler = Scaler(environments.single_observation_space.shape, config.environments, config.discount) if config.scale else None
    collector = Collector(environments, networks, discount=config.discount, seed=seed, scaler=scaler)
    size = config.environments * config.length
    rollouts = math.ceil(config.total_steps / size)
    learner = Learner(
        dict(networks.named_parameters()), lr=config.lr, total=rollouts * config.epochs * config.minibatches, schedule=config.schedule, grad_clip=config.grad_clip,
        micro_tokens=size, eps=1e-5,
    )  # fmt: skip
    trained = Trained(networks, scaler)
    with environments:
        for rollout in range(rollouts):
            steps = collector.collect(config.length)
            counted = torch.ones_like(steps.rewards, dtype=torch.bool)
            made = estimate(steps.rewards, steps.values, steps.next_values, steps.discount, steps.carry, config.lam, counted)
            past = Past(steps.flat("logp"), steps.flat("values"), made.advantages.flatten(), made.targets.flatten())
            clip = config.clip * (1 - rollout / rollouts if config.clip_to_zero else 1.0)
            bounds = SimpleNamespace(clip=clip, value_clip=config.value_clip, value_weight=config.value_weight, entropy=config.entropy, dual_clip=config.dual_clip)
            plan = [rows for epoch in range(config.epochs) for rows in minibatches(size, config.minibatches, seed, rollout, epoch)]
            seen, taken = Seen(), (steps.flat("observations"), steps.flat("actions"))
            updates = [learn(learner, networks, taken, past, rows, bounds, seen) for rows in plan]
            trained.record(
                steps, {
                    **summary(seen, updates, clip),
                    "policy/entropy": float(steps.entropy.mean()),
                    "value/explained_variance": stats.explained_variance(steps.values.numpy(), made.targets.numpy()),
                    "advantage/std": float((made.targets - steps.values).std()),
                },
            )  # fmt: skip
    return trained


def learn(learner: Learner, networks: Networks, taken: tuple[Tensor, Tensor], past: Past, rows: list[int], bounds: Bounds, seen: Seen) -> dict[str, float]:
    """One optimiser step on one minibatch of the observations and actions taken."""
    observations, actions = taken
    seen.begin()

    def loss(part: list[int]) -> Tensor:
        index = slice(None) if len(part) == len(actions) else torch.tensor(part)
        now = networks.look(observations[index], actions[index], entropy=bounds.entropy > 0)
        return objective(Present(*now), past[index], len(rows), bounds, seen)

    return learner.update(rows, len, loss, again=seen.again)
