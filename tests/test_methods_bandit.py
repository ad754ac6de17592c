"""Bandits: each rule against arithmetic, a closed form or a plain loop; and the policy gradient, enumerated, of which a gradient bandit is one step."""

from __future__ import annotations

import itertools
import math
import time

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from truing.errors import ConfigError
from truing.methods.bandit import UCB, EpsilonGreedy, Gradient, Softmax, play, testbed

testbed.__test__ = False  # type: ignore[attr-defined]  # a function of that name, not a test
D = torch.float64


def off_by(share: float, expected: float, n: int) -> float:
    """How many standard errors a share of n draws is from what was expected."""
    return abs(share - expected) / math.sqrt(expected * (1 - expected) / n)


# -- choices ---------------------------------------------------------------------------------------------------------------


def test_equal_estimates_are_chosen_between_at_random() -> None:
    first = play(np.zeros((40_000, 4)), EpsilonGreedy(epsilon=0), 1, 0).counts.mean(0)
    assert all(off_by(share, 0.25, 40_000) < 4 for share in first)  # argmax alone would give 1, 0, 0, 0


def test_epsilon_greedy_explores_over_all_arms() -> None:
    # Without noise and with one arm above 0, the best arm is known as soon as it was pulled once: 1 - .2 + .2 / 4 = .85 from then on.
    run = play(np.tile([0.0, 0.0, 0.0, 9.0], (2000, 1)), EpsilonGreedy(epsilon=0.2), 300, 1, noise=0, per_problem=True)
    late = run.optimal[200:]
    assert off_by(late.mean(), 0.85, late.size) < 4
    assert off_by(0.8, 0.85, late.size) > 4  # exploring over the *other* arms only would be seen


def test_softmax_draws_by_the_exponentials() -> None:
    # Estimates are exact after one pull of either arm: odds exp(.1 ln 3 / .1) = 3 to 1.
    run = play(np.tile([0.0, 0.1 * math.log(3)], (2000, 1)), Softmax(temperature=0.1), 200, 2, noise=0, per_problem=True)
    late = run.optimal[100:]
    assert off_by(late.mean(), 0.75, late.size) < 4


def test_optimism_tries_everything_and_plain_greed_does_not() -> None:
    means = np.tile([1.0, 2.0, 3.0], (300, 1))
    hopeful = play(means, EpsilonGreedy(epsilon=0, initial=5.0), 20, 3, noise=0)
    assert (hopeful.counts == [1, 1, 18]).all()  # each disappoints once: 1, 2, 3 < 5; then the best of what was seen
    greedy = play(means, EpsilonGreedy(epsilon=0), 20, 3, noise=0)
    assert (np.sort(greedy.counts, 1) == [0, 0, 20]).all()  # the first arm pays more than 0 and is never left


def test_ucb_equals_a_plain_loop() -> None:
    def plain(means: list[float], c: float, steps: int) -> list[float]:
        """Without noise the estimate is the mean from the first pull on, and the order of the first three does not matter for what follows."""
        counts, pulled = [1, 1, 1], []
        for t in range(4, steps + 1):
            arm = max(range(3), key=lambda a: means[a] + c * math.sqrt(math.log(t) / counts[a]))
            counts[arm] += 1
            pulled.append(means[arm])
        return pulled

    means = np.random.default_rng(4).normal(size=(100, 3))
    run = play(means, UCB(c=1.3), 60, 4, noise=0, per_problem=True)
    np.testing.assert_allclose(run.rewards[3:].T, [plain(m.tolist(), 1.3, 60) for m in means])
    np.testing.assert_allclose(np.sort(run.rewards[:3].T), np.sort(means))  # each arm once


# -- estimates -------------------------------------------------------------------------------------------------------------


def test_estimates_are_means_or_forget() -> None:
    average = play(np.zeros((5, 1)), EpsilonGreedy(initial=7.0), 50, 5, per_problem=True)
    np.testing.assert_allclose(average.estimates[:, 0], average.rewards.mean(0), rtol=1e-12)  # the first estimate is forgotten at the first pull
    constant = play(np.zeros((5, 1)), EpsilonGreedy(initial=7.0, alpha=0.1), 50, 5, per_problem=True)
    weights = 0.1 * 0.9 ** np.arange(49, -1, -1)  # Q = .9^50 Q0 + sum .1 .9^age r
    np.testing.assert_allclose(constant.estimates[:, 0], 0.9**50 * 7 + weights @ constant.rewards, rtol=1e-12)


def test_agents_with_one_seed_meet_the_same_luck() -> None:
    runs = [play(np.zeros((3, 2)), agent, 30, 6, per_problem=True).rewards for agent in (EpsilonGreedy(), Softmax(), Gradient())]
    np.testing.assert_array_equal(runs[0], runs[1])
    np.testing.assert_array_equal(runs[0], runs[2])
    assert not np.array_equal(runs[0], play(np.zeros((3, 2)), EpsilonGreedy(), 30, 7, per_problem=True).rewards)


