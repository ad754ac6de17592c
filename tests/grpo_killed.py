"""Runs of a group method that kill themselves with SIGKILL at the nth call of one of their phases; requests and answers as in `ppo_killed`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ppo_killed
from truing.config import GRPO
from truing.learn import run as run_module
from truing.methods import grpo as page
from truing.methods import grpo_collect
from truing.methods.answering import Answering
from truing.methods.curriculum import Walk

PHASES: dict[str, tuple[Any, str]] = {
    **ppo_killed.PHASES,
    "walk": (Walk, "next"),
    "generate": (Answering, "ask"),
    "trunk": (grpo_collect, "read"),
    "score": (grpo_collect, "score"),
    "look": (page, "look"),
    "advantage": (page, "advantage"),
    "update": (page, "learn"),
    "record": (page, "record"),
    "model": (page, "save_role"),
}


def train(options: dict[str, Any], folder: str, seed: int, kill: tuple[str, int] | None) -> None:
    run_module.surroundings = dict  # type: ignore[assignment]  # asking git and the processor is slow, and not the point
    if kill:
        owner, name = PHASES[kill[0]]
        setattr(owner, name, ppo_killed.deadly(getattr(owner, name), kill[1]))
    page.grpo(GRPO(**options), Path(folder), seed=seed)


if __name__ == "__main__":
    ppo_killed.train = train
    ppo_killed.serve()
