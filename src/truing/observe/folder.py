"""Reading a finished, unfinished or damaged run folder, without ever changing it.

A pipeline holds one folder per stage; a single stage's folder is read the same way. What cannot be read becomes a note
for the reader of the report, because half a run still has something to tell.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson
import yaml

from truing.config import parse_yaml
from truing.errors import DataError, TruingError
from truing.observe.events import FILE, read_events
from truing.observe.monitor import values_of

ORDER = ("sft", "reward", "ppo", "grpo", "evaluate", "stage")
MOST_RECIPE = 100_000


@dataclass(frozen=True)
class StageRun:
    """One stage as it lies on disk.

    Attributes:
        method: sft, reward, ppo, grpo, evaluate or, when nothing tells, stage.
        options: its own recipe.yaml; empty when there is none that can be read.
        evaluation: evaluation.json of a stage that compared two models.
    """

    name: str
    folder: Path
    method: str
    events: list[dict[str, Any]]
    done: Mapping[str, Any] | None
    options: Mapping[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] | None = None

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        return [e for e in self.events if e["kind"] == kind]

    def non_finite(self) -> Iterator[tuple[int, str, str]]:
        """(step, metric, what was written) of every logged metric that is no finite number."""
        for event in self.of_kind("metrics"):
            for name, value in values_of(event).items():
                if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                    yield event["step"], name, "null" if value is None else str(value)[:40]


@dataclass(frozen=True)
class RunFolder:
    """A run: its stages in the order of the pipeline, the recipe's text, ``evaluation.json``, and notes on what is missing.

    A pipeline may compare several models: ``evaluation`` is then None, and `compared` gives each comparison as a run of its own.
    """

    folder: Path
    stages: list[StageRun]
    recipe: str | None
    evaluation: dict[str, Any] | None
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    def options(self, stage: str) -> Mapping[str, Any]:
        """What the pipeline's recipe says of a stage, else what the stage's own does; empty when neither can be read."""
        data = _parsed(self.recipe, self.folder)
        stages = data.get("stages")
        if not isinstance(stages, dict):
            return data
        options = stages.get(stage)
        return options if isinstance(options, dict) else next((s.options for s in self.stages if s.name == stage), {})

    def lists(self, stage: str) -> bool:
        """Whether the pipeline's recipe has this stage."""
        stages = _parsed(self.recipe, self.folder).get("stages")
        return isinstance(stages, dict) and isinstance(stages.get(stage), dict)

    def kl_target(self, stage: str) -> float | None:
        """``kl.target`` of a stage's recipe; None when there is none or the recipe cannot be read."""
        kl = self.options(stage).get("kl")
        return number(kl.get("target")) if isinstance(kl, dict) else None

    def compared(self) -> dict[str, RunFolder]:
        """Each comparison of a pipeline that made several: the name of the model's stage -> that stage and its evaluation alone; else empty."""
        judged = [s for s in self.stages if s.evaluation is not None]
        if self.evaluation is not None or len(judged) < 2:
            return {}
        found: dict[str, RunFolder] = {}
        for stage in judged:
            after = self._after(stage)
            name = after.name if after else stage.name
            if name in found:
                name = f"{name} ({stage.name})"
            found[name] = replace(self, stages=[*([after] if after else []), stage], evaluation=stage.evaluation, notes=[])
        return found

    def _after(self, stage: StageRun) -> StageRun | None:
        """The stage that trained the model which an evaluation calls ``after``: by the recipe, or by the folder of the model."""
        side = (stage.evaluation or {}).get("after")
        model = side.get("model") if isinstance(side, dict) else None
        names = [self.options(stage.name).get("after"), model, Path(model).parent.name if isinstance(model, str) and "\0" not in model else None]
        return next((s for name in names for s in self.stages if isinstance(name, str) and s.name == name and s is not stage), None)


def _parsed(text: str | None, folder: Path) -> dict[str, Any]:
    try:
        data = parse_yaml(text or "", str(folder / "recipe.yaml"))
    except (TruingError, yaml.YAMLError):
        return {}
    return data if isinstance(data, dict) else {}


def number(value: Any) -> float | None:
    """``value`` when it is a finite number, else None."""
    ok = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if ok else None


