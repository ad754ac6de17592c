"""`json`: the completion is one JSON value that fits the row's schema."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any

from truing.errors import MissingExtraError
from truing.rewards.completions import failed
from truing.rewards.verifiers.bounded import Bounded
from truing.rewards.verifiers.final import said as spoken
from truing.rewards.verifiers.reading import BadColumn, last_tag, option, tag
from truing.rewards.verifiers.verifier import Row
from truing.types import Score, Status

SECONDS = 60.0  # of the clock; processor time is limited to far less
LONGEST = 2**20  # characters
DEEPEST = 64  # objects and lists within each other

_FENCED = re.compile(r"```(?:json|JSON)?[ \t]*\n(.*?)\n?[ \t]*```", re.DOTALL)


class NotJson(ValueError):
    """The text is no JSON value; the message says why."""


class JsonSchema:
    """JSON by RFC 8259 alone, which fits the JSON Schema in the column ``schema``.

    Refused: a key twice in one object, NaN and infinities (1e999 too), text before or after the value, more than 1 MiB or 64 levels.
    One Markdown fence around the whole value may stand there. Options of the row: ``fence: require`` asks for it, ``fence: forbid``
    refuses it; ``tag: answer`` looks into the last ``<answer>`` only. Parts: ``json``, and ``parses``, whether it is JSON at all.
    """

    name = "json"
    columns = ("schema",)

    def __init__(self) -> None:
        from importlib.util import find_spec

        if find_spec("jsonschema") is None:
            raise MissingExtraError("the verifier json needs the package jsonschema; pip install jsonschema")
        self.bounded = Bounded("truing.rewards.verifiers.patterns_child:schema", SECONDS, (0.0,))

    def __call__(self, texts: Sequence[str], rows: Sequence[Row]) -> list[Score]:
        return [self._score(text, row) for text, row in zip(texts, rows, strict=True)]

    def _score(self, text: str, row: Row) -> Score:
        try:
            schema, control = _schema(row), self._control(row)
            value = self._value(text, row)
        except BadColumn as error:
            return failed(Status.UNPARSED, f"json: {error}")
        found = self.bounded(schema, control if value is None else value, control)  # what is no JSON is wrong by a good schema only
        if isinstance(found, Score):
            return found
        if value is None:
            return Score(0.0, {"json": 0.0, "parses": 0.0}, Status.WRONG)
        return Score(found[0], {"json": found[0], "parses": 1.0}, Status.OK if found[0] == 1 else Status.WRONG)

    def _value(self, text: str, row: Row) -> str | None:
        try:
            return json.dumps(strict(_unfenced(text, row)))
        except NotJson:
            return None

    def _control(self, row: Row) -> str:
        gold = self.gold(row)
        try:
            return "null" if gold is None else json.dumps(strict(_unfenced(gold, row)))
        except NotJson as error:
            raise BadColumn(f"answer is no JSON ({error}); write a JSON value or its text") from error

    def gold(self, row: Row) -> str | None:
        """The row's ``answer``, a JSON value or its text; else the schema's ``const``, ``default`` or first of ``examples``, where it has one."""
        schema, answer = _schema(row), row.get("answer")
        if answer is None and isinstance(schema, dict):
            examples = schema.get("examples")
            answer = schema.get("const", schema.get("default", examples[0] if isinstance(examples, list) and examples else None))
        if answer is None:
            return None
        plain = answer if isinstance(answer, str) and row.get("answer") is not None else json.dumps(answer)
        fenced = f"```json\n{plain}\n```" if row.get("fence") == "require" else plain
        return f"<{row['tag']}>{fenced}</{row['tag']}>" if row.get("tag") is not None else fenced

    def wrong(self, row: Row) -> Sequence[str]:
        gold = self.gold(row) or "{}"
        inner = last_tag(gold, row["tag"]) or "" if row.get("tag") else gold
        broken = [
            "", "NaN", "[NaN]", "1e999", '{"a": 1, "a": 1}', "{'a': 1}", inner + " that is it", "Here it is: " + inner, f"{inner} {inner}", "{" + inner, "[" * 10_000,
        ]  # fmt: skip
        return [f"<{row['tag']}>{b}</{row['tag']}>" for b in broken] if row.get("tag") else broken

    def answer(self, text: str, row: Row) -> str | None:
        try:
            return json.dumps(strict(_unfenced(text, row)), sort_keys=True)
        except NotJson:
            return None


def strict(text: str) -> Any:
    """The value of a JSON text. Raises NotJson.

    Example: ``strict('{"a": [1, 2.5, null]}')`` is ``{"a": [1, 2.5, None]}``; ``strict('{"a": 1, "a": 2}')`` raises.
    """
    if len(text) > LONGEST:
        raise NotJson(f"{len(text)} characters; at most {LONGEST} are read")
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_refuse, parse_float=_float)
        if depth(value) > DEEPEST:
            raise NotJson(f"more than {DEEPEST} levels")
        json.dumps(value).encode()
    except (ValueError, RecursionError) as error:  # integers of thousands of digits are a ValueError too
        raise NotJson(str(error) or type(error).__name__) from error
    return value


def depth(value: Any) -> int:
    """Levels of lists and objects: 0 for a number, 1 for ``[1]``."""
    deepest, level = 0, [value]
    while level := [v for v in level if isinstance(v, list | dict)]:
        deepest += 1
        level = [w for v in level for w in (v.values() if isinstance(v, dict) else v)]
    return deepest


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise NotJson("a key twice in one object")
    return made


def _refuse(name: str) -> None:
    raise NotJson(f"{name} is not JSON")


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise NotJson(f"{text[:40]} overflows")
    return value


def _schema(row: Row) -> Any:
    schema = row.get("schema")
    if isinstance(schema, str):
        try:
            schema = strict(schema)
        except NotJson as error:
            raise BadColumn(f"schema is no JSON ({error}); write a JSON schema") from error
    if not isinstance(schema, dict | bool):
        raise BadColumn(f"schema is {schema!r}; write a JSON schema, an object")
    return schema


def _unfenced(text: str, row: Row) -> str:
    fence = option(row, "fence", ("allow", "require", "forbid"), "allow")
    said = spoken(text)
    found = said if row.get("tag") is None else last_tag(said, tag(row["tag"], "tag"))
    if found is None:
        raise NotJson("no such tag")
    match = _FENCED.fullmatch(found.strip()) if fence != "forbid" else None
    if match is None and fence == "require":
        raise NotJson("no fence")
    return match[1] if match else found.strip()
