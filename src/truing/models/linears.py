"""Linear layers that read the same input, with their adapters: forward and backward written out.

``y = x W^T + b + (alpha / rank) (x A^T) B^T``. Products run in the precision of ``x``; weights of another are cast for the one product and
their gradients come back in their own. Where `native` has products (AVX-512), a group's are made in one call; elsewhere they are PyTorch's.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from truing.models import low_rank
from truing.models.adapters import Adapter
from truing.native.products import Part as Struct
from truing.native.products import at, compiled

WHOLE = 4 << 20  # weights of a half of a layer that is taken whole: in all processors' caches, not their own


class Part(NamedTuple):
    """One layer's tensors; None where it has no bias or no adapter."""

    weight: Tensor
    bias: Tensor | None
    a: Tensor | None
    b: Tensor | None


def part(module: nn.Linear, path: str, adapter: Adapter | None) -> Part:
    pair = adapter.pair(path) if adapter is not None else None
    return Part(module.weight, module.bias, *(pair or (None, None)))


def parts_of(flat: Sequence[Tensor | None]) -> list[Part]:
    """The parts whose tensors lie end to end, as autograd wants them."""
    return [Part(*flat[i : i + 4]) for i in range(0, len(flat), 4)]


def forward(x: Tensor, parts: Sequence[Part], scale: float) -> tuple[list[Tensor], Tensor | None]:
    """Every part's output, and the input in the adapters' low dimensions ``[N, adapted x rank]`` (None without adapters)."""
    adapted = _adapted(parts)
    if (c := _compiled(x, x.dtype, parts)) is not None:
        found, low = _forward(c, x.contiguous(), parts, scale)
    else:
        found, low = [F.linear(x, p.weight.to(x.dtype), None if p.bias is None else p.bias.to(x.dtype)) for p in parts], None
    return found, low_rank.add(x, [found[i] for i in adapted], list(adapted.values()), scale) if adapted and low is None else low


def backward(gs: Sequence[Tensor], x: Tensor, low: Tensor | None, parts: Sequence[Part], scale: float, wanted: Sequence[bool]) -> tuple[Tensor | None, list[Tensor | None]]:
    """The gradient of ``x``, and of every part's four tensors end to end; ``wanted`` says of which, ``x`` first. ``x`` may be empty when no weight and no A is."""
    in_pairs = low is not None and rank_in_pairs(gs[0].dtype, parts) > 0
    c = _compiled(gs[0], gs[0].dtype, parts)
    g_x, found = _plain(gs, x, parts, wanted) if c is None else _backward(c, [g.contiguous() for g in gs], x.contiguous(), low if in_pairs else None, parts, scale, wanted)
    with_biases(found, gs, parts, wanted[1:])
    adapted = _adapted(parts)
    if low is not None and not (c and in_pairs):
        train = [any(wanted[4 * i + k] for i in adapted) for k in (3, 4)]
        made = low_rank.backward([gs[i] for i in adapted], x, low, list(adapted.values()), scale, g_x, *train)
        for k, gradients in enumerate(made):
            for i, g in zip(adapted, gradients, strict=False):
                found[4 * i + 2 + k] = g if wanted[4 * i + 3 + k] else None
    return g_x, found


def with_biases(found: list[Tensor | None], gs: Sequence[Tensor], parts: Sequence[Part], wanted: Sequence[bool]) -> list[Tensor | None]:
    """Every part's four gradients, the bias's among them."""
    for i, (g, p) in enumerate(zip(gs, parts, strict=True)):
        found[4 * i + 1] = g.sum(0, dtype=p.weight.dtype) if wanted[4 * i + 1] else None
    return found


def _plain(gs: Sequence[Tensor], x: Tensor, parts: Sequence[Part], wanted: Sequence[bool]) -> tuple[Tensor | None, list[Tensor | None]]:
    g_x: Tensor | None = None
    found: list[Tensor | None] = [None] * (4 * len(parts))
    for i, (g, p) in enumerate(zip(gs, parts, strict=True)):
        if wanted[0]:
            weight = p.weight.to(g.dtype)
            g_x = g @ weight if g_x is None else g_x.addmm_(g, weight)
        if wanted[4 * i + 1]:
            found[4 * i] = (g.t() @ x).to(p.weight.dtype)
    return g_x, found


def _adapted(parts: Sequence[Part]) -> dict[int, low_rank.Pair]:
    return {i: (p.a, p.b) for i, p in enumerate(parts) if p.a is not None and p.b is not None}


def reads_input(wanted: Sequence[bool]) -> bool:
    """Whether `backward` needs the input itself: a weight or an A is trained."""
    return any(wanted[1::4]) or any(wanted[3::4])


# -- compiled ----------------------------------------------------------------------------------------------------------------
def _compiled(like: Tensor, dtype: torch.dtype, parts: Sequence[Part]) -> Any:
    """The passes, if they can: they take numbers in pairs, so every side is even."""
    return None if any(n % 2 for p in parts for n in p.weight.shape) else compiled(like, dtype)


