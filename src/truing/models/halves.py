"""The two halves of a decoder layer around its attention, forward and backward written out.

Between layers, states are float32; products run in ``dtype``. What a half keeps for backward is its input, what attention or the gate gave, and
the adapters' low dimensions: normalised states and ``silu(gate) up`` are made again. No pass over memory is made that the arithmetic does not need.
Where `native` has products (AVX-512) and a layer is small enough, a half is one call (`halves.c`); elsewhere it is put together from `linears` and `fused`.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from truing.models import fused, linears
from truing.models.linears import Part, parts_of
from truing.native.products import at


def project(x: Tensor, norm: Tensor, eps: float, dtype: torch.dtype, parts: list[Part], scale: float) -> tuple[Tensor, ...]:
    """``x`` ``[N, D]`` itself and, of its normalised states, every part's output: queries, keys and values. What goes on with this x has its gradient added on the way."""
    return _Project.apply(x, norm, eps, dtype, scale, *(t for p in parts for t in p))


def finish(x: Tensor, mixed: Tensor, norm: Tensor, eps: float, parts: list[Part], scale: float) -> Tensor:
    """``x2 = x + O mixed``; ``x2 + down(silu(gate) up)`` of the normalised x2. ``parts`` are o, gate, up and down. Source: Shazeer 2020 (arXiv 2002.05202)."""
    return _Finish.apply(x, mixed, norm, eps, scale, *(t for p in parts for t in p))


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, norm: Tensor, eps: float, dtype: torch.dtype, scale: float, *flat: Tensor | None) -> tuple[Tensor, ...]:
        parts = parts_of(flat)
        if (c := linears.in_one(x, dtype, parts)) is not None:
            found, low, r = _project(c, x, norm, eps, dtype, parts, scale)
        else:
            n, r = fused.norm(x, norm, eps, dtype)
            found, low = linears.forward(n, parts, scale)
        ctx.save_for_backward(x, r, low, norm, *flat)
        ctx.settings = (dtype, scale)
        ctx.set_materialize_grads(False)
        return x, *found

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, extra: Tensor | None, *gs: Tensor) -> tuple[Tensor | None, ...]:
        x, r, low, norm, *flat = ctx.saved_tensors
        dtype, scale = ctx.settings
        wanted, parts = (ctx.needs_input_grad[0] or ctx.needs_input_grad[1], *ctx.needs_input_grad[5:]), parts_of(flat)
        if (c := linears.in_one(x, dtype, parts)) is not None:
            g_x, g_n, g_parts = _project_backward(c, gs, x, r, low, norm, parts, scale, wanted, extra, to_x=ctx.needs_input_grad[0])
        else:
            n = fused.renorm(x, norm, r, dtype) if linears.reads_input(wanted) else x.new_empty(0, dtype=dtype)
            g_n, g_parts = linears.backward(gs, n, low, parts, scale, wanted)
            g_x = fused.norm_backward(g_n, x, norm, r, extra) if g_n is not None and ctx.needs_input_grad[0] else None
        g_norm = fused.norm_weight_backward(g_n, x, r).to(norm.dtype) if g_n is not None and ctx.needs_input_grad[1] else None
        return g_x, g_norm, None, None, None, *g_parts


class _Finish(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, mixed: Tensor, norm: Tensor, eps: float, scale: float, *flat: Tensor | None) -> Tensor:
        parts = parts_of(flat)
        if (c := linears.in_one(mixed, mixed.dtype, parts)) is not None:
            out, kept = _finish(c, x, mixed, norm, eps, parts, scale)
            ctx.save_for_backward(mixed, *kept, norm, *flat)
            ctx.scale = scale
            return out
        o, gate_up, down = _split(parts)
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
        if passed and not any(needs[6::4]) and (c := linears.in_one(mixed, mixed.dtype, parts_of(flat))) is not None:  # biases' gradients need what stays inside
            to_x, to_mixed, to_n, found = _finish_backward(c, g, (mixed, x2, r, gate, up, low_o, low_in, low_out, norm), parts_of(flat), scale, needs[5:])
            return to_x, to_mixed, fused.norm_weight_backward(to_n, x2, r).to(norm.dtype) if needs[2] else None, None, None, *found

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


