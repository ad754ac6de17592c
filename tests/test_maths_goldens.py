"""Numbers that come from arithmetic in a comment, from a closed form, or from another library's published output."""

from __future__ import annotations

import doctest
import importlib

import numpy as np
import pytest
import torch
from torch import tensor

from truing.maths import kl, reduce, stats
from truing.maths.advantages import gae, td_error, whiten
from truing.maths.likelihood import token_likelihood
from truing.maths.policy import clip_share, clipped_surrogate, ratio
from truing.maths.preference import bradley_terry, centering
from truing.maths.value import clipped_squared_error, squared_error

D = torch.float64


@pytest.mark.parametrize("module", ["advantages", "kl", "likelihood", "policy", "preference", "reduce", "stats", "value"])
def test_docstrings_hold(module: str) -> None:
    found = doctest.testmod(importlib.import_module(f"truing.maths.{module}"), extraglobs={"torch": torch})
    assert found.failed == 0


# -- advantages ----------------------------------------------------------------------------------------------------------
def test_gae_equals_the_published_example() -> None:
    # rlax, torchrl and Stable-Baselines3 agree on this: r = [0, 0, 1, 0], V = [.1, .2, .3, .4], terminal at the end, gamma 1, lambda .95
    r, v = tensor([0.0, 0, 1, 0], dtype=D), tensor([0.1, 0.2, 0.3, 0.4], dtype=D)
    nxt, alive = tensor([0.2, 0.3, 0.4, 0.0], dtype=D), tensor([1.0, 1, 1, 0], dtype=D)
    a = gae(r, v, nxt, alive, alive, 0.95)
    torch.testing.assert_close(a, tensor([0.8448, 0.7840, 0.7200, -0.4], dtype=D), atol=5e-5, rtol=0)
    torch.testing.assert_close(a + v, tensor([0.9448, 0.9840, 1.02, 0.0], dtype=D), atol=5e-5, rtol=0)


def test_gae_reduces_to_its_ends() -> None:
    g = torch.Generator().manual_seed(0)
    r, v, last = torch.randn(3, 7, generator=g, dtype=D), torch.randn(3, 7, generator=g, dtype=D), torch.randn(3, 1, generator=g, dtype=D)
    nxt, gamma, carry = torch.cat([v[:, 1:], last], 1), torch.full((3, 7), 0.9, dtype=D), torch.ones(3, 7, dtype=D)
    torch.testing.assert_close(gae(r, v, nxt, gamma, carry, 0.0), td_error(r, v, nxt, gamma))
    returns = last[:, 0]
    for t in range(6, -1, -1):
        returns = r[:, t] + 0.9 * returns
        torch.testing.assert_close(gae(r, v, nxt, gamma, carry, 1.0)[:, t], returns - v[:, t])


def test_truncation_is_not_termination() -> None:
    # Reward 1 for ever, gamma .9: V = 1 / (1 - .9) = 10 everywhere is exact, so every advantage is 0 when the cut at t = 2 bootstraps.
    one, ten = torch.ones(6, dtype=D), torch.full((6,), 10.0, dtype=D)
    carry = tensor([1.0, 1, 0, 1, 1, 0], dtype=D)
    torch.testing.assert_close(gae(one, ten, ten, 0.9 * one, carry, 0.95), torch.zeros(6, dtype=D), atol=1e-12, rtol=0)
    naive = gae(one, ten, ten, 0.9 * carry, carry, 0.95)  # the cut taken for an end
    assert naive[2].item() == pytest.approx(1 - 10)


def test_padding_needs_no_mask() -> None:
    r, v = tensor([[0.0, 2.0, 0, 0]], dtype=D), tensor([[0.5, 0.7, 0, 0]], dtype=D)
    nxt, alive = tensor([[0.7, 0, 0, 0]], dtype=D), tensor([[1.0, 0, 0, 0]], dtype=D)
    whole = gae(r, v, nxt, alive, alive, 0.95)
    torch.testing.assert_close(whole[:, :2], gae(*(x[:, :2] for x in (r, v, nxt, alive, alive)), 0.95))
    assert whole[:, 2:].eq(0).all()


def test_whitening_equals_the_published_numbers() -> None:
    x = tensor([[1.2, 1.3, 1.4], [1.5, 1.6, 1.7], [1.8, 1.9, 2.0]], dtype=D)
    full = torch.ones_like(x, dtype=torch.bool)
    torch.testing.assert_close(whiten(x, full, shift_mean=False, ddof=0)[0], tensor([0.0508, 0.4381, 0.8254], dtype=D), atol=5e-5, rtol=0)
    torch.testing.assert_close(whiten(x, full, shift_mean=False, ddof=1)[2], tensor([2.3303, 2.6954, 3.0606], dtype=D), atol=5e-5, rtol=0)


def test_whitening_ignores_what_does_not_count() -> None:
    x, counted = tensor([1.0, 3.0, 1e6]), tensor([True, True, False])
    torch.testing.assert_close(whiten(x, counted, ddof=0), tensor([-1.0, 1.0, 0.0]))
    assert whiten(tensor([5.0]), tensor([True])).item() == 5.0  # one element has no variance


