"""Recipes: small, frozen and complete on arrival. This file imports no torch.

A recipe is a name, a seed and an ordered mapping of stages; each stage is the options of one method. The same object
comes from YAML (`load_recipe`), from the command line (`--set ppo.lr=1e-6`) and from Python. Unknown keys are errors
with a did-you-mean; `truing schema` prints the JSON schema.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from truing.errors import ConfigError

Positive = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(ge=0, le=1)]


class Frozen(BaseModel):
    """Base of every options object: immutable, no unknown keys, no silent coercion of infinities."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)


Options = TypeVar("Options", bound=Frozen)


class Lora(Frozen):
    """Low-rank adapters (Hu et al. 2021): W x + (alpha / rank) B A x, with B = 0 at the start."""

    rank: Positive = Field(16, description="r, the width of A and B")
    alpha: Annotated[float, Field(gt=0)] = Field(32.0, description="the adapter's output is multiplied by alpha / rank")
    layers: Positive | None = Field(None, description="adapt only the top k layers; null adapts all. The frozen trunk below is computed once a sequence")


class Stage(Frozen):
    """What every training stage has."""

    model: str = Field("smollm2-135m", description="a built-in name, a hub id, a folder, or the name of an earlier stage")
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="of the frozen layers and their activations; trained weights, head, log-probabilities and moments stay float32. auto = bfloat16 where the processor has it and LoRA is on")
    lora: Lora | None = Field(Lora(), description="null trains every weight")
    lr: Rate = Field(1e-4, description="learning rate of AdamW")
    warmup: Share = Field(0.05, description="share of the updates over which the learning rate rises from 0")
    schedule: Literal["constant", "linear", "cosine"] = Field("linear", description="of the learning rate after warm-up; linear and cosine fall to 0")
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.0, description="of AdamW, not of the loss")
    grad_clip: Annotated[float, Field(gt=0)] = Field(1.0, description="global gradient norm")
    micro_tokens: Positive = Field(4096, description="most tokens in one forward and backward; changes memory, never the result")
    max_length: Positive = Field(1024, description="most tokens of prompt + completion")
    on_bad: Literal["error", "skip", "quarantine"] = Field("error", description="what to do with a bad row of data")
    save_every: Positive = Field(20, description="updates between checkpoints")


class SFT(Stage):
    """Supervised fine-tuning: imitate the assistant turns, nothing else."""

    method: Literal["sft"] = "sft"
    data: str = Field(description="demonstrations: a file or a hub id")
    epochs: Positive = 1
    batch_size: Positive = Field(32, description="sequences per update")
    eval_share: Annotated[float, Field(ge=0, lt=1)] = Field(0.02, description="share of the rows held out for the reported loss")


class Reward(Stage):
    """Bradley-Terry reward model: one scalar head on the last token of prompt + completion."""

    method: Literal["reward"] = "reward"
    data: str = Field(description="preference pairs: a file or a hub id")
    epochs: Positive = 1
    batch_size: Positive = Field(64, description="pairs per update")
    group_prompts: bool = Field(True, description="keep the pairs of one prompt in one batch, so that each distinct completion is scored once (InstructGPT, section 3.5)")
    centering: Annotated[float, Field(ge=0)] = Field(0.01, description="weight of (r_chosen + r_rejected)^2, which keeps scores near zero")
    eval_share: Annotated[float, Field(gt=0, lt=1)] = Field(0.05, description="share of the prompts held out for accuracy, calibration and centring")


