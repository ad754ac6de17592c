"""Statistics of the verdict: intervals, agreement of scores and outcomes, quality of a value function. NumPy only."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
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
    Raises ValueError for fewer than 2 rows, values that are not finite, a level outside (0, 1) or no resamples.

    >>> [float(v) for v in bootstrap([1.0, 1.0, 1.0])]  # nothing varies
    [1.0, 1.0, 1.0]
    """
    x = np.asarray(values, dtype=np.float64)
    if x.ndim == 0 or len(x) < 2:
        raise ValueError(f"bootstrap: {x.size} value(s); an interval needs 2 or more")
    if not np.isfinite(x).all():
        raise ValueError("bootstrap: values hold NaN or infinity; leave failed scores out and count them")
    if not 0 < level < 1:
        raise ValueError(f"bootstrap: level={level} lies outside (0, 1)")
    if resamples < 1:
        raise ValueError(f"bootstrap: resamples={resamples}; an interval needs 1 or more, and a steady one thousands")
    stat = statistic or (lambda a: np.asarray(a.mean(tuple(range(1, a.ndim)))))
    rng = np.random.default_rng(seed)
    draws = np.concatenate([stat(x[rng.integers(0, len(x), (min(500, resamples - i), len(x)))]) for i in range(0, resamples, 500)])
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(stat(x[None])[0]), float(low), float(high))


