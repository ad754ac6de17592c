"""Tensors and plain values as the bytes that are written and hashed; what cannot come back the same is refused."""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from truing.errors import CheckpointError, NonFiniteError

if TYPE_CHECKING:
    from torch import Tensor

_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_-]*$")

# The dtype names of the safetensors format.
_DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16",
    "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8", "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip


def digest(tensors: Mapping[str, Tensor | Mapping[str, Tensor]]) -> str:
    """The weights hash: SHA-256 over name, dtype, shape and bytes of every tensor, in the order of the names.

    Takes named tensors or groups of them (named ``group/name`` then). Equal exactly when every bit is equal.
    """
    h = hashlib.sha256()
    for name, tensor in sorted(_flat(tensors)):
        h.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode() + b"\n")
        h.update(_bytes(tensor))
    return h.hexdigest()


def _flat(tensors: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    for name, value in tensors.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}/{k}", t) for k, t in _flat(value))
        else:
            yield name, value


def _bytes(tensor: Tensor) -> memoryview:
    import torch

    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def check_group(group: str, named: Mapping[str, Tensor], root: Path, step: int) -> None:
    import torch

    if not _NAME.match(group):
        raise CheckpointError(f"{root}: tensor group {group!r} is used as a file name; use letters, digits, - and _")
    for name, tensor in named.items():
        if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided or str(tensor.dtype).removeprefix("torch.") not in _DTYPES:
            kind = f"{tensor.layout} {tensor.dtype}" if isinstance(tensor, torch.Tensor) else type(tensor).__name__
            raise CheckpointError(f"{root}: {group}/{name} is a {kind}; only dense tensors of real numbers are saved")
        if name == "__metadata__":
            raise CheckpointError(f"{root}: {group}/{name}: the format reserves this name")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            bad = f"{int((~torch.isfinite(tensor)).sum())} of {tensor.numel()} numbers of {group}/{name}"
            raise NonFiniteError(f"step {step}: {bad} are NaN or infinite; not saved, earlier checkpoints in {root} stay")


def state_bytes(state: Mapping[str, Any], root: Path, step: int) -> bytes:
    try:
        # Python's encoder refuses NaN (orjson would write null) and keeps integers of any size.
        text = json.dumps(dict(state), sort_keys=True, allow_nan=False, ensure_ascii=True, separators=(",", ":"))
    except ValueError as error:
        raise NonFiniteError(f"step {step}: state {_non_finite(state)} is NaN or infinite; not saved, earlier checkpoints in {root} stay") from error
    except TypeError as error:
        raise CheckpointError(f"{root}: the state of step {step} is not plain JSON: {error}") from error
    wrong = [k for k in _keys(state) if not isinstance(k, str)]
    if wrong:
        raise CheckpointError(f"{root}: the state of step {step} has the key {wrong[0]!r}, which would come back as a string; use strings")
    return text.encode()


def _keys(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        yield from value
    for child in value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ():
        yield from _keys(child)


def _non_finite(value: Any, place: str = "") -> str:
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    for key, child in items:
        if found := _non_finite(child, f"{place}.{key}" if place else str(key)):
            return found
    return place if isinstance(value, float) and not math.isfinite(value) else ""


def safetensors(named: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """The safetensors format piece by piece: header length, JSON header, raw bytes.

    The library's writer needs the whole file in memory or on disk before it can be hashed; this hashes what was meant to be
    written, one tensor at a time. Reading is the library's.
    """
    header: dict[str, Any] = {}
    end = 0
    # Wider types first keeps every tensor aligned to its own size, as the library does.
    order = sorted(named, key=lambda k: (-named[k].element_size(), k))
    for name in order:
        t = named[name]
        start, end = end, end + t.numel() * t.element_size()
        header[name] = {"dtype": _DTYPES[str(t.dtype).removeprefix("torch.")], "shape": list(t.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield struct.pack("<Q", len(text)) + text
    for name in order:
        yield _bytes(named[name])
