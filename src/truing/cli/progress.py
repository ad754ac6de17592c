"""What a person sees while a run works: stage, step, rate, time left, and the few numbers that matter.

A terminal gets a live display; a pipe or a file gets plain lines, at most one every few seconds. Both are told the same
four things: `stage`, `step`, `note`, `done`.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Self, TextIO

WINDOW = 20  # steps over which the rate is taken


class Progress:
    """Plain lines, and the arithmetic that the live display shares.

    Args:
        stream: where to write.
        every: least number of seconds between two lines of one stage; its first and last step are always told.
        clock: seconds, for tests.
    """

    def __init__(self, stream: TextIO, every: float = 10.0, clock: Callable[[], float] = time.monotonic) -> None:
        self.stream, self.every, self.clock = stream, every, clock
        self.index, self.stages, self.name = 0, 1, ""
        self.steps: int | None = None
        self.shares: dict[str, float] = {}
        self._finished: list[str] = []
        self._told = float("-inf")
        self._times: deque[tuple[float, int]] = deque(maxlen=WINDOW + 1)

    def expect(self, shares: Mapping[str, float]) -> None:
        """What each stage costs relative to the others; with it, the time left is that of the whole pipeline."""
        self.shares = dict(shares)

    def stage(self, name: str, index: int, total: int, steps: int | None = None) -> None:
        """Stage ``name``, number ``index`` (from 0) of ``total``, begins; ``steps`` when known."""
        if self.name:
            self._finished.append(self.name)
        self.name, self.index, self.stages, self.steps = name, index, total, steps
        self._times.clear()
        self._times.append((self.clock(), 0))
        self._told = float("-inf")
        self._show_stage()

    def step(self, stage: str, step: int, values: Mapping[str, float], total: int | None = None) -> None:
        """Step ``step`` (from 1) of ``stage`` is done. A resumed run starts at a later step; the rate counts only what it saw."""
        if stage != self.name:  # a method called on its own, without a pipeline around it
            self.stage(stage, 0, 1, total)
        self.steps = total if total is not None else self.steps
        now = self.clock()
        if len(self._times) == 1:
            self._times[0] = (self._times[0][0], step - 1)
        self._times.append((now, step))
        self._show_step(step, values)

    def note(self, text: str) -> None:
        """One line that stays."""
        self._write(text)

    def done(self) -> None:
        """Nothing more will come. May be called twice."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.done()

    # -- arithmetic ----------------------------------------------------------------------------------------------------
    def rate(self) -> float | None:
        """Steps a second over the last steps; None before the first."""
        (start, first), (end, last) = self._times[0], self._times[-1]
        return (last - first) / (end - start) if last > first and end > start else None

    def left(self, step: int) -> tuple[float, bool] | None:
        """Seconds left, and whether that is of the whole pipeline (True) or of this stage only. None when unknown."""
        rate = self.rate()
        if rate is None or not self.steps:
            return None
        here = max(0, self.steps - step) / rate
        later = self.stages - self.index - 1
        if later <= 0:
            return here, True
        share = self.shares.get(self.name)
        if not share:
            return here, False
        known = [*self._finished, self.name]
        rest = sum(cost for name, cost in self.shares.items() if name not in known)
        return here + self.steps / rate * rest / share, True

    def label(self) -> str:
        return f"{self.index + 1}/{self.stages} {self.name}" if self.stages > 1 else self.name

    # -- display -------------------------------------------------------------------------------------------------------
    def _show_stage(self) -> None:
        self._write(f"[{self.label()}]")

    def _show_step(self, step: int, values: Mapping[str, float]) -> None:
        now = self._times[-1][0]
        if now - self._told >= self.every or step == self.steps:
            self._told = now
            place = f"[{self.label()}] step {step}" + (f"/{self.steps}" if self.steps else "")
            self._write("  ".join(x for x in (place, self._pace(step), numbers(values)) if x))

    def _pace(self, step: int) -> str:
        rate, left = self.rate(), self.left(step)
        parts = [speed(rate)] if rate else []
        if left and self.steps and step < self.steps:
            parts.append(f"{duration(left[0])} left" + ("" if left[1] else " of this stage"))
        return "  ".join(parts)

    def _write(self, text: str) -> None:
        print(text, file=self.stream, flush=True)


class LiveProgress(Progress):
    """The same on a terminal: a bar for each stage, redrawn in place."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(stream, clock=clock)
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars

        columns = (
            TextColumn("{task.description}", markup=False), BarColumn(bar_width=20), MofNCompleteColumn(), TimeElapsedColumn(),
            TextColumn("{task.fields[pace]}", style="cyan", markup=False), TextColumn("{task.fields[values]}", markup=False),
        )  # fmt: skip
        self._bars = Bars(*columns, console=Console(file=stream), refresh_per_second=4)
        self._task: Any = None
        self._bars.start()

    def note(self, text: str) -> None:
        self._bars.console.print(text, markup=False, highlight=False)

    def done(self) -> None:
        self._stop_clock()
        self._bars.stop()

    def _stop_clock(self) -> None:
        if self._task is not None:
            self._bars.update(self._task, pace="")
            self._bars.stop_task(self._task)

    def _show_stage(self) -> None:
        self._stop_clock()
        self._task = self._bars.add_task(self.label(), total=self.steps, pace="", values="")

    def _show_step(self, step: int, values: Mapping[str, float]) -> None:
        self._bars.update(self._task, completed=step, total=self.steps, pace=self._pace(step), values=numbers(values))


def open_progress(*, machine: bool = False) -> Progress:
    """The display for this process, used in a ``with`` block. ``machine``: stdout is for JSON, so progress goes to stderr."""
    stream = sys.stderr if machine else sys.stdout
    if stream is None:  # closed by the caller
        import os

        return Progress(open(os.devnull, "w", encoding="utf-8"))
    return LiveProgress(stream) if stream.isatty() else Progress(stream)


def numbers(values: Mapping[str, float]) -> str:
    """``reward 1.24  KL 5.8  length 23.1``"""
    return "  ".join(f"{name} {value:.3g}" for name, value in values.items())


def speed(rate: float) -> str:
    """Steps a second, or seconds a step when it is slow."""
    return f"{rate:.3g} steps/s" if rate >= 1 else f"{1 / rate:.3g} s/step"


def duration(seconds: float) -> str:
    """``42 s``, ``3:07``, ``1:02:09``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