def wilson(successes: float, trials: float, *, z: float = 1.959963984540054) -> Interval:
    """Wilson score interval of a proportion, ``(p + z^2/2n -+ z sqrt(p (1 - p) / n + z^2/4n^2)) / (1 + z^2/n)``; z = 1.96 is 95%.

    Raises ValueError unless trials and z are positive and successes lies in [0, trials]. Source: Wilson 1927.

    >>> [round(v, 4) for v in wilson(8, 10)]
    [0.8, 0.4902, 0.9433]
    """
    if not (trials > 0 and z > 0):
        raise ValueError(f"wilson: trials={trials}, z={z}; a proportion needs at least one trial, and an interval a positive z")
    if not 0 <= successes <= trials:
        raise ValueError(f"wilson: successes={successes} lies outside [0, trials={trials}]")
    p = successes / trials
    centre = (p + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z * np.sqrt(p * (1 - p) / trials + z * z / (4 * trials * trials)) / (1 + z * z / trials)
    # centre and half are equal when none succeeds, and add to 1 when all do, but for their rounding
    return Interval(float(p), 0.0 if successes == 0 else float(centre - half), 1.0 if successes == trials else float(centre + half))


def explained_variance(values: ArrayLike, targets: ArrayLike) -> float:
    """``1 - var(targets - values) / var(targets)``: 1 is perfect, 0 no better than a constant; nan when targets are constant.

    Raises ValueError when shapes differ, nothing is given, or a number is not finite.

    >>> explained_variance([1.0, 2.0, 3.0], [1.0, 2.0, 6.0])  # errors 0, 0, 3 have variance 2; targets 42 / 9
    0.5714285714285714
    """
    v, y = _paired("explained_variance", values=values, targets=targets)
    return float("nan") if y.min() == y.max() else float(1 - (y - v).var() / y.var())


def calibration_error(probabilities: ArrayLike, outcomes: ArrayLike, *, bins: int = 10) -> float:
    """Expected calibration error: mean over equal-width bins of |mean outcome - mean probability|, weighted by count.

    Args:
        probabilities: in [0, 1].
        outcomes: 0 or 1, or shares between them (of raters, for example), same shape.

    Raises ValueError when shapes differ, nothing is given, a number lies outside [0, 1], or bins < 1.
    Source: Naeini et al. 2015; Guo et al. 2017 (arXiv 1706.04599), equation 3.

    >>> calibration_error([0.25, 0.75], [0, 1])  # each a quarter off
    0.25
    """
    p, y = _paired("calibration_error", probabilities=probabilities, outcomes=outcomes)
    if min(p.min(), y.min()) < 0 or max(p.max(), y.max()) > 1:
        raise ValueError(f"calibration_error: probabilities span {p.min()} to {p.max()}, outcomes {y.min()} to {y.max()}; both lie in [0, 1]")
    if bins < 1:
        raise ValueError(f"calibration_error: bins={bins}; use 1 or more")
    which = np.minimum((p * bins).astype(int), bins - 1)
    return float(sum(abs((y - p)[which == b].sum()) for b in range(bins)) / p.size)


def pass_at_k(samples: ArrayLike, correct: ArrayLike, k: int) -> Array:
    """Chance that at least one of k samples is correct, estimated without bias from n of which c were: ``1 - C(n - c, k) / C(n, k)``.

    Args:
        samples: n, samples drawn for a task; one number, or one a task.
        correct: c, how many were correct, same shape or one number.
        k: at most every n. ``1 - (1 - c/n)^k`` would be biased downwards.

    Worked as ``1 - prod_{j < k} (n - c - j) / (n - j)``, which cannot overflow.
    Raises ValueError for numbers that are not whole, c outside [0, n] and k outside [1, n].
    Source: Chen et al. 2021 (arXiv 2107.03374), equation 1.

    >>> [round(float(v), 6) for v in pass_at_k(10, [3, 0, 10], k=5)]  # 1 - C(7, 5) / C(10, 5) = 1 - 21 / 252
    [0.916667, 0.0, 1.0]
    """
    n, c = np.asarray(samples, np.float64), np.asarray(correct, np.float64)
    if n.ndim and c.ndim and n.shape != c.shape:
        raise ValueError(f"pass_at_k: samples {n.shape} and correct {c.shape} differ in shape; give one number a task each, or one for all")
    if not (_whole(n) and _whole(c) and (c <= n).all()):
        raise ValueError(f"pass_at_k: samples={samples!r}, correct={correct!r}; both count, and correct lies in [0, samples]")
    if k < 1 or (n < k).any():
        raise ValueError(f"pass_at_k: k={k} lies outside [1, {n.min():.0f}], the samples of a task; draw more, or ask for a smaller k")
    all_wrong = np.ones(())
    for j in range(k):  # with fewer than k wrong ones a factor is 0, and the product stays so
        all_wrong = all_wrong * (n - c - j) / (n - j)
    return 1 - all_wrong


def majority_at_k(answers: Sequence[Hashable | None], correct: Sequence[bool], k: int, *, draws: int = 1000, seed: int = 0) -> float:
    """Chance that the most frequent answer of k samples is correct, over subsets of the n that were drawn.

    Each subset votes with the answers it has (None is no vote); the votes of the samples that are tied for first share the
    result evenly, and a subset without a vote is wrong. All subsets are counted when there are at most `draws` of them, else
    `draws` random ones.

    Args:
        answers: what each sample answered, equal answers as equal values.
        correct: whether that was right, one a sample.

    Raises ValueError when lengths differ, k lies outside [1, n], or draws < 1.
    Source: Wang et al. 2023, self-consistency (arXiv 2203.11171).

    >>> majority_at_k(["4", "4", "5"], [True, True, False], k=3)
    1.0
    >>> round(majority_at_k(["4", "4", "5"], [True, True, False], k=2), 6)  # {4, 4} is right, {4, 5} twice a tie: (1 + 1/2 + 1/2) / 3
    0.666667
    """
    n = len(answers)
    if len(correct) != n:
        raise ValueError(f"majority_at_k: {n} answers and {len(correct)} outcomes; give one outcome an answer")
    if not 1 <= k <= n:
        raise ValueError(f"majority_at_k: k={k} lies outside [1, {n}], the samples of the task; draw more, or ask for a smaller k")
    if draws < 1:
        raise ValueError(f"majority_at_k: draws={draws}; use 1 or more")
    if math.comb(n, k) <= draws:
        subsets: Iterable[Sequence[int]] = itertools.combinations(range(n), k)
        count = math.comb(n, k)
    else:
        rng, count = np.random.default_rng(seed), draws
        subsets = (rng.permutation(n)[:k].tolist() for _ in range(draws))
    return math.fsum(_vote([(answers[i], correct[i]) for i in subset]) for subset in subsets) / count


def _vote(samples: Sequence[tuple[Hashable | None, bool]]) -> float:
    votes = Counter(answer for answer, _ in samples if answer is not None)
    if not votes:
        return 0.0
    most = max(votes.values())
    first = [right for answer, right in samples if votes[answer] == most]  # None has no votes
    return sum(first) / len(first)


def fleiss_kappa(counts: ArrayLike) -> float:
    """Agreement of raters beyond chance, ``(P - P_e) / (1 - P_e)``: 1 is perfect, 0 what chance gives, below 0 less than that.

    Args:
        counts: ``[subjects, categories]``, how many raters put a subject in a category; every subject has the same number of raters.

    ``P = mean_i sum_j n_ij (n_ij - 1) / (n (n - 1))`` is the share of agreeing pairs of raters, ``P_e = sum_j p_j^2`` what they would
    agree on by drawing from the overall shares p_j. When every rating is of one category both are 1 and the answer is nan:
    agreement and chance cannot be told apart.
    Raises ValueError for a table that is not 2-D, counts that are not whole or negative, and rows of unequal or fewer than 2 raters.
    Source: Fleiss 1971.

    >>> round(fleiss_kappa([[2, 0], [0, 2], [1, 1]]), 6)  # P = 2/3, P_e = 1/2
    0.333333
    """
    x = np.asarray(counts, np.float64)
    if x.ndim != 2 or x.size == 0:
        raise ValueError(f"fleiss_kappa: counts {x.shape}; it is a table [subjects, categories]")
    if not _whole(x):
        raise ValueError("fleiss_kappa: a count is negative or not a whole number; each says how many raters chose that category")
    raters = x.sum(1)
    n = raters[0]
    if (raters != n).any():
        odd = int(np.argmax(raters != n))
        raise ValueError(f"fleiss_kappa: row {odd} has {raters[odd]:.0f} ratings and row 0 has {n:.0f}; leave incomplete subjects out")
    if n < 2:
        raise ValueError(f"fleiss_kappa: {n:.0f} rating(s) a subject; agreement needs 2 raters or more")
    agreement = (x * (x - 1)).sum(1).mean() / (n * (n - 1))
    chance = ((x.sum(0) / x.sum()) ** 2).sum()
    return float("nan") if chance == 1 else float((agreement - chance) / (1 - chance))


def _whole(x: Array) -> bool:
    return bool((np.isfinite(x) & (x >= 0) & (x == np.rint(x))).all())


def _paired(caller: str, **arrays: ArrayLike) -> list[Array]:
    (left, x), (right, y) = [(name, np.asarray(a, np.float64)) for name, a in arrays.items()]
    if x.shape != y.shape or x.size == 0:
        raise ValueError(f"{caller}: {left} {x.shape} and {right} {y.shape} must be equal in shape and not empty")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError(f"{caller}: {left} or {right} hold NaN or infinity; leave failed samples out and count them")
    return [x, y]
