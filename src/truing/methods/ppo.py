"""PPO for language models, on one page: collect, score, advantage, loss, update, record.

State = prompt + all tokens so far; action = the next token; reward of token t = ``-coef * (log pi - log ref)``, plus the
score at the last one. Advantages are GAE over the value model, whitened over the whole batch; the policy minimises the
clipped surrogate, the value model its squared error. Sources: Ziegler et al. 2019 (arXiv 1909.08593); Stiennon et al.
2020 (arXiv 2009.01325); Huang et al. 2024, "The N+ implementation details of RLHF with PPO".
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from truing.config import PPO
from truing.data.batches import epoch_order
from truing.data.prepare import read_records, render_all
from truing.data.template import Renderer
from truing.errors import RewardError
from truing.learn.inputs import fingerprint
from truing.learn.loop import steps
from truing.learn.run import Run
from truing.learn.update import Learner, parts
from truing.maths import kl, stats
from truing.maths.likelihood import TokenLikelihood, token_likelihood
from truing.methods.ppo_update import Past, Present, Seen, estimate, minibatches, objective, summary
from truing.methods.roles_of_ppo import Roles, open_roles
from truing.models.pack import Pack
from truing.models.roles import Role, save_role
from truing.observe.monitor import distinct_n
from truing.rewards.scorers import Completions, Scorer
from truing.rollout.sampler import sample
from truing.types import Rollout, Score


def ppo(config: PPO, folder: Path, *, seed: int, progress: Any = None) -> dict[str, Any]:
    """Train ``config.model`` against ``config.reward``; the policy is saved in ``folder / "model"``."""
    with Run.open(folder, fingerprint(config), seed=seed, progress=progress) as run:
        if run.done:
            return run.done
        roles = open_roles(config, seed)
        renderer = Renderer(roles.tokenizer)
        rows = render_all(read_records(config.prompts, "prompts", config.on_bad, folder), lambda r: renderer.prompt(r, config.max_length - config.max_new_tokens + 1), config.on_bad, folder)
        questions, prompts = [r.messages[-1].content for r, _ in rows], [ids for _, ids in rows]
        learner = Learner(
            roles.parameters(), lr=config.lr, total=config.steps * config.epochs * config.minibatches, warmup=config.warmup, schedule=config.schedule,
            weight_decay=config.weight_decay, grad_clip=config.grad_clip, micro_tokens=config.micro_tokens, eps=1e-5,
            lr_of=lambda name: (config.value_lr or config.lr) if name.startswith("value.") else config.lr,
        )  # fmt: skip
        state = {"kl_coef": config.kl.coef}

        for step in steps(run, learner, config.steps, every=config.save_every, state=lambda: state, restore=state.update):
            control = kl.AdaptiveCoefficient(state["kl_coef"], config.kl.target, config.kl.horizon)
            clock = _Clock()
            chosen = _chosen(len(prompts), config.batch_size, step, seed)
            rollout = sample(
                roles.policy, [prompts[i] for i in chosen], max_new_tokens=config.max_new_tokens, temperature=config.temperature,
                stop_ids=renderer.stop_ids, seed=seed, step=step, version=learner.updates,
            )  # fmt: skip
            clock.lap("generate")
            batch, scores, monitored = score(rollout, [questions[i] for i in chosen], roles, config)
            clock.lap("score")
            plan = [list(minibatches(len(batch), config.minibatches, seed, step, epoch)) for epoch in range(config.epochs)]
            experience = look(batch, roles, config, plan[0], control.coef, scores, learner.micro_tokens)
            clock.lap("reference")
            seen = Seen()
            updated = [learn(learner, roles, batch, experience, rows, config, seen) for epoch in plan for rows in epoch]
            clock.lap("update")

            values = record(batch, scores, monitored, experience, summary(seen, updated, config.clip), control.coef, config)
            state["kl_coef"] = control.after(values["kl/sequence"], len(batch)).coef
            run.log("metrics", step, values)
            run.log("timing", step, clock.phases(rollout))
            if step == 1 or step % config.save_every == 0 or step == config.steps:
                run.samples(step, batch.rows(scores))
            if run.progress:
                run.progress.step(folder.name, step, {"reward": values["reward/proxy"], "KL": values["kl/sequence"], "length": values["tokens/mean"]}, config.steps)

        result: dict[str, Any] = {"steps": config.steps, "updates": learner.updates, "kl_coef": state["kl_coef"]}
        result["weights_sha256"] = save_role(roles.policy, folder / "model", base=roles.source.base, tokenizer=roles.tokenizer)
        run.finish(result)
        return run.done or result


# -- score ---------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Batch:
    """Completions whose reward is usable: the rollout's tensors and the packed sequences every role reads."""

    rollout: Rollout
    texts: Completions

    def __len__(self) -> int:
        return len(self.texts.texts)

    def tokens(self, rows: Sequence[int]) -> int:
        return sum(self.texts.pack.lengths[r] for r in rows)

    def positions(self, pack: Pack, rows: Sequence[int]) -> Tensor:
        """Where in `pack` (of these rows) each completion token is predicted from: one before the token itself."""
        starts = [len(self.rollout.prompts[r]) - 1 for r in rows]
        return pack.spans(starts, [n - 1 for n in pack.lengths])

    def rows(self, scores: Sequence[Score]) -> list[dict[str, Any]]:
        logp = [[round(v, 4) for v in row[mask].tolist()] for row, mask in zip(self.rollout.sampler_logp_BT, self.rollout.trained_BT, strict=True)]
        return [
            {"prompt": p, "completion": c, "score": s.value, "parts": dict(s.parts), "status": s.status.value, "tokens": len(lp), "logp": lp}
            for p, c, s, lp in zip(self.texts.prompts, self.texts.texts, scores, logp, strict=True)
        ]


