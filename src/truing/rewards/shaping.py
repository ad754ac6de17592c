"""Rewards that are counted from the completion itself: its length, its end, its repetitions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from truing.errors import ConfigError
from truing.rewards.completions import Completions
from truing.rewards.grammar import Atom
from truing.types import Score


@dataclass(frozen=True)
class Shaping:
    """One number a completion, from a function that cannot fail."""

    name: str
    function: Callable[[Completions], list[float]]

    def __call__(self, batch: Completions) -> list[Score]:
        return [Score(value, {self.name: value}) for value in self.function(batch)]


def shaping(atom: Atom, name: str) -> Shaping:
    """The scorer of a shaping atom: ``excess_tokens(150)``."""
    a = atom.arguments
    if atom.kind == "tokens":
        return Shaping(name, lambda batch: [float(n) for n in batch.lengths])
    if atom.kind == "excess_tokens":
        return Shaping(name, lambda batch: [excess_tokens(n, _whole(a[0])) for n in batch.lengths])
    if atom.kind == "cut_off":
        return Shaping(name, lambda batch: [float(not done) for done in batch.finished])
    if atom.kind == "soft_overlong":
        return Shaping(name, lambda batch: [soft_overlong(n, _whole(a[0]), _whole(a[1])) for n in batch.lengths])
    if atom.kind == "repetition":
        return Shaping(name, lambda batch: [repetition(text, _whole(a[0])) for text in batch.texts])
    raise ConfigError(f"{atom.kind} is no shaping reward")


def _whole(value: object) -> int:
    return int(value)  # type: ignore[call-overload]


def excess_tokens(tokens: int, n: int) -> float:
    """Tokens over n.

    >>> excess_tokens(160, 150), excess_tokens(140, 150)
    (10.0, 0.0)
    """
    return float(max(0, tokens - n))


def soft_overlong(tokens: int, max_tokens: int, margin: int) -> float:
    """Soft overlong punishment, with L tokens and ``start = max_tokens - margin``:

    0 for L <= start, (start - L) / margin in between, -1 for L > max_tokens.

    Source: Yu et al. 2025, "DAPO" (arXiv 2503.14476), equation 13.

    >>> soft_overlong(90, 100, 20)  # (80 - 90) / 20
    -0.5
    """
    return -min(1.0, max(0, tokens - (max_tokens - margin)) / margin) or 0.0


def repetition(text: str, n: int = 2) -> float:
    """Share of the text's n-grams that repeat an earlier one, over lowercased words; 0 for a text of fewer than n words.

    One minus distinct-n of Li et al. 2016 (arXiv 1510.03055), as `observe.monitor.repetition` reports it.

    >>> repetition("good film good film good film")  # of the five pairs of words, three were seen before
    0.6
    """
    words = text.lower().split()
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0
