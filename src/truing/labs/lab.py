"""What a lab is, and how its findings are kept.

A lab is a module of this room. It has ``Options`` (what ``--set`` may change), ``SEEDS`` (how many seeds it runs by
default; 0 where nothing is drawn at random), ``expectation(options)`` (what should be seen, stated before anything
runs) and ``run(options, seeds)``.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
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
    "overoptimisation": "what is optimised rises, what is meant by it falls: where, and who notices",
    "optimum": "a language small enough to know the best policy, and PPO that finds it",
    "ablations": "PPO without its clip, baseline, beta, sign or last token: how each fails",
    "vocabulary": "the same PPO on a grid and on a language model, word by word",
    "verifiable": "GRPO, RLOO and Dr. GRPO where an answer can be checked: learned, or only sharpened",
    "programs": "a small model learns to program from unit tests in the sandbox, and to cheat where it can",
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
    rows: Sequence[tuple[Cell, ...]]

    def __post_init__(self) -> None:
        bad = [row for row in self.rows if len(row) != len(self.columns)]
        if bad:
            raise ValueError(f"table {self.title!r}: {len(self.columns)} columns {self.columns}, but a row of {len(bad[0])}: {bad[0]}")


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

    def document(self) -> dict[str, Any]:
        """Everything but the figures' pixels, for JSON; an interval is ``{"mean": ..., "low": ..., "high": ...}``."""
        return {
            "tables": [{"title": t.title, "columns": list(t.columns), "rows": [[_open(cell) for cell in row] for row in t.rows]} for t in self.tables],
            "checks": [{"claim": c.claim, "measured": c.measured, "held": bool(c.held)} for c in self.checks],
            "held": bool(self.held),
            "values": _open(self.values),
        }


def _open(value: Any) -> Any:
    """Intervals by name, so that a reader of JSON need not know their order."""
    if isinstance(value, Interval):
        return value._asdict()
    if isinstance(value, Mapping):
        return {key: _open(v) for key, v in value.items()}
    return [_open(v) for v in value] if isinstance(value, list | tuple) else value


class Lab(Protocol):
    """The face of a lab's module."""

    Options: type[Frozen]
    SEEDS: int

    def expectation(self, options: Any) -> str: ...

    def run(self, options: Any, seeds: Sequence[int]) -> Findings: ...


def find(name: str) -> Lab:
    """The module of a lab. Raises ConfigError for an unknown name."""
    if name not in LABS:
        raise ConfigError(f"no lab is called {name!r}{suggestion(name, LABS)} (`truing lab list` says what each shows)")
    return cast(Lab, importlib.import_module(f"truing.labs.{name}"))
