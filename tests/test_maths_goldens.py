"""Losses, divergences and reductions: numbers from arithmetic in a comment, a closed form, or another library's published output."""

from __future__ import annotations

import doctest
import importlib
import math

import pytest
import torch
from torch import tensor

from truing.maths import kl, reduce
from truing.maths.policy import cispo, clip_share, clipped_surrogate, ratio, reinforce, sequence_logp, sequence_logp_at_tokens, truncated_importance
from truing.maths.preference import bradley_terry, centering
from truing.maths.value import clipped_squared_error, squared_error

D = torch.float64


@pytest.mark.parametrize("module", ["advantages", "check", "kl", "likelihood", "policy", "preference", "reduce", "returns", "stats", "value"])
def test_docstrings_hold(module: str) -> None:
    found = doctest.testmod(importlib.import_module(f"truing.maths.{module}"), extraglobs={"torch": torch})
    assert found.failed == 0 and found.attempted > 0


# -- policy --------------------------------------------------------------------------------------------------------------
def test_clipped_surrogate_equals_the_published_example() -> None:
    # verl and OpenRLHF: log-ratio [.5, -.5, 2], A = [1, 1, -1], eps .2 -> token mean 1.8608; dual clip 3 -> .3978; all three ratios, 1.65, .61 and 7.4, lie outside
    logp, old, adv = tensor([0.5, -0.5, 2.0], dtype=D), torch.zeros(3, dtype=D), tensor([1.0, 1.0, -1.0], dtype=D)
    assert clipped_surrogate(logp, old, adv).mean().item() == pytest.approx(1.8608, abs=5e-5)
    assert clipped_surrogate(logp, old, adv, dual_clip=3.0).mean().item() == pytest.approx(0.3978, abs=5e-5)
    # rlax: ratios [1.5, .5], A [1, -1], eps .2 -> mean of (-1.2, .8) = -.2
    assert clipped_surrogate(tensor([1.5, 0.5]).log(), torch.zeros(2), tensor([1.0, -1.0])).mean().item() == pytest.approx(-0.2)
    assert clip_share(logp, old).tolist() == [1, 1, 1] and clip_share(tensor([0.1, -0.1]), torch.zeros(2)).tolist() == [0, 0]


def test_asymmetric_bounds_are_each_used() -> None:
    logp, adv = tensor([1.5, 0.5]).log(), tensor([1.0, -1.0])
    torch.testing.assert_close(clipped_surrogate(logp, torch.zeros(2), adv, clip_low=0.1, clip_high=0.3), tensor([-1.3, 0.9]))


def test_outside_the_clip_there_is_no_gradient_the_improving_way() -> None:
    logp = tensor([1.5, 0.5, 1.5, 0.5], dtype=D).log().requires_grad_()
    adv = tensor([1.0, -1.0, -1.0, 1.0], dtype=D)  # the first two have gone far enough; the last two must come back
    (grad,) = torch.autograd.grad(clipped_surrogate(logp, torch.zeros(4, dtype=D), adv).sum(), logp)
    torch.testing.assert_close(grad, tensor([0.0, 0.0, 1.5, -0.5], dtype=D))


def test_the_log_ratio_is_limited_at_twenty_exactly() -> None:
    x = tensor([-21.0, -20.0, -19.0, 19.0, 20.0, 21.0, 500.0], dtype=D)
    limited, zero = tensor([-20.0, -20.0, -19.0, 19.0, 20.0, 20.0, 20.0], dtype=D), torch.zeros(7, dtype=D)
    torch.testing.assert_close(ratio(x, zero).log(), limited, rtol=1e-12, atol=0)
    torch.testing.assert_close(ratio(zero, -x).log(), limited, rtol=1e-12, atol=0)
    assert torch.isfinite(ratio(tensor([500.0]), tensor([0.0]))).all()


