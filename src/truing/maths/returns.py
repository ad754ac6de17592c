"""Returns: what an episode paid from a step on. The three differ only in where they stop counting and start believing V.

All arguments are ``[..., T]`` and so is the result; they mean what they mean in `advantages.gae`:

* rewards: r_{t+1}, received after the action at t.
* next_values: V(s_{t+1}), of the episode's own next state: at a truncation, of the state it was cut in. It is used
  wherever counting stops, at the end of the window too; zeros give the plain sums of rewards.
* discount: gamma, and 0 only where the episode *terminated* at t.
* carry: 1 inside an episode, 0 at *any* episode boundary (terminated or truncated).

Padding is reward = next value = discount = 0. Each function raises ValueError when shapes differ, a reward or value is
not finite, discount lies outside [0, 1] or carry is neither 0 nor 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from truing.maths import check


def discounted_returns(rewards: Tensor, next_values: Tensor, discount: Tensor, carry: Tensor) -> Tensor:
    """Sum of discounted rewards to the episode's end, ``G_t = r_{t+1} + discount_t * G_{t+1}``.

    Where the episode is cut, or the window ends, the next value stands for the rest: ``G_t = r_{t+1} + discount_t * V_{t+1}``.

    Source: Sutton and Barto, 2nd ed., equations 3.8 and 3.9.

    >>> one = torch.ones(3)
    >>> discounted_returns(torch.tensor([1., 2., 4.]), torch.zeros(3), one * 0.5, one)  # 1 + 3 / 2 + ..., 2 + 4 / 2, 4
    tensor([3., 4., 4.])
    """
    return _lambda_returns("discounted_returns", rewards, next_values, discount, carry, 1.0)


def n_step_returns(rewards: Tensor, next_values: Tensor, discount: Tensor, carry: Tensor, n: int) -> Tensor:
    """n rewards and then the value, ``G_t = r_{t+1} + gamma r_{t+2} + ... + gamma^(n-1) r_{t+n} + gamma^n V(s_{t+n})``.

    An episode or a window that ends sooner stops the sum there. n = 1 gives the TD target, n >= T the discounted return.
    Also raises ValueError for n < 1. Source: Sutton and Barto, 2nd ed., equation 7.1.

    >>> one = torch.ones(3)
    >>> n_step_returns(torch.tensor([1., 2., 4.]), one * 8, one * 0.5, one, n=2)  # 1 + 2 / 2 + 8 / 4, 2 + 4 / 2 + 8 / 4, 4 + 8 / 2
    tensor([4., 6., 8.])
    """
    if n < 1:
        raise ValueError(f"n_step_returns: n={n}; a return counts 1 reward or more")
    check.steps("n_step_returns", rewards, next_values, discount, carry)
    returns = rewards + discount * next_values
    for _ in range(1, min(n, rewards.shape[-1])):
        following = torch.cat([returns[..., 1:], next_values[..., -1:]], -1)
        returns = rewards + discount * torch.where(carry == 1, following, next_values)
    return returns


def lambda_returns(rewards: Tensor, next_values: Tensor, discount: Tensor, carry: Tensor, lam: float) -> Tensor:
    """The n-step returns of all n, weighted by ``(1 - lam) * lam^(n-1)``; the rest of the weight goes to the last.

    ``G_t = r_{t+1} + discount_t * ((1 - lam) * V_{t+1} + lam * G_{t+1})``. lam = 0 gives the TD target, lam = 1 the discounted
    return; with V_{t+1} = values[t+1] inside the episode, ``lambda_returns = gae + values``.
    Also raises ValueError for lam outside [0, 1]. Source: Sutton and Barto, 2nd ed., equations 12.2 and 12.18.

    >>> one = torch.ones(2)
    >>> lambda_returns(torch.tensor([1., 2.]), one * 8, one * 0.5, one, lam=0.5)  # 1 + (4 + 3) / 2, 2 + 8 / 2
    tensor([4.5000, 6.0000])
    """
    check.fraction("lambda_returns", lam=lam)
    return _lambda_returns("lambda_returns", rewards, next_values, discount, carry, lam)


def _lambda_returns(caller: str, rewards: Tensor, next_values: Tensor, discount: Tensor, carry: Tensor, lam: float) -> Tensor:
    check.steps(caller, rewards, next_values, discount, carry)
    onward = lam * carry  # 0 at a boundary: what follows there belongs to another episode
    returns, following = [], next_values[..., -1]
    for t in reversed(range(rewards.shape[-1])):
        following = rewards[..., t] + discount[..., t] * ((1 - onward[..., t]) * next_values[..., t] + onward[..., t] * following)
        returns.append(following)
    return torch.stack(returns[::-1], -1)
