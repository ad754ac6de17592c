"""How often a scorer orders two sentences as people do, beside how often people agree with one another.

A pair's *gap* is the difference of the two mean human ratings; accuracy is reported by bucket of it, because a pair that
people themselves can hardly order says little about a scorer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from truing import seeds
from truing.demo.ratings import Sentence
from truing.errors import DataError, RewardError
from truing.maths import stats

Array = NDArray[np.float64]
Indices = NDArray[np.int64]
Scorer = Callable[[list[str]], Sequence[float]]

#: lower and upper bound (exclusive) of the gap in each row of the table; the last row is the headline
BUCKETS = ((0.0, 0.5), (0.5, 1.0), (1.0, 2.0), (2.0, 3.0), (3.0, float("inf")), (1.0, float("inf")))
_LOWEST, _LEVELS = -4, 9


@dataclass(frozen=True, slots=True)
class Pairs:
    """Pairs ``(left[k], right[k])`` of ``sentences``, with what people say about each; pairs of equal means are left out.

    gap: mean rating of left minus that of right.
    share: of all (rater of left, rater of right) with different ratings, the share where left's is higher.
    ceiling: chance that a drawn rater of each orders the pair as the means of the *other* raters do (leave one out); equal
        ratings count half; draws that leave equal means are left out. Near a gap of 0 it is pessimistic: taking away a high rating
        lowers the mean of the others, so there a scorer, which is held against all raters, may exceed it.
    decided: the same among draws whose two ratings differ.
    """

    sentences: tuple[Sentence, ...]
    left: Indices
    right: Indices
    gap: Array
    share: Array
    ceiling: Array
    decided: Array


def heldout_pairs(sentences: Sequence[Sentence], *, max_pairs: int = 20_000) -> Pairs:
    """Every two of ``sentences``, or ``max_pairs`` of them drawn evenly and always the same, in random order within a pair."""
    n = len(sentences)
    if n < 3 or not all(len(s.ratings) > 1 for s in sentences):
        raise DataError(f"{n} sentences: agreement needs 3 or more, each with 2 ratings or more")
    order = np.random.default_rng(seeds.stream(0, "demo-heldout-pairs"))
    first, second = np.triu_indices(n, 1)
    kept = order.permutation(len(first))[:max_pairs]
    flip = order.random(len(kept)) < 0.5
    left, right = np.where(flip, second[kept], first[kept]), np.where(flip, first[kept], second[kept])
    means = np.array([s.mean for s in sentences])
    differ = np.abs(means[left] - means[right]) > 1e-9
    left, right = left[differ], right[differ]
    share, ceiling, decided = _human(sentences, left, right)
    return Pairs(tuple(sentences), left, right, means[left] - means[right], share, ceiling, decided)


def _human(sentences: Sequence[Sentence], left: Indices, right: Indices) -> tuple[Array, Array, Array]:
    """Exact expectations over every (rater of left, rater of right), grouped by the 9 x 9 possible ratings."""
    count = np.zeros((len(sentences), _LEVELS), np.int64)
    for i, sentence in enumerate(sentences):
        for rating in sentence.ratings:
            count[i, round(rating) - _LOWEST] += 1
    raters = count.sum(1)
    total = count @ (np.arange(_LEVELS) + _LOWEST)
    wins = np.zeros(len(left))
    unequal, agree, valid, agree_decided, valid_decided = (np.zeros(len(left)) for _ in range(5))
    for a in range(_LEVELS):
        for b in range(_LEVELS):
            ways = (count[left, a] * count[right, b]).astype(float)
            # The means of the others, compared in whole numbers: no rounding can break or make a tie.
            rest = np.sign((total[left] - (a + _LOWEST)) * (raters[right] - 1) - (total[right] - (b + _LOWEST)) * (raters[left] - 1))
            known = ways * (rest != 0)
            wins += ways * (a > b)
            unequal += ways * (a != b)
            valid += known
            agree += known * (0.5 if a == b else rest == np.sign(a - b))
            if a != b:
                valid_decided += known
                agree_decided += known * (rest == np.sign(a - b))
    with np.errstate(invalid="ignore"):
        return wins / unequal, agree / valid, agree_decided / valid_decided


@dataclass(frozen=True, slots=True)
class Row:
    """One bucket of gaps. Accuracies are by scorer: (estimate, lower, upper) with a 95% interval. Empty buckets have none."""

    low: float
    high: float | None
    pairs: int
    ceiling: float | None
    ceiling_decided: float | None
    accuracy: Mapping[str, tuple[float, float, float]]


@dataclass(frozen=True, slots=True)
class Table:
    """``rows`` follow `BUCKETS`; ``calibration`` is, by scorer, the expected calibration error over all pairs."""

    rows: tuple[Row, ...]
    calibration: Mapping[str, float]

    @property
    def headline(self) -> Row:
        """The pairs whose mean ratings differ by 1 or more."""
        return self.rows[-1]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def accuracy_table(scorers: Mapping[str, Scorer], pairs: Pairs, *, resamples: int = 1000) -> Table:
    """Pairwise accuracy of each scorer by bucket, beside the human ceiling, and its calibration.

    A scorer is right on a pair when its scores differ in the direction of the mean ratings; equal scores count half. Intervals
    come from a bootstrap over *sentences*, because pairs that share a sentence are not independent (a Wilson interval over
    pairs would be several times too narrow). Calibration compares sigmoid(score of left - score of right), in ten bins, with
    the share of raters behind left, which is what a Bradley-Terry model of single raters should say.
    Raises RewardError for a scorer that returns the wrong number of scores, or NaN.
    """
    texts = [s.text for s in pairs.sentences]
    scores = {name: _scores(name, scorer, texts) for name, scorer in scorers.items()}
    right = {name: 0.5 * (1 + np.sign(s[pairs.left] - s[pairs.right]) * np.sign(pairs.gap)) for name, s in scores.items()}
    size = np.abs(pairs.gap)
    # The same resampled sentences serve every bucket and scorer, so that rows can be compared.
    draws = (
        np.random.default_rng(seeds.stream(0, "demo-agreement-bootstrap"))
        .multinomial(len(texts), np.full(len(texts), 1 / len(texts)), resamples)
        .astype(np.float32)
    )
    rows = []
    for low, high in BUCKETS:
        inside = (size >= low - 1e-9) & (size < high - 1e-9)
        if not inside.any():
            rows.append(Row(low, None if high == float("inf") else high, 0, None, None, {}))
            continue
        weights = draws[:, pairs.left[inside]] * draws[:, pairs.right[inside]]
        weights = weights[weights.sum(1) > 0]
        accuracy = {name: _interval(values[inside], weights) for name, values in right.items()}
        ceilings = (float(np.nanmean(pairs.ceiling[inside])), float(np.nanmean(pairs.decided[inside])))
        rows.append(Row(low, None if high == float("inf") else high, int(inside.sum()), *ceilings, accuracy))
    known = np.isfinite(pairs.share)
    calibration = {
        name: stats.calibration_error(0.5 * (1 + np.tanh((s[pairs.left] - s[pairs.right])[known] / 2)), pairs.share[known]) for name, s in scores.items()
    }
    return Table(tuple(rows), calibration)


def _interval(values: Array, weights: NDArray[np.float32]) -> tuple[float, float, float]:
    resampled = weights @ values.astype(np.float32) / weights.sum(1)
    low, high = np.quantile(resampled, [0.025, 0.975]) if len(resampled) else (float("nan"), float("nan"))
    return float(values.mean()), float(low), float(high)


def _scores(name: str, scorer: Scorer, texts: list[str]) -> Array:
    found = np.asarray(scorer(texts), np.float64)
    if found.shape != (len(texts),):
        raise RewardError(f"scorer {name!r} gave scores of shape {found.shape} for {len(texts)} texts; it must give one number a text")
    if not np.isfinite(found).all():
        bad = int(np.flatnonzero(~np.isfinite(found))[0])
        raise RewardError(f"scorer {name!r} scored {texts[bad]!r} as {found[bad]}; every score must be finite")
    return found