def score(rollout: Rollout, questions: list[str], roles: Roles, config: PPO) -> tuple[Batch, list[Score], dict[str, list[float]]]:
    """Reward and monitors of every completion; failed ones are left out. Raises RewardError above ``bad_reward_share``."""
    sequences = rollout.sequences()
    answers = roles.decode([s[len(p) :] for s, p in zip(sequences, rollout.prompts, strict=True)])
    texts = Completions(questions, answers, Pack(sequences))
    scores = roles.reward(texts)
    usable = [i for i, s in enumerate(scores) if s.status.usable]
    failed = 1 - len(usable) / len(scores)
    if failed > config.bad_reward_share or not usable:
        first = next(s for s in scores if not s.status.usable)
        raise RewardError(f"{failed:.0%} of the rewards failed (allowed {config.bad_reward_share:.0%}), the first with {first.status.value}: {next(iter(first.parts), '')}")
    if len(usable) < len(scores):
        rollout, texts, scores = rollout.select(usable), texts.select(usable), [scores[i] for i in usable]
    return Batch(rollout, texts), scores, {name: _values(monitor, texts) for name, monitor in roles.monitors.items()}


# -- advantage -----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Experience:
    """A scored rollout as the models saw it before any weight changed, ``[B, T]``, 0 at padding. ``past`` is what updates use."""

    past: Past
    logp_ref: Tensor
    entropy: Tensor
    rewards: Tensor


@torch.no_grad()
def look(batch: Batch, roles: Roles, config: PPO, minibatches: list[list[int]], coef: float, scores: Sequence[Score], micro_tokens: int) -> Experience:
    """Policy, reference and value model on the rollout, in the very parts the first epoch uses, so its first ratio is exactly 1."""
    trained = batch.rollout.trained_BT
    logp, logp_ref, entropy, values = (torch.zeros(trained.shape) for _ in range(4))
    for rows in minibatches:
        for part in parts(rows, batch.tokens, micro_tokens):
            pack = batch.texts.pack.select(part)
            where = torch.zeros_like(trained)
            where[part] = trained[part]
            now = policy_likelihood(roles.policy, batch, pack, part, config)
            logp.masked_scatter_(where, _in_row_order(now.logp, part, trained))
            entropy.masked_scatter_(where, _in_row_order(now.entropy, part, trained))
            logp_ref.masked_scatter_(where, _in_row_order(policy_likelihood(roles.reference, batch, pack, part, config).logp, part, trained))
            values.masked_scatter_(where, _in_row_order(roles.value.values(pack, batch.positions(pack, part)), part, trained))
    rewards = -coef * kl.k1(logp, logp_ref)
    last = batch.rollout.lengths_B - 1
    final = torch.tensor([s.value for s in scores])
    if config.missing_eos is not None:
        final = final + config.missing_eos * ~batch.rollout.finished_B
    rewards[torch.arange(len(batch)), last] += final
    # A completion ends its episode, whether by itself or at max_new_tokens: its score stands at its last token.
    alive = trained.clone()
    alive[torch.arange(len(batch)), last] = False
    next_values = torch.cat([values[:, 1:], torch.zeros(len(batch), 1)], 1)
    made = estimate(rewards, values, next_values, config.discount * alive, alive.float(), config.lam, trained)
    return Experience(Past(logp, values, made.advantages, made.targets), logp_ref, entropy, rewards)


