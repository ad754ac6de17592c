"""What one layer of a model holds and remembers: counted on a model that has the same layers, but one or two of them.

Weights and activations of a decoder are linear in its layers, so two counts say what any number of layers needs, and the
model itself is never loaded. The small ones have random weights and go through the same code as the large.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from truing import allocator
from truing.config import Lora
from truing.errors import ModelError
from truing.maths.likelihood import token_likelihood
from truing.models import memory
from truing.models.backbone import Backbone
from truing.models.heads import ScalarHead
from truing.models.huggingface import AutoConfig, AutoModelForCausalLM
from truing.models.load import locate
from truing.models.pack import Pack
from truing.models.roles import Role

COUNTED = 1024  # tokens that are run at most
VOCABULARY = 64  # of the small models; what depends on the vocabulary is added up from shapes


class Line(NamedTuple):
    """``rest + layer * n``: a number of bytes (or of elements) of n layers.

    >>> Line.through(70.0, 100.0)
    Line(rest=40.0, layer=30.0)
    >>> Line(40.0, 30.0).of(12)
    400.0
    """

    rest: float
    layer: float

    @classmethod
    def through(cls, one: float, two: float) -> Line:
        return cls(2 * one - two, two - one)

    def of(self, layers: float) -> float:
        return self.rest + self.layer * layers


@dataclass(frozen=True)
class Anatomy:
    """A base model under the options of a stage: ``lora`` None trains every weight, ``dtype`` is that of frozen layers.

    Attributes:
        config: transformers' own.
        depth: layers that carry no adapter.
        elements: numbers in n layers and everything around them, the vocabulary's included.
        head_elements: of those, the language-model head's own; 0 where it is tied to the embedding.
        weights: bytes of a whole backbone of n layers.
        adapter: bytes of an adapter on n layers.
        largest: bytes of the largest trained parameter when every weight is trained.
        lean: whether it runs through this package's own forward.
        checkpointing: whether layers keep their input alone for backward.
    """

    config: Any
    lora: Lora | None
    dtype: torch.dtype
    checkpointing: bool
    small: tuple[Backbone, Backbone] = field(repr=False)

    @property
    def layers(self) -> int:
        return int(self.config.num_hidden_layers)

    @property
    def adapted(self) -> int:
        """Layers that backward goes through."""
        return min(self.lora.layers or self.layers, self.layers) if self.lora else self.layers

    @property
    def depth(self) -> int:
        return self.layers - self.adapted

    @property
    def lean(self) -> bool:
        return self.small[0].lean

    @property
    def width(self) -> int:
        return self.small[0].width

    @property
    def vocabulary(self) -> int:
        return int(self.config.vocab_size)

    @property
    def itemsize(self) -> int:
        """Bytes of a number in the layers."""
        return self.small[0].dtype.itemsize

    @property
    def head_elements(self) -> int:
        model = self.small[0].model
        return 0 if model.get_output_embeddings().weight is model.get_input_embeddings().weight else self.width * self.vocabulary

    @property
    def wide(self) -> int:
        """The feed-forward's width."""
        return int(getattr(self.config, "intermediate_size", None) or 4 * self.width)

    @property
    def heads(self) -> int:
        return int(self.config.num_attention_heads)

    @property
    def key_values(self) -> int:
        """Numbers of a key and a value of one token in one layer."""
        heads = int(getattr(self.config, "num_key_value_heads", None) or self.heads)
        return 2 * heads * int(getattr(self.config, "head_dim", None) or self.width // self.heads)

    @property
    def elements(self) -> float:
        return self._elements().of(self.layers)

    @property
    def weights(self) -> float:
        found = Line.through(*(float(sum(memory.storages(b.model).values())) for b in self.small))
        return found.of(self.layers) + 4 * self._tokens()

    @property
    def adapter(self) -> float:
        if self.lora is None:
            return 0.0
        one = self.small[0].targets.values()
        return 4.0 * self.lora.rank * self.adapted * sum(out + into for out, into in one)

    @property
    def largest(self) -> float:
        found = max(p.numel() for p in self.small[0].model.base_model.parameters())
        return 4.0 * max(found, self.width * self.vocabulary)

    @property
    def linear(self) -> float:
        """Numbers in the linear layers, the head left out."""
        sizes = [float(sum(p.numel() for p in b.model.base_model.parameters() if p.ndim == 2)) for b in self.small]
        return (sizes[1] - sizes[0]) * self.layers

    def _elements(self) -> Line:
        found = Line.through(*(float(sum(p.numel() for p in b.model.parameters())) for b in self.small))
        return Line(found.rest + self._tokens(), found.layer)

    def _tokens(self) -> float:
        """Numbers that the small models lack because their vocabulary is small."""
        model = self.small[0].model
        tables = {id(w): w.shape[1] for w in (model.get_input_embeddings().weight, model.get_output_embeddings().weight)}
        return float(sum(tables.values()) * (self.vocabulary - model.config.vocab_size))

    # -- activations ---------------------------------------------------------------------------------------------------
    def kept(self, graph: Graph, lengths: Sequence[int], answers: float = 1.0) -> float:
        """Bytes kept for the backward of sequences of these lengths; ``answers`` is the share of their tokens that has a loss.

        Beyond `COUNTED` tokens some of the sequences are counted and the bytes taken in proportion, as activations are linear in tokens.
        """
        some = _some(lengths)
        found = Line.through(*[_kept(b, graph, some, answers) for b in self.small]).of(self.adapted)
        if self.checkpointing:  # one layer at a time is made again, whole
            found += Line.through(*[_kept(b, graph, some, answers, whole=True) for b in self.small]).layer
        return found * sum(lengths) / sum(some)


Graph = Callable[[Role, Pack, Tensor], object]
"""What is kept for backward: a function of a role, a pack and the positions that have a loss."""


def likelihood_of(role: Role, pack: Pack, positions: Tensor) -> object:
    """A language model's graph."""
    hidden = role.hidden(pack)[positions]
    return token_likelihood(hidden, role.backbone.head_weight, pack.ids_N[positions + 1], bias=role.backbone.head_bias)


def values_of(role: Role, pack: Pack, positions: Tensor) -> object:
    """A value model's graph; a reward model's has no more of it than that."""
    return role.values(pack, positions)


def both_of(role: Role, pack: Pack, positions: Tensor) -> object:
    """A value head on the policy's own states."""
    hidden = role.hidden(pack)[positions]
    head = role.head
    return token_likelihood(hidden, role.backbone.head_weight, pack.ids_N[positions + 1], bias=role.backbone.head_bias), head(hidden) if head else None


@cache
def anatomy(base: str, lora: Lora | None, dtype: torch.dtype, checkpointing: bool = False) -> Anatomy:
    """Of the model behind a name (a folder, a hub id, a built-in); only its configuration is read. Raises ModelError when there is none."""
    place = locate(base)
    try:
        config = AutoConfig.from_pretrained(place, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ModelError(f"model {base!r} cannot be loaded: {str(error).strip().splitlines()[0][:300]}") from error
    every = lora.model_copy(update={"layers": None}) if lora else None
    with torch.random.fork_rng(devices=[]):
        one, two = (Backbone(AutoModelForCausalLM.from_config(shortened(config, n), dtype=torch.float32).eval(), lora=every, dtype=dtype, checkpointing=checkpointing) for n in (1, 2))
    return Anatomy(config, lora, one.dtype, checkpointing, (one, two))


def forget() -> None:
    """Give back the small models."""
    anatomy.cache_clear()
    _kept.cache_clear()
    allocator.trim()


def shortened(config: Any, layers: int) -> Any:
    """The same configuration with so many layers and a vocabulary of `VOCABULARY`."""
    small = copy.deepcopy(config)
    for name, value in list(vars(small).items()):
        if isinstance(value, list) and len(value) == config.num_hidden_layers:  # one entry a layer
            setattr(small, name, value[:layers])
    small.num_hidden_layers, small.vocab_size = layers, VOCABULARY
    small.pad_token_id = small.bos_token_id = small.eos_token_id = None
    return small


def _some(lengths: Sequence[int]) -> tuple[int, ...]:
    """Every k-th of the lengths, each cut, so that they are `COUNTED` tokens or little more."""
    cut = sorted(min(n, COUNTED) for n in lengths)
    return tuple(cut[:: max(1, -(-sum(cut) // COUNTED))])


@cache
def _kept(backbone: Backbone, graph: Graph, lengths: tuple[int, ...], answers: float, whole: bool = False) -> int:
    """``whole`` keeps everything, as if nothing were checkpointed."""
    adapter = backbone.adapter(0, "count") if backbone.lora else None
    role = Role(backbone, adapter, ScalarHead(backbone.width, seed=0, purpose="count"))
    pack = Pack([[(7 * t + 1) % VOCABULARY for t in range(n)] for n in lengths])
    first = [n - 1 - min(n - 1, max(1, round(answers * n))) for n in lengths]
    positions = pack.spans(first, [n - 1 for n in lengths])
    before, backbone.checkpointing = backbone.checkpointing, backbone.checkpointing and not whole
    try:
        return memory.kept(lambda: graph(role, pack, positions), memory.storages(role))
    finally:
        backbone.checkpointing = before
