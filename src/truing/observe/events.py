"""The event log: ``events.jsonl``, one canonical JSON object a line, appended only. Everything shown anywhere derives from it.

A line is ``{"kind": ..., "step": ..., <values>}`` with sorted keys. NaN and infinities are the strings "nan", "inf" and
"-inf", which ``float()`` reads back. Two kinds tell of this machine and moment rather than of the training: ``session``
(who ran it, where) and ``timing`` (seconds, memory). Without them (`canonical_events`) the log of a run that was killed
and resumed equals, byte for byte, the log of one that was not.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import orjson

from truing.disk import disk_error, write_all
from truing.errors import DataError

FILE = "events.jsonl"
LOCAL_KINDS = frozenset({"session", "timing"})

_SECRET_NAME = re.compile(r"(TOKEN|KEY|SECRET|PASSWORD|PASSWD)$", re.IGNORECASE)
_SECRET_FIELD = re.compile(r"(^|_)(api|access|auth|secret|private|hub|hf)_?(key|token)$|passw(or)?d$|(^|_)secret$", re.IGNORECASE)
REDACTED = "[redacted]"


def plain(value: Any) -> Any:
    """``value`` as what JSON can hold, without secrets.

    Tensors, arrays and NumPy scalars become lists and numbers, tuples become lists, non-finite numbers become strings.
    The values of environment variables named like secrets (HF_TOKEN, OPENAI_API_KEY, ...) and of fields named like one
    (api_key, password) become "[redacted]". Raises TypeError for anything else.
    """
    known = [v for k, v in os.environ.items() if len(v) >= 8 and _SECRET_NAME.search(k)]
    return _plain(value, known)


def _plain(value: Any, secrets: list[str]) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Enum):
        return _plain(value.value, secrets)
    if isinstance(value, str):
        for secret in secrets:
            value = value.replace(secret, REDACTED)
        return value.encode("utf-8", "backslashreplace").decode()  # a lone surrogate has no UTF-8
    if isinstance(value, int):
        return int(value) if -(2**63) <= value < 2**64 else str(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if isinstance(value, Mapping):
        return {_key(k, secrets): REDACTED if isinstance(v, str) and _SECRET_FIELD.search(str(k)) else _plain(v, secrets) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v, secrets) for v in value]
    if isinstance(value, Path):
        return _plain(str(value), secrets)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name), secrets) for f in dataclasses.fields(value)}
    if hasattr(value, "tolist"):
        return _plain(value.tolist(), secrets)
    raise TypeError(f"{type(value).__name__} {value!r:.80} cannot be written as JSON; log numbers, strings, lists and mappings")


def _key(key: Any, secrets: list[str]) -> str:
    if isinstance(key, Enum | str | int):
        return str(_plain(key, secrets))
    raise TypeError(f"key {key!r:.80} cannot be written as JSON; use a string")


def canonical_json(value: Any) -> bytes:
    """The one way to write ``value``: sorted keys, no spaces, shortest digits that give back the same number."""
    return orjson.dumps(plain(value), option=orjson.OPT_SORT_KEYS)


class EventLog:
    """The writer of one run's log; exactly one process may hold it (`learn.run.Run` sees to that)."""

    def __init__(self, folder: Path) -> None:
        """Open or create ``folder/events.jsonl``; a last line torn by a crash is cut off. Raises CheckpointError when it cannot be written."""
        self.path = Path(folder) / FILE
        try:
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            self._size = os.fstat(self._fd).st_size
            whole = self._end_of_last_line()
            if whole != self._size:
                self.truncate(whole)
        except OSError as error:
            raise disk_error(self.path, error, "open the event log") from error

    def append(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Add one line. ``values`` may not hold the keys kind and step.

        Raises CheckpointError when the disk refuses (nothing of the line stays), ValueError for a reserved key.
        """
        clash = {"kind", "step"} & set(values)
        if clash:
            raise ValueError(f"event {kind!r} at step {step}: {sorted(clash)} name the event itself; call the values something else")
        line = canonical_json({**values, "kind": kind, "step": step}) + b"\n"
        try:
            write_all(self._fd, line)
            self._size += len(line)
        except OSError as error:
            self._cut_back()
            raise disk_error(self.path, error, "append to the event log") from error
        except BaseException:  # a second Ctrl-C in the middle of it
            self._cut_back()
            raise

    def flush(self) -> None:
        """Return once every line is on the disk."""
        try:
            os.fsync(self._fd)
        except OSError as error:
            raise disk_error(self.path, error, "sync the event log") from error

    def position(self) -> int:
        """Length of the log in bytes, always at the end of a line."""
        return self._size

    def truncate(self, position: int) -> None:
        """Forget every line after ``position``. Raises DataError when the log is shorter than that or no line ends there."""
        remedy = "Restore the file, or delete the run folder and start again"
        if position > self._size:
            raise DataError(f"{self.path}: is {self._size} bytes long, but {position} were recorded; lines were lost. {remedy}")
        if position and os.pread(self._fd, 1, position - 1) != b"\n":
            raise DataError(f"{self.path}: no line ends at byte {position}, as was recorded; the file was edited. {remedy}")
        try:
            os.ftruncate(self._fd, position)
            os.fsync(self._fd)
        except OSError as error:
            raise disk_error(self.path, error, "shorten the event log") from error
        self._size = position

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _end_of_last_line(self) -> int:
        end = self._size
        while end:
            start = max(0, end - 65536)
            found = os.pread(self._fd, end - start, start).rfind(b"\n")
            if found >= 0:
                return start + found + 1
            end = start
        return 0

    def _cut_back(self) -> None:
        try:
            os.ftruncate(self._fd, self._size)
        except OSError:
            pass  # the torn line is cut off at the next open


def _lines(folder: Path) -> list[bytes]:
    path = Path(folder) / FILE
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot read the event log: {error.strerror}; is {folder} a run's folder?") from error
    return data.split(b"\n")[:-1]  # what follows the last newline is empty, or a line being written or torn by a crash


def _parse(folder: Path, number: int, line: bytes) -> dict[str, Any]:
    place = f"{Path(folder) / FILE}:{number}"
    try:
        event = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise DataError(f"{place}: not a JSON object ({error}); the log was damaged. Delete this line to read the rest") from error
    if not isinstance(event, dict) or not isinstance(event.get("kind"), str) or type(event.get("step")) is not int:
        raise DataError(f"{place}: an event needs a kind and a step, found {line[:80]!r}; the log was damaged. Delete this line to read the rest")
    return event


def read_events(folder: Path) -> list[dict[str, Any]]:
    """Every event of a run in order; also of a run that is being written now, whose unfinished last line is left out.

    Raises DataError with file:line for a corrupt line, or when there is no log.
    """
    return [_parse(folder, i, line) for i, line in enumerate(_lines(folder), 1)]


def canonical_events(folder: Path) -> bytes:
    """The log without ``session`` and ``timing`` lines, for comparing two runs byte for byte."""
    return b"".join(line + b"\n" for i, line in enumerate(_lines(folder), 1) if _parse(folder, i, line)["kind"] not in LOCAL_KINDS)