def test_clip_bounds_are_widths_and_belong_to_the_inside() -> None:
    zero, one = torch.zeros(3, dtype=D), torch.ones(3, dtype=D)
    logp = tensor([0.5, 1.0, 1.5], dtype=D).log()
    rho = ratio(logp, zero)
    low, high = 1 - float(rho[0]), float(rho[2]) - 1  # the widths that the outer ratios reach exactly
    assert clip_share(logp, zero, low, high).tolist() == [0, 0, 0]
    assert clip_share(logp, zero, 0.4999, 0.5001).tolist() == [1, 0, 0]
    assert clip_share(logp, zero, 0.5001, 0.4999).tolist() == [0, 0, 1]
    assert clip_share(logp, zero, 0.4).tolist() == [1, 0, 1]  # one bound serves for both
    assert clip_share(tensor([0.79, 0.81, 1.19, 1.21]).log(), torch.zeros(4)).tolist() == [1, 0, 0, 1]  # .2 by default
    assert clip_share(zero, zero, 0.0).tolist() == [0, 0, 0] and clip_share(zero, zero, 0.0).dtype == D
    # the surrogate with A = 1 is -min(rho, 1 + high), with A = -1 max(rho, 1 - low)
    torch.testing.assert_close(clipped_surrogate(logp, zero, one, 0.25, 0.125), tensor([-0.5, -1.0, -1.125], dtype=D))
    torch.testing.assert_close(clipped_surrogate(logp, zero, -one, 0.25, 0.125), tensor([0.75, 1.0, 1.5], dtype=D))
    torch.testing.assert_close(clipped_surrogate(logp, zero, one, 0.25), tensor([-0.5, -1.0, -1.25], dtype=D))
    torch.testing.assert_close(clipped_surrogate(logp, zero, one, 0.25, 0.0), tensor([-0.5, -1.0, -1.0], dtype=D))
    torch.testing.assert_close(clipped_surrogate(logp, zero, -one, 0.0, 0.25), tensor([1.0, 1.0, 1.5], dtype=D))
    torch.testing.assert_close(clipped_surrogate(tensor([0.5, 1.5]).log(), torch.zeros(2), tensor([-1.0, 1.0])), tensor([0.8, -1.2]))  # .2 by default


def test_dual_clip_bounds_negative_advantages_only() -> None:
    rho, advantages = tensor([2.5, 4.0, 4.0, 0.5], dtype=D), tensor([-2.0, -2.0, 2.0, -2.0], dtype=D)
    # -A rho = 5, and 8 bounded by 3 * 2 = 6; a positive advantage keeps its own clip, -1.2 * 2; max(1, .8 * 2) is far below the bound
    expected = tensor([5.0, 6.0, -2.4, 1.6], dtype=D)
    torch.testing.assert_close(clipped_surrogate(rho.log(), torch.zeros(4, dtype=D), advantages, dual_clip=3.0), expected)
    # without: 5, 8, -2.4, 1.6
    torch.testing.assert_close(clipped_surrogate(rho.log(), torch.zeros(4, dtype=D), advantages), tensor([5.0, 8.0, -2.4, 1.6], dtype=D))


def test_reinforce_is_minus_advantage_times_log_probability() -> None:
    logp, advantages = tensor([-0.5, -2.0], dtype=D, requires_grad=True), tensor([3.0, -1.0], dtype=D, requires_grad=True)
    loss = reinforce(logp, advantages)
    assert loss.tolist() == [1.5, -2.0]
    loss.sum().backward()
    assert logp.grad is not None and logp.grad.tolist() == [-3.0, 1.0] and advantages.grad is None


def test_the_samplers_weight_by_hand() -> None:
    # .5/.4, .9/.3 limited to 2, .1/.4; a cap of 1 lets no sample count more than the sampler's own
    logp, sampler = tensor([0.5, 0.9, 0.1], dtype=D).log(), tensor([0.4, 0.3, 0.4], dtype=D).log()
    torch.testing.assert_close(truncated_importance(logp, sampler, cap=2.0), tensor([1.25, 2.0, 0.25], dtype=D))
    torch.testing.assert_close(truncated_importance(logp, sampler, cap=1.0), tensor([1.0, 1.0, 0.25], dtype=D))
    assert truncated_importance(logp, logp.clone(), cap=1.0).tolist() == [1.0, 1.0, 1.0]  # samples that agree, exactly


