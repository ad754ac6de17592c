"""`regex`: the completion matches the row's pattern."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from truing.rewards.completions import failed
from truing.rewards.verifiers.bounded import Bounded
from truing.rewards.verifiers.final import said as spoken
from truing.rewards.verifiers.reading import BadColumn, gold_text, last_tag, option, tag, text
from truing.rewards.verifiers.verifier import Row
from truing.types import Score, Status

SECONDS = 60.0  # of the clock; processor time is limited to far less
FLAGS = ("ignore_case", "multiline", "dot_all", "verbose")


class Regex:
    """Python's regular expressions: the column ``pattern`` matches the whole completion without the blanks around it.

    Options of the row: ``match: search`` takes a match anywhere; ``flags`` is a list of ignore_case, multiline, dot_all, verbose;
    ``tag: answer`` looks into the last ``<answer>`` only. A pattern that takes more than half a second of processor time on a
    completion has not matched it; one that takes longer on the row's own ``answer`` (without one: on the empty text) is a broken
    row, ``TIMED_OUT``.
    """

    name = "regex"
    columns = ("pattern",)

    def __init__(self) -> None:
        self.bounded = Bounded("truing.rewards.verifiers.patterns_child:regex", SECONDS, (0.0,))

    def __call__(self, texts: Sequence[str], rows: Sequence[Row]) -> list[Score]:
        return [self._score(t, row) for t, row in zip(texts, rows, strict=True)]

    def _score(self, text: str, row: Row) -> Score:
        try:
            item, read, control = _item(row), _read(text, row), _read(gold_text(row) or "", row) or ""
        except BadColumn as error:
            return failed(Status.UNPARSED, f"regex: {error}")
        found = self.bounded(item, control if read is None else read, control)  # without the tag it is wrong, but by a good pattern only
        if isinstance(found, Score):
            return found
        value = 0.0 if read is None else found[0]
        return Score(value, {"regex": value}, Status.OK if value == 1 else Status.WRONG)

    def gold(self, row: Row) -> str | None:
        """The row's answer: a pattern alone implies none."""
        return gold_text(row)

    def wrong(self, row: Row) -> Sequence[str]:
        """Nothing is sure not to match but what the row says: its column ``wrong``, a list; and where a tag is asked for, none."""
        listed = row.get("wrong")
        return [*(w for w in listed or () if isinstance(w, str)), *(["", "x"] if row.get("tag") else [])] if isinstance(listed, list | None) else []

    def answer(self, text: str, row: Row) -> str | None:
        return _read(text, row)


def _item(row: Row) -> dict[str, Any]:
    flags = row.get("flags") or []
    if not isinstance(flags, list) or any(f not in FLAGS for f in flags):
        raise BadColumn(f"flags is {flags!r}; write a list of {', '.join(FLAGS)}")
    return {"pattern": text(row, "pattern"), "flags": sorted(set(flags)), "match": option(row, "match", ("full", "search"), "full")}


def _read(text: str, row: Row) -> str | None:
    said = spoken(text)
    return said.strip() if row.get("tag") is None else last_tag(said, tag(row["tag"], "tag"))
