"""The order of the data, as pure functions of a seed: there is no generator state to save, and none to lose."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

from truing.data.formats import prompt_key
from truing.errors import ConfigError
from truing.types import Record

R = TypeVar("R", bound=Record)


def epoch_order(n: int, seed: int, epoch: int, purpose: str) -> list[int]:
    """A permutation of ``range(n)`` that depends on (n, seed, purpose, epoch) alone.

    The indices are sorted by the raw output of Philox (Salmon et al. 2011), keyed by a hash of the three: numpy keeps
    a bit generator's raw stream stable between versions, which it does not promise for ``permutation``.
    """
    import numpy as np

    if n < 0:
        raise ConfigError(f"n={n} rows cannot be ordered; n is 0 or more")
    digest = hashlib.sha256(f"{seed}\0{purpose}\0{epoch}".encode()).digest()
    key = np.frombuffer(digest[:16], dtype="<u8").astype(np.uint64)
    draws = np.random.Philox(key=key).random_raw(n)
    return [int(i) for i in np.argsort(draws, kind="stable")]


def walk(n: int, size: int, step: int, seed: int, purpose: str) -> list[int]:
    """The ``size`` rows of a step (from 1): an endless walk through shuffled epochs, so that each is used equally often.

    ``walk(3, 2, step, 0, "x")`` for step = 1, 2, 3 gives two whole epochs of three rows.
    """
    first = (step - 1) * size
    orders = {epoch: epoch_order(n, seed, epoch, purpose) for epoch in range(first // n, (first + size - 1) // n + 1)}
    return [orders[i // n][i % n] for i in range(first, first + size)]


def split(records: Sequence[R], share: float, seed: int) -> tuple[list[R], list[R]]:
    """(train, held out), each in the given order; rows of one prompt stay together.

    A prompt is held out when the hash of (seed, its text) falls below ``share``: so membership depends neither on the order
    of the rows nor on the other rows. Where chance would leave a side empty, the prompt nearest to the border changes sides,
    unless ``share`` is 0 or 1 or there is only one prompt.
    """
    if not 0 <= share <= 1:
        raise ConfigError(f"share={share} of the rows cannot be held out; use a number from 0 to 1")
    keys = [prompt_key(r) for r in records]
    place = {key: int.from_bytes(hashlib.sha256(f"{seed}\0held-out\0{key}".encode()).digest()[:8], "big") / 2**64 for key in keys}
    held = {key for key, x in place.items() if x < share}
    if 0 < share < 1 and len(place) > 1:
        if not held:
            held = {min(place, key=place.__getitem__)}
        elif len(held) == len(place):
            held.remove(max(place, key=place.__getitem__))
    train = [r for r, key in zip(records, keys, strict=True) if key not in held]
    return train, [r for r, key in zip(records, keys, strict=True) if key in held]


def by_token_budget(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices in order, grouped so that the lengths of a group sum to at most ``budget``; a longer one stands alone.

    ``by_token_budget([3, 4, 9, 1], budget=8)`` is ``[[0, 1], [2], [3]]``.
    """
    if budget < 1:
        raise ConfigError(f"a budget of {budget} tokens holds nothing; use 1 or more")
    groups: list[list[int]] = []
    room = -1
    for i, length in enumerate(lengths):
        if length > room:
            groups.append([])
            room = budget
        groups[-1].append(i)
        room -= length
    return groups
