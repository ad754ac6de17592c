"""Over-optimisation: exact curves against arithmetic and identities, and the alarm against runs whose gold is known."""

from __future__ import annotations

import doctest

import numpy as np
import pytest

from truing.labs import overoptimisation as lab
from truing.labs import overoptimisation_alarm, overoptimisation_curves
from truing.labs.overoptimisation_alarm import Watched, watch
from truing.labs.overoptimisation_curves import Curve, best_of_n, fit, strengths_for, tilt, tilts
from truing.labs.overoptimisation_world import LENGTH, SCENARIOS, SIZE, VOCABULARY, bigram, combined, draw, make, network, tokens
from truing.observe.monitor import Finding


@pytest.fixture(scope="module")
def shared():
    return make("shared flaw", 0, 2)


@pytest.fixture(scope="module")
def small():
    """Seven outcomes: proxies and gold drawn at random, small enough for brute force."""
    rng = np.random.default_rng(5)
    p = rng.random(7)
    return p / p.sum(), rng.standard_normal(7), rng.standard_normal(7)


def test_examples():
    assert doctest.testmod(overoptimisation_curves).attempted > 0 and doctest.testmod(overoptimisation_curves).failed == 0
    assert doctest.testmod(overoptimisation_alarm).failed == 0


# -- the world -----------------------------------------------------------------------------------------------------------


def test_the_bigram_model_multiplies_along_the_sequence():
    rng = np.random.default_rng(0)
    table = rng.random((VOCABULARY + 1, VOCABULARY))
    table /= table.sum(1, keepdims=True)
    prob = bigram(table)
    assert prob.shape == (SIZE,) and prob.sum() == pytest.approx(1)
    for i in rng.integers(0, SIZE, 20):
        said = tokens()[i]
        expected = table[VOCABULARY, said[0]] * np.prod([table[a, b] for a, b in zip(said, said[1:], strict=False)])
        assert prob[i] == pytest.approx(expected)
    assert int("".join(map(str, tokens()[12345])), 8) == 12345  # the last place changes fastest


def test_the_network_reads_every_place():
    rng = np.random.default_rng(1)
    first, bias, last = rng.standard_normal((LENGTH, VOCABULARY, 3)), rng.standard_normal(3), rng.standard_normal(3)
    score = network(first, bias, last, np.tanh)
    for i in rng.integers(0, SIZE, 20):
        assert score[i] == pytest.approx(last @ np.tanh(bias + sum(first[place, token] for place, token in enumerate(tokens()[i]))))


