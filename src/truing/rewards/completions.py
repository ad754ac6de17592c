"""What scorers are given, and what they all have in common.

A failure is a status, never a zero: the sample is left out and counted by whoever asked.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from truing.models.pack import Pack
from truing.types import Score, Status


@dataclass(frozen=True)
class Completions:
    """What scorers see: the text, and the very tokens that were sampled (prompt + completion, packed).

    Attributes:
        prompts: the last message of each prompt, as text.
        texts: the completions, as text without control tokens.
        starts: tokens of each prompt; the rest of the packed sequence is the completion.
        finished: whether it ended by itself rather than at max_new_tokens.
    """

    prompts: list[str]
    texts: list[str]
    pack: Pack
    starts: list[int]
    finished: list[bool]

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each completion, the end-of-turn token included."""
        return [n - s for n, s in zip(self.pack.lengths, self.starts, strict=True)]

    def ids(self) -> list[list[int]]:
        """The completions' token ids."""
        flat = self.pack.ids_N.tolist()
        return [flat[a + s : a + n] for a, s, n in zip(self.pack.starts, self.starts, self.pack.lengths, strict=True)]

    def select(self, rows: Sequence[int]) -> Completions:
        pick = lambda column: [column[i] for i in rows]  # noqa: E731
        return Completions(pick(self.prompts), pick(self.texts), self.pack.select(rows), pick(self.starts), pick(self.finished))


class Scorer(Protocol):
    def __call__(self, batch: Completions) -> list[Score]: ...


def failed(status: Status, reason: str) -> Score:
    """A score that could not be had; the reason is the name of its only part, where messages and samples show it."""
    return Score(math.nan, {reason[:300]: math.nan}, status)


def finite(value: float, name: str, spread: tuple[float, ...] = ()) -> Score:
    """A score of one part, or NON_FINITE when it or any number of its spread is not finite."""
    if math.isfinite(value) and all(map(math.isfinite, spread)):
        return Score(value, {name: value}, Status.OK, spread)
    return failed(Status.NON_FINITE, f"{name} gave {value}")
