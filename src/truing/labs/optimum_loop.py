"""Training in the world of `optimum_world`: by the pipeline's own stage, watched; or by its steps one by one, so that one of them can be made wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from truing.config import GRPO, PPO
from truing.config.grpo import GroupScores
from truing.config.options import Stage
from truing.data.batches import walk
from truing.data.template import Renderer
from truing.labs.optimum_world import Array, Measured, World, best, chances, measure
from truing.learn import checkpoint
from truing.learn.update import Learner
from truing.methods import grpo as group_page
from truing.methods import ppo as page
from truing.methods.actor import Actor, open_actor
from truing.methods.completions import rewards_of
from truing.methods.ppo_update import Seen, estimate, minibatches
from truing.methods.roles_of_ppo import Roles, open_roles
from truing.rollout.sampler import sample
from truing.types import Rollout, Score

R = TypeVar("R", bound=Actor, covariant=True)


class Trained(NamedTuple, Generic[R]):
    """A run.

    Attributes:
        at: rollouts after which it was looked at, the first 0.
        logps: exact log-probabilities of every completion then, ``[prompts, completions]`` each; the first is the reference's.
        rewards, coef: what it was trained for.
        roles: with the weights of the end.
    """

    at: list[int]
    logps: list[Array]
    rewards: Array
    coef: float
    roles: R

    @property
    def curve(self) -> list[Measured]:
        return [measure(logp, self.logps[0], self.rewards, self.coef) for logp in self.logps]

    @property
    def end(self) -> Measured:
        return measure(self.logps[-1], self.logps[0], self.rewards, self.coef)

    @property
    def optimum(self) -> Array:
        """The closed form's log-probabilities."""
        return best(self.logps[0], self.rewards, self.coef).logp

    def series(self, name: str) -> Array:
        """One of the measures over the run, a mean over prompts: ``[times]``."""
        return np.array([getattr(m, name).mean() for m in self.curve])


class Watch:
    """Follows a run of the stage as its progress, and measures the weights of every checkpoint while they are there."""

    def __init__(self, w: World, roles: Actor, steps: int) -> None:
        self.w, self.roles, self.steps = w, roles, steps
        self.at, self.logps = [0], [chances(roles.policy, w)]

    def note(self, text: str) -> None:
        """What the stage tells a person."""

    def step(self, name: str, step: int, values: Any, total: int) -> None:
        """A step is over, and the checkpoint of the one before it is written."""
        if (step - 1) % self.w.config.save_every == 0 and step > 1:
            self._read(step - 1)

    def finish(self) -> Trained[Actor]:
        self._read(self.steps)
        return Trained(self.at, self.logps, self.w.rewards, self.w.config.kl.coef, self.roles)

    def _read(self, step: int) -> None:
        weights = checkpoint.load(self.w.folder / "run" / "checkpoints" / f"step-{step:06d}").tensors["weights"]
        with torch.no_grad():
            for name, parameter in self.roles.parameters().items():
                parameter.copy_(weights[name])
        self.at.append(step)
        self.logps.append(chances(self.roles.policy, self.w))


def by_stage(w: World, seed: int) -> Trained[Actor]:
    """Run `methods.ppo.ppo` as it is."""
    watch = Watch(w, open_roles(w.config, seed), w.config.steps)
    page.ppo(w.config, w.folder / "run", seed=seed, progress=watch)
    return watch.finish()


def by_groups(w: World, seed: int, *, group: int = 64, **row: Any) -> Trained[Actor]:
    """Run `methods.grpo.grpo` in the same world, with the world's settings and a row of the table over them."""
    shared = {name: getattr(w.config, name) for name in Stage.model_fields} | {name: getattr(w.config, name) for name in ("prompts", "reward", "steps", "batch_size", "max_new_tokens", "temperature")}
    scores = GroupScores(missing_eos=w.config.scores.missing_eos, timeout=None)
    config = GRPO(**{**shared, "scores": scores, "group": group, "minibatches": w.config.minibatches, "epochs": w.config.epochs, **row})
    watch = Watch(w, open_actor(config, seed), config.steps)
    group_page.grpo(config, w.folder / "run", seed=seed, progress=watch)
    return watch.finish()


# -- by hand ------------------------------------------------------------------------------------------------------------

