"""What functions and services answer, as scores: checked for number, type and finiteness.

An answer of the wrong shape or type is a mistake in the program and stops it; a number that is not finite marks its sample.
"""

from __future__ import annotations

import math
from typing import Any

from truing.errors import RewardError
from truing.rewards.completions import Completions, finite
from truing.rewards.lines import Lines
from truing.types import Score

_RETURN = "return a float for each completion (1.0 and 0.0 for yes and no), in order"


def scores(values: Any, batch: Completions, name: str, lines: Lines | None) -> list[Score]:
    """`values` is what `worker.plain` made of the answer: a number a completion, or a list of numbers, one a line.

    Raises RewardError that names the reward, the value and the remedy.
    """
    if not isinstance(values, list):
        raise RewardError(f"reward {name} gave {_shown(values)}; {_RETURN}")
    if len(values) != len(batch):
        raise RewardError(f"reward {name} gave {len(values)} scores for {len(batch)} completions; return one number each, in order")
    ids = batch.ids() if any(isinstance(v, list) for v in values) else []
    return [_by_line(v, batch.texts[i], ids[i], name, lines) if isinstance(v, list) else finite(_number(v, name), name) for i, v in enumerate(values)]


def _by_line(values: list[Any], text: str, ids: list[int], name: str, lines: Lines | None) -> Score:
    if lines is None:
        raise RewardError(f"reward {name} gave a list, one number a line, and finding the lines' last tokens needs the policy's tokenizer; give find_scorer(..., tokenizer=...), or return one number a completion")
    numbers = [_number(v, name) for v in values]
    ends = lines.ends(ids)
    if len(numbers) != len(ends):
        raise RewardError(f"reward {name} gave {len(numbers)} numbers for a completion of {len(ends)} lines: {text[:60]!r}; return one for each of [line for line in completion.split('\\n') if line.strip()]")
    spread = [0.0] * len(ids)
    for t, value in zip(ends, numbers, strict=True):
        spread[t] += value
    return finite(sum(numbers), name, tuple(spread))


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RewardError(f"reward {name} gave {_shown(value)}; {_RETURN}")
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _shown(value: Any) -> str:
    if isinstance(value, dict) and value.keys() == {"type", "text"}:
        return f"{value['text']} of type {value['type']}"
    return f"{str(value)[:200]!r} of type {type(value).__name__}"
