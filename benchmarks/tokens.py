"""The tokens of every row: a pure function of its seed, so that each chair makes the same ones. Standard library only.

Ids are uniform over the vocabulary without its first three, which the models of this suite keep for padding, the end, and the unknown.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

PAD, END, UNKNOWN, FIRST = 0, 1, 2, 3


def sequences(lengths: Sequence[int], vocabulary: int, seed: int, *, end: int | None = None) -> list[list[int]]:
    """A sequence of each length; the last token is ``end`` when one is given."""
    found = []
    for number, length in enumerate(lengths):
        rng = random.Random(f"{seed} {number}")
        ids = [rng.randrange(FIRST, vocabulary) for _ in range(length)]
        found.append(ids if end is None else [*ids[:-1], end])
    return found


def log_uniform(count: int, least: int, most: int, seed: int) -> list[int]:
    """Lengths whose logarithm is uniform, in no order: as many between 8 and 16 as between 64 and 128, as documents are."""
    rng = random.Random(seed)
    return [min(most, int(math.exp(rng.uniform(math.log(least), math.log(most + 1))))) for _ in range(count)]


def stops(asks: Mapping[str, Any]) -> list[int]:
    """The ids that end a sequence. A random model says each token about equally often, so with 64 of 4,096 ids lengths are geometric with mean 64."""
    return list(range(FIRST, FIRST + asks.get("stops", 0)))


def said(rows: Sequence[Sequence[int]], ends: Sequence[int]) -> int:
    """Tokens of these rows up to the first that ends each, which counts; what stands behind it is padding.

    >>> said([[5, 9, 0, 0], [5, 5, 5, 5]], [9])
    6
    """
    last = set(ends)
    return sum(next((i + 1 for i, token in enumerate(row) if token in last), len(row)) for row in rows)


def words(ids: Sequence[int]) -> str:
    """What the tokenizer of this suite's random models reads as exactly these ids."""
    return " ".join(f"t{i}" for i in ids)


def sevens(prompts: Sequence[str], completions: Sequence[str], **_: object) -> list[float]:
    """The share of a completion's words whose number is a multiple of seven: a reward that costs nothing and that random text differs in."""
    return [sum(_number(word) % 7 == 0 for word in text.split()) / max(1, len(text.split())) for text in completions]


def _number(word: str) -> int:
    return int(word[1:]) if word[:1] == "t" and word[1:].isdigit() else len(word)
