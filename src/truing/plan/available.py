"""The memory that is there: what a person says, or what the system would give a new process."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from truing.errors import ConfigError

UNITS = {"": 1, "k": 1, "m": 2, "g": 3, "t": 4}
_SIZE = re.compile(r"\s*(?P<number>\d+(\.\d*)?|\.\d+)\s*(?P<unit>[kmgt])(?P<binary>i?)b?\s*", re.IGNORECASE)
_PROC = Path("/proc")
_CGROUP = Path("/sys/fs/cgroup")


class There(NamedTuple):
    """Bytes, and who says so."""

    bytes: float
    source: str


def size(text: str) -> float:
    """Bytes of a text such as 8GiB, 500 MB or 1.5g; GB are 10^9 and GiB, or G alone, 2^30.

    >>> size("1.5GiB") == 1.5 * 2**30, size("500 MB") == 500e6, size("2g") == 2.0 * 2**30
    (True, True, True)

    Raises ConfigError for anything else, a number without a unit included.
    """
    found = _SIZE.fullmatch(text)
    if found is None or float(found["number"]) == 0:
        raise ConfigError(f"--memory {text!r} is no amount of memory; write a number above 0 and a unit, 8GiB or 500MiB say")
    decimal = not found["binary"] and text.strip().lower().endswith("b")
    return float(found["number"]) * (1000.0 if decimal else 1024.0) ** UNITS[found["unit"].lower()]


def there(own: float = 0.0) -> There:
    """What a new process could have: the system's available memory, or less where a control group allows less.

    ``own`` is what this process holds, which will be free by then. Raises ConfigError where the system says nothing.
    """
    found = [x for x in (_available(_PROC / "meminfo", own), *_groups(own)) if x is not None]
    if not found:
        raise ConfigError("this system does not say how much memory is available; give it: --memory 8GiB")
    return min(found)


def _available(path: Path, own: float) -> There | None:
    found = re.search(r"^MemAvailable:\s*(\d+) kB", _text(path), re.MULTILINE)
    return There(int(found[1]) * 1024.0 + own, "available on this machine") if found else None


def _groups(own: float) -> list[There | None]:
    """The limits of this process's control groups, less what others in them use; pages of files are given back when memory is short."""
    found = []
    for line in _text(_PROC / "self" / "cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "memory" not in controllers.split(","):
            continue
        root = _CGROUP / ("memory" if controllers else "")
        group = root / path.lstrip("/")
        for place in (group, *group.parents) if group.is_relative_to(root) else ():
            if place.is_relative_to(root):
                found.append(_limit(place, own))
    return found


def _limit(place: Path, own: float) -> There | None:
    for limit, usage, inactive in (("memory.max", "memory.current", "inactive_file"), ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")):
        allowed, used = _text(place / limit).strip(), _text(place / usage).strip()
        if not (allowed.isdigit() and used.isdigit()) or int(allowed) >= 2**60:  # "max", or none at all
            continue
        files = re.search(rf"^{inactive} (\d+)", _text(place / "memory.stat"), re.MULTILINE)
        taken = max(0, int(used) - (int(files[1]) if files else 0))
        return There(max(0.0, min(float(allowed), int(allowed) - taken + own)), "allowed by this process's control group")
    return None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
