"""The reward ``verified()``: each completion is checked by the verifier that its row of data names, ``verified("math")`` by that one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from truing.errors import DataError, RewardError
from truing.rewards.algebra import Expression
from truing.rewards.completions import Completions, Scorer
from truing.rewards.episodes import Outcome
from truing.rewards.verifiers.verifier import Row, Verifier, open_verifier
from truing.types import Score


class Verified:
    """Opens verifiers as rows name them and asks each once a batch. Of an episode in an environment the last turn is the answer.

    Args:
        name: of the score's part.
        by: the verifier of every row; None takes the row's column ``verifier``.
    """

    def __init__(self, name: str, by: str | None = None) -> None:
        self.name, self.by = name, by
        self.opened: dict[str, Verifier] = {}
        if by is not None:
            self.opened[by] = open_verifier(by)

    def of(self, row: Row) -> Verifier:
        """The verifier of a row, which has the columns it needs. Raises DataError otherwise."""
        by = self.by or row.get("verifier")
        if not isinstance(by, str):
            raise DataError('verified(): a row of the prompts names no verifier; give the file a column "verifier", or write verified("math")')
        if by not in self.opened:
            self.opened[by] = open_verifier(by)
        verifier = self.opened[by]
        missing = [c for c in verifier.columns if row.get(c) is None]
        if missing:
            absent, null = [c for c in missing if c not in row], [c for c in missing if c in row]
            said = [f"has no column {', '.join(map(repr, absent))}"] * bool(absent) + [f"has null in its column {', '.join(map(repr, null))}"] * bool(null)
            raise DataError(f"verified({by!r}): a row of the prompts {' and '.join(said)}, which this verifier needs; it has {', '.join(repr(c) for c in row if c not in null) or 'none'}")
        return verifier

    def __call__(self, batch: Completions) -> list[Score]:
        if len(batch.rows) != len(batch):
            raise RewardError("verified() needs the rows of the prompts, and this caller has none; use it on a file of prompts")
        groups: dict[str, list[int]] = {}
        for i, row in enumerate(batch.rows):
            groups.setdefault(self.of(row).name, []).append(i)
        scores: dict[int, Score] = {}
        for name, rows in groups.items():
            found = self._by_name(name)([batch.last[i] for i in rows], [batch.rows[i] for i in rows])
            scores.update(zip(rows, (self._named(score, name) for score in found), strict=True))
        return [scores[i] for i in range(len(batch))]

    def answers(self, batch: Completions) -> Sequence[str | None]:
        """The final answer that is read in each completion, for majority votes."""
        return [self.of(row).answer(text, row) for text, row in zip(batch.last, batch.rows, strict=True)]

    def _named(self, score: Score, verifier: str) -> Score:
        """The same, its first part under this reward's own name."""
        if not score.status.usable:
            return score
        return replace(score, parts={self.name: score.value, **{k: v for k, v in score.parts.items() if k != verifier}})

    def _by_name(self, name: str) -> Verifier:
        return next(v for v in self.opened.values() if v.name == name)


def checked_parts(scorer: Scorer) -> tuple[str, ...]:
    """The parts of a reward that say whether an answer is right: those of verifiers and of the environment."""
    if isinstance(scorer, Verified | Outcome):
        return (scorer.name,)
    return tuple(scorer.names[atom] for atom, part in scorer.scorers.items() if isinstance(part, Verified | Outcome)) if isinstance(scorer, Expression) else ()
