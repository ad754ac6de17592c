"""The steps of a decoder layer between its matrix products, each in one pass over memory where `native` has it.

What a step means is its PyTorch form, which runs on any device. States x are float32 ``[N, D]``; ``dtype`` is that of products. Results of the
two forms differ by rounding: the compiled ones round once, at the end.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from truing.native import passes


# -- normalisation -------------------------------------------------------------------------------------------------------
def norm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """``w x r`` and ``r = 1 / sqrt(mean(x^2) + eps)`` ``[N]``. Source: Zhang and Sennrich 2019 (arXiv 1910.07467)."""
    c = passes(x, dtype)
    if c is None:
        r = torch.linalg.vector_norm(x, dim=-1).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        return renorm(x, weight, r, dtype), r
    x, weight = x.contiguous(), weight.float()
    out, r = x.new_empty(x.shape, dtype=dtype), x.new_empty(len(x))
    c.norm(x.data_ptr(), weight.data_ptr(), eps, out.data_ptr(), r.data_ptr(), *x.shape)
    return out, r


def renorm(x: Tensor, weight: Tensor, r: Tensor, dtype: torch.dtype) -> Tensor:
    """``w x r`` once more, for backward."""
    c, weight = passes(x, dtype), weight.float()
    if c is None:
        return (x * r[:, None]).mul_(weight).to(dtype)
    x = x.contiguous()
    out = x.new_empty(x.shape, dtype=dtype)
    c.renorm(x.data_ptr(), weight.data_ptr(), r.data_ptr(), out.data_ptr(), *x.shape)
    return out


def add_norm(x: Tensor, y: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """``x + y``, and `norm` of that in the precision of ``y``."""
    c = passes(x, y.dtype)
    if c is None:
        total = y.float() + x
        return total, *norm(total, weight, eps, y.dtype)
    x, y, weight = x.contiguous(), y.contiguous(), weight.float()
    total, out, r = torch.empty_like(x), torch.empty_like(y), x.new_empty(len(x))
    c.add_norm(x.data_ptr(), y.data_ptr(), weight.data_ptr(), eps, total.data_ptr(), out.data_ptr(), r.data_ptr(), *x.shape)
    return total, out, r


def add(x: Tensor, y: Tensor) -> Tensor:
    """``x + y``, float32."""
    c = passes(x, y.dtype)
    if c is None:
        return y.float() + x
    x, y = x.contiguous(), y.contiguous()
    total = torch.empty_like(x)
    c.add(x.data_ptr(), y.data_ptr(), total.data_ptr(), *x.shape)
    return total


def norm_backward(g: Tensor, x: Tensor, weight: Tensor, r: Tensor, extra: Tensor | None = None) -> Tensor:
    """``r w g - x r^3 mean(w g x)`` ``[N, D]``, and ``extra`` added: the gradient of the states that `norm` read, float32."""
    c, weight = passes(x, g.dtype), weight.float()
    if c is None:
        g = g.float() * weight
        pull = (g * x).mean(-1).mul_(r.pow(3))
        found = g.mul_(r[:, None]).addcmul_(x, pull[:, None], value=-1)
        return found if extra is None else found.add_(extra)
    g, x, extra = g.contiguous(), x.contiguous(), None if extra is None else extra.contiguous()
    out = torch.empty_like(x)
    c.norm_backward(g.data_ptr(), x.data_ptr(), weight.data_ptr(), r.data_ptr(), None if extra is None else extra.data_ptr(), out.data_ptr(), *x.shape)
    return out


def norm_weight_backward(g: Tensor, x: Tensor, r: Tensor) -> Tensor:
    """The sum over rows of ``g x r``, ``[D]``: the gradient of a normalisation's weight, float32."""
    c = passes(x, g.dtype)
    if c is None:
        return (g.float() * x).t() @ r
    g, x = g.contiguous(), x.contiguous()
    out = x.new_empty(x.shape[1])
    c.norm_weight(g.data_ptr(), x.data_ptr(), r.data_ptr(), out.data_ptr(), *x.shape)
    return out


# -- the gate of a feed-forward layer ----------------------------------------------------------------------------------------
def gate(gates: Tensor, ups: Tensor) -> Tensor:
    """``silu(gate) up``; the two may be columns of one matrix. Source: Shazeer 2020 (arXiv 2002.05202)."""
    c = passes(gates, gates.dtype)
    if c is None:
        return F.silu(gates).mul_(ups)
    out = gates.new_empty(gates.shape)
    c.gate(gates.data_ptr(), ups.data_ptr(), gates.stride(0), out.data_ptr(), *gates.shape)
    return out


