"""What a stage needs of memory, by item and by phase, from its options alone: no model is loaded.

Weights are added up from shapes, activations are counted on one and two layers (`models.anatomy`). One item is a measured share of
others: the allocator's gaps, with what lives for less than a layer.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from truing import allocator
from truing.config import GRPO, PPO, SFT, Evaluate, Reward, Stage
from truing.maths.likelihood import CHUNK
from truing.models.anatomy import Anatomy, Graph, anatomy, both_of, likelihood_of, values_of
from truing.models.attention_plain import BLOCK, SHORT
from truing.models.load import locate
from truing.models.precision import KERNELS
from truing.models.roles import Origin, origin, wants_bfloat16
from truing.native import library
from truing.rewards import expression, grammar
from truing.rewards.classifier import is_classifier
from truing.rewards.reward_model import PART as SCORED
from truing.rollout.products import PACKED

MIB = 2**20
ROWS = 256  # decoded together
EVALUATED = 64  # rows of an evaluation that are answered together
FEW = 16  # kernels of products that are still oneDNN's, where layers' are not
GAPS = {True: 0.5, False: 0.3}  # what a layer's temporaries and the allocator's gaps add to tensors that come and go, on glibc before 2.38 and elsewhere
SCIPY = 60 * MIB  # that the first step with a monitor imports
GIVEN_BACK = ("key/value cache", "sampling", "log-probabilities", "forward", "activations")  # tensors that come and go


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes by item, which phases hold which items, and the peaks of other choices with the same tokens in flight."""

    phases: Mapping[str, Mapping[str, float]]
    alternatives: Mapping[str, float] = field(default_factory=dict)
    so_far: float = 0.0

    @property
    def items(self) -> dict[str, float]:
        return {name: n for held in self.phases.values() for name, n in held.items()}

    @property
    def peak(self) -> float:
        """The predicted highest resident memory of the process, in MiB."""
        return max(self.so_far, *(sum(held.values()) for held in self.phases.values())) / MIB

    @property
    def highest_phase(self) -> str:
        return max(self.phases, key=lambda name: sum(self.phases[name].values()))

    def values(self) -> dict[str, float]:
        """All of it in MiB, flat, for the event log."""
        return {
            **{f"memory/plan/{_slug(name)}": n / MIB for name, n in self.items.items()},
            **{f"memory/phase/{_slug(name)}": sum(held.values()) / MIB for name, held in self.phases.items()},
            **{f"memory/alternative/{_slug(name)}": n / MIB for name, n in self.alternatives.items()},
            "memory/peak_planned": self.peak,
        }

    def __str__(self) -> str:
        names = list(dict.fromkeys(name for held in self.phases.values() for name, n in held.items() if n >= 0.05 * MIB))
        rows = [[name, *(_mib(held.get(name, 0.0)) for held in self.phases.values())] for name in names]
        rows.append(["in all", *(_mib(sum(held.values())) for held in self.phases.values())])
        others = [[f"instead: {name}", _mib(n)] for name, n in self.alternatives.items()]
        left = max(len(row[0]) for row in rows + others)
        line = lambda row: row[0].ljust(left) + "".join(cell.rjust(10) for cell in row[1:])  # noqa: E731
        head = line(["MiB", *self.phases])
        body = [head, "-" * len(head), *map(line, rows[:-1]), "-" * len(head), line(rows[-1]), "", f"Predicted peak: {self.peak:,.0f} MiB", *map(line, others)]
        return "\n".join(body)


# -- weights -------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Weights:
    """The models of a stage in bytes, by item; ``trained`` are those that get gradients and moments. ``opening`` is the most that loading takes."""

    items: Mapping[str, float]
    policy: Anatomy
    others: tuple[Anatomy, ...] = ()
    largest: float = 0.0
    opening: float = 0.0

    @property
    def trained(self) -> float:
        return self.items["trained weights"]


HEAD = lambda a: 4.0 * (a.width + 1)  # noqa: E731  a scalar head


def of_model(name: str, options: Stage) -> tuple[Anatomy, Origin]:
    """The base of a model under these options, and where the model comes from."""
    saved = origin(name)
    return _anatomy(saved.base, options), saved


