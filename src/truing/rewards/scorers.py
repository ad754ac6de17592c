"""Scorers: a learned reward model or any Python function, behind one call, ``scorer(batch) -> list[Score]``.

A failure is a status, never a zero: the sample is left out and counted by whoever asked.
"""

from __future__ import annotations

import importlib
import math
import numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from truing.data.batches import by_token_budget
from truing.errors import ConfigError, RewardError
from truing.models.backbone import Backbone
from truing.models.pack import Pack
from truing.models.roles import Role, open_role
from truing.types import Score, Status

PART = 8192  # tokens scored at once
TextFunction = Callable[[list[str], list[str]], Sequence[float]]


@dataclass(frozen=True)
class Completions:
    """What scorers see: the text, and the very tokens that were sampled (prompt + completion, packed)."""

    prompts: list[str]
    texts: list[str]
    pack: Pack

    def select(self, rows: Sequence[int]) -> Completions:
        return Completions([self.prompts[i] for i in rows], [self.texts[i] for i in rows], self.pack.select(rows))


class Scorer(Protocol):
    def __call__(self, batch: Completions) -> list[Score]: ...


@dataclass(frozen=True)
class Learned:
    """A reward model: reads the sampled tokens, prompt included."""

    role: Role

    @torch.no_grad()
    def __call__(self, batch: Completions) -> list[Score]:
        cut = by_token_budget(batch.pack.lengths, PART)
        return [_checked(value, "rm") for rows in cut for value in self.role.score(batch.pack.select(rows) if len(cut) > 1 else batch.pack).tolist()]


@dataclass(frozen=True)
class Function:
    """A Python function of the texts. It is called once a batch; an exception marks the whole batch as crashed."""

    name: str
    function: TextFunction

    def __call__(self, batch: Completions) -> list[Score]:
        try:
            values = list(self.function(batch.prompts, batch.texts))
        except Exception as error:  # a reward's own failure is data, whatever it raised
            return [Score(math.nan, {f"error: {type(error).__name__}: {error}"[:200]: math.nan}, Status.CRASHED)] * len(batch.texts)
        if len(values) != len(batch.texts):
            raise RewardError(f"reward {self.name} gave {len(values)} scores for {len(batch.texts)} completions; return one number each, in order")
        return [_checked(value, self.name) for value in values]


def _checked(value: object, name: str) -> Score:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise RewardError(f"reward {name} gave {value!r} of type {type(value).__name__}; return a float (1.0 and 0.0 for yes and no)")
    number = float(value)
    return Score(number, {name: number}) if math.isfinite(number) else Score(math.nan, {name: number}, Status.NON_FINITE)


def find_scorer(name: str, *, share: Backbone | None = None, share_base: str | None = None) -> Scorer:
    """The scorer behind a name: ``package.module:function``, or the folder of a reward model.

    A reward model lives on `share` when it fits there, so that no second backbone is loaded.
    Raises ConfigError when the function cannot be imported, ModelError when the folder is not a reward model.
    """
    module, colon, attribute = name.partition(":")
    if not colon:
        return Learned(open_role(name, share=share, share_base=share_base, head=True))
    try:
        function = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # importing a person's module can raise anything
        raise ConfigError(f"scorer {name!r} cannot be imported ({error}); write package.module:function") from error
    if not callable(function):
        raise ConfigError(f"scorer {name!r} is a {type(function).__name__}, not a function of (prompts, completions)")
    return Function(attribute, function)
