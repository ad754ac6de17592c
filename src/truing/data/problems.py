"""A broken rule as a value: where, which rule, what to do; and what ``on_bad`` does with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from truing.disk import disk_error, write_atomic
from truing.errors import ConfigError, DataError

OnBad = Literal["error", "skip", "quarantine"]


@dataclass(frozen=True, slots=True)
class Problem:
    """One broken rule. ``str(problem)`` is ``file:line: rule: message``; the message says the value and the fix."""

    source: str
    rule: str
    message: str

    def __str__(self) -> str:
        return f"{self.source}: {self.rule}: {self.message}"


class BadRow(DataError):
    """One row or record that breaks a rule; ``problem`` holds it as a value, so that callers can drop and count it."""

    def __init__(self, rule: str, message: str, source: str = "") -> None:
        self.problem = Problem(source, rule, message)
        super().__init__(str(self.problem) if source else f"{rule}: {message}")

    def at(self, source: str) -> BadRow:
        """The same problem, with its place filled in."""
        return BadRow(self.problem.rule, self.problem.message, source)


def count_rules(problems: Iterable[Problem]) -> dict[str, int]:
    """How often each rule was broken, most frequent first."""
    return dict(Counter(p.rule for p in problems).most_common())


def raise_first(problems: Sequence[Problem]) -> None:
    """Raise the first problem as a `BadRow` and say how many others there are; nothing when there are none."""
    if not problems:
        return
    first, rest = problems[0], count_rules(problems[1:])
    others = ", ".join(f"{n} {rule}" for rule, n in rest.items())
    more = f"{sum(rest.values())} more: {others}; " if rest else ""
    raise BadRow(first.rule, f"{first.message} ({more}on_bad skip or quarantine leaves bad rows out)", first.source)


def check_on_bad(on_bad: str, quarantine_to: Path | str | None) -> None:
    """Raise ConfigError for a policy that does not exist, or a quarantine without a place."""
    if on_bad not in get_args(OnBad):
        raise ConfigError(f"on_bad={on_bad!r} does not exist; use one of {', '.join(get_args(OnBad))}")
    if on_bad == "quarantine" and quarantine_to is None:
        raise ConfigError("on_bad='quarantine' needs quarantine_to, the file that receives the bad rows")


def write_quarantine(path: Path | str, lines: Iterable[str]) -> None:
    """Write the bad rows, one JSON object a line. Raises CheckpointError when the disk refuses."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(path.parent, error, "make the folder") from error
    write_atomic(path, "".join(line + "\n" for line in lines).encode())
