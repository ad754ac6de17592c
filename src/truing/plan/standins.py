"""Stand-ins for what an earlier stage of a recipe has yet to make: the model that stage starts from, with its adapter and its head.

A stand-in is a folder such as the stage would write, so later stages open it as they would the real one. A model whose every
weight is trained is the base's own files, linked; an adapter is a fresh one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from transformers.utils import cached_file

from truing.models.adapters import Adapter
from truing.models.anatomy import Anatomy
from truing.models.heads import ScalarHead
from truing.models.load import locate
from truing.models.roles import PEFT_PREFIX, Origin


def write(folder: Path, stage: Any, model: Anatomy, source: Origin) -> str:
    """The folder that stands for the model of ``stage``, which trains ``model``; returns its name."""
    folder.mkdir(parents=True)
    if model.lora is None:
        for path in _files(source.base):
            (folder / path.name).symlink_to(path.resolve())
    else:
        save_file(_adapter(model), folder / "adapter_model.safetensors")
    if stage.method == "reward":
        head = ScalarHead(model.width, seed=0, purpose="stand-in")
        save_file({k: v.detach() for k, v in head.state_dict().items()}, folder / "head.safetensors")
    lora = model.lora.model_dump() if model.lora else None
    card = {"base": source.base if model.lora else None, "lora": lora, "dtype": str(model.dtype).removeprefix("torch."), "base_sha256": None, "weights_sha256": "none yet"}
    (folder / "truing.json").write_text(json.dumps(card))
    return str(folder)


def _files(base: str) -> list[Path]:
    """The files of a model's folder; of a hub id, those that have been fetched."""
    place = Path(locate(base))
    if not place.is_dir():
        place = Path(cached_file(base, "config.json")).parent
    return [p for p in place.iterdir() if p.is_file() and p.name not in ("truing.json", "head.safetensors")]


def _adapter(model: Anatomy) -> dict[str, Any]:
    """A fresh adapter of the whole model under the names it is saved by: the one layer that has been looked at, once for each."""
    small = model.small[0]
    if model.lora is None:
        return {}
    shapes = {
        _at(path, layer): shape for layer in range(model.depth, model.layers) for path, shape in small.targets.items()
    }  # fmt: skip
    named = Adapter(shapes, model.lora, seed=0, purpose="stand-in").tensors()
    return {PEFT_PREFIX + k.removesuffix(".A").removesuffix(".B") + (".lora_A.weight" if k.endswith(".A") else ".lora_B.weight"): v.detach() for k, v in named.items()}


def _at(path: str, layer: int) -> str:
    """The same module in another layer: of ``model.layers.0.mlp.up_proj`` the first number is the layer's."""
    parts = path.split(".")
    place = next(i for i, part in enumerate(parts) if part.isdigit())
    return ".".join([*parts[:place], str(layer), *parts[place + 1 :]])
