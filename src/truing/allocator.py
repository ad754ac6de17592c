"""Where tensors get their memory: from jemalloc when the machine has it, else from a C library told to keep what it has.

A training step makes and drops the same large tensors over and over. glibc maps each anew, so that the system clears it page by page at every use, or
(from its heap) leaves gaps between them; jemalloc finds the same places again. It must be there before the first allocation, so a process that is to
use it starts over. An allocator that was preloaded already, or settings of one, are left as they are.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import re
import sys
import sysconfig
from pathlib import Path

from truing.errors import ConfigError

SETTINGS = "narenas:1,oversize_threshold:0,dirty_decay_ms:-1"  # one place for all tensors, which keeps its pages until `trim`
SETTING = "TRUING_ALLOCATOR"
STARTED = "TRUING_ALLOCATOR_STARTED"  # only between a process and what it starts over as
OTHERS = ("LD_PRELOAD", "MALLOC_CONF")
HEAP = 1 << 30  # bytes up to which a tensor's memory comes from glibc's heap, where it is found again
SLACK = 512 << 20  # bytes at the heap's top that are kept for the next tensors; `trim` gives them back between phases
EVERY_ARENA = 4096  # MALLCTL_ARENAS_ALL


def settle() -> None:
    """Start this process over with jemalloc, if the machine has it: same arguments, same process id. To be called before anything else is done.

    ``TRUING_ALLOCATOR=system`` stays with the C library's own, ``TRUING_ALLOCATOR=jemalloc`` insists. What this process starts later does not inherit it.

    Raises ConfigError for a TRUING_ALLOCATOR that means nothing here.
    """
    if os.environ.pop(STARTED, None):
        for name in OTHERS:
            os.environ.pop(name, None)
        return
    asked, library = os.environ.get(SETTING, ""), jemalloc()
    if asked not in ("", "system", "jemalloc"):
        raise ConfigError(f"{SETTING}={asked}; use system, jemalloc, or leave it unset for jemalloc where there is one")
    if asked == "jemalloc" and library is None:
        raise ConfigError(f"{SETTING}=jemalloc, but there is no libjemalloc.so.2; install it (Debian and Ubuntu: libjemalloc2) or leave {SETTING} unset")
    if asked == "system" or library is None or any(os.environ.get(name) for name in OTHERS) or not sys.executable:
        return
    env = {**os.environ, "LD_PRELOAD": str(library), "MALLOC_CONF": SETTINGS, STARTED: "1"}
    with contextlib.suppress(OSError):  # then it goes on as it is
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], env)


def jemalloc() -> Path | None:
    """The system's jemalloc (Debian and Ubuntu: libjemalloc2), or that of this Python's environment; None off Linux with glibc."""
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return None
    folders = (f"{sys.prefix}/lib", f"/usr/lib/{sysconfig.get_config_var('MULTIARCH')}", "/usr/lib64", "/usr/local/lib", "/usr/lib")
    return next((path for folder in folders if (path := Path(folder, "libjemalloc.so.2")).is_file()), None)


def is_jemalloc() -> bool:
    """Whether this process allocates through jemalloc, whoever loaded it."""
    return sys.platform != "win32" and hasattr(ctypes.CDLL(None), "mallctl")


def keep() -> None:
    """Have glibc take tensors from its heap and keep what is freed: mapping each anew takes up to half the time of a large product."""
    if not _is_glibc():
        return
    c = ctypes.CDLL(None)
    if not c.mallopt(-3, HEAP):  # M_MMAP_THRESHOLD; older versions take no more than 32 MiB
        c.mallopt(-3, 32 << 20)
    for option, value in ((-1, SLACK), (-2, 64 << 20)):  # M_TRIM_THRESHOLD, M_TOP_PAD
        c.mallopt(option, value)


def trim() -> None:
    """Give freed memory back to the system, where the allocator can."""
    if is_jemalloc():
        ctypes.CDLL(None).mallctl(f"arena.{EVERY_ARENA}.purge".encode(), None, None, None, ctypes.c_size_t(0))
    elif _is_glibc():
        ctypes.CDLL(None).malloc_trim(0)


def leaves_gaps() -> bool:
    """glibc before 2.38 cannot use the hole of a freed aligned block for an equal one (its bug 14581), so tensors leave gaps between them."""
    return _is_glibc() and tuple(int(n) for n in re.findall(r"\d+", platform.libc_ver()[1])[:2]) < (2, 38)


def _is_glibc() -> bool:
    """Whether this process allocates through glibc itself."""
    preloaded = os.environ.get("LD_PRELOAD", "")
    return platform.libc_ver()[0] == "glibc" and not is_jemalloc() and not any(name in preloaded for name in ("tcmalloc", "mimalloc"))
