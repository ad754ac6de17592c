"""What the processor can do: the fast float32 product, bfloat16, and how much of either is true.

On processors where MKL's float32 product is slow, oneDNN's is up to 2.3 times as fast. PyTorch routes float32 to oneDNN
only when reduced precision is *allowed*; the permission is given and then a probe looks whether it was used: if
products are not float32-exact, the permission is taken back.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform

import torch

HEAP = 1 << 30  # bytes up to which a tensor's memory comes from the heap, where it is found again
SLACK = 512 << 20  # bytes at the heap's top that are kept for the next tensors; `memory.trim` gives them back between phases
KERNELS = 64  # compiled kernels kept, of up to a MiB each: a layer's forward and backward need about 40


@functools.cache
def fast_float32() -> str:
    """Choose the float32 kernels of this process, once. Returns "onednn" or "default"."""
    _bound_kernel_caches()
    _reuse_memory()
    backend = getattr(torch.backends.mkldnn, "matmul", None)
    if backend is None or not hasattr(backend, "fp32_precision") or not torch.backends.mkldnn.is_available():
        return "default"
    before = backend.fp32_precision
    backend.fp32_precision = "bf16"
    # 1 + 2**-12 needs 13 bits of mantissa: bfloat16 (8) and tf32 (11) round it to 1. Both sides of the product are probed.
    fine, ones = torch.full((64, 512), 1 + 2**-12), torch.ones(512, 512)
    if torch.equal(fine @ ones, torch.full((64, 512), 512 * (1 + 2**-12))) and torch.equal(ones @ fine.T, torch.full((512, 64), 512 * (1 + 2**-12))):
        return "onednn"
    backend.fp32_precision = before
    return "default"


def _bound_kernel_caches() -> None:
    """oneDNN compiles a kernel for every shape, and batches of text have a new shape every time. Both its caches keep 1024 of
    them by default, about a GiB, of which hardly one is used again. They read these variables when the first kernel is made."""
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, str(KERNELS))


def _reuse_memory() -> None:
    """glibc maps every large tensor anew and returns it when it goes, so that each is cleared page by page at every use: up to half the time
    of a large product. From the heap they are reused. Another allocator (jemalloc, say) is left as it is."""
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ.get("LD_PRELOAD", "") for name in ("jemalloc", "tcmalloc", "mimalloc")):
        return
    c = ctypes.CDLL(None)
    if not c.mallopt(-3, HEAP):  # M_MMAP_THRESHOLD; older versions take no more than 32 MiB
        c.mallopt(-3, 32 << 20)
    for option, value in ((-1, SLACK), (-2, 64 << 20)):  # M_TRIM_THRESHOLD, M_TOP_PAD
        c.mallopt(option, value)


@functools.cache
def has_bfloat16() -> bool:
    """True when the processor multiplies bfloat16 natively, so that it is faster than float32 and not emulated."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
