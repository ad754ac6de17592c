"""A file of prompts, and how a policy answers them: with a completion each, or with an episode of several turns in an environment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from truing.config import GRPO, Evaluate
from truing.data.prepare import read_records, render_all
from truing.data.template import Renderer
from truing.envs.text import open_text_environment
from truing.models.roles import Role
from truing.rollout.episodes import Limits, opening, play
from truing.rollout.sampler import sample
from truing.rollout.stopping import plain_text
from truing.types import Prompt, Rollout, Score


class Answering:
    """The prompts of a recipe, read and rendered. Everything that is drawn is a function of (seed, purpose, step, sample).

    Attributes:
        records: one a prompt, rows that cannot be used left out.
        ids: the token ids each begins with.
    """

    def __init__(self, config: GRPO | Evaluate, tokenizer: Any, context: int | None, folder: Path) -> None:
        self.config, self.renderer = config, Renderer(tokenizer)
        self.environments = open_text_environment(config.environment) if config.environment else None
        rows = render_all(read_records(config.prompts, "prompts", config.on_bad, folder), lambda r: self._fit(r, context), config.on_bad, folder)
        self.records: list[Prompt] = [record for record, _ in rows]
        self.ids: list[list[int]] = [ids for _, ids in rows]

    def _fit(self, record: Prompt, context: int | None) -> list[int]:
        config = self.config
        if self.environments is None:
            return self.renderer.prompt(record, config.max_length, config.max_new_tokens, context)
        return opening(self.environments, record, self.renderer, config.max_length, config.max_new_tokens, context)

    @torch.no_grad()
    def ask(
        self, role: Role, which: Sequence[int], *, temperature: float, seed: int, step: int, samples: Sequence[int], purpose: str = "sample", version: int = 0
    ) -> tuple[Rollout, list[Score]]:
        """An answer to each of these prompts; with an environment also what it made of each episode."""
        config = self.config
        drawn: dict[str, Any] = {"temperature": temperature, "sampling": config.sampling, "seed": seed, "step": step, "purpose": purpose, "samples": samples, "version": version}
        if self.environments is None:
            ids, decode = [self.ids[i] for i in which], plain_text(self.renderer.tokenizer)
            return sample(role, ids, max_new_tokens=config.max_new_tokens, stop_ids=self.renderer.stop_ids, decode=decode, **drawn), []
        limits = Limits(config.max_new_tokens, config.max_turns, max_length=config.max_length)
        found = play(role, [self.records[i] for i in which], self.environments, self.renderer, limits, **drawn)
        return found.rollout, found.outcomes
