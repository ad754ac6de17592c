"""Policy-gradient losses. Each returns one number an element; `reduce` makes the scalar.

The methods of the field are rows of one table: whose advantage, a ratio of tokens or of sequences, which clip, which reduction.
Advantages are constants in every loss here: no gradient goes through them. Shapes must agree, else ValueError.
"""

from __future__ import annotations

import torch
from torch import Tensor

from truing.maths import check

LOG_RATIO_LIMIT = 20.0  # exp(20) = 4.9e8: past it the ratio says "far away" whatever its value, and exp would overflow


def reinforce(logp: Tensor, advantages: Tensor) -> Tensor:
    """The policy gradient as a loss, ``-A log pi``, one number an element: its expected gradient is that of minus the return.

    With A = 1 it is the loss of supervised fine-tuning. With a return for A it is REINFORCE, less a baseline REINFORCE with baseline.

    Source: Williams 1992; Sutton and Barto, 2nd ed., equation 13.11.

    >>> reinforce(torch.tensor([-0.5, -2.0]), torch.tensor([3.0, -1.0]))  # -(3 * -0.5) and -(-1 * -2)
    tensor([ 1.5000, -2.0000])
    """
    check.same_shape("reinforce", logp=logp, advantages=advantages)
    return -advantages.detach() * logp


