"""What a lab is, and how its findings are kept.

A lab is a module of this room. It has ``Options`` (what ``--set`` may change), ``SEEDS`` (how many seeds it runs by
default), ``expectation(options)`` (what should be seen, stated before anything runs) and ``run(options, seeds)``.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, cast

from truing.config import Frozen, suggestion
from truing.errors import ConfigError
from truing.maths.stats import Interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Cell = str | int | float | Interval | None

# name -> what it shows, in the order a learner meets them
LABS: dict[str, str] = {
    "timeline": "from the perceptron to RLHF: seventy years on one page",
    "bandits": "ten arms: exploring against exploiting, and the textbook's testbed",
    "gridworld": "tabular Q-learning against the exact solution",
    "discount": "how far ahead an agent plans",
    "walk": "predicting values: temporal differences against whole returns",
    "cliff": "SARSA takes the safe way, Q-learning the short one",
    "corridor": "why a policy may have to be random, and REINFORCE with its baseline",
    "gae": "bias and variance of an advantage over lambda",
    "clipping": "the clipped surrogate, drawn and worked",
    "kl": "three estimators of one divergence",
    "cartpole": "REINFORCE, actor-critic and PPO on one task",
    "vocabulary": "the same PPO on a grid and on a language model, word by word",
}


@dataclass(frozen=True)
class Check:
    """One claim, what was measured, and whether it held."""

    claim: str
    measured: str
    held: bool


@dataclass(frozen=True)
class Table:
    """A titled table; a cell may be an Interval (mean, low, high)."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[Cell, ...]]


@dataclass(frozen=True)
class Findings:
    """What a lab found. ``figures`` maps a file name without ending to a matplotlib figure; ``values`` is for machines."""

    checks: list[Check]
    tables: list[Table]
    figures: dict[str, Figure]
    values: dict[str, Any] = field(default_factory=dict)

    @property
    def held(self) -> bool:
        return all(check.held for check in self.checks)


class Lab(Protocol):
    """The face of a lab's module."""

    Options: type[Frozen]
    SEEDS: int

    def expectation(self, options: Any) -> str: ...

    def run(self, options: Any, seeds: Sequence[int]) -> Findings: ...


def find(name: str) -> Lab:
    """The module of a lab. Raises ConfigError for an unknown name."""
    if name not in LABS:
        raise ConfigError(f"no lab is called {name!r}{suggestion(name, LABS)}; `truing lab list` names them all")
    return cast(Lab, importlib.import_module(f"truing.labs.{name}"))
