"""What adapters add to the products of layers that read the same input, forward and backward: ``y += scale (x A^T) B^T``.

In PyTorch's products, for where `linears` has no compiled ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Pair = tuple[Tensor, Tensor]
"""A ``[rank, in]`` and B ``[out, rank]`` of one layer."""


def add(x: Tensor, ys: Sequence[Tensor], pairs: Sequence[Pair], scale: float) -> Tensor:
    """Add to every layer's output ``[N, out]``, in place; the input in the low dimensions ``[N, layers x rank]``, scaled, is for backward."""
    low = F.linear(x, _stacked(pairs, scale, x.dtype))
    for y, (_, b), own in zip(ys, pairs, low.chunk(len(pairs), 1), strict=True):
        y.addmm_(own, b.to(x.dtype).t())
    return low


def backward(gs: Sequence[Tensor], x: Tensor, low: Tensor, pairs: Sequence[Pair], scale: float, g_x: Tensor | None, train_a: bool, train_b: bool) -> tuple[list[Tensor], list[Tensor]]:
    """Add what comes through the adapters to ``g_x``, in place where it is wanted. The gradients of every A and of every B, float32; none where they are not trained.

    ``x`` is read for those of A only.
    """
    g_low = torch.cat([g @ b.to(low.dtype) for g, (_, b) in zip(gs, pairs, strict=True)], 1)
    if g_x is not None:
        g_x.addmm_(g_low, _stacked(pairs, scale, low.dtype))
    g_as = [*((g_low.t() @ x).float() * scale).chunk(len(pairs))] if train_a else []
    return g_as, [(g.t() @ own).float() for g, own in zip(gs, low.chunk(len(pairs), 1), strict=True)] if train_b else []


def _stacked(pairs: Sequence[Pair], scale: float, dtype: torch.dtype) -> Tensor:
    return (torch.cat([a for a, _ in pairs]) * scale).to(dtype)
