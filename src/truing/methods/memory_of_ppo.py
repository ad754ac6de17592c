"""What a PPO run will need of memory, by item and by phase, before it starts; and what other choices would need.

Weights are counted. Activations are counted too, on a small batch through the real roles, and scaled by tokens. Nothing
is read from resident memory but the process itself. One item is a measured share of others: the allocator's gaps, with what lives for
less than a layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from truing.config import PPO
from truing.maths.likelihood import CHUNK, token_likelihood
from truing.methods.roles_of_ppo import Roles
from truing.models import memory
from truing.models.attention import SHORT
from truing.models.backbone import Backbone
from truing.models.pack import Pack
from truing.models.precision import KERNELS, has_bfloat16
from truing.models.roles import Role

MIB = 2**20
PART = 256  # rows decoded together
GAPS = {True: 0.8, False: 0.3}  # what a layer's temporaries and the allocator's gaps add to tensors that come and go, on glibc before 2.38 and elsewhere


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes by item, which phases hold which items, and the peaks of other choices with the same tokens in flight."""

    items: Mapping[str, float]
    phases: Mapping[str, Mapping[str, float]]
    alternatives: Mapping[str, float]
    so_far: float

    @property
    def peak(self) -> float:
        """The predicted highest resident memory of the process, in MiB."""
        return max(self.so_far, *(sum(held.values()) for held in self.phases.values())) / MIB

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


def plan(config: PPO, roles: Roles, lengths: Sequence[int]) -> MemoryPlan:
    """The memory of a run; ``lengths`` are the tokens of its prompts. Draws no random numbers, changes no weight, leaves no gradient."""
    memory.trim()
    work = _Work(config, roles, lengths)
    weights = _weights(roles)
    resident = memory.resident()
    trained = sum(p.numel() * p.element_size() for p in roles.parameters().values())
    everywhere = {"process and libraries": max(0.0, resident - sum(weights.values())), "compiled kernels": float(KERNELS * MIB), **weights, "Adam moments": 2.0 * trained}
    backbone = roles.policy.backbone
    activations, looking, logits = work.activations(), work.transient(work.most), work.logits(work.most)
    generation = {"merged decoder": _merged(roles.policy), "key/value cache": work.cache(), "sampling": work.sampling()}
    look = {"log-probabilities": logits, "forward": max(looking, work.transient(work.scored)), "trunk cache": work.trunk(), "offloaded reference": float(_offloaded(roles))}
    update = {"gradients": float(trained), "activations": activations, "log-probabilities": logits, "trunk cache": work.trunk()}
    if backbone.lora is None:
        update["gradient being added"] = float(max(p.numel() * p.element_size() for p in roles.parameters().values()))
    for phase, names in ((generation, ("key/value cache", "sampling")), (look, ("log-probabilities", "forward")), (update, ("activations", "log-probabilities"))):
        phase["temporaries and gaps"] = GAPS[memory.old_glibc()] * sum(phase[name] for name in names)
    phases = {"generate": {**everywhere, **generation}, "look": {**everywhere, **look}, "update": {**everywhere, **update}}
    items = {name: n for held in phases.values() for name, n in held.items()}
    others = _alternatives(everywhere["process and libraries"] + everywhere["compiled kernels"], backbone, activations, logits, config)
    return MemoryPlan(items, phases, others, float(memory.highest()))


# -- weights -------------------------------------------------------------------------------------------------------------
def _weights(roles: Roles) -> dict[str, float]:
    """Bytes of every weight, each under the first of these names that it belongs to."""
    claims: dict[str, list[object]] = {
        "trained weights": list(roles.parameters().values()),
        "frozen weights": [roles.policy],
        "reference copy": [roles.reference],
        "value model": [roles.value],
        "reward models": [roles.reward, roles.monitors],
    }
    seen: set[int] = set()
    found = {}
    for name, things in claims.items():
        new = {address: n for address, n in memory.storages(*things).items() if address not in seen}
        seen |= set(new)
        found[name] = float(sum(new.values()))
    return found


def _offloaded(roles: Roles) -> int:
    return roles.offloaded.path.stat().st_size if roles.offloaded else 0


def _merged(role: Role) -> float:
    """While it samples, the adapted layers stand in memory a second time, merged and in float32."""
    backbone = role.backbone
    return float(sum(out * into * 4 for out, into in backbone.targets.values())) if role.adapter is not None and backbone.lean else 0.0


