"""What goes into a sandbox and what comes out: a job, its outcome, and the limits of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Ran(StrEnum):
    """What became of a job. All but the last two are the doing of the code under test."""

    VALUE = "value"
    RAISED = "raised"
    MEMORY = "memory"
    EXITED = "exited"
    KILLED = "killed"
    TIMED_OUT = "timed_out"
    TOO_LARGE = "too_large"
    UNREADABLE = "unreadable"
    LOST = "lost"  # the fork server died, more often than is tried
    HUNG = "hung"  # the fork server stopped answering

    @property
    def infrastructure(self) -> bool:
        return self in (Ran.LOST, Ran.HUNG)


@dataclass(frozen=True, slots=True)
class Job:
    """Code and one input.

    Attributes:
        code: Python source.
        function: what to call in it; None runs it as a program.
        args: the function's arguments, written as ``values.py`` has it.
        stdin: what a program reads.
        group: jobs of one group run one after another; once one of them was too slow, the others count as too slow untried.
    """

    code: str
    function: str | None = None
    args: Sequence[Any] = ()
    stdin: str = ""
    group: int = -1


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a job: its value (as ``values.py`` writes it; a program's text), or a note that says what happened."""

    ran: Ran
    value: Any = None
    note: str = ""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one run.

    Attributes:
        seconds: of processor time.
        wall: seconds on the clock, longer, so that honest code is not late because the machine is busy.
        memory: bytes of address space.
        answer: bytes of a function's value, written as JSON, or of what a program prints.
    """

    seconds: float = 3.0
    wall: float = 9.0
    memory: int = 512 << 20
    answer: int = 1 << 20
