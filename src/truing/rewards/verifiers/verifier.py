"""What verifiers have in common: a completion and its row of data in, a score between 0 and 1 out.

Whose fault a failure is decides what it is. A completion that cannot be read, takes too long or crashes earns 0 and is
``WRONG``: the model is to learn from it. A broken gold answer, a dead worker or a missing solver is no zero: its status
(`UNPARSED`, `CRASHED`, `TIMED_OUT`) leaves the sample out.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from truing.errors import ConfigError
from truing.types import Score

Row = Mapping[str, Any]

VERIFIERS: dict[str, str] = {
    # name -> "module:Class" below truing.rewards.verifiers
    "exact": "exact:Exact",
    "normalised": "exact:Normalised",
    "numeric": "numeric:Numeric",
    "choice": "choice:Choice",
    "math": "maths:Math",
    "code": "code:Code",
    "program": "program:Program",
    "format": "tags:Format",
    "regex": "pattern:Regex",
    "json": "json_schema:JsonSchema",
    "instructions": "instructions:Instructions",
    "reasoning_gym": "reasoning:ReasoningGym",
    "sat": "formal_sat:Sat",
    "smt": "formal_smt:Smt",
    "lean": "formal_proofs:Lean",
    "coq": "formal_proofs:Coq",
}


class Verifier(Protocol):
    """Checks completions against their rows.

    Attributes:
        name: as rows and recipes write it; also the name of the score's first part.
        columns: the columns a row must have.
    """

    name: str
    columns: tuple[str, ...]

    def __call__(self, texts: Sequence[str], rows: Sequence[Row]) -> list[Score]:
        """A score each, in order. All scores of one verifier have the same parts, the first named like the verifier."""

    def gold(self, row: Row) -> str | None:
        """A completion that must earn 1; None when the row does not imply one."""

    def wrong(self, row: Row) -> Sequence[str]:
        """Completions that try to earn without being right, and must not: every number listed, the answer under another, an empty text."""

    def answer(self, text: str, row: Row) -> str | None:
        """What it reads as the completion's final answer, so written that equal answers are equal texts; None when there is none. For majority votes."""


def open_verifier(name: str) -> Verifier:
    """The verifier of a name. Raises ConfigError for an unknown one, or when what it needs is not installed."""
    if name not in VERIFIERS:
        close = difflib.get_close_matches(name, VERIFIERS, n=1)
        raise ConfigError(f"verifier {name!r} does not exist; " + (f"did you mean {close[0]!r}?" if close else f"there are {', '.join(VERIFIERS)}"))
    module, _, found = VERIFIERS[name].partition(":")
    verifier: Verifier = getattr(importlib.import_module(f"truing.rewards.verifiers.{module}"), found)()
    return verifier
