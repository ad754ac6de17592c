"""How long one waits before anything happens: `import truing`, and the first PPO step of a tiny recipe from the command line."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.models import folder_of
from benchmarks.results import Result, result
from benchmarks.side_by_side import KEEP, ROOT, Chair, Seated


def measure(peers: str, trl_ppo: str, rounds: int) -> list[Result]:
    """Fresh processes in turns, Truing's and the peer's; each time is from the start of the interpreter."""
    imports = _medians([lambda: _process([sys.executable, "-c", "import truing"]), lambda: _process([peers, "-c", "from trl import GRPOTrainer"])], rounds)
    steps = _medians([_recipe, lambda: _first_step_of_peer(peers, trl_ppo)], min(rounds, 3))
    settings = {"tiny recipe": "2 layers of width 96, 8 prompts, 8 new tokens, one step of PPO; whole process"}
    return [
        result("start-up", "none", "import truing", "import in a fresh process", "seconds", "s", imports[0], rounds=rounds, settings={"from trl import GRPOTrainer": round(imports[1], 2)}),
        result("start-up", "tiny", "first PPO step", "from the start of the process to the end of the first PPO step", "seconds", "s", steps[0], rounds=min(rounds, 3),
               settings=settings | {"TRL's first step of a model of that size": round(steps[1], 2)}),
    ]  # fmt: skip


def _medians(works: Sequence[Callable[[], float]], rounds: int) -> list[float]:
    """Each work's median time, in turns, after a round that fills the disk's caches."""
    found = [[work() for work in works] for _ in range(rounds + 1)][1:]
    return [statistics.median(column) for column in zip(*found, strict=True)]


def _process(command: Sequence[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "TRL_EXPERIMENTAL_SILENCE": "1", "HF_HUB_OFFLINE": "1"})
    return time.perf_counter() - began


def _recipe() -> float:
    """`truing run` of a recipe with a single step of PPO."""
    with tempfile.TemporaryDirectory(dir=KEEP) as place:
        folder = Path(place)
        (folder / "recipe.yaml").write_text(json.dumps(tiny_recipe(folder)))
        return _process([sys.executable, "-m", "truing", "run", str(folder / "recipe.yaml"), "--runs-dir", str(folder / "runs")])


def tiny_recipe(folder: Path) -> dict[str, Any]:
    """A recipe that takes no time but its own; its model and prompts are written to ``folder``."""
    base = KEEP / "models" / "recipe"
    if not (base / "config.json").exists():
        from truing.demo.tiny import write_tiny_model

        shutil.rmtree(base, ignore_errors=True)
        write_tiny_model(base, ["the river runs past a small town", "people trade stories about old machines"], seed=0, layers=2)
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"id": f"p{i}", "prompt": [{"role": "user", "content": f"the river runs past {i}"}]}) + "\n" for i in range(8)))
    stage = {
        "method": "ppo", "model": str(base), "prompts": str(prompts), "reward": "benchmarks.tokens:sevens", "steps": 1, "batch_size": 8, "minibatches": 1, "epochs": 1,
        "max_new_tokens": 8, "max_length": 128,
    }  # fmt: skip
    return {"name": "tiny", "seed": 0, "stages": {"ppo": stage}}


def _first_step_of_peer(peers: str, trl_ppo: str) -> float:
    asks = {"method": "ppo", "model": str(folder_of("tiny")), "batch": 8, "parts": 1, "prompt": 8, "new": 8, "epochs": 1, "trl": trl_ppo}
    place = Seated(Chair("first-step", "peer_rollouts", asks, peer=True, python=peers), KEEP / "logs" / "start-up" / "trl.log")
    try:
        place.wait_until_ready()
        return place.to_ready
    finally:
        place.leave()
