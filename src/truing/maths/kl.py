"""Kullback-Leibler divergence between a policy and its reference, estimated from the policy's own samples. All in nats.

Which gradient is right, for samples of the current policy pi:

* in the reward (detached): **k1** gives the gradient of KL(pi || ref).
* in the loss: **k2** gives the gradient of KL(pi || ref). k1 has expected gradient 0: it adds noise and nothing else. k3 gives
  the gradient of the other direction, KL(ref || pi).

For samples of an older policy, multiply by ``policy.ratio(logp, logp_old)`` and keep its gradient: the mean of
``ratio * k1`` or ``ratio * k3`` is then KL(pi || ref) itself whatever pi has become, so value and gradient are both right, at
the first update too, where the ratio is 1. k2 wants the ratio detached.

Source: Schulman 2020, "Approximating KL divergence"; Liu et al. 2025 (arXiv 2510.01555). Shapes must agree, else ValueError.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from truing.maths import check
from truing.maths.policy import clipped_surrogate, ratio

LOG_RATIO_LIMIT = 20.0  # as in `policy`: exp(20) = 4.9e8 nats is far away whatever its value


def k1(logp: Tensor, logp_ref: Tensor) -> Tensor:
    """``log pi - log ref``: unbiased, high variance, may be negative on a sample. Right in the reward.

    >>> k1(torch.tensor([-1.0, -2.0]), torch.tensor([-1.5, -1.0]))
    tensor([ 0.5000, -1.0000])
    """
    check.same_shape("k1", logp=logp, logp_ref=logp_ref)
    return logp - logp_ref


def k2(logp: Tensor, logp_ref: Tensor) -> Tensor:
    """``(log pi - log ref)^2 / 2``: biased in value. Right in the loss.

    >>> k2(torch.tensor([-1.0, -2.0]), torch.tensor([-1.5, -1.0]))
    tensor([0.1250, 0.5000])
    """
    check.same_shape("k2", logp=logp, logp_ref=logp_ref)
    return 0.5 * (logp - logp_ref).square()


def k3(logp: Tensor, logp_ref: Tensor) -> Tensor:
    """``ref/pi - 1 - log(ref/pi)``: unbiased, low variance, never negative. Right as a measurement; the log-ratio is limited to +-20.

    >>> k3(torch.tensor([-1.0, -2.0]), torch.tensor([-1.5, -1.0]))  # exp(-.5) - 1 + .5 and exp(1) - 1 - 1
    tensor([0.1065, 0.7183])
    """
    check.same_shape("k3", logp=logp, logp_ref=logp_ref)
    log_ref_over_pi = (logp_ref - logp).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return log_ref_over_pi.expm1() - log_ref_over_pi  # not exp() - 1: near 0, where policies are, that loses every digit of x^2 / 2


def penalty(logp: Tensor, logp_old: Tensor, logp_ref: Tensor, later: Tensor, kind: str, clip: float | None = None) -> Tensor:
    """The divergence as a loss, one number a token, whose gradient is that of KL(pi || ref) of whole completions.

    Token t changes its own divergence, and the divergence of all that follows it:
    ``own_t + rho_t * later_t`` with ``rho = pi / pi_old`` and own = ``sg(rho) k2`` or ``rho k3``, whose gradients are one number,
    ``rho (log pi - log ref)``. Leaving `later` out, as the field does, prices only the token's own step, so that the optimum is
    no longer ``ref * exp(score / coef)``.

    Args:
        logp: of the current policy, with gradient.
        logp_old, logp_ref: of the policy that sampled, and of the reference.
        later: estimated divergence of all tokens after each one, under the sampling policy; a constant
            (`returns.discounted_returns` of k1, less the token's own, less any baseline).
        kind: "k2" or "k3".
        clip: bounds the ratio of the second term, a policy gradient like any other, as PPO bounds its own; None does not.

    Raises ValueError when shapes differ or kind is another.
    Source: Liu et al. 2025 (arXiv 2510.01555); the second term is the policy-gradient theorem's.

    >>> half, tenth = torch.tensor([0.5]).log(), torch.tensor([0.1]).log()
    >>> penalty(half, half, tenth, torch.tensor([2.0]), "k3")  # 0.2 - 1 - log 0.2, and 2
    tensor([2.8094])
    """
    check.same_shape("penalty", logp=logp, later=later)
    if kind not in ("k2", "k3"):
        raise ValueError(f"penalty: kind={kind!r} must be 'k2' or 'k3'")
    rho = ratio(logp, logp_old)
    estimator, weight = (k2, rho.detach()) if kind == "k2" else (k3, rho)
    following = rho * later.detach() if clip is None else clipped_surrogate(logp, logp_old, -later, clip)
    return weight * estimator(logp, logp_ref) + following


def exact(logits: Tensor, logits_ref: Tensor) -> Tensor:
    """``sum_v pi_v (log pi_v - log ref_v)``: KL(pi || ref) of two categorical distributions given as logits ``[..., V]``; the result is ``[...]``.

    A choice that pi excludes (logit -inf) adds 0; one that only ref excludes makes it infinite.

    >>> exact(torch.tensor([0.0, float("-inf")]), torch.tensor([0.0, 0.0]))  # certain against a coin: log 2
    tensor(0.6931)
    """
    check.same_shape("exact", logits=logits, logits_ref=logits_ref)
    logp, logp_ref = logits.log_softmax(-1), logits_ref.log_softmax(-1)
    p = logp.exp()
    return (p * torch.where(p > 0, logp - logp_ref, p)).sum(-1)


@dataclass(frozen=True)
class AdaptiveCoefficient:
    """The proportional controller that steers KL per *sequence* to a target.

    ``error = clip(kl / target - 1, -0.2, 0.2); coef <- coef * (1 + error * n / horizon)``, n sequences at a time.
    Raises ValueError for a coefficient that is negative, or a target or horizon that is not positive.
    Source: Ziegler et al. 2019 (arXiv 1909.08593), section 2.2.

    >>> round(AdaptiveCoefficient(0.15, target=6.0, horizon=10_000).after(kl=12.0, sequences=256).coef, 6)  # 0.15 * (1 + 0.2 * 0.0256)
    0.150768
    """

    coef: float
    target: float | None
    horizon: int = 10_000

    def __post_init__(self) -> None:
        if not (self.coef >= 0 and (self.target is None or self.target > 0) and self.horizon > 0):
            raise ValueError(f"AdaptiveCoefficient: coef={self.coef} cannot be negative; target={self.target} (nats a sequence, or None) and horizon={self.horizon} must be positive")

    def after(self, kl: float, sequences: int) -> AdaptiveCoefficient:
        """The controller after `sequences` sequences with a mean of `kl` nats each; unchanged when target is None."""
        if self.target is None:
            return self
        if not math.isfinite(kl):
            raise ValueError(f"AdaptiveCoefficient: kl={kl} is not finite; the controller cannot steer by it")
        if not 0 < 0.2 * sequences < self.horizon:
            raise ValueError(f"AdaptiveCoefficient: {sequences} sequences at once against horizon={self.horizon}; the coefficient stays positive below 5 horizons, so raise horizon")
        error = max(-0.2, min(0.2, kl / self.target - 1.0))
        return AdaptiveCoefficient(self.coef * (1.0 + error * sequences / self.horizon), self.target, self.horizon)
