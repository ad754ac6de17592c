"""`format`: the completion is its tags and nothing else, ``<think>...</think> <answer>...</answer>``."""

from __future__ import annotations

from collections.abc import Sequence

from truing.rewards.completions import failed
from truing.rewards.verifiers.reading import BadColumn, credit, gold_text, tag
from truing.rewards.verifiers.verifier import Row
from truing.types import Score, Status


class Format:
    """Each tag of the column ``tags`` once, in this order, with something in it, and nothing but blanks around and between.

    Parts: ``format``, and ``tags``, the share of the demands met. These are one a tag (opened once, closed once, in that order,
    not empty) and one for the whole (the order, and nothing outside). ``credit: share`` pays that share; without it, all or nothing.

    Example: of ``tags: [think, answer]``, ``<think>so</think>`` meets 1 of 3 demands.
    """

    name = "format"
    columns = ("tags",)

    def __call__(self, texts: Sequence[str], rows: Sequence[Row]) -> list[Score]:
        return [self._score(text, row) for text, row in zip(texts, rows, strict=True)]

    def _score(self, text: str, row: Row) -> Score:
        try:
            names, pay = _tags(row), credit(row)
        except BadColumn as error:
            return failed(Status.UNPARSED, f"format: {error}")
        fine = [_filled(text, name) is not None for name in names]
        met = sum(fine) + (all(fine) and _whole(text, names))
        share = met / (len(names) + 1)
        value = share if pay == "share" else float(share == 1)
        return Score(value, {"format": value, "tags": share}, Status.OK if share == 1 else Status.WRONG)

    def gold(self, row: Row) -> str | None:
        return "\n".join(_written(row))

    def wrong(self, row: Row) -> Sequence[str]:
        names, parts = _tags(row), _written(row)
        gold = "\n".join(parts)
        swapped = ("\n".join(reversed(parts)), "".join(f"<{n}>" for n in names) + "x" + "".join(f"</{n}>" for n in reversed(names)))
        return (
            "", "x", gold + " more", "well: " + gold, gold + gold, gold.removesuffix(f"</{names[-1]}>"), "\n".join(f"<{n}> </{n}>" for n in names),
            *(swapped if len(names) > 1 else ()),
        )  # fmt: skip

    def answer(self, text: str, row: Row) -> str | None:
        return _filled(text, _tags(row)[-1])


def _tags(row: Row) -> list[str]:
    value = row.get("tags")
    if not isinstance(value, list | tuple) or not 0 < len(value) <= 20 or len(set(map(str, value))) < len(value):
        raise BadColumn(f"tags is {value!r}; write a list of different names, like [think, answer]")
    return [tag(v, "tags") for v in value]


def _written(row: Row) -> list[str]:
    names, answer = _tags(row), gold_text(row)
    filled = {names[-1]: answer} if answer and answer.strip() and "<" not in answer else {}
    return [f"<{name}>{filled.get(name, 'x')}</{name}>" for name in names]


def _filled(text: str, name: str) -> str | None:
    """What stands in a tag that is opened once and closed once after it, and is not empty."""
    opened, closed = f"<{name}>", f"</{name}>"
    if text.count(opened) != 1 or text.count(closed) != 1:
        return None
    inner = text[text.index(opened) + len(opened) : max(text.index(closed), text.index(opened))]
    return inner.strip() or None


def _whole(text: str, names: Sequence[str]) -> bool:
    rest = text
    for name in names:
        rest = rest.lstrip()
        if not rest.startswith(f"<{name}>"):
            return False
        rest = rest.partition(f"</{name}>")[2]
    return not rest.strip()
