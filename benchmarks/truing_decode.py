"""A chair: Truing's sampler, as PPO calls it.

Asks: ``model`` (a folder), ``dtype``, ``lora`` (an adapter is there, and is merged for the rollout), ``lengths`` (most new tokens of each sequence), ``prompt``,
``slots`` (sequences at once), ``device``, ``stops`` (how many ids end a sequence; 0 = none).
"""

from __future__ import annotations

from typing import Any

from benchmarks import tokens
from benchmarks.turns import Turns, asked, repeat, resident_mib
from truing import allocator


def play(turns: Any, asks: dict[str, Any]) -> None:
    from truing.config import Lora, Stage
    from truing.models.roles import Role, open_backbone, policy_role
    from truing.rollout.sampler import sample

    bfloat16 = asks["dtype"] == "bfloat16"
    adapted = asks.get("lora", False)
    backbone, source = open_backbone(asks["model"], Stage(model=asks["model"], dtype=asks["dtype"], lora=Lora() if adapted or bfloat16 else None, device=asks.get("device", "cpu")))
    role = policy_role(backbone, source, seed=0, purpose="policy") if adapted else Role(backbone)
    limits: list[int] = asks["lengths"]
    vocabulary = int(backbone.model.config.vocab_size)
    stops = tokens.stops(asks)
    turns.facts |= {"dtype": str(backbone.dtype).removeprefix("torch."), "loaded_mib": resident_mib()}
    round_ = 0

    def work() -> dict[str, Any]:
        nonlocal round_
        round_ += 1
        prompts = tokens.sequences([asks["prompt"]] * len(limits), vocabulary, round_)
        made = sample(role, prompts, max_new_tokens=limits, temperature=1.0, stop_ids=stops, seed=0, step=round_, **({"batch_size": asks["slots"]} if "slots" in asks else {}))
        lengths = made.lengths_B.tolist()
        if not stops and lengths != limits:
            raise SystemExit(f"asked for {limits[:8]}... tokens, got {lengths[:8]}...")
        return {"tokens": sum(lengths)}

    repeat(turns, work)


if __name__ == "__main__":
    allocator.settle()
    play(Turns(), asked())