def read_run(folder: str | Path) -> RunFolder:
    """Read a pipeline's or a single stage's folder.

    Raises:
        DataError: the folder is missing, or holds nothing that a run writes.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such run folder; `truing run RECIPE` makes one below runs/")
    notes: list[str] = []
    single = (folder / FILE).is_file()
    parts = [folder] if single else sorted(p for p in folder.iterdir() if p.is_dir() and ((p / FILE).is_file() or (p / "evaluation.json").is_file()))
    recipe = _text(folder / "recipe.yaml", notes)
    own = folder / "evaluation.json"
    if not parts and not own.is_file() and recipe is None:
        raise DataError(
            f"{folder}: is no run folder: it holds neither {FILE}, nor stages with one, nor a recipe.yaml. Give the folder that `truing run` printed"
        )
    listed = _parsed(recipe, folder).get("stages")
    order = [str(name) for name in listed] if isinstance(listed, dict) else []
    stages = sorted((_stage(p, notes) for p in parts), key=lambda s: (order.index(s.name) if s.name in order else len(order), ORDER.index(s.method), s.name))
    if not any(s.method != "evaluate" for s in stages):
        notes.append("no training stage has an event log yet")
    judged = [s for s in stages if (s.folder / "evaluation.json").is_file()]
    if not judged and not own.is_file():
        notes.append("evaluation.json is missing: the models were not compared on held-out prompts yet (`truing eval`)")
    whole = [s.evaluation for s in judged if s.evaluation is not None]
    evaluation = _json(own, notes) if own.is_file() and not single else whole[0] if len(whole) == 1 else None
    return RunFolder(folder, stages, recipe, evaluation, notes)


def read_samples(stage: StageRun, notes: list[str]) -> tuple[int, list[dict[str, Any]]] | None:
    """Step and rows of the newest samples file of a stage that has any whole row; bad rows are left out and noted."""
    files = [(int(m[1]), p) for p in (stage.folder / "samples").glob("step-*.jsonl") if (m := re.fullmatch(r"step-(\d+)\.jsonl", p.name))]
    for step, path in sorted(files, reverse=True):
        rows = []
        for line_number, line in enumerate(path.read_bytes().splitlines(), 1):
            try:
                row = orjson.loads(line)
            except orjson.JSONDecodeError:
                row = None
            if isinstance(row, dict) and "completion" in row:
                rows.append(row)
            elif line.strip():
                notes.append(f"{path}:{line_number}: not a sample; the line is left out")
        if rows:
            return step, rows
    return None


def _stage(folder: Path, notes: list[str]) -> StageRun:
    events: list[dict[str, Any]] = []
    evaluates = folder.name == "evaluate" or (folder / "evaluation.json").is_file()
    options = _parsed(_text(folder / "recipe.yaml", []), folder)
    if (folder / FILE).is_file():
        try:
            events = read_events(folder)
        except DataError as error:
            notes.append(f"{error}; nothing of this stage is shown")
        else:
            if not evaluates and options.get("method") != "evaluate" and not any(e["kind"] == "metrics" for e in events):
                notes.append(f"{folder / FILE}: holds no metrics; the stage {folder.name!r} has not finished a step")
    names = {n for e in events if e["kind"] == "metrics" for n in values_of(e)}
    if (folder / "evaluation.json").is_file() and not names:
        method = "evaluate"
    elif any(n.startswith("groups/") for n in names):
        method = "grpo"
    elif any(n.startswith(("policy/", "reward/")) for n in names):
        method = "ppo"
    elif names & {"accuracy", "eval/accuracy", "margin/mean"}:
        method = "reward"
    elif "loss" in names:
        method = "sft"
    else:  # nothing logged yet: the recipe says it, or the folder's name is the best guess
        method = next((m for m in (options.get("method"), folder.name) if m in ORDER), "stage")
    done, evaluation = (_json(folder / name, notes) if (folder / name).is_file() else None for name in ("done.json", "evaluation.json"))
    return StageRun(folder.name, folder, method, events, done, options, evaluation)


def _json(path: Path, notes: list[str]) -> dict[str, Any] | None:
    try:
        data = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError) as error:
        notes.append(f"{path}: cannot be read ({error}); it is left out")
        return None
    if not isinstance(data, dict):
        notes.append(f"{path}: holds a {type(data).__name__} instead of an object; it is left out")
        return None
    return data


def _text(path: Path, notes: list[str]) -> str | None:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        notes.append("recipe.yaml is missing")
        return None
    except OSError as error:
        notes.append(f"{path}: cannot be read ({error.strerror}); it is left out")
        return None
    return text if len(text) <= MOST_RECIPE else text[:MOST_RECIPE] + f"\n... ({len(text) - MOST_RECIPE} more characters)"
