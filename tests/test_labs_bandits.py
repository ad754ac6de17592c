"""The labs on bandits and on the corridor: published numbers where they are cheap, every exercise once, and the wrong sign."""

from __future__ import annotations

import doctest
import math

import numpy as np
import pytest

from truing.config import make_options
from truing.envs.chains import CORRIDOR_BEST_VALUE, corridor_value
from truing.errors import ConfigError
from truing.labs import bandit_study, bandits, corridor
from truing.labs.bandit_study import meets, play_all
from truing.labs.lab import Findings, find
from truing.maths.stats import Interval
from truing.methods.bandit import EpsilonGreedy

BANDITS = ["main", "temperature", "testbed", "optimism", "ucb", "gradient", "parameters", "crossover"]


def complete(findings: Findings) -> bool:
    """One figure, tables with rows, checks with numbers in them."""
    return len(findings.figures) == 1 and all(t.rows for t in findings.tables) and all(any(c.isdigit() for c in check.measured) for check in findings.checks)


def test_doctests_hold() -> None:
    assert doctest.testmod(bandits).failed == 0 < doctest.testmod(bandits).attempted


# -- bandits ---------------------------------------------------------------------------------------------------------------


def test_the_testbed_meets_the_published_numbers() -> None:
    findings = find("bandits").run(make_options(bandits.Options, ["exercise=testbed"]), [0, 1])
    assert len(findings.checks) == 6 and findings.held, [c for c in findings.checks if not c.held]
    assert complete(findings)


@pytest.mark.parametrize("exercise", BANDITS)
def test_every_exercise_runs_and_says_what_it_expects(exercise: str) -> None:
    options = make_options(bandits.Options, [f"exercise={exercise}", "problems=60", "steps=100"])
    findings = bandits.run(options, [0, 1])
    assert complete(findings) and len(bandits.expectation(options)) > 50 and "{" not in bandits.expectation(options)
    assert findings.document()["tables"]


def test_published_numbers_are_shown_beside_their_own_setting_only() -> None:
    for steps, shown in ((1000, True), (900, False)):
        findings = bandits.run(make_options(bandits.Options, ["exercise=testbed", "problems=5", f"steps={steps}"]), [0])
        assert ("1.36 to 1.44" in str(findings.tables)) is shown
        assert any("1.36" in check.claim for check in findings.checks) is shown


def test_agents_play_the_same_problems_and_arms_are_ranked() -> None:
    agents = {"a": EpsilonGreedy(epsilon=0), "b": EpsilonGreedy(epsilon=1)}
    played = play_all(agents, [3, 4], problems=20, arms=5, steps=40, windows=[(1, 40), (31, 40)])
    a, b = played["a"], played["b"]
    np.testing.assert_array_equal(a.values, b.values)
    assert a.values.shape == (40, 5) and (np.diff(a.values, axis=1) <= 0).all()
    np.testing.assert_allclose(a.pulls.sum(1), 1)
    np.testing.assert_allclose(b.scores[1, 40].optimal.mean(), b.optimal.mean())  # the window of all pulls is the whole curve
    np.testing.assert_allclose(b.scores[1, 40].optimal, b.pulls[:, 0])
    np.testing.assert_allclose(a.scores[31, 40].reward.mean(), a.rewards[30:].mean())  # pulls 31 to 40, both in it
    fresh = play_all(agents, [4], problems=20, arms=5, steps=40, windows=[(1, 40)])["a"]
    np.testing.assert_array_equal(a.values[20:], fresh.values)  # a seed is itself, whatever ran before it


def test_stretches_keep_the_mean_and_cover_every_pull() -> None:
    x, y = bandit_study._by_stretches(np.arange(1.0, 1001.0))
    assert (np.diff(x) > 0).all() and x[0] == 1
    assert (np.abs(y / x - 1) < 0.05).all()  # the mean over a stretch of t is near the stretch's middle
    assert y[-1] < 1000 < y[-1] * 1.1


