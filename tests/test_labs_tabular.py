"""The tabular labs: what they predict in closed form, that their claims hold on a few seeds, and that a claim can fail."""

from __future__ import annotations

import doctest
import importlib

import numpy as np
import orjson
import pytest

from truing.config import make_options
from truing.errors import ConfigError
from truing.labs import cliff, discount, gridworld, walk
from truing.labs.canvas import png
from truing.labs.lab import Findings, find
from truing.labs.tabular import episodes_until, first_best, optimal, steps_to_end
from truing.maths.planning import greedy
from truing.observe.events import plain

LABS = {"gridworld": gridworld, "discount": discount, "walk": walk, "cliff": cliff}


def run(name: str, *options: str, seeds: int = 3) -> Findings:
    lab = find(name)
    chosen = make_options(lab.Options, options)
    assert len(lab.expectation(chosen)) > 60
    findings = lab.run(chosen, list(range(seeds)))
    for figure in findings.figures.values():
        assert png(figure, 40).startswith(b"\x89PNG")
    orjson.dumps(plain(findings.document()))  # as the command line writes it
    return findings


def failed(findings: Findings) -> list[str]:
    return [check.claim for check in findings.checks if not check.held]


@pytest.mark.parametrize("module", ["tabular", "discount"])
def test_docstrings_hold(module):
    found = doctest.testmod(importlib.import_module(f"truing.labs.{module}"))
    assert found.attempted and not found.failed


# -- gridworld ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, checks",
    [
        (("exercise=main",), 4),
        (("exercise=walls",), 4),
        (("exercise=exploration", "episodes=250"), 4),
        (("exercise=penalty", "episodes=200"), 4),
        (("exercise=random",), 3),
        (("exercise=slip",), 3),
    ],
)
def test_gridworld_holds(options, checks):
    findings = run("gridworld", *options)
    assert failed(findings) == [] and len(findings.checks) == checks


def test_gridworld_reinforce_holds():
    findings = run("gridworld", "exercise=reinforce", "episodes=300", seeds=5)
    assert failed(findings) == []


def test_gridworlds_exact_numbers():
    # The shortest way has 6 steps: 5 cost 0.01, the last pays 1. V(start) = 0.99^5 - 0.01 (1 + 0.99 + ... + 0.99^4)
    findings = run("gridworld", seeds=2)
    exact = {row[0]: row[2] for row in findings.tables[0].rows}
    assert exact["value of the start"] == pytest.approx(0.99**5 - 0.01 * sum(0.99**t for t in range(5)))
    assert exact["steps to the goal, greedy"] == pytest.approx(6)
    assert exact["return, greedy"] == pytest.approx(0.95)


def test_the_winding_way_is_as_long_as_it_looks():
    # Down 5, right 2, up 5, right 2 (to column 4), then down 5 and right 1 in some order: 20.
    options = make_options(gridworld.Options, ["exercise=walls"])
    assert options.blocks == tuple((r, 1) for r in range(5)) + tuple((r, 3) for r in range(1, 6))
    assert run("gridworld", "exercise=walls", seeds=2).values["shortest"] == pytest.approx(20)


def test_a_claim_about_the_grid_can_fail():
    claims = failed(run("gridworld", "episodes=20"))  # far too few
    assert "the start's value is exact to 0.02" in claims and "no estimate exceeds the exact value" not in claims


@pytest.mark.parametrize(
    "options, words",
    [
        (["exercise=wall"], "walls"),
        (["size=1"], "size=1"),
        (["slip=1.5"], "slip=1.5"),
        (["discount=1.1"], "discount=1.1"),
        (["step_reward=0.1"], "step_reward=0.1"),
        (["exercise=exploration", "epsilon=0"], "epsilon=0 never explores"),
        (["exercise=slip", "slip=0"], "slip above 0"),
        (["exercise=penalty", "step_reward=0"], "below 0"),
        (["wals=[]"], "did you mean 'walls'"),
    ],
)
def test_gridworld_options_that_cannot_be_meant(options, words):
    with pytest.raises(ConfigError, match=words):
        make_options(gridworld.Options, options)


def test_walls_that_close_the_way_are_refused():
    with pytest.raises(ConfigError, match="cannot be reached"):
        run("gridworld", "walls=[[0, 1], [1, 0]]")


@pytest.mark.parametrize("name", LABS)
def test_one_seed_is_no_evidence(name):
    with pytest.raises(ConfigError, match="--seeds 2 or more"):
        LABS[name].run(LABS[name].Options(), [0])


