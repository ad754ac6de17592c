"""Causal attention over packed sequences in PyTorch's operators, where no compiled pass is: on a GPU by PyTorch's own choice of kernel, on a CPU in whichever of two forms is faster.

On a CPU flash attention wins where a query's scores are many; on shorter sequences batched products are several times as fast. There, blocks of queries meet
only the keys before their end, which leaves out most of what causality forbids. A sequence that is a single block keeps its weights for backward, as they
are small beside the rest of a layer; longer ones make them again. Sequences of like length go together, so that little is padded.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice, pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from truing.models.fused import Turn
from truing.models.pack import Grid

SHORT = 512  # up to this length, batched products
BLOCK = 128  # queries that meet the same keys; up to this length a sequence's weights are kept for backward, T numbers a token and head


class Plain(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, grids: list[Grid], tokens: int, turn: Turn, scale: float) -> Tensor:
        heads, shapes, out = k.shape[1], (q.shape, k.shape, k.shape), empty(q, q.shape, tokens)
        q, k, v = q[:tokens], k[:tokens], v[:tokens]
        kept: list[tuple[Tensor, ...]] = []
        for grid in grids:
            turned = lay(grid, q, heads, turn, scale), lay(grid, k.to(q.dtype), heads, turn), lay(grid, v.to(q.dtype), heads)
            made, extra = _form(q, grid)[0](*turned)
            flat(grid, made, out[:tokens])
            kept.append((*turned, *extra))
        ctx.save_for_backward(*(x for own in kept for x in own))
        ctx.settings = (grids, [len(own) for own in kept], tokens, turn, scale, shapes)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        grids, counts, tokens, turn, scale, shapes = ctx.settings
        found = [empty(g, shape, tokens) for shape in shapes]
        kept = iter(ctx.saved_tensors)
        for grid, count in zip(grids, counts, strict=True):
            own = islice(kept, count)
            g_q, g_k, g_v = _form(g, grid)[1](lay(grid, g[:tokens], shapes[1][1]), *own)
            flat(grid, g_q, found[0][:tokens], turn, scale)
            flat(grid, g_k, found[1][:tokens], turn)
            flat(grid, g_v, found[2][:tokens])
        return *found, None, None, None, None


def empty(like: Tensor, shape: torch.Size, tokens: int) -> Tensor:
    """Room for what attention gives; rows past the last token only fill up."""
    made = like.new_empty(shape)
    made[tokens:] = 0
    return made


# -- between packed tokens and heads ---------------------------------------------------------------------------------------
def lay(grid: Grid, x: Tensor, heads: int, turn: Turn | None = None, scale: float = 1.0) -> Tensor:
    """``[N, H, d]`` to ``[B K, T, G, d]`` (``heads`` = K), turned by the positions and scaled; zeros past a sequence's end."""
    b, t, (every, d) = grid.rows, grid.longest, x.shape[1:]
    if grid.cells is not None and grid.tokens is not None:
        x = x.new_zeros(b * t, every, d).index_copy_(0, grid.cells, x.index_select(0, grid.tokens))
    parted = x.view(b, t, heads, -1, d).transpose(1, 2).flatten(0, 1).contiguous()
    return parted if turn is None else turn(parted.float(), scale=scale).to(x.dtype)


def flat(grid: Grid, x: Tensor, out: Tensor, turn: Turn | None = None, scale: float = 1.0) -> None:
    """Write ``[B K, T, G, d]`` to its tokens' rows of ``out`` ``[N, H, d]``, turned back and scaled."""
    heads = len(x) // grid.rows
    parted = (x if turn is None else turn(x.float(), scale=scale, back=True)).unflatten(0, (-1, heads)).transpose(1, 2)
    if grid.cells is None or grid.tokens is None:
        out.view(parted.shape).copy_(parted)
    else:
        out.index_copy_(0, grid.tokens, parted.reshape(-1, *out.shape[1:]).index_select(0, grid.cells).to(out.dtype))


def _form(x: Tensor, grid: Grid) -> tuple[Any, Any]:
    """How a grid attends, forward and backward."""
    if x.is_cuda:
        return _chosen, _chosen_backward
    return (_short, _short_backward) if grid.longest <= SHORT else (_flash, _flash_backward)


