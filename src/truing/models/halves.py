"""The two halves of a decoder layer around its attention, forward and backward written out.

Between layers, states are float32; products run in ``dtype``. What a half keeps for backward is its input, what attention or the gate gave, and
the adapters' low dimensions: normalised states and ``silu(gate) up`` are made again. No pass over memory is made that the arithmetic does not need.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from truing.models import fused, linears
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
        n, r = fused.norm(x, norm, eps, dtype)
        found, low = linears.forward(n, parts_of(flat), scale)
        ctx.save_for_backward(x, r, low, norm, *flat)
        ctx.settings = (dtype, scale)
        return tuple(found)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gs: Tensor) -> tuple[Tensor | None, ...]:
        x, r, low, norm, *flat = ctx.saved_tensors
        dtype, scale = ctx.settings
        wanted = (ctx.needs_input_grad[0] or ctx.needs_input_grad[1], *ctx.needs_input_grad[5:])
        n = fused.renorm(x, norm, r, dtype) if linears.reads_input(wanted) else x.new_empty(0, dtype=dtype)
        g_n, g_parts = linears.backward(gs, n, low, parts_of(flat), scale, wanted)
        g_x = fused.norm_backward(g_n, x, norm, r) if g_n is not None and ctx.needs_input_grad[0] else None
        g_norm = fused.norm_weight_backward(g_n, x, r).to(norm.dtype) if g_n is not None and ctx.needs_input_grad[1] else None
        return g_x, g_norm, None, None, None, *g_parts


class _Finish(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, mixed: Tensor, norm: Tensor, eps: float, scale: float, *flat: Tensor | None) -> Tensor:
        o, gate_up, down = _split(parts_of(flat))
        (y,), low_o = linears.forward(mixed, o, scale)
        x2, n, r = fused.add_norm(x, y, norm, eps)
        (gate, up), low_in = linears.forward(n, gate_up, scale)
        (y,), low_out = linears.forward(fused.gate(gate, up), down, scale)
        ctx.save_for_backward(mixed, x2, r, gate, up, low_o, low_in, low_out, norm, *flat)
        ctx.scale = scale
        return fused.add(x2, y)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        mixed, x2, r, gate, up, low_o, low_in, low_out, norm, *flat = ctx.saved_tensors
        (o, gate_up, down), scale, needs = _split(parts_of(flat)), ctx.scale, ctx.needs_input_grad
        need_o, need_in, need_out = needs[5:9], needs[9:17], needs[17:21]
        passed = needs[0] or needs[1] or any(need_o)  # something lies before the feed-forward
        inner = passed or needs[2] or any(need_in)

        hidden = fused.gate(gate, up) if linears.reads_input((True, *need_out)) else gate.new_empty(0)
        g_hidden, found_out = linears.backward([g.to(gate.dtype)], hidden, low_out, down, scale, (inner, *need_out))
        if g_hidden is None:
            return (g if needs[0] else None, *[None] * 16, *found_out)
        n = fused.renorm(x2, norm, r, gate.dtype) if linears.reads_input((True, *need_in)) else x2.new_empty(0, dtype=gate.dtype)
        done = (g_hidden, hidden) if hidden.shape == g_hidden.shape else None  # nobody reads them again
        g_n, found_in = linears.backward(fused.gate_backward(g_hidden, gate, up, done), n, low_in, gate_up, scale, (passed or needs[2], *need_in))
        g_norm = fused.norm_weight_backward(g_n, x2, r).to(norm.dtype) if g_n is not None and needs[2] else None
        if g_n is None or not passed:
            return (None, None, g_norm, None, None, *[None] * 4, *found_in, *found_out)
        g_x = fused.norm_backward(g_n, x2, norm, r, extra=g)
        g_mixed, found_o = linears.backward([g_x.to(mixed.dtype)], mixed, low_o, o, scale, (needs[1], *need_o))
        return g_x, g_mixed, g_norm, None, None, *found_o, *found_in, *found_out


def _split(parts: list[Part]) -> tuple[list[Part], list[Part], list[Part]]:
    return parts[:1], parts[1:3], parts[3:]

