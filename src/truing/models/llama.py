"""The lean forward of Llama-shaped decoders: the same weights as transformers' module, fewer and larger operations.

Linear layers see packed tokens ``[N, D]``; only attention sees the right-padded grid. One implementation serves
scoring and training (`run`), prefill and decoding (`Cache`). `fits` compares it with transformers' own logits before
it is ever used.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from truing.models.adapters import Adapter
from truing.models.attention import causal
from truing.models.lean_backward import gated, rms_norm
from truing.models.pack import Pack

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


def fits(model: PreTrainedModel) -> bool:
    """True when this forward gives transformers' own logits on a probe of 8 tokens (1e-3 relative)."""
    config = model.config
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    if config.model_type not in FAMILIES or config.hidden_act != "silu" or (window and window < config.max_position_embeddings):
        return False
    probe = torch.arange(8) * 7 % config.vocab_size
    with torch.no_grad():
        theirs = model.base_model(input_ids=probe[None], use_cache=False).last_hidden_state[0].float()
        pack = Pack([probe.tolist()])
        ours = run(model, embed(model, pack), pack, 0, None)
    return bool((ours - theirs).abs().max() <= 1e-3 * theirs.abs().max().clamp(min=1.0)) or theirs.dtype != ours.dtype


def embed(model: PreTrainedModel, pack: Pack) -> Tensor:
    """Token embeddings ``[N, D]`` in the precision of the layers."""
    return F.embedding(pack.ids_N, model.get_input_embeddings().weight).to(dtype(model))


def dtype(model: PreTrainedModel) -> torch.dtype:
    """The precision of the layers; embeddings, final normalisation and head keep float32."""
    return model.base_model.layers[0].mlp.down_proj.weight.dtype


def run(model: PreTrainedModel, x_ND: Tensor, pack: Pack, first: int, adapter: Adapter | None) -> Tensor:
    """Layers ``first`` to the top and the final normalisation; float32 out."""
    base = model.base_model
    x_ND = run_layers(model, x_ND, pack, first, len(base.layers), adapter)
    return norm(base.norm, x_ND.float())


def run_layers(model: PreTrainedModel, x_ND: Tensor, pack: Pack, first: int, last: int, adapter: Adapter | None) -> Tensor:
    base = model.base_model
    cos, sin = rotary(model, x_ND, pack.positions_N)
    for index in range(first, last):
        x_ND = _layer(base.layers[index], f"model.layers.{index}", x_ND, pack, cos, sin, adapter)
    return x_ND


def rotary(model: PreTrainedModel, like: Tensor, positions_N: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin, ``[N, 1, head/2]``: the second half of transformers' tables repeats the first."""
    cos, sin = model.base_model.rotary_emb(like[None], positions_N[None])
    half = cos.shape[-1] // 2
    return cos[0, :, None, :half], sin[0, :, None, :half]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def norm(module: nn.Module, x: Tensor) -> Tensor:
    return rms_norm(x, module.weight, module.variance_epsilon)


def linear(module: nn.Linear, path: str, x: Tensor, adapter: Adapter | None) -> Tensor:
    y = F.linear(x, module.weight, module.bias)
    pair = adapter.pair(path) if adapter is not None else None
    if pair is None or adapter is None:
        return y
    return y + F.linear(F.linear(x, (pair[0] * adapter.scale).to(x.dtype)), pair[1].to(x.dtype))


def project(attention: nn.Module, path: str, x_ND: Tensor, cos: Tensor, sin: Tensor, adapter: Adapter | None) -> tuple[Tensor, Tensor, Tensor]:
    """Rotated queries ``[N, H, d]`` and keys ``[N, K, d]``, and values ``[N, K, d]``."""
    d = attention.head_dim
    q, k, v = (linear(getattr(attention, n), f"{path}.{n}", x_ND, adapter).unflatten(-1, (-1, d)) for n in ("q_proj", "k_proj", "v_proj"))
    if hasattr(attention, "q_norm"):
        q, k = norm(attention.q_norm, q), norm(attention.k_norm, k)
    return rotate(q, cos, sin), rotate(k, cos, sin), v


def feed_forward(mlp: nn.Module, path: str, x: Tensor, adapter: Adapter | None) -> Tensor:
    hidden = gated(linear(mlp.gate_proj, f"{path}.gate_proj", x, adapter), linear(mlp.up_proj, f"{path}.up_proj", x, adapter))
    return linear(mlp.down_proj, f"{path}.down_proj", hidden, adapter)


def _layer(layer: nn.Module, path: str, x_ND: Tensor, pack: Pack, cos: Tensor, sin: Tensor, adapter: Adapter | None) -> Tensor:
    q, k, v = project(layer.self_attn, f"{path}.self_attn", norm(layer.input_layernorm, x_ND), cos, sin, adapter)
    mixed_ND = pack.flat(causal(pack.grid(q), pack.grid(k), pack.grid(v), layer.self_attn.scaling)).flatten(-2)
    x_ND = x_ND + linear(layer.self_attn.o_proj, f"{path}.self_attn.o_proj", mixed_ND, adapter)
    return x_ND + feed_forward(layer.mlp, f"{path}.mlp", norm(layer.post_attention_layernorm, x_ND), adapter)
