"""A causal language model as hidden states of packed sequences, under any adapter.

`Backbone` reads the weights of a transformers model, shared, not copied. Models of the Llama shape run through the lean
forward of this package (`models/llama.py`); every other decoder runs through its own transformers forward. Methods
see one call: ``hidden(pack, adapter)``.
"""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from truing.config import Lora
from truing.errors import ModelError
from truing.models import llama
from truing.models.adapters import Adapter
from truing.models.heads import ScalarHead
from truing.models.huggingface import PreTrainedModel
from truing.models.pack import Pack
from truing.seeds import stream

log = logging.getLogger(__name__)


class Backbone:
    """One set of base weights. Layers below ``depth`` carry no adapter and no gradient: they run once a pack."""

    def __init__(self, model: PreTrainedModel, *, lora: Lora | None, lean: bool = True, dtype: torch.dtype = torch.float32, checkpointing: bool = False) -> None:
        self.model = model
        self.lora = lora
        layers = _decoder_layers(model)
        self.depth = len(layers) - min(lora.layers or len(layers), len(layers)) if lora else 0
        if lora and (lora.layers or 0) > len(layers):
            raise ModelError(f"lora.layers={lora.layers}, but the model has {len(layers)} layers; use at most that, or null for all")
        self.targets = _linear_shapes(model, layers, self.depth) if lora else {}
        model.requires_grad_(lora is None)
        self.lean = lean and llama.fits(model)
        if lean and not self.lean:
            log.info("model type %r runs through transformers' own forward (slower)", model.config.model_type)
        self.dtype = dtype if self.lean else torch.float32
        self.checkpointing = checkpointing
        if lora:  # what is trained in full keeps its float32 weights; they are cast for each product
            for layer in layers:
                layer.to(self.dtype)
        self._active: Adapter | None = None
        if not self.lean:
            self._check_head()
            self._hook()

    # -- roles ---------------------------------------------------------------------------------------------------
    def adapter(self, seed: int, purpose: str) -> Adapter:
        """A fresh trainable adapter: changes nothing until it is trained."""
        if self.lora is None:
            raise ModelError("this backbone trains every weight (lora: null), so it takes no adapter")
        return Adapter(self.targets, self.lora, seed=stream(seed, "adapter"), purpose=purpose).to(self.device)

    def head(self, seed: int, purpose: str) -> ScalarHead:
        """A fresh scalar head for a role that scores."""
        return ScalarHead(self.width, seed=seed, purpose=purpose).to(self.device)

    def frozen_copy(self) -> Backbone:
        """The same weights, copied and without gradient: the reference of full fine-tuning."""
        twin = Backbone(copy.deepcopy(self.model), lora=None, lean=self.lean, dtype=self.dtype)
        twin.model.requires_grad_(False)
        return twin

    # -- forward -------------------------------------------------------------------------------------------------
    def hidden(self, pack: Pack, adapter: Adapter | None = None, positions: Tensor | None = None) -> Tensor:
        """Final hidden states (after the last normalisation), float32: ``[N, D]``, or ``[M, D]`` at some packed positions, which costs less."""
        limit = self.context
        if limit and pack.shape[1] > limit:
            raise ModelError(f"a sequence of {pack.shape[1]} tokens exceeds the model's context of {limit}; lower max_length or max_new_tokens")
        self.prepare(pack, pack.tokens)
        pack, positions = pack.on(self.device), None if positions is None else positions.to(self.device)
        if not self.lean:
            found = self._transformers_hidden(pack, adapter)
            return found if positions is None else found[positions]
        start = pack.trunk[self] if self.depth else llama.embed(self.model, pack)
        return llama.run(self.model, start, pack, self.depth, adapter, llama.How(self.dtype, self.checkpointing), positions)

    @torch.no_grad()
    def prepare(self, pack: Pack, micro_tokens: int) -> None:
        """Run the frozen layers of a whole pack, once, in parts of at most ``micro_tokens``; parts selected from it carry the result.

        It does nothing where no layer is frozen for every role (``depth`` 0) or where it has been done.
        """
        if self.depth == 0 or not self.lean or self in pack.trunk:
            return
        parts = [pack.select(rows) for rows in pack.cut(micro_tokens)] if pack.tokens > micro_tokens else [pack]
        parts = [part.on(self.device) for part in parts]
        how = llama.How(self.dtype)
        pack.trunk[self] = torch.cat([llama.run_layers(self.model, llama.embed(self.model, p), p, 0, self.depth, None, how).to(self.dtype) for p in parts])

    def _transformers_hidden(self, pack: Pack, adapter: Adapter | None) -> Tensor:
        ids_BT = pack.grid(pack.ids_N)
        real_BT = (torch.arange(pack.shape[1]) < torch.tensor(pack.lengths)[:, None]).to(self.device)
        with self.under(adapter), self._checkpointed(adapter):
            out = self.model.base_model(input_ids=ids_BT, attention_mask=real_BT.long(), use_cache=False)
        return pack.flat(out.last_hidden_state).float()

    @contextlib.contextmanager
    def under(self, adapter: Adapter | None) -> Iterator[None]:
        """Run transformers' own forward with this adapter's term added (backbones that are not lean)."""
        before, self._active = self._active, adapter
        try:
            yield
        finally:
            self._active = before

    @contextlib.contextmanager
    def _checkpointed(self, adapter: Adapter | None) -> Iterator[None]:
        """Make each of transformers' decoder layers keep its input alone; it runs again in backward, under the same adapter."""
        layers = list(_decoder_layers(self.model)) if self.checkpointing and torch.is_grad_enabled() else []

        def again(forward: Callable[..., Any]) -> Callable[..., Any]:
            def run(*given: Any, **named: Any) -> Any:
                with self.under(adapter):
                    return forward(*given, **named)

            return lambda *given, **named: checkpoint(run, *given, use_reentrant=False, preserve_rng_state=False, **named)

        for layer in layers:
            layer.forward = again(layer.forward)
        try:
            yield
        finally:
            for layer in layers:
                del layer.forward

    @torch.no_grad()
    def _check_head(self) -> None:
        """Log-probabilities are taken from hidden states through the head; a model that scales or caps its logits after that is refused."""
        probe = torch.arange(8, device=self.device)[None] % self.model.config.vocab_size
        ours = nn.functional.linear(self.model.base_model(input_ids=probe).last_hidden_state, self.head_weight, self.head_bias).float()
        theirs = self.model(input_ids=probe).logits.float()
        if (ours - theirs).abs().max() > 1e-3 * theirs.abs().max().clamp(min=1.0):
            raise ModelError(f"model type {self.model.config.model_type!r} changes its logits after the head (scaling or capping), which is not supported; use another model")

    def _hook(self) -> None:
        modules = dict(self.model.named_modules())
        for path in self.targets:
            modules[path].register_forward_hook(self._delta(path))

    def _delta(self, path: str) -> Any:
        def add(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            pair = self._active.pair(path) if self._active is not None else None
            if pair is None or self._active is None:
                return None
            return output + ((inputs[0] @ pair[0].T) @ pair[1].T) * self._active.scale

        return add

    # -- head ----------------------------------------------------------------------------------------------------
    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.head_weight.device

    @property
    def context(self) -> int | None:
        """The most tokens of one sequence; None where the model has no limit."""
        return getattr(self.model.config, "max_position_embeddings", None)

    @property
    def head_weight(self) -> Tensor:
        return self.model.get_output_embeddings().weight

    @property
    def head_bias(self) -> Tensor | None:
        return getattr(self.model.get_output_embeddings(), "bias", None)

    @property
    def width(self) -> int:
        return int(self.head_weight.shape[1])


def _decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    found = [m for _, m in model.base_model.named_modules() if isinstance(m, nn.ModuleList)]
    if not found:
        raise ModelError(f"model type {model.config.model_type!r} has no list of decoder layers; use a transformers causal decoder")
    return max(found, key=len)


def _linear_shapes(model: PreTrainedModel, layers: nn.ModuleList, depth: int) -> dict[str, tuple[int, int]]:
    """Module path -> (out, in) of every linear layer in the adapted layers (Schulman et al. 2025: all of them, not attention alone)."""
    wanted = {id(m) for layer in list(layers)[depth:] for m in layer.modules()}
    shapes: dict[str, tuple[int, int]] = {}
    for path, module in model.named_modules():
        if id(module) in wanted and getattr(module, "weight", None) is not None and module.weight.ndim == 2:
            kind = type(module).__name__
            if isinstance(module, nn.Linear):
                shapes[path] = (module.weight.shape[0], module.weight.shape[1])
            elif kind == "Conv1D":  # GPT-2 stores its linear weights transposed
                shapes[path] = (module.weight.shape[1], module.weight.shape[0])
    if not shapes:
        raise ModelError(f"model type {model.config.model_type!r} has no linear layers to adapt; use lora: null")
    return shapes
