"""Checks that may hang, blow up or crash, one completion at a time in a process of their own.

When a check fails to end, a control tells whose fault it is: the same row with a text that must be easy (its gold answer, or an
empty text). If the control passes, the completion is at fault and `WRONG`; if it fails as well, the row or the machine is.
"""

from __future__ import annotations

import json
from typing import Any

from truing.rewards.completions import failed
from truing.rewards.process import Died, Process, Refused
from truing.types import Score, Status


class Bounded:
    """Asks ``module:function(items, texts) -> [numbers of each]`` in a child, within ``seconds`` of the clock a text.

    The function limits its own processor time besides (`limits.processor_time`), to less: being late should not depend on who else is busy.

    The function returns the same count of numbers for each text, whatever the text; it raises for a row that breaks a rule. A
    completion on which it fails, and the control not, has earned ``worst``.
    """

    def __init__(self, target: str, seconds: float, worst: tuple[float, ...]) -> None:
        self.process, self.seconds, self.worst = Process(target), seconds, worst

    def __call__(self, item: Any, text: str, control: str, seconds: float | None = None) -> tuple[float, ...] | Score:
        """The function's numbers, or the failed score of a row that cannot be checked."""
        limit = seconds or self.seconds
        found = self._ask(item, text, limit)
        if isinstance(found, tuple):
            return found
        if text != control and isinstance(self._ask(item, control, limit), tuple):
            return self.worst
        return failed(*found.why)

    def _ask(self, item: Any, text: str, seconds: float) -> tuple[float, ...] | _Trouble:
        try:
            answer = self.process.ask([json.dumps(item)], [text], seconds)
        except TimeoutError:
            return _Trouble(Status.TIMED_OUT, f"the check took longer than {seconds:g} s")
        except (Died, Refused, OSError) as error:
            late = "SIGPROF" in str(error)
            return _Trouble(Status.TIMED_OUT, "the check took too much processor time") if late else _Trouble(Status.CRASHED, str(error))
        if "raised" in answer:
            return _Trouble(Status.UNPARSED, str(answer["raised"]).removeprefix("ValueError: "))
        return tuple(float(v) for v in answer["values"][0])

    def close(self) -> None:
        self.process.close()


class _Trouble:
    def __init__(self, status: Status, reason: str) -> None:
        self.why = status, reason