# -- work ----------------------------------------------------------------------------------------------------------------
class _Work:
    """Token counts of the run, and the tensors that a phase makes of them."""

    def __init__(self, config: PPO, roles: Roles, lengths: Sequence[int]) -> None:
        self.config, self.roles = config, roles
        self.backbone = roles.policy.backbone
        self.prompt = max(lengths)
        self.mean = sum(lengths) / len(lengths) + config.max_new_tokens  # a whole sequence
        self.longest = self.prompt + config.max_new_tokens
        self.all = config.batch_size * self.mean
        minibatch = config.batch_size / config.minibatches * self.mean
        self.most = min(minibatch, max(self.longest, config.micro_tokens // self.mean * self.mean))  # tokens of the largest micro-batch
        self.scored = min(self.all, 8192)
        self.answers = config.max_new_tokens / self.mean  # completion tokens a token

    def activations(self) -> float:
        """Kept for backward by the largest micro-batch. Two models that share no weight go one after the other; a shared graph holds both."""
        graphs = [self._policy] if self.config.value == "shared" else [self._policy, self._value]
        known = memory.storages(self.roles.policy, self.roles.value)
        length = min(round(self.mean), 2 * SHORT)  # attention keeps its scores up to SHORT tokens, and is linear above
        one, two = ([memory.kept(lambda g=graph, n=count: g(n, length), known) for graph in graphs] for count in (1, 2))  # type: ignore[misc]
        return max(a + (b - a) * (self.most / length - 1) for a, b in zip(one, two, strict=True))

    def _pack(self, count: int, length: int) -> tuple[Pack, torch.Tensor]:
        vocabulary = self.backbone.head_weight.shape[0]
        pack = Pack([[(7 * t + 1) % vocabulary for t in range(length)]] * count)
        first = length - 1 - min(length - 1, max(1, round(self.answers * length)))
        return pack, pack.spans([first] * count, [length - 1] * count)

    def _policy(self, count: int, length: int) -> object:
        pack, positions = self._pack(count, length)
        hidden = self.roles.policy.hidden(pack)[positions]
        logp = token_likelihood(hidden, self.backbone.head_weight, pack.ids_N[positions + 1], bias=self.backbone.head_bias, entropy_gradient=self.config.entropy > 0)
        return (logp, self.roles.value.head(hidden)) if self.config.value == "shared" and self.roles.value.head is not None else logp

    def _value(self, count: int, length: int) -> object:
        pack, positions = self._pack(count, length)
        return self.roles.value.values(pack, positions)

    def transient(self, tokens: float) -> float:
        """Within one layer, without gradient: the feed-forward's three wide states, six narrow ones, attention's scores."""
        config, size = self.backbone.model.config, self.backbone.dtype.itemsize
        wide = getattr(config, "intermediate_size", None) or 4 * self.backbone.width
        scores = 3 * config.num_attention_heads * self.mean if self.mean <= SHORT else 0.0
        return tokens * size * (3 * wide + 6 * self.backbone.width + scores)

    def logits(self, tokens: float) -> float:
        """Log-probabilities are made CHUNK rows at a time; three tensors of that size are alive at once."""
        return 3.0 * min(CHUNK, tokens * self.answers) * self.backbone.head_weight.shape[0] * 4

    def trunk(self) -> float:
        backbones: Iterable[Backbone] = {role.backbone for role in (self.roles.policy, self.roles.reference, self.roles.value)}
        return float(sum(self.all * b.width * b.dtype.itemsize for b in backbones if b.depth and b.lean))

    def cache(self) -> float:
        """Keys and values of every layer, float32 where it is adapted."""
        config, rows = self.backbone.model.config, min(self.config.batch_size, PART)
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or self.backbone.width // config.num_attention_heads
        layers = config.num_hidden_layers
        sizes = self.backbone.depth * self.backbone.dtype.itemsize + (layers - self.backbone.depth) * 4
        return float(2 * rows * heads * width * self.longest * sizes)

    def sampling(self) -> float:
        """Logits and what is drawn from them (five tensors of that size), or the prompts' own forward."""
        rows = min(self.config.batch_size, PART)
        return max(5.0 * rows * self.backbone.head_weight.shape[0] * 4, 2 * self.transient(rows * self.prompt))


# -- other choices -------------------------------------------------------------------------------------------------------
def _alternatives(process: float, backbone: Backbone, activations: float, logits: float, config: PPO) -> dict[str, float]:
    """Peaks of the update under other settings, from the same parts: adapters and activations go with the number of adapted layers."""
    model = backbone.model
    count = model.config.num_hidden_layers
    elements = sum(p.numel() for p in model.parameters())
    embedding = backbone.head_weight.numel()
    adapted = count - backbone.depth
    rank = config.lora.rank if config.lora else 16
    linear = [m for m in model.base_model.modules() if isinstance(m, torch.nn.Linear)]
    adapter = 4.0 * rank * sum(sum(m.weight.shape) for m in linear) / count  # bytes of a layer's
    a_layer, gaps = activations / adapted, 1 + GAPS[memory.old_glibc()]
    exact = 4 / backbone.dtype.itemsize  # a full copy trains in float32
    half = 2 if backbone.lean and (config.dtype == "bfloat16" or (config.dtype == "auto" and has_bfloat16())) else 4  # frozen layers

    def lora(layers: int) -> float:
        return process + 4 * embedding + (elements - embedding) * half + 8 * adapter * layers + gaps * (a_layer * half / backbone.dtype.itemsize * layers + logits)

    return {
        "four separate copies, two trained": process + 4 * elements * (4 + 4 + 1 + 1) + gaps * (a_layer * exact * count + logits),
        "one full copy, frozen reference and value copy": process + 4 * elements * (4 + 4 + 1) + gaps * (a_layer * exact * count + logits),
        "lora on every layer": lora(count),
        **({f"lora on the top {count // 4} layers": lora(count // 4)} if count >= 4 else {}),
    }


# -- small things --------------------------------------------------------------------------------------------------------
def _mib(n: float) -> str:
    return f"{n / MIB:,.0f}" if n >= 9.95 * MIB else f"{n / MIB:.1f}" if n else "-"


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name.lower()).strip("_")