def _anatomy(base: str, options: Stage) -> Anatomy:
    import torch

    return anatomy(base, options.lora, torch.bfloat16 if wants_bfloat16(options) else torch.float32, bool(getattr(options, "checkpointing", False)))


def _as_saved(saved: Origin) -> Anatomy:
    return _anatomy(saved.base, Stage(lora=saved.lora, dtype=saved.dtype))


def weights(config: Any) -> Weights:
    """The models that a stage opens. Raises ModelError or ConfigError for one that is missing."""
    if isinstance(config, Evaluate):
        return _weights_of_evaluate(config)
    model, source = of_model(config.model, config)
    own = model.adapter if config.lora else 4 * model.elements
    head = HEAD(model)
    trained, frozen, reference, value, others = own, model.weights - (0 if config.lora else own), 0.0, 0.0, []
    if isinstance(config, Reward):
        trained += head
    elif isinstance(config, PPO | GRPO):
        if isinstance(config, PPO) or config.kl.coef > 0:
            copied = 0.0 if config.lora is None and getattr(config, "reference", "resident") == "offloaded" else model.weights
            reference = copied if config.lora is None else model.adapter if source.lora == config.lora else 0.0
        if isinstance(config, PPO):
            more, value, body = _value_model(config, model, source)
            trained += more
            others += [body] if body else []
    rewards, read = _rewards(config, model, source.base)
    items = {"trained weights": trained, "frozen weights": frozen, "reference copy": reference, "value model": value, "reward models": rewards}
    largest = 0.0 if config.lora else model.largest
    return Weights(items, model, (*others, *read), largest, _opening(model, source.base))


def _value_model(config: PPO, model: Anatomy, source: Origin) -> tuple[float, float, Anatomy | None]:
    """Bytes that the value model trains, bytes it holds beside them, and its backbone where it has one of its own."""
    head = HEAD(model)
    if config.value == "shared":
        return head, 0.0, None
    if config.value_model is None:
        return (model.adapter + head, 0.0, None) if config.lora else (4 * (model.elements - model.head_elements) + head, 4.0 * model.head_elements, None)
    body, saved = of_model(config.value_model, config)
    if config.lora and saved.base == source.base and saved.lora in (None, config.lora):
        return model.adapter + head, 0.0, None
    trained = body.adapter if config.lora else 4 * (body.elements - body.head_elements)
    return trained + HEAD(body), body.weights - (0 if config.lora else trained), body


def _rewards(config: Any, share: Anatomy, base: str) -> tuple[float, list[Anatomy]]:
    texts = [config.reward] if isinstance(getattr(config, "reward", None), str) else []
    for table in ("monitors", "scores"):
        texts += list(getattr(config, table).values()) if isinstance(getattr(config, table, None), Mapping) else []
    total, read = 0.0, []
    for text in texts:
        for atom in grammar.atoms(expression.opened(text)):
            if atom.kind == "learned":
                held, body = _learned(str(atom.arguments[0]), share, base)
                total += held
                read += [body] if body else []
    return total, read


def _learned(folder: str, share: Anatomy, base: str) -> tuple[float, Anatomy | None]:
    """Bytes of a reward model beside what it shares, and its backbone."""
    if is_classifier(folder):
        return 4.0 * _numbers(folder), None
    saved = origin(folder)
    own = _as_saved(saved)
    shared = share.lora is not None and saved.base == base and saved.lora == share.lora
    return HEAD(own) + own.adapter + (0 if shared else own.weights), own


def _weights_of_evaluate(config: Evaluate) -> Weights:
    before, after = origin(config.before), origin(config.after)
    one, two = _as_saved(before), _as_saved(after)
    shared = one.lora is not None and before.base == after.base and after.lora in (one.lora, None)
    rewards, read = _rewards(config, one, before.base)
    items = {"trained weights": 0.0, "frozen weights": one.weights + one.adapter, "second model": two.adapter + (0 if shared else two.weights), "reward models": rewards}
    return Weights(items, one, (two, *read), 0.0, _opening(one, before.base))


def _opening(model: Anatomy, base: str) -> float:
    """Loading puts a model there in float32, beside the pages of its file."""
    return 4 * model.elements + sum(p.stat().st_size for p in Path(locate(base)).glob("*.safetensors"))


