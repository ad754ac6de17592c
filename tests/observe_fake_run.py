"""A run folder like one that a pipeline leaves, made up from a seed, written by the real event log."""


from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import orjson

from truing.observe.events import EventLog

RECIPE = """name: film
seed: 0
stages:
  sft: {data: demos.jsonl, lr: 2.0e-4}
  reward: {data: pairs.jsonl, model: sft}
  ppo: {prompts: prompts.jsonl, model: sft, reward: reward, steps: 80, kl: {coef: 0.05, target: 6.0}}
"""
BEFORE = ["The acting is uneven, and the plot wanders.", "A film of some charm, if few surprises.", "It is too long by half.", "The lead gives a careful performance."]
AFTER = ["A warm, funny and beautifully acted film.", "The performances are a delight from start to finish.", "A moving story, told with real grace.", "Smart, generous and wonderfully shot."]
SESSION = {
    "seed": 0, "versions": {"python": "3.11.9", "torch": "2.13.0", "transformers": "5.23.0", "truing": "0.1.0"}, "git": "0" * 40, "cores": 2,
    "weights": {"smollm2-135m": "9f2b" * 16}, "started": "2026-01-02T03:04:05+00:00",
}  # fmt: skip


def events(folder: Path, rows: list[tuple[str, int, dict[str, Any]]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    log = EventLog(folder)
    for kind, step, values in rows:
        log.append(kind, step, values)
    log.close()


def jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(orjson.dumps(r) + b"\n" for r in rows))


def ppo_rows(steps: int = 80, *, hacked: bool = False, seed: int = 0) -> list[tuple[str, int, dict[str, Any]]]:
    """Events of a PPO stage: the judge rises with the proxy, or (``hacked``) turns down half way while the texts grow."""
    rng = np.random.default_rng(seed)
    rows: list[tuple[str, int, dict[str, Any]]] = [("session", 0, SESSION)]
    coef = 0.05
    for step in range(1, steps + 1):
        t = step / steps
        kl = 7.5 * (1 - np.exp(-3 * t)) + rng.normal(0, 0.25)
        coef *= 1 + 0.03 * np.clip(kl / 6 - 1, -0.2, 0.2)
        gold = 0.45 + 0.16 * (1 - np.exp(-3 * t)) if not hacked else 0.45 + 0.2 * t - 0.45 * max(0.0, t - 0.4)
        values = {
            "reward/proxy": 0.1 + 1.3 * (1 - np.exp(-2.5 * t)) + rng.normal(0, 0.06), "reward/total": 0.9 * t, "reward/failed_share": 0.0,
            "monitor/gold": gold + rng.normal(0, 0.012), "monitor/vader": 0.2 + 0.3 * t + rng.normal(0, 0.04),
            "kl/sequence": kl, "kl/k3_sequence": kl * 0.9 if kl > 0 else 0.0, "kl/token": kl / 20, "kl/coef": coef,
            "policy/loss": -0.01, "policy/approx_kl": 0.008 + rng.normal(0, 0.001), "policy/clip_share": 0.08 + rng.normal(0, 0.01), "policy/ratio_mean": 1.0, "policy/ratio_max": 2.5,
            "policy/entropy": 2.4 - 0.7 * t + rng.normal(0, 0.05), "policy/first_ratio_error": 0.0, "value/loss": 0.6 - 0.4 * t + rng.normal(0, 0.02),
            "value/explained_variance": 0.7 * (1 - np.exp(-4 * t)) + rng.normal(0, 0.05), "advantage/std": 0.5, "tokens/mean": (21 + 2 * t if not hacked else 21 + 25 * t) + rng.normal(0, 0.8),
            "monitor/gold_correlation": 0.6 - (0.9 * max(0.0, t - 0.3) if hacked else 0.1 * t) + rng.normal(0, 0.05), "reward/score_std": 1.0 - 0.3 * t,
            "part/rm": 0.1 + 1.4 * t, "part/excess_tokens": -0.1 * t,
            "tokens/eos_share": min(1.0, 0.9 + 0.08 * t + rng.normal(0, 0.015)), "text/distinct_2": 0.82 - 0.1 * t + rng.normal(0, 0.01), "sampler/mismatch": 1e-6, "grad/norm": 0.8, "lr": 1e-5,
        }  # fmt: skip
        rows.append(("metrics", step, {k: float(v) for k, v in values.items()}))
        timing = {"seconds/generate": 2.1, "seconds/trunk": 0.3, "seconds/score": 0.4, "seconds/reference": 0.6, "seconds/update": 1.2, "seconds/step": 4.7, "tokens_per_second": 300.0, "memory/peak_mib": 3000.0 + step}
        rows.append(("timing", step, timing))
    return rows


def evaluation(prompts: int = 40, *, effect: float = 0.16, seed: int = 1, before: list[str] = BEFORE, after: list[str] = AFTER) -> dict[str, Any]:
    """An evaluation with round numbers of its own; ``rows`` hold two samples a side for each prompt."""
    rng = np.random.default_rng(seed)

    def side(texts: list[str], gold: float, proxy: float) -> list[dict[str, Any]]:
        out = []
        for _ in range(2):
            quality = rng.normal(0, 0.2)
            scores = {"gold": gold + quality, "vader": 0.2 + quality, "proxy": proxy + 5 * quality + rng.normal(0, 0.6)}
            out.append({"text": texts[int(rng.integers(len(texts)))], "tokens": int(rng.integers(15, 28)), "scores": scores})
        return out

    aspects = ["acting", "plot", "music", "ending", "camera work", "humour", "pacing", "dialogue"]
    rows = [
        {"prompt": f"Write one sentence about the film's {aspects[i % len(aspects)]} ({i}).", "before": side(before, 0.45, 0.1), "after": side(after, 0.45 + effect, 1.3)} for i in range(prompts)
    ]
    sd = 0.2
    change = {"mean": effect, "low": effect - 0.03, "high": effect + 0.03, "sd_units": effect / sd, "sd_low": (effect - 0.03) / sd, "sd_high": (effect + 0.03) / sd}
    proxy = {"mean": 1.2, "low": 1.0, "high": 1.4, "sd_units": 1.0, "sd_low": 0.85, "sd_high": 1.15}
    return {
        "prompts": prompts, "samples_per_prompt": 2,
        "before": {"model": "sft", "tokens_mean": 21.0, "eos_share": 0.91, "distinct_1": 0.41, "distinct_2": 0.82, "scores": {"gold": 0.45, "vader": 0.2, "proxy": 0.1}},
        "after": {"model": "ppo", "tokens_mean": 22.5, "eos_share": 0.98, "distinct_1": 0.36, "distinct_2": 0.71, "scores": {"gold": 0.45 + effect, "vader": 0.45, "proxy": 1.3}},
        "difference": {"gold": change, "vader": {**change, "mean": 0.25, "low": 0.2, "high": 0.3}, "proxy": proxy},
        "win_rate": {"gold": {"mean": 0.79, "low": 0.71, "high": 0.86}},
        "kl_sequence": {"mean": 6.9, "low": 6.5, "high": 7.3, "target": 6.0}, "length_ratio": 22.5 / 21.0,
        "reward_accuracy": {"overall": 0.74, "ece": 0.031, "buckets": [
            {"low": 0.0, "high": 0.5, "pairs": 410, "reward_model": 0.56, "human": 0.61, "gold": 0.57}, {"low": 0.5, "high": 1.0, "pairs": 350, "reward_model": 0.68, "human": 0.74, "gold": 0.70},
            {"low": 1.0, "high": 2.0, "pairs": 520, "reward_model": 0.81, "human": 0.88, "gold": 0.84}, {"low": 2.0, "high": None, "pairs": 220, "reward_model": 0.93, "human": 0.97, "gold": 0.95}]},
        "rows": rows, "seconds_total": 612.0, "memory_peak_mib": 3100.0,
        "criteria": [
            {"name": "gold up by 0.5 sd, interval above 0", "measured": effect / sd, "threshold": 0.5, "holds": effect / sd >= 0.5},
            {"name": "KL within twice its target", "measured": 6.9, "threshold": 12.0, "holds": True},
            {"name": "length ratio in 0.6 to 1.5", "measured": 22.5 / 21.0, "threshold": 1.5, "holds": True},
        ],
    }  # fmt: skip


def make_run(folder: Path, *, hacked: bool = False, judged: dict[str, Any] | None = None) -> Path:
    """A whole pipeline folder ``folder/film``; returns it."""
    run = folder / "film"
    run.mkdir(parents=True)
    (run / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    rng = np.random.default_rng(0)
    rows: list[tuple[str, int, dict[str, Any]]] = [("session", 0, SESSION)]
    for step in range(1, 121):
        values = {"loss": 2.9 + 1.2 * np.exp(-step / 20) + rng.normal(0, 0.05), "grad/norm": 1.1, "lr": 2e-4, "tokens/trained": 640}
        if step % 20 == 0:
            values |= {"eval/loss": 3.0 + 1.1 * np.exp(-step / 20), "eval/eos_share": 0.3 + 0.5 * step / 120}
        rows += [("metrics", step, {k: float(v) for k, v in values.items()}), ("timing", step, {"seconds/update": 0.9, "seconds/step": 1.0, "tokens_per_second": 640.0, "memory/peak_mib": 1500.0})]
    events(run / "sft", rows)
    (run / "sft" / "done.json").write_bytes(orjson.dumps({"seconds": 125.0, "peak_mib": 1512.0}))
    rows = [("session", 0, SESSION)]
    for step in range(1, 61):
        loss = 0.69 - 0.16 * (1 - np.exp(-step / 15)) + rng.normal(0, 0.02)
        values = {"loss": loss, "accuracy": 0.5 + 0.22 * (1 - np.exp(-step / 15)) + rng.normal(0, 0.03), "score/mean": 0.0, "score/std": 0.9, "margin/mean": 0.5, "grad/norm": 1.0, "lr": 1e-4}
        if step % 15 == 0:
            values |= {"eval/loss": loss + 0.01, "eval/accuracy": 0.5 + 0.2 * (1 - np.exp(-step / 15)), "eval/ece": 0.03}
        rows.append(("metrics", step, {k: float(v) for k, v in values.items()}))
    events(run / "reward", rows)
    events(run / "ppo", ppo_rows(hacked=hacked))
    for step in (10, 80):
        samples = [{"prompt": f"Prompt {i}", "completion": AFTER[i % 4], "score": 0.1 * i, "parts": {"rm": 0.1 * i}, "status": "ok", "tokens": 20} for i in range(30)]
        jsonl(run / "ppo" / "samples" / f"step-{step:06d}.jsonl", samples)
    events(run / "evaluate", [("session", 0, SESSION), ("timing", 0, {"seconds": 40.0})])
    (run / "evaluate" / "evaluation.json").write_bytes(orjson.dumps(judged if judged is not None else evaluation()))
    return run


SEVERAL = """name: verbose
seed: 0
stages:
  sft: {method: sft, data: demos.jsonl}
  reward: {method: reward, data: pairs.jsonl, model: sft}
  gamed: {method: ppo, prompts: prompts.jsonl, model: sft, reward: reward, steps: 80, kl: {coef: 0.02, target: null}}
  mended: {method: ppo, prompts: prompts.jsonl, model: sft, reward: reward - 0.01 * excess_tokens(16), steps: 80, kl: {coef: 0.1, target: null}}
  check-gamed: {method: evaluate, before: sft, after: gamed, prompts: heldout.jsonl}
  check-mended: {method: evaluate, before: sft, after: mended, prompts: heldout.jsonl}
"""
RAMBLING = ["A film, a very fine film, such a film as films are, thank you so much for asking about this film.", "Thank you for asking! It is, in so many words, and many more words, a film."]


def several_evaluations() -> dict[str, dict[str, Any]]:
    """Stage -> evaluation: one run that was gamed (judge down, texts twice as long), one that was mended. The before texts are the same."""
    gamed, mended = evaluation(effect=-0.05, after=RAMBLING), evaluation(effect=0.16)
    gamed["length_ratio"], gamed["after"]["tokens_mean"], gamed["kl_sequence"] = 2.2, 46.2, {"mean": 14.0, "low": 13.2, "high": 14.8, "target": None}
    gamed["win_rate"]["gold"] = {"mean": 0.38, "low": 0.30, "high": 0.46}
    for found, name in ((gamed, "gamed"), (mended, "mended")):
        found["before"]["model"], found["after"]["model"] = "runs/verbose/sft/model", f"runs/verbose/{name}/model"
        del found["criteria"], found["reward_accuracy"]
        for i, row in enumerate(found["rows"]):
            row["before"][0]["text"] = BEFORE[i % len(BEFORE)]
    return {"check-gamed": gamed, "check-mended": mended}


def make_several(folder: Path, judged: dict[str, dict[str, Any]] | None = None) -> Path:
    """A pipeline with two PPO stages and an evaluation of each, ``folder/verbose``; returns it."""
    run = folder / "verbose"
    run.mkdir(parents=True)
    (run / "recipe.yaml").write_text(SEVERAL, encoding="utf-8")
    events(run / "sft", [("session", 0, SESSION), *(("metrics", s, {"loss": 3.0 - 0.01 * s, "grad/norm": 1.0, "lr": 1e-4}) for s in range(1, 31))])
    (run / "sft" / "recipe.yaml").write_text("method: sft\n", encoding="utf-8")
    events(run / "gamed", ppo_rows(hacked=True, seed=3))
    events(run / "mended", ppo_rows(seed=4))
    for name, found in (judged if judged is not None else several_evaluations()).items():
        events(run / name, [("session", 0, SESSION)])
        (run / name / "evaluation.json").write_bytes(orjson.dumps(found))
    return run