@pytest.mark.parametrize("name", SCENARIOS)
def test_worlds_are_standardised_and_repeatable(name):
    scenario = SCENARIOS[name]
    world, again, other = (scenario.make(np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert world.reference.sum() == pytest.approx(1) and world.reference.min() > 0
    assert world.reference @ world.gold == pytest.approx(0, abs=1e-9) and world.reference @ world.gold**2 == pytest.approx(1)
    assert (world.gold == again.gold).all() and (world.gold != other.gold).any()


def test_a_proxy_has_learned_and_members_differ(shared):
    world, scores = shared
    assert scores.shape == (2, SIZE) and np.allclose(scores @ world.reference, 0, atol=1e-9)
    correlation = (scores * world.gold) @ world.reference
    assert (correlation > 0.6).all() and not np.allclose(scores[0], scores[1])
    assert np.abs(make("shared flaw", 0, 1)[1][0] - scores[0]).max() < 1e-3  # a member does not depend on how many there are


def test_draws_follow_the_probabilities(small):
    p, _, _ = small
    n = 20_000
    seen = np.bincount(draw(p, n, np.random.default_rng(0)), minlength=7) / n
    assert np.abs(seen - p).max() < 4 * 0.5 / n**0.5


def test_combinations_by_hand():
    found = combined(np.array([[1.0, 4.0], [3.0, 0.0]]), 0.5)  # variances 1 and 4
    assert {k: v.tolist() for k, v in found.items()} == {"single": [1.0, 4.0], "mean": [2.0, 2.0], "min": [1.0, 0.0], "mean - var": [1.5, 0.0]}


# -- the curves ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ties", [False, True])
def test_best_of_n_equals_enumeration(small, ties):
    p, gold, proxy = small
    proxy = np.round(proxy) if ties else proxy
    for n in (1, 2, 3):
        q = np.zeros(7)
        for draws in np.ndindex(*(7,) * n):  # every n-tuple; among equal proxies any of the drawn ones, by chance
            best = [i for i in draws if proxy[i] == max(proxy[j] for j in draws)]
            for i in best:
                q[i] += np.prod(p[list(draws)]) / len(best)
        curve = best_of_n(p, gold, proxy, [n])
        assert curve.gold[0] == pytest.approx(q @ gold) and curve.proxy[0] == pytest.approx(q @ proxy)
        assert curve.kl[0] == pytest.approx(q @ np.log(q / p), abs=1e-12)


def test_best_of_n_keeps_its_bounds(shared):
    world, scores = shared
    n = np.array([1, 2, 16, 1024])
    curve = best_of_n(world.reference, world.gold, scores[0], n)
    bound = np.log(n) - (n - 1) / n  # an upper bound, reached when no sequence is likely
    assert (curve.kl <= bound + 1e-9).all() and curve.kl[2] == pytest.approx(bound[2], rel=0.02)
    assert curve.gold[0] == pytest.approx(0, abs=1e-9) and curve.kl[0] == pytest.approx(0, abs=1e-9)


def test_tilts_are_what_they_say(small):
    p, gold, proxy = small
    q = p * np.exp(1.7 * proxy)
    q /= q.sum()
    assert tilt(p, proxy, 1.7) == pytest.approx(q)
    curve = tilts(p, gold, proxy, [0.0, 1.7])
    assert [*curve.kl] == pytest.approx([0, q @ np.log(q / p)], abs=1e-12) and curve.gold[1] == pytest.approx(q @ gold)
    # The derivative of E[gold] by strength is Cov(gold, proxy): by central differences.
    near = tilts(p, gold, proxy, [1.7 - 1e-5, 1.7 + 1e-5]).gold
    assert (near[1] - near[0]) / 2e-5 == pytest.approx(q @ (gold * proxy) - (q @ gold) * (q @ proxy), abs=1e-6)
    # No other policy of equal KL has a higher proxy: mix towards anything and the penalised objective falls.
    worth = lambda x: x @ proxy - x @ np.log(x / p) / 1.7  # noqa: E731
    assert all(worth(0.95 * q + 0.05 * np.eye(7)[i]) < worth(q) for i in range(7))


def test_strengths_reach_the_distances_asked_for(shared):
    world, scores = shared
    asked = np.linspace(0.2, 3, 6)
    got = tilts(world.reference, world.gold, scores[0], strengths_for(world.reference, scores[0], asked)).distance
    assert got == pytest.approx(asked, rel=0.02)


@pytest.mark.parametrize("form", ["d", "log d"])
def test_fits_find_the_law_they_were_made_from(form):
    d = np.linspace(0, 2, 30)
    gold = d * (1.5 - 0.6 * (d if form == "d" else np.log(np.maximum(d, 1e-9))))
    curve = Curve(d, d**2, gold, d)
    found = fit(curve, form)
    assert (found.alpha, found.beta, found.r2) == pytest.approx((1.5, 0.6, 1.0))
    assert fit(curve, "log d" if form == "d" else "d").r2 < 0.9999
    assert found(d[1:]) == pytest.approx(gold[1:])
    if form == "d":  # the peak is at alpha / 2 beta = 1.25; beyond 1.5 times that nothing counts
        spoiled = curve._replace(gold=np.where(d > 1.5 * 1.26, -9.0, gold))
        assert fit(spoiled, form).beta == pytest.approx(0.6)


# -- the alarm -----------------------------------------------------------------------------------------------------------


def test_what_a_watched_run_says_of_itself():
    # Peak 2.0 at step 3; a tenth is 0.2: 1.9 at step 4 is not yet it, 1.7 at step 5 is.
    gold = np.array([0.5, 1.5, 2.0, 1.9, 1.7, 0.0])
    found = [Finding("overoptimisation/monitor/gold_correlation", "warning", "", 4), Finding("overoptimisation/monitor/gold", "error", "", 6)]
    w = Watched([], gold, found)
    assert (w.peak, w.lost, w.alarm(), w.alarm("ranks"), w.alarm("slopes"), w.in_time) == (3, 5, 4, 4, 6, True)
    assert [w.gone(s) for s in (2, 3, 4, 6, None)] == pytest.approx([-0.25, 0, 0.05, 1, 1])  # 1.5 is a quarter short of 2
    late = w._replace(found=found[1:])
    assert not late.in_time and late.alarm("ranks") is None and not w._replace(found=[]).in_time
    assert w._replace(gold=np.array([1.0, 2.0, 1.9])).lost is None


def test_the_alarm_is_in_time_and_seldom_false():
    for seed in (50, 51):  # three kinds of run, in worlds that the lab does not use by default
        world, scores = make("shared flaw", seed, 1)
        runs = {kind: watch(world, scores[0], kind, seed, steps=60, batch=64, furthest=9) for kind in overoptimisation_alarm.RUNS}
        assert runs["proxy"].in_time and runs["proxy"].lost is not None and runs["proxy"].gold[-1] < 0.9 * runs["proxy"].gold.max()
        assert runs["gold"].alarm() is None and runs["gold, noisy judge"].alarm() is None
        slopes = runs["proxy"].alarm("slopes")
        assert slopes is None or slopes > runs["proxy"].alarm("ranks")
    # Without the ranks the alarm comes too late: this is what they are for.
    assert slopes is None or slopes >= runs["proxy"].lost


# -- the lab -------------------------------------------------------------------------------------------------------------


def test_the_lab_on_one_seed_and_two_runs():
    found = lab.run(lab.Options(members=3, runs=2, steps=40), [0])
    assert set(found.figures) == {"overoptimisation", "overoptimisation_alarm"} and len(found.tables) == 3
    held = {c.claim: c.held for c in found.checks}
    assert held["what is optimised always rises"] and held["KL of best-of-n is at most log n - (n - 1) / n"]
    assert held["shared flaw: no ensemble helps; each loses a quarter or more"] and all(v for k, v in held.items() if k.startswith(("the alarm", "trained on")))
    assert len(found.values["curves"]) == 3 * 4 * 2
