"""Truing: align language models, and tell the truth about whether it worked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from truing.api import evaluate, grpo, ppo, reward, sft

__version__ = "0.1.0"
__all__ = ["__version__", "evaluate", "grpo", "ppo", "reward", "sft"]


def __getattr__(name: str) -> Any:
    """The methods as functions (`truing.api`), loaded when they are first used."""
    if name in __all__:
        from truing import api

        return getattr(api, name)
    raise AttributeError(f"module 'truing' has no attribute {name!r}; it has {', '.join(__all__)}")
