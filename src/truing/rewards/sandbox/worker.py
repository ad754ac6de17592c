"""One fork server, seen from outside: started, fed, listened to, and ended whatever state it is in."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
import weakref
from collections import deque
from pathlib import Path
from typing import Any

from truing.rewards.sandbox.jobs import Job
from truing.rewards.sandbox.tiers import Tier
from truing.rewards.wire import Incoming, pack, receive

HERE = Path(__file__).parent
JOB, REPLY = struct.Struct(">QqBII"), struct.Struct(">QBdI")
START = 30.0  # seconds until a fork server must be ready
LARGEST = 1 << 26


class Lost(Exception):
    """The fork server is gone, or could not be started, or says what it never should; the message says how."""


class Worker:
    """A fork server of a tier.

    Attributes:
        todo: jobs that are to be sent.
        asked: numbers of the jobs that were sent and are not answered, in order.
        since: when the first of them became the first.
        tells: what the server said of itself when it was ready.
    """

    def __init__(self, tier: Tier, setup: dict[str, Any]) -> None:
        self.todo: deque[int] = deque()
        self.asked: deque[int] = deque()
        self.since = 0.0
        self.tells: dict[str, Any] = {}
        self._out, self._in = bytearray(), bytearray()
        self.channel, theirs = socket.socketpair()
        lifeline, held = socket.socketpair()
        reading, writing = os.pipe()
        program = os.memfd_create("server")
        try:
            os.write(program, (HERE / "server.py").read_bytes())
            settings = {
                "command": [*tier.command, str(theirs.fileno())], "user": tier.user, "sealed": tier.sealed, "shown": tier.shown, "cover": tier.cover,
                "channel": theirs.fileno(), "lifeline": held.fileno(), "program": program,
            }  # fmt: skip
            launcher = subprocess.Popen(
                [getattr(sys, "_base_executable", None) or sys.executable, "-I", "-S", "-B", str(HERE / "launch.py"), json.dumps(settings)],
                pass_fds=(theirs.fileno(), held.fileno(), program), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=writing, start_new_session=True, env={},
            )  # fmt: skip
        except BaseException:
            for end in (self.channel, lifeline):
                end.close()
            os.close(reading)
            raise
        finally:
            theirs.close()
            held.close()
            os.close(writing)
            os.close(program)
        self.pid = launcher.pid
        self._errors = reading
        self._end = weakref.finalize(self, _end, launcher, self.channel, lifeline, reading, os.getpid())
        self._launcher = launcher
        self._out += pack(setup)

    def wait(self) -> None:
        """Until it is ready. Raises Lost, with what it said."""
        self.channel.settimeout(START)
        try:
            self.channel.sendall(self._out)
            self._out.clear()
            answer = receive(self.channel, Incoming())
        except TimeoutError:
            raise Lost(f"it was not ready after {START:g} s") from None
        except (OSError, ValueError):
            answer = None
        if answer is None:
            raise Lost(self.last_words())
        if "refused" in answer:
            raise Lost(answer["refused"])
        self.tells = answer
        self.channel.setblocking(False)

    def last_words(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._launcher.wait(5.0)
        os.set_blocking(self._errors, False)
        try:
            said = os.read(self._errors, 4096).decode("utf-8", "replace").strip()
        except BlockingIOError:
            said = ""
        code = self._launcher.poll()
        return said.splitlines()[-1][:300] if said else "its process still runs" if code is None else f"its process ended with status {code}"

    def ask(self, number: int, job: Job, group: int) -> None:
        if not self.asked:
            self.since = time.monotonic()
        self.asked.append(number)
        code = json.dumps({"code": job.code, "function": job.function, "args": job.args}).encode("ascii")
        text = job.stdin.encode("utf-8", "surrogatepass")
        self._out += JOB.pack(number, group, job.function is None, len(code), len(text)) + code + text

    @property
    def wants_to_send(self) -> bool:
        return bool(self._out)

    def send(self) -> None:
        """As much as goes without waiting. Raises Lost."""
        try:
            while self._out:
                del self._out[: self.channel.send(self._out)]
        except BlockingIOError:
            return
        except OSError as error:
            raise Lost(f"it stopped listening ({error})") from None

    def hear(self) -> list[tuple[int, int, float, bytes]]:
        """(number, what became of it, seconds, payload) of each job that is answered by now. Raises Lost."""
        try:
            data = self.channel.recv(1 << 18)
        except BlockingIOError:
            return []
        except OSError:  # it died with something unread
            data = b""
        if not data:
            raise Lost(self.last_words())
        self._in += data
        found = []
        while len(self._in) >= REPLY.size:
            number, kind, seconds, length = REPLY.unpack_from(self._in)
            if length > LARGEST or not self.asked or number != self.asked[0]:
                raise Lost("it says what it was not asked")
            if len(self._in) < REPLY.size + length:
                break
            found.append((number, kind, seconds, bytes(self._in[REPLY.size : REPLY.size + length])))
            del self._in[: REPLY.size + length]
            self.asked.popleft()
            self.since = time.monotonic()
        return found

    def close(self) -> None:
        """End it and everything it started; returns when all of it is gone."""
        self._end()


def _end(launcher: subprocess.Popen[bytes], channel: socket.socket, lifeline: socket.socket, errors: int, owner: int) -> None:
    mine = os.getpid() == owner  # a forked copy of this process only lets go
    for end in (channel, lifeline):
        with contextlib.suppress(OSError):
            if mine:
                end.shutdown(socket.SHUT_RDWR)
        end.close()
    os.close(errors)
    if mine:
        try:
            launcher.wait(5.0)
        except subprocess.TimeoutExpired:  # it is stopped, or worse
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(launcher.pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                launcher.wait(5.0)
