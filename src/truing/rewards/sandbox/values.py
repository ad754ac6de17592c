"""Values that come out of a sandbox: read with suspicion, and compared type by type.

What a child sends was written by the code under test, so nothing of it is ever turned into an object with a hash or an ``==`` of
its own: it stays what JSON holds (``server.py`` says how tuples, sets and dicts are written), and is held against the expected value.
"""

from __future__ import annotations

import json
import math
from typing import Any

DEEPEST = 200  # brackets within brackets; a value of the deepest 64 levels needs up to three each
DIGITS = 4300  # of a whole number, as in Python itself: reading more takes time that grows with their square
_BACKSLASH, _QUOTE, _OPEN, _CLOSE = 92, 34, b"[{", b"]}"


class Unreadable(ValueError):
    """What was sent is not one small, finite value."""


def read(payload: bytes) -> Any:
    """One JSON value. Raises Unreadable for anything else: two values, NaN or an infinity, huge numbers, deep nesting, text that is no JSON."""
    if payload.count(b"[") + payload.count(b"{") > DEEPEST and _deep(payload):
        raise Unreadable(f"brackets are nested deeper than {DEEPEST}")
    try:
        return json.loads(payload, parse_constant=_constant, parse_int=_whole, parse_float=_real)
    except Unreadable:
        raise
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"not one JSON value ({str(error)[:80]})") from None


def _deep(payload: bytes) -> bool:
    depth, inside, escaped = 0, False, False
    for byte in payload:
        if inside:
            inside, escaped = escaped or byte != _QUOTE, byte == _BACKSLASH and not escaped
        elif byte == _QUOTE:
            inside = True
        elif byte in _OPEN:
            depth += 1
            if depth > DEEPEST:
                return True
        elif byte in _CLOSE:
            depth -= 1
    return False


def _constant(name: str) -> float:
    raise Unreadable(f"{name} is no value")


def _whole(digits: str) -> int:
    if len(digits) > DIGITS:
        raise Unreadable(f"a whole number of {len(digits)} digits")
    return int(digits)


def _real(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise Unreadable(f"{digits[:40]} is not finite")
    return value


def same(expected: Any, got: Any, tolerance: float = 0.0, loose: bool = False) -> bool:
    """Whether two values are of the same types throughout, and equal.

    ``True``, ``1`` and ``1.0`` differ, and so do a list and a tuple. The order of sets and dicts does not matter.

    Args:
        tolerance: by how much floats may differ, absolutely or relative to the expected one; 0 means not at all. Not within sets and keys.
        loose: take whole numbers and floats for the same kind (truth values stay apart), as ``==`` does.

    >>> same([1, {"$tuple": [2.0]}], [1, {"$tuple": [2.0]}]), same(1, True), same(1, 1.0), same(1, 1.0, loose=True), same(0.3, 0.30000001, tolerance=1e-6)
    (True, False, False, True, True)
    >>> same({"$set": [1, 2]}, {"$set": [2, 1]}), same({"$set": [1, 2]}, {"$set": [1, 1]})
    (True, False)
    """
    if type(expected) is not type(got):
        if not (loose and {type(expected), type(got)} == {int, float}):
            return False
        return _close(expected, got, tolerance)
    if type(expected) is float:
        return _close(expected, got, tolerance)
    if type(expected) is list:
        return len(expected) == len(got) and all(same(e, g, tolerance, loose) for e, g in zip(expected, got, strict=True))
    if type(expected) is dict:
        if expected.keys() != got.keys():
            return False
        if len(expected) == 1:
            if "$set" in expected:
                return _members(expected["$set"], loose) == _members(got["$set"], loose)
            if "$dict" in expected:
                return _same_pairs(expected["$dict"], got["$dict"], tolerance, loose)
        return all(same(value, got[key], tolerance, loose) for key, value in expected.items())
    return bool(expected == got)


def _close(expected: float, got: float, tolerance: float) -> bool:
    try:
        return expected == got or abs(expected - got) <= tolerance * max(1.0, abs(expected))
    except OverflowError:  # a whole number beyond all floats
        return False


def _members(values: Any, loose: bool) -> list[str] | None:
    return sorted({_text(v, loose) for v in values}) if type(values) is list else None


def _same_pairs(expected: list[Any], got: Any, tolerance: float, loose: bool) -> bool:
    if type(got) is not list or len(got) != len(expected) or any(type(pair) is not list or len(pair) != 2 for pair in got):
        return False
    theirs = {_text(key, loose): value for key, value in got}
    ours = {_text(key, loose): value for key, value in expected}
    return ours.keys() == theirs.keys() and all(same(value, theirs[key], tolerance, loose) for key, value in ours.items())


def _text(wire: Any, loose: bool) -> str:
    """Equal values as equal texts."""
    if type(wire) is float and loose and wire.is_integer():
        return str(int(wire))
    if type(wire) is list:
        return "[" + ",".join(_text(v, loose) for v in wire) + "]"
    if type(wire) is dict:
        members = _members(wire["$set"], loose) if wire.keys() == {"$set"} else None
        return "{" + ",".join(members if members is not None else sorted(json.dumps(k) + ":" + _text(v, loose) for k, v in wire.items())) + "}"
    return json.dumps(wire)
