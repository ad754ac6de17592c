"""`truing env`: what this machine is and has, for bug reports and before a long run."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import Annotated, Any

import typer

from truing.cli import show

PACKAGES = ("truing", "torch", "transformers", "safetensors", "pydantic", "numpy", "pyarrow")
OPTIONAL = ("datasets", "fastapi", "ray", "vllm")


def env(json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False) -> None:
    """Versions, cores, memory, accelerators, the cache, and whether the demo's packages are here."""
    found = environment()
    if json:
        show.as_json(found)
        return
    show.table((key, value if not isinstance(value, dict) else "  ".join(f"{k} {v or 'missing'}" for k, v in value.items())) for key, value in found.items())


def environment() -> dict[str, Any]:
    """The same as plain values; a package or fact that is not there is None."""
    import torch

    from truing import assets
    from truing.errors import TruingError
    from truing.models.precision import has_bfloat16

    try:
        cache = str(assets.cache_dir())
    except TruingError as problem:
        cache = f"not usable: {problem}"
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version(name) for name in PACKAGES},
        "optional": {name: version(name) for name in OPTIONAL},
        "demo": {name: version(name) for name in assets.PACKAGES},
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": memory_gib(),
        "bfloat16": has_bfloat16(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "cache": cache,
    }


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def memory_gib() -> float | None:
    """Physical memory; None where the system does not say."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, OSError, ValueError):
        return None
