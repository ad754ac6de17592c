"""Decoding with any transformers decoder: its own forward and cache, prompts padded on the left."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from truing.models.roles import Role


class TransformersDecoder:
    """One rollout's decoder for a role on a backbone that the lean forward does not cover. Rows begin together: caches differ too much to join them."""

    joins = False

    def __init__(self, role: Role) -> None:
        self.role = role
        self.model, self.device = role.backbone.model, role.backbone.device

    def admit(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(p)) + list(p) for p in prompts], device=self.device)
        self.lengths, self.past = torch.tensor([len(p) for p in prompts], device=self.device), None
        self.mask = (torch.arange(longest, device=self.device) >= (longest - self.lengths)[:, None]).long()
        return self._forward(ids, (self.mask.cumsum(-1) - 1).clamp(min=0))

    def step(self, tokens: Tensor) -> Tensor:
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], 1)
        positions = self.lengths[:, None]
        self.lengths = self.lengths + 1
        return self._forward(tokens[:, None].to(self.device), positions)

    def keep(self, rows: Tensor) -> None:
        rows = rows.to(self.device)
        self.mask, self.lengths = self.mask[rows], self.lengths[rows]
        self.past.batch_select_indices(rows)  # type: ignore[attr-defined]

    def _forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        with self.role.backbone.under(self.role.adapter):
            out = self.model(input_ids=ids, attention_mask=self.mask, position_ids=positions, past_key_values=self.past, use_cache=True, logits_to_keep=1)
        self.past = out.past_key_values
        return out.logits[:, -1].float()
