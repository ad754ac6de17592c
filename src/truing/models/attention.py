"""Causal attention over packed sequences: each token looks at itself and at what stands before it in its sequence.

Where passes are compiled, one does it all, on the tokens as they lie: nothing is padded, and nothing but its inputs is kept for backward, where scores are
made again sixteen queries at a time. Elsewhere `attention_plain` does the same in PyTorch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from truing.models.attention_plain import Plain, empty
from truing.models.fused import Turn
from truing.models.pack import Pack
from truing.native import passes


def attend(q: Tensor, k: Tensor, v: Tensor, pack: Pack, turn: Turn, scale: float) -> Tensor:
    """Queries ``[N, H, d]``, which are turned by their positions on the way, over keys and values ``[N, K, d]``; the result is ``[N, H, d]``.

    Rows past the pack's tokens, which only fill up, give zeros. Source of one key head for several queries: Ainslie et al. 2023 (arXiv 2305.13245).
    """
    if passes(q, q.dtype) is None:
        return Plain.apply(q, k, v, pack.grids(), pack.tokens, turn, scale)
    return _Compiled.apply(q, k.to(q.dtype), v.to(q.dtype), pack.bounds, pack.shape[1], turn, scale)


class _Compiled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, longest: int, turn: Turn, scale: float) -> Tensor:
        q, k, v = (x if x.stride()[1:] == (x.shape[2], 1) else x.contiguous() for x in (q, k, v))
        out = empty(q, q.shape, int(bounds[-1]))
        passes(q, q.dtype).attention(*_read(q, k, v, bounds, turn, scale), out.data_ptr(), *_sizes(q, k, bounds, longest))
        ctx.save_for_backward(q, k, v)
        ctx.settings = (bounds, longest, turn, scale)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v = ctx.saved_tensors
        bounds, longest, turn, scale = ctx.settings
        found, g = [empty(g, x.shape, int(bounds[-1])) for x in (q, k, v)], g.contiguous()
        passes(q, q.dtype).attention_backward(
            g.data_ptr(), *_read(q, k, v, bounds, turn, scale), *(x.data_ptr() for x in found), *_sizes(q, k, bounds, longest)
        )  # fmt: skip
        return *found, None, None, None, None


def _read(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, turn: Turn, scale: float) -> tuple[Any, ...]:
    return *(of for x in (q, k, v) for of in (x.data_ptr(), x.stride(0))), bounds.data_ptr(), turn.cos.data_ptr(), turn.sin.data_ptr(), scale


def _sizes(q: Tensor, k: Tensor, bounds: Tensor, longest: int) -> tuple[int, ...]:
    return len(bounds) - 1, longest, k.shape[1], q.shape[1] // k.shape[1], q.shape[2]
