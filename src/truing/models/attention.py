"""Causal attention over packed sequences, by whichever of two forms is faster at their length on a CPU.

Flash attention wins where the ``[T, T]`` scores fall out of cache; on short sequences batched products are several times as fast. Sequences of
like length go together, so that little is padded. `attend` turns queries and keys by their positions on the way; its backward is written out.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from truing.models.pack import Grid, Pack

SHORT = 128


class Turn(NamedTuple):
    """Rotary tables by position, float32 ``[T, d]``: ``y = x cos + swap(x) sin``, where swap exchanges the halves of a head; the first half of ``sin`` is negated."""

    cos: Tensor
    sin: Tensor

    def __call__(self, x: Tensor, *, scale: float = 1.0, back: bool = False) -> Tensor:
        """``x`` ``[..., T, d]`` in float32, turned (or turned back) and scaled."""
        t = x.shape[-2]
        cos, sin = self.cos[:t] * scale, self.sin[:t] * (-scale if back else scale)
        a, b = x.chunk(2, -1)
        return torch.mul(x, cos).addcmul_(torch.cat((b, a), -1), sin)


def attend(q: Tensor, k: Tensor, v: Tensor, pack: Pack, turn: Turn, scale: float) -> Tensor:
    """Queries ``[N, H, d]`` over keys and values ``[N, K, d]`` of the same sequence, at and before each token; the result is ``[N, H, d]``."""
    return _Attend.apply(q, k, v, pack.grids(), turn, scale)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, grids: list[Grid], turn: Turn, scale: float) -> Tensor:
        heads, out = k.shape[1], torch.empty_like(q)
        kept: list[Tensor] = []
        for grid in grids:
            lay = lambda x, g=grid: _lay(g, x, heads)  # noqa: E731
            turned = turn(lay(q), scale=scale).to(q.dtype), turn(lay(k)).to(q.dtype), lay(v).to(q.dtype)
            made, extra = (_short if grid.longest <= SHORT else _flash)(*turned)
            _flat(grid, made, out)
            kept += [*turned, *extra]
        ctx.save_for_backward(*kept)
        ctx.settings = (grids, turn, scale, q.shape, k.shape)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        grids, turn, scale, q_shape, k_shape = ctx.settings
        found = [g.new_empty(shape) for shape in (q_shape, k_shape, k_shape)]
        kept = list(ctx.saved_tensors)
        for grid in grids:
            short = grid.longest <= SHORT
            count = 4 if short else 5
            own, kept = kept[:count], kept[count:]
            g_q, g_k, g_v = (_short_backward if short else _flash_backward)(_lay(grid, g, k_shape[1], zeros=True).to(g.dtype), *own)
            _flat(grid, turn(g_q.float(), scale=scale, back=True), found[0])
            _flat(grid, turn(g_k.float(), back=True), found[1])
            _flat(grid, g_v, found[2])
        return *found, None, None, None


# -- two forms; queries [B, K, G, T, d], keys and values [B, K, 1, T, d] -----------------------------------------------------
def _short(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    t = q.shape[3]
    weights = _weights(_heads(q), _heads(k), t)
    return torch.bmm(weights, _heads(v)).view_as(q), (weights,)


def _short_backward(g: Tensor, q: Tensor, k: Tensor, v: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """With ``P = softmax(S)`` and ``S = q k^T``: dS = P (dP - sum(dP P)), where dP = g v^T."""
    own = _heads(g)
    g_weights = torch.bmm(own, _heads(v).transpose(1, 2))
    g_scores = torch._softmax_backward_data(g_weights, weights, -1, weights.dtype)
    g_q, g_k, g_v = torch.bmm(g_scores, _heads(k)), torch.bmm(g_scores.transpose(1, 2), _heads(q)), torch.bmm(weights.transpose(1, 2), own)
    return g_q.view_as(q), g_k.view_as(k), g_v.view_as(v)


def _weights(q: Tensor, k: Tensor, t: int) -> Tensor:
    future = torch.full((t, t), float("-inf"), dtype=q.dtype, device=q.device).triu_(1)
    scores = torch.bmm(q, k.transpose(1, 2))
    scores.view(-1, t, t).add_(future)
    return torch.softmax(scores, -1, out=scores)  # of bfloat16 too, this is summed in float32


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


# -- between packed tokens and a grid's heads --------------------------------------------------------------------------------
def _lay(grid: Grid, x: Tensor, heads: int, *, zeros: bool = False) -> Tensor:
    """``[N, H, d]`` to float32 ``[B, K, G, T, d]``; cells past a sequence's end hold another token, or zeros."""
    b, t = grid.rows, grid.longest
    if grid.cells is not None:
        if zeros:
            x = x.new_zeros(b * t, *x.shape[1:]).index_copy_(0, grid.cells, x.index_select(0, grid.tokens))
        else:
            x = x.index_select(0, grid.padded)
    parted = x.view(b, t, heads, -1, x.shape[-1]).permute(0, 2, 3, 1, 4)
    return torch.empty(parted.shape, dtype=torch.float32, device=x.device).copy_(parted)


def _flat(grid: Grid, x: Tensor, out: Tensor) -> None:
    """Write ``[B, K, G, T, d]`` back to its tokens' rows of ``out``."""
    parted = x.permute(0, 3, 1, 2, 4)
    if grid.cells is None:
        out.view(parted.shape).copy_(parted)
    else:
        out.index_copy_(0, grid.tokens, parted.reshape(-1, *out.shape[1:]).index_select(0, grid.cells).to(out.dtype))