# -- compiled, a half in one call --------------------------------------------------------------------------------------------
def _project(c: Any, x: Tensor, norm: Tensor, eps: float, dtype: torch.dtype, parts: list[Part], scale: float) -> tuple[list[Tensor], Tensor | None, Tensor]:
    rank, x, norm = linears.rank_in_pairs(dtype, parts), x.contiguous(), norm.float()
    found, r = [x.new_empty(len(x), len(p.weight), dtype=dtype) for p in parts], x.new_empty(len(x))
    low = x.new_empty(len(x), len(parts) * rank, dtype=dtype) if rank else None
    made, _held = linears.structs(parts, dtype, found)
    c.project(ctypes.byref(made), len(parts), x.data_ptr(), norm.data_ptr(), eps, *x.shape, rank, scale, r.data_ptr(), at(low))
    return found, low, r


def _project_backward(
    c: Any, gs: tuple[Tensor, ...], x: Tensor, r: Tensor, low: Tensor | None, norm: Tensor, parts: list[Part], scale: float, wanted: tuple[bool, ...], extra: Tensor | None,
    *, to_x: bool,
) -> tuple[Tensor | None, Tensor | None, list[Tensor | None]]:  # fmt: skip
    dtype, x, norm = gs[0].dtype, x.contiguous(), norm.float()
    gs, extra = tuple(g.contiguous() for g in gs), None if extra is None else extra.contiguous()
    rank = linears.rank_in_pairs(dtype, parts)
    made, _held, found = linears.structs_back(parts, dtype, gs, wanted[1:], rank)
    g_n, g_x = x.new_empty(x.shape, dtype=dtype) if wanted[0] else None, torch.empty_like(x) if to_x else None
    c.project_backward(ctypes.byref(made), len(parts), x.data_ptr(), norm.data_ptr(), r.data_ptr(), *x.shape, rank, scale, at(low), at(extra), at(g_n), at(g_x))
    return g_x, g_n, linears.with_biases(linears.as_wanted(found, parts, wanted[1:]), gs, parts, wanted[1:])


def _finish(c: Any, x: Tensor, mixed: Tensor, norm: Tensor, eps: float, parts: list[Part], scale: float) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    rank, x, mixed, norm = linears.rank_in_pairs(mixed.dtype, parts), x.contiguous(), mixed.contiguous(), norm.float()
    n, inner = len(x), len(parts[1].weight)
    x2, out, r = torch.empty_like(x), torch.empty_like(x), x.new_empty(n)
    gate, up = mixed.new_empty(n, inner), mixed.new_empty(n, inner)
    lows = [mixed.new_empty(n, k * rank) if rank else None for k in (1, 2, 1)]
    made, _held = linears.structs(parts, mixed.dtype, (None, gate, up, None))
    c.finish(
        ctypes.byref(made), x.data_ptr(), mixed.data_ptr(), norm.data_ptr(), eps, *x.shape, mixed.shape[1], rank, scale,
        x2.data_ptr(), r.data_ptr(), *map(at, lows), out.data_ptr(),
    )  # fmt: skip
    return out, (x2, r, gate, up, *lows)


def _finish_backward(
    c: Any, g: Tensor, kept: tuple[Tensor, ...], parts: list[Part], scale: float, wanted: tuple[bool, ...]
) -> tuple[Tensor, Tensor, Tensor, list[Tensor | None]]:  # fmt: skip
    mixed, x2, r, gate, up, *lows, norm = kept
    rank, g, mixed, norm = linears.rank_in_pairs(mixed.dtype, parts), g.contiguous(), mixed.contiguous(), norm.float()
    made, _held, found = linears.structs_back(parts, mixed.dtype, [None] * 4, wanted, rank)
    g_n, g_x, g_mixed = mixed.new_empty(x2.shape), torch.empty_like(x2), torch.empty_like(mixed)
    c.finish_backward(
        ctypes.byref(made), g.data_ptr(), mixed.data_ptr(), x2.data_ptr(), norm.data_ptr(), r.data_ptr(), gate.data_ptr(), up.data_ptr(), *x2.shape, mixed.shape[1],
        rank, scale, *map(at, lows), g_n.data_ptr(), g_x.data_ptr(), g_mixed.data_ptr(),
    )  # fmt: skip
    return g_x, g_mixed, g_n, linears.as_wanted(found, parts, wanted)