def test_cispo_limits_the_weight_and_keeps_every_gradient() -> None:
    rho = tensor([0.5, 1.0, 6.0, 6.0], dtype=D)
    logp, zero, advantages = rho.log().requires_grad_(), torch.zeros(4, dtype=D), tensor([1.0, 2.0, 1.0, -1.0], dtype=D)

    def gradient(**bounds: float) -> list[float]:
        (g,) = torch.autograd.grad(cispo(logp, zero, advantages, **bounds).sum(), logp)
        return [round(v, 9) for v in g.tolist()]

    # d loss / d logp = -weight * A: the weight is the ratio, at most 5 by default (TRL's epsilon_high = 5) and free downwards
    assert gradient() == [-0.5, -2.0, -5.0, 5.0]
    assert gradient(clip_high=0.28) == [-0.5, -2.0, -1.28, 1.28]
    assert gradient(clip_low=0.2, clip_high=0.28) == [-0.8, -2.0, -1.28, 1.28]  # verl's convention
    assert gradient(clip_low=0.0) == [-1.0, -2.0, -5.0, 5.0] and gradient(clip_high=0.0) == [-0.5, -2.0, -1.0, 1.0]
    (dropped,) = torch.autograd.grad(clipped_surrogate(logp, zero, advantages).sum(), logp)
    assert dropped[2] == 0  # where PPO's clip drops the token
    torch.testing.assert_close(cispo(logp, zero, advantages), -tensor([0.5, 1.0, 5.0, 5.0], dtype=D) * advantages * rho.log())


def test_a_sequences_ratio_by_hand() -> None:
    counted = tensor([[True, True, False], [True, True, True], [False, False, False]])
    logp = tensor([[0.3, 0.1, 9.0], [0.0, -0.3, 0.0], [5.0, 5.0, float("nan")]], dtype=D)
    # means (.3 + .1) / 2 = .2 and -.3 / 3 = -.1; with nothing counted 0, a ratio of 1
    for where in (counted, counted.int()):
        torch.testing.assert_close(sequence_logp(logp, where), tensor([0.2, -0.1, 0.0], dtype=D))
        at_tokens = sequence_logp_at_tokens(logp, where)
        torch.testing.assert_close(at_tokens, tensor([[0.2, 0.2, 0], [-0.1, -0.1, -0.1], [0, 0, 0]], dtype=D))
    # time is the last axis, whatever stands before it
    one_row, three_axes = (logp[0], counted[0]), (logp.expand(2, 3, 3), counted.expand(2, 3, 3))
    assert sequence_logp(*one_row).item() == pytest.approx(0.2) and sequence_logp_at_tokens(*one_row).shape == (3,)
    torch.testing.assert_close(sequence_logp(*three_axes), tensor([0.2, -0.1, 0.0], dtype=D).expand(2, 3))
    torch.testing.assert_close(sequence_logp_at_tokens(*three_axes)[1], sequence_logp_at_tokens(logp, counted))


# -- value ---------------------------------------------------------------------------------------------------------------
def test_clipped_value_loss_equals_verls_example() -> None:
    # V = [1, 0], returns [0, 1], V_old = 0, clip .2 -> mean .5
    loss = clipped_squared_error(tensor([1.0, 0.0]), torch.zeros(2), tensor([0.0, 1.0]), 0.2)
    assert loss.mean().item() == pytest.approx(0.5)
    # V moved past the clip towards the target: the clipped, larger error counts. .5 * (0.2 - 1)^2 = .32 against .5 * (.9 - 1)^2 = .005
    assert clipped_squared_error(tensor([0.9]), torch.zeros(1), tensor([1.0]), 0.2).item() == pytest.approx(0.32)
    # downwards alike, from V_old = 2: clipped to 1.8, .5 * (1.8 - 1)^2 = .32
    assert clipped_squared_error(tensor([1.1]), tensor([2.0]), tensor([1.0]), 0.2).item() == pytest.approx(0.32)
    # within the clip nothing changes: .5 * (2.1 - 1)^2
    assert clipped_squared_error(tensor([2.1]), tensor([2.0]), tensor([1.0]), 0.2).item() == pytest.approx(0.605)


