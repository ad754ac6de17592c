"""Statistics of the verdict: intervals, agreement of scores and outcomes, quality of a value function. NumPy only."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


class Interval(NamedTuple):
    """An estimate with its lower and upper bound."""

    mean: float
    low: float
    high: float


def bootstrap(values: ArrayLike, *, level: float = 0.95, resamples: int = 10_000, seed: int = 0, statistic: Callable[[Array], Array] | None = None) -> Interval:
    """Percentile bootstrap over the *first* axis (the independent unit: prompts, not samples).

    Args:
        values: ``[n]`` or ``[n, ...]``; rows are resampled together.
        statistic: maps ``[resamples, n, ...]`` to ``[resamples]``; None is the mean over everything but the first axis.

    Source: Efron and Tibshirani 1993, chapter 13.
    Raises ValueError for fewer than 2 rows or non-finite values.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.ndim == 0 or len(x) < 2:
        raise ValueError(f"bootstrap: {x.size} value(s); an interval needs 2 or more")
    if not np.isfinite(x).all():
        raise ValueError("bootstrap: values hold NaN or infinity; leave failed scores out and count them")
    if not 0 < level < 1:
        raise ValueError(f"bootstrap: level={level} lies outside (0, 1)")
    stat = statistic or (lambda a: a.reshape(len(a), -1).mean(-1))
    rng = np.random.default_rng(seed)
    draws = np.concatenate([stat(x[rng.integers(0, len(x), (min(500, resamples - i), len(x)))]) for i in range(0, resamples, 500)])
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(stat(x[None])[0]), float(low), float(high))


def wilson(successes: float, trials: float, *, z: float = 1.959963984540054) -> Interval:
    """Wilson score interval of a proportion. Source: Wilson 1927.

    >>> [round(v, 4) for v in wilson(8, 10)]
    [0.8, 0.4902, 0.9433]
    """
    if trials <= 0:
        raise ValueError(f"wilson: trials={trials}; a proportion needs at least one")
    p = successes / trials
    centre = (p + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z * np.sqrt(p * (1 - p) / trials + z * z / (4 * trials * trials)) / (1 + z * z / trials)
    return Interval(float(p), float(centre - half), float(centre + half))


def explained_variance(values: ArrayLike, targets: ArrayLike) -> float:
    """``1 - var(targets - values) / var(targets)``: 1 is perfect, 0 no better than a constant; nan when targets are constant."""
    v, y = np.asarray(values, np.float64), np.asarray(targets, np.float64)
    spread = y.var()
    return float("nan") if spread == 0 else float(1 - (y - v).var() / spread)


def calibration_error(probabilities: ArrayLike, outcomes: ArrayLike, *, bins: int = 10) -> float:
    """Expected calibration error: mean over equal-width bins of |mean outcome - mean probability|, weighted by count.

    Source: Naeini et al. 2015; Guo et al. 2017 (arXiv 1706.04599), equation 3.
    """
    p, y = np.asarray(probabilities, np.float64), np.asarray(outcomes, np.float64)
    if p.shape != y.shape or p.size == 0:
        raise ValueError(f"calibration_error: probabilities {p.shape} and outcomes {y.shape} must be equal and not empty")
    which = np.minimum((p * bins).astype(int), bins - 1)
    return float(sum(abs((y - p)[which == b].sum()) for b in range(bins)) / p.size)
