"""Does bfloat16 learn what float32 learns? Learning curves of both precisions, seed by seed, of every kind of training that the suite times.

    python benchmarks/precision.py [SEEDS]

Each seed: the quick demo's sentences and one SFT and one reward model in float32, which every pair of runs starts from; then each method twice, alike but for
``dtype``. A pair shares seed, data and order; what differs is rounding, and, once a sampled token differs, the samples. Prints one JSON object: for
each figure the mean of both precisions, the spread of float32 over seeds, the paired difference (bfloat16 less float32) with its 95% interval (Student's t over seeds), and the same of
every tenth of the curve, of which the largest difference in standard errors is given. Draws them in ``docs/precision.png``. Learning needs no quiet machine.
"""

from __future__ import annotations

import json
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

PRECISIONS = ("float32", "bfloat16")
TENTHS = 10
FIGURE = Path(__file__).parents[1] / "docs" / "precision.png"


@dataclass(frozen=True)
class Method:
    """A stage that is run in both precisions: its options, the logged number that is its curve, and numbers of its end."""

    options: dict[str, Any]
    curve: str
    ends: tuple[str, ...]
    evaluated: bool = False
    """Its model is judged on held-out prompts beside the SFT model; the ends are then the evaluation's."""


def methods(data: Path) -> dict[str, Method]:
    """What the suite's bfloat16 rows train, with the quick demo's settings."""
    adapted: dict[str, Any] = {"lora": {"rank": 8, "alpha": 16.0}, "max_length": 96, "model": "sft"}
    whole: dict[str, Any] = {"lora": None, "max_length": 96, "model": "sft"}
    sampled: dict[str, Any] = {"prompts": str(data / "prompts.jsonl"), "max_new_tokens": 20, "temperature": 0.7, "batch_size": 64, "steps": 20}
    pairs: dict[str, Any] = {"method": "reward", "data": str(data / "prefs.jsonl"), "epochs": 6}
    demos: dict[str, Any] = {"method": "sft", "data": str(data / "demos.jsonl"), "lr": 3e-3, "epochs": 24, "warmup": 0.02, "eval_share": 0.1}
    penalty = {"coef": 0.3, "target": 4.0, "horizon": 500}
    return {
        "SFT, every weight": Method({**whole, **demos, "model": str(data / "base")}, "loss", ("eval/loss",)),
        "reward model, every weight": Method({**whole, **pairs, "lr": 1e-3}, "loss", ("eval/loss", "eval/accuracy")),
        "reward model, LoRA": Method({**adapted, **pairs, "lr": 3e-3}, "loss", ("eval/loss", "eval/accuracy")),
        "PPO, LoRA": Method({**adapted, **sampled, "method": "ppo", "reward": "reward", "minibatches": 2, "epochs": 2, "lr": 2e-3, "lam": 1.0, "kl": penalty}, "reward/proxy", ("gold", "kl"), True),
        "GRPO, every weight": Method({**whole, **sampled, "method": "grpo", "reward": "truing.demo.gold:wordlist", "lr": 1e-3}, "reward/proxy", ("gold", "kl"), True),
    }  # fmt: skip


def recipe(data: Path, seed: int) -> dict[str, Any]:
    """One seed: what all start from, then every method in both precisions, judged where it generates."""
    found = methods(data)
    stages = {"sft": {**found["SFT, every weight"].options, "dtype": "float32"}, "reward": {**found["reward model, LoRA"].options, "dtype": "float32"}}
    for k, method in enumerate(found.values()):
        for dtype in PRECISIONS:
            stages[f"{k}-{dtype}"] = {**method.options, "dtype": dtype}
            if method.evaluated:
                stages[f"{k}-{dtype}-judged"] = {
                    "method": "evaluate", "before": "sft", "after": f"{k}-{dtype}", "prompts": str(data / "heldout.jsonl"), "samples": 16, "max_new_tokens": 20, "temperature": 0.7,
                    "scores": {"gold": "truing.demo.gold:wordlist"},
                }  # fmt: skip
    return {"name": f"seed-{seed}", "seed": seed, "stages": stages}


