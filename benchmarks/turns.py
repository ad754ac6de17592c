"""The chair's side of taking turns: do one measured unit of work when told to, answer with a line of JSON, wait.

Only the standard library is imported here, because a peer's process must not see Truing. What libraries print goes to the log.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TICK = os.sysconf("SC_CLK_TCK")
SCRATCH = "TRUING_BENCH_SCRATCH"


def peak_mib() -> float:
    """Most memory of this process that has been resident: VmHWM, MiB."""
    return _status("VmHWM")


def resident_mib() -> float:
    """Memory of this process that is resident now: VmRSS, MiB."""
    return _status("VmRSS")


def _status(name: str) -> float:
    return int(re.findall(rf"{name}:\s*(\d+) kB", Path("/proc/self/status").read_text())[0]) / 1024


def machine_busy() -> float:
    """Processor seconds that anybody has used on this machine: user, nice, system, interrupts and what a host took away."""
    user, nice, system, _, _, *rest = (int(x) for x in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:])
    return (user + nice + system + sum(rest[:3])) / TICK


class Turns:
    """``lap`` ends a unit of work and waits for the word to begin the next.

    The first lap is a free warm-up: it ends with "ready". Every later one answers its seconds from the word "go", the processors
    that others used meanwhile, the peak memory, the optimiser steps that were made, and whatever else the work counts.
    """

    def __init__(self, **facts: Any) -> None:
        self.facts = facts
        self.steps = 0
        self._ready = False
        self._answers = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)  # prints of libraries must not be taken for answers
        self._start()

    def count_optimiser_steps(self) -> None:
        """From now on, whichever optimiser makes them."""
        from torch.optim.optimizer import register_optimizer_step_post_hook

        def one_more(*_: Any) -> None:
            self.steps += 1

        register_optimizer_step_post_hook(one_more)

    def lap(self, **found: Any) -> None:
        seconds, own = time.perf_counter() - self._began, time.process_time() - self._own
        others = max(0.0, machine_busy() - self._busy - own) / seconds
        if self._ready:
            self._say({"seconds": seconds, "others": round(others, 3), "peak_mib": round(peak_mib(), 1), "optimiser_steps": self.steps, **found})
        else:
            self._ready = True
            self._say({**self.facts, "versions": versions(), "threads": _threads(), **found})
        if sys.stdin.readline().strip() != "go":
            self._answers.flush()
            os._exit(0)  # the libraries' own endings (saving, joining threads) are nobody's business
        self._start()

    def _start(self) -> None:
        self.steps = 0
        self._began, self._own, self._busy = time.perf_counter(), time.process_time(), machine_busy()

    def _say(self, answer: dict[str, Any]) -> None:
        self._answers.write(json.dumps(answer) + "\n")


def repeat(turns: Turns, work: Callable[[], dict[str, Any]]) -> None:
    """Do ``work`` again and again; it returns what it counted."""
    while True:
        turns.lap(**work())


def scratch() -> Path:
    """A folder for what the work writes; whoever started the chair deletes it."""
    return Path(os.environ.get(SCRATCH) or tempfile.mkdtemp(prefix="truing-bench-"))


def versions() -> dict[str, str]:
    """Of the packages that matter and that this process has loaded."""
    names = {"torch": "torch", "transformers": "transformers", "trl": "trl", "accelerate": "accelerate", "stable_baselines3": "stable-baselines3", "truing": "truing"}
    return {name: str(getattr(sys.modules[module], "__version__", "?")) for module, name in names.items() if module in sys.modules}


def _threads() -> int | None:
    return sys.modules["torch"].get_num_threads() if "torch" in sys.modules else None


def asked() -> dict[str, Any]:
    """The settings of this chair: the one argument, JSON."""
    return json.loads(sys.argv[1])
