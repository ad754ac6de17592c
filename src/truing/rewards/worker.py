"""The process in which a reward function lives: ``python -m truing.rewards.worker module:function FD``.

It reads batches from the socket FD and answers each. The function's standard output goes to standard error and its input is
empty, so nothing it prints or reads can get into the protocol. It runs in the main thread, where signals work; a second
thread reads, and ends the whole process group when the run at the other end is gone, however that came about. Should the
function keep even that thread from running, a watchdog that needs no Python ends the process soon after its time is up.

Nothing but the standard library is imported here, so that a process starts in a few hundredths of a second.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import math
import numbers
import os
import queue
import signal
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

from truing.rewards.wire import Incoming, pack, receive

GRACE = 5.0  # seconds past its time after which the watchdog ends the process


def plain(value: Any) -> Any:
    """A scorer's answer as JSON can say it: numbers, lists of them, and for anything else a description ``{"type", "text"}``.

    Lists are taken two deep: a number a completion, or a list of numbers a completion.
    """
    if isinstance(value, str | bytes | dict) or not hasattr(value, "__iter__"):
        return _described(value)
    return [_item(v, deep=True) for v in value]


def _item(value: Any, deep: bool) -> Any:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        if deep and hasattr(value, "__iter__") and not isinstance(value, str | bytes | dict) and getattr(value, "ndim", 1) != 0:
            return [_item(v, deep=False) for v in value]
        return _described(value)
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _described(value: Any) -> dict[str, str]:
    try:
        text = repr(value)[:200]
    except Exception as error:  # a person's __repr__ can raise anything
        text = f"something whose repr raises {type(error).__name__}"
    return {"type": type(value).__name__, "text": text}


def find(target: str) -> Callable[..., Any]:
    """The function behind ``module:name``. Raises whatever importing it raises; TypeError when it is no function."""
    module, _, name = target.partition(":")
    found: Any = importlib.import_module(module)
    for step in name.split("."):
        found = getattr(found, step)
    if not callable(found):
        raise TypeError(f"a {type(found).__name__}, not a function of (prompts, completions)")
    return found


def told(error: BaseException) -> str:
    """Type and message of what was raised, on one line."""
    return f"{type(error).__name__}: {error}"[:300].replace("\n", " ")


def main(target: str, fd: int) -> None:
    channel = socket.socket(fileno=fd)
    channel.set_inheritable(False)
    incoming = Incoming()
    hello = receive(channel, incoming)
    if hello is None:
        return
    sys.path[:] = hello["path"]
    batches: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(channel, incoming, batches), daemon=True).start()
    try:
        function = find(target)
    except BaseException as error:  # importing a person's module can raise anything, SystemExit included
        channel.sendall(pack({"refused": told(error)}))
        return
    channel.sendall(pack({"ready": True}))
    with open(os.devnull, "w") as nowhere:
        while True:
            batch = batches.get()
            if batch["limit"] is not None:
                faulthandler.dump_traceback_later(batch["limit"] + GRACE, exit=True, file=nowhere)
            try:
                answer = {"values": plain(function(batch["prompts"], batch["completions"]))}
            except BaseException as error:  # a reward's own failure is data, whatever it raised
                answer = {"raised": told(error)}
            faulthandler.cancel_dump_traceback_later()
            channel.sendall(pack(answer))


def _listen(channel: socket.socket, incoming: Incoming, batches: queue.SimpleQueue[Any]) -> None:
    with contextlib.suppress(OSError, ValueError):
        while (batch := receive(channel, incoming)) is not None:
            batches.put(batch)
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
