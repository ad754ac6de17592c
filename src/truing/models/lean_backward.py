"""Elementwise steps of a decoder layer that keep only their inputs for backward and make the rest again.

Autograd keeps every intermediate, float32 copies of normalised states among them, which are cheap to make a second time. Forward results are the same bits.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``y = w x / sqrt(mean(x^2) + eps)`` over the last dimension. Source: Zhang and Sennrich 2019 (arXiv 1910.07467)."""
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return _Norm.apply(x, weight, eps)
    return F.rms_norm(x, x.shape[-1:], weight, eps)


def rows(x: Tensor, index: Tensor, size: int) -> Tensor:
    """``x[index]`` of a matrix, and rows of zeros up to a size; where the index rises, its gradient is copied to its rows, several times as fast as autograd adds it up."""
    return _Rows.apply(x, index, size)


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, size: int) -> Tensor:
        ctx.save_for_backward(index)
        ctx.shape = x.shape
        found = x.new_empty(size, *x.shape[1:])
        torch.index_select(x, 0, index, out=found[: len(index)])
        found[len(index) :] = 0
        return found

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        (index,) = ctx.saved_tensors
        whole, g = g.new_zeros(ctx.shape), g[: len(index)]
        return (whole.index_copy_(0, index, g) if bool((index[1:] > index[:-1]).all()) else whole.index_add_(0, index, g)), None, None


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        return F.rms_norm(x, x.shape[-1:], weight, eps)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        """With ``n = x r`` and ``r = 1 / sqrt(mean(x^2) + eps)``: dx = r (w g - n mean(w g n)), dw = sum over rows of g n."""
        x, weight = ctx.saved_tensors
        exact = torch.promote_types(x.dtype, torch.float32)
        g = g.to(exact)
        n = x.to(exact)
        r = n.square().mean(-1, keepdim=True).add_(ctx.eps).rsqrt_()
        n = n * r
        d_weight = (g * n).flatten(0, -2).sum(0).to(weight.dtype) if ctx.needs_input_grad[1] else None
        if not ctx.needs_input_grad[0]:
            return None, d_weight, None
        g = g * weight
        return (g - n * (g * n).mean(-1, keepdim=True)).mul_(r).to(x.dtype), d_weight, None
