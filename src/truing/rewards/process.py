"""A reward function in a process of its own: it may hang, crash or take the process along, within bounded time."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import weakref
from pathlib import Path
from typing import Any

import truing
from truing.rewards.wire import Incoming, pack

START = 120.0  # seconds to import the function's module
LOOK = 0.25  # seconds between looks whether the process is still there: one that forked can die without closing the socket
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "NUMEXPR_NUM_THREADS"), "1")


class Died(Exception):
    """The process ended without an answer; the message says how."""


class Refused(Exception):
    """The function cannot be imported."""


class Process:
    """Starts a worker when it is needed, asks it, ends it when it is late, and starts another for the next batch."""

    def __init__(self, target: str) -> None:
        self.target = target
        self._running: tuple[subprocess.Popen[bytes], socket.socket] | None = None
        self._end: weakref.finalize[Any, Any] | None = None

    @property
    def pid(self) -> int | None:
        return self._running[0].pid if self._running else None

    def start(self, limit: float = START) -> None:
        """Be ready for a batch. Raises Refused when the function cannot be imported, TimeoutError, or Died."""
        if self._running is not None:
            return
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                child = _spawn(self.target, theirs.fileno())
            except BaseException:
                ours.close()
                raise
        self._running = (child, ours)
        self._end = weakref.finalize(self, _end, child, ours)
        answer = self._exchange({"path": _path()}, limit)
        if "refused" in answer:
            self.close()
            raise Refused(answer["refused"])

    def ask(self, prompts: list[str], completions: list[str], limit: float) -> Any:
        """The worker's answer. Raises TimeoutError (the process is gone by then), Died or Refused."""
        self.start()
        return self._exchange({"prompts": prompts, "completions": completions, "limit": limit}, limit)

    def close(self) -> None:
        """End the process and everything it started; it is started again when it is asked again."""
        if self._end is not None:
            self._end()
        self._running = self._end = None

    def _exchange(self, message: Any, limit: float) -> Any:
        if self._running is None:
            raise Died("it was not started")
        child, channel = self._running
        deadline = time.monotonic() + limit
        incoming = Incoming()
        try:
            channel.settimeout(limit)
            channel.sendall(pack(message))
            while (answer := incoming.take()) is None:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError
                channel.settimeout(min(left, LOOK))
                try:
                    data = channel.recv(1 << 16)
                except TimeoutError:
                    if child.poll() is None:
                        continue
                    data = b""
                if not data:
                    raise ConnectionError
                incoming.feed(data)
            return answer
        except TimeoutError:
            self.close()
            raise
        except (OSError, ValueError) as error:  # the stream ended, or holds what is no message
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(1.0)
            code = child.poll()
            self.close()
            raise Died(_how(code) if code is not None else f"it broke the connection ({error})") from None
        except BaseException:  # Ctrl-C while it is asked: an answer would be left in the stream
            self.close()
            raise


def _spawn(target: str, fd: int) -> subprocess.Popen[bytes]:
    home = str(Path(truing.__file__).parents[1])
    found = [home, *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.Popen(
        [sys.executable, "-P", "-u", "-m", "truing.rewards.worker", target, str(fd)], pass_fds=(fd,), stdin=subprocess.DEVNULL, stdout=_standard_error(),
        start_new_session=True, env={**os.environ, **ONE_THREAD, "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": os.pathsep.join(found)},
    )  # fmt: skip


def _standard_error() -> int:
    """Where the function's prints go: beside its errors, never into what the run itself prints."""
    try:
        os.fstat(2)
        return 2
    except OSError:
        return subprocess.DEVNULL


def _path() -> list[str]:
    return [entry or os.getcwd() for entry in sys.path]


def _end(child: subprocess.Popen[bytes], channel: socket.socket) -> None:
    channel.close()
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(5.0)


def _how(code: int) -> str:
    if code >= 0:
        return f"its process exited with status {code}"
    try:
        return f"its process was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"its process was killed by signal {-code}"
