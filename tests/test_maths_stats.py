"""Statistics by hand: closed forms, published tables, and draws whose quantiles are known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from truing.maths import stats


# -- bootstrap -----------------------------------------------------------------------------------------------------------
def test_bootstrap_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        found = stats.bootstrap(rng.normal(1.0, 2.0, 60), resamples=1000, seed=trial)
        hits += found.low <= 1.0 <= found.high
    assert 0.90 <= hits / 200 <= 0.985


def test_bootstrap_resamples_rows_not_cells() -> None:
    rows = np.repeat(np.random.default_rng(1).normal(size=(30, 1)), 50, axis=1)  # 50 copies of each row carry no more information than one
    wide, one = stats.bootstrap(rows), stats.bootstrap(rows[:, 0])
    assert wide.high - wide.low == pytest.approx(one.high - one.low, rel=1e-9)


def numbered(draws: stats.Array) -> stats.Array:
    return np.arange(len(draws), dtype=float)  # 0, 1, 2, ... whatever was resampled


def test_bootstraps_bounds_are_the_quantiles_of_its_draws() -> None:
    found = stats.bootstrap([1.0, 2.0], resamples=101, level=0.9, statistic=numbered)
    assert (found.mean, found.low, found.high) == (0, pytest.approx(5), pytest.approx(95))
    default = stats.bootstrap([1.0, 2.0], resamples=401, statistic=numbered)
    assert (default.low, default.high) == (pytest.approx(10), pytest.approx(390))  # 95%


@pytest.mark.parametrize("resamples", [1, 2, 499, 500, 501, 999, 1000, 1001])
def test_bootstrap_draws_as_often_as_it_is_asked(resamples: int) -> None:
    shapes = []

    def counting(draws: stats.Array) -> stats.Array:
        shapes.append(draws.shape)
        return np.asarray(draws.mean((1, 2)))

    stats.bootstrap([[1.0, 5.0], [2.0, 6.0], [4.0, 7.0]], resamples=resamples, statistic=counting)
    assert sum(s[0] for s in shapes) == resamples + 1  # and the sample itself, once
    assert max(s[0] for s in shapes) <= 500 and {s[1:] for s in shapes} == {(3, 2)}


def test_bootstrap_draws_every_row_equally_often() -> None:
    counts = np.zeros(4)

    def counting(draws: stats.Array) -> stats.Array:
        if len(draws) > 1:
            counts[:] += np.bincount(draws.astype(int).ravel(), minlength=4)
        return np.asarray(draws.mean(1))

    stats.bootstrap([0, 1, 2, 3], resamples=5000, statistic=counting)
    assert counts.sum() == 20_000 and np.abs(counts - 5000).max() < 5 * (20_000 * 0.25 * 0.75) ** 0.5


def test_bootstrap_of_a_mean_is_as_wide_as_theory_says() -> None:
    x = np.random.default_rng(5).normal(3.0, 2.0, 400)
    found = stats.bootstrap(x)
    assert found.mean == pytest.approx(x.mean(), rel=1e-12)
    assert (found.high - found.low) / (2 * 1.959964 * x.std() / 20) == pytest.approx(1, abs=0.03)  # mean +- 1.96 s / sqrt n
    assert (found.high + found.low) / 2 == pytest.approx(found.mean, abs=0.01)
    assert stats.bootstrap(x, level=0.95, resamples=10_000, seed=0) == found  # the defaults
    assert stats.bootstrap(x, seed=1) != found and stats.bootstrap(x, seed=0) == found
    # worked in float64: in float32, 2^24 + 1 is 2^24
    assert stats.bootstrap(np.float32([2**24, 1, 1, 1])).mean == (2**24 + 3) / 4
    assert stats.bootstrap(x.reshape(100, 2, 2)).mean == pytest.approx(x.mean())
    assert stats.bootstrap(x, statistic=lambda a: np.asarray(np.median(a, 1))).mean == np.median(x)


# -- proportions ---------------------------------------------------------------------------------------------------------
def test_wilson_by_hand() -> None:
    # z = 2, 2 of 4: centre (.5 + 4/8) / (1 + 4/4) = .5; half = 2 sqrt(.25/4 + 4/64) / 2 = sqrt(1/8)
    assert stats.wilson(2, 4, z=2) == pytest.approx((0.5, 0.5 - 0.125**0.5, 0.5 + 0.125**0.5))
    # z = 3, 1 of 9: centre (1/9 + 9/18) / (1 + 1) = 11/36; half = 3 sqrt(8/81/9 + 9/324) / 2 = 1.5 sqrt(8/729 + 1/36)
    half = 1.5 * (8 / 729 + 1 / 36) ** 0.5
    assert stats.wilson(1, 9, z=3) == pytest.approx((1 / 9, 11 / 36 - half, 11 / 36 + half))
    assert stats.wilson(8, 10) == pytest.approx((0.8, 0.490162, 0.943318), abs=5e-7)
    assert stats.wilson(0.5, 1).mean == 0.5  # shares of raters count too
    for n in range(1, 60):  # none: [0, z^2 / (n + z^2)]; all: the mirror; exactly, where rounding would leave 0 and 1
        none, every, z2 = stats.wilson(0, n), stats.wilson(n, n), 1.959963984540054**2
        assert (none.mean, none.low) == (0, 0) and none.high == pytest.approx(z2 / (n + z2))
        assert (every.mean, every.high) == (1, 1) and every.low == pytest.approx(n / (n + z2))


def test_pass_at_k_equals_human_evals_numbers() -> None:
    assert stats.pass_at_k(10, [3, 0, 10], 1) == pytest.approx([0.3, 0, 1])
    assert stats.pass_at_k(10, [3, 0, 10], 5) == pytest.approx([0.916667, 0, 1], abs=5e-7)
    assert stats.pass_at_k(200, [1, 5, 50], 10) == pytest.approx([0.05, 0.228284, 0.947906], abs=5e-7)
    assert stats.pass_at_k(200, [1, 5, 50], 100) == pytest.approx([0.5, 0.970308, 1], abs=5e-7)


def test_pass_at_k_by_hand() -> None:
    assert stats.pass_at_k([2, 4], 1, 2) == pytest.approx([1, 0.5])  # 1 - C(1, 2) / C(2, 2), 1 - C(3, 2) / C(4, 2)
    assert stats.pass_at_k([2, 4], [1, 2], 1) == pytest.approx([0.5, 0.5])
    assert float(stats.pass_at_k(7, 2, 7)) == 1 and float(stats.pass_at_k(7, 0, 7)) == 0
    assert np.shape(stats.pass_at_k(7, 2, 3)) == () and stats.pass_at_k([[7, 7]], 2, 3).shape == (1, 2)
    assert float(stats.pass_at_k(10**6, 1, 1000)) == pytest.approx(1e-3, rel=1e-9)  # C(10^6, 1000) has 3,432 digits; c = 1 gives k / n


# -- agreement -----------------------------------------------------------------------------------------------------------
WIKIPEDIA = [  # 10 subjects, 5 categories, 14 raters
    [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
    [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
]  # fmt: skip


def test_fleiss_kappa_equals_the_published_example() -> None:
    assert stats.fleiss_kappa(WIKIPEDIA) == pytest.approx(0.20993, abs=5e-6)


def test_fleiss_kappa_by_hand() -> None:
    assert stats.fleiss_kappa([[3, 0], [0, 3]]) == 1  # perfect, and both categories used
    assert stats.fleiss_kappa([[1, 1], [1, 1]]) == pytest.approx(-1)  # no pair agrees: P = 0, P_e = 1/2
    # 3 raters: agreeing pairs 3 of 3, 1 of 3: P = 2/3; shares 4/6 and 2/6: P_e = 5/9; (2/3 - 5/9) / (4/9) = 1/4
    assert stats.fleiss_kappa([[3, 0], [1, 2]]) == pytest.approx(0.25)
    assert stats.fleiss_kappa([[3, 0, 0], [1, 2, 0]]) == pytest.approx(0.25)  # a category nobody chose changes nothing
    with np.errstate(all="raise"):  # said on purpose, not by dividing 0 by 0
        assert np.isnan(stats.fleiss_kappa([[3, 0], [3, 0]]))  # one category only: nothing to tell agreement from chance
        assert np.isnan(stats.fleiss_kappa([[2]]))


def test_random_raters_agree_by_chance_only() -> None:
    table = np.random.default_rng(0).multinomial(5, [0.2, 0.5, 0.3], size=4000)
    assert abs(stats.fleiss_kappa(table)) < 0.02  # the standard error is about sqrt(2 / (4000 * 5 * 4)) = .005


# -- calibration and values ----------------------------------------------------------------------------------------------
def test_calibration_error_by_hand() -> None:
    # bin .0-.1: p .05, y 0 -> .05 off, twice; bin .9-1: p .95, y 1, 0 -> |.5 - .95| = .45, twice. (2 * .05 + 2 * .45) / 4 = .25
    assert stats.calibration_error([0.05, 0.05, 0.95, 0.95], [0, 0, 1, 0]) == pytest.approx(0.25)


def test_calibration_bins_are_equal_and_the_last_is_closed() -> None:
    # 2 bins, .49 | .5 and 1: |0 - .49| once, |(1 + 0) / 2 - .75| = .25 twice, of 3
    assert stats.calibration_error([0.49, 0.5, 1.0], [0, 1, 0], bins=2) == pytest.approx((0.49 + 0.5) / 3)
    assert stats.calibration_error([0.2, 0.8], [1, 0], bins=1) == pytest.approx(0.0)  # one bin: means .5 and .5
    assert stats.calibration_error([0.2, 0.8], [1, 0], bins=2) == pytest.approx(0.8)
    assert stats.calibration_error([1.0], [1.0]) == 0 and stats.calibration_error([0.0], [1.0]) == 1
    # 10 by default: errors of opposite sign cancel within .1-.2, and do not across .2 or .1
    assert stats.calibration_error([0.11, 0.19], [0.19, 0.11]) == pytest.approx(0)
    assert stats.calibration_error([0.19, 0.21], [0.21, 0.19]) == pytest.approx(0.02)
    assert stats.calibration_error([0.09, 0.11], [0.11, 0.09]) == pytest.approx(0.02)
    assert stats.calibration_error([0.91, 0.95, 1.0], [0.95, 0.91, 1.0]) == pytest.approx(0)
    assert stats.calibration_error([0.95, 1.0], [1.0, 0.95]) == pytest.approx(0)  # 1 belongs to the last bin


def test_explained_variance_by_hand() -> None:
    assert stats.explained_variance([1, 2, 3], [1, 2, 3]) == 1
    assert stats.explained_variance([2, 2, 2], [1, 2, 3]) == pytest.approx(0)
    # errors 1, 0, 0: variance 2/9; targets 1, 2, 3: variance 2/3
    assert stats.explained_variance([0, 2, 3], [1, 2, 3]) == pytest.approx(1 - (2 / 9) / (2 / 3))
    assert stats.explained_variance([5, 6, 7], [1, 2, 3]) == pytest.approx(1)  # a constant offset is not variance
    assert stats.explained_variance([3, 2, 1], [1, 2, 3]) == pytest.approx(-3)  # errors -2, 0, 2: worse than a constant
    assert np.isnan(stats.explained_variance([1, 2], [3, 3]))
    assert np.isnan(stats.explained_variance([1, 2, 4], [0.1, 0.1, 0.1]))  # whose variance is not 0 in floating point


# -- majority votes ------------------------------------------------------------------------------------------------------
def test_majority_of_all_is_the_most_frequent_answer() -> None:
    assert stats.majority_at_k(["a", "b", "b"], [True, False, False], 3) == 0.0  # b has more votes, and is wrong
    assert stats.majority_at_k(["a", "a", "b"], [True, True, False], 3) == 1.0
    assert stats.majority_at_k(["a", "b"], [True, False], 2) == 0.5  # a tie shares the result
    assert stats.majority_at_k([None, None, "a"], [False, False, True], 3) == 1.0  # no answer is no vote
    assert stats.majority_at_k([None, None], [False, False], 2) == 0.0


def test_majority_of_one_is_the_mean() -> None:
    assert stats.majority_at_k(["a", "b", "c", "a"], [True, False, False, True], 1) == 0.5


def test_majority_agrees_with_the_binomial_formula() -> None:
    """Of 5 samples drawn without replacement from 20, 14 right and 6 alike wrong, at least 3 are right: hypergeometric."""
    n, c, k = 20, 14, 5
    expected = sum(math.comb(c, i) * math.comb(n - c, k - i) for i in range(3, 6)) / math.comb(n, k)
    answers, right = ["x"] * c + ["y"] * (n - c), [True] * c + [False] * (n - c)
    assert stats.majority_at_k(answers, right, k, draws=math.comb(n, k)) == pytest.approx(expected, abs=1e-12)  # every subset
    sampled = stats.majority_at_k(answers, right, k, draws=math.comb(n, k) - 1)
    assert sampled != expected and sampled == pytest.approx(expected, abs=4 * (expected * (1 - expected) / (math.comb(n, k) - 1)) ** 0.5)
    assert stats.majority_at_k(answers, right, k, draws=50) == stats.majority_at_k(answers, right, k, draws=50)
    assert stats.majority_at_k(answers, right, k, draws=50) != stats.majority_at_k(answers, right, k, draws=50, seed=1)


@pytest.mark.parametrize(("arguments", "message"), [((["a"], [True, False], 1), "1 answers and 2 outcomes"), ((["a"], [True], 2), r"k=2 lies outside \[1, 1\]"), ((["a"], [True], 0), "k=0")])
def test_majority_refuses(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stats.majority_at_k(*arguments)
    with pytest.raises(ValueError, match="draws=0"):
        stats.majority_at_k(["a"], [True], 1, draws=0)
    assert stats.majority_at_k(["a"], [True], 1, draws=1) == 1.0


def test_majority_counts_every_subset_up_to_a_thousand() -> None:
    """C(14, 4) = 1001 subsets are one too many to count by default, C(13, 4) = 715 are not."""
    answers, right = ["x"] * 9 + ["y"] * 5, [True] * 9 + [False] * 5
    assert stats.majority_at_k(answers, right, 4) != stats.majority_at_k(answers, right, 4, draws=1001)
    assert stats.majority_at_k(answers[1:], right[1:], 4) == stats.majority_at_k(answers[1:], right[1:], 4, draws=715)
