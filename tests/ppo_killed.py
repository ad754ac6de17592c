"""Runs of PPO that kill themselves with SIGKILL at the nth call of one of their phases; a process of its own, forked once a run.

``python ppo_killed.py`` reads requests from its standard input, one JSON object a line: ``{"options", "folder", "seed", "kill": [phase, n] or null}``,
and answers each with the exit status of that run. It imports everything once and trains nothing itself.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from truing.config import PPO
from truing.learn import checkpoint
from truing.learn import run as run_module
from truing.learn.run import Run
from truing.learn.update import Learner
from truing.methods import ppo as page

PHASES: dict[str, tuple[Any, str]] = {
    "generate": (page, "sample"),
    "trunk": (page, "read"),
    "score": (page, "score"),
    "look": (page, "look"),
    "update": (page, "learn"),
    "optimiser": (torch.optim.AdamW, "step"),
    "record": (page, "record"),
    "log": (Run, "log"),
    "samples": (Run, "samples"),
    "save": (checkpoint, "save"),
    "fsync": (os, "fsync"),
    "rename": (os, "rename"),
    "replace": (os, "replace"),
    "state": (Learner, "state"),
    "load": (Learner, "load"),
    "model": (page, "save_role"),
    "finish": (Run, "finish"),
}


def deadly(real: Callable[..., Any], n: int) -> Callable[..., Any]:
    """The same function; its nth call kills the process, after its work when n is even, before it when n is odd."""
    calls = [0]

    def call(*given: Any, **named: Any) -> Any:
        calls[0] += 1
        if calls[0] == n and n % 2:
            os.kill(os.getpid(), signal.SIGKILL)
        found = real(*given, **named)
        if calls[0] == n:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    return call


def train(options: dict[str, Any], folder: str, seed: int, kill: tuple[str, int] | None) -> None:
    run_module.surroundings = dict  # type: ignore[assignment]  # asking git and the processor is slow, and not the point
    if kill:
        owner, name = PHASES[kill[0]]
        setattr(owner, name, deadly(getattr(owner, name), kill[1]))
    page.ppo(PPO(**options), Path(folder), seed=seed)


def serve() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            try:
                torch.set_num_threads(1)
                train(**request)
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(status, flush=True)


if __name__ == "__main__":
    serve()