def _numbers(folder: str) -> float:
    """How many numbers the safetensors files of a folder hold."""
    count = 0
    for path in Path(locate(folder)).glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():
                size = 1
                for n in file.get_slice(name).get_shape():
                    size *= n
                count += size
    return float(count)


# -- tokens --------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Load:
    """What goes through the models at once.

    Attributes:
        part: lengths of the sequences of the largest micro-batch.
        answers: share of their tokens that has a loss.
        all: tokens of a whole batch, which the frozen trunk is kept of.
        prompt, prompts, new: tokens of the longest prompt; different prompts and completions of a rollout; most new tokens.
    """

    part: Sequence[int]
    answers: float
    all: float = 0.0
    prompt: int = 0
    prompts: int = 0
    rows: int = 0
    new: int = 0

    @property
    def tokens(self) -> float:
        return float(sum(self.part))


def of_rollouts(config: PPO | GRPO | Evaluate, lengths: Sequence[int]) -> Load:
    """Completions of prompts of these lengths, none of which ends before its limit."""
    turns = config.max_turns if getattr(config, "environment", None) else 1  # type: ignore[union-attr]
    prompt, mean = max(lengths), sum(lengths) / len(lengths)
    new = config.max_new_tokens
    # An environment is taken to say as much a turn as the prompt does.
    whole = lambda start: min(float(config.max_length), start + turns * new + (turns - 1) * start)  # noqa: E731
    longest, mean = whole(prompt), whole(mean)
    batch = config.samples * len(lengths) if isinstance(config, Evaluate) else config.batch_size
    largest = min(batch, EVALUATED) if isinstance(config, Evaluate) else batch / config.minibatches
    rows = max(1, min(int(largest), int(config.micro_tokens // mean)))
    rows = math.ceil(largest / math.ceil(largest / rows))  # parts are about equal
    part = [round(longest)] if rows == 1 else [round(mean)] * rows
    kept = batch * mean * (1 + config.resample_rounds if isinstance(config, GRPO) and config.zero_variance == "resample" else 1)
    together = min(batch, EVALUATED if isinstance(config, Evaluate) else ROWS)
    group = config.samples if isinstance(config, Evaluate) else config.group if isinstance(config, GRPO) else 1
    return Load(part, turns * new / mean if turns == 1 else min(1.0, turns * new / mean), kept, round(longest - new), max(1, together // group), together, new)


# -- phases --------------------------------------------------------------------------------------------------------------
def plan(config: Any, load: Load, process: float, *, held: Weights | None = None, so_far: float = 0.0) -> MemoryPlan:
    """The memory of a stage; ``process`` is what the process has before any model is opened."""
    w = held or weights(config)
    if getattr(config, "monitors", None) and "scipy.stats" not in sys.modules:
        process += SCIPY
    everywhere = {"process and libraries": process, "compiled kernels": kernels(w.policy), **w.items}
    phases: dict[str, dict[str, float]] = {} if so_far else {"load": {"process and libraries": process, "model as it is read": w.opening}}
    if isinstance(config, Evaluate):
        phases["generate"] = everywhere | generation(w.policy, load)
        phases["look"] = everywhere | look(config, w, load)
        return MemoryPlan(_with_gaps(phases), {}, so_far)
    everywhere["Adam moments"] = 2.0 * w.trained
    if isinstance(config, PPO | GRPO):
        phases["generate"] = everywhere | generation(w.policy, load)
        phases["look"] = everywhere | look(config, w, load)
    phases["update"] = everywhere | update(config, w, load)
    if isinstance(config, SFT | Reward) and config.eval_share > 0:
        phases["held out"] = everywhere | look(config, w, load)
    return MemoryPlan(_with_gaps(phases), {}, so_far)


def kernels(model: Anatomy) -> float:
    """Of oneDNN, half a MiB each; there are few where products are our own."""
    own = model.lean and hasattr(library(torch.float32 if model.itemsize == 4 else torch.bfloat16), "linears")
    return (FEW if own else KERNELS) * MIB / 2


def _with_gaps(phases: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    share = GAPS[allocator.leaves_gaps()]
    return {name: held | ({"temporaries and gaps": share * moving} if (moving := sum(held.get(n, 0.0) for n in GIVEN_BACK)) else {}) for name, held in phases.items()}


def generation(model: Anatomy, load: Load) -> dict[str, float]:
    """Keys and values of every layer; weights as the decoder lays them out; logits and what is drawn from them, or the prompts' own forward."""
    cache = load.rows * (load.prompt + load.new) * model.layers * model.key_values * model.itemsize
    sampling = max(5.0 * load.rows * model.vocabulary * 4, 2 * transient(model, load.prompts * load.prompt, load.prompt))
    return {"decoder's weights": decoder(model), "key/value cache": float(cache), "sampling": sampling}


def decoder(model: Anatomy) -> float:
    """A model that is small enough is copied for the time of a rollout, in the layout that products read; so are weights of another precision."""
    if not model.lean:
        return 0.0
    if model.elements * model.itemsize <= PACKED:
        return model.linear * model.itemsize + 4.0 * model.width * model.vocabulary
    return model.linear * model.itemsize if model.lora is None and model.itemsize < 4 else 0.0


def look(config: Any, w: Weights, load: Load) -> dict[str, float]:
    """Everything that is read without gradient: log-probabilities of a micro-batch, the scores of a rollout."""
    mean = load.tokens / len(load.part)
    read = [transient(m, max(load.tokens, min(load.all, SCORED)), mean) for m in (w.policy, *w.others)]
    found = {"log-probabilities": 0.0 if isinstance(config, Reward) else logits(w.policy, load), "forward": max(read), "trunk cache": trunk(config, w, load)}
    offloaded = getattr(config, "reference", "") == "offloaded" and config.lora is None
    return found | ({"offloaded reference": 4 * w.policy.elements} if offloaded else {})


def update(config: Any, w: Weights, load: Load) -> dict[str, float]:
    """Two models that share no weight go one after the other; a shared graph holds both."""
    graphs: list[tuple[Anatomy, Graph]] = [(w.policy, values_of if isinstance(config, Reward) else likelihood_of)]
    if isinstance(config, PPO):
        own = w.others[0] if config.value_model is not None and w.others else w.policy
        graphs = [(w.policy, both_of)] if config.value == "shared" else [*graphs, (own, values_of)]
    found = {"gradients": w.trained, "activations": max(m.kept(graph, load.part, load.answers) for m, graph in graphs), "trunk cache": trunk(config, w, load)}
    found["log-probabilities"] = 0.0 if isinstance(config, Reward) else logits(w.policy, load)
    return found | ({"gradient being added": w.largest} if w.largest else {})


def transient(model: Anatomy, tokens: float, length: float) -> float:
    """Within one layer, without gradient: the feed-forward's three wide states, six narrow ones, and in PyTorch attention's scores of a block."""
    scores = 3 * model.heads * min(length, BLOCK) if length <= SHORT and library(torch.float32) is None else 0.0
    return tokens * model.itemsize * (3 * model.wide + 6 * model.width + scores)


def logits(model: Anatomy, load: Load) -> float:
    """Log-probabilities are made CHUNK rows at a time, in place where the pass is compiled; in PyTorch three tensors of that size are alive at once.

    Beside them the head in the layers' precision, for its product in backward.
    """
    head = model.vocabulary * model.width * model.itemsize if model.itemsize < 4 else 0
    return (1.0 if library(torch.float32) else 3.0) * min(CHUNK, load.tokens * load.answers) * model.vocabulary * 4 + head


def trunk(config: Any, w: Weights, load: Load) -> float:
    """What the frozen layers made of a whole rollout, kept for all roles and epochs; of a micro-batch where nothing is kept."""
    tokens = load.all if isinstance(config, PPO | GRPO) else load.tokens
    return tokens * w.policy.width * w.policy.itemsize if w.policy.depth and w.policy.lean else 0.0


# -- small things --------------------------------------------------------------------------------------------------------
def _mib(n: float) -> str:
    return f"{n / MIB:,.0f}" if n >= 9.95 * MIB else f"{n / MIB:.1f}" if n else "-"


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name.lower()).strip("_")
