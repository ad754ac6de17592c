"""Linear layers that read the same input, with their adapters: forward and backward written out.

``y = x W^T + b + (alpha / rank) (x A^T) B^T``. Products run in the precision of ``x``; weights of another are cast for the one product and
their gradients come back in their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from truing.models import low_rank
from truing.models.adapters import Adapter


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
    found = [F.linear(x, p.weight.to(x.dtype), None if p.bias is None else p.bias.to(x.dtype)) for p in parts]
    adapted = [(y, (p.a, p.b)) for y, p in zip(found, parts, strict=True) if p.a is not None and p.b is not None]
    return found, low_rank.add(x, [y for y, _ in adapted], [pair for _, pair in adapted], scale) if adapted else None


def backward(gs: Sequence[Tensor], x: Tensor, low: Tensor | None, parts: Sequence[Part], scale: float, wanted: Sequence[bool]) -> tuple[Tensor | None, list[Tensor | None]]:
    """The gradient of ``x``, and of every part's four tensors end to end; ``wanted`` says of which, ``x`` first. ``x`` may be empty when no weight and no A is."""
    g_x: Tensor | None = None
    found: list[Tensor | None] = [None] * (4 * len(parts))
    for i, (g, p) in enumerate(zip(gs, parts, strict=True)):
        if wanted[0]:
            weight = p.weight.to(g.dtype)
            g_x = g @ weight if g_x is None else g_x.addmm_(g, weight)
        if wanted[4 * i + 1]:
            found[4 * i] = (g.t() @ x).to(p.weight.dtype)
        if wanted[4 * i + 2]:
            found[4 * i + 1] = g.sum(0, dtype=p.weight.dtype)
    adapted = [(i, (p.a, p.b)) for i, p in enumerate(parts) if p.a is not None and p.b is not None]
    if low is not None:
        train = [any(wanted[4 * i + k] for i, _ in adapted) for k in (3, 4)]
        made = low_rank.backward([gs[i] for i, _ in adapted], x, low, [pair for _, pair in adapted], scale, g_x, *train)
        for k, gradients in enumerate(made):
            for (i, _), g in zip(adapted, gradients, strict=False):
                found[4 * i + 2 + k] = g if wanted[4 * i + 3 + k] else None
    return g_x, found


def reads_input(wanted: Sequence[bool]) -> bool:
    """Whether `backward` needs the input itself: a weight or an A is trained."""
    return any(wanted[1::4]) or any(wanted[3::4])
