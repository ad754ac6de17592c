"""Four roles, one backbone: policy, reference, reward and value models are adapters and heads over the same weights.

A saved role is a folder. With LoRA it holds `adapter_model.safetensors` and `adapter_config.json` (the layout of peft,
which loads it), `head.safetensors` for a scorer, and `truing.json`: which base it belongs to, with the hash of the
base's weights. With full fine-tuning it is an ordinary transformers folder.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from truing import allocator
from truing.assets import sha256
from truing.config import Lora, Stage, checked
from truing.disk import fsync_folder
from truing.errors import ConfigError, ModelError
from truing.maths.likelihood import TokenLikelihood, token_likelihood
from truing.models import device
from truing.models.adapters import Adapter
from truing.models.backbone import Backbone
from truing.models.heads import ScalarHead
from truing.models.load import load_model, load_tokenizer, locate, save_model, score_head
from truing.models.pack import Pack
from truing.models.precision import fast_float32, has_bfloat16

PEFT_PREFIX = "base_model.model."


@dataclass
class Role:
    """A backbone under an adapter (None = as it is), with a scalar head when it scores."""

    backbone: Backbone
    adapter: Adapter | None = None
    head: ScalarHead | None = None

    def hidden(self, pack: Pack, positions: Tensor | None = None) -> Tensor:
        """Final hidden states ``[N, D]``, or ``[M, D]`` at some packed positions."""
        return self.backbone.hidden(pack, self.adapter, positions)

    def score(self, pack: Pack) -> Tensor:
        """The head's output at every sequence's last token, ``[B]``."""
        return self.values(pack, pack.last())

    def values(self, pack: Pack, positions: Tensor, hidden: Tensor | None = None) -> Tensor:
        """The head's output at packed positions ``[M]``, on the CPU; ``hidden`` are the states there, where they are known."""
        if self.head is None:
            raise ModelError("this model has no scalar head; give a reward model (a folder written by `truing reward`)")
        return self.head(self.hidden(pack, positions) if hidden is None else hidden).cpu()

    def likelihood(self, hidden: Tensor, pack: Pack, positions: Tensor, *, temperature: float = 1.0, entropy_gradient: bool = False) -> TokenLikelihood:
        """Log-probability and entropy of the tokens after these packed positions, from the states there; ``[M]`` each, on the CPU."""
        targets = pack.ids_N[positions + 1].to(hidden.device)
        found = token_likelihood(
            hidden, self.backbone.head_weight, targets, bias=self.backbone.head_bias, temperature=temperature, entropy_gradient=entropy_gradient, backward=self.backbone.dtype
        )  # fmt: skip
        return TokenLikelihood(found.logp.cpu(), found.entropy.cpu())

    def likeliest(self, pack: Pack, positions: Tensor) -> Tensor:
        """The token that the model gives the most probability after each of these packed positions, ``[M]``, on the CPU."""
        logits = nn.functional.linear(self.hidden(pack, positions), self.backbone.head_weight, self.backbone.head_bias)
        return logits.argmax(-1).cpu()

    def parameters(self) -> dict[str, nn.Parameter]:
        """Trainable parameters by name."""
        named: dict[str, nn.Parameter] = {}
        if self.adapter is not None:
            named |= {f"adapter.{k}": v for k, v in self.adapter.tensors().items()}  # type: ignore[misc]
        elif self.backbone.lora is None:
            named |= {f"model.{k}": v for k, v in self.backbone.model.named_parameters()}
        if self.head is not None:
            named |= {f"head.{k}": v for k, v in self.head.named_parameters()}
        return {k: v for k, v in named.items() if v.requires_grad}


@dataclass(frozen=True)
class Origin:
    """Where a role comes from: a base model and, when it was saved by a LoRA stage, the adapter and head on top."""

    base: str
    folder: Path | None = None
    lora: Lora | None = None
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    base_sha256: str | None = None

    def adapter_tensors(self) -> dict[str, Tensor]:
        found = _read(self.folder, "adapter_model.safetensors")
        return {k.removeprefix(PEFT_PREFIX).replace(".lora_A.weight", ".A").replace(".lora_B.weight", ".B"): v for k, v in found.items()}

    def head_tensors(self) -> dict[str, Tensor] | None:
        """Its scalar head, from a folder of `truing reward` or from a transformers classifier of one number; None when it has neither."""
        if self.folder is not None and (self.folder / "head.safetensors").exists():
            return _read(self.folder, "head.safetensors")
        weight = None if self.lora else score_head(self.base)
        return None if weight is None else {"weight": weight[0], "bias": torch.zeros(())}


