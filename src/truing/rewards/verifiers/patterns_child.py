"""What `regex` and `json` run in a process of their own: a pattern can take forever on the right text, a schema can hold one."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from truing.rewards.verifiers.limits import limit_memory, processor_time

SECONDS = 0.5  # of processor time a text

limit_memory()
FLAGS = {"ignore_case": re.IGNORECASE, "multiline": re.MULTILINE, "dot_all": re.DOTALL, "verbose": re.VERBOSE}


def regex(items: Sequence[str], texts: Sequence[str]) -> list[list[float]]:
    """1 where the pattern matches. Raises ValueError for a pattern that is none."""
    return [[float(_matches(json.loads(item), text))] for item, text in zip(items, texts, strict=True)]


def _matches(item: dict[str, Any], text: str) -> bool:
    try:
        pattern = re.compile(item["pattern"], sum(FLAGS[f] for f in item["flags"]))
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"the pattern {item['pattern'][:80]!r} is not one of Python's ({error})") from error
    with processor_time(SECONDS):
        return (pattern.fullmatch if item["match"] == "full" else pattern.search)(text) is not None


def schema(items: Sequence[str], texts: Sequence[str]) -> list[list[float]]:
    """1 where the text, a JSON value, fits the schema. Raises ValueError for a schema that is none."""
    return [[float(_fits(_validator(item), json.loads(text)))] for item, text in zip(items, texts, strict=True)]


def _fits(validator: Any, value: Any) -> bool:
    try:
        with processor_time(SECONDS):
            return bool(validator.is_valid(value))
    except RecursionError:
        return False


@lru_cache(maxsize=256)
def _validator(item: str) -> Any:
    from jsonschema import validators
    from jsonschema.exceptions import SchemaError
    from referencing import Registry

    found = json.loads(item)
    kind = validators.validator_for(found, default=validators.Draft202012Validator)
    try:
        kind.check_schema(found)
    except SchemaError as error:
        raise ValueError(f"the schema is none: {error.message[:120]} at {error.json_path}") from error
    return kind(found, registry=Registry())  # an empty registry: no $ref is ever fetched from a network