Change = Callable[[page.Batch, Sequence[Score], page.Experience, PPO], page.Experience]


def by_hand(w: World, seed: int, *, sign: float = 1.0, clipped: bool = True, change: Change | None = None, every: int | None = None) -> Trained[Roles]:
    """The steps of `methods.ppo.ppo` with fixed KL coefficient, measured after every ``every`` rollouts.

    Args:
        sign: -1 pays for leaving the reference.
        clipped: False leaves the ratio free, for which there is no setting.
        change: what is done to the experience before it is learned from.
    """
    config = w.config if clipped else w.config.model_copy(update={"clip": 1e6, "value_clip": None})
    roles = open_roles(config, seed)
    at, logps = [0], [chances(roles.reference, w)]
    learner = Learner(
        roles.parameters(), lr=config.lr, total=config.steps * config.epochs * config.minibatches, warmup=config.warmup, schedule=config.schedule,
        weight_decay=config.weight_decay, grad_clip=config.grad_clip, micro_tokens=config.micro_tokens, eps=1e-5,
        lr_of=lambda name: (config.value_lr or config.lr) if name.startswith("value.") else config.lr,
    )  # fmt: skip
    for step in range(1, config.steps + 1):
        batch, scores = draw(w, roles, seed, step)
        plan = [list(minibatches(len(batch), config.minibatches, seed, step, epoch)) for epoch in range(config.epochs)]
        experience = page.look(batch, roles, config, plan[0], sign * config.kl.coef, scores, learner.micro_tokens)
        if change is not None:
            experience = change(batch, scores, experience, config)
        page.update(learner, roles, batch, experience, plan, config, Seen())
        if step == config.steps or (every and step % every == 0):
            at.append(step)
            logps.append(chances(roles.policy, w))
    return Trained(at, logps, w.rewards, config.kl.coef, roles)


def draw(w: World, roles: Roles, seed: int, step: int, count: int | None = None) -> tuple[page.Batch, list[Score]]:
    """The rollout of a step, scored, as the stage makes it."""
    config = w.config
    chosen = walk(len(w.prompts), count or config.batch_size, step, seed, "ppo")
    rollout: Rollout = sample(
        roles.policy, [w.starts[i] for i in chosen], max_new_tokens=config.max_new_tokens, temperature=config.temperature,
        stop_ids=Renderer(roles.tokenizer).stop_ids, seed=seed, step=step,
    )  # fmt: skip
    batch, scores, _ = page.score(rollout, page.read(rollout, [w.prompts[i] for i in chosen], roles, config), roles, config)
    return batch, scores


# -- what can be made wrong ---------------------------------------------------------------------------------------------


def own_step_only(batch: page.Batch, scores: Sequence[Score], seen: page.Experience, config: PPO) -> page.Experience:
    """A divergence in the loss that forgets what a token leads to: only its own is priced."""
    return replace(seen, later=torch.zeros_like(seen.later))


def not_scaled(batch: page.Batch, scores: Sequence[Score], seen: page.Experience, config: PPO) -> page.Experience:
    """A divergence in the loss beside whitened advantages, without their scale: the coefficient no longer is a price in units of the score."""
    return replace(seen, leash=config.kl.coef)


def one_late(batch: page.Batch, scores: Sequence[Score], seen: page.Experience, config: PPO) -> page.Experience:
    """The score one place after the last token: on padding, or beyond the tensor."""
    right = rewards_of(batch, scores, config)
    late = torch.cat([torch.zeros(len(batch), 1), right[:, :-1]], 1)
    return _estimated(batch, seen, config, seen.rewards - right + late)


def _estimated(batch: page.Batch, seen: page.Experience, config: PPO, rewards: Tensor) -> page.Experience:
    trained, values = batch.rollout.trained_BT, seen.past.values
    alive = (trained & (torch.arange(trained.shape[1]) < batch.rollout.lengths_B[:, None] - 1)).float()
    next_values = torch.cat([values[:, 1:], torch.zeros(len(batch), 1)], 1)
    made = estimate(rewards, values, next_values, config.discount * alive, alive, config.lam, trained)
    leash = 0.0 if config.kl.place == "reward" else config.kl.coef * made.scale
    return replace(seen, rewards=rewards, past=replace(seen.past, advantages=made.advantages, targets=made.targets), leash=leash)
