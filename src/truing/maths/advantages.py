"""Advantages: how much better an action was than the state it was taken in, or than the others of its group.

A group is G samples for one prompt (or one state), ``[..., G]``: their own mean is the baseline, and no critic is needed.
The three group functions differ by a factor only: leave-one-out is G / (G - 1) times group-centred, group-standardised is
group-centred over the group's spread.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from truing.maths import check

Number = TypeVar("Number", float, NDArray[np.float64], Tensor)


def td_error(reward: Number, value: Number, next_value: Number, discount: Number | float) -> Number:
    """Temporal-difference error: ``delta = reward + discount * next_value - value``, for numbers, arrays and tensors alike.

    It checks nothing, because loops call it at every step.

    Args:
        reward: r_{t+1}, received after the action at t.
        value: V(s_t).
        next_value: V(s_{t+1}).
        discount: gamma, and 0 only where the episode terminated at t.

    Source: Sutton and Barto, 2nd ed., equation 6.5.

    >>> round(td_error(reward=1, value=0.5, next_value=2, discount=0.9), 6)  # 1 + 0.9 * 2 - 0.5
    2.3
    """
    return reward + discount * next_value - value


def gae(rewards: Tensor, values: Tensor, next_values: Tensor, discount: Tensor, carry: Tensor, lam: float) -> Tensor:
    """Generalised advantage estimation, ``A_t = delta_t + discount_t * lam * carry_t * A_{t+1}``.

    All arguments are ``[..., T]``; the result too. ``lam = 0`` gives the TD error, ``lam = 1`` the return minus the value.

    Args:
        rewards: r_{t+1}, received after the action at t.
        values: V(s_t).
        next_values: V(s_{t+1}), of the episode's own next state: at a truncation, of the state it was cut in.
        discount: gamma, and 0 only where the episode *terminated* at t.
        carry: 1 inside an episode, 0 at *any* episode boundary (terminated or truncated).
        lam: lambda in [0, 1], the trade of bias (0) against variance (1).

    Padding is reward = value = discount = 0 and needs no mask.
    Raises ValueError when shapes differ, a reward or value is not finite, discount or lam lies outside [0, 1], or carry is
    neither 0 nor 1.
    Source: Schulman et al. 2016 (arXiv 1506.02438), equation 16.

    >>> one = torch.ones(3)
    >>> gae(torch.tensor([0., 0., 1.]), torch.zeros(3), torch.zeros(3), one * 0.5, one, lam=1.0)  # 1 discounted by 1/4, 1/2, 1
    tensor([0.2500, 0.5000, 1.0000])
    """
    check.steps("gae", rewards, next_values, discount, carry, values=values)
    check.fraction("gae", lam=lam)
    delta = td_error(reward=rewards, value=values, next_value=next_values, discount=discount).unbind(-1)
    decay = (discount * lam * carry).unbind(-1)
    advantages, following = [], torch.zeros_like(delta[-1])
    for t in reversed(range(len(delta))):
        following = delta[t] + decay[t] * following
        advantages.append(following)
    return torch.stack(advantages[::-1], -1)


def whiten(x: Tensor, counted: Tensor, *, shift_mean: bool = True, ddof: int = 1, eps: float = 1e-8) -> Tensor:
    """Scale to unit variance over the counted elements: ``(x - mean) * rsqrt(var + eps)``; 0 elsewhere.

    Args:
        x: any shape; what is not counted may be anything.
        counted: bool, same shape; the statistics are over all of them at once (the global batch).
        shift_mean: False adds the mean back, which keeps the sign of rewards.
        ddof: 1 for the unbiased variance (the field's libraries), 0 for the population's (the original code of 2019).
        eps: inside the square root.

    With fewer than 2 counted elements there is no spread to scale by: x is returned as it is, mean kept.
    Raises ValueError when shapes differ, a counted element is not finite, ddof is neither 0 nor 1, or eps is not positive.
    Source: Huang et al. 2024, "The N implementation details of RLHF with PPO", policy detail 9.

    >>> whiten(torch.tensor([1., 3.]), torch.tensor([True, True]), ddof=0)  # mean 2, variance 1
    tensor([-1.,  1.])
    """
    check.same_shape("whiten", x=x, counted=counted)
    _spread_settings("whiten", ddof, eps)
    counted = counted.bool()
    x = torch.where(counted, x, 0.0)
    check.finite("whiten", x=x)
    n = counted.sum()
    if n < 2:
        return x
    mean = x.sum() / n
    centred = torch.where(counted, x - mean, 0.0)
    scaled = centred * torch.rsqrt(centred.square().sum() / (n - ddof) + eps)
    return scaled if shift_mean else torch.where(counted, scaled + mean, 0.0)


def group_centred(rewards: Tensor) -> Tensor:
    """Reward minus the group's mean, ``A_i = r_i - mean_j r_j``, on ``[..., G]`` (Dr. GRPO).

    Equal rewards give exactly 0. Raises ValueError for fewer than 2 samples a group or a reward that is not finite.
    Source: Liu et al. 2025 (arXiv 2503.20783), section 3.2.

    >>> group_centred(torch.tensor([1., 0., 0., 1.]))  # mean 1/2
    tensor([ 0.5000, -0.5000, -0.5000,  0.5000])
    """
    return _centred("group_centred", rewards)


def group_standardised(rewards: Tensor, ddof: int = 1, eps: float = 1e-6, floor: float | None = None) -> Tensor:
    """Reward on the scale of its group, ``A_i = (r_i - mean_j r_j) / (std_j r_j + eps)``, on ``[..., G]`` (GRPO).

    Args:
        ddof: 1 as in the field's libraries (the papers do not say), 0 for the population's standard deviation.
        eps: added to the standard deviation; 1e-6 in verl, 1e-4 in TRL.
        floor: the least standard deviation to divide by. Without one, rewards of 0.90 and 0.95 pull as hard as 0 and 1:
            the noise of a good score is amplified. None leaves it out.

    Equal rewards give exactly 0. Raises ValueError for fewer than 2 samples a group, a reward that is not finite, ddof
    other than 0 and 1, and eps or floor that is not positive.
    Source: Shao et al. 2024 (arXiv 2402.03300), section 4.1.2.

    >>> group_standardised(torch.tensor([1., 0., 0., 1.]))  # 0.5 / sqrt(4 * 0.25 / 3)
    tensor([ 0.8660, -0.8660, -0.8660,  0.8660])
    """
    _spread_settings("group_standardised", ddof, eps)
    if floor is not None and not floor > 0:
        raise ValueError(f"group_standardised: floor={floor} must be positive, or None")
    centred = _centred("group_standardised", rewards)
    std = (centred.square().sum(-1, keepdim=True) / (rewards.shape[-1] - ddof)).sqrt()
    return centred / ((std if floor is None else std.clamp(min=floor)) + eps)


def leave_one_out(rewards: Tensor) -> Tensor:
    """Reward minus the mean of the *others* of its group, ``A_i = r_i - sum_{j != i} r_j / (G - 1)``, on ``[..., G]`` (RLOO).

    A baseline that does not depend on the sample leaves the policy gradient unbiased. Equal rewards give exactly 0.
    Raises ValueError for fewer than 2 samples a group or a reward that is not finite.
    Source: Kool et al. 2019; Ahmadian et al. 2024 (arXiv 2402.14740), section 3.4.

    >>> leave_one_out(torch.tensor([1., 0., 0., 1.]))  # 1 - 1/3 and 0 - 2/3
    tensor([ 0.6667, -0.6667, -0.6667,  0.6667])
    """
    centred = _centred("leave_one_out", rewards)
    size = rewards.shape[-1]
    return centred * (size / (size - 1))


def best_of_group(rewards: Tensor) -> Tensor:
    """1 for the group's best samples and 0 for the others, on ``[..., G]``: the weights of rejection-style expert iteration.

    With them `policy.reinforce` is supervised fine-tuning on what was best. Equal rewards give 0 everywhere: none was chosen
    over another. Raises ValueError for fewer than 2 samples a group or a reward that is not finite.
    Source: Anthony et al. 2017 (arXiv 1705.08439); Dong et al. 2023, RAFT (arXiv 2304.06767), section 3.

    >>> best_of_group(torch.tensor([[1., 0., 0., 1.], [2., 2., 2., 2.]]))
    tensor([[1., 0., 0., 1.],
            [0., 0., 0., 0.]])
    """
    above_worst = _centred("best_of_group", rewards) > 0
    return ((rewards == rewards.amax(-1, keepdim=True)) & above_worst).to(rewards.dtype)


def _centred(caller: str, rewards: Tensor) -> Tensor:
    if rewards.ndim == 0 or rewards.shape[-1] < 2:
        raise ValueError(f"{caller}: rewards {tuple(rewards.shape)}; the last axis is the group, and a sample alone has no other to be compared with: use 2 or more")
    check.finite(caller, rewards=rewards)
    from_first = rewards - rewards[..., :1]  # so that equal rewards give 0 exactly, where their rounded mean would not
    return from_first - from_first.mean(-1, keepdim=True)


def _spread_settings(caller: str, ddof: int, eps: float) -> None:
    if ddof not in (0, 1):
        raise ValueError(f"{caller}: ddof={ddof}; 1 divides by n - 1, 0 by n")
    if not eps > 0:
        raise ValueError(f"{caller}: eps={eps} must be positive; it keeps equal numbers from a division by zero")
