"""Weights as decoding multiplies them: few rows by the same weights, for a whole rollout.

``y = W x + b + (alpha / rank) B A x`` of layers that read the same x, side by side. Where `native` has products (AVX-512) a copy of the weights lies in
the order in which they are read, and a step goes through all layers in one call. Elsewhere it lies in oneDNN's order, with which 64 rows take
two thirds of the time; models of more than `PACKED` bytes are multiplied as they are.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from truing.models.adapters import Adapter
from truing.native import passes

PACKED = 2**31  # bytes of weights up to which a rollout makes a copy of them
ROWS, LANES = 8, 16  # rows that oneDNN's order is made for; columns that stand beside each other in ours
POINTER, INTEGER = ctypes.c_void_p, ctypes.c_int64

Named = Sequence[tuple[str, nn.Linear]]


def linear(layers: Named, adapter: Adapter | None, dtype: torch.dtype, *, packed: bool) -> Shared | Reordered | LaidOut:
    """These layers in the fastest form that this machine has; ``packed`` allows a copy of their weights."""
    shared = Shared(layers, adapter, dtype)
    if not packed or shared.weights[0].device.type != "cpu":
        return shared
    if hasattr(passes(shared.weights[0], dtype), "multiply") and all(w.shape[1] % 2 == 0 for w in shared.weights):
        return LaidOut(shared)
    onednn = hasattr(torch.ops.mkldnn, "_reorder_linear_weight") and torch.backends.mkldnn.is_available()
    return Reordered(shared) if onednn else shared


class Shared:
    """The module's own weights, in the products' precision."""

    def __init__(self, layers: Named, adapter: Adapter | None, dtype: torch.dtype) -> None:
        modules = [m for _, m in layers]
        self.weights = [m.weight.detach().to(dtype) for m in modules]
        self.biases = [None if m.bias is None else m.bias.detach().to(dtype) for m in modules]
        self.low = None if adapter is None else _side_by_side(adapter, [path for path, _ in layers], modules, dtype)

    def __call__(self, x: Tensor) -> Tensor:
        y = torch.cat([F.linear(x, w, b) for w, b in zip(self.weights, self.biases, strict=True)], -1)
        return y if self.low is None else y.addmm_(F.linear(x, self.low[0]), self.low[1])

    def one(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """``[W, B]``, ``A`` and ``b`` of one product ``[W, B] [x, A x] + b``; an adapter is merged only where that rounds nothing."""
        weight = torch.cat(self.weights)
        bias = None if self.biases[0] is None else torch.cat([b for b in self.biases if b is not None])
        if self.low is None:
            return weight, None, bias
        if weight.dtype == torch.float32:
            return torch.addmm(weight, self.low[1].T, self.low[0]), None, bias
        return torch.cat([weight, self.low[1].T], 1), self.low[0], bias


class Reordered:
    """A copy in oneDNN's order."""

    def __init__(self, of: Shared) -> None:
        weight, self.low, self.bias = of.one()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)

    def __call__(self, x: Tensor) -> Tensor:
        both = x if self.low is None else torch.cat([x, F.linear(x, self.low)], -1)
        return torch.ops.mkldnn._linear_pointwise(both, self.weight, self.bias, "none", [], "")


class Product(ctypes.Structure):
    """As `decode.c` has it."""

    _fields_ = (("weights", POINTER), ("low", POINTER), ("bias", POINTER), ("inputs", INTEGER), ("ranks", INTEGER), ("outputs", INTEGER))


class LaidOut:
    """A copy in the order in which the products of `decode.c` read it."""

    def __init__(self, of: Shared) -> None:
        weight, low, bias = of.one()
        self.passes: Any = passes(weight, weight.dtype)
        ranks = 0 if low is None else len(low)
        self.held = self._words(weight), None if low is None else self._words(low), bias
        self.product = Product(*(None if t is None else t.data_ptr() for t in self.held), weight.shape[1] - ranks, ranks, len(weight))

    def _words(self, weight: Tensor) -> Tensor:
        words = weight.new_empty(-(-len(weight) // LANES) * LANES, weight.shape[1])
        self.passes.lay_out(weight.contiguous().data_ptr(), *weight.shape, words.data_ptr())
        return words

    def __call__(self, x: Tensor) -> Tensor:
        y = x.new_empty(len(x), self.product.outputs)
        self.passes.multiply(ctypes.byref(self.product), x.contiguous().data_ptr(), len(x), y.data_ptr())
        return y


def _side_by_side(adapter: Adapter, paths: Sequence[str], modules: Sequence[nn.Linear], dtype: torch.dtype) -> tuple[Tensor, Tensor] | None:
    """The A of several layers one below the other, times alpha / rank, ``[sum r, D]``; their B on a diagonal, ``[sum r, sum out]``. The sum of r is made even."""
    pairs = [adapter.pair(path) for path in paths]
    if not any(pairs):
        return None
    both = [p or tuple(torch.zeros(shape, device=m.weight.device) for shape in ((0, m.weight.shape[1]), (len(m.weight), 0))) for p, m in zip(pairs, modules, strict=True)]
    a, b = torch.cat([a for a, _ in both]).mul(adapter.scale).to(dtype), torch.block_diag(*[b for _, b in both]).T.to(dtype)
    return F.pad(a, (0, 0, 0, len(a) % 2)), F.pad(b, (0, 0, 0, len(b) % 2))

