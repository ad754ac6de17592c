"""A file of data as records, with every row accounted for: kept, or dropped under a named rule."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from truing.data import tasks
from truing.data.problems import BadRow, OnBad, Problem, check_on_bad, count_rules, raise_first, write_quarantine
from truing.data.read import Raw, hub_id, read_raw, sha256
from truing.data.records import COLUMNS, SERVES, Kind, detect, optional_columns, to_record, unused_columns
from truing.errors import ConfigError, DataError
from truing.types import Demonstration, Messages, Record


@dataclass(frozen=True)
class Dataset:
    """What a file held.

    Attributes:
        records: the good rows, in file order.
        format: a key of `truing.data.records.COLUMNS`.
        rows: rows found, good and bad; blank lines are none.
        bad: rows dropped, by rule; ``rows == len(records) + sum(bad.values())``.
        problems: one for each bad row, in file order.
        unused: columns of the file that no record carries.
        sha256: of the file's bytes; for a hub id or a source of tasks, of its rows as JSON.
    """

    records: list[Record]
    format: str
    kind: Kind
    path: str
    sha256: str
    rows: int
    bad: Mapping[str, int] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()
    unused: tuple[str, ...] = ()


def load(path: str | Path, kind: Kind, on_bad: OnBad = "error", quarantine_to: Path | str | None = None) -> Dataset:
    """Read a file, hub id or source of tasks into records of one kind.

    Args:
        path: .jsonl, .json, .csv, .parquet, a hub id ``owner/name[:split]``, or a source of tasks (`truing.data.tasks`).
        kind: ``sft`` gives Demonstration, ``preference`` Preference, ``prompts`` Prompt, ``judged`` Judged. Richer data serve
            as prompts: a final assistant turn is left out, and all other columns are kept in ``Prompt.extra``.
        quarantine_to: where ``on_bad="quarantine"`` writes; nothing is written under the others, or when no row is bad.
        on_bad: ``error`` raises at the first bad row and counts the others; ``skip`` drops and counts them; ``quarantine`` also
            writes them to ``quarantine_to``, one JSON object a line: source, rule, message, and the row (or the text that is none).

    Raises:
        DataError: a bad row under ``error``; a file that cannot be read, has another format, or has no good row.
        ConfigError: an unknown kind or on_bad, or quarantine without a place.
    """
    check_on_bad(on_bad, quarantine_to)
    if kind not in get_args(Kind):
        raise ConfigError(f"kind={kind!r} does not exist; use one of {', '.join(get_args(Kind))}")
    dataset, bad_rows = scan(path, kind, keep_bad=on_bad == "quarantine")
    if on_bad == "error":
        raise_first(dataset.problems)
    if bad_rows and quarantine_to is not None:
        write_quarantine(quarantine_to, bad_rows)
    if not dataset.records:
        why = f"all {dataset.rows} rows are bad: {', '.join(f'{n} {r}' for r, n in dataset.bad.items())}; the first is {dataset.problems[0]}" if dataset.rows else "it has no rows"
        raise DataError(f"{path}: no data: {why}")
    return dataset


def scan(path: str | Path, kind: Kind | None, keep_bad: bool = False) -> tuple[Dataset, list[str]]:
    """Read everything and raise for no single row: the data set with its problems, and the bad rows as JSON when asked.

    ``kind=None`` takes the kind that the format serves first. The first row with a known format fixes the file's format
    and columns (of prompts the format alone). Raises DataError when the file cannot be read or cannot serve the kind.
    """
    records: list[Record] = []
    problems: list[Problem] = []
    bad_rows: list[str] = []
    ids: dict[str, str] = {}
    format, columns, rows = "", frozenset[str](), 0
    hub = hub_id(path)
    task = tasks.is_task(path)
    digest = hashlib.sha256() if hub or task else None
    place = hub[0] if hub else tasks.place(str(path)) if task else str(path)
    for raw in read_raw(path):
        rows += 1
        try:
            if digest:
                digest.update((json.dumps(raw.row, sort_keys=True, default=str) + "\n").encode())
            if raw.row is None:
                raise BadRow(raw.problem.rule, raw.problem.message, raw.problem.source)
            found = detect(raw.row)
            if found is None:
                raise BadRow("unknown_format", _unknown(raw.row))
            kind = kind or _kind_of(found)
            if not format:
                format, columns = found, frozenset(raw.row)
                if format not in SERVES[kind]:
                    raise DataError(f"{raw.source}: found the format {format!r} (columns {', '.join(raw.row)}); kind {kind!r} wants {_wanted(kind)}")
            if found != format:
                raise BadRow("mixed_formats", f"this row is {found!r}, the file began as {format!r}; keep one format in a file")
            if kind != "prompts":  # whose other columns are their verifiers', and each row names its own
                _check_columns(frozenset(raw.row), columns, format)
            record = to_record(raw.row, format, kind, raw.source, Path(place).name + raw.source.removeprefix(place))
            if raw.row.get("id") is not None:
                if record.id in ids:
                    raise BadRow("duplicate_id", f"id {record.id!r} was already used at {ids[record.id]}; ids must be unique")
                ids[record.id] = raw.source
            records.append(record)
        except BadRow as error:
            problems.append(error.at(raw.source).problem)
            if keep_bad:
                bad_rows.append(_bad_row(problems[-1], raw))
    kind = kind or "sft"
    unused = unused_columns(columns, format, kind) if format else ()
    dataset = Dataset(records, format, kind, str(path), digest.hexdigest() if digest else sha256(path), rows, count_rules(problems), tuple(problems), unused)
    return dataset, bad_rows


def prompt_of(record: Record) -> Messages:
    """What the model is given: everything before the completion (of a demonstration, before its last assistant turn)."""
    if isinstance(record, Demonstration):
        last = max(i for i, m in enumerate(record.messages) if m.role == "assistant")
        return record.messages[:last]
    return record.messages if hasattr(record, "messages") else record.prompt


def prompt_key(record: Record) -> str:
    """The prompt as one comparable string: roles and text, blanks at the ends of each turn left out."""
    return json.dumps([(m.role, m.content.strip()) for m in prompt_of(record)], ensure_ascii=False)


def row_key(record: Record) -> str:
    """The prompt and the row's other columns: where an environment makes the task of them, equal prompts may be different tasks."""
    return prompt_key(record) + json.dumps(getattr(record, "extra", {}), sort_keys=True, default=str)