def measure(seed: int) -> dict[str, dict[str, dict[str, Any]]]:
    """``{method: {precision: {"curve": [steps], end: number}}}`` of one seed."""
    import torch

    from truing.config import make_recipe
    from truing.demo.quick import write_quick_data
    from truing.demo.tiny import write_tiny_model
    from truing.pipeline import run_recipe

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="truing-precision-") as name:
        data = Path(name) / "data"
        write_quick_data(data, seed)
        texts = [m["content"] for line in (data / "demos.jsonl").read_text().splitlines() for m in json.loads(line)["messages"]]
        write_tiny_model(data / "base", texts, seed=seed)
        runs = run_recipe(make_recipe(recipe(data, seed)), Path(name))
        return {label: {d: _read(runs, f"{k}-{d}", method) for d in PRECISIONS} for k, (label, method) in enumerate(methods(data).items())}


def _read(runs: Path, stage: str, method: Method) -> dict[str, Any]:
    from truing.observe.events import read_events

    curve = [e[method.curve] for e in read_events(runs / stage) if e["kind"] == "metrics"]
    if not method.evaluated:
        done = json.loads((runs / stage / "done.json").read_text())
        return {"curve": curve, **{end: done[end] for end in method.ends}}
    judged = json.loads((runs / f"{stage}-judged" / "evaluation.json").read_text())
    return {"curve": curve, "gold": judged["difference"]["gold"]["sd_units"], "kl": judged["kl_sequence"]["mean"]}


Seeds = list[dict[str, dict[str, dict[str, Any]]]]


def tenths(by_seed: Seeds, method: str, dtype: str) -> np.ndarray:
    """The mean of each tenth of every seed's curve, ``[seeds, 10]``: seeds differ in their number of steps where they differ in pairs."""
    return np.array([[part.mean() for part in np.array_split(np.asarray(s[method][dtype]["curve"], dtype=float), TENTHS)] for s in by_seed])


def paired(float32: np.ndarray, bfloat16: np.ndarray) -> dict[str, Any]:
    """Both means, and the mean difference seed by seed with its 95% interval, ``mean +- t s / sqrt(n)``."""
    apart = bfloat16 - float32
    half = stats.t.ppf(0.975, len(apart) - 1) * apart.std(ddof=1) / np.sqrt(len(apart))
    return {
        "float32": round(float(float32.mean()), 4), "bfloat16": round(float(bfloat16.mean()), 4), "float32_sd_over_seeds": round(float(float32.std(ddof=1)), 4),
        "difference": [round(float(v), 4) for v in (apart.mean(), apart.mean() - half, apart.mean() + half)],
    }  # fmt: skip


def compare(by_seed: Seeds) -> dict[str, Any]:
    """Every method's curve and ends, compared over the seeds."""
    out: dict[str, Any] = {}
    for label in by_seed[0]:
        both = {d: tenths(by_seed, label, d) for d in PRECISIONS}
        apart = both["bfloat16"] - both["float32"]
        errors = np.abs(apart.mean(0)) / (apart.std(0, ddof=1) / np.sqrt(len(apart)))
        ends = [key for key in by_seed[0][label]["float32"] if key != "curve"]
        out[label] = {
            "mean of the curve": {**paired(both["float32"].mean(1), both["bfloat16"].mean(1)), "tenths_apart_in_errors": [round(float(e), 1) for e in errors]},
            **{end: paired(*(np.array([s[label][d][end] for s in by_seed]) for d in PRECISIONS)) for end in ends},
        }
    return out


def draw(by_seed: Seeds, path: Path) -> None:
    """Mean curves of both precisions over each other, with the spread of single seeds."""
    from truing.labs.canvas import BLUE, ORANGE, band, canvas, label_ends, png

    labels = list(by_seed[0])
    with canvas(2, 3, width=11, height=6) as (figure, axes):
        for ax, label in zip(axes.flat, labels, strict=False):
            for dtype, colour in zip(PRECISIONS, (BLUE, ORANGE), strict=True):
                band(ax, 100 / TENTHS * (0.5 + np.arange(TENTHS)), tenths(by_seed, label, dtype), dtype, colour)
            ax.set_title(label)
            ax.set_ylabel("score" if "PO" in label else "loss")
            ax.set_xlabel("steps, %")
            label_ends(ax, gap=0.09)
        for ax in axes.flat[len(labels) :]:
            ax.set_axis_off()
        path.write_bytes(png(figure, dpi=110))


if __name__ == "__main__":
    seeds = range(int(sys.argv[1]) if len(sys.argv) > 1 else 24)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        found = list(pool.map(measure, seeds))
    draw(found, FIGURE)
    print(json.dumps({"seeds": len(found), "methods": compare(found)}, indent=1))
