"""Collecting a step's groups: choose prompts, sample each G times, score, and where it is asked for sample others instead of groups that say nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from truing.config import GRPO
from truing.methods.actor import Actor
from truing.methods.answering import Answering
from truing.methods.completions import read, score
from truing.methods.curriculum import Walk
from truing.methods.groups import Drawn, outcome, varied
from truing.methods.rollout_record import Clock
from truing.rewards.completions import Completions
from truing.rewards.verified import checked_parts
from truing.types import Rollout, Score


class Collector:
    """The prompts of a run and how they are answered. Everything it draws is a function of (seed, step, sample)."""

    def __init__(self, config: GRPO, actor: Actor, folder: Path, seed: int) -> None:
        self.config, self.actor, self.seed = config, actor, seed
        self.answering = Answering(config, actor.tokenizer, actor.policy.backbone.context, folder)

    def collect(self, step: int, walk: Walk, version: int, clock: Clock) -> Drawn:
        """The step's completions, scored. With ``zero_variance: resample`` up to `resample_rounds` further draws fill the missing groups.

        Everything that was drawn comes back, so that what is logged is not the mean over the prompts that happened to differ.
        """
        config = self.config
        wanted = config.batch_size // config.group
        rounds: list[Drawn] = []
        missing, asked = wanted, 0
        for _ in range(1 + (config.resample_rounds if config.zero_variance == "resample" else 0)):
            chosen = walk.next(missing)
            rounds.append(self._round(step, chosen, asked, version, clock))
            asked += len(chosen) * config.group
            visited: dict[int, list[float]] = {}
            for prompt, solved in zip(rounds[-1].prompt_B, rounds[-1].solved(), strict=True):
                visited.setdefault(prompt, []).append(solved)
            walk.learn(visited)
            missing -= sum(varied(rounds[-1].groups(), rounds[-1].scores))
            if missing <= 0:
                break
        return Drawn.joined(rounds)

    def _round(self, step: int, chosen: list[int], first: int, version: int, clock: Clock) -> Drawn:
        asked = [prompt for prompt in chosen for _ in range(self.config.group)]
        rollout, outcomes = self._answers(asked, step, first, version, greedy=False)
        clock.lap("generate")
        texts = self._read(rollout, asked, outcomes)
        clock.lap("trunk")
        batch, scores, monitored = score(rollout, texts, self.actor, self.config)
        prompt_B, group_B = [asked[i] for i in batch.kept], [(first + i) // self.config.group for i in batch.kept]
        greedy: dict[int, float] = {}
        if self.config.advantage == "greedy":
            greedy, failed = self._greedy(chosen, step, first, version)
            batch = replace(batch, failed=(*batch.failed, *failed))
        clock.lap("score")
        return Drawn(batch, scores, monitored, prompt_B, group_B, greedy, checked_parts(self.actor.reward))

    def _greedy(self, chosen: list[int], step: int, first: int, version: int) -> tuple[dict[int, float], tuple[dict[str, Any], ...]]:
        """The reward of each prompt's most likely completion; and those whose reward failed, which leave their prompt without a baseline."""
        asked = list(dict.fromkeys(chosen))
        rollout, outcomes = self._answers(asked, step, first, version, greedy=True)
        batch, scores, _ = score(rollout, self._read(rollout, asked, outcomes), replace(self.actor, monitors={}), self.config)
        return dict(zip((asked[i] for i in batch.kept), outcome(batch, scores, self.config).tolist(), strict=True)), batch.failed

    def _answers(self, asked: list[int], step: int, first: int, version: int, *, greedy: bool) -> tuple[Rollout, list[Score]]:
        return self.answering.ask(
            self.actor.policy, asked, temperature=0.0 if greedy else self.config.temperature, seed=self.seed, step=step, version=version,
            samples=range(first, first + len(asked)),
        )  # fmt: skip

    def _read(self, rollout: Rollout, asked: list[int], outcomes: list[Score]) -> Completions:
        records = [self.answering.records[i] for i in asked]
        return read(rollout, [r.messages[-1].content for r in records], self.actor, self.config, [r.extra for r in records], outcomes)
