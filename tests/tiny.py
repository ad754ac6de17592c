"""A tiny model folder and tiny data files for tests of methods; real tokenizer, real decoder, real files."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from truing.demo.tiny import write_tiny_model

ASK = ["Say a word.", "One word please.", "Speak.", "A word?", "Tell me.", "Go on."]
GOOD, BAD = ["sun", "joy", "gold", "song"], ["mud", "rust", "ash", "gloom"]


def folder(path: Path, *, seed: int = 0, hidden: int = 48, layers: int = 2) -> Path:
    """base/ (model), demos.jsonl, prefs.jsonl, prompts.jsonl, heldout.jsonl."""
    rng = random.Random(seed)
    write_tiny_model(path / "base", ASK + [f"{w} and {v}" for w in GOOD + BAD for v in GOOD + BAD], seed=seed, vocab_size=420, hidden=hidden, layers=layers)
    user = lambda i: {"role": "user", "content": f"{ASK[i % len(ASK)]} {i}"}  # noqa: E731
    say = lambda words: {"role": "assistant", "content": " and ".join(rng.sample(words, rng.randint(1, 3)))}  # noqa: E731
    _write(path / "demos.jsonl", [{"id": f"d{i}", "messages": [user(i), say(GOOD + BAD)]} for i in range(64)])
    _write(path / "prefs.jsonl", [{"id": f"p{i}", "prompt": [user(i // 4)], "chosen": [say(GOOD)], "rejected": [say(BAD)]} for i in range(192)])
    _write(path / "prompts.jsonl", [{"id": f"q{i}", "prompt": [user(100 + i)]} for i in range(24)])
    _write(path / "heldout.jsonl", [{"id": f"h{i}", "prompt": [user(200 + i)]} for i in range(24)])
    return path


def recipe(path: Path, *, name: str = "tiny", lora: bool = True, **ppo: Any) -> dict[str, Any]:
    """SFT of every weight, then reward model, PPO and verdict, each a few seconds long."""
    adapted = {"lora": {"rank": 8, "alpha": 16.0, "layers": 2} if lora else None, "dtype": "float32"}
    return {
        "name": name, "seed": 1,
        "stages": {
            "sft": {"model": str(path / "base"), "data": str(path / "demos.jsonl"), "lora": None, "lr": 1e-2, "batch_size": 16, "epochs": 10, "save_every": 6, "eval_share": 0.1},
            "reward": {**adapted, "model": "sft", "data": str(path / "prefs.jsonl"), "lr": 3e-3, "batch_size": 32, "epochs": 10, "eval_share": 0.2, "save_every": 12},
            "ppo": {**adapted, "model": "sft", "prompts": str(path / "prompts.jsonl"), "steps": 8, "batch_size": 16, "minibatches": 2, "epochs": 2, "lr": 5e-3,
                    "max_new_tokens": 8, "save_every": 3, "monitors": {"good": "tiny:good"}, **ppo},
            "evaluate": {"prompts": str(path / "heldout.jsonl"), "samples": 2, "max_new_tokens": 8, "scores": {"good": "tiny:good", "proxy": "reward"}, "kl_target": 6.0},
        },
    }  # fmt: skip


def good(prompts: list[str], completions: list[str]) -> list[float]:
    """Share of good words among the known ones: the gold of these tests."""
    out = []
    for text in completions:
        up, down = sum(w in text for w in GOOD), sum(w in text for w in BAD)
        out.append((up - down) / max(1, up + down))
    return out


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