# -- policy --------------------------------------------------------------------------------------------------------------
def test_clipped_surrogate_equals_the_published_example() -> None:
    # verl and OpenRLHF: log-ratio [.5, -.5, 2], A = [1, 1, -1], eps .2 -> token mean 1.8608; dual clip 3 -> .3978; clipped 1/3 at the upper bound...
    logp, old, adv = tensor([0.5, -0.5, 2.0], dtype=D), torch.zeros(3, dtype=D), tensor([1.0, 1.0, -1.0], dtype=D)
    assert clipped_surrogate(logp, old, adv).mean().item() == pytest.approx(1.8608, abs=5e-5)
    assert clipped_surrogate(logp, old, adv, dual_clip=3.0).mean().item() == pytest.approx(0.3978, abs=5e-5)
    # rlax: ratios [1.5, .5], A [1, -1], eps .2 -> mean of (-1.2, .8) = -.2
    assert clipped_surrogate(tensor([1.5, 0.5]).log(), torch.zeros(2), tensor([1.0, -1.0])).mean().item() == pytest.approx(-0.2)
    assert clip_share(logp, old).tolist() == [1, 1, 1] and clip_share(tensor([0.1, -0.1]), torch.zeros(2)).tolist() == [0, 0]


def test_asymmetric_bounds_are_each_used() -> None:
    logp, adv = tensor([1.5, 0.5]).log(), tensor([1.0, -1.0])
    torch.testing.assert_close(clipped_surrogate(logp, torch.zeros(2), adv, clip_low=0.1, clip_high=0.3), tensor([-1.3, 0.9]))


def test_at_ratio_one_the_gradient_is_reinforces() -> None:
    logits = torch.randn(4, 6, dtype=D, generator=torch.Generator().manual_seed(1), requires_grad=True)
    actions, adv = tensor([0, 5, 2, 2]), tensor([0.3, -2.0, 1.0, 0.0], dtype=D)
    logp = logits.log_softmax(-1).gather(-1, actions[:, None]).squeeze(-1)
    (ours,) = torch.autograd.grad(clipped_surrogate(logp, logp.detach(), adv).sum(), logits, retain_graph=True)
    (reinforce,) = torch.autograd.grad(-(adv * logp).sum(), logits)
    torch.testing.assert_close(ours, reinforce)


def test_outside_the_clip_there_is_no_gradient_the_improving_way() -> None:
    logp = tensor([1.5, 0.5, 1.5, 0.5], dtype=D).log().requires_grad_()
    adv = tensor([1.0, -1.0, -1.0, 1.0], dtype=D)  # the first two have gone far enough; the last two must come back
    (grad,) = torch.autograd.grad(clipped_surrogate(logp, torch.zeros(4, dtype=D), adv).sum(), logp)
    torch.testing.assert_close(grad, tensor([0.0, 0.0, 1.5, -0.5], dtype=D))


def test_the_ratio_cannot_overflow() -> None:
    assert torch.isfinite(ratio(tensor([500.0]), tensor([0.0]))).all()


# -- value ---------------------------------------------------------------------------------------------------------------
def test_clipped_value_loss_equals_verls_example() -> None:
    # V = [1, 0], returns [0, 1], V_old = 0, clip .2 -> mean .5
    loss = clipped_squared_error(tensor([1.0, 0.0]), torch.zeros(2), tensor([0.0, 1.0]), 0.2)
    assert loss.mean().item() == pytest.approx(0.5)
    # V moved past the clip towards the target: the clipped, larger error counts. .5 * (0.2 - 1)^2 = .32 against .5 * (.9 - 1)^2 = .005
    assert clipped_squared_error(tensor([0.9]), torch.zeros(1), tensor([1.0]), 0.2).item() == pytest.approx(0.32)


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


# -- KL ------------------------------------------------------------------------------------------------------------------
def test_estimators_by_enumeration() -> None:
    g = torch.Generator().manual_seed(2)
    logits, ref = torch.randn(6, generator=g, dtype=D, requires_grad=True), torch.randn(6, generator=g, dtype=D)
    logp, logp_ref = logits.log_softmax(-1), ref.log_softmax(-1)
    p, true = logp.exp(), kl.exact(logits, ref)
    torch.testing.assert_close((p * kl.k1(logp, logp_ref)).sum(), true)
    torch.testing.assert_close((p * kl.k3(logp, logp_ref)).sum(), true)
    assert kl.k3(logp, logp_ref).min() >= 0
    # reversed, k3 is biased: the trap of the field
    assert abs((p * kl.k3(logp_ref, logp)).sum() - true) > 0.01

    def expected_gradient(term: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad((p.detach() * term).sum(), logits, retain_graph=True)[0]

    (reverse,) = torch.autograd.grad(true, logits, retain_graph=True)
    forward = torch.autograd.grad(kl.exact(ref, logits), logits, retain_graph=True)[0]
    torch.testing.assert_close(expected_gradient(kl.k2(logp, logp_ref)), reverse)
    torch.testing.assert_close(expected_gradient(kl.k3(logp, logp_ref)), forward)
    torch.testing.assert_close(expected_gradient(kl.k1(logp, logp_ref)), torch.zeros(6, dtype=D), atol=1e-12, rtol=0)
    torch.testing.assert_close(expected_gradient(logp * kl.k1(logp, logp_ref).detach()), reverse)  # k1 in the reward


def test_adaptive_coefficient_equals_the_published_updates() -> None:
    start = kl.AdaptiveCoefficient(0.15, 6.0, 10_000)
    assert start.after(12, 256).coef == pytest.approx(0.150768)
    assert start.after(6.6, 256).coef == pytest.approx(0.150384)
    assert start.after(0, 256).coef == pytest.approx(0.15 * (1 - 0.2 * 0.0256))
    assert kl.AdaptiveCoefficient(0.15, None).after(1e9, 256).coef == 0.15


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


@pytest.mark.parametrize("function", [reduce.tokens, reduce.sequences])
def test_an_empty_batch_is_an_error_not_a_zero(function) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="nothing that counts"):
        function(torch.zeros(1, 2), torch.zeros(1, 2), 0)


