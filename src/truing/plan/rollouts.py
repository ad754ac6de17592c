"""Timing ppo, grpo and evaluate: each phase of a step by its own functions, on completions such as the stage will have."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from truing.config import GRPO, PPO, Evaluate
from truing.data.batches import walk
from truing.errors import RewardError
from truing.methods import evaluate as evaluating
from truing.methods import grpo as groups
from truing.methods import ppo as page
from truing.methods.actor import Actor, open_actor
from truing.methods.answering import Answering
from truing.methods.completions import Batch, read, score
from truing.methods.groups import Drawn, varied
from truing.methods.ppo_update import Seen, minibatches
from truing.methods.roles_of_ppo import Roles, open_roles
from truing.models.roles import open_role, origin, tokenizer_of
from truing.plan import generation
from truing.plan.clock import NOTHING, Laps, Span, Timing, repeat
from truing.plan.generation import Generated, Sampling, timed
from truing.plan.rows import Rows
from truing.plan.supervised import Optimiser, learner_of, saving
from truing.rewards.scorers import find_scorer
from truing.rewards.verified import checked_parts
from truing.types import Rollout, Score

PART = 64  # answers of an evaluation that are drawn together


def probe(config: PPO | GRPO, rows: Rows, seed: int, seconds: float, scratch: Path) -> Timing:
    """Seconds of a step of ppo or grpo by phase."""
    start = time.perf_counter()
    actor: Actor = open_roles(config, seed, scratch) if isinstance(config, PPO) else open_actor(config, seed, scratch, reference=config.kl.coef > 0)
    learner = learner_of(config, actor.parameters())
    opening = time.perf_counter() - start
    try:
        made = _Step(config, actor, rows, seed, learner)
        drawn = made.generate(seconds * 0.4)
        phases, note = made.rest(drawn, seconds * 0.6)
        every = (saving(learner), config.save_every)
    finally:
        close(actor.reward, *actor.monitors.values())
    return Timing(made.again({"generate": drawn.seconds, **phases}), opening, every, NOTHING, "; ".join(x for x in (drawn.basis, note) if x), drawn.tokens)


class _Step:
    """One step's pieces, on some of its completions."""

    def __init__(self, config: PPO | GRPO, actor: Actor, rows: Rows, seed: int, learner: Any) -> None:
        self.config, self.actor, self.rows, self.seed, self.learner = config, actor, rows, seed, learner
        self.optimiser = Optimiser(learner)
        self.group = config.group if isinstance(config, GRPO) else 1
        self.answering = None
        if isinstance(config, GRPO) and config.environment:
            self.answering = Answering(config.model_copy(update={"on_bad": "skip"}), actor.tokenizer, actor.policy.backbone.context, Path())

    def which(self, i: int, count: int) -> list[int]:
        """The rows that the i-th rollout answers, each as often as its group is large."""
        return [row for row in walk(len(self.rows.train), max(1, count // self.group), i + 1, self.seed, "plan") for _ in range(self.group)]

    def generate(self, seconds: float) -> Generated:
        count = self.config.batch_size
        if self.answering is not None:
            return self._episodes(self.answering, count, seconds)
        draw = Sampling(self.config, self.actor.policy, self.rows.renderer, count, self.seed)
        self.asked = self.which(1, count)
        return generation.probe(draw, lambda i: [self.rows.train[j] for j in self.which(i, count)], seconds)

    def _episodes(self, answering: Answering, count: int, seconds: float) -> Generated:
        """As many episodes as there is time for; the others are taken to need as much each."""
        some = max(self.group, 4)
        ask = lambda i, n: answering.ask(self.actor.policy, self.which(i, n), temperature=self.config.temperature, seed=self.seed, step=i, samples=range(n), purpose="plan")  # noqa: E731
        ask(0, some)
        took, (rollout, self.outcomes) = timed(lambda: ask(1, some))
        more = min(count, max(some, int(some * seconds / 3 / took) // self.group * self.group))
        took, (rollout, self.outcomes) = timed(lambda: ask(2, more))
        self.asked = self.which(2, more)
        mean = float(rollout.lengths_B.sum()) / more
        limit = float(self.config.max_new_tokens * getattr(self.config, "max_turns", 1))
        found = Span(*[took * count / more] * 3).between(0.5, limit / mean)
        return Generated(found, Span(mean, 0.5 * mean, limit), rollout, f"{more} of {count} episodes")

    # -- after generation ------------------------------------------------------------------------------------------------
    def rest(self, drawn: Generated, seconds: float) -> tuple[dict[str, Span], str]:
        """Seconds of the other phases: of whole steps, generation included, where there is time for them, else of pieces."""
        config, rollout = self.config, drawn.rollout
        have, count = len(rollout.prompts), config.batch_size
        few = max(self.group, min(have, 2))
        self.note = ""
        self._cycle(rollout, few, 0, Laps())
        laps = Laps()
        start = time.perf_counter()
        self._cycle(rollout, few, 1, laps)
        each = (time.perf_counter() - start) / few
        if drawn.whole is not None and 4 * (drawn.seconds.seconds + each * count * config.epochs) < seconds:
            laps = self._steps(drawn, seconds)
            phases, part = {name: laps.of(name) for name in laps.seconds if name != "varied"}, "whole steps"
        else:
            size = max(few, min(have, int(seconds / 3 / each) // self.group * self.group))
            laps = self._pieces(rollout, size, seconds)
            phases = {name: laps.of(name).times(count / size) for name in ("trunk", "score", "look", "record")}
            phases["update"], part = self._scaled(laps, size), f"the rest on {size} of {count} completions"
        phases = self._spread(phases, drawn)
        factor = self.varied = self._varied(laps)
        if factor < 1 and config.zero_variance != "resample":  # type: ignore[union-attr]
            phases["update"] = Span(phases["update"].seconds * factor, phases["update"].low * factor, phases["update"].high)
            self.note += f"; {factor:.0%} of the groups differ in reward, and the others teach nothing"
        return phases, part + self.note

    def again(self, phases: dict[str, Span]) -> dict[str, Span]:
        """With what is sampled besides: a greedy completion of each prompt; other prompts in the place of groups that do not differ."""
        config = self.config
        if not isinstance(config, GRPO):
            return phases
        more = 1 + 1 / config.group if config.advantage == "greedy" else 1.0
        rounds = 1 + config.resample_rounds if config.zero_variance == "resample" else 1
        expected = min(float(rounds), 1 / self.varied)
        return {k: Span(s.seconds * more * expected, s.low * more, s.high * more * rounds) if k in ("generate", "trunk", "score") else s for k, s in phases.items()}

    def _steps(self, drawn: Generated, seconds: float) -> Laps:
        """One phase after the other as in a run: what one of them leaves in the caches, another does not find there."""
        laps, start, i = Laps(), time.perf_counter(), 0
        while i < 3 or (i < 6 and time.perf_counter() - start < 0.7 * seconds):
            to = Laps() if i == 0 else laps
            self.asked = self.which(2 + i, self.config.batch_size)
            with to.lap("generate"):
                rollout = drawn.whole(2 + i) if drawn.whole else drawn.rollout
            self._cycle(rollout, self.config.batch_size, i, to, True)
            i += 1
        return laps

    def _pieces(self, rollout: Rollout, size: int, seconds: float) -> Laps:
        laps, start, i = Laps(), time.perf_counter(), 0
        self._cycle(rollout, size, 2, Laps())
        while i < 2 or (i < 4 and time.perf_counter() - start < seconds):
            self._cycle(rollout, size, 3 + i, laps)
            i += 1
        return laps

    def _spread(self, phases: dict[str, Span], drawn: Generated) -> dict[str, Span]:
        """What shorter and longer completions do to every phase; of whole sequences the prompts stay."""
        tokens, rollout = drawn.tokens, drawn.rollout
        share = tokens.seconds / (sum(map(len, rollout.prompts)) / len(rollout.prompts) + tokens.seconds)
        grown = lambda name, x: x if name == "generate" else 1 + share * (x - 1)  # noqa: E731
        low, high = tokens.low / tokens.seconds, tokens.high / tokens.seconds
        return {name: s if name == "record" else s.between(grown(name, low), grown(name, high)) for name, s in phases.items()}

    def _scaled(self, laps: Laps, size: int) -> Span:
        """Epochs x minibatches updates from updates on some of the completions: tokens in proportion, the optimiser's step as it is."""
        config = self.config
        count = config.batch_size / config.minibatches
        used = min(size, int(count))
        own = self.optimiser.last
        one = lambda s: max(0.0, s - own) * count / used + own  # noqa: E731
        return Span(*(one(s) for s in laps.of("update"))).times(config.epochs * config.minibatches)

    def _cycle(self, rollout: Rollout, size: int, i: int, laps: Laps, whole: bool = False) -> None:
        """Everything of a step after generation, on `size` completions, other ones for each i."""
        groups_here = max(1, len(rollout.prompts) // self.group)
        first = (i * max(1, size // self.group)) % groups_here
        picked = [((first + j // self.group) % groups_here) * self.group + j % self.group for j in range(size)]
        some, which = rollout.select(picked), [self.asked[j] for j in picked]
        records = [self.rows.records[j] for j in which] if self.answering is None else [self.answering.records[j] for j in which]
        outcomes = [self.outcomes[j] for j in picked] if self.answering is not None else []
        with laps.lap("trunk"):
            texts = read(some, [r.messages[-1].content for r in records], self.actor, self.config, [r.extra for r in records], outcomes)
        with laps.lap("score"):
            try:
                batch, scores, monitored = score(some, texts, self.actor, self.config)
            except RewardError as error:
                batch, scores, monitored = Batch(some, texts, (), tuple(range(size))), [Score(0.0)] * size, {}
                self.note = f"; the reward did not answer as it should ({error})"
        if isinstance(self.config, PPO):
            self._ppo(batch, scores, monitored, i, laps, whole)
        else:
            self._grpo(batch, scores, monitored, which, i, laps, whole)

    def _ppo(self, batch: Batch, scores: list[Score], monitored: Any, i: int, laps: Laps, whole: bool) -> None:
        config, roles = self.config, self.actor
        if not isinstance(config, PPO) or not isinstance(roles, Roles):
            return
        parts = config.minibatches if whole else max(1, round(len(batch) * config.minibatches / config.batch_size))
        plan = [list(minibatches(len(batch), parts, self.seed, i, epoch)) for epoch in range(config.epochs)]
        with laps.lap("look"):
            experience = page.look(batch, roles, config, plan[0], config.kl.coef, scores, self.learner.micro_tokens)
        seen = Seen()
        with laps.lap("update"):
            made = page.update(self.learner, roles, batch, experience, plan if whole else [plan[0][:1]], config.model_copy(update={"kl": config.kl.model_copy(update={"stop": None})}), seen)
        with laps.lap("record"), suppress(RuntimeError, ValueError):
            page.record(batch, scores, groups.Normaliser(config.scores, None).apply_scores(scores)[1], monitored, experience, config)
            page.summary(seen, made, config.clip, config.value_clip)

    def _grpo(self, batch: Batch, scores: list[Score], monitored: Any, which: Sequence[int], i: int, laps: Laps, whole: bool) -> None:
        """With scores that differ, so that every completion teaches; `_varied` says how many really do."""
        config = self.config
        if not isinstance(config, GRPO):
            return
        kept = batch.kept
        differing = [replace(s, value=float(j % self.group) + 0.01 * j) for j, s in enumerate(scores)]
        greedy = dict.fromkeys((which[j] for j in kept), 0.5) if config.advantage == "greedy" else {}
        drawn = Drawn(batch, differing, monitored, [which[j] for j in kept], [j // self.group for j in kept], greedy, checked_parts(self.actor.reward))
        differ = varied(drawn.groups(), scores)
        laps.seconds.setdefault("varied", []).append(sum(differ) / len(differ))
        used, found, _ = groups.usable(drawn, differing, config)
        parts = config.minibatches if whole else max(1, round(len(used) * config.minibatches / config.batch_size))
        plan = [[[used[j] for j in rows] for rows in minibatches(len(used), parts, self.seed, i, e)] for e in range(config.epochs)]
        before = groups.advantage(drawn, differing, used, found, groups.Looked(), config, config.kl.coef)
        several = plan if sum(map(len, plan)) > 1 or config.epochs * config.minibatches == 1 else plan * 2
        with laps.lap("look"):
            seen = groups.look(drawn, self.actor, config, several, before, self.learner.micro_tokens)
        before = groups.advantage(drawn, differing, used, found, seen, config, config.kl.coef)
        table = Seen()
        with laps.lap("update"):
            made = groups.update(self.learner, self.actor, batch, before, plan if whole else [plan[0][:1]], config.model_copy(update={"kl": config.kl.model_copy(update={"stop": None})}), table)
        with laps.lap("record"), suppress(RuntimeError, ValueError):
            groups.record(drawn, groups.Normaliser(config.scores, None).apply_scores(differing)[1], differ, used, before, seen, table, made, config)

    def _varied(self, laps: Laps) -> float:
        """The share of groups whose rewards differ, where groups are what is learned from."""
        found = laps.seconds.get("varied", [])
        if not isinstance(self.config, GRPO) or not found or self.config.advantage in ("batch", "greedy", "best"):
            return 1.0
        return max(1 / self.config.batch_size, sum(found) / len(found))


# -- evaluate ------------------------------------------------------------------------------------------------------------
def probe_evaluation(config: Evaluate, rows: Rows, seed: int, seconds: float) -> Timing:
    """Seconds of a part of `PART` answers: drawn by each model in turn, scored, and for the second read by both."""
    start = time.perf_counter()
    tokenizer = tokenizer_of(config.before)
    before = open_role(config.before)
    base = origin(config.before).base
    after = open_role(config.after, share=before.backbone, share_base=base)
    scorers = {name: find_scorer(spec, share=before.backbone, share_base=base, tokenizer=tokenizer) for name, spec in config.scores.items()}
    opening = time.perf_counter() - start
    count = min(PART, len(rows.train) * config.samples)
    which = lambda i: [(i * (count // config.samples) + j // config.samples) % len(rows.train) for j in range(count)]  # noqa: E731
    try:
        found = [generation.probe(Sampling(config, role, rows.renderer, count, seed), lambda i: [rows.train[j] for j in which(i)], seconds * 0.35) for role in (before, after)]
        rollout = found[1].rollout
        asked = which(1)
        laps = Laps()

        def piece(i: int) -> float:
            size = max(1, min(len(rollout.prompts), 8 if i == 0 else len(rollout.prompts)))
            some, records = rollout.select(list(range(size))), [rows.records[j] for j in asked[:size]]
            to = Laps() if i == 0 else laps
            with to.lap("score"):
                texts = evaluating._read(some, records, [], tokenizer)
                evaluating._scored(texts, some.lengths_B.tolist(), some.finished_B.tolist(), scorers)
            with to.lap("look"):
                evaluating._divergence(after, before, texts, config)
            return 0.0

        repeat(piece, seconds * 0.2, most=3)
    finally:
        close(*scorers.values())
    drawn = Span(*(sum(f.seconds[k] for f in found) / 2 for k in range(3)))
    tokens = Span(*(sum(f.tokens[k] for f in found) / 2 for k in range(3)))
    phases = {"generate": drawn, "score": laps.of("score"), "look": laps.of("look").times(0.5)}
    return Timing(phases, opening, (0.0, 1), NOTHING, found[1].basis, tokens)


def close(*scorers: Any) -> None:
    """End the processes in which functions of rewards live."""
    for scorer in scorers:
        shut: Callable[[], None] | None = getattr(scorer, "close", None)
        if shut is not None:
            shut()
        for inner in getattr(scorer, "scorers", {}).values():
            close(inner)
