"""Strict readers: JSON lines, a JSON array, CSV, Parquet, hub ids and sources of tasks, as rows with their place.

A reader yields one `Raw` a row: the parsed object, or the `Problem` that kept it from being parsed together with the
text as found. What makes the rest of a file unreadable (a broken CSV header, a corrupt Parquet file) is a DataError.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from truing.data import tasks
from truing.data.problems import BadRow, Problem
from truing.errors import DataError, MissingExtraError

LINE_LIMIT = 8 * 2**20
"""Most bytes in one line (or one element of an array): 8 MiB."""

READABLE = (".jsonl", ".json", ".csv", ".parquet")
_BOM = b"\xef\xbb\xbf"
_HUB_ID = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(?::(?P<split>[\w.\[\]:%+-]+))?")


@dataclass(frozen=True, slots=True)
class Raw:
    """One row as found. Where ``row`` is None it could not be parsed: ``problem`` says why, and ``text`` is what stood there."""

    source: str
    row: dict[str, Any] | None
    problem: Problem = Problem("", "", "")
    text: str = ""


def read_rows(path: str | Path) -> Iterator[tuple[dict[str, Any], str]]:
    """Each row as an object, with its ``file:line``.

    Args:
        path: a .jsonl, .json (lines or one array), .csv or .parquet file, a hub id ``owner/name`` or ``owner/name:split``, or a source
            of tasks like ``reasoning-gym:chain_sum(size=500, seed=1)``.

    Raises:
        DataError: at the first row that cannot be read.
    """
    for raw in read_raw(path):
        if raw.row is None:
            raise BadRow(raw.problem.rule, raw.problem.message, raw.problem.source)
        yield raw.row, raw.source


def read_raw(path: str | Path) -> Iterator[Raw]:
    """Each row, readable or not. Raises DataError when the file as a whole cannot be read."""
    if tasks.is_task(path):
        yield from (_from_table(row, source) for row, source in tasks.rows(str(path)))
        return
    hub = hub_id(path)
    if hub:
        yield from _read_hub(*hub)
        return
    file = Path(path)
    if not file.is_file():
        what = "is a folder; name a file in it" if file.is_dir() else "does not exist"
        raise DataError(f"{path}: {what}. Data is a file ({', '.join(READABLE)}), a hub id like owner/name:split, or tasks like reasoning-gym:chain_sum(size=500)")
    reader = {".jsonl": _read_json_lines, ".json": _read_json, ".csv": _read_csv, ".parquet": _read_parquet}.get(file.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: files ending in {file.suffix!r} are not read; use one of {', '.join(READABLE)}")
    try:
        yield from reader(file)
    except OSError as error:
        raise DataError(f"{path}: cannot read: {error.strerror or error}") from error


def hub_id(path: str | Path) -> tuple[str, str] | None:
    """(name, split) when this is a hub id and not a file or a source of tasks; the split is train when none is given."""
    match = None if tasks.is_task(path) else _HUB_ID.fullmatch(str(path))
    if match is None or Path(path).is_file() or Path(match["name"]).suffix.lower() in READABLE:
        return None
    return match["name"], match["split"] or "train"


def sha256(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# JSON

class _Strict:
    """A JSON decoder that notices what the standard one lets pass: NaN, infinities, keys written twice."""

    def __init__(self) -> None:
        self.flaw: tuple[str, str] | None = None
        self._decoder = json.JSONDecoder(parse_constant=self._constant, parse_float=self._float, object_pairs_hook=self._pairs)

    def _constant(self, name: str) -> None:
        self.flaw = self.flaw or ("non_finite", f"{name} is not JSON; write a number, or null")

    def _float(self, text: str) -> float:
        value = float(text)
        if not math.isfinite(value):
            self.flaw = self.flaw or ("non_finite", f"{text[:40]} overflows to infinity; write a finite number")
        return value

    def _pairs(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs):
            keys = [k for k, _ in pairs]
            twice = next(k for k in keys if keys.count(k) > 1)
            self.flaw = self.flaw or ("duplicate_key", f"key {twice!r} appears twice in one object; keep one")
        return made

    def decode(self, text: str, start: int = 0) -> tuple[Any, int]:
        """The value that starts at ``start`` and the position after it. Raises BadRow."""
        self.flaw = None
        try:
            return self._decoder.raw_decode(text, start)
        except json.JSONDecodeError as error:
            column = error.pos - text.rfind("\n", 0, error.pos)
            raise BadRow("malformed_json", f"{error.msg} at column {column}, near {text[max(0, error.pos - 20) : error.pos + 20]!r}; fix the line") from error
        except RecursionError as error:
            raise BadRow("malformed_json", "nested too deeply; a row is an object of strings, numbers and lists of messages") from error
        except ValueError as error:  # integers of more than 4,300 digits
            raise BadRow("malformed_json", f"{error}; fix the line") from error


def _read_json(path: Path) -> Iterator[Raw]:
    with path.open("rb") as file:
        first = file.read(4096).removeprefix(_BOM).lstrip()[:1]
    yield from (_read_json_array(path) if first == b"[" else _read_json_lines(path))


def _read_json_lines(path: Path) -> Iterator[Raw]:
    strict = _Strict()
    for number, line, size in _lines(path):
        source = f"{path}:{number}"
        text = ""
        try:
            if size > LINE_LIMIT + 1:
                raise BadRow("line_too_long", f"{_mib(size)} in one line; the limit is {_mib(LINE_LIMIT)}. Is a newline missing between rows?")
            text = _decode(line, number)
            if not text.strip():
                continue
            row, end = strict.decode(text.strip())
            if end < len(text.strip()):
                raise BadRow("malformed_json", f"more text after the object, near {text.strip()[end : end + 20]!r}; write one object a line")
            yield Raw(source, _checked(row, strict.flaw))
        except BadRow as error:
            problem = error.problem
            if problem.rule == "malformed_json" and not line.endswith(b"\n"):
                problem = Problem(source, "truncated_last_line", f"the last line is cut off ({problem.message.split(';')[0]}); write the file again, or delete the line")
            yield Raw(source, None, Problem(source, problem.rule, problem.message), line[:LINE_LIMIT].decode("utf-8", "backslashreplace").rstrip("\r\n"))


def _read_json_array(path: Path) -> Iterator[Raw]:
    try:
        text = _decode(path.read_bytes(), 1)
    except BadRow as error:
        raise error.at(f"{path}:1") from error
    strict = _Strict()
    position, line, counted = text.index("[") + 1, 1, 0
    while True:
        position = _after_space(text, position)
        if text.startswith("]", position):
            if text[position + 1 :].strip():
                raise BadRow("malformed_json", "text after the end of the array; keep one array in a file", f"{path}:{line}")
            return
        line, counted = line + text.count("\n", counted, position), position
        source = f"{path}:{line}"
        try:
            row, end = strict.decode(text, position)
        except BadRow as error:  # the places of all later elements are lost with it
            raise BadRow(error.problem.rule, error.problem.message + ". The rest of the array cannot be read; one object a line (.jsonl) would lose this row only", source) from error
        try:
            if end - position > LINE_LIMIT:
                raise BadRow("line_too_long", f"{_mib(end - position)} in one element; the limit is {_mib(LINE_LIMIT)}")
            yield Raw(source, _checked(row, strict.flaw))
        except BadRow as error:
            yield Raw(source, None, error.at(source).problem, text[position : min(end, position + LINE_LIMIT)])
        position = _after_space(text, end)
        if text.startswith(",", position):
            position += 1
        elif not text.startswith("]", position):
            raise BadRow("malformed_json", f"expected , or ] after this element, found {text[position : position + 20]!r}; fix the array, or use one object a line", source)


def _after_space(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


# CSV

class _CsvLines:
    """Lines for csv.reader that go on after a line over the limit (a generator would end there)."""

    def __init__(self, path: Path) -> None:
        self._lines = _lines(path)
        self.number = 0

    def __iter__(self) -> _CsvLines:
        return self

    def __next__(self) -> str:
        self.number, line, size = next(self._lines)
        if size > LINE_LIMIT + 1:
            raise BadRow("line_too_long", f"{_mib(size)} in one line; the limit is {_mib(LINE_LIMIT)}. Is a quote or newline missing?")
        return line.decode("utf-8", "surrogateescape")


def _read_csv(path: Path) -> Iterator[Raw]:
    csv.field_size_limit(max(csv.field_size_limit(), LINE_LIMIT))
    lines = _CsvLines(path)
    reader = csv.reader(lines, strict=True)
    header: list[str] | None = None
    while True:
        source, cells = f"{path}:{lines.number + 1}", None
        try:
            cells = next(reader, None)
            if cells is None:
                return
            if header is None:
                header = _csv_header(cells)
                continue
            if cells == []:
                continue
            if len(cells) != len(header):
                raise BadRow("columns", f"{len(cells)} cells where the header has {len(header)}; quote cells that hold commas or newlines")
            yield Raw(source, _checked(_csv_row(header, cells), escaped_bytes=True))
        except csv.Error as error:
            yield Raw(source, None, Problem(source, "malformed_csv", f"{error}; check the quotes of this row"), "")
        except BadRow as error:
            if header is None:
                raise error.at(source) from error
            yield Raw(source, None, error.at(source).problem, ",".join(cells or []).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace"))


def _csv_header(cells: list[str]) -> list[str]:
    if cells and cells[0].startswith("\ufeff"):
        raise BadRow("bom", "the file starts with a byte order mark; save it as UTF-8 without BOM")
    bad = next((c for c in cells if not c.strip() or cells.count(c) > 1), None)
    if bad is not None or not cells:
        raise BadRow("columns", f"the first line must name each column once; found {bad!r} in {cells[:8]}")
    _checked(dict.fromkeys(cells, ""), escaped_bytes=True)
    return cells


def _csv_row(header: list[str], cells: list[str]) -> dict[str, Any]:
    """CSV has strings only: the three columns that are not text, and empty optional cells, are read as meant."""
    row: dict[str, Any] = dict(zip(header, cells, strict=True))
    for name in ("id", "system", "margin", "label"):
        if row.get(name) == "":
            row[name] = None
    if row.get("label") is not None:
        row["label"] = {"true": True, "1": True, "false": False, "0": False}.get(row["label"].strip().lower(), row["label"])
    if row.get("margin") is not None:
        try:
            row["margin"] = float(row["margin"])
        except ValueError:
            pass  # stays text, which the margin rule then names
    return row


# Parquet and hubs

def _read_parquet(path: Path) -> Iterator[Raw]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield _from_table(row, f"{path}:{number}")
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a readable Parquet file: {str(error).splitlines()[0]}; write it again") from error


def _read_hub(name: str, split: str) -> Iterator[Raw]:
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError(f"{name}: reading a hub id needs the package datasets; pip install datasets, or pass a file") from error
    try:
        table = datasets.load_dataset(name, split=split)
    except Exception as error:  # the hub client raises many families: network, not found, gated, bad split
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"{name}:{split}: neither a file here nor a data set that the hub gave: {reason}. Check the name, the split and the network, or pass a file") from error
    for number, row in enumerate(table, 1):
        yield _from_table(dict(row), f"{name}#{number}")


def _from_table(row: dict[str, Any], source: str) -> Raw:
    try:
        return Raw(source, _checked(row))
    except BadRow as error:
        return Raw(source, None, error.at(source).problem, json.dumps(row, default=str))


# Shared

def _lines(path: Path) -> Iterator[tuple[int, bytes, int]]:
    """(number, line, size in bytes); a line over the limit is read in pieces and only its start is kept."""
    with path.open("rb") as file:
        number = 0
        while line := file.readline(LINE_LIMIT + 1):
            number += 1
            size, last = len(line), line
            while size > LINE_LIMIT and not last.endswith(b"\n"):
                last = file.readline(LINE_LIMIT + 1)
                if not last:
                    break
                size += len(last)
            # a line of exactly LINE_LIMIT + 1 bytes without a newline is over the limit as well
            yield number, line, size + (size == LINE_LIMIT + 1 and not last.endswith(b"\n"))


def _decode(data: bytes, number: int) -> str:
    if number == 1 and data.startswith(_BOM):
        raise BadRow("bom", "the file starts with a byte order mark; save it as UTF-8 without BOM")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRow("invalid_utf8", f"byte 0x{data[error.start]:02x} at position {error.start} is not UTF-8; convert the file to UTF-8") from error


def _checked(row: Any, flaw: tuple[str, str] | None = None, *, escaped_bytes: bool = False) -> dict[str, Any]:
    """The row, when it is an object whose strings are real text. Raises BadRow.

    ``escaped_bytes`` says that a surrogate stands for a byte that was not UTF-8 (Python's surrogateescape).
    """
    if flaw is not None:
        raise BadRow(*flaw)
    if not isinstance(row, dict):
        raise BadRow("not_an_object", f"a row is an object like {{\"prompt\": ...}}; found {type(row).__name__} {str(row)[:40]!r}")
    waiting: list[Any] = [row]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, (list, tuple)):
            waiting += value
        elif isinstance(value, str):
            if "\x00" in value:
                raise BadRow("nul", f"a NUL character in {_near(value, value.index(chr(0)))}; remove it")
            if not value.isascii():
                _no_surrogates(value, escaped_bytes)
    return row


def _no_surrogates(value: str, escaped_bytes: bool) -> None:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        if escaped_bytes:
            raise BadRow("invalid_utf8", f"byte 0x{ord(value[error.start]) - 0xDC00:02x} in {_near(value, error.start)} is not UTF-8; convert the file to UTF-8") from error
        raise BadRow("lone_surrogate", f"half of a surrogate pair (U+{ord(value[error.start]):04X}) in {_near(value, error.start)}; it is no character, so remove it") from error


def _near(value: str, position: int) -> str:
    return ascii(value[max(0, position - 15) : position + 15])


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"
