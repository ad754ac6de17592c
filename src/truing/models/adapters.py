"""Low-rank adapters (LoRA): many on one frozen backbone, each the difference that makes a role.

``y = W x + (alpha / rank) B A x``, A ~ U(-1/sqrt(in), 1/sqrt(in)) (Kaiming with a = sqrt 5, the reference
implementation's), B = 0, so a fresh adapter changes nothing. Adapter weights are float32 whatever the backbone is.
Source: Hu et al. 2021 (arXiv 2106.09685), section 4.1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from truing.config import Lora
from truing.errors import ModelError
from truing.seeds import generator


class Adapter(nn.Module):
    """Pairs (A ``[r, in]``, B ``[out, r]``) keyed by the module path of the linear layer they belong to."""

    def __init__(self, shapes: Mapping[str, tuple[int, int]], options: Lora, *, seed: int, purpose: str) -> None:
        super().__init__()
        self.options = options
        self.scale = options.alpha / options.rank
        self.weights = nn.ParameterDict()
        self._names = {path: (_key(path, "A"), _key(path, "B")) for path in shapes}
        for index, (path, (out_features, in_features)) in enumerate(shapes.items()):
            a, b = self._names[path]
            bound = 1.0 / math.sqrt(in_features)
            uniform = torch.rand(options.rank, in_features, generator=generator(seed, purpose, index))
            self.weights[a] = nn.Parameter((2 * uniform - 1) * bound)
            self.weights[b] = nn.Parameter(torch.zeros(out_features, options.rank))

    def pair(self, path: str) -> tuple[Tensor, Tensor] | None:
        """(A, B) of a linear layer, or None when it is not adapted."""
        names = self._names.get(path)
        return None if names is None else (self.weights[names[0]], self.weights[names[1]])

    def tensors(self) -> dict[str, Tensor]:
        return {name.replace("|", "."): p for name, p in self.weights.items()}

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor], place: str = "adapter") -> Adapter:
        """Copy weights in. Raises ModelError when names or shapes differ from what this backbone needs."""
        own = self.tensors()
        if set(own) != set(tensors):
            odd = sorted(set(own) ^ set(tensors))
            raise ModelError(f"{place}: {len(odd)} tensors do not match this model, the first is {odd[0]!r}; use the model and lora options it was trained with")
        for name, p in own.items():
            if p.shape != tensors[name].shape:
                raise ModelError(f"{place}: {name} has shape {tuple(tensors[name].shape)}, this model needs {tuple(p.shape)}")
            p.copy_(tensors[name])
        return self

    def frozen(self) -> Adapter:
        """The same adapter with no gradient."""
        return self.requires_grad_(False)


def _key(path: str, which: str) -> str:
    return f"{path}.{which}".replace(".", "|")  # ParameterDict keys may not hold dots
