"""Value-function losses. Each returns one number an element."""

from __future__ import annotations

import torch
from torch import Tensor


def squared_error(values: Tensor, targets: Tensor) -> Tensor:
    """``0.5 * (V - target)^2``, one number an element.

    >>> squared_error(torch.tensor([1.0]), torch.tensor([3.0]))  # 0.5 * 2^2
    tensor([2.])
    """
    return 0.5 * (values - targets.detach()).square()


def clipped_squared_error(values: Tensor, values_old: Tensor, targets: Tensor, clip: float) -> Tensor:
    """PPO's clipped value loss, ``0.5 * max((V - target)^2, (V_old + clip(V - V_old, +-clip) - target)^2)``.

    Source: openai/baselines ppo2; described as detail 9 of Huang et al. 2022, "The 37 implementation details of PPO".

    >>> old = torch.zeros(2)
    >>> clipped_squared_error(torch.tensor([1.0, 0.0]), old, torch.tensor([0.0, 1.0]), clip=0.2)  # max(1, 0.04)/2, 1/2
    tensor([0.5000, 0.5000])
    """
    if clip <= 0:
        raise ValueError(f"clipped_squared_error: clip={clip} must be positive; leave clipping out with squared_error")
    clipped = values_old + (values - values_old).clamp(-clip, clip)
    return torch.maximum(squared_error(values, targets), squared_error(clipped, targets))
