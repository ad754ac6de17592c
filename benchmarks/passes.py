"""The passes between products in both their forms, compiled and PyTorch's, in turns: microseconds of each, median.

    python benchmarks/passes.py            # 4,032 tokens of the small model's layer, 42 sequences of 96
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from truing.models import attention, fused
from truing.models.pack import Pack
from truing.models.precision import fast_float32

ROWS, T, WIDTH, INNER, HEADS, KEYS, D = 42, 96, 256, 688, 8, 4, 32
ROUNDS, CALLS = 15, 10


def work(dtype: torch.dtype) -> dict[str, Callable[[], Any]]:
    """One call of each pass on a micro-batch's states."""
    made = torch.Generator().manual_seed(0)
    some = lambda *shape, of=dtype: torch.randn(*shape, generator=made).to(of)  # noqa: E731
    n = ROWS * T
    pack = Pack([[1] * T] * ROWS)
    turn = fused.Turn(some(T, D, of=torch.float32), some(T, D, of=torch.float32))
    x, y, w, q, k, v = some(n, WIDTH, of=torch.float32), some(n, WIDTH), some(WIDTH, of=torch.float32), some(n, HEADS, D), some(n, KEYS, D), some(n, KEYS, D)
    gates, ups, g = some(n, INNER), some(n, INNER), some(n, INNER)
    qkv = q.requires_grad_(), k.requires_grad_(), v.requires_grad_()
    back = torch.ones_like(q)
    _, r = fused.norm(x, w, 1e-6, dtype)
    return {
        "norm": lambda: fused.norm(x, w, 1e-6, dtype),
        "add and norm": lambda: fused.add_norm(x, y, w, 1e-6),
        "norm, backward": lambda: fused.norm_backward(y, x, w, r, x),
        "gate": lambda: fused.gate(gates, ups),
        "gate, backward": lambda: fused.gate_backward(g, gates, ups),
        "attention": lambda: attention.attend(*qkv, pack, turn, D**-0.5),
        "attention, forward and backward": lambda: torch.autograd.grad(attention.attend(*qkv, pack, turn, D**-0.5), qkv, back),
    }


def microseconds(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    for _ in range(CALLS):
        call()
    return (time.perf_counter() - began) / CALLS * 1e6


def main() -> None:
    fast_float32()
    torch.set_num_threads(2)
    compiled = fused.passes
    if compiled(torch.empty(0), torch.float32) is None:
        raise SystemExit("no C compiler was found, so there is one form only")
    found: dict[str, dict[str, dict[str, float]]] = {}
    for dtype in (torch.float32, torch.bfloat16):
        for name, call in work(dtype).items():
            taken: dict[str, list[float]] = {"compiled": [], "pytorch": []}
            for _ in range(ROUNDS):
                for form, chosen in (("compiled", compiled), ("pytorch", lambda x, dtype: None)):
                    fused.passes = attention.passes = chosen
                    taken[form].append(microseconds(call))
            medians = {form: round(statistics.median(times)) for form, times in taken.items()}
            found.setdefault(name, {})[str(dtype).removeprefix("torch.")] = {**medians, "times as fast": round(medians["pytorch"] / medians["compiled"], 1)}
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