class KL(Frozen):
    """Penalty for leaving the reference. All placements aim at the same optimum, pi proportional to ref * exp(score / coef)."""

    coef: Annotated[float, Field(ge=0)] = Field(0.05, description="score per nat")
    place: Literal["reward", "loss_k2", "loss_k3"] = Field("reward", description="in the reward, as -coef * (log pi - log ref) at every token; or in the loss, by the k2 or k3 estimator with the gradient of KL(pi || ref)")
    target: float | None = Field(6.0, description="nats per sequence that the adaptive controller steers to; null keeps coef fixed")
    horizon: Positive = Field(10_000, description="sequences over which the controller acts (Ziegler et al. 2019)")
    stop: float | None = Field(None, description="nats per token between the policy and the one that sampled, above which the rest of a rollout's updates is left out; 0.02 is usual")

    @field_validator("target", "stop")
    @classmethod
    def _positive(cls, value: float | None, info: ValidationInfo) -> float | None:
        if value is not None and value <= 0:
            raise ValueError("a policy that learns is never at 0 nats; " + ("use a few nats a sequence (6), or null for a fixed coef" if info.field_name == "target" else "use 0.02 nats a token, or null for no limit"))
        return value


class Scores(Frozen):
    """What happens to scores before they become rewards, in this order: normalise, clip, missing_eos."""

    at: Literal["last", "steps", "tokens"] = Field("last", description="where a learned reward stands: its score at the last token, or how much each line or token changes it")
    normalise: Literal["none", "batch", "running", "reference"] = Field("none", description="unit spread in every batch, its mean left where it is; or subtract the mean and divide by the standard deviation of all scores so far, or of the first rollout, which the reference made")
    clip: Annotated[float, Field(gt=0)] | None = Field(None, description="scores are limited to +- this, after normalising")
    missing_eos: float | None = Field(-1.0, description="added to the score of a completion cut off at max_new_tokens; null leaves it alone")
    timeout: Annotated[float, Field(gt=0)] | None = Field(60.0, description="seconds that a function or an HTTP reward may take for a batch. Functions run in a process of their own, so one that hangs or dies cannot take the run along; null runs them in this one, without a limit")
    bad_share: Share = Field(0.1, description="the run stops when a larger share of a batch's rewards failed")


class PPO(Stage):
    """Proximal policy optimisation with policy, reference, reward and value models."""

    method: Literal["ppo"] = "ppo"
    prompts: str = Field(description="prompts: a file or a hub id")
    reward: str = Field("reward", description="a reward-model folder, the name of an earlier stage, module:function(prompts, completions) -> scores, or an expression of these: reward - 0.01 * excess_tokens(150)")
    monitors: dict[str, str] = Field({}, description="name -> scorer, written like reward: logged beside the reward at every step, never trained on")
    scores: Scores = Scores()
    steps: Positive = Field(100, description="rollouts; each is followed by epochs x minibatches updates")
    batch_size: Positive = Field(64, description="completions per rollout")
    minibatches: Positive = Field(4, description="optimiser steps an epoch")
    epochs: Positive = Field(4, description="times each rollout is learned from")
    reference: Literal["resident", "offloaded"] = Field("resident", description="offloaded keeps the reference of lora: null on the disk but while it is read; with lora the reference is the backbone itself and costs nothing")
    value: Literal["shared", "separate"] = Field("separate", description="value head on the policy's adapter, or on an adapter of its own that starts from the reward model")
    value_model: str | None = Field(None, description="a separate value model: a name, folder, hub id or earlier stage that reads the same tokens; null = on the policy's backbone")
    value_lr: Rate | None = Field(None, description="null = lr")
    value_clip: Annotated[float, Field(gt=0)] | None = Field(0.2, description="a value may move this far from the old one before its error stops counting; null leaves it free")
    value_weight: Annotated[float, Field(ge=0)] = Field(0.5, description="of the value error in the loss")
    value_warmup: Annotated[int, Field(ge=0)] = Field(0, description="first rollouts in which only the value model learns")
    kl: KL = KL()
    clip: Share = Field(0.2, description="the ratio pi / pi_old stays within 1 +- this")
    dual_clip: Annotated[float, Field(gt=1)] | None = Field(None, description="bounds the loss of a negative advantage by this times its size; 3 is usual")
    sampler_cap: Annotated[float, Field(ge=1)] | None = Field(2.0, description="weight each token by pi_trainer / pi_sampler, at most this, when their numbers differ; null does not correct")
    entropy: Annotated[float, Field(ge=0)] = Field(0.0, description="weight of the entropy bonus in the loss")
    discount: Share = Field(1.0, description="gamma, a token")
    lam: Share = Field(0.95, description="lambda of generalised advantage estimation: 1 is unbiased, less has less variance")
    max_new_tokens: Positive = Field(64, description="a completion that is longer is cut off")
    temperature: Annotated[float, Field(gt=0)] = Field(1.0, description="of sampling, and of every log-probability")

    @model_validator(mode="after")
    def _divides(self) -> PPO:
        if self.batch_size % self.minibatches:
            raise ValueError(f"batch_size={self.batch_size} is not a multiple of minibatches={self.minibatches}; each minibatch must be whole")
        if self.max_length <= self.max_new_tokens:
            raise ValueError(f"max_length={self.max_length} leaves no room for a prompt beside max_new_tokens={self.max_new_tokens}; raise it")
        if self.kl.target is not None and self.kl.coef == 0:
            raise ValueError("kl.coef=0 stays 0 whatever kl.target asks; set kl.coef above 0, or kl.target: null")
        if self.kl.target is not None and self.batch_size > self.kl.horizon:
            raise ValueError(f"kl.horizon={self.kl.horizon} is shorter than one batch of {self.batch_size}, so the controller would overshoot; raise kl.horizon")
        if self.value_model is not None and self.value == "shared":
            raise ValueError("value: shared is a head on the policy itself, so value_model has no use; leave one of them out")
        if self.reference == "offloaded" and self.lora is not None:
            raise ValueError("reference: offloaded is for lora: null; with lora the reference is the frozen backbone without its adapter and takes no memory of its own")
        for name in self.monitors:
            if name.removesuffix("_correlation") in self.monitors and name.endswith("_correlation"):
                raise ValueError(f"monitors.{name}: that name is taken by the correlation of {name.removesuffix('_correlation')} with the reward; choose another")
        if self.value_warmup >= self.steps:
            raise ValueError(f"value_warmup={self.value_warmup} leaves none of steps={self.steps} to the policy; lower it")
        if self.value == "shared" and self.value_warmup:
            raise ValueError("value_warmup trains the value model alone, and value: shared has no weights apart from the policy's; use value: separate")
        return self


