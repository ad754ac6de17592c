from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from observe_fake_run import ppo_rows
from truing.errors import ConfigError
from truing.observe.monitor import distinct_n, judges_of, overoptimisation, repetition, series, slope, widened


def as_events(rows: list[tuple[str, int, dict[str, Any]]]) -> list[dict[str, Any]]:
    return [{"kind": k, "step": s, **v} for k, s, v in rows]


def test_distinct_by_hand() -> None:
    assert distinct_n(["a b a b"], 2) == pytest.approx(2 / 3)  # ab, ba, ab
    assert distinct_n(["A film", "a FILM"], 1) == pytest.approx(2 / 4)
    assert distinct_n(["a b", "c d"], 2) == 1.0  # "b c" crosses texts and does not count: else 2/3 texts' pairs would be 3
    assert distinct_n(["one", ""], 2) == 0.0 and distinct_n([], 1) == 0.0
    with pytest.raises(ConfigError, match="n=0"):
        distinct_n(["a"], 0)


def test_repetition_by_hand() -> None:
    assert repetition("good film good film good film") == pytest.approx(3 / 5)
    assert repetition("every word here differs") == 0.0
    assert repetition("one") == 0.0 and repetition("") == 0.0
    assert repetition("good " * 101) == pytest.approx(99 / 100)


@given(st.lists(st.text(alphabet="ab \n", max_size=20), max_size=5), st.integers(1, 3))
def test_distinct_is_a_share(texts: list[str], n: int) -> None:
    assert 0.0 <= distinct_n(texts, n) <= 1.0
    assert distinct_n(texts + texts, n) == pytest.approx(distinct_n(texts, n) / 2)  # a copy adds n-grams but none distinct


def test_slope_equals_scipy() -> None:
    from scipy.stats import linregress

    rng = np.random.default_rng(0)
    x, y = np.sort(rng.choice(100, 12, replace=False)), rng.normal(size=12)
    expected = linregress(x, y)
    assert slope(x, y) == pytest.approx((expected.slope, expected.stderr))
    with pytest.raises(ConfigError):
        slope([1, 2], [1, 2])
    with pytest.raises(ConfigError):
        slope([1, 1, 1], [1, 2, 3])


def test_series_takes_the_last_of_a_step_and_leaves_out_what_is_not_finite() -> None:
    values = [(2, 5.0), (1, 1.0), (2, 6.0), (3, "nan"), (4, None), (5, float("inf")), (6, True)]
    events = [{"kind": "metrics", "step": s, "loss": v} for s, v in values]
    steps, y = series([*events, {"kind": "timing", "step": 9, "loss": 9.0}], "loss")
    assert steps.tolist() == [1, 2] and y.tolist() == [1.0, 6.0]
    nested = [{"kind": "metrics", "step": 1, "values": {"loss": 2.0}}]
    assert series(nested, "loss")[1].tolist() == [2.0]


def test_alarm_when_the_judge_falls_while_the_proxy_rises() -> None:
    proxy = [0.1 * s + 0.001 * (-1) ** s for s in range(40)]
    gold = [0.1 * s if s < 20 else 2.0 - 0.1 * (s - 20) for s in range(40)]
    events = [{"kind": "metrics", "step": s, "reward/proxy": proxy[s], "monitor/gold": gold[s], "tokens/mean": 20.0} for s in range(40)]
    found = overoptimisation(events, window=10)
    assert [(f.name, f.severity) for f in found] == [("overoptimisation/monitor/gold", "error")]
    # The judge peaks at step 20. Over ten steps symmetric about the peak (to step 24 or 25) the slope is 0; soon after it is
    # clearly negative, and must stay so for three steps.
    assert 27 <= (found[0].step or 0) <= 31
    assert "proxy rose" in found[0].message and "fell by" in found[0].message


def test_a_judge_that_stands_still_is_a_warning() -> None:
    events = [{"kind": "metrics", "step": s, "reward/proxy": 0.1 * s + 0.001 * (-1) ** s, "monitor/gold": 0.5} for s in range(30)]
    assert [(f.severity, f.step) for f in overoptimisation(events)] == [("warning", 11)]  # ten steps make a window (0 to 9), and it must hold three times


def test_no_alarm_when_both_rise_or_both_fall() -> None:
    for sign in (1, -1):
        events = [{"kind": "metrics", "step": s, "reward/proxy": sign * 0.1 * s, "monitor/gold": sign * 0.01 * s, "tokens/mean": 20.0} for s in range(40)]
        assert overoptimisation(events) == []