def ratio(logp: Tensor, logp_old: Tensor) -> Tensor:
    """Importance ratio ``pi(a|s) / pi_old(a|s)``, its logarithm limited to +-20.

    >>> ratio(torch.tensor([0.0]), torch.tensor([0.0]))
    tensor([1.])
    """
    check.same_shape("ratio", logp=logp, logp_old=logp_old)
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

    On `sequence_logp` of both it is GSPO, whose bounds are far narrower (3e-4 and 4e-4).
    Raises ValueError when shapes differ, a bound is negative or dual_clip <= 1.
    Source: Schulman et al. 2017 (arXiv 1707.06347), equation 7; dual clip: Ye et al. 2020 (arXiv 1912.09729), equation 5.

    >>> logp = torch.tensor([1.5, 0.6]).log()
    >>> clipped_surrogate(logp, torch.zeros(2), torch.tensor([0.4, -0.3]))  # -(1.2 * 0.4) and -(0.8 * -0.3)
    tensor([-0.4800,  0.2400])
    """
    low, high = _bounds("clipped_surrogate", clip_low, clip_high)
    if dual_clip is not None and not dual_clip > 1:
        raise ValueError(f"clipped_surrogate: dual_clip={dual_clip} must be above 1, or None")
    rho = ratio(logp, logp_old)
    check.same_shape("clipped_surrogate", logp=logp, advantages=advantages)
    advantages = advantages.detach()
    loss = torch.maximum(-advantages * rho, -advantages * rho.clamp(low, high))
    if dual_clip is None:
        return loss
    return torch.minimum(loss, advantages.abs() * dual_clip)  # binds for A < 0 only: for A > 0 the loss is below 0


def truncated_importance(logp: Tensor, logp_sampler: Tensor, cap: float) -> Tensor:
    """Weight ``min(pi(a|s) / mu(a|s), cap)`` of a token that another program, mu, drew from the same weights: a constant, no gradient.

    A sampler and a trainer compute the same numbers in another order or precision; the weight makes the samples count as the
    trainer's own, and the cap keeps one token's rounding from ruling the update. It is no part of PPO's ratio, which stays 1 at first.

    Raises ValueError when shapes differ or cap is below 1.
    Source: Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL training" (truncated importance sampling).

    >>> truncated_importance(torch.tensor([0.5, 0.9]).log(), torch.tensor([0.4, 0.3]).log(), cap=2.0)  # 1.25, and 3 limited to 2
    tensor([1.2500, 2.0000])
    """
    if not cap >= 1:
        raise ValueError(f"truncated_importance: cap={cap} must be 1 or more, or samples that agree would be weighted down")
    return ratio(logp, logp_sampler).detach().clamp(max=cap)


def masked_importance(logp: Tensor, logp_sampler: Tensor, cap: float) -> Tensor:
    """Weight ``pi(a|s) / mu(a|s)`` where it lies in ``[1 / cap, cap]``, else 0: a token on which two programs disagree is left out. A constant.

    Raises ValueError when shapes differ or cap is below 1. Source: Zhao et al. 2025, "Small leak can sink a great ship" (IcePop).

    >>> masked_importance(torch.tensor([0.5, 0.9, 0.1]).log(), torch.tensor([0.4, 0.3, 0.5]).log(), cap=2.0)  # 1.25; 3 and 1/5 are outside
    tensor([1.2500, 0.0000, 0.0000])
    """
    if not cap >= 1:
        raise ValueError(f"masked_importance: cap={cap} must be 1 or more, or samples that agree would be left out")
    rho = ratio(logp, logp_sampler).detach()
    return torch.where((rho >= 1 / cap) & (rho <= cap), rho, 0.0)


def adapted_entropy_weight(weight: float, entropy: float, target: float, step: float = 0.005) -> float:
    """The entropy bonus of the next rollout: ``weight + step`` while the entropy is below its target, else ``max(0, weight - step)``.

    Source: He et al. 2025, Skywork-OR1 (arXiv 2505.22312), section 3.2.5.

    >>> adapted_entropy_weight(0.0, entropy=0.1, target=0.2), adapted_entropy_weight(0.0, entropy=0.3, target=0.2)
    (0.005, 0.0)
    """
    if not (weight >= 0 and target > 0 and step > 0):
        raise ValueError(f"adapted_entropy_weight: weight={weight} cannot be negative; target={target} and step={step} must be positive")
    return weight + step if entropy < target else max(0.0, weight - step)


def clip_share(logp: Tensor, logp_old: Tensor, clip_low: float = 0.2, clip_high: float | None = None) -> Tensor:
    """1 where the ratio lies outside the clip bounds, else 0, one number an element.

    >>> clip_share(torch.tensor([0.5, 1.0, 1.5]).log(), torch.zeros(3), clip_low=0.2, clip_high=0.6)  # 0.5 < 0.8, 1.5 < 1.6
    tensor([1., 0., 0.])
    """
    low, high = _bounds("clip_share", clip_low, clip_high)
    rho = ratio(logp, logp_old)
    return ((rho < low) | (rho > high)).to(rho.dtype)


def cispo(logp: Tensor, logp_old: Tensor, advantages: Tensor, *, clip_low: float | None = None, clip_high: float = 4.0) -> Tensor:
    """Clipped importance weight times the policy gradient, ``-sg(clip(rho, 1 - low, 1 + high)) * A * log pi``, one number an element.

    Outside its bounds `clipped_surrogate` drops a token; this keeps every token's gradient and limits its weight only.

    Args:
        clip_low, clip_high: widths around 1, as in `clipped_surrogate`; clip_low = None leaves the weight free downwards, as
            the paper does. The field writes the upper bound in two ways: verl as the width (1 + high), TRL as the bound itself.
            TRL's ``epsilon_high = 5`` (Khatri et al. 2025, arXiv 2510.13786) is ``clip_high = 4``, the default.

    Raises ValueError when shapes differ or a bound is negative.
    Source: MiniMax 2025 (arXiv 2506.13585), equation 4.

    >>> logp = torch.tensor([0.5, 8.0]).log()
    >>> cispo(logp, torch.zeros(2), torch.ones(2))  # -0.5 * log 0.5 and -5 * log 8
    tensor([  0.3466, -10.3972])
    """
    low, high = _bounds("cispo", clip_high if clip_low is None else clip_low, clip_high)
    weight = ratio(logp, logp_old).detach().clamp(None if clip_low is None else low, high)
    return weight * reinforce(logp, advantages)


def sequence_logp(logp: Tensor, counted: Tensor) -> Tensor:
    """Log-probability of a sequence per token, ``sum_t counted_t logp_t / sum_t counted_t``: ``[..., T]`` to ``[...]``.

    The ratio of two of them is GSPO's, ``(pi(y|x) / pi_old(y|x))^(1/|y|)``, so that
    ``clipped_surrogate(sequence_logp(logp, m), sequence_logp(logp_old, m), advantages, 3e-4, 4e-4)`` is GSPO's loss, one number a sequence.

    Args:
        counted: bool, same shape; what is not counted may be anything. A sequence with nothing counted gives 0.

    Source: Zheng et al. 2025 (arXiv 2507.18071), equations 5 and 7.

    >>> sequence_logp(torch.tensor([[-1., -3., -9.]]), torch.tensor([[True, True, False]]))  # (-1 - 3) / 2
    tensor([-2.])
    """
    check.same_shape("sequence_logp", logp=logp, counted=counted)
    return torch.where(counted.bool(), logp, 0.0).sum(-1) / counted.bool().sum(-1).clamp(min=1)


def sequence_logp_at_tokens(logp: Tensor, counted: Tensor) -> Tensor:
    """`sequence_logp` at every token, with the gradient of that token alone: ``sg(sequence_logp) + logp_t - sg(logp_t)``, ``[..., T]``.

    On both policies' it makes `clipped_surrogate` GSPO-token: every token has its sequence's ratio and an advantage of its own.
    With one advantage a sequence and `reduce.sequences`, loss and gradient are those of GSPO.

    Source: Zheng et al. 2025 (arXiv 2507.18071), equations 14 and 15.

    >>> sequence_logp_at_tokens(torch.tensor([[-1., -3., -9.]]), torch.tensor([[True, True, False]]))  # 0 where not counted
    tensor([[-2., -2.,  0.]])
    """
    whole = sequence_logp(logp, counted).detach().unsqueeze(-1)
    return torch.where(counted.bool(), whole + (logp - logp.detach()), 0.0)


def _bounds(caller: str, clip_low: float, clip_high: float | None) -> tuple[float, float]:
    high = clip_low if clip_high is None else clip_high
    if not (clip_low >= 0 and high >= 0):
        raise ValueError(f"{caller}: clip_low={clip_low}, clip_high={high}; bounds are widths around 1 and cannot be negative")
    return 1 - clip_low, 1 + high
