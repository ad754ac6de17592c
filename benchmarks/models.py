"""The models of the suite, as folders that every library reads: random weights of two sizes, and the demo's real one.

    python -m benchmarks.models small           # prints the folder; makes it when it is not there

A random model's tokenizer has one word for each token (t17 is 17), so that any sequence of ids survives being text.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.side_by_side import KEEP
from benchmarks.tokens import END, PAD, UNKNOWN


@dataclass(frozen=True)
class Size:
    vocabulary: int
    hidden: int
    layers: int
    heads: int
    key_value_heads: int
    feed_forward: int
    context: int = 1024
    family: str = "llama"
    tied: bool = False


SIZES = {
    "small": Size(4096, 256, 6, 8, 4, 688),  # 7M parameters
    "medium": Size(8192, 640, 10, 10, 5, 1920),  # 60M
    "tiny": Size(64, 32, 2, 4, 2, 64),  # for the suite's own test
    "qwen2-0.5b": Size(151_936, 896, 24, 14, 2, 4864, family="qwen2", tied=True),  # for GPUs
    "qwen2-1.5b": Size(151_936, 1536, 28, 12, 2, 8960, family="qwen2", tied=True),
}
NAMES = (*SIZES, "smollm2-135m")


def folder_of(name: str) -> Path:
    """Where a model lies; written first when it is a random one that is not there yet.

    Raises ValueError for a name that is none of `NAMES`.
    """
    if name not in NAMES:
        raise ValueError(f"no model {name!r} in this suite; use one of {', '.join(NAMES)}")
    if name not in SIZES:
        from truing.models.builtin import builtin_folder

        return builtin_folder(name)
    folder = KEEP / "models" / name
    if not (folder / "config.json").exists():
        _write(SIZES[name], folder)
    return folder


def reward_of(name: str, *, lora: bool) -> Path:
    """An untrained reward model of the same shape, as `truing reward` saves one; speed does not ask what it knows."""
    folder = KEEP / "models" / f"{name}-reward-{'lora' if lora else 'full'}"
    if not (folder / "truing.json").exists():
        from truing.config import Lora, Stage
        from truing.models.heads import ScalarHead
        from truing.models.roles import open_backbone, policy_role, save_role, tokenizer_of

        base = str(folder_of(name))
        backbone, source = open_backbone(base, Stage(model=base, lora=Lora() if lora else None))
        role = policy_role(backbone, source, seed=1, purpose="reward")
        role.head = ScalarHead(backbone.width, seed=1, purpose="reward")
        save_role(role, folder, base=source.base, tokenizer=tokenizer_of(base))
    return folder


def _write(size: Size, folder: Path) -> None:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    special = {"<pad>": PAD, "<end>": END, "<unknown>": UNKNOWN}
    words = special | {f"t{i}": i for i in range(len(special), size.vocabulary)}
    core = Tokenizer(models.WordLevel(words, unk_token="<unknown>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<end>", unk_token="<unknown>", padding_side="left", model_max_length=size.context)
    config = AutoConfig.for_model(
        size.family, vocab_size=size.vocabulary, hidden_size=size.hidden, num_hidden_layers=size.layers, num_attention_heads=size.heads, num_key_value_heads=size.key_value_heads,
        intermediate_size=size.feed_forward, max_position_embeddings=size.context, rms_norm_eps=1e-5, tie_word_embeddings=size.tied, pad_token_id=PAD, eos_token_id=END, bos_token_id=None,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    partial.rename(folder)


if __name__ == "__main__":
    print(folder_of(*sys.argv[1:2] or ["small"]))