def test_per_problem_is_the_same_run() -> None:
    means = testbed(50, 8)
    mean, each = (play(means, EpsilonGreedy(), 40, 8, per_problem=p) for p in (False, True))
    assert mean.rewards.shape == (40,) and each.rewards.shape == each.optimal.shape == (40, 50)
    np.testing.assert_allclose(mean.rewards, each.rewards.mean(1))
    np.testing.assert_allclose(mean.optimal, each.optimal.mean(1))
    np.testing.assert_array_equal(mean.counts, each.counts)
    assert (mean.counts.sum(1) == 40).all()


def test_one_problem_is_a_testbed_of_one() -> None:
    one, row = play([0.0, 1.0], Softmax(), 25, 9), play([[0.0, 1.0]], Softmax(), 25, 9)
    np.testing.assert_array_equal(one.rewards, row.rewards)
    assert one.counts.shape == (1, 2)


def test_every_best_arm_counts_as_best() -> None:
    assert play([3.0, 3.0], EpsilonGreedy(epsilon=1), 50, 0).optimal.mean() == 1


# -- gradient bandits ------------------------------------------------------------------------------------------------------


def test_the_gradient_bandit_climbs_the_gradient() -> None:
    # From equal preferences pi = 1/k, so E[change of H(b)] = alpha pi(b) (q(b) - mean q): -.1/3, 0, .1/3 for q = 1, 2, 3 and alpha = .1.
    n = 100_000
    moved = play(np.tile([1.0, 2.0, 3.0], (n, 1)), Gradient(alpha=0.1, baseline=False), 1, 10).estimates
    error = moved.std(0) / math.sqrt(n)
    assert (np.abs(moved.mean(0) - [-0.1 / 3, 0, 0.1 / 3]) < 4 * error).all()
    assert (np.abs(moved.mean(0) - [0.1 / 3, 0, -0.1 / 3])[[0, 2]] > 4 * error[[0, 2]]).all()  # the flipped sign is far away


def test_the_gradient_bandit_draws_by_the_exponentials_of_its_preferences() -> None:
    # Arms pay 0 and ln 3, no noise, alpha = 1: if the second was pulled first, its H is ahead by ln 3 (1/2 + 1/2), odds 3 to 1; if not, nothing moved.
    n = 20_000
    first, second = play(np.tile([0.0, math.log(3)], (n, 1)), Gradient(alpha=1, baseline=False), 2, 13, noise=0, per_problem=True).optimal
    assert off_by(second[first].mean(), 0.75, first.sum()) < 4
    assert off_by(second[~first].mean(), 0.5, n - first.sum()) < 4


def test_the_baseline_is_the_mean_of_the_rewards_before() -> None:
    # Two equal arms of 5, no noise: every reward equals the mean of those before it, and nothing moves. Without a baseline it does.
    assert (play([5.0, 5.0], Gradient(alpha=0.5), 20, 11, noise=0).estimates == 0).all()
    assert (play([5.0, 5.0], Gradient(alpha=0.5, baseline=False), 20, 11, noise=0).estimates != 0).all()
    # One arm pays 0, the other 1: at the second pull the baseline is the first reward, so H moves by alpha (r2 - r1) (1 - 1/2).
    h = play(np.tile([0.0, 1.0], (200, 1)), Gradient(alpha=0.2), 2, 12, noise=0, per_problem=True)
    first, second = h.rewards
    moved = 0.2 * (second - first) * 0.5
    np.testing.assert_allclose(h.estimates[:, 1], np.where(second == 1, moved, -moved))


# -- the policy gradient, enumerated ---------------------------------------------------------------------------------------
# Two steps, two actions: the first action leads to one of two states, and each of the four ends pays its own reward.

ENDS = torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=D)  # reward by first and second action
THETA = torch.tensor([[0.3, -0.4], [0.1, 0.7], [-0.5, 0.2]], dtype=D)  # preferences in the start, and in the state after action 0, 1


def log_policy(theta: torch.Tensor) -> torch.Tensor:
    """Log-probabilities ``[2, 2, 2]`` by first action, second action, and step."""
    logp = theta.log_softmax(-1)
    return torch.stack([torch.stack([torch.stack([logp[0, a], logp[1 + a, b]]) for b in (0, 1)]) for a in (0, 1)])


def exact_gradient() -> torch.Tensor:
    theta = THETA.clone().requires_grad_()
    expected_return = (log_policy(theta).sum(-1).exp() * ENDS).sum()
    (gradient,) = torch.autograd.grad(expected_return, theta)
    return gradient


def sampled_gradients() -> tuple[torch.Tensor, torch.Tensor]:
    """REINFORCE's gradient of each of the four episodes ``[4, 6]``, and how probable each is."""
    from truing.maths.policy import reinforce

    rows = []
    for a, b in itertools.product((0, 1), repeat=2):
        theta = THETA.clone().requires_grad_()
        loss = reinforce(log_policy(theta)[a, b], ENDS[a, b].expand(2)).sum()  # reward at the end, gamma 1: both steps return it
        rows.append(-torch.autograd.grad(loss, theta)[0].flatten())
    return torch.stack(rows), log_policy(THETA).sum(-1).exp().flatten()