def test_squared_error_pulls_the_value_and_not_the_target() -> None:
    values, targets = tensor([1.0, 4.0], dtype=D, requires_grad=True), tensor([3.0, 1.0], dtype=D, requires_grad=True)
    loss = squared_error(values, targets)
    assert loss.tolist() == [2.0, 4.5]
    loss.sum().backward()
    assert values.grad is not None and values.grad.tolist() == [-2.0, 3.0] and targets.grad is None  # V - target


# -- preference ----------------------------------------------------------------------------------------------------------
def test_bradley_terry_equals_openrlhfs_examples() -> None:
    assert bradley_terry(tensor([1.0, 0.0]), tensor([0.0, 1.0]), 0.5).mean().item() == pytest.approx(1.0877, abs=5e-5)
    c, r = tensor([1.0, 0, 2]), tensor([0.0, 1, -1])
    assert bradley_terry(c, r).mean().item() == pytest.approx(0.5584, abs=5e-5)
    assert bradley_terry(c, r, 0.5).mean().item() == pytest.approx(0.7515, abs=5e-5)


def test_bradley_terry_at_a_tie_pulls_half_each_way_and_only_differences_count() -> None:
    c, r = tensor([2.0], dtype=D, requires_grad=True), tensor([2.0], dtype=D, requires_grad=True)
    grads = torch.autograd.grad(bradley_terry(c, r).sum(), (c, r))
    assert [g.item() for g in grads] == [-0.5, 0.5]
    torch.testing.assert_close(bradley_terry(c + 7, r + 7), bradley_terry(c, r))
    assert centering(tensor([1.0]), tensor([-1.0])).item() == 0 and centering(tensor([1.0]), tensor([2.0])).item() == 9


def test_dpo_equals_trls_example() -> None:
    # TRL 0.24, loss_type "sigmoid", beta .1: both pairs have (pc - rc) - (pr - rr) = .7; implicit rewards .05, .02 and -.02, -.05
    chosen = 0.1 * (tensor([-10.0, -12.0], dtype=D) - tensor([-10.5, -12.2], dtype=D))
    rejected = 0.1 * (tensor([-11.0, -11.5], dtype=D) - tensor([-10.8, -11.0], dtype=D))
    torch.testing.assert_close(chosen, tensor([0.05, 0.02], dtype=D))
    torch.testing.assert_close(rejected, tensor([-0.02, -0.05], dtype=D))
    torch.testing.assert_close(bradley_terry(chosen, rejected), torch.full((2,), 0.658760, dtype=D), atol=5e-7, rtol=0)


def test_a_margin_may_differ_by_pair() -> None:
    # -log sigmoid(x) at x = 1 - 0 and 1 - 2: log(1 + e^-1) = .313262, log(1 + e) = 1.313262
    one, zero = torch.ones(2, dtype=D), torch.zeros(2, dtype=D)
    torch.testing.assert_close(bradley_terry(one, zero, tensor([0.0, 2.0], dtype=D)), tensor([0.313262, 1.313262], dtype=D), atol=5e-7, rtol=0)
    torch.testing.assert_close(bradley_terry(one, zero, tensor(2.0, dtype=D)), tensor([1.313262, 1.313262], dtype=D), atol=5e-7, rtol=0)
    assert bradley_terry(tensor([-1e4]), tensor([1e4])).item() == 2e4  # log sigmoid at once, not the log of 0


# -- KL ------------------------------------------------------------------------------------------------------------------
def test_estimators_equal_the_published_example() -> None:
    logp, ref = tensor([-1.0, -2.0], dtype=D), tensor([-1.5, -1.0], dtype=D)
    torch.testing.assert_close(kl.k1(logp, ref), tensor([0.5, -1.0], dtype=D))
    torch.testing.assert_close(kl.k2(logp, ref), tensor([0.125, 0.5], dtype=D))
    torch.testing.assert_close(kl.k3(logp, ref), tensor([0.1065, 0.7183], dtype=D), atol=5e-5, rtol=0)


