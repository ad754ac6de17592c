"""Critic-free policy optimisation, on one page: collect groups, score, advantage, loss, update, record.

G completions of one prompt are each other's baseline, so no value model is needed; where an answer can be checked, no reward
model either. GRPO, RLOO, REINFORCE++, ReMax, Dr. GRPO, DAPO, GSPO, CISPO and expert iteration are rows of one table
(`truing.config.PRESETS`): advantage x ratio x clip x reduction x KL. ``docs/grpo.md`` has the equations. Sources: Shao et al.
2024 (arXiv 2402.03300); Ahmadian et al. 2024 (arXiv 2402.14740); the others stand beside their presets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from truing.config import GRPO
from truing.learn.inputs import fingerprint
from truing.learn.loop import steps
from truing.learn.run import Run
from truing.learn.update import Learner, parts
from truing.maths import kl
from truing.maths.advantages import whiten
from truing.maths.policy import adapted_entropy_weight
from truing.maths.returns import discounted_returns
from truing.methods import probes
from truing.methods.actor import Actor, open_actor
from truing.methods.completions import Batch, likelihood, put, rewards_of
from truing.methods.curriculum import Walk
from truing.methods.groups import Drawn, advantages, outcome, varied
from truing.methods.grpo_collect import Collector
from truing.methods.grpo_loss import Before, grid, reduced, token_losses
from truing.methods.grpo_record import record
from truing.methods.ppo_update import Seen, minibatches
from truing.methods.rollout_record import Clock, truncated, warn
from truing.models.roles import save_role
from truing.rewards.normalise import Normaliser
from truing.types import Score


def grpo(config: GRPO, folder: Path, *, seed: int, progress: Any = None) -> dict[str, Any]:
    """Train ``config.model`` against ``config.reward``; the policy is saved in ``folder / "model"``."""
    with Run.open(folder, fingerprint(config), seed=seed, progress=progress) as run:
        if run.done:
            return run.done
        actor = open_actor(config, seed, folder, reference=config.kl.coef > 0)
        collector = Collector(config, actor, folder, seed)
        places = probes.check(actor.reward, collector.answering.records)
        for place in places if run.progress else ():
            run.progress.note(place)
        walk = Walk(len(collector.answering.records), seed, config.curriculum)
        updates = config.epochs * config.minibatches
        learner = Learner(
            actor.parameters(), lr=config.lr, total=config.steps * updates, warmup=config.warmup, schedule=config.schedule,
            weight_decay=config.weight_decay, grad_clip=config.grad_clip, micro_tokens=config.micro_tokens, eps=1e-5,
        )  # fmt: skip
        state: dict[str, Any] = {"kl_coef": config.kl.coef, "normaliser": None, "told": [], "walk": walk.state(), "entropy": config.entropy}

        for step in steps(run, learner, config.steps, every=config.save_every, state=lambda: state, restore=state.update):
            walk.restore(state["walk"])
            control = kl.AdaptiveCoefficient(state["kl_coef"], config.kl.target, config.kl.horizon)
            normaliser = Normaliser(config.scores, state["normaliser"])
            clock = Clock()
            drawn = collector.collect(step, walk, learner.updates, clock)
            shaped, normalised = normaliser.apply_scores(drawn.scores)
            used, groups, group_varied = usable(drawn, shaped, config)
            plan = [[[used[i] for i in rows] for rows in minibatches(len(used), config.minibatches, seed, step, e)] for e in range(config.epochs)] if used else []
            before = advantage(drawn, shaped, used, groups, Looked(), config, control.coef)
            seen = look(drawn, actor, config, plan, before, learner.micro_tokens)
            clock.lap("reference")
            before = advantage(drawn, shaped, used, groups, seen, config, control.coef)
            table = Seen()
            bonus = config.model_copy(update={"entropy": state["entropy"]})
            updated = update(learner, actor, drawn.batch, before, plan, bonus, table)
            clock.lap("update")

            values = record(drawn, normalised, group_varied, used, before, seen, table, updated, config) | walk.metrics() | {"kl/coef": control.coef}
            values |= probes.probe(actor, collector.answering.records, config) if step == 1 else {}
            told = warn(run, step, values, drawn.batch, drawn.monitored, state["told"], [*probes.findings(values), *truncated(values, config)])
            news = told != state["told"]
            coef = control.after(values["kl/sequence"], len(drawn.batch)).coef if "kl/sequence" in values else control.coef
            if config.entropy_target is not None and "policy/entropy" in values:
                values["policy/entropy_weight"] = state["entropy"]
                state["entropy"] = adapted_entropy_weight(state["entropy"], values["policy/entropy"], config.entropy_target)
            state.update(kl_coef=coef, normaliser=normaliser.state(), told=told, walk=walk.state())
            run.log("metrics", step, values)
            run.log("timing", step, clock.phases(drawn.batch.rollout))
            if places:
                run.log("session", step, {"code runs in": places.pop()})
            if news or step == 1 or step % config.save_every == 0 or step == config.steps:
                run.samples(step, drawn.batch.rows(drawn.scores))
            if run.progress:
                run.progress.step(folder.name, step, {"reward": values["reward/proxy"], "updates": values["policy/updates"], "length": values["tokens/mean"]}, config.steps)

        result: dict[str, Any] = {"steps": config.steps, "updates": learner.updates, "kl_coef": state["kl_coef"]}
        result["weights_sha256"] = save_role(actor.policy, folder / "model", base=actor.source.base, tokenizer=actor.tokenizer)
        run.finish(result)
        return run.done or result


# -- advantage -----------------------------------------------------------------------------------------------------------
def usable(drawn: Drawn, scores: Sequence[Score], config: GRPO) -> tuple[list[int], list[list[int]], list[bool]]:
    """The rows that are learned from, all groups, and whether each group's rewards differ.

    Left out are groups without a difference (unless they are kept), completions that were cut off (when they are masked), and
    under `best` whatever is not the best: it is not imitated, so it counts in no mean.
    """
    groups = drawn.groups()
    differ = varied(groups, drawn.scores)
    rows = [row for group, differs in zip(groups, differ, strict=True) if differs or config.zero_variance == "keep" for row in group]
    if config.truncated == "mask":
        finished = drawn.batch.rollout.finished_B.tolist()
        rows = [row for row in rows if finished[row]]
    if config.advantage == "best":
        chosen = advantages(outcome(drawn.batch, scores, config), groups, config)
        rows = [row for row in rows if chosen[row] > 0]
    return rows, groups, differ


@dataclass(frozen=True)
class Looked:
    """Log-probabilities under the weights that sampled, ``[B, T]``; None where nobody needs them."""

    logp: Tensor | None = None
    logp_ref: Tensor | None = None


@torch.no_grad()
def look(drawn: Drawn, actor: Actor, config: GRPO, plan: list[list[list[int]]], before: Before, micro_tokens: int) -> Looked:
    """Policy and reference on the rows that will be read, in the very parts the first epoch uses, so its first ratio is exactly 1.

    A rollout that gets a single update and has no reference needs neither: its ratio is 1 by construction. ``before`` has the
    advantages without a penalty: they say what will be read where there is no reference.
    """
    if actor.reference is None and sum(map(len, plan)) <= 1:
        return Looked()
    batch, trained = drawn.batch, drawn.batch.rollout.trained_BT
    first = plan[0] if plan else []
    wanted = [rows if actor.reference is not None else teaches(rows, before, config) for rows in first]
    if actor.reference is not None:  # how far the policy has gone is asked of all it says, and a masked completion's penalty counts in its group
        wanted.append(others(len(batch), first))
    logp, logp_ref = torch.zeros(trained.shape), torch.zeros(trained.shape)
    with actor.reading_reference():
        for part in (part for rows in wanted for part in parts(rows, batch.tokens, micro_tokens)):
            pack, positions = batch.pack(part)
            for grid_BT, role in ((logp, actor.policy), (logp_ref, actor.reference)):
                if role is not None:
                    put(grid_BT, likelihood(role, role.hidden(pack, positions), pack, positions, config).logp, part, trained)
    return Looked(logp, logp_ref if actor.reference is not None else None)


def others(count: int, planned: Sequence[Sequence[int]]) -> list[int]:
    """The rows that no minibatch has."""
    return sorted(set(range(count)) - {row for rows in planned for row in rows})


def advantage(drawn: Drawn, scores: Sequence[Score], used: list[int], groups: list[list[int]], seen: Looked, config: GRPO, coef: float) -> Before:
    """Advantages of every token; a completion's own stands at all of its tokens, but under `batch`, where each token has its return."""
    batch, trained = drawn.batch, drawn.batch.rollout.trained_BT
    counted = torch.zeros_like(trained)
    counted[used] = trained[used]
    rewards = outcome(batch, scores, config)
    away = torch.zeros(trained.shape) if seen.logp is None or seen.logp_ref is None else kl.k1(seen.logp, seen.logp_ref)
    in_reward = away * coef if config.kl.place == "reward" else torch.zeros(trained.shape)
    carry = (torch.arange(trained.shape[1]) < batch.rollout.lengths_B[:, None] - 1).float()
    to_go = lambda x: discounted_returns(x, torch.zeros_like(x), carry, carry)  # noqa: E731
    scale = 1.0
    if config.advantage == "batch":
        token_rewards = rewards_of(batch, scores, config)
        token_rewards[torch.arange(len(batch)), batch.rollout.lengths_B - 1] += rewards - token_rewards.sum(-1)
        whole = to_go(token_rewards - in_reward)
    else:
        baseline = torch.tensor([drawn.greedy.get(p, math.nan) for p in drawn.prompt_B]) if config.advantage == "greedy" else None
        whole = (advantages(rewards - in_reward.sum(-1), groups, config, baseline)[:, None] * trained).float()
    if config.advantage in ("batch", "centred_batch") and counted.any():
        scale = float(torch.rsqrt(whole[counted].var() + 1e-8)) if counted.sum() > 1 else 1.0
        whole = whiten(whole, counted)
    if config.kl.place == "reward" or seen.logp_ref is None:
        return Before(whole, batch.rollout.sampler_logp_BT, seen.logp)
    later = to_go(away) - away
    later = later - (later[counted].mean() if counted.any() else 0.0)
    # A divergence of whole completions is held against the reward, so it is whitened with it; papers that price tokens do not.
    return Before(whole, batch.rollout.sampler_logp_BT, seen.logp, seen.logp_ref, later, coef * (scale if config.kl.place.startswith("loss_") else 1.0))


