"""Decoding on the lean forward: a preallocated key/value cache, adapters merged for the time of one rollout.

The merge is a float32 copy of the adapted layers only; the base weights are never touched or rounded. Rows sit at their
own positions (prompts of different length need no padding token). Finished rows leave the cache at once.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from truing.models import llama
from truing.models.attention import causal
from truing.models.pack import Pack
from truing.models.roles import Role


class _Merged(nn.Module):
    """A linear layer with W + (alpha / rank) B A; the layout `llama.linear` reads."""

    def __init__(self, module: nn.Linear, delta: Tensor | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(module.weight.float() if delta is None else module.weight.float() + delta, requires_grad=False)
        self.bias = None if module.bias is None else nn.Parameter(module.bias.float(), requires_grad=False)


class LeanDecoder:
    """One rollout's decoder for a role on a lean backbone."""

    def __init__(self, role: Role) -> None:
        self.model = role.backbone.model
        self.layers = self.model.base_model.layers
        adapter = role.adapter
        self.merged: dict[str, _Merged] = {}
        if adapter is not None:
            modules = dict(self.model.named_modules())
            for path in role.backbone.targets:
                pair = adapter.pair(path)
                self.merged[path] = _Merged(modules[path], None if pair is None else (pair[1] @ pair[0]) * adapter.scale)
        self.precision = [torch.float32 if self._adapted(f"model.layers.{i}") else llama.dtype(self.model) for i in range(len(self.layers))]
        self.swapped = [self._with_merged(layer, f"model.layers.{i}") for i, layer in enumerate(self.layers)]

    def _adapted(self, path: str) -> bool:
        return any(p.startswith(path + ".") for p in self.merged)

    def _with_merged(self, layer: nn.Module, path: str) -> nn.Module:
        """The layer's own submodules, with the merged linear layers in place of the adapted ones."""
        if not self._adapted(path):
            return layer
        view = nn.Module()
        for part in ("self_attn", "mlp"):
            inner, source = nn.Module(), getattr(layer, part)
            for name, child in source.named_children():
                inner.add_module(name, self.merged.get(f"{path}.{part}.{name}", child))
            for name in ("head_dim", "scaling"):
                if hasattr(source, name):
                    setattr(inner, name, getattr(source, name))
            view.add_module(part, inner)
        view.input_layernorm, view.post_attention_layernorm = (copy.deepcopy(n).float() for n in (layer.input_layernorm, layer.post_attention_layernorm))
        return view

    def prefill(self, prompts: Sequence[Sequence[int]], room: int) -> Tensor:
        pack = Pack(prompts)
        config = self.model.config
        heads, width = config.num_key_value_heads, self.layers[0].self_attn.head_dim
        self.lengths = torch.tensor(pack.lengths)
        total = pack.shape[1] + room
        self.cache = []
        x = llama.embed(self.model, pack)
        for index, layer in enumerate(self.swapped):
            x = x.to(self.precision[index])
            cos, sin = llama.rotary(self.model, x, pack.positions_N)
            q, k, v = llama.project(layer.self_attn, "", llama.norm(layer.input_layernorm, x), cos, sin, None)
            q, k, v = (pack.grid(t) for t in (q, k, v))
            keys, values = (torch.zeros(len(pack), heads, total, width, dtype=x.dtype) for _ in range(2))
            keys[:, :, : pack.shape[1]], values[:, :, : pack.shape[1]] = k.transpose(1, 2), v.transpose(1, 2)
            self.cache.append((keys, values))
            mixed = causal(q, k, v, layer.self_attn.scaling)
            x = x + llama.linear(layer.self_attn.o_proj, "", pack.flat(mixed).flatten(-2), None)
            x = x + llama.feed_forward(layer.mlp, "", llama.norm(layer.post_attention_layernorm, x), None)
        return self._logits(x[pack.last()])

    def step(self, tokens: Tensor) -> Tensor:
        rows = torch.arange(len(tokens))
        x = F.embedding(tokens, self.model.get_input_embeddings().weight)
        seen = int(self.lengths.max()) + 1
        visible = (torch.arange(seen) <= self.lengths[:, None])[:, None, None, :]
        tables = {d: llama.rotary(self.model, x.to(d), self.lengths) for d in set(self.precision)}
        for index, layer in enumerate(self.swapped):
            x = x.to(self.precision[index])
            q, k, v = llama.project(layer.self_attn, "", llama.norm(layer.input_layernorm, x), *tables[x.dtype], None)
            keys, values = self.cache[index]
            keys[rows, :, self.lengths], values[rows, :, self.lengths] = k, v
            groups = q.shape[1] // k.shape[1]
            grouped = q.unflatten(1, (k.shape[1], groups))  # [B, K, G, d]: queries of one key head together
            scores = (grouped @ keys[:, :, :seen].transpose(-1, -2)).float() * layer.self_attn.scaling
            weights = scores.masked_fill(~visible, float("-inf")).softmax(-1).to(x.dtype)
            mixed = (weights @ values[:, :, :seen]).flatten(1)
            x = x + llama.linear(layer.self_attn.o_proj, "", mixed, None)
            x = x + llama.feed_forward(layer.mlp, "", llama.norm(layer.post_attention_layernorm, x), None)
        self.lengths = self.lengths + 1
        return self._logits(x)

    def keep(self, rows: Tensor) -> None:
        seen = int(self.lengths.max()) + 1
        for keys, values in self.cache:  # in place: rows only move up, and only their used part
            keys[: len(rows), :, :seen], values[: len(rows), :, :seen] = keys[rows, :, :seen], values[rows, :, :seen]
        self.cache = [(k[: len(rows)], v[: len(rows)]) for k, v in self.cache]
        self.lengths = self.lengths[rows]

    def _logits(self, x: Tensor) -> Tensor:
        head = self.model.get_output_embeddings()
        return F.linear(llama.norm(self.model.base_model.norm, x.float()), head.weight, head.bias)