# -- likelihood ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_likelihood_equals_softmax_and_passes_gradcheck(temperature: float) -> None:
    g = torch.Generator().manual_seed(3)
    h, w, b = (torch.randn(*s, generator=g, dtype=D, requires_grad=True) for s in ((7, 5), (11, 5), (11,)))
    targets = torch.randint(0, 11, (7,), generator=g)
    logp, entropy = token_likelihood(h, w, targets, bias=b, temperature=temperature, chunk=3)
    log_probs = ((h @ w.T + b) / temperature).log_softmax(-1)
    torch.testing.assert_close(logp, log_probs[range(7), targets])
    torch.testing.assert_close(entropy, -(log_probs.exp() * log_probs).sum(-1))
    assert torch.autograd.gradcheck(lambda h, w, b: tuple(token_likelihood(h, w, targets, bias=b, temperature=temperature, entropy_gradient=True, chunk=3)), (h, w, b))
    assert torch.autograd.gradcheck(lambda h: token_likelihood(h, w.detach(), targets, temperature=temperature, chunk=2).logp, (h,))


def test_likelihood_refuses_what_it_cannot_mean() -> None:
    h, w = torch.zeros(2, 3), torch.zeros(5, 3)
    with pytest.raises(ValueError, match="temperature=0"):
        token_likelihood(h, w, tensor([0, 1]), temperature=0)
    with pytest.raises(ValueError, match="5 rows"):
        token_likelihood(h, w, tensor([0, 5]))


# -- every loss ----------------------------------------------------------------------------------------------------------
def test_every_loss_passes_gradcheck() -> None:
    g = torch.Generator().manual_seed(4)
    x, y, z = (torch.randn(8, generator=g, dtype=D) for _ in range(3))
    v = x.clone().requires_grad_()
    for function in (
        lambda t: clipped_surrogate(t, y, z, 0.2, 0.3, 3.0),
        lambda t: squared_error(t, y),
        lambda t: clipped_squared_error(t, y, z, 0.2),
        lambda t: bradley_terry(t, y, 0.5),
        lambda t: centering(t, y),
        lambda t: kl.k2(t, y),
        lambda t: kl.k3(t, y),
    ):
        assert torch.autograd.gradcheck(function, (v,))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gae(*[torch.zeros(2)] * 4, torch.zeros(3), 0.9), "one shape"),
        (lambda: gae(*[torch.zeros(2)] * 5, 1.5), "lam=1.5"),
        (lambda: clipped_surrogate(*[torch.zeros(1)] * 3, -0.1), "clip_low=-0.1"),
        (lambda: clipped_surrogate(*[torch.zeros(1)] * 3, dual_clip=1.0), "dual_clip=1.0"),
        (lambda: clipped_squared_error(*[torch.zeros(1)] * 3, 0.0), "clip=0.0"),
        (lambda: whiten(torch.zeros(2), torch.ones(3, dtype=torch.bool)), "differ in shape"),
        (lambda: stats.bootstrap([1.0]), "2 or more"),
        (lambda: stats.bootstrap([1.0, float("nan")]), "NaN"),
        (lambda: stats.wilson(0, 0), "trials=0"),
        (lambda: stats.calibration_error([0.5], [1.0, 0.0]), "must be equal"),
    ],
)
def test_bad_input_is_named(call, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        call()


# -- statistics ----------------------------------------------------------------------------------------------------------
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


def test_calibration_error_by_hand() -> None:
    # bin .0-.1: p .05, y 0 -> .05 off, twice; bin .9-1: p .95, y 1, 0 -> |.5 - .95| = .45, twice. (2 * .05 + 2 * .45) / 4 = .25
    assert stats.calibration_error([0.05, 0.05, 0.95, 0.95], [0, 0, 1, 0]) == pytest.approx(0.25)


def test_explained_variance_by_hand() -> None:
    assert stats.explained_variance([1, 2, 3], [1, 2, 3]) == 1
    assert stats.explained_variance([2, 2, 2], [1, 2, 3]) == pytest.approx(0)
    assert np.isnan(stats.explained_variance([1, 2], [3, 3]))
