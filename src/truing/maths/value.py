"""Value-function losses. Each returns one number an element; targets and old values are constants. Shapes must agree, else ValueError."""

from __future__ import annotations

import torch
from torch import Tensor

from truing.maths import check


def squared_error(values: Tensor, targets: Tensor) -> Tensor:
    """``0.5 * (V - target)^2``, one number an element.

    >>> squared_error(torch.tensor([1.0]), torch.tensor([3.0]))  # 0.5 * 2^2
    tensor([2.])
    """
    check.same_shape("squared_error", values=values, targets=targets)
    return 0.5 * (values - targets.detach()).square()


def clipped_squared_error(values: Tensor, values_old: Tensor, targets: Tensor, clip: float) -> Tensor:
    """PPO's clipped value loss, ``0.5 * max((V - target)^2, (V_old + clip(V - V_old, +-clip) - target)^2)``.

    Also raises ValueError when clip is not positive.
    Source: openai/baselines ppo2; described as detail 9 of Huang et al. 2022, "The 37 implementation details of PPO".

    >>> old = torch.zeros(2)
    >>> clipped_squared_error(torch.tensor([1.0, 0.0]), old, torch.tensor([0.0, 1.0]), clip=0.2)  # max(1, 0.04)/2, 1/2
    tensor([0.5000, 0.5000])
    """
    if not clip > 0:
        raise ValueError(f"clipped_squared_error: clip={clip} must be positive; leave clipping out with squared_error")
    check.same_shape("clipped_squared_error", values=values, values_old=values_old, targets=targets)
    values_old = values_old.detach()
    clipped = values_old + (values - values_old).clamp(-clip, clip)
    return torch.maximum(squared_error(values, targets), squared_error(clipped, targets))
