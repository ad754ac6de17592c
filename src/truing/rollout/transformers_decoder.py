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
        self.model = role.backbone.model

    def admit(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        lengths = torch.tensor([len(p) for p in prompts])
        longest = int(lengths.max())
        ids = torch.tensor([[0] * (longest - len(p)) + list(p) for p in prompts])
        self.mask = (torch.arange(longest) >= (longest - lengths)[:, None]).long()
        self.lengths, self.past = lengths, None
        return self._forward(ids, (self.mask.cumsum(-1) - 1).clamp(min=0))

    def step(self, tokens: Tensor) -> Tensor:
        self.mask = torch.cat([self.mask, torch.ones(len(tokens), 1, dtype=torch.long)], 1)
        positions = self.lengths[:, None]
        self.lengths = self.lengths + 1
        return self._forward(tokens[:, None], positions)

    def keep(self, rows: Tensor) -> None:
        self.mask, self.lengths = self.mask[rows], self.lengths[rows]
        self.past.batch_select_indices(rows)  # type: ignore[attr-defined]

    def _forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        with self.role.backbone.under(self.role.adapter):
            out = self.model(input_ids=ids, attention_mask=self.mask, position_ids=positions, past_key_values=self.past, use_cache=True, logits_to_keep=1)
        self.past = out.past_key_values
        return out.logits[:, -1].float()
