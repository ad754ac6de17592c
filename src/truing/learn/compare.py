"""Two recipes, compared: what differs, in words."""

from __future__ import annotations

from typing import Any


def differences(before: Any, now: Any, place: str = "") -> list[str]:
    """``lr: 0.1 -> 0.2``, one a differing key."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = [*before, *(k for k in now if k not in before)]
        return [d for k in keys for d in differences(before.get(k, _ABSENT), now.get(k, _ABSENT), f"{place}.{k}" if place else str(k))]
    return [] if type(before) is type(now) and before == now else [f"{place or 'recipe'}: {before!r} -> {now!r}"]


class _Absent:
    def __repr__(self) -> str:
        return "absent"


_ABSENT = _Absent()
