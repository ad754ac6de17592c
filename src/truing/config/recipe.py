"""A recipe: a name, a seed and an ordered mapping of stages, from YAML, the command line or Python; all three make the same object."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from truing.config.grpo import GRPO
from truing.config.methods import PPO, SFT, Evaluate, Reward
from truing.config.options import Frozen, Options
from truing.errors import ConfigError

AnyStage = Annotated[SFT | Reward | PPO | GRPO | Evaluate, Field(discriminator="method")]
METHODS: dict[str, type[Frozen]] = {"sft": SFT, "reward": Reward, "ppo": PPO, "grpo": GRPO, "evaluate": Evaluate}


class Recipe(Frozen):
    """A pipeline: stages run in order, each in its own folder ``runs/NAME/STAGE``; complete ones are skipped."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    seed: Annotated[int, Field(ge=0)] = 0
    stages: dict[str, AnyStage]

    @model_validator(mode="before")
    @classmethod
    def _method_from_name(cls, data: Any) -> Any:
        stages = data.get("stages") if isinstance(data, Mapping) else None
        if isinstance(stages, Mapping):
            filled = {k: ({"method": k, **v} if isinstance(v, Mapping) and k in METHODS else v) for k, v in stages.items()}
            return {**data, "stages": filled}
        return data

    @model_validator(mode="after")
    def _has_stages(self) -> Recipe:
        if not self.stages:
            raise ValueError("a recipe needs at least one stage, for example `stages: {sft: {data: demos.jsonl}}`")
        for name in self.stages:
            if not name.replace("-", "").replace("_", "").isalnum():
                raise ValueError(f"stage name {name!r} is used as a folder; use letters, digits, - and _")
        return self


class _StrictLoader(yaml.SafeLoader):
    """safe_load that refuses duplicate keys and reads 1e-6 as the number it is."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                mark = key_node.start_mark
                raise ConfigError(f"{mark.name}:{mark.line + 1}: key {key!r} appears twice; keep one")
            seen.add(key)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str, name: str = "<string>") -> Any:
    """YAML to plain objects, strictly. Raises ConfigError with file:line."""
    loader = None
    try:
        loader = _StrictLoader(text)  # refuses control characters already
        loader.name = name
        return _numbers(loader.get_single_data())
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{name}{line}: not valid YAML: {getattr(error, 'problem', None) or getattr(error, 'reason', error)}") from error
    finally:
        if loader is not None:
            loader.dispose()


def _numbers(value: Any) -> Any:
    """YAML 1.1 reads 1e-6 as a string; everybody who writes it means a number."""
    if isinstance(value, dict):
        return {k: _numbers(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_numbers(v) for v in value]
    if isinstance(value, str) and "e" in value.lower() and value[:1] in "0123456789.-+":
        try:
            return float(value)
        except ValueError:
            return value
    return value


def load_recipe(path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe and apply ``stage.option=value`` overrides (values are YAML)."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the recipe: {error.strerror}") from error
    data = parse_yaml(text, str(path))
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: a recipe is a mapping with the keys name and stages; found {type(data).__name__}")
    return make_recipe(data, overrides, place=str(path))


def make_recipe(data: Mapping[str, Any], overrides: Iterable[str] = (), place: str = "recipe") -> Recipe:
    """Validate plain objects into a `Recipe`."""
    plain = _copy(data)
    for item in overrides:
        _override(plain, item)
    try:
        return Recipe.model_validate(plain)
    except ValidationError as error:
        raise ConfigError(f"{place}: " + explain(error, Recipe)) from error


def make_stage(method: str, options: Mapping[str, Any], place: str = "options") -> Frozen:
    """Validate one method's options."""
    if method not in METHODS:
        raise ConfigError(f"{place}: method {method!r} does not exist{suggestion(method, METHODS)}")
    try:
        return METHODS[method].model_validate({"method": method, **options})
    except ValidationError as error:
        raise ConfigError(f"{place}: " + explain(error, METHODS[method])) from error


def make_options(model: type[Options], overrides: Iterable[str] = (), place: str = "options") -> Options:
    """A flat options object from ``option=value`` texts (values are YAML). Raises ConfigError naming the option, the value and the remedy."""
    data: dict[str, Any] = {}
    for item in overrides:
        key, equals, text = item.partition("=")
        if not equals:
            raise ConfigError(f"{place}: --set {item!r}: write option=value, for example --set {next(iter(model.model_fields), 'option')}=...")
        data[key.strip()] = parse_yaml(text, f"--set {key}")
    return checked(model, data, place)


def checked(model: type[Options], data: Mapping[str, Any], place: str = "options") -> Options:
    """An options object from plain values. Raises ConfigError naming the option, the value and the remedy."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise ConfigError(f"{place}: " + explain(error, model)) from error


def _copy(value: Any) -> Any:
    return {k: _copy(v) for k, v in value.items()} if isinstance(value, Mapping) else value


def _override(data: dict[str, Any], item: str) -> None:
    key, equals, text = item.partition("=")
    if not equals:
        raise ConfigError(f"--set {item!r}: write stage.option=value, for example --set ppo.lr=1e-6")
    parts = key.strip().split(".")
    stages = data.get("stages")
    if isinstance(stages, dict) and parts[0] in stages:
        parts.insert(0, "stages")
    elif parts[0] not in Recipe.model_fields:
        known = [*(stages or {}), *Recipe.model_fields]
        raise ConfigError(f"--set {item!r}: {parts[0]!r} is neither a stage nor a recipe key{suggestion(parts[0], known)}")
    node = data
    for part in parts[:-1]:
        child = node.setdefault(part, {})
        if not isinstance(child, dict):
            child = node[part] = {}
        node = child
    node[parts[-1]] = parse_yaml(text, f"--set {key}")


def suggestion(word: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown word: the nearest known one, or all of them."""
    known = sorted(known)
    close = difflib.get_close_matches(str(word), known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """A pydantic error as one readable line a problem, with the value and a remedy."""
    lines = []
    for e in error.errors():
        loc = [str(p) for i, p in enumerate(e["loc"]) if not (i == 2 and e["loc"][0] == "stages" and p in METHODS)]  # without the tag of the union
        where = ".".join(loc)
        if e["type"] == "extra_forbidden":
            key = str(e["loc"][-1])
            lines.append(f"unknown key {where!r}{suggestion(key, _fields_at(model, e['loc'][:-1]))}")
        elif e["type"] == "missing":
            lines.append(f"{where} is missing; it has no default")
        else:
            # A rule about several options names them itself; a rule about one is told with its value.
            shown = where if isinstance(e.get("input"), Mapping) else f"{where}={e.get('input')!r}"
            lines.append((f"{shown}: " if where else "") + e["msg"].removeprefix("Value error, "))
    return "; ".join(lines)


def _fields_at(model: type[BaseModel], loc: Iterable[Any]) -> list[str]:
    current: type[BaseModel] = model
    for part in loc:
        if part in METHODS:
            current = METHODS[part]
        elif part in current.model_fields:
            current = next((k for k in models_in(current.model_fields[part].annotation)), current)
    return list(current.model_fields)


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The groups of options in an option's type: of ``Lora | None`` it is Lora."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in typing.get_args(annotation) for model in models_in(part)]
