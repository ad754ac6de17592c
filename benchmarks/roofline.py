"""The least time that generation can take: its floating-point operations over the rate of matrix products on this machine.

With tens of sequences together every weight that is read serves tens of multiplications, so memory is not the limit; products are.
As a chair (``python -m benchmarks.roofline``) it measures that rate, in turns with the others.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from benchmarks.turns import Turns, asked, repeat

SIDE = 2048  # of the matrices: large enough for the rate to be the processor's


def generation(shape: dict[str, Any], prompt: int, lengths: Sequence[int]) -> int:
    """Floating-point operations of completing prompts of one length: a multiplication and an addition count as two.

    ``shape`` is a Llama's config.json. A token costs 2 a weight of the layers (the embedding is looked up), a sampled one also 2 a weight of the head;
    attention of the token at position p over p + 1 keys costs ``4 * heads * head width * (p + 1)`` a layer. The last token is never read.

    >>> one = {"hidden_size": 2, "num_attention_heads": 1, "num_key_value_heads": 1, "intermediate_size": 3, "num_hidden_layers": 1, "vocab_size": 5}
    >>> generation(one, prompt=1, lengths=[1])  # layers 2 * (4 * 4 + 3 * 6), one key of width 2: 8, head 2 * 10
    96
    """
    width, heads = shape["hidden_size"], shape["num_attention_heads"]
    head = shape.get("head_dim") or width // heads
    keys = shape["num_key_value_heads"]
    layer = width * head * (heads + 2 * keys) + heads * head * width + 3 * width * shape["intermediate_size"]
    total = 0
    for new in lengths:
        read = prompt + new - 1
        total += shape["num_hidden_layers"] * (2 * layer * read + 4 * heads * head * read * (read + 1) // 2) + 2 * width * shape["vocab_size"] * new
    return total


def play(turns: Turns, asks: dict[str, Any]) -> None:
    """Operations a second of a large product in both precisions, with the kernels that Truing's processes use."""
    import torch

    from truing.models.precision import fast_float32

    turns.facts |= {"float32_kernels": fast_float32()}
    sides = {name: (torch.randn(SIDE, SIDE).to(dtype), torch.randn(SIDE, SIDE).to(dtype)) for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16))}

    def work() -> dict[str, Any]:
        found = {}
        for name, (a, b) in sides.items():
            began = time.perf_counter()
            for _ in range(3):
                a @ b
            found[name] = 3 * 2 * SIDE**3 / (time.perf_counter() - began)
        return found

    repeat(turns, work)


if __name__ == "__main__":
    play(Turns(), asked())
