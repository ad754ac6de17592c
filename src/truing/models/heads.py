"""One scalar head serves the reward and the value model."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from truing.seeds import generator


class ScalarHead(nn.Module):
    """``r = w . h + b`` with w ~ N(0, 1/(D + 1)), b = 0. Source: Huang et al. 2024, "N implementation details", value head."""

    def __init__(self, width: int, *, seed: int, purpose: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, generator=generator(seed, purpose)) / math.sqrt(width + 1))
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden @ self.weight + self.bias