class Evaluate(Frozen):
    """Two models on held-out prompts, sample by sample with the same random numbers, under independent scores."""

    method: Literal["evaluate"] = "evaluate"
    before: str = Field("sft", description="the model to compare with: a name, a folder, or an earlier stage")
    after: str = Field("ppo", description="the model under test")
    prompts: str = Field(description="held-out prompts: a file or a hub id")
    scores: dict[str, str] = Field({}, description="name -> scorer: a reward-model folder, an earlier stage, or module:function")
    verdict: str | None = Field(None, description="which of the scores decides; null = the first")
    samples: Positive = Field(4, description="completions of each prompt by each model")
    max_new_tokens: Positive = 64
    temperature: Annotated[float, Field(gt=0)] = 1.0
    kl_target: Annotated[float, Field(gt=0)] | None = Field(None, description="nats per sequence the training aimed at; the verdict allows twice that")
    max_length: Positive = 1024
    micro_tokens: Positive = 4096
    on_bad: Literal["error", "skip", "quarantine"] = "error"

    @model_validator(mode="after")
    def _has_room(self) -> Evaluate:
        if self.max_length <= self.max_new_tokens:
            raise ValueError(f"max_length={self.max_length} leaves no room for a prompt beside max_new_tokens={self.max_new_tokens}; raise it")
        return self


AnyStage = Annotated[SFT | Reward | PPO | Evaluate, Field(discriminator="method")]
METHODS: dict[str, type[Frozen]] = {"sft": SFT, "reward": Reward, "ppo": PPO, "evaluate": Evaluate}


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
        elif part == "lora":
            current = Lora
        elif part == "kl":
            current = KL
        elif part == "scores" and current is PPO:
            current = Scores
    return list(current.model_fields)
