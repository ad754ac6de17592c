"""A recipe's stages in order, each in its own folder; a complete one is skipped, a killed one goes on where it was.

The folder ``runs/NAME`` holds `recipe.yaml` and one folder a stage. Where an option of a stage names an earlier stage
(``model: sft``), it stands for that stage's trained model.
"""

from __future__ import annotations

import gc
import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from truing import allocator
from truing.config import Frozen, Recipe
from truing.disk import write_atomic
from truing.errors import ConfigError
from truing.learn.compare import differences
from truing.rewards import expression

if TYPE_CHECKING:
    from truing.data.records import Kind

NAMES = ("model", "value_model", "before", "after")  # options that may name an earlier stage
METHODS = {"sft": ("sft", "sft"), "reward": ("reward_model", "reward_model"), "ppo": ("ppo", "ppo"), "grpo": ("grpo", "grpo"), "evaluate": ("evaluate", "evaluate")}
TRAINS_ON: dict[str, tuple[str, Kind]] = {"sft": ("data", "sft"), "reward": ("data", "preference"), "ppo": ("prompts", "prompts"), "grpo": ("prompts", "prompts")}
TABLES = ("monitors", "scores")  # tables of reward expressions, which like `reward` itself may name stages anywhere in them


def run_recipe(recipe: Recipe, runs: Path, progress: Any = None) -> Path:
    """Run every stage of a recipe. Returns the pipeline's folder.

    Raises ConfigError when a stage names a later one or asks for a GPU that is not there, and when the folder holds another recipe of the same
    name, DataError when a prompt of an evaluation is also in the training data.
    """
    from truing.models import device

    for name, stage in recipe.stages.items():
        device.find(stage.device, f"stages.{name}.device")
    folder = Path(runs) / recipe.name
    folder.mkdir(parents=True, exist_ok=True)
    plans = list(resolved(recipe, lambda name, _: str(folder / name / "model")))
    for name, stage in plans:
        _check_begun(folder / name, stage)
        if stage.method == "evaluate" and not (folder / name / "done.json").exists():
            _check_unseen(name, stage, plans)
    write_atomic(folder / "recipe.yaml", yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True).encode())
    for index, (name, stage) in enumerate(plans):
        if progress:
            progress.stage(name, index, len(plans), None)
        result = _method(stage.method)(stage, folder / name, seed=recipe.seed, progress=progress)
        if progress:
            progress.note(f"{name} is complete ({result['seconds']:.0f} s)")
        _give_memory_back()
    if progress:
        progress.done()
    return folder


def resolved(recipe: Recipe, made: Callable[[str, Any], str]) -> Iterator[tuple[str, Any]]:
    """The stages in order, with earlier ones' names replaced; ``made(name, stage)`` says where the model of a stage will be.

    Raises ConfigError when a stage names a later one.
    """
    ready: dict[str, str] = {}
    for name, given in recipe.stages.items():
        stage = _resolved(name, given, ready, list(recipe.stages))
        yield name, stage
        ready[name] = made(name, stage)


def _resolved(name: str, stage: Frozen, ready: dict[str, str], stages: list[str]) -> Frozen:
    def replace(value: str, option: str) -> str:
        if value in stages and value not in ready and not Path(value).exists():
            raise ConfigError(f"stages.{name}.{option}={value!r} names a stage that has not run by then; put {value!r} before {name!r}")
        return ready.get(value, value)

    def express(value: str, option: str) -> str:
        if value in stages:
            return replace(value, option)
        try:
            for word in sorted(expression.names(value)):
                replace(word, option)
            return expression.resolve(value, ready)
        except ConfigError as error:
            raise error if str(error).startswith("stages.") else ConfigError(f"stages.{name}.{option}: {error}") from None

    changes: dict[str, Any] = {option: replace(getattr(stage, option), option) for option in NAMES if isinstance(getattr(stage, option, None), str)}
    if isinstance(getattr(stage, "reward", None), str):
        changes["reward"] = express(stage.reward, "reward")  # type: ignore[attr-defined]
    changes |= {t: {k: express(v, f"{t}.{k}") for k, v in getattr(stage, t).items()} for t in TABLES if isinstance(getattr(stage, t, None), dict)}
    return stage.model_copy(update=changes)


def _check_begun(folder: Path, stage: Frozen) -> None:
    """Refuse a changed recipe before anything of the old run's record is written over."""
    if not (folder / "recipe.yaml").exists():
        return
    begun = yaml.safe_load((folder / "recipe.yaml").read_text())
    plan = stage.model_dump(mode="json")
    changed = differences({k: v for k, v in begun.items() if k in plan}, plan)
    if changed:
        raise ConfigError(f"{folder}: was begun with another recipe: {'; '.join(changed)}. Use another name, or delete the folder to start again")


def _check_unseen(name: str, stage: Any, plans: list[tuple[str, Any]]) -> None:
    """The prompts of a verdict may be in no stage's training data. What is wrong with single rows, each stage says itself."""
    from truing.data.formats import check_disjoint, load, prompt_key, row_key

    held = load(stage.prompts, "prompts", on_bad="skip")
    for other, trained in plans:
        if other != name and trained.method in TRAINS_ON:
            option, kind = TRAINS_ON[trained.method]
            check_disjoint(load(getattr(trained, option), kind, on_bad="skip"), held, row_key if stage.environment else prompt_key)


def _give_memory_back() -> None:
    """Free the stage's models now, and return the pages: the allocator would keep them and the next stage's peak would stand on top."""
    gc.collect()
    allocator.trim()


def _method(name: str) -> Callable[..., dict[str, Any]]:
    module, function = METHODS[name]
    found: Callable[..., dict[str, Any]] = getattr(importlib.import_module(f"truing.methods.{module}"), function)
    return found
