"""The event log: canonical lines, honest numbers, torn and corrupt lines."""

from __future__ import annotations

import errno
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from truing.errors import CheckpointError, DataError
from truing.observe.events import EventLog, canonical_events, canonical_json, read_events
from truing.types import Score, Status


@pytest.fixture
def log(tmp_path: Path) -> EventLog:
    return EventLog(tmp_path)


def raw(log: EventLog) -> bytes:
    return log.path.read_bytes()


def test_a_line_is_canonical_json(log: EventLog) -> None:
    log.append("step", 3, {"loss": 0.5, "a": True, "text": "é\n"})
    assert raw(log) == '{"a":true,"kind":"step","loss":0.5,"step":3,"text":"é\\n"}\n'.encode()
    assert log.position() == len(raw(log))


def test_numbers_that_json_has_not(log: EventLog) -> None:
    log.append("step", 0, {"a": math.nan, "b": [math.inf, -math.inf], "c": torch.tensor([math.nan, 1.0]), "d": np.float32("inf"), "e": 2**70})
    (event,) = read_events(log.path.parent)
    assert event == {"kind": "step", "step": 0, "a": "nan", "b": ["inf", "-inf"], "c": ["nan", 1.0], "d": "inf", "e": str(2**70)}
    assert math.isnan(float(event["a"])) and float(event["b"][1]) == -math.inf
    json.loads(raw(log), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_values_of_every_kind(log: EventLog) -> None:
    values: dict[Any, Any] = {
        "scalar": torch.tensor(1.5), "half": torch.tensor(0.5, dtype=torch.bfloat16), "grad": torch.ones(2, requires_grad=True), "np": np.int64(7),
        "status": Status.TIMED_OUT, "score": Score(0.5, {"rm": 0.5}), "path": Path("a/b"), "tuple": (1, 2), 3: "int key", "none": None, "lone": "\ud800",
    }  # fmt: skip
    log.append("step", 0, values)
    assert read_events(log.path.parent) == [{
        "kind": "step", "step": 0, "scalar": 1.5, "half": 0.5, "grad": [1.0, 1.0], "np": 7, "status": "timed_out",
        "score": {"value": 0.5, "parts": {"rm": 0.5}, "status": "ok", "spread": []}, "path": "a/b", "tuple": [1, 2], "3": "int key", "none": None, "lone": "\\ud800",
    }]  # fmt: skip


def test_what_cannot_be_written_leaves_nothing(log: EventLog) -> None:
    bad: list[dict[Any, Any]] = [{"x": object()}, {"x": {1, 2}}, {(1, 2): 3}]
    for values in bad:
        with pytest.raises(TypeError, match="cannot be written as JSON"):
            log.append("step", 0, values)
    with pytest.raises(ValueError, match="step"):
        log.append("metrics", 0, {"step": 1})
    assert raw(log) == b""


texts = st.text(st.characters(codec="utf-8"), max_size=9)
scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False) | texts


@settings(max_examples=80, deadline=None)
@given(st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3)))
def test_plain_values_come_back_exactly(value: object) -> None:
    text = canonical_json({"v": value})
    back = json.loads(text)["v"]
    assert back == value and canonical_json({"v": back}) == text and b"\n" not in text


def test_the_disk_is_full() -> None:
    """/dev/full takes no byte: real ENOSPC."""
    log = EventLog.__new__(EventLog)
    log.path, log._size, log._fd = Path("/dev/full"), 0, os.open("/dev/full", os.O_RDWR)
    with pytest.raises(CheckpointError, match=r"/dev/full: could not append.*No space left.*free"):
        log.append("step", 0, {})
    assert log.position() == 0
    log.close()


def test_a_half_written_line_is_taken_back(log: EventLog, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write

    def half(fd: int, data: bytes) -> int:
        real(fd, bytes(data)[:5])
        raise OSError(errno.EIO, "Input/output error")

    log.append("step", 1, {})
    with monkeypatch.context() as patch, pytest.raises(CheckpointError, match="Input/output error.*check it"):
        patch.setattr(os, "write", half)
        log.append("step", 2, {})
    log.append("step", 3, {})
    assert [e["step"] for e in read_events(log.path.parent)] == [1, 3] and log.position() == len(raw(log))


def test_a_torn_last_line_is_ignored_and_then_cut_off(log: EventLog) -> None:
    log.append("step", 1, {})
    good = raw(log)
    log.close()
    log.path.write_bytes(good + b'{"kind":"st' + b"x" * 200_000)  # longer than one block of the backward search
    assert [e["step"] for e in read_events(log.path.parent)] == [1]
    again = EventLog(log.path.parent)
    assert raw(again) == good
    again.append("step", 2, {})
    assert [e["step"] for e in read_events(log.path.parent)] == [1, 2]


def test_nothing_but_a_torn_line(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_bytes(b'{"kind"')
    assert read_events(tmp_path) == [] and EventLog(tmp_path).position() == 0


@pytest.mark.parametrize("bad", [b"{", b"[1]", b"", b'{"kind":"a"}', b'{"kind":1,"step":1}', b'{"kind":"a","step":1.5}', b'{"kind":"a","step":NaN}', b"\xff"])
def test_a_corrupt_line_is_named(tmp_path: Path, bad: bytes) -> None:
    (tmp_path / "events.jsonl").write_bytes(b'{"kind":"a","step":1}\n' + bad + b'\n{"kind":"a","step":3}\n')
    for reader in (read_events, canonical_events):
        with pytest.raises(DataError, match=r"events\.jsonl:2: "):
            reader(tmp_path)


def test_no_log(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"events\.jsonl: cannot read.*is .* a run's folder"):
        read_events(tmp_path)


def test_truncate_forgets_exactly_the_later_lines(log: EventLog) -> None:
    log.append("step", 1, {})
    position = log.position()
    log.append("step", 2, {})
    with pytest.raises(DataError, match="no line ends at byte"):
        log.truncate(position - 1)
    with pytest.raises(DataError, match="lines were lost"):
        log.truncate(log.position() + 1)
    log.truncate(position)
    log.append("step", 3, {})
    assert [e["step"] for e in read_events(log.path.parent)] == [1, 3]
    log.truncate(0)
    assert raw(log) == b""


def test_canonical_events_leave_out_machine_and_moment(log: EventLog) -> None:
    for kind, step in [("session", 0), ("step", 1), ("timing", 1), ("result", 1)]:
        log.append(kind, step, {"x": 1})
    assert canonical_events(log.path.parent) == b'{"kind":"step","step":1,"x":1}\n{"kind":"result","step":1,"x":1}\n'


def test_secrets_are_not_written(log: EventLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "canary-123456")
    monkeypatch.setenv("MY_API_KEY", "canary-abcdef")
    monkeypatch.setenv("SHORT_KEY", "a")  # too short to be a secret: would blot out every a
    log.append("step", 0, {"url": "https://x?t=canary-123456", "nested": [{"canary-abcdef": "canary-abcdef"}], "api_key": "canary-config", "eos_token": "</s>"})
    text = raw(log).decode()
    assert "canary" not in text and "nested" in text
    assert read_events(log.path.parent)[0]["eos_token"] == "</s>"
