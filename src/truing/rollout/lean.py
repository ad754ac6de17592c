"""Decoding on the lean forward: the module's own weights, a key/value cache laid anew every few columns, rows that come and go.

All rows write the same column of the cache, so a step's write is one slice: a row's tokens end at the common column, wherever they
began. Rows of one prompt share its prefill. Shapes: b rows, H query heads on K key heads, G = H / K, width d, C columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from truing.models import fused, llama
from truing.models.adapters import Adapter
from truing.models.attention import attend
from truing.models.pack import Pack
from truing.models.roles import Role

PREFILL = 4096  # prompt tokens read at once
PACKED = 2**31  # bytes of weights up to which a rollout makes a copy of them in the layout that products read
ROWS, COLUMNS = 8, 16  # the cache's sizes are multiples of these: oneDNN compiles a kernel for every new shape, which costs as much as three layers


class LeanDecoder:
    """One rollout's decoder for a role on a lean backbone.

    The cache is exactly as large as what is looked at, since products read whole tensors without a copy: every few steps it is laid
    anew, a little longer, or shorter when the rows that began first have gone.
    """

    joins = True

    def __init__(self, role: Role) -> None:
        self.model, self.dtype, self.device = role.backbone.model, role.backbone.dtype, role.backbone.device
        config = self.model.config
        onednn = self.device.type == "cpu" and hasattr(torch.ops.mkldnn, "_reorder_linear_weight") and torch.backends.mkldnn.is_available()
        packed = onednn and _bytes(self.model, self.dtype) <= PACKED
        self.layers = [_Layer(layer, f"model.layers.{i}", role.adapter, self.dtype, packed=packed) for i, layer in enumerate(self.model.base_model.layers)]
        self.head = _Linear([("lm_head", self.model.get_output_embeddings())], None, torch.float32, packed=packed)
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
        look = fused.LookBack(self.turn, lengths, self.column, self.columns, self.layers[0].scale, self.dtype)
        for layer, keys, values in zip(self.layers, self.keys, self.values, strict=True):
            qk, v = layer.project(x)
            x = layer.finish(x, look(qk, v, keys[:rows], values[:rows]))
        self.lengths = self.lengths + 1
        self.column += 1
        return self._logits(x[:b])

    def _logits(self, x: Tensor) -> Tensor:
        return self.head(llama.norm(self.model.base_model.norm, x))


class _Layer:
    """A decoder layer's weights as the decoder multiplies them: those that read the same input as one."""

    def __init__(self, layer: nn.Module, path: str, adapter: Adapter | None, dtype: torch.dtype, *, packed: bool) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        linear = lambda part, *names: _Linear([(f"{path}.{part}.{n}", getattr(getattr(layer, part), n)) for n in names], adapter, dtype, packed=packed)  # noqa: E731
        self.qkv, self.out = linear("self_attn", "q_proj", "k_proj", "v_proj"), linear("self_attn", "o_proj")
        self.gate_up, self.down = linear("mlp", "gate_proj", "up_proj"), linear("mlp", "down_proj")
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


class _Linear:
    """``W x + b + (alpha / rank) B A x`` of layers that read the same x, side by side. The adapter is merged only where that rounds nothing.

    ``packed`` lays a copy of the weights out as oneDNN's products read them: with 64 rows they take two thirds of the time, with 8 less than half.
    """

    def __init__(self, layers: Sequence[tuple[str, nn.Linear]], adapter: Adapter | None, dtype: torch.dtype, *, packed: bool) -> None:
        modules = [m for _, m in layers]
        self.weights = [m.weight.detach().to(dtype) for m in modules]
        self.biases = [None if m.bias is None else m.bias.detach().to(dtype) for m in modules]
        self.low = None if adapter is None else _side_by_side(adapter, [path for path, _ in layers], modules, dtype)
        self.packed: Tensor | None = None
        if packed:
            weight = torch.cat(self.weights)
            if self.low is not None and dtype == torch.float32:
                weight, self.low = torch.addmm(weight, self.low[1].T, self.low[0]), None
            elif self.low is not None:  # [W, B] [x, A x]: the adapter is a few more columns of the one product
                weight = torch.cat([weight, self.low[1].T], 1)
            self.packed, self.weights = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS), []
            self.bias = None if self.biases[0] is None else torch.cat([b for b in self.biases if b is not None])

    def __call__(self, x: Tensor) -> Tensor:
        if self.packed is not None:
            both = x if self.low is None else torch.cat([x, F.linear(x, self.low[0])], -1)
            return torch.ops.mkldnn._linear_pointwise(both, self.packed, self.bias, "none", [], "")
        y = torch.cat([F.linear(x, w, b) for w, b in zip(self.weights, self.biases, strict=True)], -1)
        return y if self.low is None else y.addmm_(F.linear(x, self.low[0]), self.low[1])


def _side_by_side(adapter: Adapter, paths: Sequence[str], modules: Sequence[nn.Linear], dtype: torch.dtype) -> tuple[Tensor, Tensor] | None:
    """The A of several layers one below the other, times alpha / rank, ``[sum r, D]``; their B on a diagonal, ``[sum r, sum out]``."""
    pairs = [adapter.pair(path) for path in paths]
    if not any(pairs):
        return None
    both = [p or tuple(torch.zeros(shape, device=m.weight.device) for shape in ((0, m.weight.shape[1]), (len(m.weight), 0))) for p, m in zip(pairs, modules, strict=True)]
    return torch.cat([a for a, _ in both]).mul(adapter.scale).to(dtype), torch.block_diag(*[b for _, b in both]).T.to(dtype)


def _bytes(model: nn.Module, dtype: torch.dtype) -> int:
    return sum(p.numel() for p in model.parameters()) * dtype.itemsize


def _up(n: int, step: int) -> int:
    return -(-n // step) * step