# -- three forms; queries [B K, T, G, d], keys and values [B K, T, 1, d] -------------------------------------------------------
def _short(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    queries, keys, values = (x.flatten(1, 2) for x in (q, k, v))
    mixed, weights = torch.empty_like(queries), queries
    for own, seen in _blocks(q):
        weights = _weights(queries[:, own], keys[:, seen], q.shape[2])
        torch.bmm(weights, values[:, seen], out=mixed[:, own])
    return mixed.view_as(q), (weights,) if q.shape[1] <= BLOCK else ()


def _short_backward(g: Tensor, q: Tensor, k: Tensor, v: Tensor, *kept: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """With ``P = softmax(S)``, ``S = q k^T`` and ``out = P v``: dP = g v^T."""
    given, queries, keys, values = (x.flatten(1, 2) for x in (g, q, k, v))
    g_q, g_k, g_v = torch.empty_like(queries), torch.empty_like(keys), torch.empty_like(values)
    for i, (own, seen) in enumerate(_blocks(q)):
        add = min(i, 1)  # the first block meets every key, and so fills their gradients; the others add to them
        weights = kept[0] if kept else _weights(queries[:, own], keys[:, seen], q.shape[2])
        g_scores = torch._softmax_backward_data(torch.bmm(given[:, own], values[:, seen].mT), weights, -1, weights.dtype)
        torch.bmm(g_scores, keys[:, seen], out=g_q[:, own])
        g_k[:, seen].baddbmm_(g_scores.mT, queries[:, own], beta=add)
        g_v[:, seen].baddbmm_(weights.mT, given[:, own], beta=add)
    return g_q.view_as(q), g_k.view_as(k), g_v.view_as(v)


def _weights(queries: Tensor, keys: Tensor, groups: int) -> Tensor:
    return causal_softmax(torch.bmm(queries, keys.mT), groups)


def _blocks(q: Tensor) -> Iterator[tuple[slice, slice]]:
    """As few as hold at most BLOCK tokens each, the latest first: the rows of a block's queries, which stand in order of time, and the keys before its end."""
    _, t, groups, _ = q.shape
    count = -(-t // BLOCK)
    for end, begin in pairwise(t * i // count for i in range(count, -1, -1)):
        yield slice(begin * groups, end * groups), slice(end)


def _flash(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    out, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*_every(q, k, v), 0.0, True, scale=1.0)
    return out.transpose(1, 2), (out, log_sum)


def _flash_backward(g: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, log_sum: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    made = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(g.transpose(1, 2), *_every(q, k, v), out, log_sum, 0.0, True, scale=1.0)
    g_q, g_k, g_v = (x.transpose(1, 2) for x in made)
    return g_q, g_k.sum(2, keepdim=True), g_v.sum(2, keepdim=True)


def _chosen(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    q, k, v = _every(q, k, v)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0).transpose(1, 2), ()


def _chosen_backward(g: Tensor, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """By autograd, which makes the forward again: what a kernel keeps for its backward differs from kernel to kernel."""
    with torch.enable_grad():
        given = [x.detach().requires_grad_() for x in (q, k, v)]
        made, _ = _chosen(*given)
    g_q, g_k, g_v = torch.autograd.grad(made, given, g)
    return g_q, g_k, g_v


def _every(q: Tensor, k: Tensor, v: Tensor) -> list[Tensor]:
    """As ``[B K, G, T, d]``; keys and values once for every query head."""
    return [x.expand(q.shape).transpose(1, 2) for x in (q, k, v)]


def causal_softmax(scores: Tensor, groups: int) -> Tensor:
    """Of ``[..., Q G, T]`` in place: of Q queries the last looks at all T keys, each before it at one less. Summed in float32."""
    t, queries = scores.shape[-1], scores.shape[-2] // groups
    future = torch.full((queries, t), float("-inf"), dtype=scores.dtype, device=scores.device).triu_(t - queries + 1)
    scores.unflatten(-2, (queries, groups)).add_(future[:, None])
    return torch.softmax(scores, -1, out=scores)
