"""What the processor can do: the fast float32 product, bfloat16, and how much of either is true.

On processors where MKL's float32 product is slow, oneDNN's is up to 2.3 times as fast. PyTorch routes float32 to oneDNN
only when reduced precision is *allowed*; the permission is given and then a probe looks whether it was used: if
products are not float32-exact, the permission is taken back.
"""

from __future__ import annotations

import functools
import os

import torch

from truing import allocator

KERNELS = 80  # compiled kernels kept, of about half a MiB each: a layer's forward and backward need about 40, attention in blocks and parts of another size some more


@functools.cache
def fast_float32() -> str:
    """Choose the float32 kernels of this process, once. Returns "onednn" or "default"."""
    _bound_kernel_caches()
    allocator.keep()
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


@functools.cache
def has_bfloat16() -> bool:
    """True when the processor multiplies bfloat16 natively, so that it is faster than float32 and not emulated."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
