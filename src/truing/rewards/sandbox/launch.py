"""The supervisor outside a sandbox: starts the fork server with less than it has itself, and leaves nothing behind when it ends.

It is run as ``python -I -S launch.py SETTINGS`` and needs nothing but the standard library. Why it exists:

- bubblewrap leaves a zombie to process 1, which in a container may never look. This process is a subreaper and waits for all.
- The end of a run, however it came about, closes the lifeline, a socket between the two. Then everything is killed.
- As root, the fork server gets another user first: root without capabilities can still write what root owns, ``/proc/sys`` for
  one. Should Python live where that user cannot go (a root's home), a mount namespace of its own shows him that one folder.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import sys
from typing import Any

NEW_MOUNTS, BIND, RECURSIVE, PRIVATE, READ_ONLY, REMOUNT = 0x20000, 4096, 16384, 1 << 18, 1, 32
ORDERLY = 200  # milliseconds
DEATH_SIGNAL, NO_NEW_PRIVILEGES, SUBREAPER = 1, 38, 36


def _called(result: int, what: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def show(libc: Any, folders: list[str], cover: str) -> None:
    """Let others see these folders and nothing else below ``cover``, in this process and those it starts."""
    _called(libc.unshare(NEW_MOUNTS), "a mount namespace")
    kept = [os.open(folder, os.O_PATH) for folder in folders]
    _called(libc.mount(b"none", b"/", None, RECURSIVE | PRIVATE, None), "private mounts")
    _called(libc.mount(b"none", cover.encode(), b"tmpfs", 0, b"mode=755,size=1m"), f"a cover on {cover}")
    for folder, fd in zip(folders, kept, strict=True):
        os.makedirs(folder, mode=0o755, exist_ok=True)
        _called(libc.mount(f"/proc/self/fd/{fd}".encode(), folder.encode(), None, BIND | RECURSIVE, None), f"showing {folder}")
        _called(libc.mount(None, folder.encode(), None, BIND | REMOUNT | READ_ONLY, None), f"showing {folder} read-only")
        os.close(fd)


def drop(user: int) -> None:
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)


def become(libc: Any, settings: dict[str, Any], parent: int) -> None:
    """In the child: the other user, the server's program as standard input, an empty environment, and go."""
    if settings["user"] is not None:
        drop(settings["user"])
    libc.prctl(DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)
    if settings["sealed"]:
        _called(libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0), "no new privileges")
    os.dup2(settings["program"], 0)
    os.lseek(0, 0, os.SEEK_SET)
    os.closerange(3, settings["channel"])
    os.closerange(settings["channel"] + 1, 1 << 16)
    os.execve(settings["command"][0], settings["command"], {})


def main() -> int:
    settings = json.loads(sys.argv[1])
    libc = ctypes.CDLL(None, use_errno=True)
    os.chdir("/")
    os.set_inheritable(settings["channel"], True)
    _called(libc.prctl(SUBREAPER, 1, 0, 0, 0), "being a subreaper")
    if settings["cover"]:
        show(libc, [settings["shown"]], settings["cover"])
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        try:
            become(libc, settings, parent)
        except BaseException as error:
            os.write(2, f"{error}\n".encode())
        finally:
            os._exit(1)
    os.close(settings["channel"])
    gone = os.pidfd_open(child)
    poller = select.poll()
    for fd in (gone, settings["lifeline"]):
        poller.register(fd, select.POLLIN)
    if gone not in dict(poller.poll()):
        poller.unregister(settings["lifeline"])
        poller.poll(ORDERLY)  # the fork server sees the end of its channel, and leaves by itself
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    code = 1
    with contextlib.suppress(ChildProcessError):
        while True:  # the child, and whatever was left to us: bubblewrap's own process 1, a fork server's last child
            pid, status = os.wait()
            if pid == child:
                code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    try:
        sys.exit(main())
    except OSError as error:
        print(error.strerror or error, file=sys.stderr)
        sys.exit(1)
