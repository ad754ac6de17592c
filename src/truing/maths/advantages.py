"""Advantages: how much better an action was than the state it was taken in."""

from __future__ import annotations

import torch
from torch import Tensor


def td_error(reward: Tensor | float, value: Tensor | float, next_value: Tensor | float, discount: Tensor | float) -> Tensor:
    """Temporal-difference error: ``delta = reward + discount * next_value - value``.

    Args:
        reward: r_{t+1}, received after the action at t.
        value: V(s_t).
        next_value: V(s_{t+1}).
        discount: gamma, and 0 only where the episode terminated at t.

    Source: Sutton and Barto, 2nd ed., equation 6.5.

    >>> round(float(td_error(reward=1, value=0.5, next_value=2, discount=0.9)), 6)  # 1 + 0.9 * 2 - 0.5
    2.3
    """
    return torch.as_tensor(reward) + torch.as_tensor(discount) * torch.as_tensor(next_value) - torch.as_tensor(value)


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
    Raises ValueError when shapes differ or lam lies outside [0, 1].
    Source: Schulman et al. 2016 (arXiv 1506.02438), equation 16.

    >>> one = torch.ones(3)
    >>> gae(torch.tensor([0., 0., 1.]), torch.zeros(3), torch.zeros(3), one * 0.5, one, lam=1.0)  # 1 discounted by 1/4, 1/2, 1
    tensor([0.2500, 0.5000, 1.0000])
    """
    shapes = {name: tuple(t.shape) for name, t in dict(rewards=rewards, values=values, next_values=next_values, discount=discount, carry=carry).items()}
    if len(set(shapes.values())) != 1:
        raise ValueError(f"gae: every argument has one shape [..., T]; got {shapes}")
    if not 0.0 <= lam <= 1.0:
        raise ValueError(f"gae: lam={lam} lies outside [0, 1]")
    delta = td_error(rewards, values, next_values, discount)
    decay = discount * lam * carry
    advantages = torch.empty_like(delta)
    running = torch.zeros_like(delta[..., 0])
    for t in range(delta.shape[-1] - 1, -1, -1):
        running = delta[..., t] + decay[..., t] * running
        advantages[..., t] = running
    return advantages


def whiten(x: Tensor, counted: Tensor, *, shift_mean: bool = True, ddof: int = 1, eps: float = 1e-8) -> Tensor:
    """Scale to unit variance over the counted elements: ``(x - mean) * rsqrt(var + eps)``; 0 elsewhere.

    Args:
        x: any shape.
        counted: bool, same shape; the statistics are over all of them at once (the global batch).
        shift_mean: False adds the mean back, which keeps the sign of rewards.
        ddof: 1 for the unbiased variance (the field's libraries), 0 for the population's (the original code of 2019).
        eps: inside the square root.

    With fewer than 2 counted elements the variance is undefined: x is returned unscaled, mean kept.
    Source: Huang et al. 2024, "The N implementation details of RLHF with PPO", policy detail 9.

    >>> whiten(torch.tensor([1., 3.]), torch.tensor([True, True]), ddof=0)  # mean 2, variance 1
    tensor([-1.,  1.])
    """
    if x.shape != counted.shape:
        raise ValueError(f"whiten: x {tuple(x.shape)} and counted {tuple(counted.shape)} differ in shape")
    weight = counted.to(x.dtype)
    n = weight.sum()
    if n <= ddof:
        return x * weight
    mean = (x * weight).sum() / n
    variance = ((x - mean).square() * weight).sum() / (n - ddof)
    scaled = (x - mean) * torch.rsqrt(variance + eps)
    return (scaled if shift_mean else scaled + mean) * weight