def test_the_penalty_by_hand() -> None:
    # pi .5, sampled at .25 (rho 2), ref .1, 3 nats to come: k2 = (log 5)^2 / 2 = 1.295145, k3 = .2 - 1 + log 5 = .809438
    pi, old, ref, later = (tensor([x], dtype=D).log() for x in (0.5, 0.25, 0.1, math.exp(3)))
    assert kl.penalty(pi, old, ref, later, "k2").item() == pytest.approx(2 * 1.295145 + 2 * 3, abs=1e-5)
    assert kl.penalty(pi, old, ref, later, "k3").item() == pytest.approx(2 * 0.809438 + 2 * 3, abs=1e-5)
    assert kl.penalty(pi, pi, pi, 0 * later, "k3").item() == kl.penalty(pi, pi, pi, 0 * later, "k2").item() == 0.0  # at the reference


def test_k3s_log_ratio_is_limited_at_twenty_exactly() -> None:
    # of ref over pi: exp(20) - 1 - 20 at and past the limit, exp(-20) - 1 + 20 on the other side
    far = kl.k3(torch.zeros(6, dtype=D), tensor([19.0, 20.0, 21.0, -19.0, -20.0, -21.0], dtype=D))
    near, edge = (math.exp(19) - 20, math.exp(-19) + 18), (math.exp(20) - 21, math.exp(-20) + 19)
    torch.testing.assert_close(far, tensor([near[0], edge[0], edge[0], near[1], edge[1], edge[1]], dtype=D), rtol=1e-12, atol=0)


def test_k3_keeps_its_digits_where_policies_are_close() -> None:
    # x = 1e-4 in float32: x^2 / 2 + x^3 / 6 = 5.00017e-9, where exp(x) - 1 - x rounds to a multiple of 6e-8
    small = kl.k3(torch.zeros(3), tensor([1e-4, -1e-4, 1e-9]))
    torch.testing.assert_close(small, tensor([5.00017e-9, 4.99983e-9, 0.0]), rtol=2e-3, atol=1e-15)


def test_estimators_bias_and_spread_equal_schulmans_table() -> None:
    # pi = N(0, 1), ref = N(mu, 1): KL = mu^2 / 2. His table: std / KL of k1, k2, k3 is 20, 1.42, 1.42 at mu = .1 and 2, 1.73, 1.7 at mu = 1;
    # k2's bias / KL is .002 and .25. Integrated on a fine grid instead of sampled.
    x = torch.linspace(-12, 12, 20_001, dtype=D)
    weight = torch.exp(-0.5 * x.square())
    weight /= weight.sum()
    for mu, biases, spreads in ((0.1, (0, 0.002, 0), (20, 1.42, 1.42)), (1.0, (0, 0.25, 0), (2, 1.73, 1.7))):
        logp, ref, true = -0.5 * x.square(), -0.5 * (x - mu).square(), mu * mu / 2
        for estimator, bias, spread in zip((kl.k1, kl.k2, kl.k3), biases, spreads, strict=True):
            value = estimator(logp, ref)
            mean = (weight * value).sum()
            assert (mean - true).item() / true == pytest.approx(bias, abs=1e-3 if bias else 1e-9)
            assert (weight * (value - mean).square()).sum().sqrt().item() / true == pytest.approx(spread, abs=6e-3)


def test_what_a_policy_excludes_costs_nothing_and_what_only_the_reference_excludes_everything() -> None:
    inf = float("inf")
    coin, certain = tensor([0.0, 0.0], dtype=D), tensor([0.0, -inf], dtype=D)
    assert kl.exact(certain, coin).item() == pytest.approx(math.log(2)) and kl.exact(coin, certain).item() == inf
    assert kl.exact(certain, certain).item() == 0
    logits = tensor([0.3, -inf, 0.1], dtype=D, requires_grad=True)
    (gradient,) = torch.autograd.grad(kl.exact(logits, torch.zeros(3, dtype=D)), logits)
    assert torch.isfinite(gradient).all() and gradient[1] == 0


