"""A thread for each episode's environment, so that one that raises or hangs ends its own episode and nothing else.

An environment is made, asked and closed in one thread, which is its own: libraries that mind (sqlite3) are content, and no step
sees another's half-changed state. A call that is late is left behind: its thread is told to stop, which ends a Python loop at its
next instruction, and what a blocked call makes of it later is thrown away. A thread cannot be ended from outside while it is in C
code that does not return; environments that run foreign code should run it in the sandbox, which is made of processes.
"""

from __future__ import annotations

import ctypes
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from truing.errors import ConfigError, DataError, RewardError
from truing.types import Score, Status

MOST_HANGING = 16  # threads that were left behind and still run


class Failed(Exception):
    """The environment gave no answer; the status and the reason say why."""

    def __init__(self, status: Status, reason: str) -> None:
        self.status, self.reason = status, reason
        super().__init__(reason)

    def score(self) -> Score:
        return Score(float("nan"), {self.reason[:300]: float("nan")}, self.status)


class _Late(BaseException):
    """Raised inside a call that is late."""


class Host:
    """The thread in which one environment lives. `begin` a call, then `answer` it."""

    _left_behind: list[threading.Thread] = []

    def __init__(self, make: Callable[[], Any]) -> None:
        self.calls: queue.SimpleQueue[tuple[str, tuple[Any, ...]] | None] = queue.SimpleQueue()
        self.answers: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._live, args=(make,), daemon=True, name="truing-environment")
        self.begun, self.ended = 0.0, False
        self.thread.start()

    def begin(self, method: str, *arguments: Any) -> None:
        self.begun = time.monotonic()
        self.calls.put((method, arguments))

    def answer(self, limit: float | None) -> Any:
        """What the call that was begun returns. Raises Failed, after which this environment is asked no more."""
        try:
            good, value = self.answers.get(timeout=None if limit is None else max(0.0, self.begun + limit - time.monotonic()))
        except queue.Empty:
            self._leave_behind()
            raise Failed(Status.TIMED_OUT, f"the environment took longer than {limit:g} s for one step") from None
        if not good:
            self.end()
            raise Failed(Status.UNPARSED if isinstance(value, DataError | ConfigError) else Status.CRASHED, f"the environment raised {_said(value)}")
        return value

    def end(self) -> None:
        """No more calls; what is still in the queue is done first."""
        if not self.ended:
            self.ended = True
            self.calls.put(None)

    def _leave_behind(self) -> None:
        self.end()
        left = Host._left_behind
        left[:] = [thread for thread in left if thread.is_alive()] + [self.thread]
        # CPython's own way to raise in another thread; it takes effect at that thread's next instruction of Python
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self.thread.ident or 0), ctypes.py_object(_Late))
        if len(left) > MOST_HANGING:
            raise RewardError(f"{len(left)} environments hang and cannot be stopped; mend what blocks in their step, or give it a time limit of its own")

    def _live(self, make: Callable[[], Any]) -> None:
        environment: Any = None
        try:
            while (call := self.calls.get()) is not None:
                try:
                    if environment is None:
                        environment = make()
                    answer = (True, getattr(environment, call[0])(*call[1]))
                except _Late:
                    raise
                except BaseException as error:  # SystemExit too: what an environment raises ends its episode only
                    answer = (False, error)
                self.answers.put(answer)
            if environment is not None:
                environment.close()
        except BaseException:  # _Late wherever it struck, or a close that fails: nobody waits for this thread any more
            return


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".replace("\n", " ")


def ask(hosts: Sequence[Host], method: str, arguments: Sequence[tuple[Any, ...]], limit: float | None, at_once: int = 1) -> list[Any]:
    """One call of each environment, `at_once` of them at a time: its answer, or the `Failed` that says why there is none."""
    out: list[Any] = []
    for start in range(0, len(hosts), at_once):
        group = range(start, min(start + at_once, len(hosts)))
        for i in group:
            hosts[i].begin(method, *arguments[i])
        for i in group:
            try:
                out.append(hosts[i].answer(limit))
            except Failed as failure:
                out.append(failure)
    return out
