"""Printing: JSON for machines, lines for people, one line for an error."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Iterable, Sequence
from typing import Any


def as_json(value: Any) -> None:
    """One JSON document on stdout; NaN and infinities as strings, because JSON has none."""
    from truing.observe.events import plain

    print(json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False))


def table(rows: Iterable[Sequence[Any]]) -> None:
    """Columns aligned with spaces; nothing in them is read as markup."""
    cells = [[str(c) for c in row] for row in rows]
    widths = [max(len(row[i]) for row in cells if i < len(row)) for i in range(max(map(len, cells), default=0))]
    for row in cells:
        print("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=False)).rstrip())


def error(problem: BaseException) -> int:
    """Tell a person what went wrong, in one line without a traceback; returns the exit code.

    TRUING_DEBUG=1 lets the traceback through instead.
    """
    from truing.errors import TruingError
    from truing.observe.events import plain

    text = " ".join(str(plain(str(problem))).split("\n"))
    code = int(getattr(problem, "exit_code", 1))
    if code >= 128:  # stopped by a signal, as asked: not an error
        say(text)
    elif isinstance(problem, TruingError):
        say(f"error: {text}")
    elif isinstance(problem, OSError):
        place = f"{problem.filename}: " if problem.filename else ""
        say(f"error: {place}{problem.strerror or text}")
    elif isinstance(problem, MemoryError):
        say("error: out of memory; lower micro_tokens or batch_size")
    else:
        say(f"error: {type(problem).__name__}: {text} (not foreseen: please report it; TRUING_DEBUG=1 shows where)")
    return code


def say(text: str) -> None:
    """One line on stderr, if there is one."""
    if sys.stderr is not None:
        print(text, file=sys.stderr, flush=True)


def set_up_streams() -> None:
    """What cannot be encoded is escaped rather than fatal, warnings are one line, and a reader who left is no error."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    if not debugging():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"


def debugging() -> bool:
    return os.environ.get("TRUING_DEBUG", "") not in ("", "0")
