"""The fork server: the one program that runs inside the sandbox, and forks a fresh process for each input.

Its text is handed to ``python -I -S -`` there, and it needs nothing but the standard library. It reads jobs from a socket, one at a
time and not a byte ahead, and answers each with what became of it. What a child should have answered is not in here, and neither
is what others answered: the server never looks into a job or an answer, and holds them in one block of memory that it blanks after each. A
child is a copy of the server, and would find there the solutions of the completions before it.

The child runs text of a model as code: that is what this file is for, and why it runs nowhere but in here. The child has a session
of its own, no descriptor but null and its one or two pipes, limits, a Landlock domain that reads the standard library and
nothing else and writes nowhere, and a filter of system calls without fork, exec, threads, signals and sockets. A result that it
forges is a value like any other.

A value is said in JSON, with ``{"$tuple": [...]}``, ``{"$set": [...]}`` and ``{"$dict": [[key, value], ...]}`` for what JSON lacks. Only the
plain types themselves count, none of their subclasses, which could lie about themselves.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import math
import os
import resource
import select
import signal
import socket
import struct
import sys
import time
import types
from collections import Counter, OrderedDict, defaultdict
from typing import Any

# Imported before any child is made, so that children have them at once; all else of the standard library is still to be had.
# Every library more makes each fork slower.
PRELOAD = "abc bisect collections copy enum functools heapq io itertools math operator random re string typing".split()
HEAD, JOB, REPLY = struct.Struct(">Q"), struct.Struct(">QqBII"), struct.Struct(">QBdI")
VALUE, OUTPUT, EXITED, KILLED, LATE, LARGE = range(6)  # what became of a job
READY = b"+"  # a child's first byte, said before the code under test runs: without it the failure is the sandbox's own
DEEPEST = 64
READ_FILE, READ_DIR, WRITE_FILE = 4, 8, 2  # rights of Landlock
MAPPINGS = (dict, Counter, OrderedDict, defaultdict)


def plain(value: Any, depth: int = 0) -> Any:
    """A value as JSON can say it. Raises TypeError for anything but plain data, ValueError for what is nested too deep."""
    kind = type(value)
    if depth > DEEPEST:
        raise ValueError(f"nested deeper than {DEEPEST}")
    if kind in (int, float, str, bool, type(None)):
        return value
    if kind is list:
        return [plain(v, depth + 1) for v in value]
    if kind is tuple:
        return {"$tuple": [plain(v, depth + 1) for v in value]}
    if kind in (set, frozenset):
        return {"$set": [plain(v, depth + 1) for v in value]}
    if kind in MAPPINGS:
        pairs = list(dict.items(value))
        if all(type(k) is str and k[:1] != "$" for k, _ in pairs):
            return {k: plain(v, depth + 1) for k, v in pairs}
        return {"$dict": [[plain(k, depth + 1), plain(v, depth + 1)] for k, v in pairs]}
    raise TypeError(f"a {kind.__name__}, which is no plain data")


def built(wire: Any) -> Any:
    """The value that ``plain`` said."""
    if isinstance(wire, list):
        return [built(v) for v in wire]
    if isinstance(wire, dict):
        if len(wire) == 1:
            ((key, inner),) = wire.items()
            if key == "$tuple":
                return tuple(built(v) for v in inner)
            if key == "$set":
                return {frozenset(v) if isinstance(v, set) else v for v in map(built, inner)}
            if key == "$dict":
                return {built(k): built(v) for k, v in inner}
        return {k: built(v) for k, v in wire.items()}
    return wire


class Server:
    def __init__(self, channel: socket.socket, setup: dict[str, Any]) -> None:
        self.channel, self.setup = channel, setup
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.code = ctypes.create_string_buffer(bytes.fromhex(setup["filter"]))
        self.filter = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(setup["filter"]) // 16, ctypes.addressof(self.code)))
        self.null = os.open(os.devnull, os.O_RDWR)
        self.pid = os.getpid()
        self.late = -1  # the group whose time ran out: its other jobs are not tried
        self.most = setup["answer"] + len(READY) + 1  # bytes of an answer; one more is too many
        self.job, self.answer = memoryview(bytearray(1 << 16)), memoryview(bytearray(2 * self.most))
        self.used = 0
        self.ruleset, self.abi = self._landlock()
        for what, most in (
            (resource.RLIMIT_AS, setup["memory"]), (resource.RLIMIT_NOFILE, 64), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_MEMLOCK, 0), (resource.RLIMIT_MSGQUEUE, 0),
        ):  # fmt: skip  the children's limits, as far as this process can live with them
            resource.setrlimit(what, (most, most))
        self.prctl(38, 1)  # PR_SET_NO_NEW_PRIVS
        self.prctl(4, 0)  # PR_SET_DUMPABLE: nobody of the same user may look into this process

    def prctl(self, *numbers: int) -> None:
        args = [ctypes.c_ulong(n) for n in (*numbers, 0, 0, 0, 0)[:5]]
        if self.libc.prctl(*args):
            raise OSError(ctypes.get_errno(), f"prctl({numbers[0]}) was refused")

    def _landlock(self) -> tuple[int, int]:
        """A ruleset that children enter: to read the standard library, and nothing else."""
        call = self.libc.syscall
        abi = call(444, None, ctypes.c_size_t(0), 1)
        if abi < 1:
            raise OSError(ctypes.get_errno(), "the kernel has no Landlock (Linux 5.13 and newer have it, if it is among the lsm= of the boot line)")
        access = (1 << (13 + (abi >= 2) + (abi >= 3))) - 1 | (1 << 15 if abi >= 5 else 0)
        rules = struct.pack("=QQQ", access, 3, 3)[: 24 if abi >= 6 else 16 if abi >= 4 else 8]  # files; binding and connecting; signals and abstract sockets
        ruleset = call(444, rules, ctypes.c_size_t(len(rules)), 0)
        if ruleset < 0:
            raise OSError(ctypes.get_errno(), "Landlock was refused")
        for path, rights in self._readable():
            try:
                fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
            except OSError:
                continue
            if not os.path.isdir(path):
                rights &= READ_FILE | WRITE_FILE  # a right to read directories on a plain file is EINVAL
            refused = call(445, ruleset, 1, struct.pack("=Qi", rights, fd), 0)
            os.close(fd)
            if refused:
                raise OSError(ctypes.get_errno(), f"Landlock refused {path}")
        return ruleset, abi

    def _readable(self) -> list[tuple[str, int]]:
        found = [(path, READ_FILE | READ_DIR) for path in ("/usr/lib", "/usr/lib64", "/lib", "/lib64", "/usr/share/zoneinfo", "/etc/ld.so.cache", "/dev/urandom")]
        library = os.path.dirname(os.__file__)
        found += [(library, READ_DIR)]  # names only; installed packages stay shut
        found += [(e.path, READ_FILE | READ_DIR) for e in os.scandir(library) if e.name not in ("site-packages", "dist-packages")]
        above = os.path.dirname(library)
        found += [(e.path, READ_FILE) for e in os.scandir(above) if ".so" in e.name]
        return [*found, (os.devnull, READ_FILE | WRITE_FILE)]

    def serve(self) -> None:
        while len(head := self.channel.recv(JOB.size, socket.MSG_WAITALL)) == JOB.size:
            number, group, program, code, text = JOB.unpack(head)
            if not self.receive(code + text):
                return
            began = time.monotonic()
            if group >= 0 and group == self.late:
                kind, size = LATE, 0
                self.job[: code + text] = bytes(code + text)
            else:
                kind, size = self.execute(bool(program), code, code + text, began + self.setup["wall"])
                if kind == LATE:
                    self.late = group
            self.channel.sendall(REPLY.pack(number, kind, time.monotonic() - began, size))
            self.channel.sendall(self.answer[:size])
            self.answer[: self.used] = bytes(self.used)

    def receive(self, size: int) -> bool:
        """Fill the block with a job. False at the end of the stream."""
        if size > len(self.job):
            self.job = memoryview(bytearray(size))  # the one before was blanked
        got = 0
        while got < size:
            more = self.channel.recv_into(self.job[got:size])
            if not more:
                return False
            got += more
        return True

    def execute(self, program: bool, code: int, end: int, deadline: float) -> tuple[int, int]:
        """Run the job in the block: what became of it, and the size of the answer."""
        given = self.null
        if program:
            given = os.memfd_create("stdin")
            for at in range(code, end, 1 << 20):
                os.write(given, self.job[at : min(end, at + (1 << 20))])
            os.lseek(given, 0, os.SEEK_SET)
        told, tell = os.pipe()
        printed, show = os.pipe() if program else (-1, self.null)
        child = os.fork()
        if child == 0:
            leave = os._exit
            try:
                self.confine(given, show, tell)
                os.write(tell, READY)
                run(json.loads(bytes(self.job[:code])), tell)
            finally:
                leave(97)
        self.job[:end] = bytes(end)
        os.close(tell)
        if program:
            os.close(show)
            os.close(given)
        try:
            return self.watch(child, told, printed, deadline)
        finally:
            os.close(told)
            if program:
                os.close(printed)

    def confine(self, given: int, show: int, tell: int) -> None:
        """Give up, in the child, everything that the code under test must not have."""
        self.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != self.pid:
            os._exit(98)
        os.setsid()
        os.dup2(given, 0)
        os.dup2(show, 1)
        if self.libc.syscall(446, self.ruleset, 0):
            os._exit(98)
        os.closerange(3, tell)
        os.closerange(tell + 1, 1 << 20)
        seconds = math.ceil(self.setup["seconds"]) + 1
        for what, most in ((resource.RLIMIT_CPU, seconds), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_NPROC, 0)):
            resource.setrlimit(what, (most, most))
        self.prctl(22, 2, ctypes.addressof(self.filter))  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER

    def watch(self, child: int, told: int, printed: int, deadline: float) -> tuple[int, int]:
        """Read what the child says until it is gone; end it when it is late or says too much.

        What it told lies at the start of the block, what it printed behind that, from ``self.most`` on.
        """
        gone = os.pidfd_open(child)
        poller = select.poll()
        starts = {told: 0, printed: self.most} if printed >= 0 else {told: 0}
        ends = dict(starts)
        for fd in (gone, *starts):
            poller.register(fd, select.POLLIN)
        poller.register(self.channel, 0)  # only whether the other end is still there
        kind = None
        while kind is None:
            # Alone it can use no more processor than passes on the clock; beside others it has the clock's longer limit.
            left = min(self.setup["seconds"] - time.clock_gettime(~child << 3 | 2), deadline - time.monotonic())
            if left <= 0:
                kind = LATE
                break
            for fd, _ in poller.poll(left * 1000):
                if fd == gone:
                    kind = VALUE
                elif fd in starts:
                    more = self.hear(fd, starts, ends)
                    if more == 0:
                        poller.unregister(fd)
                    elif more < 0:
                        kind = LARGE
                else:
                    os.kill(child, signal.SIGKILL)
                    os._exit(0)
        os.close(gone)
        os.kill(child, signal.SIGKILL)  # of one that is gone but not waited for, this does nothing
        status = os.waitpid(child, 0)[1]
        for fd in starts:
            while (more := self.hear(fd, starts, ends)) > 0:
                pass
            if more < 0 and kind == VALUE:
                kind = LARGE
        self.used = max(ends.values())
        if bytes(self.answer[: len(READY)]) != READY:
            os._exit(1)  # the run sees a lost fork server, and starts another
        if kind in (LATE, LARGE):
            return kind, 0
        if os.WIFSIGNALED(status):
            return KILLED, self.say(str(os.WTERMSIG(status)))
        silent = ends[told] == len(READY)
        if os.WEXITSTATUS(status) or (printed < 0 and silent):
            return EXITED, self.say(str(os.WEXITSTATUS(status)))
        return (OUTPUT, self.front(self.most, ends[printed])) if printed >= 0 and silent else (VALUE, self.front(len(READY), ends[told]))

    def hear(self, fd: int, starts: dict[int, int], ends: dict[int, int]) -> int:
        """Read once: how many bytes, 0 at the end of the stream, -1 when it is too much."""
        if ends[fd] >= starts[fd] + self.most:
            return -1
        more = os.readv(fd, [self.answer[ends[fd] : starts[fd] + self.most]])
        ends[fd] += more
        return more

    def say(self, text: str) -> int:
        self.answer[: len(text)] = text.encode()
        return len(text)

    def front(self, start: int, end: int) -> int:
        """Move part of the block to its start."""
        self.answer[: end - start] = self.answer[start:end]
        return end - start


def run(job: dict[str, Any], tell: int) -> None:
    """Run the code under test, tell its value on the pipe, and leave."""
    leave, write, dumps = os._exit, os.write, json.dumps
    program = job["function"] is None  # else a function is called
    try:
        module = types.ModuleType("__main__" if program else "solution")
        sys.modules[module.__name__] = module
        exec(compile(job["code"], "<solution>", "exec", dont_inherit=True), module.__dict__)  # noqa: S102  this process is made to run it
        if program:
            answer = b""
        else:
            value = module.__dict__[job["function"]](*built(job["args"]))
            answer = dumps({"value": plain(value)}, allow_nan=False).encode()
    except BaseException as error:
        answer = b"" if program and isinstance(error, SystemExit) and error.code in (None, 0) else dumps({"raised": _told(error)}).encode()
    for stream in (sys.stdout, sys.__stdout__) if program else ():
        with contextlib.suppress(BaseException):  # it may be closed, or something else by now
            stream.flush()  # type: ignore[union-attr]
    while answer:
        answer = answer[write(tell, answer) :]
    leave(0)


def _told(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"[:300]
    except BaseException:  # a hostile __str__
        return type(error).__name__[:300]


def receive(channel: socket.socket) -> Any:
    """The next message, and not a byte of the one after it; None at the end of the stream."""
    head = channel.recv(HEAD.size, socket.MSG_WAITALL)
    if len(head) < HEAD.size:
        return None
    body = bytearray()
    (length,) = HEAD.unpack(head)
    while len(body) < length:
        data = channel.recv(min(length - len(body), 1 << 20))
        if not data:
            return None
        body += data
    return json.loads(bytes(body))


def main() -> None:
    channel = socket.socket(fileno=int(sys.argv[1]))
    channel.set_inheritable(False)
    setup = receive(channel)
    if setup is None:
        return
    os.environ.clear()
    for name in PRELOAD:
        importlib.import_module(name)
    try:
        server = Server(channel, setup)
        answer = {"landlock": server.abi, "python": sys.version.split()[0], "uid": os.getuid()}
    except OSError as error:
        answer = {"refused": str(error.strerror or error)}
    body = json.dumps(answer).encode()
    channel.sendall(HEAD.pack(len(body)) + body)
    if "refused" in answer:
        return
    for fd in (0, 1, 2):
        os.dup2(server.null, fd)
    gc.collect()
    gc.freeze()  # what is here by now is never collected, so that children share its pages
    server.serve()


if __name__ == "__main__":
    main()
