"""A chair: transformers' own generation, of a model as it is loaded.

Asks: ``model`` (a folder), ``how`` (dynamic, static, continuous), ``dtype``, ``lengths`` (most new tokens of each sequence), ``prompt``, ``slots`` (sequences at
once), ``device``, ``stops`` (how many ids end a sequence; 0 = none). A batch of ``generate`` waits for its longest sequence; the padding behind the others is not counted.
"""

from __future__ import annotations

from typing import Any

from benchmarks import tokens
from benchmarks.turns import Turns, asked, repeat


def play(turns: Any, asks: dict[str, Any]) -> None:
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    model = AutoModelForCausalLM.from_pretrained(asks["model"], dtype=getattr(torch, asks.get("dtype", "float32"))).eval().to(asks.get("device", "cpu"))
    model.generation_config.eos_token_id = None  # every sequence runs to its length
    limits: list[int] = asks["lengths"]
    slots = asks.get("slots") or len(limits)
    turns.facts |= {"dtype": str(model.dtype).removeprefix("torch."), "attention": model.config._attn_implementation}
    ends = tokens.stops(asks)
    drawn: dict[str, Any] = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "pad_token_id": tokens.PAD, "max_new_tokens": max(limits)}
    round_ = 0

    @torch.inference_mode()
    def batches(prompts: list[list[int]]) -> int:
        config = GenerationConfig(eos_token_id=ends or None, **drawn, **({"cache_implementation": "static"} if asks["how"] == "static" else {}))
        made = 0
        for first in range(0, len(prompts), slots):
            ids = torch.tensor(prompts[first : first + slots], device=model.device)
            rows = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config)[:, ids.shape[1] :]
            made += tokens.said(rows.tolist(), ends)
        return made

    def continuous(prompts: list[list[int]]) -> int:
        """What `generate_batch` does, each request told what ends it. Left alone it takes most of the machine's memory for its cache, slowly."""
        from transformers import ContinuousBatchingConfig

        config = GenerationConfig(eos_token_id=ends or -1, **drawn)
        room = ContinuousBatchingConfig(num_blocks=2 * slots, max_batch_tokens=4096)
        left, made = len(prompts), 0
        with model.continuous_batching_context_manager(generation_config=config, continuous_batching_config=room, block=True, timeout=5) as manager:
            for ids in prompts:
                manager.add_request(ids, max_new_tokens=max(limits), eos_token_id=ends or -1)
            while left:
                result = manager.get_result(timeout=60)
                if result is None or result.error:
                    raise SystemExit(f"continuous batching stopped answering: {result and result.error}")
                if result.is_finished():
                    left, made = left - 1, made + len(result.generated_tokens)
        return made

    def work() -> dict[str, Any]:
        nonlocal round_
        round_ += 1
        prompts = tokens.sequences([asks["prompt"]] * len(limits), model.config.vocab_size, round_)
        made = (continuous if asks["how"] == "continuous" else batches)(prompts)
        if not ends and made != sum(limits):
            raise SystemExit(f"asked for {sum(limits)} tokens, got {made}")
        return {"tokens": made}

    repeat(turns, work)


if __name__ == "__main__":
    play(Turns(), asked())