def in_one(like: Tensor, dtype: torch.dtype, parts: Sequence[Part]) -> Any:
    """The passes, if they can take a half of a layer whole: its weights laid out are of a size that one call may hold, and adapters are none or in pairs."""
    if sum(p.weight.numel() for p in parts) > WHOLE or (_adapted(parts) and not rank_in_pairs(dtype, parts)):
        return None
    return _compiled(like, dtype, parts)


def rank_in_pairs(dtype: torch.dtype, parts: Sequence[Part]) -> int:
    """Of the adapters, where the passes take them too: in bfloat16, those of all parts, as they are trained, in float32, of an even rank; else 0."""
    paired = all(p.a is not None and p.b is not None and p.a.dtype == p.b.dtype == torch.float32 and p.a.shape[0] % 2 == 0 for p in parts)
    return parts[0].a.shape[0] if dtype == torch.bfloat16 and paired and parts[0].a is not None else 0


def any_size(like: Tensor, dtype: torch.dtype) -> bool:
    """Whether products of any number of rows are as fast as others; oneDNN compiles a kernel for every size that it meets."""
    return compiled(like, dtype) is not None


def structs(parts: Sequence[Part], dtype: torch.dtype, ys: Sequence[Tensor | None]) -> tuple[Any, Any]:
    """The layers as the forward passes read them, ``ys`` what they write; and what must live as long as they do."""
    held = [(p.weight.to(dtype).contiguous(), None if p.bias is None else p.bias.to(dtype)) for p in parts]
    made = (Struct(weight=at(w), bias=at(bias), a=at(p.a), b=at(p.b), y=at(y), outputs=w.shape[0]) for (w, bias), p, y in zip(held, parts, ys, strict=True))
    return (Struct * len(parts))(*made), held


def structs_back(parts: Sequence[Part], dtype: torch.dtype, gs: Sequence[Tensor | None], wanted: Sequence[bool], rank: int) -> tuple[Any, Any, list[Tensor | None]]:
    """The layers as the backward passes read them, what must live as long, and every part's four gradients end to end, which the passes write in float32 (biases' they do not)."""
    train_a, train_b = (rank > 0 and any(wanted[k::4]) for k in (2, 3))
    made, weights = (Struct * len(parts))(), [p.weight.to(dtype).contiguous() for p in parts]
    found: list[Tensor | None] = []
    for i, (g, w, p) in enumerate(zip(gs, weights, parts, strict=True)):
        g_weight, g_a, g_b = _float32(p.weight, wanted[4 * i]), _float32(p.a, train_a), _float32(p.b, train_b)
        made[i] = Struct(weight=at(w), g=at(g), a=at(p.a), b=at(p.b), g_weight=at(g_weight), g_a=at(g_a), g_b=at(g_b), outputs=w.shape[0])
        found += [g_weight, None, g_a, g_b]
    return made, weights, found


def as_wanted(found: Sequence[Tensor | None], parts: Sequence[Part], wanted: Sequence[bool]) -> list[Tensor | None]:
    """Gradients in their tensors' own precision, without those that nobody wants."""
    return [g.to(t.dtype) if w and g is not None and t is not None else None for g, w, t in zip(found, wanted, (t for p in parts for t in p), strict=True)]


def _forward(c: Any, x: Tensor, parts: Sequence[Part], scale: float) -> tuple[list[Tensor], Tensor | None]:
    rank = rank_in_pairs(x.dtype, parts)
    found = [x.new_empty(x.shape[0], p.weight.shape[0]) for p in parts]
    low = x.new_empty(x.shape[0], len(parts) * rank) if rank else None
    made, _held = structs(parts, x.dtype, found)
    c.linears(ctypes.byref(made), len(parts), x.data_ptr(), *x.shape, rank, scale, at(low))
    return found, low


def _backward(c: Any, gs: Sequence[Tensor], x: Tensor, low: Tensor | None, parts: Sequence[Part], scale: float, wanted: Sequence[bool]) -> tuple[Tensor | None, list[Tensor | None]]:
    inputs, rank = parts[0].weight.shape[1], 0 if low is None else rank_in_pairs(gs[0].dtype, parts)
    made, _held, found = structs_back(parts, gs[0].dtype, gs, wanted[1:], rank)
    g_x = gs[0].new_empty(gs[0].shape[0], inputs) if wanted[0] else None
    c.linears_backward(ctypes.byref(made), len(parts), at(x), gs[0].shape[0], inputs, rank, scale, at(low), at(g_x))
    return g_x, as_wanted(found, parts, wanted[1:])


def _float32(like: Tensor | None, wanted: bool) -> Tensor | None:
    return torch.empty_like(like, dtype=torch.float32) if like is not None and wanted else None
