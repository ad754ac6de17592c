"""Products in bfloat16 with float32 weights learn what float32 learns: the difference is within that of seeds."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import t as student

import tiny
from truing.config import PPO, SFT
from truing.observe.events import read_events

SEEDS = (1, 2, 3, 4)


def curve(folder: Path, metric: str) -> np.ndarray:
    events = [e.get("values", e) for e in read_events(folder) if e["kind"] == "metrics"]
    return np.array([e[metric] for e in events])


def interval(differences: np.ndarray) -> tuple[float, float]:
    """95% of the mean of paired differences (Student's t)."""
    half = student.ppf(0.975, len(differences) - 1) * differences.std(ddof=1) / np.sqrt(len(differences))
    return differences.mean() - half, differences.mean() + half


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("learning"), hidden=64)


def both(world: Path, folder: Path, name: str, make: Any, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """The metric by seed and update, in float32 and in bfloat16."""
    run = getattr(importlib.import_module(f"truing.methods.{name}"), name)
    found = []
    for dtype in ("float32", "bfloat16"):
        for seed in SEEDS:
            run(make(dtype), folder / f"{dtype}-{seed}", seed=seed)
        found.append(np.stack([curve(folder / f"{dtype}-{seed}", metric) for seed in SEEDS]))
    return found[0], found[1]


@pytest.mark.slow
def test_sft_falls_as_far(world: Path, tmp_path: Path) -> None:
    make = lambda dtype: SFT(model=str(world / "base"), data=str(world / "demos.jsonl"), lora=None, dtype=dtype, lr=3e-3, batch_size=16, epochs=12, eval_share=0.0)  # noqa: E731
    exact, rounded = both(world, tmp_path, "sft", make, "loss")
    assert exact[:, -4:].mean() < 0.5 * exact[:, :4].mean()  # there is a curve
    assert 0 < np.abs(exact - rounded).max()  # and bfloat16 was used
    low, high = interval((rounded[:, -8:] - exact[:, -8:]).mean(1))
    assert low <= 0.01 and high >= -0.01 and abs((rounded - exact).mean()) < 0.02, (low, high)
    # a twentieth of what seeds differ by, or a hundredth of the loss, at every point of the curve
    assert np.abs(rounded.mean(0) - exact.mean(0)).max() < 0.05 * exact.mean(0).max()


@pytest.mark.slow
def test_ppo_rises_as_far(world: Path, tmp_path: Path) -> None:
    make = lambda dtype: PPO(  # noqa: E731
        model=str(world / "base"), prompts=str(world / "prompts.jsonl"), reward="test_models_precision_learning:vowels", lora=None, dtype=dtype, lr=3e-3, steps=24, batch_size=32,
        minibatches=2, epochs=2, max_new_tokens=8, kl={"coef": 0.01, "target": None}, scores={"timeout": None, "missing_eos": None}, schedule="constant",
    )  # fmt: skip
    exact, rounded = both(world, tmp_path, "ppo", make, "reward/proxy")
    rise = exact[:, -6:].mean(1) - exact[:, :2].mean(1)
    assert interval(rise)[0] > 0.02, rise  # there is a curve
    low, high = interval(rounded[:, -6:].mean(1) - exact[:, -6:].mean(1))
    assert low < 0 < high, (low, high)
    assert abs((rounded[:, -6:] - exact[:, -6:]).mean()) < 0.5 * rise.mean(), (low, high, rise)


def vowels(prompts: list[str], completions: list[str]) -> list[float]:
    """The share of letters that are vowels: easily learnt, never reached by chance."""
    return [sum(c in "aeiou" for c in text) / max(1, len(text)) for text in completions]
