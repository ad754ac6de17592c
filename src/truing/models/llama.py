"""The lean forward of Llama-shaped decoders: the same weights as transformers' module, fewer and larger operations.

Linear layers see packed tokens ``[N, D]``; only attention sees the right-padded grid. One implementation serves
scoring and training (`run`), prefill and decoding (`Cache`). `fits` compares it with transformers' own logits before
it is ever used.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from truing.models import halves, linears
from truing.models.adapters import Adapter
from truing.models.attention import attend
from truing.models.fused import Turn
from truing.models.huggingface import PreTrainedModel
from truing.models.lean_backward import rms_norm, rows
from truing.models.pack import Pack

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


def fits(model: PreTrainedModel) -> bool:
    """True when this forward gives transformers' own logits on a probe of 8 tokens (1e-3 relative)."""
    config = model.config
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    if getattr(model.base_model.rotary_emb if config.model_type in FAMILIES else None, "rope_type", None) == "longrope":
        return False  # its tables depend on the longest sequence at hand, and so would every other sequence of a batch
    if config.model_type not in FAMILIES or config.hidden_act != "silu" or (window and window < config.max_position_embeddings):
        return False
    device = model.get_input_embeddings().weight.device
    probe = torch.arange(8, device=device) * 7 % config.vocab_size
    with torch.no_grad():
        theirs = model.base_model(input_ids=probe[None], use_cache=False).last_hidden_state[0].float()
        pack = Pack([probe.tolist()]).on(device)
        ours = run(model, embed(model, pack), pack, 0, None, How(dtype(model)))
    return bool((ours - theirs).abs().max() <= 1e-3 * theirs.abs().max().clamp(min=1.0)) or theirs.dtype != ours.dtype


def embed(model: PreTrainedModel, pack: Pack) -> Tensor:
    """Token embeddings ``[N, D]``, float32: states between layers are."""
    return F.embedding(pack.ids_N, model.get_input_embeddings().weight).float()


def dtype(model: PreTrainedModel) -> torch.dtype:
    """The precision in which the layers' weights are kept; embeddings, final normalisation and head keep float32."""
    return model.base_model.layers[0].mlp.down_proj.weight.dtype


@dataclass(frozen=True)
class How:
    """``dtype`` of the layers' products; ``checkpointing`` keeps each layer's input alone for backward and makes the rest again."""

    dtype: torch.dtype = torch.float32
    checkpointing: bool = False


def run(model: PreTrainedModel, x_ND: Tensor, pack: Pack, first: int, adapter: Adapter | None, how: How, positions: Tensor | None = None) -> Tensor:
    """Layers ``first`` to the top and the final normalisation, at some packed positions or (None) all; float32 out."""
    base = model.base_model
    x_ND = run_layers(model, x_ND.float(), pack, first, len(base.layers), adapter, how, positions)
    return norm(base.norm, x_ND)


def run_layers(model: PreTrainedModel, x_ND: Tensor, pack: Pack, first: int, last: int, adapter: Adapter | None, how: How, positions: Tensor | None = None) -> Tensor:
    """States after layers ``first`` to ``last - 1``. After the last one's attention, rows at other positions are no longer needed."""
    wanted = len(x_ND) if positions is None else len(positions)
    turn = turns(model, pack.shape[1], x_ND)
    if more := even(len(x_ND), x_ND, how.dtype) - len(x_ND):
        x_ND = F.pad(x_ND, (0, 0, 0, more))
    for index in range(first, last):
        given = (model.base_model.layers[index], f"model.layers.{index}", x_ND, pack, turn, adapter, how.dtype, positions if index == last - 1 else None)
        x_ND = checkpoint(_layer, *given, use_reentrant=False, preserve_rng_state=False) if how.checkpointing and torch.is_grad_enabled() else _layer(*given)
    return (x_ND if positions is None or last > first else x_ND[positions])[:wanted]


def even(n: int, like: Tensor, dtype: torch.dtype) -> int:
    """n, or where products are oneDNN's n rounded up to one of eight sizes an octave: it compiles a kernel for every size it meets, which takes longer than a few rows more."""
    return n if linears.any_size(like, dtype) else octave(n)


def octave(n: int) -> int:
    """n rounded up to one of eight sizes an octave.

    >>> [octave(n) for n in (1, 8, 100, 128, 129, 2000)]
    [8, 8, 104, 128, 144, 2048]
    """
    step = 1 << max(3, (n - 1).bit_length() - 4)
    return -(-n // step) * step


def turns(model: PreTrainedModel, longest: int, like: Tensor) -> Turn:
    """Rotary tables of positions 0 to ``longest - 1``."""
    cos, sin = model.base_model.rotary_emb(like[None].float(), torch.arange(longest, device=like.device)[None])
    half = cos.shape[-1] // 2
    return Turn(cos[0].contiguous(), torch.cat((-sin[0, :, :half], sin[0, :, half:]), -1))


def norm(module: nn.Module, x: Tensor) -> Tensor:
    return rms_norm(x, module.weight.to(x.dtype), module.variance_epsilon)


def _layer(
    layer: nn.Module, path: str, x_ND: Tensor, pack: Pack, turn: Turn, adapter: Adapter | None, dtype: torch.dtype, positions: Tensor | None
) -> Tensor:  # fmt: skip
    attention, mlp, scale = layer.self_attn, layer.mlp, adapter.scale if adapter is not None else 1.0
    parts = {name: linears.part(getattr(owner, name), f"{path}.{kind}.{name}", adapter) for owner, kind, names in (
        (attention, "self_attn", ("q_proj", "k_proj", "v_proj", "o_proj")), (mlp, "mlp", ("gate_proj", "up_proj", "down_proj"))) for name in names}  # fmt: skip
    before, after = layer.input_layernorm, layer.post_attention_layernorm
    x_ND, *flat = halves.project(x_ND, before.weight, before.variance_epsilon, dtype, [parts[n] for n in ("q_proj", "k_proj", "v_proj")], scale)
    q, k, v = (x.unflatten(-1, (-1, attention.head_dim)) for x in flat)
    if hasattr(attention, "q_norm"):
        q, k = norm(attention.q_norm, q), norm(attention.k_norm, k)
    mixed_ND = attend(q, k, v, pack, turn, attention.scaling).flatten(-2)
    if positions is not None:
        x_ND, mixed_ND = (rows(x, positions, even(len(positions), x, dtype)) for x in (x_ND, mixed_ND))
    return halves.finish(x_ND, mixed_ND, after.weight, after.variance_epsilon, [parts[n] for n in ("o_proj", "gate_proj", "up_proj", "down_proj")], scale)
