"""Rewards: what a completion is worth, as records that say how they came to be.

``from truing import rewards as r`` has the words of the reward algebra: ``r.learned(folder) - 0.01 * r.excess_tokens(150)``.
They are looked up when they are first used, so that importing this room loads nothing else.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from truing.rewards.build import (
        Reward,
        clip,
        cut_off,
        environment,
        excess_tokens,
        function,
        http,
        learned,
        maximum,
        mean,
        minimum,
        parse,
        repetition,
        soft_overlong,
        std,
        tokens,
        verified,
    )  # fmt: skip

__all__ = [
    "Reward", "clip", "cut_off", "environment", "excess_tokens", "function", "http", "learned", "maximum", "mean", "minimum", "parse", "repetition", "soft_overlong", "std",
    "tokens", "verified",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("truing.rewards.build"), name)
    raise AttributeError(f"truing.rewards has no {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return __all__