def gate_backward(g: Tensor, gates: Tensor, ups: Tensor, room: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
    """The gradients of gate and up: ``g up s (1 + gate (1 - s))`` and ``g gate s``, where ``s = sigmoid(gate)``.

    ``room`` is contiguous memory of that size that they may be written to; ``g`` itself will do.
    """
    c = passes(gates, gates.dtype)
    if c is None:
        return torch.ops.aten.silu_backward(g * ups, gates), F.silu(gates).mul_(g)
    g = g.contiguous()
    g_gate, g_up = room or (torch.empty_like(gates), torch.empty_like(ups))
    c.gate_backward(g.data_ptr(), gates.data_ptr(), ups.data_ptr(), g_gate.data_ptr(), g_up.data_ptr(), *gates.shape)
    return g_gate, g_up


# -- attention -----------------------------------------------------------------------------------------------------------
class Turn(NamedTuple):
    """Rotary tables by position, float32 ``[T, d]``: ``y = x cos + swap(x) sin``, where swap exchanges the halves of a head; the first half of ``sin`` is negated."""

    cos: Tensor
    sin: Tensor

    def __call__(self, x: Tensor, *, scale: float = 1.0, back: bool = False) -> Tensor:
        """``x`` ``[..., T, G, d]`` in float32, turned (or turned back) and scaled."""
        cos, sin = (table[: x.shape[-3], None] * scale for table in self)
        return turned(x, cos, -sin if back else sin)


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Heads ``[..., d]`` turned by the tables of their positions, as `Turn` says."""
    a, b = x.chunk(2, -1)
    return torch.mul(x, cos).addcmul_(torch.cat((b, a), -1), sin)


class LookBack:
    """Attention of one new token a row over what a cache holds.

    Its query and key are turned, its key and value written to ``column`` of the cache, and it looks at its row's ``lengths`` tokens before that
    and at itself. Keys are ``[b, K, d, C]``, values ``[b, K, C, d]``.
    """

    def __init__(self, turn: Turn, lengths: Tensor, column: int, columns: int, scale: float, dtype: torch.dtype) -> None:
        self.turn, self.lengths, self.column, self.columns, self.scale, self.dtype = turn, lengths, column, columns, scale, dtype
        self.passes = passes(lengths, dtype)
        if self.passes is None:
            age = column - torch.arange(columns, device=lengths.device)
            unseen = (age < 0) | (age > lengths[:, None])
            self.unseen = torch.zeros(unseen.shape, dtype=dtype, device=lengths.device).masked_fill_(unseen, float("-inf"))[:, None]
            self.cos, self.sin = (table[lengths, None] for table in turn)

    def __call__(self, qk: Tensor, v: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """``qk`` ``[b, H + K, d]``, queries before keys, and ``v`` ``[b, K, d]``; the result is ``[b, H d]``."""
        (rows, heads, d), every = v.shape, qk.shape[1] - v.shape[1]
        if self.passes is None:
            return self._plain(qk[:, :every], qk[:, every:], v, keys, values)
        qk, out = qk.to(self.dtype), v.new_empty(rows, every * d, dtype=self.dtype)
        self.passes.decode(
            qk.data_ptr(), qk.stride(0), v.data_ptr(), v.stride(0), self.turn.cos.data_ptr(), self.turn.sin.data_ptr(), self.lengths.data_ptr(), self.scale,
            keys.data_ptr(), values.data_ptr(), out.data_ptr(), self.column, rows, heads, every // heads, d, self.columns,
        )  # fmt: skip
        return out

    def _plain(self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        rows, heads, d = v.shape
        keys[..., self.column], values[:, :, self.column] = turned(k, self.cos, self.sin).to(self.dtype), v
        q = turned(q, self.cos, self.sin).mul_(self.scale).to(self.dtype)
        scores = torch.bmm(q.reshape(rows * heads, -1, d), keys.flatten(0, 1))
        weights = scores.view(rows, q.shape[1], -1).add_(self.unseen).softmax(-1).view_as(scores)
        return torch.bmm(weights, values.flatten(0, 1)).view(rows, -1)
