"""The two halves of a decoder layer around its attention, forward and backward written out.

Between layers, states are float32; products run in ``dtype``. What a half keeps for backward is its input, what attention or the gate gave, and
the adapters' low dimensions: normalised states and ``silu(gate) up`` are made again. No pass over memory is made that the arithmetic does not need.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from truing.models import linears
from truing.models.linears import Part, parts_of


def project(x: Tensor, norm: Tensor, eps: float, dtype: torch.dtype, parts: list[Part], scale: float) -> tuple[Tensor, ...]:
    """Every part's output for the normalised states: queries, keys and values of ``x`` ``[N, D]``."""
    return _Project.apply(x, norm, eps, dtype, scale, *(t for p in parts for t in p))


def finish(x: Tensor, mixed: Tensor, norm: Tensor, eps: float, parts: list[Part], scale: float) -> Tensor:
    """``x2 = x + O mixed``; ``x2 + down(silu(gate) up)`` of the normalised x2. ``parts`` are o, gate, up and down. Source: Shazeer 2020 (arXiv 2002.05202)."""
    return _Finish.apply(x, mixed, norm, eps, scale, *(t for p in parts for t in p))


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, norm: Tensor, eps: float, dtype: torch.dtype, scale: float, *flat: Tensor | None) -> tuple[Tensor, ...]:
        r = inverse_rms(x, eps)
        found, low = linears.forward(normed(x, r, norm, dtype), parts_of(flat), scale)
        ctx.save_for_backward(x, r, low, norm, *flat)
        ctx.settings = (dtype, scale)
        return tuple(found)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gs: Tensor) -> tuple[Tensor | None, ...]:
        x, r, low, norm, *flat = ctx.saved_tensors
        dtype, scale = ctx.settings
        wanted = (ctx.needs_input_grad[0] or ctx.needs_input_grad[1], *ctx.needs_input_grad[5:])
        n = normed(x, r, norm, dtype) if linears.reads_input(wanted) else x.new_empty(0, dtype=dtype)
        g_n, g_parts = linears.backward(gs, n, low, parts_of(flat), scale, wanted)
        g_x, g_norm = norm_backward(g_n, x, r, norm, ctx.needs_input_grad[0], ctx.needs_input_grad[1]) if g_n is not None else (None, None)
        return g_x, g_norm, None, None, None, *g_parts


class _Finish(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, mixed: Tensor, norm: Tensor, eps: float, scale: float, *flat: Tensor | None) -> Tensor:
        o, gate_up, down = _split(parts_of(flat))
        (y,), low_o = linears.forward(mixed, o, scale)
        x2 = y.float().add_(x)
        r = inverse_rms(x2, eps)
        (gate, up), low_in = linears.forward(normed(x2, r, norm, mixed.dtype), gate_up, scale)
        (y,), low_out = linears.forward(F.silu(gate).mul_(up), down, scale)
        ctx.save_for_backward(mixed, x2, r, gate, up, low_o, low_in, low_out, norm, *flat)
        ctx.scale = scale
        return y.float().add_(x2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        mixed, x2, r, gate, up, low_o, low_in, low_out, norm, *flat = ctx.saved_tensors
        (o, gate_up, down), scale, needs = _split(parts_of(flat)), ctx.scale, ctx.needs_input_grad
        need_o, need_in, need_out = needs[5:9], needs[9:17], needs[17:21]
        passed = needs[0] or needs[1] or any(need_o)  # something lies before the feed-forward
        inner = passed or needs[2] or any(need_in)

        activated = F.silu(gate)
        hidden = activated * up if linears.reads_input((True, *need_out)) else activated.new_empty(0)
        g_hidden, found_out = linears.backward([g.to(gate.dtype)], hidden, low_out, down, scale, (inner, *need_out))
        if g_hidden is None:
            return (g if needs[0] else None, *[None] * 16, *found_out)
        g_up = activated.mul_(g_hidden)
        g_gate = torch.ops.aten.silu_backward(g_hidden.mul_(up), gate)
        n = normed(x2, r, norm, gate.dtype) if linears.reads_input((True, *need_in)) else x2.new_empty(0, dtype=gate.dtype)
        g_n, found_in = linears.backward([g_gate, g_up], n, low_in, gate_up, scale, (passed or needs[2], *need_in))
        g_x, g_norm = norm_backward(g_n, x2, r, norm, passed, needs[2]) if g_n is not None else (None, None)
        if g_x is None:
            return (None, None, g_norm, None, None, *[None] * 4, *found_in, *found_out)
        g_x = g_x.add_(g)
        g_mixed, found_o = linears.backward([g_x.to(mixed.dtype)], mixed, low_o, o, scale, (needs[1], *need_o))
        return g_x, g_mixed, g_norm, None, None, *found_o, *found_in, *found_out


def _split(parts: list[Part]) -> tuple[list[Part], list[Part], list[Part]]:
    return parts[:1], parts[1:3], parts[3:]


# -- normalisation -------------------------------------------------------------------------------------------------------
def inverse_rms(x: Tensor, eps: float) -> Tensor:
    """``r = 1 / sqrt(mean(x^2) + eps)``, ``[N, 1]``."""
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()


def normed(x: Tensor, r: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """``w x r``. Source: Zhang and Sennrich 2019 (arXiv 1910.07467)."""
    return (x * r).mul_(weight.float()).to(dtype)


def norm_backward(g: Tensor, x: Tensor, r: Tensor, weight: Tensor, wants_x: bool, wants_weight: bool) -> tuple[Tensor | None, Tensor | None]:
    """``dx = r w g - x r^3 mean(w g x)`` and ``dw = sum over rows of g x r``. Writes over ``g`` where that is float32 already."""
    g, w = g.float(), weight.float()
    product = g * x
    g_weight = (product.t() @ r[:, 0]).to(weight.dtype) if wants_weight else None
    if not wants_x:
        return None, g_weight
    pull = (product @ w)[:, None].mul_(r.pow(3)).div_(x.shape[-1])
    return g.mul_(w).mul_(r).addcmul_(x, pull, value=-1), g_weight
