"""From a file to tokens: read, render, and treat a row that cannot be rendered like any other bad row."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from truing.data.batches import split
from truing.data.formats import load
from truing.data.problems import BadRow, OnBad, Problem, count_rules, raise_first, write_quarantine
from truing.data.records import Kind
from truing.errors import DataError

T = TypeVar("T")


def read_records(path: str, kind: Kind, on_bad: OnBad, folder: Path) -> list[Any]:
    """The good records of a file; with ``quarantine`` the bad rows go to ``folder / "quarantine.jsonl"``."""
    return load(path, kind, on_bad=on_bad, quarantine_to=folder / "quarantine.jsonl" if on_bad == "quarantine" else None).records


def train_and_held(
    path: str, kind: Kind, render: Callable[[Any], T], *, share: float, seed: int, on_bad: OnBad, folder: Path
) -> tuple[list[T], list[T]]:
    """A file's rows, rendered and split by prompt into (train, held out)."""
    rows = render_all(read_records(path, kind, on_bad, folder), render, on_bad, folder)
    rendered = {id(record): value for record, value in rows}
    train, held = split([record for record, _ in rows], share, seed)
    return [rendered[id(r)] for r in train], [rendered[id(r)] for r in held]


def render_all(records: Sequence[Any], render: Callable[[Any], T], on_bad: OnBad, folder: Path) -> list[tuple[Any, T]]:
    """(record, rendered) of every record that can be rendered.

    Raises DataError for the first that cannot under ``error``, and when none can.
    """
    done: list[tuple[Any, T]] = []
    problems: list[Problem] = []
    for record in records:
        try:
            done.append((record, render(record)))
        except BadRow as error:
            problems.append(error.problem if error.problem.source else error.at(record.source).problem)
    if on_bad == "error":
        raise_first(problems)
    if on_bad == "quarantine" and problems:
        lines = (json.dumps({"source": p.source, "rule": p.rule, "message": p.message}, ensure_ascii=False) for p in problems)
        write_quarantine(folder / "quarantine-rendered.jsonl", lines)
    if not done:
        raise DataError(f"no row can be rendered: {count_rules(problems)}; the first: {problems[0] if problems else 'there are no rows'}")
    return done
