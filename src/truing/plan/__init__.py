"""What a recipe will need of memory and time, before it is run, and what to change where it does not fit.

Memory is arithmetic (`methods.footprint`); time is a short probe that runs each stage's own functions. A stage whose model an earlier
stage has yet to make is planned on the model that one starts from. Nothing is left behind: no folder, no weight, no random state.
"""

from __future__ import annotations

import gc
import importlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from truing import allocator
from truing.config import Recipe
from truing.errors import ConfigError
from truing.methods import footprint
from truing.methods.footprint import MIB, MemoryPlan
from truing.models import anatomy, memory
from truing.pipeline import resolved
from truing.plan import rows as reading
from truing.plan import standins
from truing.plan.advice import Advice, advise
from truing.plan.available import There, there
from truing.plan.clock import Span, Timing

SECONDS = 12.0  # of the probe of a stage, beside loading
EXACT = 0.15  # how far the predicted peak may be off
GROWN = 24 * MIB  # what a process adds in its life beside what is counted: modules that are imported late, tables, the tokenizer's caches


@dataclass(frozen=True)
class StagePlan:
    """A stage's memory and time.

    Attributes:
        steps: how many there are; None where the data are not there yet.
        notes: what the plan takes for granted.
    """

    name: str
    method: str
    model: str
    memory: MemoryPlan
    timing: Timing | None
    steps: int | None
    notes: tuple[str, ...]
    advice: tuple[Advice, ...]

    @property
    def whole(self) -> Span | None:
        """Seconds of the stage."""
        return self.timing.whole(self.steps) if self.timing and self.steps is not None else None


@dataclass(frozen=True)
class Plan:
    """A recipe's stages, in order, and the memory that is there."""

    name: str
    there: There
    stages: tuple[StagePlan, ...]

    @property
    def peak(self) -> float:
        """MiB."""
        return max(s.memory.peak for s in self.stages)

    @property
    def room(self) -> float:
        """MiB that are there."""
        return self.there.bytes / MIB

    def fits(self, stage: StagePlan) -> bool:
        return stage.memory.peak <= self.room


def plan(
    recipe: Recipe, *, runs: Path = Path("runs"), available: float | None = None, time: bool = True, seconds: float = SECONDS, tell: Callable[[str], None] = lambda _: None
) -> Plan:
    """Plan every stage.

    Args:
        runs: where the recipe's finished stages lie, if there are any; they are read, never written.
        available: bytes to fit into; None asks the system.
        time: False leaves the probe out: no model is loaded.
        seconds: of a stage's probe, about, beside loading.
        tell: is told what is being done.

    Raises ConfigError, DataError or ModelError for what is missing or cannot be meant.
    """
    for name, stage in recipe.stages.items():
        if stage.device != "cpu":
            raise ConfigError(f"stages.{name}.device={stage.device}: a plan counts the memory and measures the time of a run on the CPU; plan with --set {name}.device=cpu, and read memory/device_peak_mib of a first run")
    for method in ("sft", "reward_model", "ppo", "grpo", "evaluate"):  # as a run's process has them
        importlib.import_module(f"truing.methods.{method}")
    allocator.trim()
    process = float(memory.resident()) + GROWN
    room = there(float(memory.resident())) if available is None else There(available, "given")
    made: list[StagePlan] = []
    with tempfile.TemporaryDirectory(prefix="truing-plan-") as scratch:
        work = _Work(recipe, Path(runs) / recipe.name, Path(scratch), process, room.bytes / MIB, seconds if time else 0.0)
        for name, stage in resolved(recipe, work.stand_in):
            tell(name)
            made.append(work.stage(name, stage))
            gc.collect()
            anatomy.forget()
    return Plan(recipe.name, room, tuple(made))


class _Work:
    def __init__(self, recipe: Recipe, folder: Path, scratch: Path, process: float, room: float, seconds: float) -> None:
        self.recipe, self.folder, self.scratch, self.process, self.room, self.seconds = recipe, folder, scratch, process, room, seconds
        self.waited: dict[str, tuple[str, str]] = {}  # folder of a stand-in -> the stage it stands for, and the model that one starts from

    def stand_in(self, name: str, stage: Any) -> str:
        """The model of a stage: its own where it is complete, else one that stands for it."""
        own = self.folder / name
        if (own / "done.json").exists() and (own / "model").is_dir():
            return str(own / "model")
        if stage.method == "evaluate":
            return str(own / "model")
        model, source = footprint.of_model(stage.model, stage)
        self.waited[str(self.scratch / name)] = name, self.waited[stage.model][1] if stage.model in self.waited else stage.model
        return standins.write(self.scratch / name, stage, model, source)

    def stage(self, name: str, stage: Any) -> StagePlan:
        seed = self.recipe.seed
        rows = reading.read(stage, seed, self._ours)
        load = reading.load(stage, rows, seed)
        weights = footprint.weights(stage)
        planned = lambda config: footprint.plan(config, reading.load(config, rows, seed), self.process)  # noqa: E731
        found = planned(stage)
        notes = [rows.note] if rows.note else []
        for option in ("model", "value_model", "before", "after"):
            if getattr(stage, option, None) in self.waited:
                waited, start = self.waited[getattr(stage, option)]
                notes.append(f"{option}: {waited} has not run yet; planned on {start}, which it starts from")
        advice = () if found.peak <= self.room else tuple(advise(stage, weights, load, found.peak, self.room, planned))
        timing = None
        if self.seconds and found.peak > self.room:
            notes.append("no time: the probe would not fit into the memory that is there")
        elif self.seconds:
            timing, problem = self._timing(stage, rows, seed, name)
            notes += [problem] if problem else []
        return StagePlan(name, stage.method, _shown(stage, weights), found, timing, reading.updates(stage, rows), tuple(notes), advice)

    def _timing(self, stage: Any, rows: Any, seed: int, name: str) -> tuple[Timing | None, str]:
        from truing.plan import rollouts, supervised

        if stage.method in ("sft", "reward"):
            return supervised.probe(stage, rows, seed, self.seconds), ""
        if stage.method == "evaluate":
            if stage.environment:
                return None, "no time: an evaluation in an environment is not timed"
            return rollouts.probe_evaluation(stage, rows, seed, self.seconds), ""
        scratch = self.scratch / f"{name}-probe"
        scratch.mkdir()
        return rollouts.probe(stage, rows, seed, self.seconds, scratch), ""

    def _ours(self, path: str) -> bool:
        """Whether a path lies in a folder that this recipe writes."""
        return any(Path(path).resolve().is_relative_to((self.folder / name).resolve()) for name in self.recipe.stages)


def _shown(stage: Any, weights: footprint.Weights) -> str:
    """How the policy is trained, in a few words."""
    model = weights.policy
    size = model.elements
    numbers = f"{size / 1e9:.1f}B" if size >= 1e9 else f"{size / 1e6:.3g}M" if size >= 1e6 else f"{size / 1e3:.0f}k"
    precision = str(model.dtype).removeprefix("torch.")
    if stage.method == "evaluate":
        return f"{numbers}, {precision}"
    return f"{numbers}, " + (f"LoRA on {model.adapted} of {model.layers} layers, {precision}" if model.lora else f"every weight, {precision}")


__all__ = ["Advice", "Plan", "Span", "StagePlan", "There", "Timing", "plan"]