def test_adaptive_coefficient_equals_the_published_updates() -> None:
    start = kl.AdaptiveCoefficient(0.15, 6.0, 10_000)
    assert start.after(12, 256).coef == pytest.approx(0.150768)
    assert start.after(6.6, 256).coef == pytest.approx(0.150384)
    assert start.after(0, 256).coef == pytest.approx(0.15 * (1 - 0.2 * 0.0256))
    assert start.after(6.0, 256).coef == 0.15
    # the error is limited to +-.2 exactly: 7.2 / 6 - 1 = .2 and 4.8 / 6 - 1 = -.2; inside it is proportional
    assert start.after(7.2, 256).coef == pytest.approx(start.after(99, 256).coef) and start.after(7.1, 256).coef < start.after(7.2, 256).coef
    assert start.after(4.8, 256).coef == pytest.approx(start.after(0, 256).coef) and start.after(4.9, 256).coef > start.after(4.8, 256).coef
    assert start.after(6.6, 500).coef == pytest.approx(0.15 * (1 + 0.1 * 500 / 10_000))
    assert start.after(6.6, 256).after(6.6, 256).coef == pytest.approx(0.15 * (1 + 0.1 * 0.0256) ** 2)  # target and horizon go along
    assert kl.AdaptiveCoefficient(0.15, 6.0) == start  # 10,000 by default
    assert kl.AdaptiveCoefficient(0.15, 6.0, 500).after(6.6, 50).coef == pytest.approx(0.15 * (1 + 0.1 * 50 / 500))
    assert kl.AdaptiveCoefficient(0.15, None).after(1e9, 256).coef == 0.15
    # the largest step down, below 5 horizons at once, leaves something: 1 - .2 * 499 / 100 = .002
    assert kl.AdaptiveCoefficient(1.0, 6.0, 100).after(0, 499).coef == pytest.approx(0.002)


def test_the_controller_reaches_its_target_on_a_plant() -> None:
    control, measured = kl.AdaptiveCoefficient(0.02, 6.0, 2_000), 0.0
    for _ in range(400):
        measured += 0.2 * (1.2 / control.coef - measured)  # KL settles where the pull of the reward balances the coefficient
        control = control.after(measured, 64)
    assert 0.8 * 6 < measured < 1.2 * 6


# -- reductions ----------------------------------------------------------------------------------------------------------
def test_reductions_equal_the_published_table_and_do_not_depend_on_the_split() -> None:
    loss, counted = tensor([[0.1, 0.2, 0.3, 0.4], [0.5, 0.4, 0.3, 0.2]], dtype=D), tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    assert reduce.tokens(loss, counted, 7).item() == pytest.approx(0.285714, abs=1e-6)
    assert reduce.sequences(loss, counted, 2).item() == pytest.approx(0.275)
    assert reduce.constant(loss, counted, 2, 4).item() == pytest.approx(0.25)
    for whole, parts in (
        (reduce.tokens(loss, counted, 7), [reduce.tokens(loss[i : i + 1], counted[i : i + 1], 7) for i in range(2)]),
        (reduce.sequences(loss, counted, 2), [reduce.sequences(loss[i : i + 1], counted[i : i + 1], 2) for i in range(2)]),
    ):
        torch.testing.assert_close(whole, sum(parts))
    mean_of_means = (loss[0, :3].mean() + loss[1].mean()) / 2
    assert abs(mean_of_means - reduce.tokens(loss, counted, 7)) > 0.01  # the field's mistake gives another number


def test_reductions_by_hand() -> None:
    nan = float("nan")
    loss, counted = tensor([[1.0, 2.0, nan], [4.0, nan, nan], [nan, nan, nan]], dtype=D), tensor([[True, True, False], [True, False, False], [False] * 3])
    for where in (counted, counted.int(), counted.double()):
        assert reduce.tokens(loss, where, 3).item() == pytest.approx(7 / 3)
        assert reduce.sequences(loss, where, 3).item() == pytest.approx((1.5 + 4 + 0) / 3)
        assert reduce.constant(loss, where, 3, 5).item() == pytest.approx(7 / 15)
    assert reduce.elements(tensor([1.0, 3.0], dtype=D), 8).item() == 0.5
    weights, values = tensor([[0.5, 0.25], [0.0, 0.25]], dtype=D), tensor([[1.0, 2.0], [4.0, 8.0]], dtype=D)
    assert reduce.tokens(values, weights, 2).item() == 1.5  # (.5 * 1 + .25 * 2 + .25 * 8) / 2
    assert reduce.sequences(values, weights, 2).item() == pytest.approx((1 / 0.75 + 8) / 2)


