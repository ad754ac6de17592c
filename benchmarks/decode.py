"""Decoding: Truing's sampler beside transformers' `generate`, alternating in one process; prints one JSON object.

    python benchmarks/decode.py                       # 7M random weights, 64 sequences x 64 new tokens
    python benchmarks/decode.py --model smollm2-135m  # the demo's model (minutes)

Same weights, same prompts, same number of new tokens (no stop token). Quote medians and the ratio, not single times.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch

from truing.config import Lora
from truing.models.backbone import Backbone
from truing.models.load import load_model, tiny_model
from truing.models.precision import fast_float32, has_bfloat16
from truing.models.roles import Role
from truing.rollout.sampler import sample


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="small", help="small, or any name Truing loads")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--prompt", type=int, default=32)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()

    def load() -> torch.nn.Module:
        return tiny_model(4096, layers=6, hidden=256, heads=8, context=512) if args.model == "small" else load_model(args.model)

    theirs = load()
    prompts = torch.randint(3, theirs.config.vocab_size, (args.batch, args.prompt), generator=torch.Generator().manual_seed(0))
    ours = {"float32": Role(Backbone(load(), lora=Lora()))}
    if has_bfloat16():
        ours["bfloat16"] = Role(Backbone(load(), lora=Lora(), dtype=torch.bfloat16))

    def generate() -> None:
        with torch.inference_mode():
            theirs.generate(prompts, max_new_tokens=args.new, min_new_tokens=args.new, do_sample=True, top_k=0, pad_token_id=0)

    def truing(role: Role) -> None:
        sample(role, prompts.tolist(), max_new_tokens=args.new, temperature=1.0, stop_ids=[], seed=0, step=0)

    times: dict[str, list[float]] = {"transformers float32": [], **{f"truing {k}": [] for k in ours}}
    for round_ in range(args.rounds + 1):  # the first is the warm-up
        torch.backends.mkldnn.matmul.fp32_precision = "none"
        measured = {"transformers float32": seconds(generate)}
        fast_float32.cache_clear()
        kernels = fast_float32()
        measured |= {f"truing {k}": seconds(lambda r=role: truing(r)) for k, role in ours.items()}  # type: ignore[misc]
        if round_:
            for name, value in measured.items():
                times[name].append(value)
    tokens = args.batch * args.new
    median = {name: statistics.median(values) for name, values in times.items()}
    print(json.dumps({
        "work": f"decode {args.batch} x {args.new}, prompt {args.prompt}", "model": args.model, "threads": torch.get_num_threads(), "float32_kernels": kernels,
        "torch": torch.__version__, "tokens_per_second": {k: round(tokens / v, 1) for k, v in median.items()},
        "ratio_to_transformers": {k: round(median["transformers float32"] / v, 2) for k, v in median.items()}, "rounds": args.rounds,
    }, indent=1))  # fmt: skip


if __name__ == "__main__":
    main()
