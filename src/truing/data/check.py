"""What a file of data holds and what is wrong with it: the numbers behind ``truing data check FILE``."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from truing.data.formats import Dataset, prompt_key, scan
from truing.data.problems import BadRow, Problem, count_rules
from truing.data.records import Kind
from truing.data.template import Renderer
from truing.data.trained import require_stop
from truing.types import Demonstration, Judged, Messages, Preference, Prompt, Record, TokenPair, Tokens

if TYPE_CHECKING:
    from rich.console import RenderableType

BINS = 12
Span = tuple[str, bool]
"""A stretch of text and whether it is trained."""


@dataclass(frozen=True)
class Report:
    """What `check` found.

    Attributes:
        rows: rows found; ``kept`` of them are good, the others are counted by rule in ``bad``.
        problems: every broken rule with its place, those of single rows first.
        notices: facts worth knowing that make no row bad.
        lengths: ``(from, to, records)``, with ``to`` exclusive, in ``unit`` (tokens, or characters without a tokenizer).
            A preference counts its longer side.
        sample: the first good record as (text, trained) stretches.
        duplicates: groups of places that hold the same record; ids and margins are not compared.
    """

    path: str
    format: str
    kind: Kind
    sha256: str
    rows: int
    kept: int
    bad: Mapping[str, int]
    problems: tuple[Problem, ...]
    notices: tuple[str, ...]
    unit: str
    lengths: tuple[tuple[int, int, int], ...]
    longest: int
    sample: tuple[Span, ...]
    sample_source: str
    duplicates: tuple[tuple[str, ...], ...]

    @property
    def ok(self) -> bool:
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """Plain objects for JSON."""
        return dataclasses.asdict(self) | {"ok": self.ok}


def check(path: str | Path, tokenizer: Any = None, max_length: int = 1024) -> Report:
    """Read a whole file, and tokenise it when a tokenizer is given.

    Bad rows are reported, not raised. Raises DataError when the file cannot be read at all, and ModelError for a
    tokenizer that cannot be used.
    """
    dataset, _ = scan(path, None)
    problems = list(dataset.problems)
    kept: list[Record] = list(dataset.records)
    renderer = Renderer(tokenizer) if tokenizer is not None else None
    if renderer is None:
        lengths = [_characters(r) for r in kept]
        sample = _text_sample(kept[0]) if kept else ()
    else:
        good, items = [], []
        for record in kept:
            try:
                items.append(_render(record, renderer, max_length))
                good.append(record)
            except BadRow as error:
                problems.append(error.problem)
        kept = good
        lengths = [_tokens(item) for item in items]
        sample = _token_sample(items[0], tokenizer) if items else ()
        if kept and isinstance(kept[0], Demonstration):
            try:
                require_stop([i for i in items if isinstance(i, Tokens)], renderer.stop_ids, str(path))
            except BadRow as error:
                problems.append(error.problem)
    if not dataset.rows:
        problems.append(Problem(str(path), "no_rows", "the file has no rows; write at least one"))
    return Report(
        path=str(path), format=dataset.format or "unknown", kind=dataset.kind, sha256=dataset.sha256, rows=dataset.rows, kept=len(kept),
        bad=count_rules(problems), problems=tuple(problems), notices=_notices(dataset, renderer, tokenizer), unit="tokens" if renderer else "characters",
        lengths=histogram(lengths), longest=max(lengths, default=0), sample=sample, sample_source=kept[0].source if kept else "", duplicates=duplicates(dataset.records),
    )  # fmt: skip


def histogram(lengths: Sequence[int], bins: int = BINS) -> tuple[tuple[int, int, int], ...]:
    """(from, to, count) with equal integer widths from 0, ``to`` exclusive; the last bin holds the longest."""
    if not lengths:
        return ()
    width = max(lengths) // bins + 1
    counts = [0] * (max(lengths) // width + 1)
    for length in lengths:
        counts[length // width] += 1
    return tuple((i * width, (i + 1) * width, n) for i, n in enumerate(counts))


def duplicates(records: Sequence[Record]) -> tuple[tuple[str, ...], ...]:
    """Places that hold the same record, in groups of two or more."""
    places: dict[Any, list[str]] = defaultdict(list)
    for record in records:
        places[_same(record)].append(record.source)
    return tuple(tuple(group) for group in places.values() if len(group) > 1)


def rendered(report: Report, most: int = 20) -> RenderableType:
    """The report for a terminal (rich); at most ``most`` problems and five groups of duplicates are shown, the rest counted."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    facts = Table.grid(padding=(0, 2))
    for name, value in (
        ("file", report.path), ("format", f"{report.format}, read as {report.kind}"), ("rows", f"{report.rows} found, {report.kept} good, {report.rows - report.kept} bad"),
        ("longest", f"{report.longest} {report.unit}"), ("sha256", report.sha256),
    ):  # fmt: skip
        facts.add_row(Text(name, style="dim"), Text(visible(value)))
    parts: list[Any] = [facts]
    if report.lengths:
        bars = Table.grid(padding=(0, 1))
        most_in_bin = max(n for _, _, n in report.lengths)
        for low, high, n in report.lengths:
            bars.add_row(Text(f"{low}-{high - 1}", justify="right"), Text(str(n), justify="right"), Text("#" * -(-40 * n // most_in_bin)))
        parts += [Text(f"\nlength in {report.unit}", style="bold"), bars]
    if report.sample:
        marks = "trained tokens are [[marked]]" if any(on for _, on in report.sample) else "nothing is trained: a prompt"
        text = Text()
        for stretch, on in report.sample:
            text.append(f"[[{visible(stretch)}]]" if on else visible(stretch), style="bold green" if on else "")
        parts += [Text(f"\nsample {report.sample_source} ({marks})", style="bold"), text]
    if report.duplicates:
        parts.append(Text(f"\n{len(report.duplicates)} groups of duplicates", style="bold"))
        parts += [Text(visible(" = ".join(group[:5])) + (f" and {len(group) - 5} more" if len(group) > 5 else "")) for group in report.duplicates[:5]]
    parts += [Text(visible(f"note: {notice}"), style="yellow") for notice in report.notices]
    if report.problems:
        parts.append(Text(f"\n{len(report.problems)} problems: " + ", ".join(f"{n} {rule}" for rule, n in report.bad.items()), style="bold red"))
        parts += [Text(visible(str(p))) for p in report.problems[:most]]
        if len(report.problems) > most:
            parts.append(Text(f"and {len(report.problems) - most} more"))
    else:
        parts.append(Text("\nno problems", style="bold green"))
    return Group(*parts)


def visible(text: str) -> str:
    """Text from a file, safe for a terminal: control characters (escape sequences) are written out; newlines and tabs stay."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def _notices(dataset: Dataset, renderer: Renderer | None, tokenizer: Any) -> tuple[str, ...]:
    notices = []
    if dataset.unused:
        notices.append(f"columns that {dataset.kind} does not use: {', '.join(dataset.unused)}")
    if renderer is not None:
        inside = [r.source for r in dataset.records if any(renderer.names_control_token(m.content) for m in _messages(r))]
        if inside:
            notices.append(f"{len(inside)} rows write the name of a control token in their text (first: {inside[0]}); it is kept as ordinary text and never obeyed")
        if tokenizer.pad_token_id is not None and tokenizer.pad_token_id == tokenizer.eos_token_id:
            notices.append("the tokenizer's pad token is its eos token; masks come from lengths here, so the end-of-turn token is trained all the same")
        if not getattr(tokenizer, "chat_template", None):
            notices.append("the tokenizer has no chat template: prompt, completion and eos are written one after the other")
    return tuple(notices)


def _render(record: Record, renderer: Renderer, max_length: int) -> Tokens | TokenPair | list[int]:
    if isinstance(record, Demonstration):
        return renderer.demonstration(record, max_length)
    if isinstance(record, Preference):
        return renderer.pair(record, max_length)
    return renderer.prompt(record, max_length) if isinstance(record, Prompt) else renderer.judged(record, max_length)


def _messages(record: Record) -> Messages:
    if isinstance(record, (Demonstration, Prompt)):
        return record.messages
    return record.prompt + (record.chosen + record.rejected if isinstance(record, Preference) else record.completion)


def _same(record: Record) -> Any:
    if isinstance(record, Demonstration):
        return record.messages
    if isinstance(record, Preference):
        return record.prompt, record.chosen, record.rejected
    return (record.prompt, record.completion, record.label) if isinstance(record, Judged) else prompt_key(record)


def _characters(record: Record) -> int:
    def count(messages: Messages) -> int:
        return sum(len(m.content) for m in messages)

    if isinstance(record, Preference):
        return count(record.prompt) + max(count(record.chosen), count(record.rejected))
    return count(_messages(record))


def _tokens(item: Tokens | TokenPair | list[int]) -> int:
    return max(len(item.chosen), len(item.rejected)) if isinstance(item, TokenPair) else len(item)


def _text_sample(record: Record) -> tuple[Span, ...]:
    """Without a tokenizer: each turn with its role, the trained ones marked (of a preference, the chosen side)."""
    untrained = len(record.prompt) if isinstance(record, (Preference, Judged)) else 0
    messages = record.prompt + record.chosen if isinstance(record, Preference) else _messages(record)
    spans: list[Span] = []
    for i, message in enumerate(messages):
        spans += [(f"{message.role}: ", False), (message.content, message.role == "assistant" and i >= untrained and not isinstance(record, Prompt)), ("\n", False)]
    return tuple(spans)


def _token_sample(item: Tokens | TokenPair | list[int], tokenizer: Any) -> tuple[Span, ...]:
    tokens = item.chosen if isinstance(item, TokenPair) else item
    ids, trained = (tokens.ids, tokens.trained) if isinstance(tokens, Tokens) else (tuple(tokens), (False,) * len(tokens))
    spans: list[Span] = []
    start = 0
    for i in range(1, len(ids) + 1):
        if i == len(ids) or trained[i] != trained[start]:
            spans.append((tokenizer.decode(list(ids[start:i])), trained[start]))
            start = i
    return tuple(spans)
