"""Durable writing: what is reported as written survives a crash, and a disk that fails says so in one sentence.

Only the ``os`` module touches the disk here, so that a test can make any single operation fail.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from pathlib import Path

from truing.errors import CheckpointError

_REMEDIES = {
    errno.ENOSPC: "free some space there",
    errno.EDQUOT: "raise the quota or delete something",
    errno.EIO: "the device reports an error: check it (dmesg), or move the run to another disk",
    errno.EROFS: "the file system is read-only: choose another folder",
    errno.EACCES: "you may not write there: choose another folder, or change its permissions",
    errno.EPERM: "you may not write there: choose another folder, or change its permissions",
    errno.ENOTDIR: "a file stands where a folder is needed: choose another name",
    errno.EEXIST: "a file stands where a folder is needed: choose another name",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENAMETOOLONG: "choose a shorter name",
}


def disk_error(path: Path, error: OSError, doing: str) -> CheckpointError:
    """``error`` as one sentence with the path, the free space and the remedy."""
    reason = error.strerror or str(error)
    remedy = _REMEDIES.get(error.errno or 0, "check the disk")
    return CheckpointError(f"{path}: could not {doing}: {reason} ({free_space(path)}); {remedy}, then run again: it goes on from the last good checkpoint")


def free_space(path: Path) -> str:
    """``1234 MiB free``, of the nearest folder that exists."""
    for place in (path, *path.parents):
        try:
            return f"{shutil.disk_usage(place).free / 2**20:.0f} MiB free"
        except OSError:
            continue
    return "free space unknown"


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write every byte; a disk may take fewer than it was given."""
    view = memoryview(data)
    while view:
        n = os.write(fd, view)
        if n == 0:
            raise OSError(errno.EIO, "the device accepts no more bytes")
        view = view[n:]


def fsync_folder(folder: Path) -> None:
    """Make the names in ``folder`` durable: a rename is only safe once its folder is on the disk."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_atomic(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data``: a reader sees the old file or the new one, never a part, even after power loss.

    Raises CheckpointError with the path, the free space and the remedy.
    """
    beside = path.with_name(f"{path.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            write_all(fd, data)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(beside, path)
        fsync_folder(path.parent)
    except OSError as error:
        raise disk_error(path, error, "write") from error
    finally:
        with contextlib.suppress(OSError):
            os.unlink(beside)
