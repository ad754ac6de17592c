"""A verb for each method, with the fields of its recipe as options: one definition, in `truing.config`."""

from __future__ import annotations

import hashlib
import inspect
import json as jsonlib
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from truing.cli.progress import open_progress
from truing.cli.run import RUNS, Json, RunsDir, conclude
from truing.config import METHODS, Stage, make_recipe, parse_yaml

PANELS = {
    "scores": "Scores before they become rewards", "kl": "Distance from the reference", "curriculum": "Which prompts are left out",
    "sampling": "Which tokens may be drawn, and what ends a completion", "lora": "Adapters (LoRA)",
}  # fmt: skip
OWN, SHARED, RUN = "The method", "Model and optimiser", "The run"

Name = Annotated[str | None, typer.Option(metavar="NAME", help="Name of the run.", rich_help_panel=RUN)]
Seed = Annotated[int, typer.Option(min=0, help="Seed of all randomness.", rich_help_panel=RUN)]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="OPTION=VALUE", help="An option as a recipe names it, kl.coef=0.1 say; may be repeated.", rich_help_panel=RUN)]


class Field(typing.NamedTuple):
    """One option of a method: ``path`` is where it lies in the recipe, ("kl", "coef") say."""

    path: tuple[str, ...]
    info: FieldInfo
    kinds: tuple[Any, ...]  # the types its annotation allows

    @property
    def parameter(self) -> str:
        return "_".join(self.path)

    @property
    def panel(self) -> str:
        """The box of `--help` it stands in."""
        if len(self.path) > 1 or self.path[0] == "lora":
            return PANELS.get(self.path[0], self.path[0])
        return SHARED if self.path[0] in Stage.model_fields else OWN

    @property
    def flag(self) -> str:
        return "--" + "-".join(self.path).replace("_", "-")


def fields(model: type[BaseModel], path: tuple[str, ...] = ()) -> Iterator[Field]:
    """Every option of a model and of the models nested in it; one that may be null is also an option itself."""
    for name, info in model.model_fields.items():
        if name == "method":
            continue
        kinds = _kinds(info.annotation)
        nested = [k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)]
        if not nested or type(None) in kinds:
            yield Field((*path, name), info, kinds)
        for inner in nested:
            yield from fields(inner, (*path, name))


def _kinds(annotation: Any) -> tuple[Any, ...]:
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        return _kinds(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return tuple(k for part in typing.get_args(annotation) for k in _kinds(part))
    return (annotation,)


def command(method: str) -> Callable[..., None]:
    """The verb of one method: a function with one keyword parameter a field, for typer."""
    options = sorted(fields(METHODS[method]), key=lambda o: (OWN, *PANELS.values(), SHARED).index(o.panel))

    def verb(name: str | None, seed: int, set_: list[str] | None, runs_dir: Path, json: bool, **given: Any) -> None:
        run_stage(method, chosen(options, given), name or method, seed, set_ or (), runs_dir, json)

    verb.__doc__ = METHODS[method].__doc__
    return _with_signature(verb, [_parameter(o) for o in options])


def _with_signature(verb: Callable[..., None], own: list[inspect.Parameter]) -> Callable[..., None]:
    common = {"name": (Name, None), "seed": (Seed, 0), "set_": (Set, None), "runs_dir": (RunsDir, RUNS), "json": (Json, False)}
    shared = [inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, annotation=a, default=d) for n, (a, d) in common.items()]
    verb.__signature__ = inspect.Signature([*own, *shared])  # type: ignore[attr-defined]
    verb.__annotations__ = {p.name: p.annotation for p in (*own, *shared)}
    return verb


def _parameter(option: Field) -> inspect.Parameter:
    """Values stay text here (None: not given), so that pydantic alone decides what is valid and how that is said."""
    kind, shown = _described(option)
    required = option.info.is_required()
    annotation: Any = kind if required else kind | None
    flags = f"{option.flag}/--no-{option.flag[2:]}" if kind is bool else option.flag
    said = "  ".join(x for x in (option.info.description, "" if required else f"[default: {_default(option)}]") if x)
    made = typer.Option(flags, metavar=None if kind is bool else shown, help=said.replace("[", "\\["), show_default=False, rich_help_panel=option.panel)  # \\[ : not markup
    default = inspect.Parameter.empty if required else None
    return inspect.Parameter(option.parameter, inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[annotation, made], default=default)


