"""Causal attention over packed sequences, by whichever of two forms is faster at their length on a CPU.

Flash attention wins where the ``[T, T]`` scores fall out of cache; on shorter sequences batched products are several times as fast. They keep their
weights for backward while these are small beside the rest of a layer, and make them again where not. Sequences of like length go together, so that
little is padded. `attend` turns queries and keys by their positions on the way; its backward is written out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from truing.models import fused
from truing.models.fused import Turn
from truing.models.pack import Grid, Pack

SHORT = 512  # up to this length, batched products
KEPT = 128  # up to this length, with their weights kept for backward: T numbers a token and head


def attend(q: Tensor, k: Tensor, v: Tensor, pack: Pack, turn: Turn, scale: float) -> Tensor:
    """Queries ``[N, H, d]`` over keys and values ``[N, K, d]`` of the same sequence, at and before each token; the result is ``[N, H, d]``."""
    return _Attend.apply(q, k, v, pack.grids(), pack.tokens, turn, scale)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, grids: list[Grid], tokens: int, turn: Turn, scale: float) -> Tensor:
        heads, out = k.shape[1], _empty(q, q.shape, tokens)
        shapes, q, k, v = (q.shape, k.shape), q[:tokens], k[:tokens], v[:tokens]
        kept: list[Tensor] = []
        for grid in grids:
            turned = fused.lay(grid, q, heads, turn, scale), fused.lay(grid, k.to(q.dtype), heads, turn), fused.lay(grid, v.to(q.dtype), heads)
            made, extra = (_short if grid.longest <= SHORT else _flash)(*turned)
            fused.flat(grid, made, out[:tokens])
            kept += [*turned, *extra]
        ctx.save_for_backward(*kept)
        ctx.settings = (grids, tokens, turn, scale, *shapes)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        grids, tokens, turn, scale, q_shape, k_shape = ctx.settings
        found = [_empty(g, shape, tokens) for shape in (q_shape, k_shape, k_shape)]
        kept = list(ctx.saved_tensors)
        for grid in grids:
            short = grid.longest <= SHORT
            count = 5 if not short else 4 if grid.longest <= KEPT else 3
            own, kept = kept[:count], kept[count:]
            g_q, g_k, g_v = (_short_backward if short else _flash_backward)(fused.lay(grid, g[:tokens], k_shape[1]), *own)
            fused.flat(grid, g_q, found[0][:tokens], turn, scale)
            fused.flat(grid, g_k, found[1][:tokens], turn)
            fused.flat(grid, g_v, found[2][:tokens])
        return *found, None, None, None, None


def _empty(like: Tensor, shape: torch.Size, tokens: int) -> Tensor:
    made = like.new_empty(shape)
    made[tokens:] = 0
    return made


# -- two forms; queries [B, K, G, T, d], keys and values [B, K, 1, T, d] -----------------------------------------------------
def _short(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    weights = _weights(q, k)
    return torch.bmm(weights, _heads(v)).view_as(q), (weights,) if q.shape[3] <= KEPT else ()


def _weights(q: Tensor, k: Tensor) -> Tensor:
    return fused.causal_softmax(torch.bmm(_heads(q), _heads(k).transpose(1, 2)), q.shape[3])


def _short_backward(g: Tensor, q: Tensor, k: Tensor, v: Tensor, *kept: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """With ``P = softmax(S)``, ``S = q k^T`` and ``out = P v``: dP = g v^T."""
    own, weights = _heads(g), kept[0] if kept else _weights(q, k)
    g_scores = fused.causal_softmax_backward(torch.bmm(own, _heads(v).transpose(1, 2)), weights)
    g_q, g_k, g_v = torch.bmm(g_scores, _heads(k)), torch.bmm(g_scores.transpose(1, 2), _heads(q)), torch.bmm(weights.transpose(1, 2), own)
    return g_q.view_as(q), g_k.view_as(k), g_v.view_as(v)


def _heads(x: Tensor) -> Tensor:
    """One key head's rows together: ``[B K, G T, d]``."""
    return x.reshape(x.shape[0] * x.shape[1], -1, x.shape[-1])


def _flash(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    groups = q.shape[2]
    out, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q.flatten(1, 2), _every(k, groups), _every(v, groups), 0.0, True, scale=1.0)
    return out.unflatten(1, (-1, groups)), (out, log_sum)


def _flash_backward(g: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, log_sum: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    groups = q.shape[2]
    made = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        g.flatten(1, 2), q.flatten(1, 2), _every(k, groups), _every(v, groups), out, log_sum, 0.0, True, scale=1.0
    )
    g_q, g_k, g_v = (x.reshape(q.shape) for x in made)
    return g_q, g_k.sum(2, keepdim=True), g_v.sum(2, keepdim=True)


def _every(x: Tensor, groups: int) -> Tensor:
    """Keys or values once for every query head: ``[B, H, T, d]``."""
    return x.expand(-1, -1, groups, -1, -1).flatten(1, 2)
