"""Policy-gradient losses. Each returns one number an element; `reduce` makes the scalar."""

from __future__ import annotations

import torch
from torch import Tensor

LOG_RATIO_LIMIT = 20.0  # exp(20) = 4.9e8: past it the ratio says "far away" whatever its value, and exp would overflow


def ratio(logp: Tensor, logp_old: Tensor) -> Tensor:
    """Importance ratio ``pi(a|s) / pi_old(a|s)``, its logarithm limited to +-20.

    >>> ratio(torch.tensor([0.0]), torch.tensor([0.0]))
    tensor([1.])
    """
    return (logp - logp_old).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()


def clipped_surrogate(
    logp: Tensor, logp_old: Tensor, advantages: Tensor, clip_low: float = 0.2, clip_high: float | None = None, dual_clip: float | None = None
) -> Tensor:
    """PPO's clipped objective as a loss, ``max(-A rho, -A clip(rho, 1 - low, 1 + high))``, one number an element.

    Args:
        logp: log pi(a_t|s_t) of the current policy, with gradient.
        logp_old: of the policy that produced the rollout.
        advantages: same shape; treated as constants.
        clip_low, clip_high: bounds of the ratio; clip_high = None takes clip_low.
        dual_clip: c > 1 bounds the loss of a negative advantage by ``-c A``.

    Raises ValueError when a bound is negative or dual_clip <= 1.
    Source: Schulman et al. 2017 (arXiv 1707.06347), equation 7; dual clip: Ye et al. 2020 (arXiv 1912.09729), equation 5.

    >>> logp = torch.tensor([1.5, 0.6]).log()
    >>> clipped_surrogate(logp, torch.zeros(2), torch.tensor([0.4, -0.3]))  # -(1.2 * 0.4) and -(0.8 * -0.3)
    tensor([-0.4800,  0.2400])
    """
    high = clip_low if clip_high is None else clip_high
    if clip_low < 0 or high < 0:
        raise ValueError(f"clipped_surrogate: clip_low={clip_low}, clip_high={high}; bounds are widths around 1 and cannot be negative")
    if dual_clip is not None and dual_clip <= 1:
        raise ValueError(f"clipped_surrogate: dual_clip={dual_clip} must be above 1, or None")
    advantages = advantages.detach()
    rho = ratio(logp, logp_old)
    loss = torch.maximum(-advantages * rho, -advantages * rho.clamp(1 - clip_low, 1 + high))
    if dual_clip is None:
        return loss
    return torch.where(advantages < 0, torch.minimum(loss, -advantages * dual_clip), loss)


def clip_share(logp: Tensor, logp_old: Tensor, clip_low: float = 0.2, clip_high: float | None = None) -> Tensor:
    """1 where the ratio lies outside the clip bounds, else 0, one number an element."""
    rho = ratio(logp, logp_old)
    return ((rho < 1 - clip_low) | (rho > 1 + (clip_low if clip_high is None else clip_high))).to(logp.dtype)