def _described(option: Field) -> tuple[Any, str]:
    kinds = [k for k in option.kinds if k is not type(None)]
    null = "|null" if type(None) in option.kinds else ""
    if kinds == [bool]:
        return bool, ""
    if any(isinstance(k, type) and issubclass(k, BaseModel) for k in kinds):
        return str, "null"
    if any(typing.get_origin(k) is dict for k in kinds):
        return list[str], "NAME=VALUE"
    if any(typing.get_origin(k) is tuple for k in kinds):
        return list[str], "TEXT"
    if any(typing.get_origin(k) is Literal for k in kinds):
        return str, "|".join(str(v) for k in kinds for v in typing.get_args(k)) + null
    return str, {int: "INT", float: "FLOAT"}.get(kinds[0], "TEXT") + null


def _default(option: Field) -> str:
    value = option.info.default
    if isinstance(value, BaseModel):
        return "on; see the options below"
    return "null" if value is None else "none" if value in ({}, ()) else str(value)


def chosen(options: Sequence[Field], given: dict[str, Any]) -> dict[str, Any]:
    """The given options as the nested mapping of a recipe. A text option is taken as it is; others are read as YAML."""
    out: dict[str, Any] = {}
    for option in options:
        value = given.get(option.parameter)
        if value is None or value == []:
            continue
        node = out
        for part in option.path[:-1]:
            if not isinstance(node.get(part, {}), dict):
                raise typer.BadParameter(f"cannot be given together with --{part} null", param_hint=option.flag)
            node = node.setdefault(part, {})
        node[option.path[-1]] = _value(option, value)
    return out


def _value(option: Field, value: Any) -> Any:
    if isinstance(value, list) and any(typing.get_origin(k) is tuple for k in option.kinds):
        return value
    if isinstance(value, list):
        pairs = [item.partition("=") for item in value]
        bad = [f"{k}{eq}{v}" for k, eq, v in pairs if not (k and eq and v)]
        if bad:
            raise typer.BadParameter(f"{bad[0]!r}: write NAME=VALUE", param_hint=option.flag)
        return {k: v for k, _, v in pairs}
    if isinstance(value, bool) or (str in option.kinds and value != "null"):
        return value
    return parse_yaml(value, option.flag)


def run_stage(method: str, options: dict[str, Any], name: str, seed: int, overrides: Sequence[str], runs: Path, json: bool) -> None:
    """Run one method as a recipe of one stage, named like the method."""
    from truing.pipeline import run_recipe

    full = [o if o.split(".")[0] == method else f"{method}.{o}" for o in overrides]
    recipe = make_recipe({"name": name, "seed": seed, "stages": {method: options}}, full, place=f"truing {method}")
    with open_progress(machine=json) as progress:
        folder = run_recipe(recipe, runs, progress)
    conclude(folder, json)


def _evaluate(before: str, after: str, name: str | None, seed: int, set_: list[str] | None, runs_dir: Path, json: bool, **given: Any) -> None:
    """Compare two models on the same held-out prompts, under scores that neither was trained on: means, win rate, KL, length."""
    options = {**chosen(_EVAL, given), "before": before, "after": after}
    # Named by what is compared, so that another comparison is another run, and the same one again is not computed twice.
    digest = hashlib.sha256(jsonlib.dumps([options, seed, set_], sort_keys=True).encode()).hexdigest()[:8]
    run_stage("evaluate", options, name or f"eval-{digest}", seed, set_ or (), runs_dir, json)


_EVAL = [o for o in fields(METHODS["evaluate"]) if o.path[0] not in ("before", "after")]
_MODELS = [
    inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[str, typer.Argument(metavar=n.upper(), help=h)])
    for n, h in (("before", "The model to compare with: a name or a folder."), ("after", "The model under test."))
]
evaluate = _with_signature(_evaluate, [*_MODELS, *(_parameter(o) for o in _EVAL)])
