"""Reward models that Truing trained: a scalar head over a backbone, reading the sampled tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from truing.data.batches import by_token_budget
from truing.errors import ConfigError
from truing.models.pack import Pack
from truing.models.roles import Role
from truing.rewards.completions import Completions, finite
from truing.rewards.lines import Lines
from truing.rewards.retokenise import Retokeniser
from truing.types import Score

PART = 8192  # tokens scored at once
At = Literal["last", "steps", "tokens"]


@dataclass(frozen=True)
class Learned:
    """A reward model: reads the sampled tokens, prompt included.

    ``at="last"`` gives its score at the last token. Otherwise the score is spread out by how it changes: with s_t the head at
    completion token t, token t gets ``s_t - s_{t-1}`` and the first one s_1 itself, so that they add up to s_T, the very score
    at the last token. ``"steps"`` does the same at the last token of every line (`rewards.lines`).

    This is potential-based shaping (Ng, Harada and Russell 1999) of "nothing but s_T at the end" with the head as the potential:
    with discount 1 the return of every completion is the same, so the optimum does not move; what changes is when the news
    arrives, hence the variance. The prompt's own value s_0 is a constant of the prompt and stays in the first token.
    """

    role: Role
    name: str = "rm"
    at: At = "last"
    lines: Lines | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.at == "steps" and self.lines is None:
            raise ConfigError(f"reward {self.name} at steps needs the policy's tokenizer to find the lines; give find_scorer(..., tokenizer=...)")

    @torch.no_grad()
    def __call__(self, batch: Completions) -> list[Score]:
        cut = by_token_budget(batch.pack.lengths, PART)
        return [score for rows in cut for score in self._part(batch.select(rows) if len(cut) > 1 else batch)]

    def _part(self, batch: Completions) -> list[Score]:
        if self.at == "last":
            return [finite(value, self.name) for value in self.role.score(batch.pack).tolist()]
        states = self.role.values(batch.pack, batch.packed()).split(batch.lengths)
        return [differences(s.tolist(), self._ends(ids), self.name) for s, ids in zip(states, batch.ids(), strict=True)]

    def _ends(self, ids: list[int]) -> Sequence[int]:
        return self.lines.ends(ids) if self.at == "steps" and self.lines is not None else range(len(ids))


def differences(states: Sequence[float], ends: Sequence[int], name: str) -> Score:
    """The score ``states[-1]`` as what each end adds to the one before.

    >>> differences([0.5, 0.25, 1.0], [0, 2], "rm").spread  # 0.5 at token 0, then 1.0 - 0.5 at token 2
    (0.5, 0.0, 0.5)
    """
    spread, before = [0.0] * len(states), 0.0
    for t in ends:
        spread[t] += states[t] - before
        before = states[t]
    return finite(states[-1], name, tuple(spread))


@dataclass(frozen=True)
class LearnedFromText:
    """A reward model whose tokenizer is not the policy's: it reads the text, in tokens of its own."""

    role: Role
    name: str
    retokenise: Retokeniser

    @torch.no_grad()
    def __call__(self, batch: Completions) -> list[Score]:
        sequences = [t.ids for t in self.retokenise(batch)]
        cut = by_token_budget([len(s) for s in sequences], PART)
        return [finite(v, self.name) for rows in cut for v in self.role.score(Pack([sequences[i] for i in rows])).tolist()]


def same_vocabulary(one: Any, other: Any) -> bool:
    """Whether two tokenizers give every id the same meaning."""
    return bool(one is other or one.get_vocab() == other.get_vocab())
