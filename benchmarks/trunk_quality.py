"""The shared trunk as a choice: what is learned, and how long a step takes, when only the top k of 8 layers carry adapters.

    python benchmarks/trunk_quality.py [SEEDS]

Each seed: one SFT of an 8-layer model on the quick demo's sentences, then for every k its own reward model, PPO and held-out
evaluation. Gold is the word list that nothing was trained on. Prints one JSON object: per k the gold gain of each seed in
standard deviations of the SFT model with its 95% interval over prompts, KL, the reward model's held-out accuracy, and the median
seconds of a PPO step. Quality needs no quiet machine; the seconds do.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from truing.config import make_recipe
from truing.demo.quick import write_quick_data
from truing.demo.tiny import write_tiny_model
from truing.observe.events import read_events
from truing.pipeline import run_recipe

LAYERS, CHOICES = 8, (1, 2, 4, 8)


def recipe(folder: Path, seed: int) -> dict[str, Any]:
    data = folder / "data"
    stages: dict[str, Any] = {
        "sft": {"model": str(data / "base"), "lora": None, "data": str(data / "demos.jsonl"), "lr": 2e-3, "epochs": 24, "warmup": 0.02, "max_length": 96, "eval_share": 0.1}
    }
    for k in CHOICES:
        adapted = {"lora": {"rank": 8, "alpha": 16.0, "layers": k}, "max_length": 96, "model": "sft"}
        stages[f"reward-{k}"] = {**adapted, "method": "reward", "data": str(data / "prefs.jsonl"), "lr": 3e-3, "epochs": 6}
        stages[f"ppo-{k}"] = {
            **adapted, "method": "ppo", "reward": f"reward-{k}", "prompts": str(data / "prompts.jsonl"), "steps": 20, "minibatches": 2, "epochs": 2, "lr": 2e-3, "lam": 1.0,
            "max_new_tokens": 20, "temperature": 0.7, "kl": {"coef": 0.3, "target": 4.0, "horizon": 500},
        }  # fmt: skip
        stages[f"evaluate-{k}"] = {
            "method": "evaluate", "before": "sft", "after": f"ppo-{k}", "prompts": str(data / "heldout.jsonl"), "samples": 8, "max_new_tokens": 20, "temperature": 0.7,
            "scores": {"gold": "truing.demo.gold:wordlist", "proxy": f"reward-{k}"},
        }  # fmt: skip
    return {"name": f"trunk-{seed}", "seed": seed, "stages": stages}


def measure(seed: int) -> dict[int, dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="truing-trunk-") as name:
        folder = Path(name)
        write_quick_data(folder / "data", seed)
        texts = [m["content"] for line in (folder / "data" / "demos.jsonl").read_text().splitlines() for m in json.loads(line)["messages"]]
        write_tiny_model(folder / "data" / "base", texts, seed=seed, layers=LAYERS)
        runs = run_recipe(make_recipe(recipe(folder, seed)), folder)
        return {k: _read(runs, k) for k in CHOICES}


def _read(runs: Path, k: int) -> dict[str, Any]:
    found = json.loads((runs / f"evaluate-{k}" / "evaluation.json").read_text())
    gold = found["difference"]["gold"]
    seconds = [e["seconds/step"] for e in read_events(runs / f"ppo-{k}") if e["kind"] == "timing" and "seconds/step" in e]
    accuracy = json.loads((runs / f"reward-{k}" / "done.json").read_text())
    return {
        "gold_sd": [round(gold[n], 3) for n in ("sd_units", "sd_low", "sd_high")], "kl": round(found["kl_sequence"]["mean"], 2),
        "reward_accuracy": round(accuracy["eval/accuracy"], 3), "seconds_step": round(statistics.median(seconds), 3),
    }  # fmt: skip


if __name__ == "__main__":
    seeds = range(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
    by_seed = {seed: measure(seed) for seed in seeds}
    print(json.dumps({"layers": LAYERS, "adapted": {k: [by_seed[s][k] for s in seeds] for k in CHOICES}}, indent=1))
