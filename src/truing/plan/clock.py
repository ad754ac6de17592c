"""Seconds with their range, and what was run to find them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple


class Span(NamedTuple):
    """A number of seconds, and between what it may lie.

    >>> (Span(2.0, 1.0, 4.0).times(3) + Span(1.0, 1.0, 1.0)).high
    13.0
    """

    seconds: float
    low: float
    high: float

    def times(self, factor: float) -> Span:
        return Span(self.seconds * factor, self.low * factor, self.high * factor)

    def __add__(self, other: object) -> Span:
        if not isinstance(other, Span):
            return NotImplemented
        return Span(*(a + b for a, b in zip(self, other, strict=True)))

    def between(self, shortest: float, longest: float) -> Span:
        """The same, where there may also be ``shortest`` to ``longest`` times as much to do."""
        return Span(self.seconds, self.low * min(1.0, shortest), self.high * max(1.0, longest))


NOTHING = Span(0.0, 0.0, 0.0)


def span(measured: Sequence[float]) -> Span:
    """The median of several measurements, and the least and the most of them."""
    return Span(statistics.median(measured), min(measured), max(measured)) if measured else NOTHING


@dataclass
class Laps:
    """Seconds of named pieces, run again and again."""

    seconds: dict[str, list[float]] = field(default_factory=dict)

    @contextmanager
    def lap(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds.setdefault(name, []).append(time.perf_counter() - start)

    def of(self, name: str) -> Span:
        return span(self.seconds.get(name, []))

    def total(self) -> float:
        return sum(map(sum, self.seconds.values()))


@dataclass(frozen=True)
class Timing:
    """What a stage takes.

    Attributes:
        phases: seconds a step of each phase.
        opening: seconds before the first step: models and data.
        every: seconds of a checkpoint, every so many steps.
        after: seconds after the last step (held-out rows).
        tokens: completion tokens expected, and between what; none where nothing is generated.
        basis: what was run.
    """

    phases: Mapping[str, Span]
    opening: float
    every: tuple[float, int]
    after: Span
    basis: str
    tokens: Span | None = None

    @property
    def step(self) -> Span:
        """Seconds a step, checkpoints included in their share."""
        total = sum(self.phases.values(), NOTHING)
        seconds, steps = self.every
        return total + Span(*[seconds / steps] * 3)

    def whole(self, steps: int) -> Span:
        return self.step.times(steps) + Span(*[self.opening] * 3) + self.after


def repeat(run: Callable[[int], float], seconds: float, *, least: int = 2, most: int = 4) -> list[float]:
    """``run(i)`` for i = 0, 1, ... until the time is used up, at least `least` times after one that does not count.

    ``run`` returns the seconds that it measured.
    """
    start = time.perf_counter()
    run(0)
    found: list[float] = []
    while len(found) < least or (len(found) < most and time.perf_counter() - start < seconds):
        found.append(run(len(found) + 1))
    return found
