"""The steps of a run: resume where the last checkpoint stands, save on the way, stop when asked.

Everything that a step changes is in the learner or in `state`, and everything random is a function of (seed, purpose,
step, sample), so a run that was killed at any instant goes on bit for bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from truing.learn.run import Run
from truing.learn.update import Learner
from truing.models.device import peak


def steps(
    run: Run, learner: Learner, total: int, *, every: int, state: Callable[[], Mapping[str, Any]] = dict, restore: Callable[[Mapping[str, Any]], None] = lambda _: None
) -> Iterator[int]:
    """Yield the steps 1..total that are still to do; checkpoint after every `every`-th, after the last, and before stopping.

    Args:
        state: what besides the learner must survive (controllers); plain values.
        restore: puts that back.
    """
    saved = run.restore()
    first = 1
    if saved is not None:
        learner.load(saved.tensors, saved.state["learner"])
        restore(saved.state["method"])
        first = saved.step + 1
    for step in range(first, total + 1):
        began = time.perf_counter()
        yield step
        run.log("timing", step, {"seconds/step": time.perf_counter() - began, "memory/peak_mib": run.peak_mib, **peak(learner.device)})
        if step % every == 0 or step == total or run.stopping:
            run.checkpoint(step, learner.tensors(), {"learner": learner.state(), "method": dict(state())})
        run.stop_if_asked(step)