# -- discount -----------------------------------------------------------------------------------------------------------


def test_discount_holds_and_every_gamma_takes_another_road():
    findings = run("discount")
    assert failed(findings) == []
    assert [row[2] for row in findings.tables[0].rows] == ["1 step, pays 1", "3 steps, pays 5", "20 steps, pays 10", "100 steps, pays 20"]
    # (1/5)^(1/2), (5/10)^(1/17), (10/20)^(1/80)
    assert findings.values["switches"] == pytest.approx([0.2**0.5, 0.5 ** (1 / 17), 0.5 ** (1 / 80)])


def test_a_road_that_is_never_best_is_never_switched_to():
    # 1 step pays 1; 2 steps pay 1.1 (from gamma 0.909); 3 steps pay 2 (from 0.707, before the second is reached)
    assert discount.switches([(1, 1.0), (2, 1.1), (3, 2.0)]) == [(0, 2, pytest.approx(0.5**0.5))]
    assert discount.switches([(1, 2.0), (5, 1.0)]) == []


def test_the_fork_is_the_roads():
    env = discount.fork([(1, 1.0), (3, 5.0)])
    for road, (steps, reward) in enumerate([(1, 1.0), (3, 5.0)]):
        env.reset(seed=0)
        rewards, over = [], False
        while not over:
            _, pay, over, _, _ = env.step(road)
            rewards.append(pay)
        assert rewards == [0.0] * (steps - 1) + [reward]


def test_too_few_walks_do_not_bring_the_news_home():
    # the news travels one state a walk; 120 walks are about 30 down each road, too few for the one of 100 steps
    assert "its values at the fork are exact to 0.05" in failed(run("discount", "episodes=120"))


@pytest.mark.parametrize("options, words", [(["roads=[[3, 1], [1, 5]]"], "shortest first"), (["discounts=[0.5, 1.0]"], "no horizon")])
def test_discount_refuses(options, words):
    with pytest.raises(ConfigError, match=words):
        run("discount", *options)


# -- walk and cliff -----------------------------------------------------------------------------------------------------


def test_walk_holds():
    findings = run("walk")
    assert failed(findings) == [] and len(findings.checks) == 5
    assert all(e[0] == pytest.approx(np.sqrt((4 + 1 + 0 + 1 + 4) / 36 / 5)) for e in findings.values["rms"].values())


def test_a_claim_about_the_walk_can_fail():
    assert "TD(0)'s smallest error is below Monte Carlo's" in failed(run("walk", "td=[0.9]", "monte_carlo=[0.02]", "runs=20"))


def test_walk_refuses_an_even_number_of_states():
    with pytest.raises(ConfigError, match="n=6"):
        run("walk", "states=6")


def test_cliff_holds():
    findings = run("cliff", "episodes=250", seeds=6)
    claims = {check.claim: check for check in findings.checks}
    assert claims["Q-learning's greedy way returns exactly -13 on every seed"].held
    assert claims["expected SARSA's is better again"].held
    online = findings.values["online"]
    assert np.mean(online["sarsa"]) - np.mean(online["q_learning"]) >= 15


def test_without_exploration_the_safe_way_is_worth_nothing():
    claims = failed(run("cliff", "epsilon=0", "episodes=200"))
    assert "SARSA's return while learning is better than Q-learning's by 15 or more" in claims


def test_cliff_by_epsilon_holds():
    assert failed(run("cliff", "exercise=epsilon", "epsilons=[0.01, 0.2]", "episodes=250")) == []


def test_one_epsilon_is_nothing_to_compare():
    with pytest.raises(ConfigError, match="two different"):
        run("cliff", "exercise=epsilon", "epsilons=[0.1, 0.1]")


# -- what they share ----------------------------------------------------------------------------------------------------


def test_steps_to_end_of_a_straight_way():
    mdp = discount.fork([(4, 1.0), (2, 3.0)]).mdp()
    _, q = optimal(mdp, 0.5)  # 1/8 against 3/2
    assert steps_to_end(mdp, greedy(q))[0] == pytest.approx(2)
    assert first_best(q)[0].tolist() == [0.0, 1.0]


def test_episodes_until_counts_whole_windows():
    # windows of 2: means 5, 2, 1, so the level 2 is met when three episodes are over; the second row never does
    assert episodes_until([[8, 2, 2, 0], [9, 9, 9, 9]], 2.0, width=2).tolist() == [3, 4]
