"""Where a run took place: versions, processor, revision; and what it cost in memory."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import resource
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def surroundings() -> dict[str, Any]:
    """What a reader needs to judge whether another machine would give the same numbers. Never the environment's variables."""
    import torch

    return {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in ("truing", "torch", "transformers")}},
        "pid": os.getpid(),
        "platform": platform.platform(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "bfloat16": _native_bfloat16(),
        "cuda": torch.cuda.is_available(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "git": _git_revision(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _native_bfloat16() -> bool | None:
    """Whether this processor multiplies bfloat16 itself; None where that cannot be told."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return bool(re.search(r"\b(avx512_bf16|amx_bf16|bf16)\b", flags))


def _git_revision() -> str | None:
    """The revision of the checkout that this code lies in; None outside one."""
    try:
        found = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=2, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None if found.returncode == 0 else None


def peak_mib() -> float:
    """The most resident memory this process has had, in MiB."""
    try:
        # ru_maxrss is inherited from the process that started this one; VmHWM is not.
        status = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace")
        return int(re.findall(r"VmHWM:\s*(\d+) kB", status)[0]) / 1024
    except (OSError, IndexError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (2**20 if sys.platform == "darwin" else 2**10)