def check_disjoint(train: Dataset | Sequence[Record], eval: Dataset | Sequence[Record], key_of: Callable[[Record], str] = prompt_key) -> None:
    """Raise DataError when a prompt of ``eval`` is also one of ``train``: what was seen in training measures nothing."""
    seen: dict[str, str] = {}
    for record in _records(train):
        seen.setdefault(key_of(record), record.source)
    both = [(r.source, seen[key]) for r in _records(eval) if (key := key_of(r)) in seen]
    if both:
        raise BadRow("train_eval_overlap", f"this prompt is also in the training data at {both[0][1]} ({len(both)} prompts are in both); remove them from one", both[0][0])


def _records(data: Dataset | Sequence[Record]) -> Iterable[Record]:
    return data.records if isinstance(data, Dataset) else data


def _kind_of(format: str) -> Kind:
    kinds: tuple[Kind, ...] = ("sft", "preference", "judged", "prompts")
    return next(kind for kind in kinds if format in SERVES[kind])


def _check_columns(found: frozenset[str], columns: frozenset[str], format: str) -> None:
    optional = optional_columns(format)
    if missing := columns - found - optional:
        raise BadRow("columns", f"column {', '.join(sorted(missing))} is missing, which the first row has; write it, or null")
    if extra := found - columns - optional:
        raise BadRow("columns", f"column {', '.join(map(repr, sorted(extra)))} is extra, the first row lacks it; write it in every row or in none")


def _unknown(row: Mapping[str, object]) -> str:
    if {"chosen", "rejected"} <= row.keys():
        return "chosen and rejected are plain strings and there is no prompt column; add one, or use hh-rlhf transcripts or message lists"
    known = "; ".join(dict.fromkeys(" + ".join(c) for c in COLUMNS.values()))
    return f"the columns {', '.join(map(repr, row)) or '(none)'} are no known format; known: {known}"


def _wanted(kind: Kind) -> str:
    return "; or ".join(f"{f!r} (columns {', '.join(COLUMNS[f])})" for f in SERVES[kind])


def _bad_row(problem: Problem, raw: Raw) -> str:
    found = {"row": raw.row} if raw.row is not None else {"text": raw.text}
    # ASCII only, so that a lone surrogate in a row cannot make the quarantine file unreadable as well
    return json.dumps({"source": problem.source, "rule": problem.rule, "message": problem.message, **found}, default=str)
