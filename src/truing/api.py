"""The Python face: a function a method, with the fields of its recipe as keyword arguments.

```python
import truing
from truing import rewards as r

sft = truing.sft(model="smollm2-135m", data="demos.jsonl")
rm = truing.reward(model=sft, data="prefs.jsonl")
run = truing.ppo(model=sft, prompts="prompts.jsonl", reward=r.learned(rm) - 0.01 * r.excess_tokens(150))
print(truing.evaluate(before=sft, after=run, prompts="heldout.jsonl", scores={"proxy": rm}).verdict)
```

Each call is a recipe of one stage, in the folder ``runs/NAME``: calling it again returns what is complete and goes on with what is not.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from truing.config import make_recipe
from truing.pipeline import run_recipe


@dataclass(frozen=True)
class Trained:
    """A complete run of one method. It stands for its model wherever a model, a reward or a monitor is named.

    Attributes:
        folder: the run's folder, ``runs/NAME``.
        method: sft, reward, ppo, grpo or evaluate.
    """

    folder: Path
    method: str

    @property
    def model(self) -> Path:
        """The trained model's folder."""
        return self.folder / self.method / "model"

    @property
    def verdict(self) -> str:
        """Whether it worked, in a sentence."""
        from truing.observe.verdict import verdict

        return str(verdict(self.folder)["verdict"])

    def report(self) -> Path:
        """Write ``report.html`` and return its path."""
        from truing.observe.report import report

        return report(self.folder)

    def __fspath__(self) -> str:
        return str(self.model)


def sft(*, name: str = "sft", seed: int = 0, runs: str | Path = "runs", **options: Any) -> Trained:
    """Supervised fine-tuning; options as in `truing.config.SFT`. Raises ConfigError for an option that does not exist or cannot be."""
    return _run("sft", name, seed, runs, options)


def reward(*, name: str = "reward", seed: int = 0, runs: str | Path = "runs", **options: Any) -> Trained:
    """A Bradley-Terry reward model; options as in `truing.config.Reward`."""
    return _run("reward", name, seed, runs, options)


def ppo(*, name: str = "ppo", seed: int = 0, runs: str | Path = "runs", **options: Any) -> Trained:
    """PPO; options as in `truing.config.PPO`. ``reward`` and ``monitors`` take expressions of `truing.rewards` too."""
    return _run("ppo", name, seed, runs, options)


def grpo(*, name: str = "grpo", seed: int = 0, runs: str | Path = "runs", **options: Any) -> Trained:
    """GRPO, RLOO and their kin; options as in `truing.config.GRPO`, ``preset="rloo"`` sets a row of them."""
    return _run("grpo", name, seed, runs, options)


def evaluate(*, name: str = "evaluate", seed: int = 0, runs: str | Path = "runs", **options: Any) -> Trained:
    """Two models on held-out prompts; options as in `truing.config.Evaluate`."""
    return _run("evaluate", name, seed, runs, options)


def _run(method: str, name: str, seed: int, runs: str | Path, options: Mapping[str, Any]) -> Trained:
    recipe = make_recipe({"name": name, "seed": seed, "stages": {method: _plain(options)}}, place=f"truing.{method}")
    return Trained(run_recipe(recipe, Path(runs)), method)


def _plain(value: Any) -> Any:
    """Recipes hold plain values: a trained run is its model's folder, a reward expression its text, a Python function `module:function`."""
    from truing.rewards import Reward, function

    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if callable(value):
        value = function(value)
    return str(value) if isinstance(value, Reward) else value
