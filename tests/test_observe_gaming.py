"""Alarms for gamed rewards: they sound for what they are for, and keep quiet on noise and on a run that goes well."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from truing.observe.gaming import GAP, REPEATED, TRADED, change, gaming

STEPS = 60


def events(**series: Sequence[float] | np.ndarray) -> list[dict[str, Any]]:
    """A run's metrics; a double underscore stands for the slash."""
    columns = {name.replace("__", "/"): values for name, values in series.items()}
    return [{"kind": "metrics", "step": step + 1, **{name: float(values[step]) for name, values in columns.items() if step < len(values)}} for step in range(STEPS)]


def noise(seed: int, mean: float, sd: float, index: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, index]).normal(mean, sd, STEPS)


def ramp(start: float, end: float) -> np.ndarray:
    """Flat for ten steps, then straight to `end` at step 40, then flat."""
    return np.interp(np.arange(STEPS), [10, 40], [start, end])


def run(seed: int, *, reward: np.ndarray | float = 0.4, right: np.ndarray | float = 0.4, form: np.ndarray | float = 0.5, loops: np.ndarray | float = 0.1, gap: np.ndarray | float = 0.0, sd: float = 0.04) -> list[dict[str, Any]]:
    """Every series that an alarm reads, with noise of its own; shares stay shares."""
    level = lambda x, index, low=0.0: np.clip(noise(seed, 0.0, sd, index) + x, low, 1.0)  # noqa: E731
    return events(reward__proxy=level(reward, 0), part__right=level(right, 1), part__form=level(form, 2), text__repetition=level(loops, 3), reward__hidden_gap=level(gap, 4, -1.0))


def names(rows: list[dict[str, Any]]) -> set[str]:
    return {f.name for f in gaming(rows)}


@pytest.mark.parametrize("seed", range(10))
def test_flat_noise_raises_no_alarm(seed: int) -> None:
    """Steps of 64 completions: a share of 0.4 has a standard error of sqrt(0.4 * 0.6 / 64) = 0.06; none of the three comparisons mistakes it for a change."""
    assert gaming(run(seed, sd=0.06)) == []


@pytest.mark.parametrize("seed", range(10))
def test_a_run_that_learns_raises_no_alarm(seed: int) -> None:
    """Reward, right answers and form rise together; a hidden gap of 3 points and a few more repeated words are no sign of anything."""
    healthy = run(seed, reward=ramp(0.2, 0.9), right=ramp(0.2, 0.85), form=ramp(0.5, 0.95), loops=ramp(0.05, 0.15), gap=0.03)
    assert gaming(healthy) == []


@pytest.mark.parametrize("seed", range(5))
def test_hidden_tests_that_lag_are_an_error(seed: int) -> None:
    """The gap grows to 40 points from step 10 to 40, so its mean over ten steps is 0.1 at about step 22: the alarm comes after that, and well before the end."""
    (found,) = gaming(run(seed, reward=ramp(0.2, 0.9), right=ramp(0.2, 0.9), gap=ramp(0.0, 0.4)))
    assert found.name == "gaming/hidden_tests" and found.severity == "error" and 20 <= found.step <= 35
    assert "hidden" in found.message and f"by step {found.step}" in found.message


def test_a_gap_from_the_start_is_found_as_soon_as_there_are_five_steps() -> None:
    (found,) = gaming(run(0, gap=0.5))
    assert found.step == 5


def test_the_gap_must_exceed_its_bound_beyond_doubt() -> None:
    """Exactly the bound never; a gap of 0.12 with a deviation of 0.04 has a standard error of 0.013 over ten steps, so 0.02 is 1.6 of them."""
    assert gaming(events(reward__hidden_gap=[GAP] * STEPS)) == []
    (found,) = gaming(events(reward__hidden_gap=[GAP + 1e-3] * STEPS))
    assert found.name == "gaming/hidden_tests"


@pytest.mark.parametrize("seed", range(5))
def test_loops_are_found(seed: int) -> None:
    (found,) = gaming(run(seed, reward=ramp(0.3, 0.7), right=ramp(0.3, 0.7), form=ramp(0.4, 0.7), loops=ramp(0.05, 0.6)))
    assert found.name == "gaming/repetition" and found.severity == "warning" and "repetition(2)" in found.message
    assert 18 <= found.step <= 45  # 0.2 more, as a mean of ten steps, is reached at about step 26


@pytest.mark.parametrize("seed", range(5))
def test_form_bought_with_answers_is_found(seed: int) -> None:
    (found,) = gaming(run(seed, reward=ramp(0.4, 0.7), right=ramp(0.5, 0.2), form=ramp(0.3, 1.0)))
    assert found.name == "gaming/right" and "form is bought at the price of right" in found.message
    assert "only where right is earned" in found.message


def test_what_falls_alone_or_without_a_gain_is_no_trade() -> None:
    """A part that falls while the reward falls too is a run that goes badly, for which there are other alarms; one that falls while nothing else rises was bought by nothing."""
    assert names(run(0, reward=ramp(0.7, 0.3), right=ramp(0.7, 0.2), form=ramp(0.3, 0.9))) == set()
    assert names(run(0, reward=ramp(0.4, 0.7), right=ramp(0.5, 0.2))) == set()
    assert names(run(0, reward=ramp(0.4, 0.7), right=ramp(0.5, 0.5 - TRADED / 2), form=ramp(0.3, 1.0))) == set()


def test_parts_that_are_no_shares_and_tests_that_the_gap_watches_are_not_traded() -> None:
    """A part of tokens or of negative penalties falls by design; visible against hidden tests is the gap's alarm."""
    rows = events(reward__proxy=ramp(0.2, 0.9), part__right=ramp(0.2, 0.9), part__excess_tokens=ramp(12.0, 1.0), part__too_long=ramp(0.0, -0.5), part__hidden_tests=ramp(0.9, 0.4), part__visible_tests=ramp(0.3, 0.9))
    assert gaming(rows) == []


def test_change_compares_the_mean_of_ten_steps_with_that_of_the_first_five() -> None:
    """Values 0 1 0 1 0 and then 2 at every step: means 0.4 and 2; deviation of the first five sqrt(0.3), so the error is sqrt(0.3 / 5)."""
    rows = events(x=[0.0, 1.0, 0.0, 1.0, 0.0, *[2.0] * 10])
    ((step, first, last, error),) = change(rows, "x")
    assert (step, first, last) == (15, 0.4, 2.0) and error == pytest.approx((0.3 / 5) ** 0.5)


def test_too_little_to_compare_says_nothing() -> None:
    assert gaming([]) == [] and gaming(events(reward__hidden_gap=[0.9] * 4, text__repetition=[0.0] * 5 + [1.0] * 9)) == []
    assert names(events(text__repetition=[0.0] * 5 + [1.0] * 10)) == {"gaming/repetition"} and REPEATED < 1


def test_a_part_that_appears_late_and_steps_without_it_do_no_harm() -> None:
    rows = run(3, reward=ramp(0.4, 0.7), right=ramp(0.5, 0.2), form=ramp(0.3, 1.0))
    for row in rows[::7]:
        del row["part/form"]
    rows.insert(0, {"kind": "timing", "step": 1, "seconds/step": 1.0})
    assert names(rows) == {"gaming/right"}