def _read(folder: Path | None, name: str) -> dict[str, Tensor]:
    path = (folder or Path()) / name
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path}: cannot be read ({error}); train that stage again") from error


def origin(name: str) -> Origin:
    """Read what a model name stands for. Raises ModelError when the folder's card is not one that Truing wrote."""
    folder = Path(name)
    card = folder / "truing.json"
    if not card.exists():
        return Origin(name, folder if folder.is_dir() else None)
    try:
        data = json.loads(card.read_text())
        lora = Lora(**data["lora"]) if data["lora"] else None
        base, dtype, base_sha256 = data["base"] or name, data["dtype"], data["base_sha256"]
    except (KeyError, ValueError) as error:
        raise ModelError(f"{card}: not a model card that Truing wrote ({error}); train the stage again") from error
    return Origin(base, folder, lora, dtype, base_sha256)


def tokenizer_of(name: str) -> Any:
    return load_tokenizer(origin(name).base)


def same_tokens(one: str, other: str) -> bool:
    """Whether two base models read the same tokens: one vocabulary, id by id."""
    return one == other or load_tokenizer(one).get_vocab() == load_tokenizer(other).get_vocab()


def open_backbone(name: str, options: Stage, *, body: bool = False) -> tuple[Backbone, Origin]:
    """The backbone behind a model name, ready for these options; full fine-tuning merges a saved adapter into the base.

    Args:
        body: the language-model head is not needed, so that a classifier's weights serve too.

    Raises ConfigError when the model carries an adapter of another shape than `options.lora`, ModelError when its base has changed.
    """
    where = device.find(options.device, "device")
    fast_float32()
    source = origin(name)
    if source.base_sha256 is not None and source.base_sha256 != base_hash(source.base):
        raise ModelError(f"{name}: the weights of its base {source.base} are not the ones it was trained on; put them back, or train {name} again")
    model = load_model(source.base, body=body)
    if source.lora is not None and source.lora != options.lora:
        if options.lora is not None:
            raise ConfigError(f"{name} carries an adapter with lora {_plain(source.lora)}, this stage asks for {_plain(options.lora)}; use the same, or null to train every weight")
        merge_into(model, source)
        source = Origin(source.base)
    model.to(where)
    backbone = Backbone(model, lora=options.lora, dtype=torch.bfloat16 if wants_bfloat16(options) else torch.float32, checkpointing=options.checkpointing)
    if backbone.dtype != torch.float32 and where == device.CPU:
        _out_of_file(model)
    allocator.trim()  # what reading and casting the weights took would stay with the process, full of holes
    if options.dtype == "bfloat16" and not backbone.lean:
        raise ConfigError(f"dtype=bfloat16: models of type {model.config.model_type!r} run through transformers in float32; use dtype: auto or float32")
    return backbone, source


def _out_of_file(model: nn.Module) -> None:
    """Give frozen weights that were not cast memory of their own: one that still lies in the mapped file keeps every page of it that was read."""
    for p in model.parameters():
        if p.dtype == torch.float32 and not p.requires_grad:
            p.data = p.data.clone()


def _plain(lora: Lora) -> str:
    return "{" + ", ".join(f"{k}: {'null' if v is None else v}" for k, v in lora.model_dump().items()) + "}"


def wants_bfloat16(options: Stage) -> bool:
    """Whether the layers' products run in bfloat16 under these options. Weights that are trained are float32 all the same."""
    return options.dtype == "bfloat16" or (options.dtype == "auto" and options.lora is not None and (device.has_bfloat16() if options.device == "cuda" else has_bfloat16()))


@torch.no_grad()
def merge_into(model: nn.Module, source: Origin) -> None:
    """W <- W + (alpha / rank) B A, in float32."""
    lora = source.lora or Lora()
    tensors = source.adapter_tensors()
    for path, module in model.named_modules():
        if f"{path}.A" in tensors:
            delta = tensors[f"{path}.B"] @ tensors[f"{path}.A"] * (lora.alpha / lora.rank)
            module.weight += delta.T if type(module).__name__ == "Conv1D" else delta


def policy_role(backbone: Backbone, source: Origin, *, seed: int, purpose: str, trained: bool = True) -> Role:
    """The model as a trainable policy: its saved adapter, or a fresh one, or (full fine-tuning) the weights themselves."""
    if backbone.lora is None:
        return Role(backbone)
    adapter = backbone.adapter(seed, purpose)
    if source.lora is not None:
        adapter.load(source.adapter_tensors(), str(source.folder))
    return Role(backbone, adapter if trained else adapter.frozen())