# -- loss and update -----------------------------------------------------------------------------------------------------
def update(learner: Learner, actor: Actor, batch: Batch, before: Before, plan: list[list[list[int]]], config: GRPO, seen: Seen) -> list[dict[str, float]]:
    """Epochs x minibatches optimiser steps. One that nothing can be learned from is left out: zero gradients still move Adam."""
    made: list[dict[str, float]] = []
    planned = [rows for epoch in plan for rows in epoch]
    learner.leave_out(config.epochs * config.minibatches - len(planned))
    for done, rows in enumerate(planned, 1):
        taught = teaches(rows, before, config)
        if not taught:
            learner.leave_out(1)
            continue
        made.append(learn(learner, actor, batch, before, rows, taught, config, seen))
        if config.kl.stop is not None and seen.divergence() > config.kl.stop:
            learner.leave_out(len(planned) - done)
            break
    return made


def teaches(rows: Sequence[int], before: Before, config: GRPO) -> list[int]:
    """The rows that are read, none when there is no gradient: those whose advantage is not zero; all under an entropy bonus or a penalty.

    A penalty in the reward needs no others, but `look` read all in order to know it, and what it read is read again in the same parts.
    """
    if before.leash or config.entropy:
        return list(rows)
    found = [row for row in rows if bool(before.advantages[row].any())]
    return list(rows) if found and config.kl.coef > 0 else found


def learn(learner: Learner, actor: Actor, batch: Batch, before: Before, rows: Sequence[int], taught: list[int], config: GRPO, seen: Seen) -> dict[str, float]:
    """One optimiser step on one minibatch: every row of it counts in the mean, only those with a gradient are read."""
    trained = batch.rollout.trained_BT
    tokens, sequences = int(trained[list(rows)].sum()), len(rows)
    seen.begin()

    def share(part: list[int]) -> Tensor:
        (pack, positions), counted = batch.pack(part), trained[part]
        now = likelihood(actor.policy, actor.policy.hidden(pack, positions), pack, positions, config)
        loss = token_losses(grid(now.logp, counted), grid(now.entropy, counted), before[part], counted, config, seen)
        return reduced(loss, counted, config, tokens=tokens, sequences=sequences)

    again: Callable[[], None] = seen.again
    return learner.update(taught, batch.tokens, share, again=again)
