"""One call that loads any causal language model: a built-in name, a hub id or a folder. Safetensors only."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers.utils import cached_file
from transformers.utils import logging as hf_logging

from truing.errors import ModelError
from truing.models.builtin import BUILTIN, builtin_folder
from truing.models.huggingface import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

hf_logging.disable_progress_bar()  # bars over files and shards would run through the progress of the run


def locate(name: str) -> str:
    """The folder or hub id behind a model name; converts a built-in model on first use."""
    if name in BUILTIN:
        return str(builtin_folder(name))
    path = Path(name)
    if path.exists():
        if path.is_file():
            raise ModelError(f"model {name!r} is a file; give the folder that holds config.json and model.safetensors")
        if not (path / "config.json").exists():
            raise ModelError(f"model {name!r}: no config.json in that folder; give a folder written by save_pretrained")
        if not list(path.glob("*.safetensors")):
            unsafe = [p.name for pattern in ("*.bin", "*.pt", "*.pkl", "*.pth") for p in path.glob(pattern)]
            also = f" ({', '.join(unsafe)} can run code when loaded and is refused; convert it to safetensors)" if unsafe else ""
            raise ModelError(f"model {name!r}: no *.safetensors in that folder{also}")
    elif name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"model {name!r}: no such folder")
    return name


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model. Raises ModelError when there is none."""
    try:
        return AutoTokenizer.from_pretrained(locate(name), trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ModelError(f"tokenizer of {name!r} cannot be loaded: {_first_line(error)}") from error


def load_model(name: str, dtype: torch.dtype = torch.float32, *, body: bool = False) -> PreTrainedModel:
    """The causal language model behind a name, in eval mode, dropout off, on the CPU.

    Args:
        body: only the decoder below the language-model head is needed, so weights of a classifier serve too.

    Raises ModelError when it is missing, not in safetensors, or not a decoder; or when the file lacks weights, which
    transformers would fill with random ones.
    """
    where = locate(name)
    verbosity = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            model, found = AutoModelForCausalLM.from_pretrained(where, dtype=dtype, use_safetensors=True, trust_remote_code=False, output_loading_info=True)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        hint = "" if Path(where).exists() else "; known built-in names: " + ", ".join(BUILTIN) + "; a hub id needs a reachable hub"
        raise ModelError(f"model {name!r} cannot be loaded: {_first_line(error)}{hint}") from error
    finally:
        hf_logging.set_verbosity(verbosity)
    missing = sorted(k for k in found["missing_keys"] if not (body and k.startswith("lm_head.")))
    if missing:
        raise ModelError(f"model {name!r}: its file lacks {len(missing)} of the weights, the first is {missing[0]!r}; a language model is needed here, whole")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # a dropped unit would make the ratio differ from 1 and the KL from 0
    return model.eval()


def score_head(name: str) -> torch.Tensor | None:
    """The ``[1, D]`` head of an AutoModelForSequenceClassification folder or hub id; None when it has none.

    Raises ModelError when it gives several numbers a text, not one score.
    """
    where = Path(locate(name))
    try:
        if not where.is_dir():
            where = Path(cached_file(name, "config.json")).parent
        for path in sorted(where.glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                if "score.weight" in file.keys():
                    weight = file.get_tensor("score.weight").float().clone()
                    if len(weight) != 1:
                        raise ModelError(f"model {name!r} gives {len(weight)} numbers a text; a scorer gives one (num_labels=1)")
                    return weight
    except (OSError, SafetensorError) as error:
        raise ModelError(f"model {name!r}: its score head cannot be read: {_first_line(error)}") from error
    return None


def tiny_model(vocab_size: int, *, seed: int = 0, layers: int = 2, hidden: int = 64, heads: int = 4, context: int = 256, kind: str = "llama", **options: Any) -> PreTrainedModel:
    """A random-weight decoder built from a config, for tests and quick runs; `kind` is any transformers model type."""
    config = AutoConfig.for_model(
        kind, vocab_size=vocab_size, hidden_size=hidden, intermediate_size=hidden * 2, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 2), max_position_embeddings=context, tie_word_embeddings=True, **options,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config).eval()


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, folder: str | Path) -> None:
    """Write safetensors, config and tokenizer; `load_model` gives back the same bits."""
    model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:300]
