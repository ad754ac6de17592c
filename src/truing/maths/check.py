"""What the functions of this room refuse at the door: shapes that differ, NaN where nonsense would follow, settings out of range.

Each raises ValueError with the caller's name, the value and the remedy. Shape checks read no element, so that losses can
afford them; `finite` reads every element once and is for what runs once a rollout.
"""

from __future__ import annotations

import torch
from torch import Tensor


def same_shape(caller: str, **tensors: Tensor) -> None:
    """Raise ValueError unless all tensors have one shape: broadcasting ``[N]`` against ``[N, 1]`` would give N x N numbers.

    >>> same_shape("gae", rewards=torch.zeros(2), values=torch.zeros(2))
    """
    shapes = {name: tuple(t.shape) for name, t in tensors.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"{caller}: every argument has one shape; got {', '.join(f'{name} {shape}' for name, shape in shapes.items())}")


def finite(caller: str, **tensors: Tensor) -> None:
    """Raise ValueError unless every tensor holds floating-point numbers, none of them NaN or infinite.

    >>> finite("gae", rewards=torch.zeros(2))
    """
    for name, t in tensors.items():
        if not t.is_floating_point():
            raise ValueError(f"{caller}: {name} holds {t.dtype}; make it floating point, {name}.float()")
        bad = int((~torch.isfinite(t)).sum())
        if bad:
            raise ValueError(f"{caller}: {name} holds NaN or infinity in {bad} of {t.numel()} places; leave failed samples out and count them")


def steps(caller: str, rewards: Tensor, next_values: Tensor, discount: Tensor, carry: Tensor, **more: Tensor) -> None:
    """Raise ValueError unless these can be the steps ``[..., T]`` of episodes: one shape, finite, discount in [0, 1], carry 0 or 1.

    >>> steps("gae", *[torch.ones(2)] * 4)
    """
    same_shape(caller, rewards=rewards, next_values=next_values, discount=discount, carry=carry, **more)
    finite(caller, rewards=rewards, next_values=next_values, **more)
    if rewards.ndim == 0 or rewards.shape[-1] == 0:
        raise ValueError(f"{caller}: rewards {tuple(rewards.shape)} has no steps; the last axis is time and needs 1 or more")
    if not bool(((discount >= 0) & (discount <= 1)).all()):
        raise ValueError(f"{caller}: discount spans {float(discount.min())} to {float(discount.max())}; it is gamma in [0, 1], and 0 where the episode terminated")
    if not bool(((carry == 0) | (carry == 1)).all()):
        raise ValueError(f"{caller}: carry spans {float(carry.min())} to {float(carry.max())}; it is 1 inside an episode and 0 at its last step")


def fraction(caller: str, **settings: float) -> None:
    """Raise ValueError unless every setting lies in [0, 1].

    >>> fraction("gae", lam=0.95)
    """
    for name, value in settings.items():
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"{caller}: {name}={value} lies outside [0, 1]")
