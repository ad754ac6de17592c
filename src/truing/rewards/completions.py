"""What scorers are given, and what they all have in common.

A failure is a status, never a zero: the sample is left out and counted by whoever asked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from truing.models.pack import Pack
from truing.types import Rollout, Score, Status


@dataclass(frozen=True)
class Completions:
    """What scorers see: the text, and the very tokens that were sampled (prompt + completion, packed).

    Attributes:
        prompts: the last message of each prompt, as text.
        texts: the completions, as text without control tokens.
        starts: tokens of each prompt; the rest of the packed sequence is the completion.
        finished: whether it ended by itself rather than at max_new_tokens.
        rows: the other columns of each prompt's row of data (a gold answer, say); empty when nobody has any.
        outcomes: what the environment made of each episode; empty without one.
        turns: what each completion said, turn by turn, when an environment spoke in between; ``texts`` are the turns with a newline between
            them, and nothing that was heard. ``transcripts`` have both, for people.
        said_at: where in its sequence each of a completion's own tokens stands, when an environment spoke in between; empty: everywhere after the prompt.
    """

    prompts: list[str]
    texts: list[str]
    pack: Pack
    starts: list[int]
    finished: list[bool]
    rows: Sequence[Mapping[str, Any]] = ()
    outcomes: Sequence[Score] = ()
    said_at: Sequence[Sequence[int]] = ()
    turns: Sequence[Sequence[str]] = ()
    transcripts: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def places(self) -> Sequence[Sequence[int]]:
        """Where in its sequence each of a completion's own tokens stands."""
        return self.said_at or [range(s, n) for s, n in zip(self.starts, self.pack.lengths, strict=True)]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each completion, the end-of-turn token included."""
        return [len(place) for place in self.places]

    def ids(self) -> list[list[int]]:
        """The completions' token ids."""
        flat = self.pack.ids_N.tolist()
        return [[flat[start + t] for t in place] for start, place in zip(self.pack.starts, self.places, strict=True)]

    @property
    def last(self) -> Sequence[str]:
        """What each said last: the whole completion, or the last turn of an episode, which holds its answer."""
        return [turns[-1] for turns in self.turns] if self.turns else self.texts

    def packed(self) -> Tensor:
        """Where in the packed sequences the completions' own tokens stand, end to end."""
        return self.pack.at(self.places)

    def select(self, rows: Sequence[int]) -> Completions:
        pick = lambda column: [column[i] for i in rows] if column else []  # noqa: E731
        columns = (self.starts, self.finished, self.rows, self.outcomes, self.said_at, self.turns, self.transcripts)
        return Completions(pick(self.prompts), pick(self.texts), self.pack.select(rows), *map(pick, columns))


def as_completions(
    rollout: Rollout, decode: Callable[[Sequence[Sequence[int]]], list[str]], prompts: list[str], pack: Pack, rows: Sequence[Mapping[str, Any]] = (), outcomes: Sequence[Score] = ()
) -> Completions:
    """A rollout as scorers see it. What an environment said is in no text that is scored: the policy is not paid for another's words."""
    starts, finished = [len(p) for p in rollout.prompts], rollout.finished_B.tolist()
    if not rollout.heard:
        return Completions(prompts, decode(rollout.said()), pack, starts, finished, rows, outcomes)
    turns = [decode(spoken) for spoken in rollout.turns()]
    transcripts = decode([s[n:] for s, n in zip(rollout.sequences(), starts, strict=True)])
    return Completions(prompts, ["\n".join(t) for t in turns], pack, starts, finished, rows, outcomes, rollout.places(), turns, transcripts)


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
