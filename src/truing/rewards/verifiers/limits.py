"""Limits that a checking process sets on itself. Standard library only."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

MEMORY = 4 * 2**30
"""Most bytes of address space: what is asked for beyond them is a MemoryError (or the end of this process), not the end of the machine."""


def limit_memory(most: int = MEMORY) -> None:
    """Lower this process's own limits: its memory, and no core files. What a system does not have is left out."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        within = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(resource.RLIMIT_AS, (within, hard))


@contextlib.contextmanager
def processor_time(seconds: float) -> Iterator[None]:
    """End this process (SIGPROF) when what is within takes more processor time than this: no code within can catch that.

    A busy machine makes nothing late; whoever waits outside needs a longer limit of the clock besides, for what sleeps.
    """
    import signal

    if not hasattr(signal, "setitimer"):
        yield
        return
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
