"""The lab on the cart-pole: how a training is read, each exercise once and small, and the claims of the real size marked slow."""

from __future__ import annotations

import doctest
import math

import numpy as np
import pytest
import torch

from truing.config import make_options
from truing.errors import ConfigError
from truing.labs import cartpole, cartpole_baselines, cartpole_published, cartpole_reinforce, cartpole_runs
from truing.labs.cartpole_baselines import Compared, norm_ratio, trace_ratio
from truing.labs.cartpole_published import ROWS, Published, agrees, at_random
from truing.labs.cartpole_runs import by_step, highest, late, reached
from truing.labs.lab import Findings
from truing.methods.control import Trained, begin

SMALL = {
    "main": ["total_steps=2000"],
    "reinforce": ["episodes=115"],
    "baselines": ["episodes=110"],
    "published": ["environment=MountainCar-v0", "total_steps=1024"],
    "continuous": ["total_steps=4096"],
}


def trained(returns: list[float], length: int = 10) -> Trained:
    """Episodes of ten steps each, one after the other."""
    return Trained(None, steps=[length * (i + 1) for i in range(len(returns))], returns=[float(r) for r in returns], lengths=[length] * len(returns))


def complete(findings: Findings) -> bool:
    """One figure, tables with rows, checks with numbers in them."""
    return len(findings.figures) == 1 and all(t.rows for t in findings.tables) and all(any(c.isdigit() for c in check.measured) for check in findings.checks)


def test_doctests_hold():
    assert doctest.testmod(cartpole_runs).failed == 0 < doctest.testmod(cartpole_runs).attempted


# -- how a training is read -------------------------------------------------------------------------------------------------


def test_a_level_is_reached_by_a_hundred_episodes_in_a_row():
    t = trained([0] * 100 + [500] * 100)
    assert reached(t, 400) == (1800, 180)  # 80 of the last hundred episodes at 500 have a mean of 400: episode 180, step 1,800
    assert reached(t, 501) is None
    assert reached(trained([500] * 99), 400) is None  # 99 episodes are not a hundred
    assert reached(trained([500] * 100), 400) == (1000, 100)
    assert highest(t) == 500 and highest(trained([500] * 100 + [0] * 100)) == 500 and math.isnan(highest(trained([1, 2])))


def test_returns_by_step_and_at_the_end():
    t = trained([1, 3, 5, 7])
    assert by_step(t, np.array([0, 10, 15, 20, 40]), width=2).tolist() == [1, 1, 1, 2, 6]  # means of the last two that had ended
    assert late(t, share=0.5) == 6  # steps 21 to 40: episodes 3 and 4
    assert late(t, share=0.25) == 7


# -- options ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sets", "said"), [
    (["exercise=baselines", "total_steps=5000"], "set episodes"),
    (["episodes=500"], "set total_steps"),
    (["environment=Acrobot-v1"], "exercise=published"),
    (["exercise=published", "environment=CartPole-v9"], "CartPole-v9"),
    (["exercise=mian"], "mian"),
    (["total_steps=-1"], "total_steps=-1"),
    (["seed=1"], "unknown key"),
])  # fmt: skip
def test_options_that_cannot_be_meant_or_would_change_nothing_are_refused(sets, said):
    with pytest.raises(ConfigError, match=said):
        make_options(cartpole.Options, sets)


# -- every exercise ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exercise", SMALL)
def test_every_exercise_runs_and_says_what_it_expects(exercise, monkeypatch):
    monkeypatch.setattr(cartpole_baselines, "LEVEL", 12.0)
    monkeypatch.setattr(cartpole_baselines, "FITTED", 20)
    options = make_options(cartpole.Options, [f"exercise={exercise}", *SMALL[exercise]])
    findings = cartpole.run(options, [0, 1] if exercise == "main" else [0])
    assert complete(findings), findings.checks
    assert len(cartpole.expectation(options)) > 50
    assert findings.document()["tables"]


def test_published_numbers_stand_beside_their_own_settings_only():
    findings = cartpole.run(make_options(cartpole.Options, ["exercise=published", "environment=MountainCar-v0", "total_steps=1024"]), [0])
    assert "-200.0 ±" not in str(findings.tables) and not any("published" in c.claim for c in findings.checks)


def test_agreement_with_a_published_number():
    row = Published("x", "training", ROWS[0].config, mean=490.0, spread=6.0, seeds=3)
    # theirs has a standard error of 6 / sqrt(3) = 3.46; ours, of 480 and 484, 2.83 / sqrt(2) = 2: together 4, so 478 is the limit
    assert agrees(row, [480, 484]) and not agrees(row, [475, 479])
    assert agrees(row, [500, 500, 500])  # better is no disagreement
    exact = Published("x", "evaluation", ROWS[0].config, mean=500.0)
    assert agrees(exact, [500, 500]) and agrees(exact, [496, 496]) and not agrees(exact, [494, 494])  # 1% of 500 is 5


def test_the_published_settings_are_those_published():
    """4 environments of 128 steps, 4 epochs of 4 minibatches; and the tuned row: 8 of 32, 20 epochs of one minibatch of 256."""
    rate = {(r.config.environment, r.how): r.config for r in ROWS}
    classic, tuned = rate["CartPole-v1", "training"], rate["CartPole-v1", "evaluation"]
    assert (classic.lr, classic.value_clip, classic.clip, classic.entropy, classic.grad_clip, classic.hidden) == (2.5e-4, 0.2, 0.2, 0.01, 0.5, (64, 64))
    assert (classic.environments, classic.length, classic.minibatches, classic.epochs, classic.total_steps) == (4, 128, 4, 4, 500_000)
    assert (tuned.environments, tuned.length, tuned.minibatches, tuned.epochs, tuned.total_steps) == (8, 32, 1, 20, 100_000)
    assert (tuned.lam, tuned.discount, tuned.entropy, tuned.clip_to_zero) == (0.8, 0.98, 0, True)