def test_no_gradient_reaches_what_does_not_count() -> None:
    loss, counted = tensor([[1.0, float("inf")]], dtype=D, requires_grad=True), tensor([[1, 0]])
    for scalar in (reduce.tokens(loss, counted, 4), reduce.sequences(loss, counted, 4), reduce.constant(loss, counted, 2, 2)):
        assert torch.autograd.grad(scalar, loss, retain_graph=True)[0].tolist() == [[0.25, 0.0]]


def test_the_divergence_to_come_is_clipped_like_any_policy_gradient():
    # rho = 0.5 / 0.25 = 2 and 0.1 / 0.2 = 0.5; own: rho (ref/pi - 1 - log ref/pi) with ref/pi = 0.2 and 1: 2 * (0.2 - 1 + 1.6094) = 1.6189 and 0
    logp, old, ref, later = (torch.tensor(x, dtype=torch.float64) for x in (([0.5, 0.1]), [0.25, 0.2], [0.1, 0.1], [-2.0, 3.0]))
    args = logp.log(), old.log(), ref.log(), later, "k3"
    torch.testing.assert_close(kl.penalty(*args), torch.tensor([1.618876 - 4.0, 1.5], dtype=torch.float64), atol=1e-6, rtol=0)
    # clipped at 0.2: max(-2 * 2, -2 * 1.2) = -2.4 and max(3 * 0.5, 3 * 0.8) = 2.4
    torch.testing.assert_close(kl.penalty(*args, 0.2), torch.tensor([1.618876 - 2.4, 2.4], dtype=torch.float64), atol=1e-6, rtol=0)


def test_best_of_group_over_the_last_axis() -> None:
    """One group alone, and two tasks of two groups: each group by itself, ties share the place, and equal rewards choose nobody."""
    from truing.maths.advantages import best_of_group

    assert best_of_group(torch.tensor([0.2, 0.9, 0.9])).tolist() == [0.0, 1.0, 1.0]
    many = torch.tensor([[[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]], [[9.0, 0.0, 0.0], [-1.0, -2.0, -1.0]]])
    assert best_of_group(many).tolist() == [[[0.0, 0.0, 1.0], [0.0, 0.0, 0.0]], [[1.0, 0.0, 0.0], [1.0, 0.0, 1.0]]]
    with pytest.raises(ValueError, match="best_of_group: rewards"):
        best_of_group(torch.tensor([1.0]))


def test_masked_importance_keeps_its_bounds_and_refuses_less_than_one() -> None:
    from truing.maths.policy import masked_importance

    logp = torch.tensor([0.5, 2.0, 0.49, 2.01, 1.0], dtype=torch.float64).log().requires_grad_()
    found = masked_importance(logp, torch.zeros(5, dtype=torch.float64), cap=2.0 + 1e-9)
    assert found.tolist() == pytest.approx([0.5, 2.0, 0.0, 0.0, 1.0]) and not found.requires_grad
    assert masked_importance(torch.zeros(1), torch.zeros(1), cap=1.0).tolist() == [1.0]
    with pytest.raises(ValueError, match="cap=0.9 must be 1 or more"):
        masked_importance(torch.zeros(1), torch.zeros(1), cap=0.9)


def test_the_entropy_bonus_follows_its_target() -> None:
    from truing.maths.policy import adapted_entropy_weight as adapted

    assert adapted(0.01, 0.19, 0.2) == pytest.approx(0.015) and adapted(0.01, 0.2, 0.2) == pytest.approx(0.005)  # at the target it falls
    assert adapted(0.003, 1.0, 0.2) == 0.0 and adapted(0.0, 0.1, 0.2, step=0.5) == 0.5 and adapted(1.0, 9.0, 0.2, step=0.25) == 0.75
    for wrong in ({"weight": -0.1}, {"target": 0.0}, {"step": 0.0}):
        with pytest.raises(ValueError, match="adapted_entropy_weight"):
            adapted(**{"weight": 0.0, "entropy": 0.1, "target": 0.2, **wrong})
