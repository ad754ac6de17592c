"""Kullback-Leibler divergence between a policy and its reference, estimated from the policy's own samples.

Which gradient is right: k1 *in the reward* (detached) and k2 *as a loss* both give the gradient of KL(pi || ref). k1 as
a loss has expected gradient 0, and k3 as a loss gives the gradient of the other direction, KL(ref || pi).
Source: Schulman 2020, "Approximating KL divergence"; Liu et al. 2025 (arXiv 2510.01555).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor


def k1(logp: Tensor, logp_ref: Tensor) -> Tensor:
    """``log pi - log ref``: unbiased, high variance, may be negative on a sample.

    >>> import torch
    >>> k1(torch.tensor([-1.0, -2.0]), torch.tensor([-1.5, -1.0]))
    tensor([ 0.5000, -1.0000])
    """
    return logp - logp_ref


def k2(logp: Tensor, logp_ref: Tensor) -> Tensor:
    """``(log pi - log ref)^2 / 2``: biased in value, right in gradient as a loss.

    >>> import torch
    >>> k2(torch.tensor([-1.0, -2.0]), torch.tensor([-1.5, -1.0]))
    tensor([0.1250, 0.5000])
    """
    return 0.5 * (logp - logp_ref).square()


def k3(logp: Tensor, logp_ref: Tensor) -> Tensor:
    """``ref/pi - 1 - log(ref/pi)``: unbiased, low variance, never negative.

    >>> import torch
    >>> k3(torch.tensor([-1.0, -2.0]), torch.tensor([-1.5, -1.0]))  # exp(-.5) - 1 + .5 and exp(1) - 1 - 1
    tensor([0.1065, 0.7183])
    """
    log_ref_over_pi = (logp_ref - logp).clamp(-20.0, 20.0)
    return log_ref_over_pi.exp() - 1 - log_ref_over_pi


def exact(logits: Tensor, logits_ref: Tensor) -> Tensor:
    """KL(pi || ref) of two categorical distributions given as logits ``[..., V]``; the result is ``[...]``, in nats."""
    logp, logp_ref = logits.log_softmax(-1), logits_ref.log_softmax(-1)
    return (logp.exp() * (logp - logp_ref)).sum(-1)


@dataclass(frozen=True)
class AdaptiveCoefficient:
    """The proportional controller that steers KL per *sequence* to a target.

    ``error = clip(kl / target - 1, -0.2, 0.2); coef <- coef * (1 + error * n / horizon)``, n sequences at a time.
    Source: Ziegler et al. 2019 (arXiv 1909.08593), section 2.2.

    >>> round(AdaptiveCoefficient(0.15, target=6.0, horizon=10_000).after(kl=12.0, sequences=256).coef, 6)  # 0.15 * (1 + 0.2 * 0.0256)
    0.150768
    """

    coef: float
    target: float | None
    horizon: int = 10_000

    def after(self, kl: float, sequences: int) -> AdaptiveCoefficient:
        """The controller after `sequences` sequences with a mean of `kl` nats each; unchanged when target is None."""
        if self.target is None:
            return self
        if not math.isfinite(kl):
            raise ValueError(f"AdaptiveCoefficient: kl={kl} is not finite; the controller cannot steer by it")
        error = max(-0.2, min(0.2, kl / self.target - 1.0))
        return AdaptiveCoefficient(self.coef * (1.0 + error * sequences / self.horizon), self.target, self.horizon)

