"""What adapters add to the products of layers that read the same input, forward and backward: ``y += scale (x A^T) B^T``.

Products with a side as short as the rank wait for memory in a general library; where `native` has them and the processor multiplies bfloat16 in pairs, all of a group's are
made in one call that keeps some tokens in its cache. Elsewhere they are PyTorch's.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from truing.native import passes

Pair = tuple[Tensor, Tensor]
"""A ``[rank, in]`` and B ``[out, rank]`` of one layer."""


def add(x: Tensor, ys: Sequence[Tensor], pairs: Sequence[Pair], scale: float) -> Tensor:
    """Add to every layer's output ``[N, out]``, in place; the input in the low dimensions ``[N, layers x rank]``, scaled, is for backward."""
    c = _compiled(x, ys, pairs)
    if c is None:
        low = F.linear(x, _stacked(pairs, scale, x.dtype))
        for y, (_, b), own in zip(ys, pairs, low.chunk(len(pairs), 1), strict=True):
            y.addmm_(own, b.to(x.dtype).t())
        return low
    x, rank = x.contiguous(), len(pairs[0][0])
    low = x.new_empty(len(x), len(pairs) * rank)
    c.adapt(x.data_ptr(), *x.shape, *_addresses(pairs), _pointers(ys), _sizes(ys), len(pairs), rank, scale, low.data_ptr())
    return low


def backward(gs: Sequence[Tensor], x: Tensor, low: Tensor, pairs: Sequence[Pair], scale: float, g_x: Tensor | None, train_a: bool, train_b: bool) -> tuple[list[Tensor], list[Tensor]]:
    """Add what comes through the adapters to ``g_x``, in place where it is wanted. The gradients of every A and of every B, float32; none where they are not trained.

    ``x`` is read for those of A only.
    """
    c = _compiled(low, gs, pairs)
    if c is None:
        return _plain(gs, x, low, pairs, scale, g_x, train_a, train_b)
    gs, x, rank = [g.contiguous() for g in gs], x.contiguous(), len(pairs[0][0])
    g_as, g_bs = ([torch.empty_like(w) for w in of] if train else [] for of, train in zip(zip(*pairs, strict=True), (train_a, train_b), strict=True))
    c.adapt_backward(
        _pointers(gs), x.data_ptr(), len(low), pairs[0][0].shape[1], *_addresses(pairs), _sizes(gs), len(pairs), rank, scale, low.data_ptr(),
        None if g_x is None else g_x.data_ptr(), _pointers(g_as) if g_as else None, _pointers(g_bs) if g_bs else None,
    )  # fmt: skip
    return g_as, g_bs


def _plain(gs: Sequence[Tensor], x: Tensor, low: Tensor, pairs: Sequence[Pair], scale: float, g_x: Tensor | None, train_a: bool, train_b: bool) -> tuple[list[Tensor], list[Tensor]]:
    g_low = torch.cat([g @ b.to(low.dtype) for g, (_, b) in zip(gs, pairs, strict=True)], 1)
    if g_x is not None:
        g_x.addmm_(g_low, _stacked(pairs, scale, low.dtype))
    g_as = [*((g_low.t() @ x).float() * scale).chunk(len(pairs))] if train_a else []
    return g_as, [(g.t() @ own).float() for g, own in zip(gs, low.chunk(len(pairs), 1), strict=True)] if train_b else []


def _stacked(pairs: Sequence[Pair], scale: float, dtype: torch.dtype) -> Tensor:
    return (torch.cat([a for a, _ in pairs]) * scale).to(dtype)


# -- for the compiled passes ------------------------------------------------------------------------------------------------
def _compiled(like: Tensor, wide: Sequence[Tensor], pairs: Sequence[Pair]) -> ctypes.CDLL | None:
    """The passes, if they can: they take numbers in pairs, so every side is even, and adapters as they are trained, in float32."""
    c = passes(like, like.dtype)
    even = not any(n % 2 for pair in pairs for n in (*pair[0].shape, *pair[1].shape))
    return c if c is not None and hasattr(c, "adapt") and even and all(p.dtype == torch.float32 for pair in pairs for p in pair) else None


def _pointers(xs: Sequence[Tensor]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(xs))(*(x.data_ptr() for x in xs))


def _addresses(pairs: Sequence[Pair]) -> tuple[ctypes.Array[ctypes.c_void_p], ctypes.Array[ctypes.c_void_p]]:
    return _pointers([a for a, _ in pairs]), _pointers([b for _, b in pairs])


def _sizes(xs: Sequence[Tensor]) -> ctypes.Array[ctypes.c_int64]:
    return (ctypes.c_int64 * len(xs))(*(x.shape[1] for x in xs))
