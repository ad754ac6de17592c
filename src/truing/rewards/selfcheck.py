"""Verifiers prove themselves on the rows they will judge: each gold answer must earn 1, and no answer made to cheat may.

A verifier that fails a right answer teaches the model to avoid it; one that pays a wrong answer teaches that one. Both show in a
second on the data, and only after hours in training.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from truing.errors import ConfigError, DataError, MissingExtraError, TruingError
from truing.rewards.verified import Verified
from truing.rewards.verifiers.verifier import Row, Verifier
from truing.types import Prompt, Score

SAMPLE = 64
"""Rows that are checked at the start of a run."""


@dataclass(frozen=True)
class Disagreement:
    """A completion and what it should not have earned. ``kind`` is gold, wrong, or row for a row that cannot be used at all."""

    source: str
    verifier: str
    kind: Literal["gold", "wrong", "row"]
    text: str
    message: str

    def __str__(self) -> str:
        return f"{self.source}: {self.verifier}: {self.message}"


@dataclass
class Tally:
    """One verifier's counts. ``without`` are rows that imply no gold answer; ``seconds`` is the time of all its checks."""

    rows: int = 0
    gold: int = 0
    gold_earned: int = 0
    without: int = 0
    wrong: int = 0
    wrong_earned: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    @property
    def milliseconds(self) -> float:
        """Of one check."""
        checks = self.gold + self.wrong
        return 1000 * self.seconds / checks if checks else math.nan


@dataclass(frozen=True)
class Proof:
    """What `prove` found, by verifier."""

    tallies: dict[str, Tally]
    disagreements: tuple[Disagreement, ...]

    @property
    def ok(self) -> bool:
        return not self.disagreements

    def to_dict(self) -> dict[str, Any]:
        """Plain objects for JSON."""
        tallies = {name: {**asdict(t), "statuses": dict(t.statuses), "milliseconds": t.milliseconds} for name, t in self.tallies.items()}
        return {"verifiers": tallies, "disagreements": [asdict(d) for d in self.disagreements], "ok": self.ok}


def prove(prompts: Sequence[Prompt], by: str | None = None, tell: Callable[[int], None] = lambda done: None) -> Proof:
    """Check each row's verifier on the row's own gold and wrong answers.

    Args:
        by: a verifier for all rows; None takes the one that each row names.
        tell: is told the number of rows done.

    Raises:
        ConfigError, MissingExtraError: a verifier that does not exist, or what it needs is not installed.
    """
    verified = Verified("verified", by)
    tallies: dict[str, Tally] = {}
    found: list[Disagreement] = []
    for done, prompt in enumerate(prompts, 1):
        try:
            verifier = _of(verified, prompt)
        except DataError as error:
            found.append(Disagreement(prompt.source, str(by or prompt.extra.get("verifier") or "verified"), "row", "", str(error).removeprefix(f"{prompt.source}: ").removeprefix("verified(): ")))
            continue
        found += _row(verifier, prompt, tallies.setdefault(verifier.name, Tally()))
        tell(done)
    return Proof(tallies, tuple(found))


def selfcheck(prompts: Sequence[Prompt], by: str | None = None, most: int = SAMPLE) -> Proof:
    """For the start of a run: every row has a verifier and the columns that it needs, and `prove` holds on ``most`` rows.

    These are spread evenly over the verifiers, and over each one's rows; one of each is always among them.

    Raises:
        DataError: names the first row that disagrees.
        ConfigError, MissingExtraError: names the first row whose verifier does not exist, or lacks what it needs.
    """
    verified = Verified("verified", by)
    places: dict[str, list[int]] = {}
    for i, prompt in enumerate(prompts):
        places.setdefault(_of(verified, prompt).name, []).append(i)
    chosen = [prompts[i] for i in spread(list(places.values()), most)]
    proof = prove(chosen, by)
    if not proof.ok:
        first, more = proof.disagreements[0], len(proof.disagreements) - 1
        others = f" ({more} more in the {len(chosen)} rows of {len(prompts)} that were checked)" if more else ""
        raise DataError(f"{first}{others}; `truing verify DATA` lists them all")
    return proof


def spread(groups: Sequence[Sequence[int]], most: int) -> list[int]:
    """About ``most`` members, in order: an equal share of each group and at least one, evenly spaced from its first to its last.

    What small groups leave goes to the larger ones.

    >>> spread([[0, 1, 2, 3, 4, 5, 6, 7], [8]], 4)
    [0, 3, 7, 8]
    """
    chosen: list[int] = []
    for left, group in zip(range(len(groups), 0, -1), sorted(groups, key=len), strict=True):
        share = min(len(group), max(1, (most - len(chosen)) // left))
        chosen += [group[i * (len(group) - 1) // max(1, share - 1)] for i in range(share)]
    return sorted(chosen)


def _of(verified: Verified, prompt: Prompt) -> Verifier:
    """The verifier of a prompt's row. Errors begin with the row's place."""
    try:
        return verified.of(prompt.extra)
    except (DataError, ConfigError, MissingExtraError) as error:
        raise type(error)(f"{prompt.source}: {error}") from error


def _row(verifier: Verifier, prompt: Prompt, tally: Tally) -> list[Disagreement]:
    row, tally.rows = prompt.extra, tally.rows + 1
    try:
        gold, wrong = verifier.gold(row), list(verifier.wrong(row))
    except MissingExtraError:
        raise
    except (TruingError, ValueError, KeyError, TypeError) as error:
        return [Disagreement(prompt.source, verifier.name, "row", "", f"the row cannot be used: {error}")]
    texts = [*([gold] if gold is not None else []), *wrong]
    if not texts:  # then any text shows whether the row can be judged at all
        score = verifier([""], [row])[0]
        tally.without += 1
        tally.statuses.update([] if score.status.usable else [score.status.value])
        return [] if score.status.usable else [Disagreement(prompt.source, verifier.name, "row", "", f"the row cannot be judged: {_earned(score)}")]
    start = time.perf_counter()
    scores = verifier(texts, [row] * len(texts))
    tally.seconds += time.perf_counter() - start
    tally.statuses.update(s.status.value for s in scores)
    tally.without += gold is None
    found = []
    unjudged: set[str] = set()  # a broken row fails on each text for the one reason, which is said once
    if gold is not None:
        tally.gold += 1
        tally.gold_earned += scores[0].value == 1
        if scores[0].value != 1:
            unjudged |= set() if scores[0].status.usable else {_earned(scores[0])}
            found.append(Disagreement(prompt.source, verifier.name, "gold", gold, f"the gold answer {_short(gold)} earns {_earned(scores[0])}, not 1{_hint(row)}"))
    for text, score in zip(wrong, scores[gold is not None :], strict=True):
        tally.wrong += 1
        tally.wrong_earned += score.value >= 1
        if score.value >= 1:
            found.append(Disagreement(prompt.source, verifier.name, "wrong", text, f"the wrong answer {_short(text)} earns {score.value:g}"))
        elif not score.status.usable and _earned(score) not in unjudged:
            unjudged.add(_earned(score))
            found.append(Disagreement(prompt.source, verifier.name, "wrong", text, f"the wrong answer {_short(text)} could not be judged: {_earned(score)}"))
    return found


def _earned(score: Score) -> str:
    return f"{score.value:g}" if score.status.usable else f"{score.status.value} ({next(iter(score.parts), 'no reason')})"


def _hint(row: Row) -> str:
    return "" if row.get("answer") is None else f"; the row's answer is {_short(str(row['answer']))}"


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