def policy_likelihood(role: Role, batch: Batch, pack: Pack, rows: Sequence[int], config: PPO) -> TokenLikelihood:
    """Log-probability and entropy of every completion token of these rows, at the sampling temperature."""
    positions = batch.positions(pack, rows)
    return token_likelihood(
        role.hidden(pack)[positions], role.backbone.head_weight, pack.ids_N[positions + 1], bias=role.backbone.head_bias,
        temperature=config.temperature, entropy_gradient=config.entropy > 0,
    )  # fmt: skip


# -- loss and update -----------------------------------------------------------------------------------------------------
def learn(learner: Learner, roles: Roles, batch: Batch, experience: Experience, rows: list[int], config: PPO, seen: Seen) -> dict[str, float]:
    """One optimiser step on one minibatch."""
    trained = batch.rollout.trained_BT
    total = int(trained[rows].sum())
    seen.begin()

    def loss(part: list[int]) -> Tensor:
        pack = batch.texts.pack.select(part)
        now = policy_likelihood(roles.policy, batch, pack, part, config)
        values = roles.value.values(pack, batch.positions(pack, part))
        return objective(Present(now.logp, now.entropy, values), experience.past[part][trained[part]], total, config, seen)

    return learner.update(rows, batch.tokens, loss, again=seen.again)


# -- record --------------------------------------------------------------------------------------------------------------
def record(
    batch: Batch, scores: Sequence[Score], monitored: dict[str, list[float]], experience: Experience, updates: dict[str, float], coef: float, config: PPO
) -> dict[str, float]:
    """The step's metrics; `observe/metrics.py` defines each."""
    trained, count, past = batch.rollout.trained_BT, int(batch.rollout.trained_BT.sum()), experience.past
    return {
        "reward/proxy": sum(s.value for s in scores) / len(batch),
        "reward/failed_share": 1 - len(batch) / config.batch_size,
        "reward/total": float(experience.rewards.sum()) / len(batch),
        **{f"monitor/{name}": sum(values) / len(values) for name, values in monitored.items()},
        "kl/sequence": float(kl.k1(past.logp, experience.logp_ref).sum()) / len(batch),
        "kl/k3_sequence": float(kl.k3(past.logp, experience.logp_ref).sum()) / len(batch),
        "kl/token": float(kl.k1(past.logp, experience.logp_ref).sum()) / count,
        "kl/coef": coef,
        **updates,
        "policy/entropy": float(experience.entropy.sum()) / count,
        "value/explained_variance": stats.explained_variance(past.values[trained].numpy(), past.targets[trained].numpy()),
        "advantage/std": float((past.targets - past.values)[trained].std()),
        "tokens/mean": count / len(batch),
        "tokens/eos_share": float(batch.rollout.finished_B.float().mean()),
        "text/distinct_2": distinct_n(batch.texts.texts, 2),
        "sampler/mismatch": float((past.logp - batch.rollout.sampler_logp_BT)[trained].abs().mean()),
    }


# -- small things --------------------------------------------------------------------------------------------------------
class _Clock:
    def __init__(self) -> None:
        self.start = self.last = time.perf_counter()
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[f"seconds/{name}"], self.last = now - self.last, now

    def phases(self, rollout: Rollout) -> dict[str, float]:
        return {**self.laps, "tokens_per_second": float(rollout.lengths_B.sum()) / (time.perf_counter() - self.start)}


def _chosen(n: int, size: int, step: int, seed: int) -> list[int]:
    """Prompts of a step: an endless walk through shuffled epochs, so each is used equally often."""
    first = (step - 1) * size
    orders = {epoch: epoch_order(n, seed, epoch, "ppo") for epoch in range(first // n, (first + size - 1) // n + 1)}
    return [orders[i // n][i % n] for i in range(first, first + size)]


def _in_row_order(x_M: Tensor, rows: Sequence[int], trained_BT: Tensor) -> Tensor:
    """Reorder a part's packed tokens from the part's order to ascending rows, as masked_scatter fills them."""
    pieces = x_M.split(trained_BT[list(rows)].sum(-1).tolist())
    return torch.cat([pieces[i] for i in sorted(range(len(rows)), key=lambda i: rows[i])])


def _values(monitor: Scorer, texts: Completions) -> list[float]:
    return [s.value for s in monitor(texts) if s.status.usable] or [float("nan")]