def test_a_pendulum_left_to_chance_earns_about_minus_1200():
    found = at_random("Pendulum-v1", 100, seed=0)
    assert len(found) == 100 and np.mean(found) == pytest.approx(-1220, abs=3 * 290 / 10)  # the spread of single episodes is near 290
    assert at_random("Pendulum-v1", 5, seed=0) == at_random("Pendulum-v1", 5, seed=0)


# -- baselines --------------------------------------------------------------------------------------------------------------


def made_up(*gradients: list[list[float]]) -> Compared:
    g = np.array(gradients, float)
    return Compared(g, np.array([1.0, 0.0]), np.zeros(g.shape[1]), 0.0)


def test_variances_and_their_ratios_by_hand():
    # Norms 0, 2, 4, 6 have variance 5; 0, 1, 2, 3 a quarter of it, and half the size leaves a quarter of the trace too. Ten of each, so that no resample is of one kind.
    long, other = np.tile([[0.0, 0], [2, 0], [0, 4], [-6, 0]], (10, 1)), np.tile([[1.0, 0], [1, 0], [0, 3], [0, 3]], (10, 1))
    c, back = made_up(long, long / 2), made_up(long / 2, long)
    assert c.norms.var(-1).tolist() == [5, 1.25]
    for ratio in (norm_ratio, trace_ratio):
        assert ratio([c], 0, 1) == pytest.approx((0.25, 0.25, 0.25))
        assert ratio([c, back], 0, 1).mean == pytest.approx(1)  # the geometric mean of 1/4 and 4
    # |g|^2 is 0, 4, 16, 36, mean 14; the mean gradient is (-1, 1), so the trace is 12. The other: mean |g|^2 5, mean (1/2, 3/2), trace 2.5
    mixed = made_up(long, other)
    found = trace_ratio([mixed], 0, 1)
    assert found.mean == pytest.approx(2.5 / 12) and found.low < 2.5 / 12 < found.high
    assert mixed.gradients.var(1).sum(-1).tolist() == pytest.approx([12, 2.5])  # the same from the coordinates' own variances
    # along (1, 0) the first moves by -1 on average and the second by 1/2: a change of 1.5, and -1.5 times the first
    assert mixed.slope_change(1).mean == pytest.approx(-1.5)


def test_an_episodes_gradients_are_those_of_the_loss_and_only_the_policys():
    environments, networks = begin("CartPole-v1", 1, 0, (8,), "relu")
    environments.close()
    episodes = cartpole_baselines.play(networks, 3, seed=0)
    value = cartpole_baselines.fit(networks, episodes, seed=0, epochs=2, batch=16)
    found = cartpole_baselines.gradients(networks, episodes, value)
    assert found.shape == (4, 3, 4 * 8 + 8 + 8 * 2 + 2)  # a layer and a head, weights and biases
    steps = episodes[1]
    g = cartpole_baselines.returns(steps)
    others = torch.cat([cartpole_baselines.returns(e) for e in (episodes[0], episodes[2])]).mean()  # the episode itself is left out
    for row, baseline in zip(found, (torch.zeros(()), others, value.values(steps.observations[0]).detach(), g.mean()), strict=True):
        # finite differences of sum_t -(G_t - b_t) log pi, where all of the policy's weights move a little at once, each by its own amount
        mine = [networks.policy, networks.policy_bias, networks.weights[0], networks.biases[0]]
        moves = {id(p): torch.randn(p.shape, generator=torch.Generator().manual_seed(1)) for p in mine}
        for layer in (networks.weights[0], networks.biases[0]):
            moves[id(layer)][1] = 0  # the value's half
        losses = []
        with torch.no_grad():
            for step in (1e-2, -2e-2):
                for p in mine:
                    p += step * moves[id(p)]
                logp = networks.look(steps.observations[0], steps.actions[0]).logp
                losses.append(-float(((g - baseline) * logp).double().sum()))
            for p in mine:
                p += 1e-2 * moves[id(p)]
        along = torch.cat([moves[id(p)][0].flatten() if p.dim() == 3 else moves[id(p)].flatten() for p in networks.parameters() if id(p) in moves])
        assert row[1] @ along.double().numpy() == pytest.approx((losses[0] - losses[1]) / 2e-2, rel=0.02, abs=0.02)
    for before, after in zip(networks.weights, value.weights, strict=True):
        torch.testing.assert_close(before[0], after[0])  # the fit left the policy alone
    assert not torch.equal(networks.value, value.value)


def test_how_many_seeds_are_enough():
    assert [cartpole_reinforce.needed(n) for n in (1, 2, 3, 5, 10)] == [1, 1, 2, 4, 8]


# -- the real size ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("exercise", ["main", "baselines", "continuous"])
def test_the_expectation_holds(exercise):
    findings = cartpole.run(make_options(cartpole.Options, [f"exercise={exercise}"]), [0, 1, 2])
    assert findings.held, [c for c in findings.checks if not c.held]


@pytest.mark.slow
def test_reinforce_reaches_the_cap_on_four_seeds_of_five():
    findings = cartpole.run(make_options(cartpole.Options, ["exercise=reinforce"]), [0, 1, 2, 3, 4])
    assert findings.held, [c for c in findings.checks if not c.held]


@pytest.mark.slow
def test_ppo_meets_the_published_numbers():
    findings = cartpole_published.published(make_options(cartpole.Options, ["exercise=published"]), [0, 1, 2])
    assert findings.held, [c for c in findings.checks if not c.held]
