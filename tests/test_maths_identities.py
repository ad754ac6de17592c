"""Equations that hold between the functions, exactly: a special case is a setting, so two names for it give one number."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor, tensor

from truing.maths import kl, reduce
from truing.maths.advantages import gae, group_centred, group_standardised, leave_one_out, td_error
from truing.maths.likelihood import token_likelihood
from truing.maths.policy import cispo, clipped_surrogate, ratio, reinforce, sequence_logp, sequence_logp_at_tokens, truncated_importance
from truing.maths.preference import bradley_terry
from truing.maths.returns import discounted_returns, lambda_returns, n_step_returns

D = torch.float64


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=D)


def gradient(scalar: Tensor, of: Tensor) -> Tensor:
    return torch.autograd.grad(scalar, of, retain_graph=True)[0]


# -- one family of returns -----------------------------------------------------------------------------------------------
def a_window(seed: int = 0) -> dict[str, Tensor]:
    """Three rows of nine steps, each with a truncation at t = 2, a termination at t = 5 and an open end."""
    values, last, cut = numbers(3, 9, seed=seed), numbers(3, 1, seed=seed + 1), numbers(3, seed=seed + 2)
    next_values = torch.cat([values[:, 1:], last], 1)
    next_values[:, 2] = cut  # V of the state it was cut in, which is not the next row's
    carry, discount = torch.ones(3, 9, dtype=D), torch.full((3, 9), 0.9, dtype=D)
    carry[:, [2, 5]] = 0
    discount[:, 5] = 0
    return {"rewards": numbers(3, 9, seed=seed + 3), "values": values, "next_values": next_values, "discount": discount, "carry": carry}


def without_values(w: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t for name, t in w.items() if name != "values"}


def test_gae_ends_at_the_td_error_and_at_return_minus_value() -> None:
    w = a_window()
    delta = td_error(w["rewards"], w["values"], w["next_values"], w["discount"])
    torch.testing.assert_close(gae(**w, lam=0.0), delta, rtol=0, atol=0)
    torch.testing.assert_close(gae(**w, lam=1.0), discounted_returns(**without_values(w)) - w["values"])


@pytest.mark.parametrize("lam", [0.0, 0.3, 0.95, 1.0])
def test_lambda_returns_are_gae_plus_the_value(lam: float) -> None:
    w = a_window()
    torch.testing.assert_close(lambda_returns(**without_values(w), lam=lam), gae(**w, lam=lam) + w["values"])


def test_n_step_returns_end_at_the_td_target_and_at_the_whole_return() -> None:
    w = without_values(a_window())
    target = w["rewards"] + w["discount"] * w["next_values"]
    torch.testing.assert_close(n_step_returns(**w, n=1), target, rtol=0, atol=0)
    torch.testing.assert_close(lambda_returns(**w, lam=0.0), target, rtol=0, atol=0)
    for n in (9, 10, 1000):
        torch.testing.assert_close(n_step_returns(**w, n=n), discounted_returns(**w))
    torch.testing.assert_close(lambda_returns(**w, lam=1.0), discounted_returns(**w), rtol=0, atol=0)


def test_the_lambda_return_is_the_weighted_mean_of_all_n_step_returns() -> None:
    w, lam = without_values(a_window()), 0.7
    weighted = sum(((1 - lam) * lam ** (n - 1) * n_step_returns(**w, n=n) for n in range(1, 200)), torch.zeros(3, 9, dtype=D))
    torch.testing.assert_close(lambda_returns(**w, lam=lam), weighted)  # lambda^200 = 1e-31 is left over


@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
def test_the_exact_value_function_leaves_no_advantage(lam: float) -> None:
    # A deterministic ring of 4 states, gamma .9: V solves V = r + .9 V(next), so V = (I - .9 P)^-1 r.
    r, p = tensor([1.0, -2.0, 0.5, 3.0], dtype=D), torch.eye(4, dtype=D).roll(1, 1)
    v = torch.linalg.solve(torch.eye(4, dtype=D) - 0.9 * p, r)
    state = torch.arange(11) % 4
    carry = torch.ones(11, dtype=D)
    carry[[3, 7]] = 0  # time limits: the state goes on, and its value is bootstrapped
    discount = torch.full((11,), 0.9, dtype=D)
    exact = gae(r[state], v[state], v[(state + 1) % 4], discount, carry, lam)
    torch.testing.assert_close(exact, torch.zeros(11, dtype=D), atol=1e-12, rtol=0)
    as_if_ended = gae(r[state], v[state], v[(state + 1) % 4], discount * carry, carry, lam)
    assert as_if_ended[3].abs() > 1  # the naive flag


# -- one family of policy gradients --------------------------------------------------------------------------------------
def a_policy(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    logits = numbers(4, 6, seed=seed).requires_grad_()
    logp = logits.log_softmax(-1).gather(-1, tensor([[0], [5], [2], [2]])).squeeze(-1)
    return logits, logp, tensor([0.3, -2.0, 1.0, 0.0], dtype=D)


def test_at_ratio_one_every_surrogates_gradient_is_reinforces() -> None:
    logits, logp, advantages = a_policy()
    expected = gradient(reinforce(logp, advantages).sum(), logits)
    for loss in (
        clipped_surrogate(logp, logp.detach(), advantages),
        clipped_surrogate(logp, logp.detach(), advantages, 0.0),
        clipped_surrogate(logp, logp.detach(), advantages, dual_clip=3.0),
        cispo(logp, logp.detach(), advantages),
        -ratio(logp, logp.detach()) * advantages,
    ):
        torch.testing.assert_close(gradient(loss.sum(), logits), expected)


def test_unclipped_the_surrogates_gradient_is_reinforces_times_the_ratio() -> None:
    logits, logp, advantages = a_policy()
    old = logp.detach() + tensor([0.1, -0.1, 0.15, 0.0], dtype=D)  # ratios within 1 +- .2
    weight = (logp.detach() - old).exp()
    expected = gradient((weight * reinforce(logp, advantages)).sum(), logits)
    torch.testing.assert_close(gradient(clipped_surrogate(logp, old, advantages).sum(), logits), expected)
    torch.testing.assert_close(gradient(cispo(logp, old, advantages).sum(), logits), expected)


def test_supervised_fine_tuning_is_the_policy_gradient_with_advantage_one() -> None:
    hidden, head, targets = numbers(7, 5, seed=1).requires_grad_(), numbers(11, 5, seed=2), torch.arange(7)
    logp = token_likelihood(hidden, head, targets).logp
    everywhere = torch.ones(7, dtype=D)
    ours = reduce.tokens(reinforce(logp, everywhere), everywhere, 7)
    cross_entropy = torch.nn.functional.cross_entropy(hidden @ head.T, targets)
    torch.testing.assert_close(ours, cross_entropy)
    torch.testing.assert_close(gradient(ours, hidden), gradient(cross_entropy, hidden))


def test_the_mean_of_reinforces_gradient_is_the_gradient_of_the_expected_return() -> None:
    # Two steps, three actions each, state after step one = the action: every one of the 9 trajectories is enumerated, so no sampling error.
    first, second = numbers(3, seed=1).requires_grad_(), numbers(3, 3, seed=2).requires_grad_()
    r1, r2, gamma = numbers(3, seed=3), numbers(3, 3, seed=4), 0.8
    lp1, lp2 = first.log_softmax(-1), second.log_softmax(-1)
    expected_return = (lp1.exp() * (r1 + gamma * (lp2.exp() * r2).sum(-1))).sum()
    loss, with_baseline = torch.zeros((), dtype=D), torch.zeros((), dtype=D)
    for a, b in product(range(3), range(3)):
        logp = torch.stack([lp1[a], lp2[a, b]])
        g = discounted_returns(torch.stack([r1[a], r2[a, b]]), torch.zeros(2, dtype=D), gamma * torch.ones(2, dtype=D), tensor([1.0, 0], dtype=D))
        chance, discounted = logp.sum().exp().detach(), tensor([1.0, gamma], dtype=D)  # gamma^t, which the gradient of a discounted return has
        loss = loss + chance * reinforce(logp, discounted * g).sum()
        with_baseline = with_baseline + chance * reinforce(logp, discounted * (g - tensor([5.0, -3.0], dtype=D))).sum()
    for weights in (first, second):
        torch.testing.assert_close(gradient(loss, weights), -gradient(expected_return, weights))
        torch.testing.assert_close(gradient(with_baseline, weights), -gradient(expected_return, weights))  # a baseline changes nothing but the variance


def test_leaving_one_out_is_unbiased_and_the_groups_mean_is_short_by_one_in_g() -> None:
    # All 3^3 groups of three draws from three actions, each weighted by its probability.
    logits, reward = numbers(3, seed=5).requires_grad_(), tensor([1.0, -2.0, 0.5], dtype=D)
    logp = logits.log_softmax(-1)
    true = gradient((logp.exp() * reward).sum(), logits)
    groups = tensor(list(product(range(3), repeat=3)))
    chance = logp[groups].sum(-1).exp().detach()
    for advantage, factor in ((leave_one_out, 1.0), (group_centred, 2 / 3)):
        mean = (chance * reinforce(logp[groups], advantage(reward[groups])).mean(-1)).sum()
        torch.testing.assert_close(gradient(mean, logits), -factor * true)


def test_on_policy_a_groups_loss_is_zero_and_its_gradient_is_not() -> None:
    logits = numbers(6, seed=6).requires_grad_()
    logp = logits.log_softmax(-1)[tensor([0, 1, 2, 3])]
    advantages = group_standardised(tensor([1.0, 0, 0, 1], dtype=D))
    assert advantages.mean().abs() < 1e-12 and advantages.std().item() == pytest.approx(1, abs=2e-6)  # eps aside
    loss = clipped_surrogate(logp, logp.detach(), advantages).mean()
    assert abs(loss.item()) < 1e-12 and gradient(loss, logits).abs().max() > 0.1
    nothing = clipped_surrogate(logp, logp.detach(), group_standardised(torch.full((4,), 0.1, dtype=D))).mean()
    assert gradient(nothing, logits).eq(0).all()  # a group of equal rewards teaches nothing


@pytest.mark.parametrize("size", [2, 3, 8])
def test_leave_one_out_is_group_centred_times_g_over_g_minus_one(size: int) -> None:
    r = numbers(5, size, seed=size)
    torch.testing.assert_close(leave_one_out(r), group_centred(r) * size / (size - 1))
    others = torch.stack([r[:, i] - torch.cat([r[:, :i], r[:, i + 1 :]], 1).mean(1) for i in range(size)], 1)  # the definition
    torch.testing.assert_close(leave_one_out(r), others)


def test_gspo_at_sequences_is_gspo_at_tokens() -> None:
    counted = tensor([[True, True, True, False], [True, True, False, False], [True] * 4])
    logp, old, advantages = (0.1 * numbers(3, 4, seed=1)).requires_grad_(), 0.1 * numbers(3, 4, seed=2), tensor([1.0, -1.0, 2.0], dtype=D)
    for low, high in ((3e-4, 4e-4), (0.2, 0.3)):
        whole = reduce.elements(clipped_surrogate(sequence_logp(logp, counted), sequence_logp(old, counted), advantages, low, high), 3)
        each = clipped_surrogate(sequence_logp_at_tokens(logp, counted), sequence_logp_at_tokens(old, counted), advantages[:, None].expand(3, 4), low, high)
        by_token = reduce.sequences(each, counted, 3)
        torch.testing.assert_close(whole, by_token)
        torch.testing.assert_close(gradient(whole, logp), gradient(by_token, logp))
    # the ratio is (pi(y) / pi_old(y))^(1 / |y|)
    lengths = counted.sum(-1)
    expected = ((logp - old) * counted).sum(-1).exp() ** (1 / lengths)
    torch.testing.assert_close(ratio(sequence_logp(logp, counted), sequence_logp(old, counted)), expected)


def test_a_sequence_of_one_token_has_that_tokens_ratio() -> None:
    logp, old, one = numbers(5, 1, seed=1), numbers(5, 1, seed=2), torch.ones(5, 1, dtype=torch.bool)
    torch.testing.assert_close(ratio(sequence_logp(logp, one), sequence_logp(old, one)), ratio(logp, old)[:, 0])


# -- preferences ---------------------------------------------------------------------------------------------------------
def test_dpo_is_bradley_terry_on_scaled_log_ratios() -> None:
    beta = 0.1
    chosen, rejected, ref_chosen, ref_rejected = (numbers(6, seed=s) for s in range(4))
    by_the_paper = -torch.nn.functional.logsigmoid(beta * ((chosen - rejected) - (ref_chosen - ref_rejected)))  # equation 7
    torch.testing.assert_close(bradley_terry(beta * (chosen - ref_chosen), beta * (rejected - ref_rejected)), by_the_paper)


def test_dpo_starts_at_log_two_and_ends_at_the_tilted_reference() -> None:
    # Every pair of 5 answers, compared infinitely often by Bradley-Terry raters with reward r: the least DPO loss is at
    # pi = ref exp(r / beta) / Z (Rafailov et al. 2023, equation 4), here reached by minimising.
    beta, reward, ref = 0.5, tensor([1.0, 0.2, -0.4, 0.0, -1.0], dtype=D), numbers(5, seed=1).log_softmax(-1)
    logits = ref.clone().requires_grad_()
    i, j = (t.flatten() for t in torch.meshgrid(torch.arange(5), torch.arange(5), indexing="ij"))
    preferred = torch.sigmoid(reward[i] - reward[j])

    def loss() -> Tensor:
        gain = beta * (logits.log_softmax(-1) - ref)
        return reduce.elements(preferred * bradley_terry(gain[i], gain[j]), 25) * 2  # each pair stands here twice, once each way round

    assert loss().item() == pytest.approx(math.log(2))
    optimiser = torch.optim.LBFGS([logits], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-16, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        found = loss()
        found.backward()
        return found

    optimiser.step(closure)
    tilted = (ref + reward / beta).softmax(-1)
    torch.testing.assert_close(logits.detach().softmax(-1), tilted, rtol=0, atol=1e-6)


def test_the_two_outcomes_of_a_comparison_have_probability_one() -> None:
    a, b = numbers(9, seed=1), numbers(9, seed=2)
    torch.testing.assert_close((-bradley_terry(a, b)).exp() + (-bradley_terry(b, a)).exp(), torch.ones(9, dtype=D))
    torch.testing.assert_close(bradley_terry(a, b, 0.7), bradley_terry(a - 0.7, b))  # a margin is a handicap


# -- divergence ----------------------------------------------------------------------------------------------------------
class Enumerated:
    """A 6-way softmax pi, its reference and an older policy; expectations are sums, so every equation is exact."""

    def __init__(self) -> None:
        self.logits, self.ref, self.old = (2 * numbers(6, seed=2)).requires_grad_(), numbers(6, seed=3), 2 * numbers(6, seed=2) + numbers(6, seed=4)
        self.logp, self.logp_ref, self.logp_old = (x.log_softmax(-1) for x in (self.logits, self.ref, self.old))
        self.true = kl.exact(self.logits, self.ref)

    def mean_gradient(self, term: Tensor, under: Tensor) -> Tensor:
        """Gradient of a loss averaged over samples: the chance of a sample is no function of the weights."""
        return gradient((under.detach().exp() * term).sum(), self.logits)


def test_k1_and_k3_are_unbiased() -> None:
    e = Enumerated()
    p = e.logp.exp()
    torch.testing.assert_close((p * kl.k1(e.logp, e.logp_ref)).sum(), e.true)
    torch.testing.assert_close((p * kl.k3(e.logp, e.logp_ref)).sum(), e.true)
    assert kl.k3(e.logp, e.logp_ref).min() >= 0 and kl.k1(e.logp, e.logp_ref).min() < 0
    assert abs((p * kl.k2(e.logp, e.logp_ref)).sum() - e.true) > 0.01  # k2 is not
    assert abs((p * kl.k3(e.logp_ref, e.logp)).sum() - e.true) > 0.01  # nor is k3 reversed: the trap of the field


def test_which_gradient_each_estimator_has_on_policy() -> None:
    e = Enumerated()
    reverse, forward = gradient(e.true, e.logits), gradient(kl.exact(e.ref, e.logits), e.logits)
    assert (reverse - forward).abs().max() > 0.05  # or the next lines would say little
    k1, k2, k3 = (f(e.logp, e.logp_ref) for f in (kl.k1, kl.k2, kl.k3))
    torch.testing.assert_close(e.mean_gradient(k1, e.logp), torch.zeros(6, dtype=D), atol=1e-12, rtol=0)  # in the loss: nothing
    torch.testing.assert_close(e.mean_gradient(reinforce(e.logp, -k1), e.logp), reverse)  # in the reward, -k1: right
    torch.testing.assert_close(e.mean_gradient(k2, e.logp), reverse)  # in the loss: right
    torch.testing.assert_close(e.mean_gradient(k3, e.logp), forward)  # in the loss: the other direction


def test_which_gradient_each_estimator_has_off_policy() -> None:
    e = Enumerated()
    reverse, rho = gradient(e.true, e.logits), ratio(e.logp, e.logp_old)
    k1, k2, k3 = (f(e.logp, e.logp_ref) for f in (kl.k1, kl.k2, kl.k3))
    for estimator in (k1, k3):  # weighted, value and gradient are both right
        torch.testing.assert_close((e.logp_old.exp() * rho * estimator).sum(), e.true)
        torch.testing.assert_close(e.mean_gradient(rho * estimator, e.logp_old), reverse)
    torch.testing.assert_close(e.mean_gradient(rho.detach() * k2, e.logp_old), reverse)
    for wrong in (k1, k2, k3, rho.detach() * k3, rho * k2):
        assert (e.mean_gradient(wrong, e.logp_old) - reverse).abs().max() > 0.01
    # at the first update, where the ratio is 1, too
    on = ratio(e.logp, e.logp.detach())
    for estimator in (k1, k3):
        torch.testing.assert_close(e.mean_gradient(on * estimator, e.logp), reverse)


class Completions:
    """Every completion of up to three tokens of a vocabulary of three, whose last ends it; each prefix has its own logits, so sums are expectations.

    ``logp(logits)`` is ``[completions, 3]``, 0 after the end.
    """

    def __init__(self) -> None:
        self.logits, self.ref, self.old = (1.5 * numbers(13, 3, seed=1)).requires_grad_(), numbers(13, 3, seed=2), 1.5 * numbers(13, 3, seed=1) + 0.5 * numbers(13, 3, seed=3)
        whole = [y for n in (1, 2, 3) for y in product(range(3), repeat=n) if 2 not in y[:-1] and (y[-1] == 2 or n == 3)]
        prefixes = {prefix: i for i, prefix in enumerate(p for n in range(3) for p in product(range(3), repeat=n))}
        self.state = tensor([[prefixes[y[:t]] if t < len(y) else 0 for t in range(3)] for y in whole])
        self.token = tensor([[y[t] if t < len(y) else 0 for t in range(3)] for y in whole])
        self.counted = tensor([[t < len(y) for t in range(3)] for y in whole])

    def logp(self, logits: Tensor) -> Tensor:
        return torch.where(self.counted, logits.log_softmax(-1)[self.state, self.token], 0.0)

    def chance(self, logits: Tensor) -> Tensor:
        return self.logp(logits).sum(-1).exp()

    def divergence(self) -> Tensor:
        """KL(pi || ref) of whole completions, by its definition."""
        return (self.chance(self.logits) * (self.logp(self.logits) - self.logp(self.ref)).sum(-1)).sum()

    def later(self, of: Tensor) -> Tensor:
        return of.flip(-1).cumsum(-1).flip(-1) - of


@pytest.mark.parametrize("kind", ["k2", "k3"])
@pytest.mark.parametrize("estimator", [kl.k1, kl.k3])
def test_the_penaltys_mean_gradient_is_that_of_the_divergence_of_whole_completions(kind: str, estimator: Callable[[Tensor, Tensor], Tensor]) -> None:
    c = Completions()
    chance, logp, logp_ref = c.chance(c.logits).detach(), c.logp(c.logits), c.logp(c.ref)
    assert len(chance) == 1 + 2 + 12 and chance.sum().item() == pytest.approx(1.0, abs=1e-12)
    right = gradient(c.divergence(), c.logits)
    later = c.later(estimator(logp, logp_ref)).detach()

    def mean(term: Tensor) -> Tensor:
        return gradient((chance * (term * c.counted).sum(-1)).sum(), c.logits)

    found = mean(kl.penalty(logp, logp.detach(), logp_ref, later, kind))
    torch.testing.assert_close(found, right, atol=1e-10, rtol=0)
    # without what follows a token it prices the token's own step only: another direction, not another size
    alone = mean(kl.penalty(logp, logp.detach(), logp_ref, torch.zeros_like(later), kind))
    assert (alone - right).abs().max() > 0.05 and torch.cosine_similarity(alone.flatten(), right.flatten(), dim=0) < 0.99
    # the last token has nothing after it, so there both agree; and what is still to come is a constant
    last = [i for i in range(13) if i >= 4]
    torch.testing.assert_close(alone[last], right[last], atol=1e-10, rtol=0)
    live = c.later(estimator(logp, logp_ref))
    torch.testing.assert_close(mean(kl.penalty(logp, logp.detach(), logp_ref, live, kind)), right, atol=1e-10, rtol=0)
    # the other sign, the reference and the policy exchanged, and the field's plain k3: none of them is it
    for wrong in (
        kl.penalty(logp, logp.detach(), logp_ref, -later, kind),
        kl.penalty(logp, logp.detach(), logp_ref, estimator(logp, logp_ref).detach() + later, kind),
        kl.k3(logp, logp_ref) + ratio(logp, logp.detach()) * later,
        kl.k3(logp_ref, logp) + ratio(logp, logp.detach()) * later,
    ):
        assert (mean(wrong) - right).abs().max() > 0.02


def test_the_penalty_at_an_older_policys_samples_weighs_them() -> None:
    c = Completions()
    first = (c.state == 0) & c.counted  # the first token: nothing before it, so its chance is exact under either policy
    logp, logp_old, logp_ref = c.logp(c.logits), c.logp(c.old), c.logp(c.ref)
    own = gradient(kl.exact(c.logits[0], c.ref[0]), c.logits)
    later = numbers(3, seed=9)[c.token]  # whatever follows, a function of the first token
    after = gradient((c.logits[0].softmax(-1) * numbers(3, seed=9)).sum(), c.logits)
    for kind in ("k2", "k3"):
        term = kl.penalty(logp, logp_old, logp_ref, later, kind)
        torch.testing.assert_close(gradient((c.chance(c.old) * (term * first).sum(-1)).sum(), c.logits), own + after, atol=1e-10, rtol=0)


@pytest.mark.parametrize("kind", ["k2", "k3"])
def test_the_penaltys_gradient_of_one_sample_is_its_divergence_so_far_and_to_come(kind: str) -> None:
    # d/d log pi of both: rho * (log pi - log ref + later); for k3, k3 + (1 - ref / pi) is log pi - log ref as well
    logp, old, ref, later = (numbers(5, seed=s) for s in (4, 5, 6, 7))
    logp.requires_grad_()
    found = gradient(kl.penalty(logp, old, ref, later, kind).sum(), logp)
    torch.testing.assert_close(found, (logp - old).exp() * (logp - ref + later))
    value = kl.penalty(logp, old, ref, later, kind).detach()
    torch.testing.assert_close(value, (logp - old).exp().detach() * (getattr(kl, kind)(logp, ref).detach() + later))


# -- another program's samples -------------------------------------------------------------------------------------------
def test_the_weight_of_another_programs_samples_makes_their_mean_the_trainers() -> None:
    # uncapped, sum_a mu (pi / mu) f = sum_a pi f; the cap lowers what the sampler all but never draws
    pi, mu, f = (numbers(6, seed=s) for s in (1, 2, 3))
    pi.requires_grad_()
    logp, sampler = pi.log_softmax(-1), mu.log_softmax(-1)
    weight = truncated_importance(logp, sampler, cap=1e6)
    torch.testing.assert_close((sampler.exp() * weight * f).sum(), (logp.exp() * f).sum().detach())
    assert not weight.requires_grad  # its gradient would make it a second ratio
    capped = truncated_importance(logp, sampler, cap=1.5)
    torch.testing.assert_close(capped, weight.clamp(max=1.5))
    assert (capped < weight).any() and (capped < 1).any()  # small weights stay small
    # and the policy's gradient is REINFORCE's under the trainer's own distribution
    found = gradient((sampler.exp() * weight * reinforce(logp, f)).sum(), pi)
    torch.testing.assert_close(found, gradient(-(logp.exp() * f).sum(), pi))
