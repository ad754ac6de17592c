"""A process starts over with jemalloc, keeps its memory for the next tensors, gives it back when told to, and passes nothing of it on. In real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from truing import allocator

needs_jemalloc = pytest.mark.skipif(allocator.jemalloc() is None, reason="the system has no jemalloc (Debian and Ubuntu: libjemalloc2)")
TOLD = """
import json, os, subprocess, sys
from truing import allocator
print("before", flush=True)
allocator.settle()
child = subprocess.run([sys.executable, "-c", "from truing import allocator; print(allocator.is_jemalloc())"], capture_output=True, text=True)
print(json.dumps({"pid": os.getpid(), "jemalloc": allocator.is_jemalloc(), "args": sys.argv[1:], "child": child.stdout.strip(), "said": child.stderr,
                  "left": sorted(n for n in os.environ if n in (*allocator.OTHERS, allocator.STARTED))}))
"""
KEPT = """
import json, sys
from truing import allocator
if sys.argv[1:]: allocator.settle()
import torch
from truing.models import memory
from truing.models.precision import fast_float32
fast_float32()
torch.ones(1000).sum()
before = memory.resident()
many = [torch.ones(1 << 18) for _ in range(200)]
most = memory.resident()
del many
kept = memory.resident()
again = [torch.ones(1 << 18) for _ in range(200)]
used_again = memory.resident()
del again
allocator.trim()
print(json.dumps({"jemalloc": allocator.is_jemalloc(), **{k: round(v / 2**20) for k, v in dict(before=before, most=most, kept=kept, used_again=used_again, trimmed=memory.resident()).items()}}))
"""


def told(code: str, *args: str, **env: str) -> tuple[list[Any], int, int, str]:
    plain = {k: v for k, v in os.environ.items() if k not in (*allocator.OTHERS, allocator.SETTING)}
    with subprocess.Popen([sys.executable, "-c", code, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=plain | env) as process:
        out, err = process.communicate(timeout=120)
    return out.splitlines(), process.pid, process.returncode, err


@needs_jemalloc
def test_a_process_starts_over_with_jemalloc_and_what_it_starts_does_not() -> None:
    lines, pid, code, err = told(TOLD, "one", "two words")
    found = json.loads(lines[-1])
    assert code == 0 and not err
    assert lines[:-1] == ["before", "before"]  # it did start over, once
    assert found == {"pid": pid, "jemalloc": True, "args": ["one", "two words"], "child": "False", "said": "", "left": []}


@pytest.mark.parametrize("env", [{"TRUING_ALLOCATOR": "system"}, {"MALLOC_CONF": "narenas:3"}, {"LD_PRELOAD": "libm.so.6"}], ids=str)
def test_who_chose_an_allocator_keeps_it(env: dict[str, str]) -> None:
    lines, _, code, _ = told(TOLD, **env)
    found = json.loads(lines[-1])
    assert code == 0 and lines[:-1] == ["before"] and not found["jemalloc"] and found["left"] == sorted(set(env) - {"TRUING_ALLOCATOR"})


def test_a_choice_that_means_nothing_is_refused() -> None:
    done = subprocess.run([sys.executable, "-m", "truing", "sft"], capture_output=True, text=True, env=os.environ | {"TRUING_ALLOCATOR": "tcmalloc"}, timeout=60)
    assert done.returncode == 1 and done.stderr.startswith("error: TRUING_ALLOCATOR=tcmalloc; use system, jemalloc, or") and not done.stdout


def test_what_is_not_there_cannot_be_insisted_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator, "jemalloc", lambda: None)
    monkeypatch.setenv("TRUING_ALLOCATOR", "jemalloc")
    with pytest.raises(allocator.ConfigError, match=r"no libjemalloc.so.2; install it"):
        allocator.settle()


@pytest.mark.parametrize("which", [pytest.param("jemalloc", marks=needs_jemalloc), "system"])
def test_freed_memory_is_used_again_and_given_back_when_told(which: str) -> None:
    """200 tensors of a MiB: they stay with the process, the next 200 take the same places, and `trim` returns them."""
    if which == "system" and not allocator._is_glibc():
        pytest.skip("this system's allocator decides for itself")
    lines, _, code, err = told(KEPT, *(["settle"] if which == "jemalloc" else []))
    found = json.loads(lines[-1])
    assert code == 0, err
    assert found["jemalloc"] == (which == "jemalloc")
    assert found["most"] - found["before"] >= 195
    assert found["kept"] >= found["most"] - 5
    assert found["used_again"] <= found["most"] + 5
    assert found["trimmed"] <= found["before"] + 20


def test_gaps_are_old_glibcs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for is_je, version, expected in ((False, "2.36", True), (False, "2.37", True), (False, "2.38", False), (False, "2.40", False), (True, "2.36", False)):
        monkeypatch.setattr(allocator, "is_jemalloc", lambda is_je=is_je: is_je)
        monkeypatch.setattr("platform.libc_ver", lambda version=version: ("glibc", version))
        assert allocator.leaves_gaps() is expected
