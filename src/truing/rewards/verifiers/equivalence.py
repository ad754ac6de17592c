"""Whether two mathematical expressions are equal, by math-verify and sympy. Runs in a bounded child process only, see `maths`.

Both are LaTeX as `latex.tidy` writes it. Reading runs nothing as Python; comparing may well evaluate 9^9^9, so there are limits: of
processor time (a busy machine makes no innocent expression late), by an exception where Python code can be interrupted, by the end of
the process where not; and of memory. math-verify's own limits use signal.alarm, count the clock's time and are off.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import resource
import signal
import time
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from latex2sympy2_extended import NormalizationConfig, latex2sympy, normalize_latex
from latex2sympy2_extended.latex2sympy2 import ConversionConfig
from math_verify import verify
from math_verify.grader import should_treat_as_complex
from math_verify.parser import get_last_eq
from sympy import Basic, Integer, Symbol, nan, zoo

from truing.rewards.verifiers.limits import limit_memory

DIGITS = 12  # decimals to which floating-point values are compared: enough for rounding errors, and 0.333 is not 1/3

logging.disable(logging.WARNING)  # both libraries warn that their time limits are off
limit_memory(1 << 30)
# math-verify's own parse would take the t of 5t for a unit, and R and r for the same
PLAIN = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none")
CASES = ConversionConfig(lowercase_symbols=False)


class TooLong(BaseException):
    """Not an Exception: both libraries catch these wherever they can."""


def equal(prompts: Sequence[str], completions: Sequence[str]) -> list[list[float]]:
    """For each ``{"gold": latex, "seconds": of processor time}`` and expression 1 or 0; -1 when it takes too long or too much memory, -2 when it does so by itself, beside whatever gold one.

    Asymmetric: the gold one decides what may be left out, as in x = 3 and 3. Raises ValueError when the gold one itself cannot be
    read, or takes too long.
    """
    return [[_equal(given=c, **json.loads(p))] for p, c in zip(prompts, completions, strict=True)]


def _equal(gold: str, given: str, seconds: float) -> float:
    if why := limited(lambda: _unfit(gold), f"the answer {gold[:60]!r} takes too long to evaluate", seconds):
        raise ValueError(why)
    found = limited(lambda: float(_same(_read(gold), _read(given))), -1.0, seconds)
    if found < 0 and limited(lambda: _unfit(given), None, seconds) is None:
        return -2.0
    return float(found)


def limited(function: Any, otherwise: Any, seconds: float) -> Any:
    """What the function returns, or `otherwise` when it runs out of time, memory or stack, or over the largest number there is."""
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(time.process_time() + seconds) + 1, most))
    previous = signal.signal(signal.SIGPROF, _late)
    try:
        signal.setitimer(signal.ITIMER_PROF, seconds, 0.2)  # again and again, should somebody catch it after all
        return function()
    except (TooLong, MemoryError, RecursionError, OverflowError, ValueError):
        return otherwise
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, previous)


def _late(*_: Any) -> None:
    raise TooLong


@lru_cache(maxsize=4096)
def _unfit(gold: str) -> str:
    """Why nothing can be compared with it; empty when it can."""
    found = _read(gold)
    if not found or any(isinstance(f, Basic) and f.has(zoo, nan) for f in found):
        return f"the answer {gold[:60]!r} cannot be read as an expression"
    verify(list(found), [Integer(7919)], float_rounding=DIGITS, timeout_seconds=None)  # evaluates it, should that take for ever
    return ""


@lru_cache(maxsize=4096)
def _read(latex: str) -> tuple[Any, ...]:
    """The expression; of a chain of equations that cannot be read the last part. Empty when it cannot be read."""
    text = normalize_latex(latex, PLAIN)
    for part in dict.fromkeys((text, get_last_eq(text))):
        with contextlib.suppress(Exception):  # the parser raises all kinds
            return (latex2sympy(part, is_real=not should_treat_as_complex(part), convert_degrees=False, normalization_config=None, conversion_config=CASES),)
    return ()


def _same(gold: tuple[Any, ...], given: tuple[Any, ...]) -> bool:
    if not given or (isinstance(gold[0], Symbol) and isinstance(given[0], Symbol) and gold[0].name != given[0].name):  # verify would not tell R from r
        return False
    return bool(verify(list(gold), list(given), float_rounding=DIGITS, allow_set_relation_comp=True, timeout_seconds=None))
