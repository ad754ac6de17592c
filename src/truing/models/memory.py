"""Counting bytes: what tensors hold, what a forward keeps for its backward, and what the process has in memory."""

from __future__ import annotations

import re
import resource
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


def storages(*things: Any) -> dict[int, int]:
    """Address -> bytes of every tensor storage within these things: modules, roles, scorers, and what they are made of. Shared ones count once."""
    found: dict[int, int] = {}
    seen: set[int] = set()
    waiting = list(things)
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, Tensor):
            storage = thing.untyped_storage()
            if storage.nbytes():
                found[storage.data_ptr()] = storage.nbytes()
        elif isinstance(thing, nn.Module):
            waiting += [*thing.parameters(), *thing.buffers()]
        elif isinstance(thing, Mapping):
            waiting += thing.values()
        elif isinstance(thing, list | tuple | set):
            waiting += thing
        elif type(thing).__module__.startswith("truing."):
            waiting += vars(thing).values() if hasattr(thing, "__dict__") else [getattr(thing, name, None) for name in getattr(thing, "__slots__", ())]
    return found


def kept(forward: Callable[[], Any], known: Mapping[int, int]) -> int:
    """Bytes that autograd keeps for the backward of ``forward``, beside storages that are ``known`` already (the weights)."""
    found: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        graph = forward()  # held until all is counted, so that no address is used twice
    del graph
    return sum(found.values())


def resident() -> int:
    """Bytes of this process that are in memory now (the most so far, where the system does not say)."""
    try:
        return int(re.findall(r"VmRSS:\s*(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8", errors="replace"))[0]) * 1024
    except (OSError, IndexError):
        return highest()


def highest() -> int:
    """Most bytes of this process that have been in memory."""
    try:
        return int(re.findall(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8", errors="replace"))[0]) * 1024
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