def reference_role(policy: Role, source: Origin, *, seed: int) -> Role:
    """The policy as it starts, frozen: the adapter's copy or, with full fine-tuning, one frozen copy of the weights."""
    if policy.backbone.lora is None:
        return Role(policy.backbone.frozen_copy())
    if source.lora is None:
        return Role(policy.backbone)
    return policy_role(policy.backbone, source, seed=seed, purpose="reference", trained=False)


def open_role(name: str, *, share: Backbone | None = None, share_base: str | None = None, head: bool = False, on: str = "cpu") -> Role:
    """A saved model, frozen. It lives on `share` when base and adapter shape are the same, else on a backbone of its own.

    Args:
        head: also load its scalar head, which makes it a scorer.
        on: the device of a backbone of its own, where there is none to share; else it is that one's.
    """
    saved = source = origin(name)
    if share_base is not None and not same_tokens(saved.base, share_base):
        raise ModelError(f"{name} reads other tokens than {share_base}: its tokenizer differs; use models of one family, or score the text with module:function")
    if share is not None and share.lora is not None and source.base == share_base and (source.lora == share.lora or (source.lora is None and not head)):
        backbone = share
    else:
        backbone, source = open_backbone(name, checked(Stage, {"lora": saved.lora, "dtype": saved.dtype, "device": on if share is None else share.device.type}, name), body=head)
        backbone.model.requires_grad_(False)
    role = Role(backbone) if source.lora is None else policy_role(backbone, source, seed=0, purpose="saved", trained=False)
    if head:
        tensors = saved.head_tensors()
        if tensors is None:
            raise ModelError(f"{name}: no score head, so it cannot score; give a folder written by `truing reward`, or a classifier of one number")
        role.head = backbone.head(0, "saved")
        role.head.load_state_dict(tensors)
        role.head.requires_grad_(False)
    return role


def save_role(role: Role, folder: Path, *, base: str, tokenizer: Any = None) -> str:
    """Write a role so that its name (the folder) can be given wherever a model can. Returns the weights' SHA-256."""
    folder.mkdir(parents=True, exist_ok=True)
    lora = role.backbone.lora
    if role.adapter is not None and lora is not None:
        named = {PEFT_PREFIX + k.removesuffix(".A").removesuffix(".B") + (".lora_A.weight" if k.endswith(".A") else ".lora_B.weight"): v.detach().cpu().contiguous() for k, v in role.adapter.tensors().items()}  # fmt: skip
        save_file(named, folder / "adapter_model.safetensors")
        _write_json(folder / "adapter_config.json", _peft_config(role.backbone, lora, base))
    else:
        save_model(role.backbone.model, tokenizer, folder)
    if role.head is not None:
        save_file({k: v.detach().cpu().contiguous() for k, v in role.head.state_dict().items()}, folder / "head.safetensors")
    weights = role_hash(folder)
    _write_json(folder / "truing.json", {"base": base if lora else None, "lora": lora.model_dump() if lora else None, "dtype": str(role.backbone.dtype).removeprefix("torch."), "scores": role.head is not None, "weights_sha256": weights,
                                           "base_sha256": base_hash(base) if lora else None})  # fmt: skip
    for path in folder.iterdir():  # the stage counts as complete once its folder does: it must be on the disk by then
        with path.open("rb") as f:
            os.fsync(f.fileno())
    fsync_folder(folder)
    fsync_folder(folder.parent)
    return weights


def role_hash(folder: Path) -> str:
    """SHA-256 over a role's safetensors files, in name order."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(f"{path.name} {sha256(path)}\n".encode())
    return digest.hexdigest()


def base_hash(name: str) -> str | None:
    """`role_hash` of a base model's folder; None for a hub id, whose revision the hub keeps."""
    folder = Path(locate(name))
    return role_hash(folder) if folder.is_dir() else None


def _peft_config(backbone: Backbone, lora: Lora, base: str) -> Mapping[str, Any]:
    return {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "r": lora.rank, "lora_alpha": lora.alpha, "lora_dropout": 0.0, "bias": "none",
        "target_modules": sorted({path.rsplit(".", 1)[-1] for path in backbone.targets}),
        "layers_to_transform": sorted({int(part) for path in backbone.targets for part in path.split(".") if part.isdigit()}),
    }  # fmt: skip


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=1, sort_keys=True) + "\n")
