"""How verifiers read a completion and a row: tags, and options that are checked when they are used."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from truing.rewards.verifiers.verifier import Row

_NAME = re.compile(r"[A-Za-z][\w-]{0,40}")


class BadColumn(ValueError):
    """A column of the row that cannot be meant; the message names it, its value and the remedy."""


def tag(value: Any, column: str) -> str:
    """A tag's name. Raises BadColumn."""
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise BadColumn(f"{column} holds {value!r}; write the name of a tag, like answer for <answer>...</answer>")
    return value


def last_tag(text: str, name: str) -> str | None:
    """What stands in the last ``<name>...</name>`` (to the end of the text where it is not closed); None without one."""
    _, opened, rest = text.rpartition(f"<{name}>")
    return rest.partition(f"</{name}>")[0].strip() if opened else None


def option(row: Row, column: str, allowed: Sequence[str], default: str) -> str:
    """A row's choice among words. Raises BadColumn."""
    value = default if row.get(column) is None else row[column]
    if value not in allowed:
        raise BadColumn(f"{column} is {value!r}; use one of {', '.join(allowed)}")
    return str(value)


def credit(row: Row) -> str:
    """``all``: a completion earns 1 when everything holds and else 0; ``share``: the share of what holds."""
    return option(row, "credit", ("all", "share"), "all")


def number(row: Row, column: str, default: float, most: float) -> float:
    """A row's number above 0. Raises BadColumn."""
    value = default if row.get(column) is None else row[column]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or not 0 < value <= most:
        raise BadColumn(f"{column} is {value!r}; write a number above 0, at most {most:g}")
    return float(value)


def text(row: Row, column: str) -> str:
    """A row's text. Raises BadColumn."""
    value = row.get(column)
    if not isinstance(value, str):
        raise BadColumn(f"{column} is {value!r}; write a text")
    return value


def gold_text(row: Row) -> str | None:
    """The row's ``answer`` when it is a text."""
    value = row.get("answer")
    return value if isinstance(value, str) else None