def ranks(values: list[float], spread: list[float] | None = None) -> list[dict[str, Any]]:
    """Events whose means rise together: only the rank correlation can raise an alarm. It wobbles by 0.01, so that errors are not 0."""
    spread = spread or [1.0] * len(values)
    both = {s: {"reward/proxy": 0.1 * s, "monitor/gold": 0.1 * s, "reward/score_std": d, "monitor/gold_correlation": v + 0.01 * (-1) ** s} for s, (v, d) in enumerate(zip(values, spread, strict=True))}
    return [{"kind": "metrics", "step": s, **v} for s, v in both.items()]


def test_ranks_that_come_apart_warn_and_then_alarm() -> None:
    # Down from 0.8 by 0.02 a step from step 20 on. A mean of ten steps ending at step e lags by 4.5: it is 0.8 - 0.02 (e - 24.5) = 0.6 at
    # e = 34.5, so the warning comes just after; and 0 at e = 64.5, so the error comes at 65.
    found = overoptimisation(ranks([0.8 - 0.02 * max(0, s - 20) for s in range(90)]))
    assert [(f.name, f.severity) for f in found] == [("overoptimisation/monitor/gold_correlation", s) for s in ("warning", "error")]
    assert 35 <= (found[0].step or 0) <= 38 and found[1].step == 65
    assert "was 0.80 at first" in found[0].message and "no longer means a better text" in found[1].message
    # The same alarm while the run is still going as after it.
    assert [f.step for f in overoptimisation(ranks([0.8 - 0.02 * max(0, s - 20) for s in range(66)]))] == [f.step for f in found]
    assert overoptimisation(ranks([0.8] * 90)) == [] and overoptimisation(ranks([-0.2] * 90)) == []  # a judge that never agreed is no news


def test_a_noisy_judge_of_a_narrower_range_is_no_alarm() -> None:
    # Scores s ~ N(0, spread), judge = s + N(0, 1): correlation spread / sqrt(spread^2 + 1), exactly. At 1 it is 0.707, at 0.4 it is 0.371.
    spread = [1 - 0.6 * min(1.0, s / 60) for s in range(90)]
    noisy = [d / (d * d + 1) ** 0.5 for d in spread]
    assert noisy[0] - noisy[-1] > 0.3
    assert overoptimisation(ranks(noisy, spread)) == []
    assert [f.severity for f in overoptimisation(ranks(noisy))] == ["warning"]  # without the spread, what was expected looks like a loss of touch
    assert widened(noisy[-1], 1 / spread[-1]) == pytest.approx(noisy[0])  # and back: the exact inverse for normal scores
    assert widened(-0.371, 2.5) == pytest.approx(-widened(0.371, 2.5)) and widened(0.0, 3.0) == 0.0 and widened(0.5, 1.0) == 0.5


def test_judges_are_told_from_their_correlations() -> None:
    events = [{"kind": "metrics", "step": 1, "monitor/gold": 1.0, "monitor/gold_correlation": 0.5, "monitor/odd_correlation": 2.0, "reward/proxy": 0.0}]
    assert judges_of(events) == ["monitor/gold", "monitor/odd_correlation"]  # a judge may be called that, when no judge "odd" is there


def test_length_alarm_at_one_and_a_half_times() -> None:
    def run(end: float) -> list[Any]:
        lengths = [20.0] * 10 + [end] * 10
        return overoptimisation([{"kind": "metrics", "step": s, "tokens/mean": n} for s, n in enumerate(lengths)])

    assert run(29.0) == []  # 1.45 times
    (found,) = run(31.0)  # 1.55 times; the first mean of five steps above 30 needs all five long ones: steps 10 to 14
    assert found.name == "overoptimisation/length" and found.step == 14


def test_healthy_runs_seldom_alarm_and_hacked_ones_always() -> None:
    healthy = [overoptimisation(as_events(ppo_rows(seed=s))) for s in range(20)]
    assert sum(any("gold" in f.name for f in found) for found in healthy) <= 2
    for s in range(10):
        names = {(f.name, f.severity) for f in overoptimisation(as_events(ppo_rows(hacked=True, seed=s)))}
        assert ("overoptimisation/monitor/gold", "error") in names and ("overoptimisation/length", "warning") in names


def test_empty_and_short_runs_have_nothing_to_say() -> None:
    assert overoptimisation([]) == []
    assert overoptimisation(as_events(ppo_rows(3))) == []
    with pytest.raises(ConfigError, match="window=2"):
        overoptimisation([], window=2)
