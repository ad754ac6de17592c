"""A chair: `truing ppo` and `truing grpo`, whole, on fixed prompts instead of a file, with stop tokens taken away so that every completion has its full length.

Asks: ``method`` (ppo, grpo), ``model`` (a folder), ``batch`` (completions an update), ``prompt`` and ``new`` (tokens), ``reward`` (as in a recipe), ``epochs``
(ppo), ``group`` (grpo), and any field of the recipe under ``options``. A unit is one step: collect, score, look, update, record.
"""

from __future__ import annotations

from typing import Any

from benchmarks import tokens
from benchmarks.truing_training import FOREVER, Lap, options, watched
from benchmarks.turns import Turns, asked, scratch
from truing import allocator

PROMPTS = 512


def play(turns: Any, asks: dict[str, Any]) -> None:
    from truing.config import GRPO, PPO
    from truing.methods import actor, answering, grpo, ppo
    from truing.models.load import load_tokenizer
    from truing.types import Message, Prompt

    turns.count_optimiser_steps()
    tokenizer = load_tokenizer(asks["model"])
    ids = tokens.sequences([asks["prompt"]] * PROMPTS, len(tokenizer), seed=3)
    rows = [(Prompt((Message("user", tokens.words(row)),), f"p{i}", f"fixed:{i}"), row) for i, row in enumerate(ids)]
    where: Any = ppo if asks["method"] == "ppo" else answering
    where.read_records = lambda *_: []
    where.render_all = lambda *_: rows
    drawn = where.sample
    where.sample = lambda *args, **more: drawn(*args, **more | {"stop_ids": []})
    watched(turns, actor)
    steps = {"steps": FOREVER, "max_new_tokens": asks["new"], "prompts": "none", "reward": asks["reward"], "scores": {"timeout": None, "missing_eos": None}}
    progress = Lap(turns, {"tokens": lambda values: round(values["length"] * asks["batch"])})
    if asks["method"] == "ppo":
        fixed = {"epochs": asks["epochs"], "minibatches": 1, "kl": {"target": None}}
        ppo.ppo(PPO(**steps | fixed | options(asks)), scratch() / "run", seed=0, progress=progress)
    else:
        fixed = {"epochs": 1, "group": asks["group"], "kl": {"coef": 0.0, "target": None}}
        grpo.grpo(GRPO(**steps | fixed | options(asks)), scratch() / "run", seed=0, progress=progress)


if __name__ == "__main__":
    allocator.settle()
    play(Turns(), asked())