def test_an_interval_meets_a_range_that_it_touches() -> None:
    assert meets(Interval(1.35, 1.33, 1.37), 1.36, 1.44) and meets(Interval(1.4, 1.3, 1.5), 1.36, 1.44)
    assert not meets(Interval(1.3, 1.28, 1.32), 1.36, 1.44) and not meets(Interval(1.5, 1.48, 1.52), 1.36, 1.44)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["exercise=testbet"], "exercise='testbet'"),
        (["exercise=testbed", "epsilon=0.2"], "epsilon=0.2 changes nothing in exercise=testbed"),
        (["exercise=ucb", "temperature=0.2"], "temperature=0.2 changes nothing in exercise=ucb"),
        (["epsilon=1.5"], "epsilon=1.5"),
        (["temperature=0"], "temperature=0"),
        (["arms=1"], "arms=1"),
        (["problems=1"], "problems=1"),
        (["tau=1"], "unknown key 'tau'"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_options(bandits.Options, overrides)


# -- the corridor ----------------------------------------------------------------------------------------------------------


def test_one_update_is_the_gradient_of_the_exact_value() -> None:
    """E[change of theta] = alpha dJ/dtheta, with J(theta) = corridor_value(p) known in closed form."""
    # theta_right - theta_left = log(p / (1 - p)) =: d moves by 2 alpha dJ/dd, and dJ/dd = v'(p) p (1 - p), v'(p) = (2p^2 - 8p + 4) / (p (1 - p))^2
    alpha, p = 1e-9, 0.3  # so small that nothing else moves: every episode of every run is one more draw
    options = corridor.Options(runs=400, episodes=150, start=p)
    slope = (2 * p * p - 8 * p + 4) / (p * (1 - p))
    h = 1e-6
    assert slope == pytest.approx((corridor_value(p + h) - corridor_value(p - h)) / (2 * h) * p * (1 - p), rel=1e-5)
    for as_printed in (False, True):  # the same at so small a step
        run = corridor.reinforce(options, [0], alpha, as_printed=as_printed)
        odds = np.log(run.right / (1 - run.right))
        moved = np.diff(odds, axis=0).ravel() / (2 * alpha)
        error = moved.std() / math.sqrt(moved.size)
        assert abs(moved.mean() - slope) < 4 * error
        assert abs(-moved.mean() - slope) > 4 * error
    first = run.returns.ravel()  # and the episodes are the corridor's: their mean is the value
    assert abs(first.mean() - corridor_value(p)) < 4 * first.std() / math.sqrt(first.size)


def test_reinforce_with_a_baseline_finds_the_best_policy_by_episode_150() -> None:
    options = corridor.Options(runs=100, episodes=150)
    based = corridor.reinforce(options, [0], 2.0**-9, 2.0**-6)
    plain = corridor.reinforce(options, [0], 2.0**-13)
    assert abs(based.score(101, 150).mean() - CORRIDOR_BEST_VALUE) < 1.5
    assert plain.score(101, 150).mean() < -20  # the published curve is near -27 there
    assert not based.lost.any()


def test_the_flipped_sign_fails() -> None:
    wrong = corridor.reinforce(corridor.Options(runs=10, episodes=150), [0], -(2.0**-9), 2.0**-6)
    assert wrong.late.mean() < -800 and wrong.lost.mean() > 0.5


def test_a_cut_episode_teaches_nothing() -> None:
    # From p(right) = .02 an episode takes about 202 steps, e^-5 of them over 1,000; a huge step then makes runs deterministic at once.
    run = corridor.reinforce(corridor.Options(runs=20, episodes=150, start=0.02), [0], -1.0)
    cut = run.returns[:-1] == -corridor.LIMIT
    assert cut.any()
    np.testing.assert_array_equal(run.right[1:][cut], run.right[:-1][cut])


@pytest.mark.parametrize("exercise", ["main", "step_size", "baseline", "flipped"])
def test_every_corridor_exercise_runs(exercise: str) -> None:
    options = make_options(corridor.Options, [f"exercise={exercise}", "runs=3", "episodes=150"])
    findings = corridor.run(options, [0, 1])
    assert complete(findings) and len(corridor.expectation(options)) > 50


def test_the_corridor_knows_its_own_optimum() -> None:
    checks = corridor.run(corridor.Options(runs=2, episodes=150), [0]).checks
    assert len(checks) == 2 and all(check.held for check in checks)  # the published curves are of 1,000 episodes and claim nothing here


@pytest.mark.parametrize("override", ["start=0", "start=0.999", "runs=1", "episodes=10", "exercise=all"])
def test_corridor_options_that_cannot_be_meant_are_refused(override: str) -> None:
    with pytest.raises(ConfigError, match=override.split("=")[0]):
        make_options(corridor.Options, [override])
