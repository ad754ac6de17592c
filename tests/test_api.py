"""The Python face: a pipeline in four calls, rewards composed as expressions, the same recipes as in YAML."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import tiny
import truing
from truing import rewards as r
from truing.config import load_recipe
from truing.errors import ConfigError
from truing.observe.events import read_events


def test_the_whole_road_in_python(tmp_path: Path) -> None:
    data, runs = tiny.folder(tmp_path / "data"), tmp_path / "runs"
    stages = tiny.recipe(data)["stages"]
    sft = truing.sft(runs=runs, seed=1, **stages["sft"] | {"epochs": 2})
    rm = truing.reward(runs=runs, seed=1, **stages["reward"] | {"model": sft, "epochs": 2})
    run = truing.ppo(runs=runs, seed=1, **stages["ppo"] | {"model": sft, "reward": r.learned(rm) - 0.01 * r.excess_tokens(4), "steps": 2})
    verdict = truing.evaluate(runs=runs, **stages["evaluate"] | {"before": sft, "after": run, "scores": {"good": "tiny:good", "proxy": rm}})
    assert verdict.verdict and verdict.report().is_file() and (run.model / "truing.json").is_file()

    first = next(e for e in read_events(runs / "ppo" / "ppo") if e["kind"] == "metrics")
    rm_part, excess = (first[f"part/{name}"] for name in ("reward", "excess_tokens(4)"))
    assert first["reward/proxy"] == pytest.approx(rm_part - 0.01 * excess) and excess > 0
    written = load_recipe(runs / "ppo" / "recipe.yaml").stages["ppo"]
    assert written.reward == f'learned("{rm.model}") - 0.01 * excess_tokens(4)'  # type: ignore[union-attr]

    before = (run.model / "truing.json").stat().st_mtime_ns
    again = truing.ppo(runs=runs, seed=1, **stages["ppo"] | {"model": sft, "reward": r.learned(rm) - 0.01 * r.excess_tokens(4), "steps": 2})
    assert again == run and (run.model / "truing.json").stat().st_mtime_ns == before  # complete: nothing ran
    with pytest.raises(ConfigError, match="was begun with another recipe.*reward"):
        truing.ppo(runs=runs, seed=1, **stages["ppo"] | {"model": sft, "reward": r.learned(rm) - 0.02 * r.excess_tokens(4), "steps": 2})


def test_wrong_names_are_refused_with_a_suggestion(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown key 'stages.ppo.step'; did you mean 'steps'"):
        truing.ppo(prompts="p.jsonl", step=3, runs=tmp_path)
    with pytest.raises(AttributeError, match="no attribute 'dpo'; it has"):
        truing.dpo  # noqa: B018
    with pytest.raises(AttributeError, match="no 'lerned'"):
        r.lerned  # noqa: B018


def test_importing_truing_loads_nothing_heavy() -> None:
    code = "import sys, truing; from truing import rewards; print(sorted({'torch', 'transformers', 'numpy', 'pydantic'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
