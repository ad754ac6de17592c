"""What happens to scores before they become rewards: normalise, then clip (``scores`` of PPO).

Every kind is one line through the scores, ``y = offset + scale * x``:

- none: y = x;
- batch: ``y = mean + (x - mean) / sqrt(var + 1e-8)``, mean and variance of the batch: unit spread, and the mean stays where it is,
  for taking it away would take away whether the batch was any good (Huang et al. 2024, policy detail 9);
- running: ``y = (x - mean) / std`` over every score so far, this batch included (Welford 1962);
- reference: the same with mean and standard deviation of the first batch, which the reference policy made, for ever after.

Standard deviations are the unbiased ones (n - 1). Where they are 0, because all scores are equal, nothing is divided.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from truing.config import Scores
from truing.errors import CheckpointError, RewardError
from truing.types import Score

EPS = 1e-8  # inside the square root of "batch", as in `maths.advantages.whiten`


class Normalised(NamedTuple):
    """Scores after normalising and clipping; the share that the clip changed; the mean and deviation that were used (0 and 1 for none)."""

    values: list[float]
    clipped_share: float
    mean: float
    std: float


class _Line(NamedTuple):
    offset: float
    scale: float
    mean: float
    std: float

    def __call__(self, x: float) -> float:
        # not offset + scale * x: equal scores must come out equal, and centred ones as exact zeros
        return (x - self.mean) * self.scale + self.offset


class Normaliser:
    """Keeps what it has seen in three numbers; ``state()`` as JSON and back gives the same bits.

    Args:
        settings: ``scores`` of the recipe; ``normalise`` and ``clip`` are used.
        state: what ``state()`` of an earlier one gave, or None to begin.

    >>> Normaliser(Scores(normalise="running", clip=0.5)).apply([1.0, 2.0, 3.0])  # mean 2, std 1, then +- 0.5
    Normalised(values=[-0.5, 0.0, 0.5], clipped_share=0.6666666666666666, mean=2.0, std=1.0)
    """

    def __init__(self, settings: Scores, state: Mapping[str, Any] | None = None) -> None:
        self.kind, self.clip = settings.normalise, settings.clip
        held = {"count": 0, "mean": 0.0, "squares": 0.0, **(state or {})}
        try:
            self.count, self.mean, self.squares = int(held["count"]), float(held["mean"]), float(held["squares"])
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"state of the score normaliser cannot be read: {held!r} ({error})") from error

    def state(self) -> dict[str, Any]:
        return {"count": self.count, "mean": self.mean, "squares": self.squares}

    def apply(self, values: Sequence[float]) -> Normalised:
        """Normalise and clip a batch of usable scores. Raises RewardError when one is not finite."""
        line = self._line(values)
        out = [line(v) for v in values]
        return _result([self._limited(v) for v in out], out, line)

    def apply_scores(self, scores: Sequence[Score]) -> tuple[list[Score], Normalised]:
        """The same for scores: parts stay as they were, and unusable ones go through untouched and uncounted.

        A dense score's spread is scaled like its value, with what is left over at the last token; the clip then limits each of
        its numbers, not their sum.
        """
        usable = [i for i, s in enumerate(scores) if s.status.usable]
        line = self._line([scores[i].value for i in usable])
        out, before, after = list(scores), list[float](), list[float]()
        for i in usable:
            raw = scores[i]
            value = line(raw.value)
            elements = [v * line.scale for v in raw.spread]
            if elements:
                elements[-1] += value - raw.value * line.scale
            else:
                elements = [value]
            limited = [self._limited(v) for v in elements]
            before += elements
            after += limited
            if limited != elements:
                value = math.fsum(limited)
            out[i] = replace(raw, value=value, spread=tuple(limited) if raw.spread else ())
        return out, _result(after, before, line)._replace(values=[out[i].value for i in usable])

    def _line(self, values: Sequence[float]) -> _Line:
        for v in values:
            if not math.isfinite(v):
                raise RewardError(f"a score of {v} cannot be normalised; failed scores must be left out before")
        if self.kind == "none":
            return _Line(0.0, 1.0, 0.0, 1.0)
        if self.kind == "batch":
            batch = Normaliser(Scores())
            batch._see(values)
            scale = 1 / math.sqrt(batch.std**2 + EPS) if len(values) > 1 else 1.0
            return _Line(batch.mean, scale, batch.mean, batch.std)
        if self.kind == "running" or self.count == 0:
            self._see(values)
        return _Line(0.0, 1 / self.std if self.std > 0 else 1.0, self.mean, self.std)

    @property
    def std(self) -> float:
        return math.sqrt(self.squares / (self.count - 1)) if self.count > 1 else 0.0

    def _see(self, values: Sequence[float]) -> None:
        for v in values:
            self.count += 1
            step = v - self.mean
            self.mean += step / self.count
            self.squares += step * (v - self.mean)

    def _limited(self, v: float) -> float:
        return v if self.clip is None else min(max(v, -self.clip), self.clip)


def _result(limited: list[float], before: list[float], line: _Line) -> Normalised:
    changed = sum(a != b for a, b in zip(limited, before, strict=True))
    return Normalised(limited, changed / len(before) if before else 0.0, line.mean, line.std)
