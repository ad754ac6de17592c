"""Products of `linears.c`: any number of rows by weights, in one precision, where there is AVX-512; else PyTorch's.

oneDNN compiles a kernel for every number of rows that it meets, half a millisecond each; these have none.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from truing.native import passes


class Part(ctypes.Structure):
    """One of the layers that read the same input, as `linears.c` has it."""

    _fields_ = (*((name, ctypes.c_void_p) for name in ("weight", "bias", "g", "a", "b", "y", "g_weight", "g_a", "g_b")), ("outputs", ctypes.c_int64))


def compiled(like: Tensor, dtype: torch.dtype) -> Any:
    """The passes where they have products of this precision, else None."""
    c = passes(like, dtype)
    return c if hasattr(c, "linears") else None


def rows_by(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x W^T + b`` of x ``[n, k]`` and W ``[m, k]``."""
    c = _able(x, weight)
    if c is None or (bias is not None and bias.dtype != x.dtype):
        return torch.nn.functional.linear(x, weight, bias)
    y = x.new_empty(len(x), len(weight))
    c.linears(ctypes.byref(Part(weight=weight.data_ptr(), bias=at(bias), y=y.data_ptr(), outputs=len(weight))), 1, x.data_ptr(), *x.shape, 0, 1.0, None)
    return y


def back_by(g: Tensor, weight: Tensor) -> Tensor:
    """``g W`` of g ``[n, m]`` and W ``[m, k]``."""
    c = _able(g, weight)
    if c is None:
        return g @ weight
    x = g.new_empty(len(g), weight.shape[1])
    c.linears_backward(ctypes.byref(Part(weight=weight.data_ptr(), g=g.data_ptr(), outputs=len(weight))), 1, None, len(g), x.shape[1], 0, 1.0, None, x.data_ptr())
    return x


def over_rows(g: Tensor, x: Tensor) -> Tensor:
    """``g^T x`` of g ``[n, m]`` and x ``[n, k]``, float32."""
    c = _able(g, x)
    if c is None:
        return (g.t() @ x).float()
    found = torch.empty(g.shape[1], x.shape[1], dtype=torch.float32)
    c.linears_backward(ctypes.byref(Part(g=g.data_ptr(), g_weight=found.data_ptr(), outputs=g.shape[1])), 1, x.data_ptr(), *x.shape, 0, 1.0, None, None)
    return found


def at(x: Tensor | None) -> int | None:
    """Where a tensor's numbers begin."""
    return None if x is None else x.data_ptr()


def _able(x: Tensor, other: Tensor) -> Any:
    """They lie as the passes read them, of one precision, in pairs."""
    alike = x.dtype == other.dtype and x.device == other.device and x.is_contiguous() and other.is_contiguous()
    traced = torch.is_grad_enabled() and (x.requires_grad or other.requires_grad)
    return compiled(x, x.dtype) if alike and not traced and x.shape[1] % 2 == other.shape[1] % 2 == 0 else None
