"""Elementwise steps of a decoder layer that keep only their inputs for backward and make the rest again.

Autograd keeps every intermediate: float32 copies of the normalised states, and ``silu(gate)`` beside ``gate``. Those are a fifth
of what a layer remembers of each token, and cheap to make a second time. Forward results are the same bits.
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


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """``silu(gate) * up``. Source: Shazeer 2020 (arXiv 2002.05202), SwiGLU."""
    if torch.is_grad_enabled() and (gate.requires_grad or up.requires_grad):
        return _Gated.apply(gate, up)
    return F.silu(gate) * up


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


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate) * up

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(g * up, gate), g * F.silu(gate)
