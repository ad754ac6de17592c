"""Decoding on the lean forward: the module's own weights, a key/value cache laid anew every few columns, rows that come and go.

All rows write the same column of the cache, so a step's write is one slice: a row's tokens end at the common column, wherever they
began. Rows of one prompt share its prefill. Shapes: b rows, H query heads on K key heads, G = H / K, width d, C columns.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from truing.models import fused, llama
from truing.models.adapters import Adapter
from truing.models.attention import attend
from truing.models.pack import Pack
from truing.models.roles import Role
from truing.native import passes
from truing.rollout.products import PACKED, POINTER, ROWS, LaidOut, Product, linear

PREFILL = 4096  # prompt tokens read at once
COLUMNS = 16  # the cache has a multiple of them, and of ROWS: oneDNN compiles a kernel for every new shape, which costs as much as three layers


class LeanDecoder:
    """One rollout's decoder for a role on a lean backbone.

    The cache is exactly as large as what is looked at, since products read whole tensors without a copy: every few steps it is laid
    anew, a little longer, or shorter when the rows that began first have gone.
    """

    joins = True

    def __init__(self, role: Role) -> None:
        self.model, self.dtype, self.device = role.backbone.model, role.backbone.dtype, role.backbone.device
        config = self.model.config
        packed = _bytes(self.model, self.dtype) <= PACKED
        self.layers = [_Layer(layer, f"model.layers.{i}", role.adapter, self.dtype, packed=packed) for i, layer in enumerate(self.model.base_model.layers)]
        self.head = linear([("lm_head", self.model.get_output_embeddings())], None, torch.float32, packed=packed)
        self.compiled = _Compiled(self.layers) if all(isinstance(p, LaidOut) for layer in self.layers for p in layer.products) else None
        self.heads, self.width = config.num_key_value_heads, self.layers[0].width
        self.columns = self.column = 0
        self.keys = [torch.zeros(0, self.heads, self.width, 0, dtype=self.dtype, device=self.device) for _ in self.layers]  # [b, K, d, C]: queries times it need no transpose
        self.values = [torch.zeros(0, self.heads, 0, self.width, dtype=self.dtype, device=self.device) for _ in self.layers]
        self.lengths = torch.zeros(0, dtype=torch.long)  # which rows there are and how long is kept on the CPU

    # -- rows ----------------------------------------------------------------------------------------------------
    def admit(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """New rows after the present ones; the logits after their prompts, ``[n, V]``. Equal prompts are read once."""
        first = len(self.lengths)
        longest = max(map(len, prompts))
        if first == 0 or first + len(prompts) > len(self.keys[0]) or longest > self.column:
            self._lay(first + len(prompts), longest)
        self.lengths = torch.cat([self.lengths, torch.tensor([len(p) for p in prompts])])
        places: dict[tuple[int, ...], list[int]] = {}
        for place, prompt in enumerate(prompts):
            places.setdefault(tuple(prompt), []).append(place)
        pack = Pack(list(places))
        owners = list(places.values())
        logits = torch.empty(len(prompts), self.model.get_output_embeddings().weight.shape[0], device=self.device)
        for part in pack.cut(PREFILL):
            of = [(source, place) for source, own in enumerate(owners[part.start : part.stop]) for place in own]
            source, place = torch.tensor(of).T
            logits[place] = self._prefill(pack.select(part).on(self.device), source, place + first)[source]
        return logits

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows, in this order. Only those whose place changes are moved: the last ones, into the gaps."""
        new = torch.arange(len(rows))
        to = new[rows != new]
        if len(to):
            source = rows[to]
            at = slice(max(0, self.column - int(self.lengths[source].max())), self.column)
            to, source = to.to(self.device), source.to(self.device)
            for keys, values in zip(self.keys, self.values, strict=True):
                keys[to, :, :, at] = keys[source][..., at]
                values[to, :, at] = values[source][:, :, at]
        self.lengths = self.lengths[rows]

    def _lay(self, rows: int, column: int = 0) -> None:
        """Lay the cache anew for so many rows. What is still looked at ends at the common column, which becomes `column`, or more where that is not enough."""
        b = len(self.lengths)
        seen = int(self.lengths.max()) if b else 0
        column = max(column, seen)
        self.columns = _up(column + 1, COLUMNS * (column // (16 * COLUMNS) + 1))
        old, new = slice(self.column - seen, self.column), slice(column - seen, column)
        for index, (keys, values) in enumerate(zip(self.keys, self.values, strict=True)):  # a layer at a time, so that hardly more than one is there twice
            self.keys[index] = keys.new_zeros(_up(rows, ROWS), self.heads, self.width, self.columns)
            self.values[index] = values.new_zeros(_up(rows, ROWS), self.heads, self.columns, self.width)
            self.keys[index][:b, :, :, new], self.values[index][:b, :, new] = keys[:b, :, :, old], values[:b, :, old]
        self.column = column
        context = getattr(self.model.config, "max_position_embeddings", None) or self.columns
        self.turn = llama.turns(self.model, min(self.columns, context), torch.zeros(0, device=self.device))  # rope that stretches beyond the context must not hear of a column there

    # -- forward -------------------------------------------------------------------------------------------------
    def _prefill(self, pack: Pack, source: Tensor, rows: Tensor) -> Tensor:
        """Logits after every sequence of the pack; its keys and values go to the rows that it is the source of, up to the common column."""
        x = llama.embed(self.model, pack)
        turn = llama.turns(self.model, pack.shape[1], x)
        cos, sin = (table[pack.positions_N, None] for table in turn)
        lengths, longest = torch.tensor(pack.lengths), pack.shape[1]
        back = torch.arange(longest - 1, -1, -1)  # right-aligned; in front of a shorter prompt its first token stands, unseen
        tokens = torch.tensor(pack.starts)[:, None] + (lengths[:, None] - 1 - back).clamp(min=0)
        tokens, rows, at = tokens[source].flatten().to(self.device), rows.to(self.device), slice(self.column - longest, self.column)
        for index, layer in enumerate(self.layers):
            qk, v = layer.project(x)
            q, k = qk.split((layer.heads, self.heads), -2)
            held = [t.to(self.dtype)[tokens].unflatten(0, (len(rows), longest)) for t in (fused.turned(k, cos, sin), v)]
            self.keys[index][rows, :, :, at], self.values[index][rows, :, at] = held[0].permute(0, 2, 3, 1), held[1].transpose(1, 2)
            mixed = attend(q, k, v, pack, turn, layer.scale).flatten(-2)
            if index + 1 == len(self.layers):
                mixed, x = mixed[pack.last()], x[pack.last()]
            x = layer.finish(x, mixed)
        return self._logits(x)

    def step(self, tokens: Tensor) -> Tensor:
        """One more token a row; the logits after it, ``[b, V]``."""
        if self.column == self.columns:
            self._lay(len(tokens))
        b = len(tokens)
        rows = _up(b, ROWS)
        lengths, tokens = (F.pad(x, (0, rows - b)).to(self.device) for x in (self.lengths, tokens))
        x = F.embedding(tokens, self.model.get_input_embeddings().weight).float()
        x = self._through(x, lengths) if self.compiled is None else self.compiled.through(x, lengths, self)
        self.lengths = self.lengths + 1
        self.column += 1
        return self._logits(x[:b])

    def _through(self, x: Tensor, lengths: Tensor) -> Tensor:
        """The states of the rows' new tokens after the last layer; their keys and values stand in the cache."""
        look = fused.LookBack(self.turn, lengths, self.column, self.columns, self.layers[0].scale, self.dtype)
        for layer, keys, values in zip(self.layers, self.keys, self.values, strict=True):
            qk, v = layer.project(x)
            x = layer.finish(x, look(qk, v, keys[: len(x)], values[: len(x)]))
        return x

    def _logits(self, x: Tensor) -> Tensor:
        return self.head(llama.norm(self.model.base_model.norm, x))


class _Layer:
    """A decoder layer's weights as the decoder multiplies them: those that read the same input as one."""

    def __init__(self, layer: nn.Module, path: str, adapter: Adapter | None, dtype: torch.dtype, *, packed: bool) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        group = lambda part, *names: linear([(f"{path}.{part}.{n}", getattr(getattr(layer, part), n)) for n in names], adapter, dtype, packed=packed)  # noqa: E731
        self.qkv, self.out = group("self_attn", "q_proj", "k_proj", "v_proj"), group("self_attn", "o_proj")
        self.gate_up, self.down = group("mlp", "gate_proj", "up_proj"), group("mlp", "down_proj")
        self.products = self.qkv, self.out, self.gate_up, self.down
        self.before, self.after = (_Norm(module, dtype) for module in (layer.input_layernorm, layer.post_attention_layernorm))
        self.q_norm, self.k_norm = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)
        self.width, self.scale, self.inner = attention.head_dim, attention.scaling, len(mlp.gate_proj.weight)
        self.heads, keys = len(attention.q_proj.weight) // self.width, len(attention.k_proj.weight) // self.width
        self.split = (self.heads + keys, keys)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys ``[N, H + K, d]``, not turned by their positions yet, and values ``[N, K, d]``."""
        qk, v = self.qkv(self.before(x)).unflatten(-1, (-1, self.width)).split(self.split, -2)
        if self.q_norm is not None and self.k_norm is not None:
            qk = torch.cat([llama.norm(self.q_norm, qk[:, : self.heads]), llama.norm(self.k_norm, qk[:, self.heads :])], -2)
        return qk, v

    def finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        """The rest of the layer, after attention."""
        x, n, _ = fused.add_norm(x, self.out(mixed), self.after.weight, self.after.eps)
        gate, up = self.gate_up(n).split(self.inner, -1)
        return fused.add(x, self.down(fused.gate(gate, up)))


class _Norm:
    """Of float32 states, for products in another precision."""

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        self.weight, self.eps, self.dtype = module.weight.float(), module.variance_epsilon, dtype

    def __call__(self, x: Tensor) -> Tensor:
        return fused.norm(x, self.weight, self.eps, self.dtype)[0]


class _Struct(ctypes.Structure):
    """A layer as `decode.c` has it."""

    _fields_ = (
        *((name, Product) for name in ("qkv", "out", "gate_up", "down")), *((name, POINTER) for name in ("before", "after", "q_norm", "k_norm", "keys", "values")),
    )  # fmt: skip


class _Compiled:
    """All layers in one call."""

    def __init__(self, layers: Sequence[_Layer]) -> None:
        first = self.first = layers[0]
        self.passes: Any = passes(first.before.weight, first.before.dtype)
        self.norms = [
            [layer.before.weight, layer.after.weight, *(None if norm is None else norm.weight.float() for norm in (layer.q_norm, layer.k_norm))] for layer in layers
        ]  # fmt: skip
        self.structs = (_Struct * len(layers))(
            *(_Struct(*(p.product for p in layer.products), *(None if w is None else w.data_ptr() for w in norms)) for layer, norms in zip(layers, self.norms, strict=True))
        )

    def through(self, x: Tensor, lengths: Tensor, of: LeanDecoder) -> Tensor:
        """Takes the place of ``x``."""
        for struct, keys, values in zip(self.structs, of.keys, of.values, strict=True):
            struct.keys, struct.values = keys.data_ptr(), values.data_ptr()
        layer, turn = self.first, of.turn
        self.passes.step(
            ctypes.byref(self.structs), len(self.structs), x.data_ptr(), *x.shape, layer.before.eps, turn.cos.data_ptr(), turn.sin.data_ptr(), lengths.data_ptr(), layer.scale,
            of.column, of.columns, of.heads, layer.heads // of.heads, layer.width,
        )  # fmt: skip
        return x


def _bytes(model: nn.Module, dtype: torch.dtype) -> int:
    return sum(p.numel() for p in model.parameters()) * dtype.itemsize


def _up(n: int, step: int) -> int:
    return -(-n // step) * step
