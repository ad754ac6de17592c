"""`truing demo verbose-bot`: a support bot that learns to please a slightly flawed reward model, and the same bot mended.

It writes the help desk's data, a tiny model and `recipe.yaml` (the text beside this file, filled in) into the run's
folder ``data``, and runs that recipe: what the demo does is all in a file that can be read, changed and run again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from truing.config import Recipe, load_recipe
from truing.demo.desk import Sizes, write_desk
from truing.disk import write_atomic
from truing.errors import DataError
from truing.pipeline import run_recipe

COST = {"sft": 45, "reward": 50, "gamed": 130, "mended": 70, "check-gamed": 12, "check-mended": 8}  # measured seconds, for the time left
VOCABULARY, LAYERS, HIDDEN = 1024, 2, 96


def run_verbose_bot(seed: int = 0, name: str | None = None, runs: str | Path = "runs", progress: Any = None) -> Path:
    """Run the scenario, or go on with it; returns the pipeline's folder, ``runs/NAME`` (verbose-bot, with the seed when it is not 0)."""
    title = name or "verbose-bot" + (f"-{seed}" if seed else "")
    data = Path(runs) / title / "data"
    if progress and not (data / "complete.json").exists():
        progress.note("writing the data")
    recipe = write_verbose_bot(data, title, seed)
    if progress:
        progress.expect(COST)
    return run_recipe(recipe, Path(runs), progress)


def write_verbose_bot(data: Path, name: str, seed: int, sizes: Sizes | None = None, overrides: Iterable[str] = ()) -> Recipe:
    """Write data, model and recipe into the folder ``data`` unless they are there; returns the recipe with ``overrides``.

    Raises DataError where the folder was written for another seed or name, ConfigError for a name that is no folder's.
    """
    made_of = {"name": name, "seed": seed}
    marker = data / "complete.json"
    if not marker.exists():
        data.mkdir(parents=True, exist_ok=True)
        write_atomic(data / "recipe.yaml", recipe_text(data, name, seed).encode())
        load_recipe(data / "recipe.yaml", overrides)  # refuses a wrong name before the work
        write_desk(data, seed, sizes)
        _write_base(data, seed)
        write_atomic(marker, json.dumps(made_of).encode() + b"\n")
    elif (found := json.loads(marker.read_text())) != made_of:
        raise DataError(f"{data}: was made for {found}, not for {made_of}; give this run another --name, or delete {data.parent}")
    return load_recipe(data / "recipe.yaml", overrides)


def recipe_text(data: Path, name: str, seed: int) -> str:
    """The recipe in YAML, comments and all, with the paths of ``data``."""
    text = resources.files("truing.demo").joinpath("verbose_bot.yaml").read_text(encoding="utf-8")
    quoted = json.dumps(str(data), ensure_ascii=False)[1:-1]  # a JSON string is a YAML string, so any path can stand there
    return Template(text).substitute(data=quoted, name=json.dumps(name), seed=seed)


def _write_base(data: Path, seed: int) -> None:
    from truing.demo.tiny import write_tiny_model

    texts = [m["content"] for line in (data / "demos.jsonl").read_text().splitlines() for m in json.loads(line)["messages"]]
    write_tiny_model(data / "base", texts, seed=seed, vocab_size=VOCABULARY, layers=LAYERS, hidden=HIDDEN)
