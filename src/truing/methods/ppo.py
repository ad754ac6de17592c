"""PPO for language models, on one page: collect, score, advantage, loss, update, record.

State = prompt + all tokens so far; action = the next token; reward of token t = ``-coef * (log pi - log ref)``, plus the
score at the last one. Advantages are GAE over the value model, whitened over the whole batch; the policy minimises the
clipped surrogate, the value model its squared error. ``docs/ppo.md`` numbers every detail. Sources: Ziegler et al. 2019
(arXiv 1909.08593); Stiennon et al. 2020 (arXiv 2009.01325); Huang et al. 2024, "The N+ implementation details of RLHF with PPO".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from truing.config import PPO
from truing.data.batches import walk
from truing.data.prepare import read_records, render_all
from truing.data.template import Renderer
from truing.learn.inputs import fingerprint
from truing.learn.loop import steps
from truing.learn.run import Run
from truing.learn.update import Learner, parts
from truing.maths import kl, reduce
from truing.maths.policy import truncated_importance
from truing.maths.returns import discounted_returns
from truing.methods import memory_of_ppo
from truing.methods.completions import Batch, likelihood, put, read, rewards_of, score
from truing.methods.ppo_record import record
from truing.methods.ppo_update import Past, Seen, estimate, minibatches, policy_loss, summary, value_loss
from truing.methods.roles_of_ppo import Roles, open_roles
from truing.methods.rollout_record import Clock, truncated, warn
from truing.models import offload
from truing.models.roles import save_role
from truing.rewards.normalise import Normaliser
from truing.rollout.sampler import sample
from truing.rollout.stopping import plain_text
from truing.types import Score


def ppo(config: PPO, folder: Path, *, seed: int, progress: Any = None) -> dict[str, Any]:
    """Train ``config.model`` against ``config.reward``; the policy is saved in ``folder / "model"``."""
    with Run.open(folder, fingerprint(config), seed=seed, progress=progress) as run:
        if run.done:
            return run.done
        roles = open_roles(config, seed, folder)
        renderer = Renderer(roles.tokenizer)
        fit = lambda r: renderer.prompt(r, config.max_length, config.max_new_tokens, roles.policy.backbone.context)  # noqa: E731
        rows = render_all(read_records(config.prompts, "prompts", config.on_bad, folder), fit, config.on_bad, folder)
        questions, columns, prompts = [r.messages[-1].content for r, _ in rows], [r.extra for r, _ in rows], [ids for _, ids in rows]
        learner = Learner(
            roles.parameters(), lr=config.lr, total=config.steps * config.epochs * config.minibatches, warmup=config.warmup, schedule=config.schedule,
            weight_decay=config.weight_decay, grad_clip=config.grad_clip, micro_tokens=config.micro_tokens, eps=1e-5,
            lr_of=lambda name: (config.value_lr or config.lr) if name.startswith("value.") else config.lr,
        )  # fmt: skip
        state: dict[str, Any] = {"kl_coef": config.kl.coef, "normaliser": None, "told": []}
        memory = memory_of_ppo.plan(config, roles, [len(p) for p in prompts]) if config.device == "cpu" else None
        if run.progress and memory:
            run.progress.note(str(memory))

        for step in steps(run, learner, config.steps, every=config.save_every, state=lambda: state, restore=state.update):
            control = kl.AdaptiveCoefficient(state["kl_coef"], config.kl.target, config.kl.horizon)
            normaliser = Normaliser(config.scores, state["normaliser"])
            clock = Clock()
            chosen = walk(len(prompts), config.batch_size, step, seed, "ppo")
            rollout = sample(
                roles.policy, [prompts[i] for i in chosen], max_new_tokens=config.max_new_tokens, temperature=config.temperature,
                sampling=config.sampling, stop_ids=renderer.stop_ids, decode=plain_text(roles.tokenizer), seed=seed, step=step, version=learner.updates,
            )  # fmt: skip
            clock.lap("generate")
            texts = read(rollout, [questions[i] for i in chosen], roles, config, [columns[i] for i in chosen])
            clock.lap("trunk")
            batch, scores, monitored = score(rollout, texts, roles, config)
            shaped, normalised = normaliser.apply_scores(scores)
            clock.lap("score")
            plan = [list(minibatches(len(batch), config.minibatches, seed, step, epoch)) for epoch in range(config.epochs)]
            experience = look(batch, roles, config, plan[0], control.coef, shaped, learner.micro_tokens)
            clock.lap("reference")
            seen = Seen()
            updated = update(learner, roles, batch, experience, plan, config, seen, policy=step > config.value_warmup)
            clock.lap("update")

            values = record(batch, scores, normalised, monitored, experience, config)
            values |= {**summary(seen, updated, config.clip, config.value_clip), "kl/coef": control.coef, "policy/stopped": float(len(updated) < sum(map(len, plan)))}
            told = warn(run, step, values, batch, monitored, state["told"], truncated(values, config))
            news = told != state["told"]
            state.update(kl_coef=control.after(values["kl/sequence"], len(batch)).coef, normaliser=normaliser.state(), told=told)
            run.log("metrics", step, values)
            run.log("timing", step, clock.phases(rollout) | (memory.values() if memory and step == 1 else {}))
            if news or step == 1 or step % config.save_every == 0 or step == config.steps:
                run.samples(step, batch.rows(scores))
            if run.progress:
                run.progress.step(folder.name, step, {"reward": values["reward/proxy"], "KL": values["kl/sequence"], "length": values["tokens/mean"]}, config.steps)

        result: dict[str, Any] = {"steps": config.steps, "updates": learner.updates, "kl_coef": state["kl_coef"]}
        result["weights_sha256"] = save_role(roles.policy, folder / "model", base=roles.source.base, tokenizer=roles.tokenizer)
        (folder / offload.FILE).unlink(missing_ok=True)  # an offloaded reference has been read for the last time
        run.finish(result)
        return run.done or result


# -- advantage -----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Experience:
    """A scored rollout as the models saw it before any weight changed, ``[B, T]``, 0 at padding. ``past`` is what updates use.

    ``later`` and ``leash`` belong to a divergence in the loss: what is still to come after each token (less a baseline), and the coefficient.
    """

    past: Past
    logp_ref: Tensor
    entropy: Tensor
    rewards: Tensor
    later: Tensor
    leash: float


@torch.no_grad()
def look(batch: Batch, roles: Roles, config: PPO, minibatches: list[list[int]], coef: float, scores: Sequence[Score], micro_tokens: int) -> Experience:
    """Policy, reference and value model on the rollout, in the very parts the first epoch uses, so its first ratio is exactly 1."""
    trained = batch.rollout.trained_BT
    logp, logp_ref, entropy, values = (torch.zeros(trained.shape) for _ in range(4))
    with roles.reading_reference():
        for part in (part for rows in minibatches for part in parts(rows, batch.tokens, micro_tokens)):
            pack, positions = batch.pack(part)
            hidden = roles.policy.hidden(pack, positions)
            now = likelihood(roles.policy, hidden, pack, positions, config)
            past_ref = likelihood(roles.reference, roles.reference.hidden(pack, positions), pack, positions, config)
            worth = roles.values(hidden, pack, positions)
            for grid, numbers in ((logp, now.logp), (entropy, now.entropy), (logp_ref, past_ref.logp), (values, worth)):
                put(grid, numbers, part, trained)
    rewards = rewards_of(batch, scores, config)
    if config.kl.place == "reward":
        rewards = rewards - coef * kl.k1(logp, logp_ref)
    # A completion ends its episode, whether by itself or at max_new_tokens: nothing follows its last token.
    alive = trained & (torch.arange(trained.shape[1]) < batch.rollout.lengths_B[:, None] - 1)
    next_values = torch.cat([values[:, 1:], torch.zeros(len(batch), 1)], 1)
    discount, carry = config.discount * alive, alive.float()
    made = estimate(rewards, values, next_values, discount, carry, config.lam, trained)
    divergence = kl.k1(logp, logp_ref)
    to_go = discounted_returns(divergence, torch.zeros_like(values), discount, carry)
    later = to_go - divergence - to_go[trained].mean()  # the batch's mean is the baseline: it costs 1 / B of this gradient, and most of its variance
    weight = None if config.sampler_cap is None else truncated_importance(logp, batch.rollout.sampler_logp_BT, config.sampler_cap)
    # Whitening divides the reward's advantages by their spread; a divergence in the loss must be divided by it too.
    leash = 0.0 if config.kl.place == "reward" else coef * made.scale
    return Experience(Past(logp, values, made.advantages, made.targets, weight), logp_ref, entropy, rewards, later, leash)


# -- loss and update -----------------------------------------------------------------------------------------------------
def update(
    learner: Learner, roles: Roles, batch: Batch, experience: Experience, plan: list[list[list[int]]], config: PPO, seen: Seen, *, policy: bool = True
) -> list[dict[str, float]]:
    """Epochs x minibatches optimiser steps; `kl.stop` leaves out the rest once the policy has moved that far from its samples."""
    made: list[dict[str, float]] = []
    planned = [rows for epoch in plan for rows in epoch]
    learner.leave_out(config.epochs * config.minibatches - len(planned))  # rewards that failed may leave fewer completions than minibatches
    for rows in planned:
        made.append(learn(learner, roles, batch, experience, rows, config, seen, policy=policy))
        if config.kl.stop is not None and seen.divergence() > config.kl.stop:
            learner.leave_out(len(planned) - len(made))
            break
    return made


def learn(learner: Learner, roles: Roles, batch: Batch, experience: Experience, rows: list[int], config: PPO, seen: Seen, *, policy: bool = True) -> dict[str, float]:
    """One optimiser step on one minibatch; without `policy` the value model alone learns."""
    trained = batch.rollout.trained_BT
    total = int(trained[rows].sum())
    seen.begin()

    def shares(part: list[int]) -> Iterator[Tensor]:
        """The policy's share of the loss and the value model's; each gives its activations back before the next begins, unless they share weights."""
        (pack, positions), counted = batch.pack(part), trained[part]
        past = experience.past[part][counted]
        with torch.set_grad_enabled(policy):
            hidden = roles.policy.hidden(pack, positions)
            now = likelihood(roles.policy, hidden, pack, positions, config)
            share = reduce.elements(policy_loss(now.logp, now.entropy, past, config, seen), total)
            if experience.leash:
                logp_ref, later = experience.logp_ref[part][counted], experience.later[part][counted]
                kind = config.kl.place.removeprefix("loss_")
                away = kl.penalty(now.logp, past.logp, logp_ref, later, kind, config.clip)
                seen.add(away=kl.penalty(now.logp.detach(), past.logp, logp_ref, torch.zeros_like(later), kind))
                share = share + experience.leash * reduce.elements(away, total)
        if policy and config.value == "separate":
            yield share
            share = torch.zeros(())
        values = roles.values(hidden, pack, positions)
        yield share + reduce.elements(value_loss(values, past, config, seen), total)

    return learner.update(rows, batch.tokens, shares, again=seen.again)

