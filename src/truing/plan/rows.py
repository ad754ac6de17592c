"""The rows a stage reads: how many there are, and the tokens of some of them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from truing.config import Evaluate
from truing.data.batches import epoch_order, split
from truing.data.prepare import read_records, render_all
from truing.data.problems import OnBad
from truing.data.read import hub_id
from truing.data.tasks import is_task
from truing.data.template import Renderer
from truing.errors import DataError
from truing.learn.update import parts
from truing.methods import reward_model
from truing.methods.footprint import Load, of_rollouts
from truing.models.roles import tokenizer_of
from truing.pipeline import TRAINS_ON
from truing.types import Message, Prompt, TokenPair, Tokens

LOOKED_AT = 2000  # rows that are rendered; the longest texts are always among them
BATCHES = 200  # that are cut into micro-batches to find the largest


@dataclass(frozen=True)
class Rows:
    """What a stage trains on or answers.

    Attributes:
        train: of sft `Tokens`, of reward `TokenPair`, else the token ids of prompts; those that were looked at.
        held: those of the held-out rows, for sft and reward.
        count, held_count: how many there are in all; None where there is nothing to read yet.
        records: the record behind each row of `train`, for what is answered.
        note: what a person should know of where the lengths come from.
    """

    train: list[Any]
    held: list[Any]
    count: int | None
    held_count: int = 0
    records: list[Any] = field(default_factory=list)
    renderer: Any = None
    note: str = ""


def read(config: Any, seed: int, ours: Callable[[str], bool]) -> Rows:
    """The rows of a stage; ``ours(path)`` says whether an earlier stage of the recipe will write that file.

    Raises DataError for a file that is missing or has a bad row, ModelError for a missing tokenizer.
    """
    option, kind = ("prompts", "prompts") if config.method == "evaluate" else TRAINS_ON[config.method]
    path = getattr(config, option)
    renderer = Renderer(tokenizer_of(config.before if isinstance(config, Evaluate) else config.model))
    if not (is_task(path) or hub_id(path) or Path(path).exists()):
        if ours(path):
            return _made_up(config, renderer, f"{path} is not there yet: every sequence is taken to have max_length={config.max_length} tokens")
        raise DataError(f"{option}={path}: no such file; the plan reads it for the lengths of its rows, so put it there or name another")
    with tempfile.TemporaryDirectory(prefix="truing-plan-") as scratch:
        on_bad: OnBad = "skip" if config.on_bad == "quarantine" else config.on_bad
        records = read_records(path, kind, on_bad, Path(scratch))  # type: ignore[arg-type]
        rendering = _rendering(config, renderer)
        share = getattr(config, "eval_share", 0.0)
        train, held = split(records, share, seed) if kind in ("sft", "preference") else (records, [])
        some = render_all(_sample(train), rendering, on_bad, Path(scratch))
        few = render_all(_sample(held)[:LOOKED_AT], rendering, "skip", Path(scratch)) if held else []
    return Rows([r for _, r in some], [r for _, r in few], len(train), len(held), [r for r, _ in some], renderer)


def _rendering(config: Any, renderer: Renderer) -> Callable[[Any], Any]:
    if config.method == "sft":
        return lambda r: renderer.demonstration(r, config.max_length)
    if config.method == "reward":
        return lambda r: renderer.pair(r, config.max_length)
    return lambda r: renderer.prompt(r, config.max_length, config.max_new_tokens)


def _sample(records: Sequence[Any]) -> list[Any]:
    """All rows, or every k-th and the longest."""
    if len(records) <= LOOKED_AT:
        return list(records)
    longest = sorted(range(len(records)), key=lambda i: -len(repr(records[i])))[: LOOKED_AT // 20]
    return [records[i] for i in sorted({*range(0, len(records), -(-len(records) // LOOKED_AT)), *longest})]


def _made_up(config: Any, renderer: Renderer, note: str) -> Rows:
    """Rows as long as they may be, for a file that an earlier stage has yet to write."""
    token, room = renderer.stop_ids[0], config.max_length
    if config.method == "sft":
        row: Any = Tokens((token,) * room, (False, *(True,) * (room - 1)))
    elif config.method == "reward":
        row = TokenPair(Tokens((token,) * room, (True,) * room), Tokens((*(token,) * (room - 1), 0), (True,) * room))
    else:
        row = [token] * (room - config.max_new_tokens)
    prompt = Prompt((Message("user", ""),), "none", "")
    return Rows([row] * 8, [], None, 0, [prompt] * 8, renderer, note)


# -- what goes through the models ---------------------------------------------------------------------------------------
def load(config: Any, rows: Rows, seed: int) -> Load:
    """The largest micro-batch that these rows will make, and what else is there at once."""
    if config.method in ("ppo", "grpo", "evaluate"):
        return of_rollouts(config, [len(ids) for ids in rows.train])
    found = [part for batch in batches(config, rows, seed)[:BATCHES] for part in _cut(config, rows, batch)]
    found += [[row] for row in range(len(rows.train))]  # a row that is longer than micro_tokens stands alone
    largest = [rows.train[row] for row in max(found, key=lambda part: tokens(config, [rows.train[row] for row in part]))]
    if config.method == "reward":
        return Load([len(ids) for ids in {side.ids for pair in largest for side in (pair.chosen, pair.rejected)}], 0.01)
    return Load([len(t) for t in largest], sum(sum(t.trained) for t in largest) / sum(map(len, largest)))


def batches(config: Any, rows: Rows, seed: int) -> list[list[int]]:
    """An epoch's batches of the rows that were looked at."""
    if config.method == "reward":
        return reward_model._batches(rows.train, config, seed, 0)
    order = epoch_order(len(rows.train), seed, 0, config.method)
    size = min(config.batch_size, len(order))
    return [order[i : i + size] for i in range(0, len(order), size)]


def tokens(config: Any, rows: Sequence[Any]) -> int:
    """Tokens that these rows put through the model."""
    return reward_model.tokens_of(list(rows)) if config.method == "reward" else sum(map(len, rows))


def _cut(config: Any, rows: Rows, batch: list[int]) -> list[list[int]]:
    return parts(batch, lambda part: tokens(config, [rows.train[row] for row in part]), config.micro_tokens)


def updates(config: Any, rows: Rows) -> int | None:
    """Optimiser steps (of an evaluation, parts) of the whole stage; None where the number of rows is not known."""
    if config.method in ("ppo", "grpo"):
        return int(config.steps)
    if rows.count is None:
        return None
    if config.method == "evaluate":
        return 2 * -(-rows.count * config.samples // 64)
    return -(-rows.count // min(config.batch_size, rows.count)) * int(config.epochs)