def test_reinforce_is_the_exact_gradient() -> None:
    each, probability = sampled_gradients()
    exact = exact_gradient().flatten()
    torch.testing.assert_close(probability @ each, exact, rtol=0, atol=1e-12)
    n = 20_000
    counts = torch.from_numpy(np.random.default_rng(0).multinomial(n, probability.numpy())).to(D)
    mean = counts @ each / n
    error = ((counts @ (each - mean).square()) / n / n).sqrt()
    assert ((mean - exact).abs() < 3 * error).all()
    assert not ((-mean - exact).abs() < 3 * error).any()  # the flipped sign


def test_ascending_raises_the_return_and_the_flipped_sign_lowers_it() -> None:
    each, probability = sampled_gradients()
    step = 0.1 * (probability @ each).view_as(THETA)

    def worth(theta: torch.Tensor) -> float:
        return float((log_policy(theta).sum(-1).exp() * ENDS).sum())

    assert worth(THETA + step) > worth(THETA) + 0.01
    assert worth(THETA - step) < worth(THETA) - 0.01


# Baselines: one state, three actions, a batch of B pulls, all 3^B batches enumerated; rewards have an offset of +10.

REWARDS = torch.tensor([10.0, 11.0, 12.5], dtype=D)
LOGITS = torch.tensor([0.2, -0.1, 0.4], dtype=D)
B = 4


def batches() -> tuple[torch.Tensor, torch.Tensor]:
    actions = torch.tensor(list(itertools.product(range(3), repeat=B)))
    return actions, LOGITS.softmax(-1)[actions].prod(-1)


def moments(advantages: torch.Tensor, actions: torch.Tensor, probability: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Mean and total variance of the batch's mean gradient, ``A grad log pi``, grad log pi(a) = onehot(a) - pi."""
    score = torch.nn.functional.one_hot(actions, 3).to(D) - LOGITS.softmax(-1)
    gradient = (advantages[..., None] * score).mean(1)
    mean = probability @ gradient
    return mean, float(probability @ (gradient - mean).square().sum(-1))


def test_baselines_bias_and_variance() -> None:
    from truing.maths.advantages import group_centred, leave_one_out

    actions, probability = batches()
    rewards = REWARDS[actions]
    pi = LOGITS.softmax(-1)
    exact = pi * (REWARDS - pi @ REWARDS)  # the gradient of sum pi r with respect to the preferences
    raw, raw_variance = moments(rewards, actions, probability)
    loo, loo_variance = moments(leave_one_out(rewards), actions, probability)
    centred, centred_variance = moments(group_centred(rewards), actions, probability)
    torch.testing.assert_close(raw, exact, rtol=0, atol=1e-12)
    torch.testing.assert_close(loo, exact, rtol=0, atol=1e-12)  # exactly unbiased
    torch.testing.assert_close(centred, (1 - 1 / B) * exact, rtol=0, atol=1e-12)  # each reward is in its own baseline
    assert loo_variance / raw_variance < 0.5 and centred_variance / raw_variance < 0.5
    assert not torch.allclose(centred, exact, atol=1e-3)


# -- input -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"means": [[0.0, math.nan]]}, r"means\[0, 1\] is nan"),
        ({"means": [[[0.0]]]}, r"means \(1, 1, 1\): give the true value of each arm"),
        ({"means": []}, "give the true value of each arm"),
        ({"steps": 0}, "steps=0: use 1 or more"),
        ({"noise": -1.0}, "noise=-1.0: it is a standard deviation"),
        ({"noise": math.inf}, "noise=inf"),
    ],
)
def test_wrong_input_is_refused_with_value_and_remedy(change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        play(**{"means": [[0.0, 1.0]], "agent": EpsilonGreedy(), "steps": 5, "seed": 0} | change)


@pytest.mark.parametrize(
    ("kind", "option", "value"),
    [
        (EpsilonGreedy, "epsilon", 1.2), (EpsilonGreedy, "alpha", 0.0), (EpsilonGreedy, "initial", math.nan), (Softmax, "temperature", 0.0),
        (UCB, "c", -1.0), (Gradient, "alpha", -0.1), (Gradient, "temperature", 1.0),
    ],
)  # fmt: skip
def test_wrong_options_of_agents_are_refused(kind: type, option: str, value: float) -> None:
    with pytest.raises(ValidationError, match=option):
        kind(**{option: value})


def test_a_testbed_needs_problems() -> None:
    with pytest.raises(ConfigError, match="problems=0: use 1 or more"):
        testbed(0, 0)
    assert testbed(3, 0, arms=4, centre=100.0).shape == (3, 4) and testbed(3, 0, centre=100.0).min() > 90


@pytest.mark.parametrize("agent", [EpsilonGreedy(), Softmax(), UCB(), Gradient()], ids=lambda a: type(a).__name__)
def test_the_testbed_is_fast(agent) -> None:
    means = testbed(2000, 0)
    started = time.process_time()
    play(means, agent, 1000, 0)
    assert time.process_time() - started < 2
