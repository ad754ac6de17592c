"""How good a baseline G answers make: the exercise `groups` of the lab `verifiable`, on warm models, without training.

A group's mean is an estimate of the prompt's chance p of a right answer; its variance is ``p (1 - p) / G``. A group whose answers are all right or
all wrong says nothing, and that happens with chance ``p^G + (1 - p)^G``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from truing.labs import verifiable_draw
from truing.labs.lab import Cell, Check, Findings, Table
from truing.labs.verifiable_runs import held_out, nested
from truing.labs.verifiable_world import right, world
from truing.maths.stats import Interval

SIZES = (4, 16, 64)
DRAWN = 256  # answers to each question; as many groups as they make
Array = NDArray[np.float64]


class Groups(NamedTuple):
    """Of one size, each ``[seeds, prompts]``: variance of the group's mean, the same by the closed form, and the share of groups that say nothing, with its closed form."""

    variance: Array
    expected: Array
    silent: Array
    silent_expected: Array


def of(correct: ArrayLike, size: int) -> Groups:
    """What groups of one size say; ``correct`` is 0 or 1, ``[seeds, prompts, drawn]``.

    The closed forms take the unbiased estimates from all answers drawn: of p (1 - p) ``n / (n - 1) * m (1 - m)`` with their mean m; of p^G and (1 - p)^G the
    chance that G answers taken from the n without putting them back are all right, or all wrong.

    >>> of([[[1, 0, 1, 0]]], 2).variance.tolist()  # both groups have mean 1/2
    [[0.0]]
    """
    x = np.asarray(correct, dtype=float)
    n = x.shape[-1]
    means = x[..., : n // size * size].reshape(*x.shape[:-1], -1, size).mean(-1)
    m = x.mean(-1)
    right = x.sum(-1)
    all_right, all_wrong = (np.prod([(np.maximum(c - j, 0)) / (n - j) for j in range(size)], axis=0) for c in (right, n - right))
    return Groups(means.var(-1, ddof=1), n / (n - 1) * m * (1 - m) / size, np.asarray(((means == 0) | (means == 1)).mean(-1)), np.asarray(all_right + all_wrong))


def run(names: Sequence[str], seeds: Sequence[int], *, until: float, prompts: int, heldout: int) -> Findings:
    """Sample groups from the warm model of every task and seed."""
    found = {name: np.array([_answers(name, seed, until, prompts, heldout) for seed in seeds]) for name in names}
    every = {name: {size: of(correct, size) for size in SIZES} for name, correct in found.items()}
    rows: list[tuple[Cell, ...]] = []
    checks: list[Check] = []
    values = {}
    for name, sizes in every.items():
        for size, groups in sizes.items():
            rows.append((name, size, nested(groups.variance), float(groups.expected.mean()), nested(groups.silent), float(groups.silent_expected.mean())))
        least, middle, most = (sizes[size].variance for size in SIZES)
        falls = [ratio(least, middle), ratio(middle, most)]
        checks.append(Check(f"{name}: the baseline's variance falls fourfold from G 4 to 16", _said(falls[0]), _fourfold(falls[0])))
        checks.append(Check(f"{name}: and again from 16 to 64", _said(falls[1]), _fourfold(falls[1])))
        values[name] = {str(size): {"variance": nested(g.variance), "expected": float(g.expected.mean()), "silent": nested(g.silent)} for size, g in sizes.items()}
    table = Table(
        f"Groups of a warm model, {len(seeds)} seeds, {heldout} questions of {DRAWN} answers",
        ("task", "G", "variance of the group's mean", "p (1 - p) / G", "groups that say nothing", "p^G + (1 - p)^G"),
        rows,
    )
    return Findings(checks, [table], {"verifiable-groups": verifiable_draw.groups(every, SIZES)}, values)


def _answers(name: str, seed: int, until: float, prompts: int, heldout: int) -> NDArray[np.bool_]:
    with world(name, seed, until=until, prompts=prompts, heldout=heldout) as w:
        return right(w.warm, held_out(w), w.task.longest, samples=DRAWN, seed=seed)


def ratio(above: Array, below: Array, *, resamples: int = 1000) -> Interval:
    """Ratio of two means over ``[seeds, prompts]``, with a bootstrap over the questions of each seed.

    >>> ratio(np.full((2, 3), 4.0), np.full((2, 3), 1.0))
    Interval(mean=4.0, low=4.0, high=4.0)
    """
    rng = np.random.default_rng(0)
    seeds, prompts = above.shape
    at = np.arange(seeds)[:, None]
    chosen = [rng.integers(0, prompts, (seeds, prompts)) for _ in range(resamples)]
    draws = [above[at, c].mean() / max(below[at, c].mean(), 1e-12) for c in chosen]
    low, high = np.quantile(draws, [0.025, 0.975])
    return Interval(float(above.mean() / max(below.mean(), 1e-12)), float(low), float(high))


def _fourfold(x: Interval) -> bool:
    """Within a tenth of 4, but for chance: of a handful of exact intervals, one of twenty would miss it."""
    return x.low <= 4.4 and x.high >= 3.6


def _said(x: Interval) -> str:
    return f"by {x.mean:.2f} [{x.low:.2f}, {x.high:.2f}]"
